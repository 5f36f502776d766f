//! The options that say what kind of machine it is: `-machine`, `-accel`, `-smp`, `-m`, `-cpu`, `-boot`, `-rtc`, `-name`, `-uuid`.

mod icount;
mod properties;
mod topology;

use lockstep_accel::tcg::IcountOptions;
use lockstep_qapi::{
    opts::{self, OptDesc, OptType},
    schema::MemorySizeConfiguration,
};
use lockstep_util::{Result, bail, err, size};

pub use properties::{MachineProperty, machine_properties};
pub use topology::Smp;

use crate::cmdline::{CommandLine, Occurrence};

/// The kinds of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// i440FX and PIIX3.
    Pc,
    /// No devices, no CPUs: for tools that only ask questions.
    None,
}

/// A kind of machine as `-machine help` and `query-machines` have it.
#[derive(Debug)]
pub struct MachineType {
    /// The name in full.
    pub name: &'static str,
    /// Its type as an object.
    pub qom_type: &'static str,
    /// A shorter name.
    pub alias: Option<&'static str>,
    /// What it is.
    pub description: &'static str,
    /// The kind.
    pub kind: MachineKind,
    /// The most vCPUs.
    pub max_cpus: u32,
    /// Whether it is what runs without `-machine`.
    pub default: bool,
}

/// The i440FX machine of a QEMU version. Those before 10.0 have the same devices with the same state; what a stream says beside them
/// follows from the name (`lockstep_migration::Frames`).
macro_rules! i440fx {
    ($version:literal) => {
        MachineType {
            name: concat!("pc-i440fx-", $version),
            qom_type: concat!("pc-i440fx-", $version, "-machine"),
            alias: None,
            description: "Standard PC (i440FX + PIIX, 1996)",
            kind: MachineKind::Pc,
            max_cpus: 8,
            default: false,
        }
    };
}

/// All kinds of machine.
pub static MACHINE_TYPES: &[MachineType] = &[
    i440fx!("9.2"),
    i440fx!("9.1"),
    i440fx!("9.0"),
    i440fx!("8.2"),
    i440fx!("8.1"),
    i440fx!("8.0"),
    i440fx!("7.2"),
    MachineType { alias: Some("pc"), default: true, ..i440fx!("10.0") },
    MachineType {
        name: "none",
        qom_type: "none-machine",
        alias: None,
        description: "empty machine",
        kind: MachineKind::None,
        max_cpus: 1,
        default: false,
    },
];

/// What may run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelKind {
    /// Linux KVM.
    Kvm,
    /// Lockstep's own software CPU.
    Tcg,
    /// Nobody.
    Qtest,
}

impl AccelKind {
    /// All, by name, with the name that messages use.
    pub const ALL: &'static [(&'static str, Self, &'static str)] =
        &[("kvm", Self::Kvm, "KVM"), ("tcg", Self::Tcg, "tcg"), ("qtest", Self::Qtest, "QTest")];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, ..)| *n == name).map(|(_, kind, _)| *kind)
    }

    /// The name in messages.
    pub fn title(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind, _)| *kind == self).map_or("", |(.., title)| title)
    }
}

/// Where the real-time clock begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtcBase {
    /// The host's time, UTC.
    Utc,
    /// The host's time in its time zone.
    LocalTime,
    /// Seconds since the epoch.
    Date(i64),
}

