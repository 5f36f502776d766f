//! vmstate
