//! Net filters and colo-compare as objects.

use std::rc::Rc;

use lockstep_net::{ColoCompare, IoThreadRef, NetRegistry};
use lockstep_qapi::schema::{ObjectOptions, ObjectOptionsBranch};
use lockstep_util::{Result, err};
use serde_json::Value;

use super::{IoThreadObject, LocalFuture, UserObject};
use crate::vm::Vm;

/// An object that the network room keeps.
struct NetObject {
    net: NetRegistry,
    id: String,
    kind: &'static str,
}

pub(super) fn create(vm: &Rc<Vm>, id: &str, branch: ObjectOptionsBranch) -> Result<Rc<dyn UserObject>> {
    let kind = branch.tag().as_str();
    let find = |name: &str| {
        // A path names it as well as an id.
        let id = name.strip_prefix("/objects/").unwrap_or(name);
        let thread = vm.objects.find_as::<IoThreadObject>(id)?.thread();
        Some(IoThreadRef { context: thread.handle(), path: format!("/objects/{id}"), keep: thread })
    };
    vm.net.add_object(&ObjectOptions { id: id.to_owned(), branch }, &find)?;
    Ok(Rc::new(NetObject { net: vm.net.clone(), id: id.to_owned(), kind }))
}

impl UserObject for NetObject {
    fn type_name(&self) -> &'static str {
        self.kind
    }

    fn properties(&self) -> Vec<(&'static str, &'static str)> {
        match (self.net.filter(&self.id), self.net.compare(&self.id)) {
            (Some(filter), _) => filter.properties(),
            (_, Some(_)) => ColoCompare::PROPERTIES.to_vec(),
            _ => vec![],
        }
    }

    fn get(&self, name: &str) -> Option<Value> {
        match (self.net.filter(&self.id), self.net.compare(&self.id)) {
            (Some(filter), _) => filter.get(name),
            (_, Some(compare)) => compare.get(name),
            _ => None,
        }
    }

    fn set(&self, name: &str, value: &Value) -> Result<()> {
        match (self.net.filter(&self.id), self.net.compare(&self.id)) {
            (Some(filter), _) => filter.set(name, value),
            (_, Some(compare)) => compare.set(name, value),
            _ => Err(err!("Property '{}.{name}' not found", self.kind)),
        }
    }

    fn delete(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(self.net.remove_object(&self.id))
    }

    fn as_any(self: Rc<Self>) -> Rc<dyn std::any::Any> {
        self
    }
}