/// What kind of machine it is.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// The type.
    pub machine: &'static MachineType,
    /// What may run it, most wanted first; `Err` is what to say of a name that does not exist.
    pub accelerators: Vec<std::result::Result<AccelKind, String>>,
    /// `-accel tcg,tb-size=`: memory of the host for what is made of the guest's code, in MiB; 0 if nobody says.
    pub tb_size: u32,
    /// How `-accel` was written, for messages.
    pub accel_location: Option<String>,
    /// Memory in bytes.
    pub ram_size: u64,
    /// vCPUs.
    pub smp: Smp,
    /// `-cpu`.
    pub cpu: Option<String>,
    /// Boot order: letters.
    pub boot_order: String,
    /// Boot order of the first boot only.
    pub boot_once: Option<String>,
    /// A boot menu.
    pub boot_menu: bool,
    /// Boot from devices with a `bootindex` only.
    pub boot_strict: bool,
    /// Milliseconds that the menu or a splash stays.
    pub splash_time: Option<u32>,
    /// Milliseconds until a failed boot begins again.
    pub reboot_timeout: Option<i64>,
    /// Whether there is a high-precision event timer.
    pub hpet: bool,
    /// A USB controller on the board.
    pub usb: bool,
    /// Whether a core dump of this process has the guest's memory.
    pub dump_guest_core: bool,
    /// Whether there is ACPI.
    pub acpi: bool,
    /// Whether there is VMware's backdoor port.
    pub vmport: bool,
    /// Whether firmware may use a screen.
    pub graphics: bool,
    /// Kernel, initial RAM disk, and command line.
    pub kernel: Option<String>,
    /// See [`kernel`](Self::kernel).
    pub initrd: Option<String>,
    /// See [`kernel`](Self::kernel).
    pub append: Option<String>,
    /// Where the real-time clock begins.
    pub rtc_base: RtcBase,
    /// `-icount`.
    pub icount: Option<IcountOptions>,
    /// Whether the real-time clock follows the virtual clock.
    pub rtc_virtual: bool,
    /// `-name`.
    pub name: Option<String>,
    /// `-uuid`.
    pub uuid: Option<[u8; 16]>,
}

const DEFAULT_RAM: u64 = 128 * size::MIB;

const fn desc(name: &'static str, ty: OptType) -> OptDesc {
    OptDesc { name, ty }
}

static MEMORY_OPTIONS: &[OptDesc] =
    &[desc("size", OptType::Size), desc("slots", OptType::Number), desc("maxmem", OptType::Size)];
static NAME_OPTIONS: &[OptDesc] =
    &[desc("guest", OptType::String), desc("process", OptType::String), desc("debug-threads", OptType::Bool)];
static RTC_OPTIONS: &[OptDesc] =
    &[desc("base", OptType::String), desc("clock", OptType::String), desc("driftfix", OptType::String)];

impl MachineOptions {
    /// Reads the options.
    ///
    /// # Errors
    /// QEMU's.
    pub fn parse(line: &CommandLine) -> Result<Self> {
        let tree = properties::collect(line)?;
        let mut this = Self {
            machine: machine_type(tree.get("type").and_then(|t| t.as_str()))?,
            accelerators: vec![],
            tb_size: 0,
            accel_location: None,
            ram_size: DEFAULT_RAM,
            smp: Smp { cpus: 1, max_cpus: 1, sockets: 1, cores: 1, threads: 1 },
            cpu: line.last("cpu").map(|o| o.value.clone()),
            boot_order: "cad".into(),
            boot_once: None,
            boot_menu: false,
            boot_strict: false,
            splash_time: None,
            reboot_timeout: None,
            hpet: true,
            usb: false,
            dump_guest_core: true,
            acpi: true,
            vmport: true,
            graphics: !line.has("nographic"),
            kernel: None,
            initrd: None,
            append: None,
            rtc_base: RtcBase::Utc,
            icount: None,
            rtc_virtual: false,
            name: None,
            uuid: None,
        };
        this.apply(tree)?;
        this.accelerators(line)?;
        if let Some(o) = line.last("m") {
            this.memory(o)?;
        }
        if let Some(o) = line.last("rtc") {
            this.rtc(o)?;
        }
        this.icount = icount::parse(line)?;
        if let Some(o) = line.last("name") {
            this.name(o).map_err(|e| o.locate(e))?;
        }
        if let Some(o) = line.last("uuid") {
            let uuid =
                parse_uuid(&o.value).ok_or_else(|| o.locate(err!("failed to parse UUID string: wrong format")))?;
            this.uuid = Some(uuid);
        }
        if this.kernel.is_none() && (this.initrd.is_some() || this.append.is_some()) {
            let what = if this.append.is_some() { "-append" } else { "-initrd" };
            bail!("{what} only allowed with -kernel option");
        }
        Ok(this)
    }

