//! The schema against what QEMU 10.0.2 says of itself (`qemu-10.0.2-schema.txt`, its answer in a compact form).

use super::describe;
use crate::schema::{COMMANDS, EVENTS};
use crate::visit::Limits;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Values that QEMU has and Lockstep has not, by where they are first met.
const LEFT_OUT: &[(&str, &str)] = &[
    ("block-export-add.type", "vhost-user-blk fuse vduse-blk"),
    (
        "chardev-add.backend.type",
        "serial parallel hub msmouse wctablet braille testdev spicevmc spiceport qemu-vdagent dbus",
    ),
    ("netdev_add.type", "l2tpv3 vde netmap vhost-user vhost-vdpa"),
    (
        "object-add.qom-type",
        "acpi-generic-initiator acpi-generic-port authz-list authz-listfile authz-pam authz-simple can-bus \
         can-host-socketcan cryptodev-backend cryptodev-backend-builtin cryptodev-backend-lkcf cryptodev-vhost-user \
         dbus-vmstate filter-replay input-barrier input-linux iommufd main-loop memory-backend-epc pef-guest pr-manager-helper \
         qtest rng-egd secret_keyring sev-guest sev-snp-guest thread-context s390-pv-guest tls-cipher-suites \
         x-remote-object x-vfio-user-server",
    ),
    ("query-block[].inserted.image.format-specific.type", "vmdk luks rbd"),
    (
        "query-blockstats[].driver-specific.driver",
        "blklogwrites blkreplay bochs cloop dmg ftp ftps gluster http https iscsi luks nfs nvme parallels qcow qed rbd \
         ssh vdi vhdx vmdk vpc vvfat",
    ),
    ("query-display-options.type", "gtk sdl egl-headless curses spice-app dbus"),
    ("query-stats.providers[].provider", "cryptodev"),
    ("query-vnc-servers[].server[].auth", "ra2 ra2ne tight ultra tls vencrypt sasl"),
    ("set_password.protocol", "spice"),
];

/// What Lockstep has and QEMU has not: optional members and events, which old clients pass over.
const ADDED: &[(&str, &str)] = &[
    ("X_COLO_CHECKPOINT", ""),
    ("migrate-set-parameters", "x-checkpoint-events"),
    ("migrate-set-parameters", "x-checkpoint-style"),
    ("query-colo-status", "statistics"),
    ("query-migrate", "colo"),
    ("query-migrate-parameters", "x-checkpoint-events"),
    ("query-migrate-parameters", "x-checkpoint-style"),
];

/// An entry of either side, in one form.
#[derive(Debug, Default, PartialEq)]
struct Entry {
    kind: String,
    features: Vec<String>,
    /// Member or value, its type (empty for values), optional, features.
    members: Vec<(String, String, bool, Vec<String>)>,
    tag: Option<String>,
    variants: BTreeMap<String, String>,
    oob: bool,
}

type Side = BTreeMap<(bool, String), Entry>;

fn split(word: &str) -> (String, Vec<String>) {
    let mut parts = word.split('!').map(str::to_owned);
    let name = parts.next().unwrap_or_default();
    (name, parts.collect())
}

fn qemu() -> Side {
    let mut side = Side::new();
    for line in include_str!("qemu-10.0.2-schema.txt").lines() {
        let mut words = line.split(' ');
        let kind = words.next().unwrap().to_owned();
        let (name, features) = split(words.next().unwrap());
        let mut e = Entry { kind, features, ..Entry::default() };
        let is_message = matches!(e.kind.as_str(), "command" | "event");
        match e.kind.as_str() {
            "enum" => {
                e.members = words.map(split).map(|(n, f)| (n, String::new(), false, f)).collect();
            }
            "object" => {
                while let Some(word) = words.next() {
                    if word == "|" {
                        e.tag = words.next().map(str::to_owned);
                        e.variants = words
                            .by_ref()
                            .filter_map(|w| w.split_once(':'))
                            .map(|(c, t)| (c.into(), t.into()))
                            .collect();
                        break;
                    }
                    let (member, ty) = word.split_once(':').unwrap();
                    let (ty, features) = split(ty);
                    let name = member.trim_end_matches('?');
                    e.members.push((name.to_owned(), ty, name != member, features));
                }
            }
            _ => {
                for word in words {
                    if word == "oob" {
                        e.oob = true;
                    } else {
                        e.members.push((String::new(), word.to_owned(), false, Vec::new()));
                    }
                }
            }
        }
        side.insert((is_message, name), e);
    }
    side
}

fn texts(v: &Value) -> Vec<String> {
    let mut list: Vec<_> = v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    list.sort();
    list
}

fn lockstep() -> Side {
    let commands: Vec<_> = COMMANDS.iter().map(|c| c.name).collect();
    let events: Vec<_> = EVENTS.iter().map(|e| e.name).collect();
    let mut side = Side::new();
    for v in describe(&commands, &events, Limits::NONE) {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let kind = text(&v["meta-type"]);
        let is_message = matches!(kind.as_str(), "command" | "event");
        let mut e = Entry { kind, features: texts(&v["features"]), oob: v["allow-oob"] == true, ..Entry::default() };
        for key in ["arg-type", "ret-type"] {
            if let Some(ty) = v.get(key) {
                e.members.push((String::new(), text(ty), false, Vec::new()));
            }
        }
        for m in v["members"].as_array().into_iter().flatten() {
            e.members.push((text(&m["name"]), text(&m["type"]), m.get("default").is_some(), texts(&m["features"])));
        }
        e.tag = v.get("tag").map(text);
        let variants = v["variants"].as_array().into_iter().flatten();
        e.variants = variants.map(|c| (text(&c["case"]), text(&c["type"]))).collect();
        side.insert((is_message, text(&v["name"])), e);
    }
    side
}

