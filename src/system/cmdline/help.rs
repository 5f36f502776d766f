//! The helps of options: what there is to choose from.

use lockstep_accel::cpu_model::CpuModel;
use lockstep_hw::core::DeviceType;
use lockstep_qapi::{keyval, opts, schema::ObjectPropertyInfo};
use lockstep_util::{Result, bail, err};
use serde_json::Value;

use super::{CommandLine, Occurrence, help_text, parameters};
use crate::{
    machine,
    machine_options::{MACHINE_TYPES, accel_help, machine_help, machine_properties},
    objects, types, version_text,
};

/// The help that a command line asks for, if it does; the first is what counts.
///
/// # Errors
/// When help is asked for on something that does not exist.
pub fn wanted(line: &CommandLine) -> Result<Option<String>> {
    for o in line.iter() {
        let text = match o.name {
            "help" => Some(help_text()),
            "version" => Some(format!("{}\n", version_text())),
            "machine" => machine(o).map_err(|e| o.locate(e))?,
            "accel" if is_help(&o.value) => Some(accel_help()),
            "cpu" if is_help(&o.value) => Some(cpus()),
            "device" => device(o).map_err(|e| o.locate(e))?,
            "object" => object(o).map_err(|e| o.locate(e))?,
            "netdev" if is_help(&o.value) => Some(netdevs()),
            "chardev" => chardev(o),
            "drive" => drive(o),
            "display" if is_help(&o.value) => Some("Available display backend types:\nnone\n".into()),
            "vga" if o.value == "help" => Some(vga()),
            "smp" if is_help(&o.value) => parameters::help("smp-opts"),
            "boot" if is_help(&o.value) => parameters::help("boot-opts"),
            "rtc" | "global" | "add-fd" | "msg" if is_help(&o.value) => parameters::help(o.name),
            _ => None,
        };
        if text.is_some() {
            return Ok(text);
        }
    }
    Ok(None)
}

fn is_help(text: &str) -> bool {
    matches!(text, "help" | "?")
}

fn asks(text: &str, implied: &str) -> Option<opts::Opts> {
    opts::parse(text, Some(implied)).ok().filter(|o| o.help)
}

fn machine(o: &Occurrence) -> Result<Option<String>> {
    if is_help(&o.value) {
        return Ok(Some(machine_help()));
    }
    let Some(tree) = keyval::parse(&o.value, Some("type")).ok().filter(|t| t.help) else { return Ok(None) };
    let name = tree.options.get("type").and_then(Value::as_str);
    let found = MACHINE_TYPES.iter().find(|m| name.map_or(m.default, |n| m.name == n || m.alias == Some(n)));
    let Some(m) = found else { bail!("unsupported machine type: \"{}\"", name.unwrap_or_default()) };
    let lines = machine_properties(m.kind).map(|p| line(p.name, p.kind, p.description, None));
    Ok(Some(titled(m.qom_type, lines.collect())))
}

fn cpus() -> String {
    let list = CpuModel::list();
    let lines: String = list.iter().map(|(name, what)| format!("  {name:<20}  {what}\n")).collect();
    let mut flags = String::new();
    let mut width = 75;
    for name in CpuModel::feature_names() {
        if width + name.len() + 1 > 75 {
            flags.push_str("\n ");
            width = 1;
        }
        flags.push(' ');
        flags.push_str(name);
        width += name.len() + 1;
    }
    format!("Available CPUs:\n{lines}\nRecognized CPUID flags:{flags}\n\n")
}

/// A line of a help on properties.
fn line(name: &str, kind: &str, description: &str, default: Option<&Value>) -> String {
    let mut text = format!("  {name}=<{kind}>");
    if !description.is_empty() || default.is_some() {
        text = format!("{text:<24} - {description}");
    }
    match default {
        None => {}
        Some(Value::Bool(on)) => text.push_str(if *on { " (default: on)" } else { " (default: off)" }),
        Some(Value::String(word)) => text.push_str(&format!(" (default: {word})")),
        Some(other) => text.push_str(&format!(" (default: {})", other)),
    }
    text.push('\n');
    text
}

