//! All types of objects by name, with their ancestors: what `qom-list-types`, `qom-list-properties` and the helps tell.

use lockstep_accel::cpu_model::CpuModel;
use lockstep_hw::core::{DeviceType, Property, PropertyKind};
use lockstep_qapi::schema::{ObjectPropertyInfo, ObjectTypeInfo};
use lockstep_util::{Error, ErrorClass, Result};
use serde_json::Value;

use crate::{
    machine,
    machine_options::{MACHINE_TYPES, MachineKind, machine_properties},
    objects,
};

/// A type that objects can have.
pub struct TypeEntry {
    /// Its name.
    pub name: String,
    /// Its ancestors, nearest first.
    pub parents: Vec<&'static str>,
}

/// All types that are not abstract.
pub fn concrete() -> Vec<TypeEntry> {
    let mut all: Vec<TypeEntry> = vec![];
    for device in machine::device_types().iter() {
        all.push(TypeEntry { name: device.name.to_owned(), parents: with_root(device.parents) });
    }
    for object in objects::TYPE_HELP {
        all.push(TypeEntry { name: object.name.to_owned(), parents: with_root(object.parents) });
    }
    for machine in MACHINE_TYPES {
        let parents: &[&str] = match machine.kind {
            MachineKind::Pc => &["generic-pc-machine", "x86-machine", "machine"],
            MachineKind::None => &["machine"],
        };
        all.push(TypeEntry { name: machine.qom_type.to_owned(), parents: with_root(parents) });
    }
    for name in CpuModel::type_names() {
        all.push(TypeEntry {
            name: format!("{name}-x86_64-cpu"),
            parents: with_root(&["x86_64-cpu", "cpu", "device"]),
        });
    }
    all
}

