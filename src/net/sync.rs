//! The queues' lock, under a name by which a model puts another in its place (`queue_model.rs`, `handover_model.rs`).
pub(crate) use parking_lot::{Mutex, MutexGuard as Guard};
