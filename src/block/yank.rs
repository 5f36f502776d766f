//! Connections of block nodes that can be cut from any thread (`yank` with type `block-node`).

use std::sync::Arc;

use parking_lot::Mutex;

use crate::nbd::stream::YankHandle;

/// The instances of a graph. Clones share one list; they may go to other threads.
#[derive(Clone, Debug, Default)]
pub struct YankRegistry {
    instances: Arc<Mutex<Vec<(String, YankHandle)>>>,
}

impl YankRegistry {
    /// Names of the nodes that can be yanked, oldest first.
    pub fn instances(&self) -> Vec<String> {
        self.instances.lock().iter().map(|(name, _)| name.clone()).collect()
    }

    /// Cuts the connection of a node. False if there is no such instance.
    pub fn yank(&self, node_name: &str) -> bool {
        let handle = self.instances.lock().iter().find(|(name, _)| name == node_name).map(|(_, h)| h.clone());
        handle.as_ref().map(YankHandle::yank).is_some()
    }

    pub(crate) fn register(&self, node_name: &str, handle: &YankHandle) -> Registration {
        self.instances.lock().push((node_name.to_owned(), handle.clone()));
        Registration { registry: self.clone(), name: node_name.to_owned() }
    }
}

/// An instance; dropping it takes it off the list.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: YankRegistry,
    name: String,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.instances.lock().retain(|(name, _)| *name != self.name);
    }
}