struct Comparison {
    ours: Side,
    theirs: Side,
    seen: HashSet<(String, String)>,
    differences: Vec<String>,
    left_out: Vec<(String, String)>,
    added: Vec<(String, String)>,
}

impl Comparison {
    fn types(&mut self, ours: &str, theirs: &str, path: &str) {
        if !self.seen.insert((ours.to_owned(), theirs.to_owned())) {
            return;
        }
        if let (Some(a), Some(b)) = (ours.strip_prefix('['), theirs.strip_prefix('[')) {
            return self.types(a.trim_end_matches(']'), b.trim_end_matches(']'), &format!("{path}[]"));
        }
        let is_number = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if !is_number(ours) || !is_number(theirs) {
            if ours != theirs {
                self.differences.push(format!("{path}: {ours} is {theirs} in QEMU"));
            }
            return;
        }
        self.entries(&(false, ours.to_owned()), &(false, theirs.to_owned()), path);
    }

    fn entries(&mut self, ours: &(bool, String), theirs: &(bool, String), path: &str) {
        let mut a = self.ours.remove(ours).unwrap_or_default();
        let Some(b) = self.theirs.get(theirs) else {
            if a.kind == "event" {
                self.added.push((path.to_owned(), String::new()));
                return;
            }
            self.differences.push(format!("{path}: not in QEMU"));
            return;
        };
        let mut b_members = b.members.clone();
        if a.kind == "enum" {
            for (name, ..) in b_members.extract_if(.., |m| !a.members.iter().any(|n| n.0 == m.0)) {
                self.left_out.push((path.to_owned(), name));
            }
        }
        if a.kind == "object" {
            let ours_alone = |m: &(String, String, bool, Vec<String>)| m.2 && !b_members.iter().any(|n| n.0 == m.0);
            let extra: Vec<_> = a.members.iter().filter(|m| ours_alone(m)).map(|m| m.0.clone()).collect();
            a.members.retain(|m| !extra.contains(&m.0));
            self.added.extend(extra.into_iter().map(|name| (path.to_owned(), name)));
        }
        // Order means nothing to a client, but it decides which error comes first.
        let shape = |m: &[(String, String, bool, Vec<String>)]| -> Vec<_> {
            m.iter().map(|(n, _, o, f)| (n.clone(), *o, f.clone())).collect()
        };
        if (&a.kind, &a.features, &a.tag, a.oob, shape(&a.members))
            != (&b.kind, &b.features, &b.tag, b.oob, shape(&b_members))
        {
            self.differences.push(format!("{path}: {a:?}\n   QEMU: {b:?}"));
        }
        let mut pairs: Vec<_> = a
            .members
            .iter()
            .zip(&b_members)
            .filter(|(m, _)| !m.1.is_empty())
            .map(|(m, n)| {
                let dot = if m.0.is_empty() { "" } else { "." };
                (m.1.clone(), n.1.clone(), format!("{path}{dot}{}", m.0))
            })
            .collect();
        for (case, ty) in &a.variants {
            match b.variants.get(case) {
                Some(other) => pairs.push((ty.clone(), other.clone(), format!("{path}({case})"))),
                None => self.differences.push(format!("{path}: no case {case} in QEMU")),
            }
        }
        for (ty, other, path) in pairs {
            self.types(&ty, &other, &path);
        }
        self.ours.insert(ours.clone(), a);
    }
}

#[test]
fn the_schema_is_qemus() {
    let mut c = Comparison {
        ours: lockstep(),
        theirs: qemu(),
        seen: HashSet::new(),
        differences: Vec::new(),
        left_out: Vec::new(),
        added: Vec::new(),
    };
    let names = COMMANDS.iter().map(|c| c.name).chain(EVENTS.iter().map(|e| e.name));
    for name in names {
        let key = (true, name.to_owned());
        c.entries(&key, &key, name);
    }
    // Here an iothread sleeps in the kernel: the properties that tune its polling do not exist.
    c.differences.retain(|difference| !difference.starts_with("object-add(iothread): "));
    assert!(c.differences.is_empty(), "{}", c.differences.join("\n"));
    let mut left_out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, name) in c.left_out {
        left_out.entry(path).or_default().push(name);
    }
    let left_out: Vec<_> = left_out.into_iter().map(|(path, names)| (path, names.join(" "))).collect();
    let expected: Vec<_> = LEFT_OUT.iter().map(|(p, n)| ((*p).to_owned(), (*n).to_owned())).collect();
    assert_eq!(left_out, expected);
    c.added.sort();
    let added: Vec<_> = c.added.iter().map(|(p, n)| (p.as_str(), n.as_str())).collect();
    assert_eq!(added, ADDED);
}

#[test]
fn values_that_do_not_work_are_not_listed() {
    use crate::schema::ObjectType;
    let mut limits = Limits::default();
    limits.only(&[ObjectType::Iothread, ObjectType::FilterMirror]);
    let schema = describe(&["object-add"], &[], &limits);
    let arg = schema[0]["arg-type"].clone();
    let object = schema.iter().find(|t| t["name"] == arg).unwrap();
    let cases: Vec<_> = object["variants"].as_array().unwrap().iter().map(|v| v["case"].as_str().unwrap()).collect();
    assert_eq!(cases, ["filter-mirror", "iothread"]);
    let tag = object["members"][0]["type"].clone();
    let values = &schema.iter().find(|t| t["name"] == tag).unwrap()["values"];
    assert_eq!(*values, serde_json::json!(["filter-mirror", "iothread"]));
    assert!(!schema.iter().any(|t| t.to_string().contains("secondary_in")), "colo-compare's members are gone");
}
