//! Arguments as QEMU 10.0.2 judged them, and every type there and back.

use super::*;
use crate::schema::{TYPES, TypeDef, command, round_trip};
use proptest::prelude::*;
use serde_json::json;

fn ask(name: &str, args: Value) -> Result<Map> {
    let Value::Object(map) = args else { panic!("arguments are an object") };
    arguments(command(name).unwrap(), map, Limits::NONE)
}

#[test]
fn arguments_are_judged_as_qemu_does() {
    let caps = |v| json!({"capabilities": v});
    for (name, args, message) in [
        ("migrate-set-capabilities", json!({}), "Parameter 'capabilities' is missing"),
        (
            "migrate-set-capabilities",
            caps(json!([{"capability": "bogus", "state": true}])),
            "Parameter 'capability' does not accept value 'bogus'",
        ),
        (
            "migrate-set-capabilities",
            caps(json!([{"capability": "x-colo"}])),
            "Parameter 'capabilities[0].state' is missing",
        ),
        (
            "migrate-set-capabilities",
            caps(json!([{"capability": "x-colo", "state": "yes"}])),
            "Invalid parameter type for 'capabilities[0].state', expected: boolean",
        ),
        ("migrate-set-capabilities", caps(json!(5)), "Invalid parameter type for 'capabilities', expected: array"),
        (
            "migrate-set-capabilities",
            caps(json!([5])),
            "Invalid parameter type for 'capabilities[0]', expected: object",
        ),
        (
            "migrate-set-parameters",
            json!({"x-checkpoint-delay": -1}),
            "Parameter 'x-checkpoint-delay' expects uint32_t",
        ),
        (
            "migrate-set-parameters",
            json!({"x-checkpoint-delay": "2000"}),
            "Parameter 'x-checkpoint-delay' expects uint64",
        ),
        (
            "migrate-set-parameters",
            json!({"x-checkpoint-delay": 4294967296u64}),
            "Parameter 'x-checkpoint-delay' expects uint32_t",
        ),
        ("migrate-set-parameters", json!({"x-bogus": 1}), "Parameter 'x-bogus' is unexpected"),
        ("query-status", json!({"x": 1}), "Parameter 'x' is unexpected"),
        ("human-monitor-command", json!({}), "Parameter 'command-line' is missing"),
        (
            "human-monitor-command",
            json!({"command-line": 1}),
            "Invalid parameter type for 'command-line', expected: string",
        ),
        (
            "human-monitor-command",
            json!({"command-line": "", "cpu-index": 1.5}),
            "Invalid parameter type for 'cpu-index', expected: integer",
        ),
        (
            "object-add",
            json!({"qom-type": "filter-mirror", "id": "m0", "outdev": "cs"}),
            "Parameter 'netdev' is missing",
        ),
        ("object-add", json!({"qom-type": "nosuch", "id": "q"}), "Parameter 'qom-type' does not accept value 'nosuch'"),
        ("object-add", json!({"id": "q"}), "Parameter 'qom-type' is missing"),
        ("object-add", json!({"qom-type": "iothread"}), "Parameter 'id' is missing"),
        ("object-add", json!({"qom-type": "iothread", "id": "io2", "foo": 1}), "Parameter 'foo' is unexpected"),
        (
            "object-add",
            json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "zz", "outdev": "cs"}),
            "Parameter 'queue' does not accept value 'zz'",
        ),
        (
            "chardev-add",
            json!({"id": "c5", "backend": {"type": "bogus", "data": {}}}),
            "Parameter 'type' does not accept value 'bogus'",
        ),
        (
            "chardev-add",
            json!({"id": "c", "backend": {"type": "socket", "data": {"addr": {"type": "inet", "data": {"port": "1"}}}}}),
            "Parameter 'backend.data.addr.data.host' is missing",
        ),
        (
            "drive-mirror",
            json!({"device": "d", "target": "t", "sync": "bogus"}),
            "Parameter 'sync' does not accept value 'bogus'",
        ),
        (
            "blockdev-add",
            json!({"driver": "qcow2", "file": 5}),
            "Invalid parameter type for 'file', expected: BlockdevRef",
        ),
        (
            "blockdev-add",
            json!({"driver": "qcow2", "file": {"driver": "file", "filename": "x", "y": 1}}),
            "Parameter 'file.y' is unexpected",
        ),
        ("yank", json!({"instances": [{"type": "chardev"}]}), "Parameter 'instances[0].id' is missing"),
    ] {
        assert_eq!(ask(name, args.clone()).unwrap_err().message(), message, "{name} {args}");
    }
}

#[test]
fn a_list_is_checked_by_its_elements() {
    use crate::schema::YankInstance;
    let list: Vec<YankInstance> = from_json(json!([{"type": "migration"}, {"type": "chardev", "id": "x"}])).unwrap();
    assert_eq!(list[0], YankInstance::Migration);
    let e = from_json::<Vec<YankInstance>>(json!([{"type": "migration"}, {"type": "chardev"}])).unwrap_err();
    assert_eq!(e.message(), "Parameter '[1].id' is missing");
}