fn with_root(parents: &[&'static str]) -> Vec<&'static str> {
    let rest = parents.iter().copied().filter(|p| *p != "object");
    rest.chain(["object"]).collect()
}

/// `qom-list-types`.
pub fn list(implements: Option<&str>, with_abstract: bool) -> Vec<ObjectTypeInfo> {
    let concrete = concrete();
    let mut all: Vec<ObjectTypeInfo> = vec![];
    let matches = |name: &str, parents: &[&str]| implements.is_none_or(|i| i == name || parents.contains(&i));
    for entry in &concrete {
        if matches(&entry.name, &entry.parents) {
            all.push(ObjectTypeInfo {
                name: entry.name.clone(),
                abstract_: None,
                parent: entry.parents.first().map(|p| (*p).to_owned()),
            });
        }
        let ancestors = entry.parents.iter().enumerate().filter(|_| with_abstract);
        for (at, ancestor) in ancestors {
            let above = &entry.parents[at + 1..];
            let known = all.iter().any(|t| t.name == *ancestor) || concrete.iter().any(|t| t.name == *ancestor);
            if !known && matches(ancestor, above) {
                all.push(ObjectTypeInfo {
                    name: (*ancestor).to_owned(),
                    abstract_: Some(true),
                    parent: above.first().map(|p| (*p).to_owned()),
                });
            }
        }
    }
    all
}

/// Whether there is a type, abstract or not.
pub fn exists(name: &str) -> bool {
    ancestors(name).is_some()
}

/// Whether a type exists, and its ancestors if so; abstract types count.
fn ancestors(name: &str) -> Option<Vec<&'static str>> {
    concrete().into_iter().find_map(|entry| match entry.parents.iter().position(|p| *p == name) {
        _ if entry.name == name => Some(entry.parents),
        Some(at) => Some(entry.parents[at + 1..].to_vec()),
        None => None,
    })
}

/// A property as users are told of it.
pub fn property_info(p: &Property) -> ObjectPropertyInfo {
    ObjectPropertyInfo {
        name: p.name.to_owned(),
        type_: p.type_name().to_owned(),
        description: Some(p.help_text().to_owned()).filter(|t| !t.is_empty()),
        default_value: default_value(p),
    }
}

/// The properties of a type of device; its own override its ancestors'.
fn table(kind: &DeviceType) -> Vec<ObjectPropertyInfo> {
    let mut all: Vec<ObjectPropertyInfo> = vec![];
    for property in kind.properties() {
        if all.iter().all(|p| p.name != property.name) {
            all.push(property_info(property));
        }
    }
    all
}

fn default_value(p: &Property) -> Option<Value> {
    use PropertyKind as K;
    let shown = matches!(
        p.kind,
        K::Bool
            | K::U8
            | K::U16
            | K::U32
            | K::U64
            | K::I32
            | K::Size
            | K::BlockSize
            | K::OnOffAuto
            | K::Enum(..)
            | K::PciAddress
    );
    // A boot index is not a plain number: it has no default.
    p.default.filter(|_| shown && p.name != "bootindex").and_then(|text| p.parse("", text).ok()).map(|v| v.to_json())
}

fn plain(name: &str, kind: &str) -> ObjectPropertyInfo {
    ObjectPropertyInfo { name: name.to_owned(), type_: kind.to_owned(), description: None, default_value: None }
}

/// `device-list-properties`.
///
/// # Errors
/// When there is no such type, or it is not one of a device that can be made.
pub fn device_properties(name: &str) -> Result<Vec<ObjectPropertyInfo>> {
    match (machine::device_types().find(name), ancestors(name)) {
        (Some(kind), _) => Ok(table(kind)),
        (None, Some(parents)) if name.ends_with("-x86_64-cpu") && parents.contains(&"device") => Ok(cpu_properties()),
        (None, Some(_)) => Err(Error::new("Parameter 'typename' expects a non-abstract device type")),
        (None, None) => Err(Error::device_not_found(name)),
    }
}

fn cpu_properties() -> Vec<ObjectPropertyInfo> {
    CpuModel::feature_names().into_iter().map(|name| plain(name, "bool")).collect()
}

/// `qom-list-properties`.
///
/// # Errors
/// When there is no such type.
pub fn properties(name: &str) -> Result<Vec<ObjectPropertyInfo>> {
    let parents = ancestors(name)
        .ok_or_else(|| Error::with_class(ErrorClass::DeviceNotFound, format!("Class '{name}' not found")))?;
    let mut all = vec![plain("type", "string")];
    if let Some(kind) = machine::device_types().find(name) {
        all.extend(table(kind));
    } else if let Some(object) = objects::TYPE_HELP.iter().find(|o| o.name == name) {
        all.extend(object.class_properties.iter().map(|(name, kind)| plain(name, kind)));
    } else if let Some(machine) = MACHINE_TYPES.iter().find(|m| m.qom_type == name) {
        all.extend(machine_properties(machine.kind).map(|p| ObjectPropertyInfo {
            description: Some(p.description.to_owned()).filter(|d| !d.is_empty()),
            ..plain(p.name, p.kind)
        }));
    } else if name.ends_with("-x86_64-cpu") && parents.contains(&"cpu") {
        all.extend(cpu_properties());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_listed_with_their_ancestors() {
        let names = |types: Vec<ObjectTypeInfo>| types.into_iter().map(|t| t.name).collect::<Vec<_>>();
        let filters = names(list(Some("netfilter"), false));
        assert!(filters.contains(&"filter-rewriter".to_owned()) && !filters.contains(&"netfilter".to_owned()));
        assert!(names(list(Some("netfilter"), true)).contains(&"netfilter".to_owned()));
        assert_eq!(names(list(Some("nope"), true)), Vec::<String>::new());
        let mut all = names(list(None, true));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "each type once");
    }

    #[test]
    fn defaults_are_told_in_their_type() {
        let of = |device: &str, name: &str| {
            let all = device_properties(device).unwrap();
            all.into_iter().find(|p| p.name == name).unwrap().default_value
        };
        assert_eq!(of("rtl8139", "addr"), Some((-1).into()));
        assert_eq!(of("rtl8139", "multifunction"), Some(false.into()));
        assert_eq!(of("ide-hd", "write-cache"), Some("auto".into()));
        assert_eq!(of("ide-hd", "bootindex"), None);
    }

    #[test]
    fn unknown_types_get_qemus_errors() {
        assert_eq!(properties("nope").unwrap_err().message(), "Class 'nope' not found");
        assert_eq!(device_properties("nope").unwrap_err().message(), "Device 'nope' not found");
        assert_eq!(
            device_properties("pci-device").unwrap_err().message(),
            "Parameter 'typename' expects a non-abstract device type"
        );
    }
}
