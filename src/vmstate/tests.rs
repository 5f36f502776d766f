//! The codec against QEMU's layouts, and against hostile bytes.

use crate::*;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "mc146818rtc", version = 3, minimum = 1)]
struct Rtc {
    cmos_data: Buffer<128>,
    cmos_index: u8,
    unused0: Unused<28>,
    periodic_timer: Timer,
    next_periodic_time: i64,
    unused1: Unused<24>,
    #[vmstate(since = 2)]
    irq_coalesced: u32,
    #[vmstate(since = 2)]
    period: u32,
    #[vmstate(since = 3)]
    base_rtc: u64,
    #[vmstate(since = 3)]
    last_update: u64,
    #[vmstate(since = 3)]
    offset: i64,
    #[vmstate(since = 3)]
    update_timer: Timer,
    #[vmstate(since = 3)]
    next_alarm_time: u64,
    #[vmstate(subsection)]
    reinject: Option<RtcReinject>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "mc146818rtc/irq_reinject_on_ack_count", version = 1)]
struct RtcReinject {
    irq_reinject_on_ack_count: u16,
}

fn rtc() -> Rtc {
    Rtc {
        cmos_data: std::array::from_fn(|i| i as u8).into(),
        cmos_index: 0x0f,
        periodic_timer: Timer(Some(0x0102_0304_0506_0708)),
        next_periodic_time: -2,
        period: 0x8000,
        base_rtc: 1,
        next_alarm_time: u64::MAX,
        reinject: Some(RtcReinject { irq_reinject_on_ack_count: 5 }),
        ..Wire::absent()
    }
}

fn encoded(state: &impl VmState) -> Vec<u8> {
    let mut out = Encoder::new();
    state.encode(&mut out);
    out.into_bytes()
}

#[test]
fn fields_are_big_endian_and_in_order() {
    let bytes = encoded(&rtc());
    let reinject = "mc146818rtc/irq_reinject_on_ack_count";
    assert_eq!(bytes.len(), 245 + 1 + 1 + reinject.len() + 4 + 2);
    assert_eq!(bytes[128], 0x0f);
    assert_eq!(bytes[129..157], [0; 28]);
    assert_eq!(bytes[157..165], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(bytes[201..205], [0, 0, 0x80, 0]);
    assert_eq!(bytes[229..237], [0xff; 8], "a timer that is not armed");
    assert_eq!(bytes[245..247], [5, reinject.len() as u8]);
    assert_eq!(Rtc::decode(&mut Decoder::new(&bytes), 3), Ok(rtc()));
}

#[test]
fn older_versions_lack_the_newer_fields() {
    let bytes = &encoded(&rtc())[..197];
    let old = Rtc::decode(&mut Decoder::new(bytes), 1).unwrap();
    assert_eq!((old.cmos_index, old.period, old.update_timer), (0x0f, 0, Timer(None)));
    for version in [0, 4] {
        let e = Rtc::decode(&mut Decoder::new(bytes), version).unwrap_err();
        assert!(matches!(e, LoadError::Version { .. }), "{e}");
    }
}

#[test]
fn a_byte_that_looks_like_a_subsection_stays_for_the_next_reader() {
    let mut bytes = encoded(&Rtc { reinject: None, ..rtc() });
    bytes.extend([5, 3, b'a', b'b', b'c']);
    let mut input = Decoder::new(&bytes);
    assert_eq!(Rtc::decode(&mut input, 3).unwrap().reinject, None);
    assert_eq!(input.remaining(), 5);
}

#[test]
fn an_unknown_subsection_is_refused() {
    let mut bytes = encoded(&Rtc { reinject: None, ..rtc() });
    let mut sub = Encoder::new();
    sub.put_subsection("mc146818rtc/new", 1);
    bytes.extend(sub.bytes());
    let e = Rtc::decode(&mut Decoder::new(&bytes), 3).unwrap_err();
    assert_eq!(e.to_string(), "VM subsection 'mc146818rtc/new' in 'mc146818rtc' does not exist");
}

#[test]
fn the_end_of_a_partial_input_is_never_the_end_of_the_state() {
    let bytes = encoded(&rtc());
    for cut in 0..bytes.len() {
        assert_eq!(Rtc::decode(&mut Decoder::partial(&bytes[..cut]), 3), Err(LoadError::Short), "{cut}");
    }
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "port", version = 1)]
struct Port {
    ctrl: u16,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "hub", version = 2)]
