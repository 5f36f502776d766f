//! Devices that a machine has although nobody asked for them: each unless `-nodefaults`, or one like it, is given.

use lockstep_qapi::{json, opts};
use serde_json::Value;

use crate::cmdline::CommandLine;

/// Which of the default devices there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// The serial port.
    pub serial: bool,
    /// The parallel port.
    pub parallel: bool,
    /// The floppy drive.
    pub floppy: bool,
    /// The CD-ROM drive.
    pub cdrom: bool,
    /// The display adapter.
    pub vga: bool,
}

impl Defaults {
    /// What a command line leaves of them.
    pub fn of(line: &CommandLine) -> Self {
        let on = !line.has("nodefaults");
        let mut defaults = Self { serial: on, parallel: on, floppy: on, cdrom: on, vga: on };
        let devices = line.all("device").filter_map(|o| driver_of(&o.value));
        let globals = line.all("global").filter_map(|o| o.value.split_once('.').map(|(driver, _)| driver.to_owned()));
        for driver in devices.chain(globals) {
            match driver.as_str() {
                "isa-serial" => defaults.serial = false,
                "isa-parallel" => defaults.parallel = false,
                "isa-fdc" | "floppy" => defaults.floppy = false,
                "ide-cd" | "ide-hd" => defaults.cdrom = false,
                "VGA" => defaults.vga = false,
                _ => {}
            }
        }
        defaults
    }
}

/// The driver that an `-device` argument names.
fn driver_of(text: &str) -> Option<String> {
    if text.trim_start().starts_with('{') {
        return Some(json::parse(text).ok()?.get("driver").and_then(Value::as_str)?.to_owned());
    }
    opts::parse(text, Some("driver")).ok()?.take("driver")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Defaults {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Defaults::of(&CommandLine::parse(&words).unwrap())
    }

    #[test]
    fn what_a_user_makes_is_not_made_again() {
        let all = Defaults { serial: true, parallel: true, floppy: true, cdrom: true, vga: true };
        assert_eq!(of("-m 32 -device rtl8139"), all);
        assert_eq!(of("-device ide-hd,drive=d"), Defaults { cdrom: false, ..all });
        assert_eq!(of("-device {\"driver\":\"isa-serial\",\"chardev\":\"c\"}"), Defaults { serial: false, ..all });
        assert_eq!(of("-global isa-fdc.fdtypeA=none"), Defaults { floppy: false, ..all });
        let none = Defaults { serial: false, parallel: false, floppy: false, cdrom: false, vga: false };
        assert_eq!(of("-nodefaults"), none);
    }
}
