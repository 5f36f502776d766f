//! Cutting connections to a peer that hangs: whoever holds one registers how to cut it, and the `yank` command does so from
//! any thread, while the main context may be busy.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Error, ErrorClass, Result, bail};

/// What can be yanked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum YankInstance {
    /// A block node, by node name.
    BlockNode(String),
    /// A character device, by id.
    Chardev(String),
    /// The migration.
    Migration,
}

type Cut = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Table {
    instances: Vec<YankInstance>,
    functions: HashMap<u64, (YankInstance, Cut)>,
    next: u64,
}

/// All instances of one process. Cheap to clone.
#[derive(Clone, Default)]
pub struct YankRegistry {
    table: Arc<Mutex<Table>>,
}

impl YankRegistry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers an instance until the guard is dropped.
    ///
    /// # Errors
    /// If there is one of that name already.
    pub fn register(&self, instance: YankInstance) -> Result<YankGuard> {
        let mut table = self.table.lock();
        if table.instances.contains(&instance) {
            bail!("duplicate yank instance");
        }
        table.instances.push(instance.clone());
        Ok(YankGuard { registry: self.clone(), instance: Some(instance), function: None })
    }

    /// Adds a way to cut something of `instance`, until the guard is dropped. `cut` must not block.
    pub fn add(&self, instance: YankInstance, cut: impl Fn() + Send + Sync + 'static) -> YankGuard {
        let mut table = self.table.lock();
        table.next += 1;
        let id = table.next;
        table.functions.insert(id, (instance, Arc::new(cut)));
        YankGuard { registry: self.clone(), instance: None, function: Some(id) }
    }

    /// Registers an instance that is cut in one way, until the guard is dropped. Of several with one name all are cut.
    pub fn register_with(&self, instance: YankInstance, cut: impl Fn() + Send + Sync + 'static) -> YankGuard {
        let mut table = self.table.lock();
        table.next += 1;
        let id = table.next;
        table.instances.push(instance.clone());
        table.functions.insert(id, (instance.clone(), Arc::new(cut)));
        YankGuard { registry: self.clone(), instance: Some(instance), function: Some(id) }
    }

    /// All instances, in the order of their registration.
    pub fn instances(&self) -> Vec<YankInstance> {
        self.table.lock().instances.clone()
    }

    /// Cuts all connections of `instances`.
    ///
    /// # Errors
    /// `DeviceNotFound` if one is not registered; nothing is cut then.
    pub fn yank(&self, instances: &[YankInstance]) -> Result<()> {
        let cuts: Vec<Cut> = {
            let table = self.table.lock();
            if instances.iter().any(|i| !table.instances.contains(i)) {
                return Err(Error::with_class(ErrorClass::DeviceNotFound, "Instance not found"));
            }
            table.functions.values().filter(|(i, _)| instances.contains(i)).map(|(_, cut)| cut.clone()).collect()
        };
        cuts.iter().for_each(|cut| cut());
        Ok(())
    }
}

impl fmt::Debug for YankRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.instances()).finish()
    }
}

/// Keeps a registration.
#[derive(Debug)]
#[must_use]
pub struct YankGuard {
    registry: YankRegistry,
    instance: Option<YankInstance>,
    function: Option<u64>,
}

impl Drop for YankGuard {
    fn drop(&mut self) {
        let mut table = self.registry.table.lock();
        if let Some(instance) = &self.instance {
            // One, not all: names may be registered again before the first is gone.
            if let Some(at) = table.instances.iter().position(|i| i == instance) {
                table.instances.remove(at);
            }
        }
        if let Some(id) = self.function {
            table.functions.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn cuts_what_is_named_and_refuses_what_is_not_there() {
        let registry = YankRegistry::new();
        let count = Arc::new(AtomicU32::new(0));
        let instance = YankInstance::Chardev("c".into());
        let guard = registry.register(instance.clone()).unwrap();
        assert!(registry.register(instance.clone()).is_err());
        let c = count.clone();
        let function = registry.add(instance.clone(), move || {
            c.fetch_add(1, Ordering::Relaxed);
        });
        registry.yank(std::slice::from_ref(&instance)).unwrap();
        let e = registry.yank(&[instance.clone(), YankInstance::Migration]).unwrap_err();
        assert_eq!((e.class(), e.message()), (ErrorClass::DeviceNotFound, "Instance not found"));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        drop(function);
        registry.yank(std::slice::from_ref(&instance)).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
        drop(guard);
        assert!(registry.instances().is_empty());
    }
}