struct Hub {
    #[vmstate(kind = "uint8 equal")]
    nports: u8,
    #[vmstate(count = nports, max = 16)]
    ports: Vec<Port>,
    fixed: [Port; 2],
    grid: [[u16; 2]; 3],
    #[vmstate(name = "config")]
    config: Buffer<4>,
    #[vmstate(name = "config", when = nports > 2)]
    extended: Option<Buffer<8>>,
    enabled: bool,
}

fn hub(nports: u8) -> Hub {
    Hub {
        nports,
        ports: (0..nports.into()).map(|ctrl| Port { ctrl }).collect(),
        fixed: [Port { ctrl: 7 }, Port { ctrl: 8 }],
        grid: [[1, 2], [3, 4], [5, 6]],
        config: [1, 2, 3, 4].into(),
        extended: (nports > 2).then_some(Buffer([9; 8])),
        enabled: true,
    }
}

#[test]
fn a_count_in_an_earlier_field_sizes_the_array() {
    for n in [0, 2, 3, 16] {
        let bytes = encoded(&hub(n));
        assert_eq!(bytes.len(), 1 + 2 * usize::from(n) + 4 + 12 + 4 + if n > 2 { 8 } else { 0 } + 1);
        assert_eq!(Hub::decode(&mut Decoder::new(&bytes), 2), Ok(hub(n)));
    }
    let e = Hub::decode(&mut Decoder::new(&encoded(&hub(17))), 2).unwrap_err();
    assert_eq!(e.to_string(), "hub: 17 elements in ports, at most 16 fit");
}

#[test]
fn the_description_has_qemus_shape() {
    let port = serde_json::json!({"vmsd_name": "port", "version": 1, "fields": [{"name": "ctrl", "type": "uint16", "size": 2}]});
    assert_eq!(
        hub(3).description(),
        serde_json::json!({"vmsd_name": "hub", "version": 2, "fields": [
            {"name": "nports", "type": "uint8 equal", "size": 1},
            {"name": "ports", "array_len": 3, "type": "struct", "struct": port, "size": 2},
            {"name": "fixed", "array_len": 2, "type": "struct", "struct": port, "size": 2},
            {"name": "grid", "array_len": 6, "type": "uint16", "size": 2},
            {"name": "config[0]", "type": "buffer", "size": 4},
            {"name": "config[1]", "type": "buffer", "size": 8},
            {"name": "enabled", "type": "bool", "size": 1},
        ]})
    );
    let rtc = rtc().description();
    assert_eq!(rtc["fields"][2], serde_json::json!({"name": "unused[0]", "type": "unused_buffer", "size": 28}));
    assert_eq!(rtc["subsections"][0]["vmsd_name"], "mc146818rtc/irq_reinject_on_ack_count");
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "pair", version = 1)]
struct Pair {
    member: [Rtc; 2],
}

#[test]
fn elements_with_subsections_are_described_one_by_one() {
    let fields = Pair { member: [rtc(), rtc()] }.description()["fields"].clone();
    assert_eq!((&fields[0]["index"], &fields[1]["index"]), (&0.into(), &serde_json::Value::Null));
    assert_eq!(fields.as_array().unwrap().len(), 2);
}