    fn accelerators(&mut self, line: &CommandLine) -> Result<()> {
        let from_machine = !self.accelerators.is_empty();
        let mut listed = vec![];
        for o in line.all("accel") {
            let mut options = opts::parse(&o.value, Some("accel")).map_err(|e| o.locate(e))?;
            let name = options.take("accel").unwrap_or_default();
            let unknown = || o.locate(err!("invalid accelerator {name}")).message().to_owned();
            let kind = AccelKind::parse(&name).ok_or_else(unknown);
            if options.help && kind.is_ok() {
                return Err(o.locate(err!("Property '{name}-accel.help' not found")));
            }
            for (key, value) in &options.items {
                let known = match kind {
                    Ok(AccelKind::Tcg) => self.tcg_property(key, value, line.has("icount")),
                    Ok(_) => Ok(false),
                    Err(_) => break,
                };
                if !known.map_err(|e| o.locate(e))? {
                    return Err(o.locate(err!("Property '{name}-accel.{key}' not found")));
                }
            }
            self.accel_location = Some(o.location.clone());
            listed.push(kind);
        }
        if from_machine && !listed.is_empty() {
            bail!("The -accel and \"-machine accel=\" options are incompatible");
        }
        if !from_machine {
            self.accelerators = listed;
        }
        if self.accelerators.is_empty() {
            // Called by a name that ends so, the program is the one that distributions ship for KVM.
            if std::env::args().next().is_some_and(|name| name.ends_with("kvm")) {
                self.accelerators.push(Ok(AccelKind::Kvm));
            }
            self.accelerators.push(Ok(AccelKind::Tcg));
        }
        Ok(())
    }

