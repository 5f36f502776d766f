//! Guest networks: host backends, filters, and the comparing of two guests' output.

pub mod compare;
pub mod packet;
pub mod rewriter;