#[test]
fn values_that_are_not_offered_do_not_exist() {
    let mut limits = Limits::default();
    limits.only(&[crate::schema::ObjectType::FilterMirror]);
    let Value::Object(map) = json!({"qom-type": "iothread", "id": "a"}) else { unreachable!() };
    let e = arguments(command("object-add").unwrap(), map, &limits).unwrap_err();
    assert_eq!(e.message(), "Parameter 'qom-type' does not accept value 'iothread'");
}

#[test]
fn the_documented_procedure_is_accepted() {
    for (name, args) in [
        ("nbd-server-start", json!({"addr": {"type": "inet", "data": {"host": "0.0.0.0", "port": "9999"}}})),
        ("nbd-server-add", json!({"device": "parent0", "writable": true})),
        ("migrate", json!({"uri": "tcp:127.0.0.2:9998"})),
        ("migrate-set-parameters", json!({"x-checkpoint-delay": 2000})),
        ("x-blockdev-change", json!({"parent": "colo-disk0", "child": "children.1"})),
        (
            "chardev-add",
            json!({"id": "mirror0", "backend": {"type": "socket", "data": {"addr":
                {"type": "inet", "data": {"host": "0.0.0.0", "port": "9003"}}, "server": true}}}),
        ),
        (
            "drive-mirror",
            json!({"device": "colo-disk0", "job-id": "resync", "target": "nbd://127.0.0.2:9999/parent0",
                "mode": "existing", "format": "raw", "sync": "full"}),
        ),
        ("block-job-cancel", json!({"device": "resync"})),
        (
            "object-add",
            json!({"qom-type": "filter-mirror", "id": "m0", "insert": "before", "position": "id=rew0",
                "netdev": "hn0", "queue": "tx", "outdev": "mirror0"}),
        ),
        (
            "object-add",
            json!({"qom-type": "colo-compare", "id": "comp0", "primary_in": "compare0-0", "secondary_in": "compare1",
                "outdev": "compare_out0", "iothread": "iothread1"}),
        ),
    ] {
        ask(name, args).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// Builds a value of a type from a supply of random numbers; `depth` bounds recursion.
fn sample(ty: TypeId, depth: u32, random: &mut dyn FnMut() -> u32) -> Value {
    let TypeDef { kind, .. } = ty.def();
    match kind {
        Kind::Builtin(b) => match b {
            Builtin::Str | Builtin::Any => json!(format!("s{}", random() % 100)),
            Builtin::Number => json!(f64::from(random()) / 2.0),
            Builtin::Bool => json!(random() & 1 == 0),
            Builtin::Null => Value::Null,
            Builtin::Uint64 | Builtin::Size => json!(u64::from(random()) << 32),
            b => match range_name(*b) {
                Some((min, ..)) if random() & 1 == 0 => json!(i64::try_from(min).unwrap()),
                Some((_, max, _)) => json!(i64::try_from(max).unwrap()),
                None => json!(-i64::from(random())),
            },
        },
        Kind::Enum(members) => json!(members[random() as usize % members.len()].name),
        Kind::Array(element) => {
            let len = if depth == 0 { 0 } else { random() % 3 };
            (0..len).map(|_| sample(*element, depth - 1, random)).collect()
        }
        Kind::Alternate(branches) => {
            let plain = |b: &&Variant| depth > 0 || !matches!(b.ty.def().kind, Kind::Object { .. });
            let branches: Vec<_> = branches.iter().filter(plain).collect();
            sample(branches[random() as usize % branches.len()].ty, depth.saturating_sub(1), random)
        }
        Kind::Object { members, tag, variants } => {
            let mut map = Map::new();
            for (i, m) in members.iter().enumerate() {
                if !m.optional || *tag == Some(i) || depth > 0 && (random() & 1 == 0) {
                    map.insert(m.name.into(), sample(m.ty, depth.saturating_sub(1), random));
                }
            }
            if let Some(tag) = tag {
                let case = map[members[*tag].name].as_str().unwrap();
                if let Some(v) = variants.iter().find(|v| v.case == case)
                    && let Value::Object(more) = sample(v.ty, depth.saturating_sub(1), random)
                {
                    map.extend(more);
                }
            }
            Value::Object(map)
        }
    }
}

proptest! {
    #[test]
    fn every_type_comes_back_as_it_went(seed: u64) {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as u32
        };
        for id in 0..TYPES.len() as u16 {
            let value = sample(TypeId(id), 4, &mut random);
            let checked = check(TypeId(id), value.clone(), Source::Json).unwrap();
            prop_assert_eq!(&checked, &value);
            if let Some(back) = round_trip(TypeId(id), checked) {
                prop_assert_eq!(back.unwrap(), value);
            }
        }
    }

    #[test]
    fn any_value_is_judged_without_panic(seed: u64, text in "\\PC{0,40}") {
        let id = TypeId((seed % TYPES.len() as u64) as u16);
        if let Ok(value) = crate::json::parse(&text) {
            let _ = check(id, value, Source::Json);
        }
        let _ = check(id, Value::String(text), Source::Keyval);
    }
}
