//! The tree of objects as `qom-list`, `qom-get` and `qom-set` show it: devices, user objects, character devices.

use std::{rc::Rc, sync::Arc};

use lockstep_hw::core::DeviceNode;
use lockstep_qapi::schema::ObjectPropertyInfo;
use lockstep_util::{Error, Result, bail, err};
use serde_json::Value;

use crate::{objects::UserObject, vm::Vm};

/// What a path leads to.
enum Object {
    /// Holds others and nothing else; its type.
    Container(String),
    Device(Arc<DeviceNode>),
    User(Rc<dyn UserObject>),
}

impl Object {
    fn type_name(&self) -> &str {
        match self {
            Self::Container(kind) => kind,
            Self::Device(node) => node.kind.name,
            Self::User(object) => object.type_name(),
        }
    }

    /// Names and types of its own properties.
    fn properties(&self) -> Vec<(String, String)> {
        let mut all = vec![("type".to_owned(), "string".to_owned())];
        match self {
            Self::Container(_) => {}
            Self::Device(node) => {
                all.extend(node.properties().iter().map(|(p, _)| (p.name.to_owned(), p.type_name().to_owned())));
            }
            Self::User(object) => {
                all.extend(object.properties().into_iter().map(|(n, t)| (n.to_owned(), t.to_owned())));
            }
        }
        all
    }
}

/// All objects by path, parents before children.
fn tree(vm: &Vm) -> Vec<(String, Object)> {
    let container = || Object::Container("container".into());
    let mut all = vec![
        (String::new(), container()),
        ("/machine".into(), Object::Container(vm.machine_type_name().into())),
        ("/machine/peripheral".into(), container()),
        ("/machine/peripheral-anon".into(), container()),
        ("/machine/unattached".into(), container()),
        ("/objects".into(), container()),
        ("/chardevs".into(), container()),
        ("/backend".into(), container()),
    ];
    for index in 0..vm.vcpus().map_or(0, |v| v.len()) {
        let kind = format!("{}-x86_64-cpu", vm.cpu_model_name());
        all.push((crate::qmp::cpus::qom_path(index as u32), Object::Container(kind)));
    }
    for node in vm.board.tree.devices() {
        all.push((node.path.clone(), Object::Device(node)));
    }
    if vm.board.ram.find("pc.ram").is_some() {
        all.push(("/objects/pc.ram".into(), Object::Container("memory-backend-ram".into())));
    }
    for (id, kind) in vm.chardevs.kinds() {
        all.push((format!("/chardevs/{id}"), Object::Container(format!("chardev-{kind}"))));
    }
    for (id, object) in vm.objects.all() {
        all.push((format!("/objects/{id}"), Object::User(object)));
    }
    all
}

/// The object of a path: absolute, or the end of exactly one.
fn resolve(vm: &Vm, path: &str) -> Result<(String, Object)> {
    let tree = tree(vm);
    let not_found = || Error::device_not_found(path);
    if let Some(absolute) = path.strip_prefix('/') {
        let wanted = if absolute.is_empty() { String::new() } else { format!("/{}", absolute.trim_end_matches('/')) };
        return tree.into_iter().find(|(p, _)| *p == wanted).ok_or_else(not_found);
    }
    let tail = format!("/{path}");
    let mut matches = tree.into_iter().filter(|(p, _)| p.ends_with(&tail));
    match (matches.next(), matches.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(err!("Path '{path}' is ambiguous")),
        _ => Err(not_found()),
    }
}

fn info(name: String, kind: String) -> ObjectPropertyInfo {
    ObjectPropertyInfo { name, type_: kind, description: None, default_value: None }
}

/// `qom-list`: properties and children of an object.
///
/// # Errors
/// When there is no such object, or several.
pub fn list(vm: &Vm, path: &str) -> Result<Vec<ObjectPropertyInfo>> {
    let (path, object) = resolve(vm, path)?;
    let mut all: Vec<_> = object.properties().into_iter().map(|(n, t)| info(n, t)).collect();
    let prefix = format!("{path}/");
    for (child, object) in tree(vm) {
        if let Some(name) = child.strip_prefix(&prefix).filter(|n| !n.is_empty() && !n.contains('/')) {
            all.push(info(name.to_owned(), format!("child<{}>", object.type_name())));
        }
    }
    Ok(all)
}

/// `qom-get`.
///
/// # Errors
/// When there is no such object or property.
pub fn get(vm: &Vm, path: &str, property: &str) -> Result<Value> {
    let (path, object) = resolve(vm, path)?;
    let unknown = || err!("Property '{}.{property}' not found", object.type_name());
    if property == "type" {
        return Ok(object.type_name().into());
    }
    let child = format!("{path}/{property}");
    if tree(vm).iter().any(|(p, _)| *p == child) {
        return Ok(child.into());
    }
    if !object.properties().iter().any(|(n, _)| n == property) {
        return Err(unknown());
    }
    match &object {
        Object::Container(_) => Err(unknown()),
        // QEMU shows an unset text as an empty one.
        Object::Device(node) => Ok(node.property(property).map_or_else(|| "".into(), |v| v.to_json())),
        Object::User(user) => Ok(user.get(property).unwrap_or_else(|| "".into())),
    }
}

/// `qom-set`.
///
/// # Errors
/// When there is no such object or property, when it cannot be changed, or not to this value.
pub fn set(vm: &Vm, path: &str, property: &str, value: &Value) -> Result<()> {
    let (_, object) = resolve(vm, path)?;
    let kind = object.type_name().to_owned();
    if !object.properties().iter().any(|(n, _)| n == property) {
        bail!("Property '{kind}.{property}' not found");
    }
    match object {
        Object::User(user) if property != "type" => user.set(property, value),
        Object::Device(node) if property != "type" => {
            let table = node.kind.properties().find(|p| p.name == property);
            let table = table.ok_or_else(|| err!("Property '{kind}.{property}' not found"))?;
            let value = table.from_json(&kind, value)?;
            node.device.set_property(property, &value).unwrap_or_else(|| {
                Err(err!(
                    "Attempt to set property '{property}' on device '{}' (type '{kind}') after it was realized",
                    node.id.as_deref().unwrap_or("")
                ))
            })
        }
        _ => Err(err!("Property '{kind}.{property}' is not writable")),
    }
}
