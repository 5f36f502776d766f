//! `throttle-group`: limits that `throttle` nodes share.

use std::rc::{Rc, Weak};

use lockstep_block::throttle::{ThrottleGroup, ThrottleGroups, limits::Limits};
use lockstep_qapi::{Wire, schema::ThrottleGroupProperties};
use lockstep_util::{Result, bail, err};
use serde_json::Value;

use super::{LocalFuture, UserObject};
use crate::vm::Vm;

struct Group {
    vm: Weak<Vm>,
    id: String,
    group: Rc<ThrottleGroup>,
}

pub(super) fn create(vm: &Rc<Vm>, id: &str, properties: &ThrottleGroupProperties) -> Result<Rc<dyn UserObject>> {
    let Value::Object(members) = properties.to_wire() else { bail!("Parameter 'limits' expects an object") };
    let limits = match members.get("limits") {
        Some(Value::Object(limits)) if members.len() == 1 => Limits::from_members(limits, "")?,
        Some(_) => bail!("Parameter 'limits' and its single members cannot be used at the same time"),
        None => Limits::from_members(&members, "x-")?,
    };
    let groups: Rc<ThrottleGroups> = vm.graph.extension();
    Ok(Rc::new(Group { vm: Rc::downgrade(vm), id: id.to_owned(), group: groups.add(id, limits)? }))
}

impl UserObject for Group {
    fn type_name(&self) -> &'static str {
        "throttle-group"
    }

    fn properties(&self) -> Vec<(&'static str, &'static str)> {
        vec![("limits", "ThrottleLimits")]
    }

    fn get(&self, name: &str) -> Option<Value> {
        (name == "limits").then(|| Value::Object(self.group.limits().to_members()))
    }

    fn set(&self, name: &str, value: &Value) -> Result<()> {
        match (name, value) {
            ("limits", Value::Object(members)) => {
                self.group.set_limits(Limits::from_members(members, "")?);
                Ok(())
            }
            _ => Err(err!("Property 'throttle-group.{name}' is not writable")),
        }
    }

    fn delete(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let Some(vm) = self.vm.upgrade() else { return Ok(()) };
            let groups: Rc<ThrottleGroups> = vm.graph.extension();
            groups.remove(&self.id, 1)
        })
    }

    fn as_any(self: Rc<Self>) -> Rc<dyn std::any::Any> {
        self
    }
}
