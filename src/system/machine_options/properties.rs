//! The properties of a machine: `-machine`, and what `-smp`, `-boot` and `-kernel` are short for.

use lockstep_qapi::{
    Map, Wire, keyval,
    schema::{BootConfiguration, MemorySizeConfiguration, OnOffAuto, SMPConfiguration},
    visit::{self, Source},
};
use lockstep_util::{Result, bail, err};
use serde_json::Value;

use super::{AccelKind, DEFAULT_RAM, MachineKind, MachineOptions, Smp};
use crate::cmdline::CommandLine;

/// A property as `-machine TYPE,help` shows it.
pub struct MachineProperty {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Whether only the PC has it.
    pub pc_only: bool,
}

const fn any(name: &'static str, kind: &'static str, description: &'static str) -> MachineProperty {
    MachineProperty { name, kind, description, pc_only: false }
}

const fn pc(name: &'static str, kind: &'static str, description: &'static str) -> MachineProperty {
    MachineProperty { name, kind, description, pc_only: true }
}

/// All properties, sorted by name.
static PROPERTIES: &[MachineProperty] = &[
    pc("acpi", "OnOffAuto", "Enable ACPI"),
    any("append", "string", "Linux kernel command line"),
    any("boot", "BootConfiguration", "Boot configuration"),
    any("graphics", "bool", "Set on/off to enable/disable graphics emulation"),
    any("dump-guest-core", "bool", "Include guest memory in a core dump"),
    pc("hpet", "bool", "Enable/disable high precision event timer emulation"),
    any("initrd", "string", "Linux initial ramdisk file"),
    any("kernel", "string", "Linux kernel image file"),
    any("memory-backend", "string", "Set RAM backend. Valid value is ID of hostmem based backend"),
    any("memory", "MemorySizeConfiguration", "Memory size configuration"),
    any("smp", "SMPConfiguration", "CPU topology"),
    any("usb", "bool", "Set on/off to enable/disable usb"),
    pc("vmport", "OnOffAuto", "Enable vmport (pc & q35)"),
];

/// The properties of a kind of machine.
pub fn machine_properties(kind: MachineKind) -> impl Iterator<Item = &'static MachineProperty> {
    PROPERTIES.iter().filter(move |p| !p.pc_only || kind == MachineKind::Pc)
}

/// All options of the machine as one tree.
pub(super) fn collect(line: &CommandLine) -> Result<Map> {
    let mut tree = Map::new();
    for o in line.iter() {
        let parse = |implied| keyval::parse(&o.value, Some(implied)).map(|t| t.options);
        let under = |name: &str, value: Map| Map::from_iter([(name.to_owned(), Value::Object(value))]);
        let parsed = match o.name {
            "machine" => parse("type"),
            "smp" => parse("cpus").map(|t| under("smp", t)),
            "boot" => parse("order").map(|t| under("boot", t)),
            "usb" => Ok(Map::from_iter([("usb".to_owned(), Value::String("on".into()))])),
            "enable-kvm" => Ok(Map::from_iter([("accel".to_owned(), Value::String("kvm".into()))])),
            "kernel" | "initrd" | "append" => Ok(Map::from_iter([(o.name.to_owned(), Value::String(o.value.clone()))])),
            _ => continue,
        };
        parsed.and_then(|t| keyval::merge(&mut tree, t)).map_err(|e| o.locate(e))?;
    }
    Ok(tree)
}

fn typed<T: Wire>(name: &str, value: Value) -> Result<T> {
    let wrapped = visit::check_named(name, T::TYPE, value, Source::Keyval)?;
    T::from_wire(wrapped)
}

fn text(name: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(err!("Invalid parameter type for '{name}', expected: string")),
    }
}

fn on_off(name: &str, value: Value) -> Result<bool> {
    let text = text(name, value).map_err(|_| err!("Invalid parameter type for '{name}', expected: boolean"))?;
    visit::parse_bool(&text).ok_or_else(|| err!("Parameter '{name}' expects 'on' or 'off'"))
}

/// Automatic means on.
fn on_off_auto(name: &str, value: Value) -> Result<bool> {
    Ok(typed::<OnOffAuto>(name, value)? != OnOffAuto::Off)
}