    /// Takes a property of `-accel tcg`; says whether there is such a one.
    fn tcg_property(&mut self, key: &str, value: &str, icount: bool) -> Result<bool> {
        match key {
            "tb-size" => {
                let hex = value.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
                let number =
                    hex.unwrap_or_else(|| value.parse()).map_err(|_| err!("Parameter 'tb-size' expects uint64"))?;
                self.tb_size = u32::try_from(number).map_err(|_| err!("Parameter 'tb-size' expects uint32_t"))?;
            }
            // Each vCPU has a thread of its own; with counted instructions they take turns.
            "thread" => match value {
                "multi" if icount => bail!("No MTTCG when icount is enabled"),
                "multi" => {}
                "single" if icount || self.smp.cpus == 1 => {}
                _ => bail!("Invalid 'thread' setting {value}"),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn memory(&mut self, o: &Occurrence) -> Result<()> {
        let read = || -> Result<MemorySizeConfiguration> {
            let options = opts::parse(&o.value, Some("size"))?;
            // A bare number is of mebibytes.
            let size = match options.get("size") {
                None | Some("") => None,
                Some(text) => Some(size::parse_size(text, 'M').ok_or_else(|| opts::size_error("size", text))?),
            };
            options.check(MEMORY_OPTIONS)?;
            Ok(MemorySizeConfiguration {
                size,
                max_size: options.get_size("maxmem")?,
                slots: options.get_number("slots")?,
            })
        };
        self.memory_size(read().map_err(|e| o.locate(e))?)
    }

    fn rtc(&mut self, o: &Occurrence) -> Result<()> {
        let options = opts::parse(&o.value, Some("base")).map_err(|e| o.locate(e))?;
        options.check(RTC_OPTIONS).map_err(|e| o.locate(e))?;
        self.rtc_base = match options.get("base") {
            None | Some("utc") => RtcBase::Utc,
            Some("localtime") => RtcBase::LocalTime,
            Some(date) => RtcBase::Date(parse_date(date).ok_or_else(|| {
                err!("invalid datetime format").hint("valid formats: '2006-06-17T16:01:21' or '2006-06-17'\n")
            })?),
        };
        self.rtc_virtual = match options.get("clock") {
            None | Some("host") => false,
            Some("vm") => true,
            Some(other) => bail!("invalid option value '{other}'"),
        };
        match options.get("driftfix") {
            None | Some("none") => Ok(()),
            Some(other) => Err(err!("invalid option value '{other}'")),
        }
    }

    fn name(&mut self, o: &Occurrence) -> Result<()> {
        let options = opts::parse(&o.value, Some("guest"))?;
        options.check(NAME_OPTIONS)?;
        self.name = options.get("guest").map(str::to_owned);
        if let Some(process) = options.get("process") {
            let name: String = process.chars().take(15).collect();
            let _ = rustix::thread::set_name(&std::ffi::CString::new(name).map_err(|_| err!("invalid process name"))?);
        }
        Ok(())
    }
}

fn machine_type(name: Option<&str>) -> Result<&'static MachineType> {
    match name {
        None => MACHINE_TYPES
            .iter()
            .find(|m| m.default)
            .ok_or_else(|| err!("No machine specified, and there is no default")),
        Some(name) => MACHINE_TYPES.iter().find(|m| m.name == name || m.alias == Some(name)).ok_or_else(|| {
            err!("unsupported machine type: \"{name}\"").hint("Use -machine help to list supported machines\n")
        }),
    }
}

/// What `-machine help` prints.
pub fn machine_help() -> String {
    let mut text = String::from("Supported machines are:\n");
    for m in MACHINE_TYPES {
        if let Some(alias) = m.alias {
            text.push_str(&format!("{alias:<20} {} (alias of {})\n", m.description, m.name));
        }
        text.push_str(&format!("{:<20} {}{}\n", m.name, m.description, if m.default { " (default)" } else { "" }));
    }
    text
}

/// What `-accel help` prints.
pub fn accel_help() -> String {
    let names: String =
        AccelKind::ALL.iter().filter(|(_, k, _)| *k != AccelKind::Qtest).map(|(n, ..)| format!("{n}\n")).collect();
    format!("Accelerators supported in QEMU binary:\n{names}")
}

/// The 16 bytes of a UUID in its usual form.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let shape = text.len() == 36 && text.bytes().enumerate().all(|(i, c)| matches!(i, 8 | 13 | 18 | 23) == (c == b'-'));
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (shape && hex.len() == 32).then_some(uuid)
}

/// Seconds since the epoch of `YYYY-MM-DD` or `YYYY-MM-DDThh:mm:ss`, UTC.
fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let parts: Vec<i64> = text.split(by).map(|p| p.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    let valid = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..61).contains(&second);
    // Days from the civil calendar: years begin in March, so that leap days come last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (y / 400, y % 400);
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + day - 1 - 719_468;
    valid.then_some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<MachineOptions> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        MachineOptions::parse(&CommandLine::parse(&words)?)
    }

    #[test]
    fn the_documented_machine() {
        let first = |words| parse(words).map(|m| m.accelerators);
        assert_eq!(first("-machine accel=tcg -enable-kvm"), Ok(vec![Ok(AccelKind::Kvm)]));
        assert_eq!(first("-enable-kvm -machine accel=tcg"), Ok(vec![Ok(AccelKind::Tcg)]));
        for words in ["-accel tcg,thread=single -smp 1", "-accel tcg,thread=single -icount 3 -smp 2"] {
            assert_eq!(first(words), Ok(vec![Ok(AccelKind::Tcg)]));
        }
        let m = parse("-enable-kvm -cpu qemu64,kvmclock=on -m 512 -smp 1 -name primary").unwrap();
        assert_eq!((m.machine.name, m.ram_size, m.smp.cpus), ("pc-i440fx-10.0", 512 << 20, 1));
        assert_eq!((m.accelerators, m.name.as_deref()), (vec![Ok(AccelKind::Kvm)], Some("primary")));
    }

    #[test]
    fn without_a_word_the_software_cpu_runs_the_guest() {
        assert_eq!(parse("-m 512").unwrap().accelerators, [Ok(AccelKind::Tcg)]);
    }

    #[test]
    fn memory_for_translated_code_is_in_mebibytes() {
        assert_eq!(parse("-accel tcg,thread=multi,tb-size=64").unwrap().tb_size, 64);
        assert_eq!(parse("-accel tcg,tb-size=0x10").unwrap().tb_size, 16);
        assert_eq!(parse("-accel tcg").unwrap().tb_size, 0);
    }

    #[test]
    fn topologies_are_filled_in_cores_first() {
        let smp = |words| parse(words).map(|m| (m.smp.sockets, m.smp.cores, m.smp.threads));
        assert_eq!(smp("-smp 4"), Ok((1, 4, 1)));
        assert_eq!(smp("-smp 4,cores=2"), Ok((2, 2, 1)));
        assert_eq!(smp("-smp 4,sockets=2,cores=1"), Ok((2, 1, 2)));
        assert_eq!(smp("-smp sockets=2,cores=2"), Ok((2, 2, 1)));
    }

    #[test]
    fn wrong_uses_get_qemus_errors() {
        for (words, error) in [
            ("-machine nosuch", "unsupported machine type: \"nosuch\""),
            ("-M pc,foo=on", "Property 'pc-i440fx-10.0-machine.foo' not found"),
            ("-accel kvm,foo=on", "-accel kvm,foo=on: Property 'kvm-accel.foo' not found"),
            ("-accel kvm,tb-size=5", "-accel kvm,tb-size=5: Property 'kvm-accel.tb-size' not found"),
            ("-accel tcg,tb-size=1k", "-accel tcg,tb-size=1k: Parameter 'tb-size' expects uint64"),
            ("-accel tcg,tb-size=4294967296", "-accel tcg,tb-size=4294967296: Parameter 'tb-size' expects uint32_t"),
            ("-accel tcg,thread=x", "-accel tcg,thread=x: Invalid 'thread' setting x"),
            ("-accel tcg,thread=multi -icount shift=1", "-accel tcg,thread=multi: No MTTCG when icount is enabled"),
            ("-accel tcg,thread=single -smp 2", "-accel tcg,thread=single: Invalid 'thread' setting single"),
            ("-accel tcg,help", "-accel tcg,help: Property 'tcg-accel.help' not found"),
            ("-enable-kvm -accel kvm", "The -accel and \"-machine accel=\" options are incompatible"),
            ("-accel tcg -enable-kvm", "The -accel and \"-machine accel=\" options are incompatible"),
            ("-machine accel=kvm -accel kvm", "The -accel and \"-machine accel=\" options are incompatible"),
            ("-smp 0", "Invalid CPU topology: CPU topology parameters must be greater than zero"),
            (
                "-smp cpus=4,maxcpus=2",
                "Invalid CPU topology: maxcpus must be equal to or greater than smp: sockets (1) * dies (1) * modules (1) * \
                 cores (2) * threads (1) == maxcpus (2) < smp_cpus (4)",
            ),
            ("-smp foo=1", "Parameter 'smp.foo' is unexpected"),
            ("-m 1x", "-m 1x: Parameter 'size' expects a non-negative number below 2^64"),
            ("-m size=1G,foo=1", "-m size=1G,foo=1: Invalid parameter 'foo'"),
            ("-boot order=z", "Invalid boot device 'z'"),
            ("-boot foo=1", "Parameter 'boot.foo' is unexpected"),
            ("-rtc base=foo", "invalid datetime format"),
            ("-rtc clock=foo", "invalid option value 'foo'"),
            ("-uuid x", "-uuid x: failed to parse UUID string: wrong format"),
            ("-name a,foo=b", "-name a,foo=b: Invalid parameter 'foo'"),
        ] {
            assert_eq!(parse(words).unwrap_err().message(), error, "{words}");
        }
    }

    #[test]
    fn dates_count_from_the_epoch() {
        assert_eq!(parse_date("1970-01-02"), Some(86_400));
        assert_eq!(parse_date("2006-06-17T16:01:21"), Some(1_150_560_081));
        assert_eq!(parse_date("2000-02-29"), Some(951_782_400));
        assert_eq!(parse_date("2006-13-17"), None);
    }
}
