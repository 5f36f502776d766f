//! From options to a machine: vCPUs, the board, its devices.

mod backends;
mod defaults;
mod firmware;
mod pc;
mod vcpus;

use std::rc::Rc;

use lockstep_hw::core::{DeviceType, PropertyInput, QomParent, TypeTable, create_device};
use lockstep_qapi::{event, opts};
use lockstep_util::{Error, Result, bail, err, report};
use serde_json::Value;

use crate::{
    cmdline::{CommandLine, Occurrence},
    machine_options::MachineKind,
    types,
    vm::Vm,
};

pub use defaults::Defaults;
pub use pc::Pc;

/// Types of devices that this program has.
static DEVICE_TYPES: &[&[&DeviceType]] = &[
    lockstep_hw::pc::BOARD_TYPES,
    lockstep_hw::ide::TYPES,
    lockstep_hw::char::TYPES,
    lockstep_hw::net::TYPES,
    lockstep_hw::display::TYPES,
    lockstep_hw::usb::TYPES,
];

/// All types of devices.
pub fn device_types() -> TypeTable {
    TypeTable(DEVICE_TYPES)
}

/// Makes the machine: what is on its board, and its default devices.
///
/// # Errors
/// QEMU's.
pub async fn create(vm: &Rc<Vm>, line: &CommandLine) -> Result<()> {
    backends::provide(vm);
    for o in line.all("global") {
        global(vm, o)?;
    }
    match vm.options.machine.kind {
        MachineKind::None => Ok(()),
        MachineKind::Pc => pc::create(vm, line).await,
    }
}

/// After all devices were made.
///
/// # Errors
/// When firmware cannot be told of them.
pub fn finish(vm: &Rc<Vm>) -> Result<()> {
    if let Some(pc) = vm.pc() {
        pc.finish(vm)?;
    }
    for (driver, property, _) in vm.board.globals.unused() {
        let exists = device_types().iter().any(|t| t.name == driver || t.parents.contains(&driver.as_str()));
        if !exists {
            report::warn(format!("global {driver}.{property} has invalid class name"));
        }
    }
    Ok(())
}

/// `-global driver.property=value`, or with `driver=`, `property=` and `value=`.
fn global(vm: &Vm, o: &Occurrence) -> Result<()> {
    let simple = o.value.split_once('=').and_then(|(left, value)| Some((left.split_once('.')?, value)));
    if let Some(((driver, property), value)) = simple.filter(|((d, _), _)| !d.contains(',')) {
        vm.board.globals.add(driver, property, value);
        return Ok(());
    }
    let options = opts::parse(&o.value, None).map_err(|e| o.locate(e))?;
    let get = |name| options.get(name).map(str::to_owned);
    for (key, _) in &options.items {
        if !matches!(key.as_str(), "driver" | "property" | "value") {
            return Err(o.locate(err!("Invalid parameter '{key}'")));
        }
    }
    match (get("driver"), get("property"), get("value")) {
        (Some(driver), Some(property), Some(value)) => vm.board.globals.add(driver, property, value),
        _ => bail!("{}: -global driver.property=value expected", o.location),
    }
    Ok(())
}

/// Makes a device of an `-device` argument.
///
/// # Errors
/// QEMU's.
pub fn add_device_text(vm: &Vm, text: &str) -> Result<()> {
    if text.trim_start().starts_with('{') {
        let value = lockstep_qapi::json::parse(text)?;
        let Value::Object(members) = value else { bail!("Expecting an object") };
        return add_device(vm, members.into_iter().map(|(k, v)| (k, PropertyInput::Json(v))).collect());
    }
    let options = opts::parse(text, Some("driver"))?;
    if let Some(id) = options.id.as_deref().filter(|id| vm.board.tree.find(id).is_some()) {
        bail!("Duplicate ID '{id}' for device");
    }
    let mut all: Vec<_> = options.items.into_iter().map(|(k, v)| (k, PropertyInput::Text(v))).collect();
    if let Some(id) = options.id {
        all.push(("id".into(), PropertyInput::Text(id)));
    }
    add_device(vm, all)
}

/// Unplugs a device that a user names.
///
/// # Errors
/// When there is none, or it cannot be unplugged.
pub fn remove_device(vm: &Vm, id: &str) -> Result<()> {
    let node = vm.board.tree.find(id).ok_or_else(|| Error::device_not_found(id))?;
    node.unplug(&vm.board).map_err(|e| match e.message() {
        "Device does not support hotplugging" => {
            let bus = node.bus.upgrade().map_or_else(String::new, |b| b.name.clone());
            err!("Bus '{bus}' does not support hotplugging")
        }
        _ => e,
    })?;
    vm.emit::<event::DeviceDeleted>(&event::DeviceDeleted { device: Some(id.to_owned()), path: node.path.clone() });
    Ok(())
}

/// Makes a device of its driver, bus, id and properties.
///
/// # Errors
/// QEMU's.
pub fn add_device(vm: &Vm, options: Vec<(String, PropertyInput)>) -> Result<()> {
    let (mut driver, mut bus, mut id) = (None, None, None);
    let mut properties = vec![];
    for (key, value) in options {
        let text = |value: PropertyInput| match value {
            PropertyInput::Text(text) | PropertyInput::Json(Value::String(text)) => Ok(text),
            PropertyInput::Json(_) => Err(err!("Invalid parameter type for '{key}', expected: string")),
        };
        match key.as_str() {
            "driver" => driver = Some(text(value)?),
            "bus" => bus = Some(text(value)?),
            "id" => id = Some(text(value)?),
            _ => properties.push((key, value)),
        }
    }
    let driver = driver.ok_or_else(|| err!("Parameter 'driver' is missing"))?;
    if let Some(id) = &id {
        opts::check_id(id)?;
    }
    let kind = device_types().find(&driver).ok_or_else(|| match types::exists(&driver) {
        true => err!("Parameter 'driver' expects a non-abstract device type"),
        false => err!("'{driver}' is not a valid device model name"),
    })?;
    create_device(&vm.board, kind, id.as_deref(), bus.as_deref(), &properties, QomParent::User)?;
    Ok(())
}
