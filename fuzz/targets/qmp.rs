//! What a monitor's client says: JSON in any pieces, commands, arguments of the largest types.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_qapi::schema::{
    BlockdevOptions, MigrateSetParameters, Netdev, ObjectOptions, SocketAddress, VersionInfo, VersionTriple,
};
use lockstep_qapi::{Catalogue, Session, SessionConfig, json, visit};
use std::sync::{Arc, OnceLock};

static CATALOGUE: OnceLock<Arc<Catalogue>> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(value) = json::parse(text)
    {
        // 10.0 is written as 10 and -0.0 as -0, as QEMU does: what was read again stays as it is.
        let again = json::parse(&json::to_string(&value)).expect("what was written can be read");
        let third = json::parse(&json::to_string(&again)).expect("and read again");
        assert_eq!(third, again);
        let _ = visit::from_json::<BlockdevOptions>(value.clone());
        let _ = visit::from_json::<ObjectOptions>(value.clone());
        let _ = visit::from_json::<Netdev>(value.clone());
        let _ = visit::from_json::<SocketAddress>(value.clone());
        let _ = visit::from_json::<MigrateSetParameters>(value);
    }
    let version = VersionInfo { qemu: VersionTriple { major: 10, minor: 0, micro: 0 }, package: String::new() };
    let config = SessionConfig { version, oob: true, pretty: data.len() % 2 == 0 };
    let mut session = Session::new(config, CATALOGUE.get_or_init(Default::default).clone());
    session.open();
    session.feed(b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}");
    let mut rest = data;
    while !rest.is_empty() {
        let taken = session.feed(rest);
        rest = &rest[taken..];
        while let Some(call) = session.next_oob().or_else(|| session.next_call()) {
            session.finish(call, Ok(serde_json::Value::Null));
        }
        session.take_output();
        if taken == 0 {
            break;
        }
    }
});