/// What `-dump-vmstate` of QEMU 10.0.2 says of the RTC, field by field: name, version, size.
const QEMU_RTC: [(&str, u32, u32); 13] = [
    ("cmos_data", 0, 128),
    ("cmos_index", 0, 1),
    ("unused", 0, 28),
    ("periodic_timer", 0, 8),
    ("next_periodic_time", 0, 8),
    ("unused", 0, 24),
    ("irq_coalesced", 2, 4),
    ("period", 2, 4),
    ("base_rtc", 3, 8),
    ("last_update", 3, 8),
    ("offset", 3, 8),
    ("update_timer", 3, 8),
    ("next_alarm_time", 3, 8),
];

#[test]
fn the_layout_is_compared_with_a_dump() {
    let field = |(name, since, size): (&str, u32, u32)| serde_json::json!({"field": name, "version_id": since, "field_exists": false, "size": size});
    let mut dump = serde_json::json!({
        "name": "mc146818rtc", "version_id": 3, "minimum_version_id": 1, "Fields": QEMU_RTC.map(field),
        "Subsections": [{"name": "mc146818rtc/irq_reinject_on_ack_count", "version_id": 1, "minimum_version_id": 1,
            "Fields": [field(("irq_reinject_on_ack_count", 0, 2))]}]
    });
    assert_eq!(Rtc::layout().differences(&dump), Vec::<String>::new());
    dump["Fields"][7]["size"] = 8.into();
    assert_eq!(Rtc::layout().differences(&dump), ["mc146818rtc.period: 4 bytes here, 8 there"]);
}

struct Device {
    state: Mutex<Rtc>,
}

impl Snapshot for Device {
    type Wire = Rtc;
    fn snapshot(&self) -> Rtc {
        self.state.lock().unwrap().clone()
    }
    fn validate(&self, wire: &Rtc) -> Result<(), LoadError> {
        if wire.cmos_index > 127 { Err(LoadError::invalid("cmos_index is out of range")) } else { Ok(()) }
    }
    fn restore(&self, wire: Rtc) {
        *self.state.lock().unwrap() = wire;
    }
}

fn device(state: Rtc) -> Arc<Device> {
    Arc::new(Device { state: Mutex::new(state) })
}

vmstate_roundtrip!(a_device_survives_the_trip, || device(rtc()), || device(Wire::absent()));

#[test]
fn instances_and_ids_follow_the_order_of_registration() {
    let registry = StateRegistry::new();
    registry.register("timer", device(rtc()));
    assert_eq!(registry.reserve("ram"), 1);
    registry.register("dma", device(rtc()));
    registry.register("dma", device(rtc()));
    registry.register("0000:00:04.0/rtl8139", device(rtc()));
    let list: Vec<_> = registry.entries().iter().map(|e| (e.id, e.name.to_string(), e.instance)).collect();
    assert_eq!(
        list,
        [
            (0, "timer".into(), 0),
            (1, "ram".into(), 0),
            (2, "dma".into(), 0),
            (3, "dma".into(), 1),
            (4, "0000:00:04.0/rtl8139".into(), 0)
        ]
    );
    assert_eq!(registry.find("rtl8139", 0).map(|e| e.id), Some(4));
    assert!(registry.find("dma", 2).is_none());
}

#[test]
fn preparing_validates_and_touches_nothing() {
    let registry = StateRegistry::new();
    let target = device(Wire::absent());
    registry.register("mc146818rtc", target.clone());
    let mut bytes = encoded(&rtc());
    bytes[128] = 200;
    let e = registry.prepare("mc146818rtc", 0, 3, &mut Decoder::new(&bytes)).unwrap_err();
    assert_eq!(e, LoadError::invalid("cmos_index is out of range"));
    bytes[128] = 9;
    let prepared = registry.prepare("mc146818rtc", 0, 3, &mut Decoder::new(&bytes)).unwrap();
    assert_eq!(target.snapshot().cmos_index, 0);
    prepared.commit();
    assert_eq!(target.snapshot().cmos_index, 9);
    let e = registry.prepare("rtc", 1, 3, &mut Decoder::new(&bytes)).unwrap_err();
    assert!(e.to_string().starts_with("Unknown section or instance 'rtc' 1."), "{e}");
}
