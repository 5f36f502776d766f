//! The locks of the gate, under a name by which a model puts others in their place (`gate_model.rs`).
pub use parking_lot::{Condvar, Mutex};
pub use std::sync::atomic::{AtomicBool, Ordering};