impl MachineOptions {
    /// Takes the properties of [`collect`]'s tree.
    pub(super) fn apply(&mut self, tree: Map) -> Result<()> {
        for (key, value) in tree {
            let kind = self.machine.kind;
            if !matches!(key.as_str(), "type" | "accel") && !machine_properties(kind).any(|p| p.name == key) {
                bail!("Property '{}.{key}' not found", self.machine.qom_type);
            }
            match key.as_str() {
                "accel" => {
                    self.accelerators = text(&key, value)?
                        .split(':')
                        .filter(|n| !n.is_empty())
                        .map(|n| AccelKind::parse(n).ok_or_else(|| format!("invalid accelerator {n}")))
                        .collect();
                }
                "acpi" => self.acpi = on_off_auto(&key, value)?,
                "append" => self.append = Some(text(&key, value)?),
                "boot" => self.boot(typed(&key, value)?)?,
                "graphics" => self.graphics = on_off(&key, value)?,
                "dump-guest-core" => self.dump_guest_core = on_off(&key, value)?,
                "hpet" => self.hpet = on_off(&key, value)?,
                "initrd" => self.initrd = Some(text(&key, value)?),
                "kernel" => self.kernel = Some(text(&key, value)?),
                "memory" => self.memory_size(typed(&key, value)?)?,
                // There are no objects of that kind that could be named.
                "memory-backend" => bail!("Memory backend '{}' not found", text(&key, value)?),
                "smp" => self.smp = Smp::of(&typed::<SMPConfiguration>(&key, value)?, self.machine)?,
                "usb" => self.usb = on_off(&key, value)?,
                "vmport" => self.vmport = on_off_auto(&key, value)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn memory_size(&mut self, memory: MemorySizeConfiguration) -> Result<()> {
        let size = memory.size.filter(|s| *s != 0).unwrap_or(DEFAULT_RAM);
        let size = size.checked_next_multiple_of(8192).ok_or_else(|| err!("ram size too large"))?;
        match (memory.max_size, memory.slots) {
            (None, None) => {}
            (None, Some(_)) => bail!("slots specified but no max-size"),
            (Some(max), _) if max < size => bail!(
                "invalid value of maxmem: maximum memory size (0x{max:x}) must be at least the initial memory size (0x{size:x})"
            ),
            (Some(max), Some(slots)) if slots != 0 && max == size => bail!(
                "invalid value of maxmem: memory slots were specified but maximum memory size (0x{max:x}) is equal to the initial memory size (0x{size:x})"
            ),
            (Some(max), _) if max > size => bail!("memory hotplug is not supported by this machine"),
            (Some(_), _) => {}
        }
        self.ram_size = size;
        Ok(())
    }

    fn boot(&mut self, boot: BootConfiguration) -> Result<()> {
        if boot.splash.is_some() {
            bail!("Parameter 'boot.splash' is unexpected");
        }
        if let Some(order) = boot.order {
            self.boot_order = boot_devices(order)?;
        }
        if let Some(once) = boot.once {
            self.boot_once = Some(boot_devices(once)?);
        }
        self.boot_menu = boot.menu.unwrap_or(self.boot_menu);
        self.boot_strict = boot.strict.unwrap_or(self.boot_strict);
        if let Some(time) = boot.splash_time {
            let time = u32::try_from(time).ok().filter(|t| *t <= 0xffff);
            let wrong = || err!("splash-time is invalid,it should be a value between 0 and 65535");
            self.splash_time = Some(time.ok_or_else(wrong)?);
        }
        if let Some(timeout) = boot.reboot_timeout {
            if !(-1..=0xffff).contains(&timeout) {
                bail!("reboot timeout is invalid,it should be a value between -1 and 65535");
            }
            self.reboot_timeout = Some(timeout);
        }
        Ok(())
    }
}

fn boot_devices(letters: String) -> Result<String> {
    let mut seen = 0u32;
    for letter in letters.chars() {
        if !('a'..='p').contains(&letter) {
            bail!("Invalid boot device '{letter}'");
        }
        let bit = 1 << (letter as u32 - 'a' as u32);
        if seen & bit != 0 {
            bail!("Boot device '{letter}' was given twice");
        }
        seen |= bit;
    }
    Ok(letters)
}
