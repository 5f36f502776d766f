//! What connects a backend to the host.

pub(crate) mod dgram;
pub(crate) mod stream;
pub(crate) mod tap;
mod tap_helper;
pub(crate) mod tap_sys;

use std::any::Any;

/// A host connection; dropping it ends it.
pub(crate) struct HostSide {
    /// The text of `info network` behind the type.
    pub info: String,
    /// The type's name in `info network`.
    pub kind: &'static str,
    /// What lives as long as the backend.
    pub _keep: Box<dyn Any>,
}

/// A task that ends with the backend.
pub(crate) struct TaskGuard(pub tokio::task::JoinHandle<()>);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}