fn titled(name: &str, mut lines: Vec<String>) -> String {
    lines.sort();
    if lines.is_empty() {
        return format!("There are no options for {name}.\n");
    }
    format!("{name} options:\n{}", lines.concat())
}

fn device(o: &Occurrence) -> Result<Option<String>> {
    if is_help(&o.value) {
        return Ok(Some(devices()));
    }
    // JSON has no help.
    let Some(o) = asks(&o.value, "driver") else { return Ok(None) };
    let Some(driver) = o.get("driver") else { return Ok(Some(devices())) };
    let kind = machine::device_types().find(driver).map_or(driver, |k| k.name);
    let properties = types::device_properties(kind)?;
    let text = |p: &ObjectPropertyInfo| {
        line(&p.name, &p.type_, p.description.as_deref().unwrap_or(""), p.default_value.as_ref())
    };
    Ok(Some(titled(driver, properties.iter().map(text).collect())))
}

/// All devices that can be made, by category.
fn devices() -> String {
    let mut all: Vec<_> = machine::device_types().iter().filter(|k| k.create.is_some()).collect();
    all.sort_by_key(|k| (k.category, k.name));
    let one = |k: &DeviceType| {
        let mut text = format!("name \"{}\", bus {}", k.name, k.bus);
        if let Some(alias) = k.alias {
            text.push_str(&format!(", alias \"{alias}\""));
        }
        if !k.description.is_empty() {
            text.push_str(&format!(", desc \"{}\"", k.description));
        }
        text + "\n"
    };
    let groups = all.chunk_by(|a, b| a.category == b.category);
    let text = groups.map(|group| {
        let lines: String = group.iter().map(|k| one(k)).collect();
        format!("{} devices:\n{lines}", group[0].category.heading())
    });
    text.collect::<Vec<_>>().join("\n")
}

fn object(o: &Occurrence) -> Result<Option<String>> {
    if is_help(&o.value) {
        return objects(None).map(Some);
    }
    let Some(o) = asks(&o.value, "qom-type") else { return Ok(None) };
    objects(o.get("qom-type")).map(Some)
}

/// The types of objects, or the properties of one.
///
/// # Errors
/// When there is no such type.
pub fn objects(kind: Option<&str>) -> Result<String> {
    let Some(name) = kind else {
        let names: String = objects::TYPE_HELP.iter().map(|t| format!("  {}\n", t.name)).collect();
        return Ok(format!("List of user creatable objects:\n{names}"));
    };
    let found = objects::TYPE_HELP.iter().find(|t| t.name == name);
    let found = found.ok_or_else(|| err!("Parameter 'qom-type' does not accept value '{name}'"))?;
    Ok(titled(name, found.class_properties.iter().map(|(name, kind)| line(name, kind, "", None)).collect()))
}

/// The kinds of network backends.
pub fn netdevs() -> String {
    let names: String = crate::qmp::NETDEVS.iter().map(|n| format!("{}\n", n.as_str())).collect();
    format!("Available netdev backend types:\n{names}")
}

fn chardev(o: &Occurrence) -> Option<String> {
    if !is_help(&o.value) {
        return asks(&o.value, "backend").and_then(|_| parameters::help("chardev"));
    }
    let names: String = crate::qmp::CHARDEVS.iter().map(|k| format!("\n  {}", k.as_str())).collect();
    Some(format!("Available chardev backend types: {names}\n"))
}

/// The formats that a drive can have: QEMU tells those for reading alone apart, here all are for both.
fn drive(o: &Occurrence) -> Option<String> {
    let options = opts::parse(&o.value, None).ok()?;
    options.get("format").filter(|f| is_help(f))?;
    let mut names: Vec<_> = lockstep_block::driver_names().collect();
    names.sort_unstable();
    let names = names.join(" ");
    Some(format!("Supported formats: {names}\nSupported formats (read-only): {names}\n"))
}

fn vga() -> String {
    let mut text = format!("{:<20} no graphic card\n", "none");
    if machine::device_types().find("VGA").is_some() {
        text.push_str(&format!("{:<20} standard VGA (default)\n", "std"));
    }
    text
}
