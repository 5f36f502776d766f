//! The parameters of options, as `query-command-line-options` tells them.

use lockstep_qapi::opts::{OptDesc, OptType};
use lockstep_qapi::schema::{CommandLineOptionInfo, CommandLineParameterInfo, CommandLineParameterType as Type};

use crate::machine_options::{MachineKind, machine_properties};

const S: Type = Type::String;
const B: Type = Type::Boolean;
const N: Type = Type::Number;
const Z: Type = Type::Size;

/// Options by the names that QEMU gives their groups. Groups without parameters take any.
#[rustfmt::skip]
static GROUPS: &[(&str, &[(&str, Type)])] = &[
    ("action", &[("panic", S), ("reboot", S), ("shutdown", S)]),
    ("add-fd", &[("opaque", S), ("set", N), ("fd", N)]),
    ("msg", &[("guest-name", B), ("timestamp", B)]),
    ("fw_cfg", &[("string", S), ("file", S), ("name", S)]),
    ("name", &[("debug-threads", B), ("process", S), ("guest", S)]),
    ("object", &[]),
    ("boot-opts", &[("strict", B), ("reboot-timeout", N), ("splash-time", N), ("menu", B), ("once", S), ("order", S)]),
    ("smp-opts", &[
        ("maxcpus", N), ("threads", N), ("cores", N), ("modules", N), ("clusters", N), ("dies", N), ("sockets", N),
        ("books", N), ("drawers", N), ("cpus", N),
    ]),
    ("memory", &[("maxmem", Z), ("slots", N), ("size", Z)]),
    ("accel", &[]),
    ("mon", &[("pretty", B), ("chardev", S), ("mode", S)]),
    ("global", &[("value", S), ("property", S), ("driver", S)]),
    ("rtc", &[("driftfix", S), ("clock", S), ("base", S)]),
    ("icount", &[("sleep", B), ("align", B), ("shift", S)]),
    ("net", &[]),
    ("nic", &[]),
    ("netdev", &[]),
    ("device", &[]),
    ("chardev", &[
        ("logappend", B), ("logfile", S), ("append", B), ("chardev", S), ("size", Z), ("signal", B), ("mux", B),
        ("telnet", B), ("reconnect-ms", N), ("reconnect", N), ("nodelay", B), ("delay", B), ("server", B), ("wait", B),
        ("ipv6", B), ("ipv4", B), ("to", N), ("localport", S), ("localaddr", S), ("fd", S), ("port", S), ("host", S),
        ("input-path", S), ("path", S), ("backend", S), ("abstract", B), ("tight", B),
    ]),
    ("vnc", &[
        ("password", B), ("ipv6", B), ("ipv4", B), ("to", N), ("connections", N), ("share", S), ("vnc", S),
    ]),
    ("drive", &[
        ("werror", S), ("rerror", S), ("read-only", B), ("file", S), ("if", S), ("media", S), ("index", N), ("unit", N),
        ("bus", N), ("detect-zeroes", S), ("format", S), ("cache.writeback", B), ("discard", S), ("auto-read-only", B),
        ("cache.no-flush", B), ("cache.direct", B), ("driver", S), ("node-name", S),
    ]),
];

/// All options with parameters.
pub fn all() -> Vec<CommandLineOptionInfo> {
    let parameter =
        |(name, type_): (&str, Type)| CommandLineParameterInfo { name: name.into(), type_, help: None, default: None };
    let of_machine = machine_properties(MachineKind::Pc).map(|p| {
        // A choice of on, off and automatic is told as a switch, a structure as text.
        (p.name, if matches!(p.kind, "bool" | "OnOffAuto") { B } else { S })
    });
    let machine = CommandLineOptionInfo {
        option: "machine".into(),
        parameters: [("type", S)].into_iter().chain(of_machine).map(parameter).collect(),
    };
    let groups = GROUPS.iter().map(|(option, parameters)| CommandLineOptionInfo {
        option: (*option).into(),
        parameters: parameters.iter().copied().map(parameter).collect(),
    });
    [machine].into_iter().chain(groups).collect()
}

/// The parameters of an option, for checking what was given.
pub fn descriptions(group: &str) -> Vec<OptDesc> {
    let of_type = |kind: &Type| match kind {
        Type::String => OptType::String,
        Type::Boolean => OptType::Bool,
        Type::Number => OptType::Number,
        Type::Size => OptType::Size,
    };
    let found = GROUPS.iter().find(|(name, _)| *name == group);
    found
        .into_iter()
        .flat_map(|(_, list)| list.iter())
        .map(|(name, kind)| OptDesc { name, ty: of_type(kind) })
        .collect()
}

/// The parameters of an option as its help lists them.
pub fn help(group: &str) -> Option<String> {
    let (_, parameters) = GROUPS.iter().find(|(name, _)| *name == group)?;
    let mut lines: Vec<_> = parameters
        .iter()
        .map(|(name, kind)| {
            let kind = match kind {
                Type::String => "str",
                Type::Boolean => "bool (on/off)",
                Type::Number => "num",
                Type::Size => "size",
            };
            format!("  {name}=<{kind}>\n")
        })
        .collect();
    lines.sort();
    Some(format!("{group} options:\n{}", lines.concat()))
}
