//! vmstate-derive
