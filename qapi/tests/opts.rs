//! What QEMU 10.0.2 says to `-chardev`, `-object` and `-netdev`.

use super::*;
use crate::schema::{Netdev, ObjectOptions};
use crate::{Wire, from_opts};
use serde_json::json;

fn known() -> Vec<OptDesc> {
    let desc = |name, ty| OptDesc { name, ty };
    vec![
        desc("backend", OptType::String),
        desc("host", OptType::String),
        desc("server", OptType::Bool),
        desc("wait", OptType::Bool),
        desc("delay", OptType::Bool),
        desc("reconnect-ms", OptType::Number),
        desc("size", OptType::Size),
    ]
}

#[test]
fn strings_are_cut_as_qemu_does() {
    let opts = parse("socket,id=a,host=x,,y,server,nowait,host=z", Some("backend")).unwrap();
    assert_eq!(opts.id.as_deref(), Some("a"));
    let items: Vec<_> = opts.items.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(items, [("backend", "socket"), ("host", "x,y"), ("server", "on"), ("wait", "off"), ("host", "z")]);
    assert_eq!(opts.get("host"), Some("z"));
    assert_eq!(opts.get_all("host").collect::<Vec<_>>(), ["x,y", "z"]);
    let warnings: Vec<_> = opts.warnings().map(|(w, a)| format!("{w}; {a}")).collect();
    assert_eq!(
        warnings,
        [
            "short-form boolean option 'server' deprecated; Please use server=on instead",
            "short-form boolean option 'nowait' deprecated; Please use wait=off instead",
        ]
    );
    let nodelay = parse("socket,nodelay", Some("backend")).unwrap();
    assert_eq!(nodelay.get("delay"), Some("off"));
    assert_eq!(nodelay.warnings().next().unwrap().1, "Please use nodelay=on instead");
    assert!(parse("null,id=a,help", Some("backend")).unwrap().help);
    assert!(parse("help", Some("backend")).unwrap().help);
    assert_eq!(parse("a,,b,id=x,", Some("backend")).unwrap().get("backend"), Some("a,b"));
    assert_eq!(parse("null,id=a,id=b", Some("backend")).unwrap().id.as_deref(), Some("a"));
}

#[test]
fn values_are_checked_as_qemu_does() {
    for (text, message) in [
        ("socket,id=a,bogus=1", "Invalid parameter 'bogus'"),
        ("=null,id=x", "Invalid parameter ''"),
        ("socket,nowait=on", "Invalid parameter 'nowait'"),
        ("socket,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
        ("socket,reconnect-ms=abc", "Parameter 'reconnect-ms' expects a number"),
        ("socket,reconnect-ms=1x", "Parameter 'reconnect-ms' expects a number"),
        (
            "socket,reconnect-ms=99999999999999999999",
            "Value '99999999999999999999' is too large for parameter 'reconnect-ms'",
        ),
        ("ringbuf,size=1Q", "Parameter 'size' expects a non-negative number below 2^64"),
        ("ringbuf,size=99999E", "Value '99999E' is out of range for parameter 'size'"),
        ("ringbuf,size=-1", "Value '-1' is out of range for parameter 'size'"),
    ] {
        let opts = parse(text, Some("backend")).unwrap();
        assert_eq!(opts.check(&known()).unwrap_err().message(), message, "{text}");
    }
    let e = parse("socket,id=1a", Some("backend")).unwrap_err();
    assert_eq!(e.message(), "Parameter 'id' expects an identifier");
    assert!(e.hint_text().starts_with("Identifiers consist of letters"));
    let opts = parse("ringbuf,size=64k,reconnect-ms=0x10,server=y", Some("backend")).unwrap();
    assert_eq!(opts.get_size("size").unwrap(), Some(65536));
    assert_eq!(opts.get_number("reconnect-ms").unwrap(), Some(16));
    assert_eq!(opts.get_bool("server").unwrap(), Some(true));
}

fn object(text: &str) -> Result<ObjectOptions> {
    from_opts(&parse(text, Some("qom-type"))?)
}

#[test]
fn objects_come_from_options() {
    let mirror = object("filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0").unwrap();
    assert_eq!(
        mirror.to_wire(),
        json!({"qom-type": "filter-mirror", "id": "m0", "netdev": "hn0", "queue": "tx", "outdev": "mirror0"})
    );
    let memory = object("memory-backend-ram,id=m,size=1M,policy=bind,host-nodes=0-2,host-nodes=5").unwrap().to_wire();
    assert_eq!((&memory["size"], &memory["host-nodes"]), (&json!(1 << 20), &json!([0, 1, 2, 5])));
    for (text, message) in [
        ("", "Parameter 'qom-type' is missing"),
        (",", "Parameter 'qom-type' does not accept value ''"),
        ("iothread,,id=a", "Parameter 'qom-type' does not accept value 'iothread,id=a'"),
        ("iothread,=x", "Parameter 'id' is missing"),
        ("iothread,id=a,x..y=1", "Invalid parameter 'x..y'"),
        ("iothread,id=a,poll-max-ns=abc", "Invalid parameter 'poll-max-ns'"),
        ("iothread,id=a,poll-max-ns=99999999999999999999", "Invalid parameter 'poll-max-ns'"),
        ("iothread,id=a,poll-max-ns.0=1", "Invalid parameter 'poll-max-ns.0'"),
        ("filter-buffer,id=b,netdev=x,interval=-1", "Parameter 'interval' expects a uint64 value"),
        ("filter-buffer,id=b,netdev=x,interval=4294967296", "Parameter 'interval' expects uint32_t"),
        ("memory-backend-ram,id=m,size=1Q", "Parameter 'size' expects a size value"),
        ("memory-backend-ram,id=m,size=1M,share=maybe", "Parameter 'share' expects 'on' or 'off'"),
        ("memory-backend-ram,id=m,size=1M,host-nodes=x", "Parameter 'host-nodes' expects a uint64 value or range"),
        ("memory-backend-ram,id=m,size=1M,host-nodes=3-1", "Parameter 'host-nodes' expects a uint64 value or range"),
        (
            "memory-backend-ram,id=m,size=1M,host-nodes=0-99999",
            "Parameter 'host-nodes' expects a uint64 value or range",
        ),
        ("memory-backend-ram,id=m,size=1M,host-nodes=70000", "Parameter 'null' expects uint16_t"),
        ("iothread,id=a b", "Parameter 'id' expects an identifier"),
        ("iothread", "Parameter 'id' is missing"),
        ("nosuch,id=a", "Parameter 'qom-type' does not accept value 'nosuch'"),
        ("filter-mirror,id=m0,netdev=hn0,queue=bad,outdev=x", "Parameter 'queue' does not accept value 'bad'"),
        ("colo-compare,id=c,primary_in=a,secondary_in=b", "Parameter 'outdev' is missing"),
    ] {
        let e = object(text).unwrap_err();
        assert_eq!(e.message(), message, "{text}");
    }
}

#[test]
fn network_backends_come_from_options() {
    let netdev = |text| -> Result<Netdev> { from_opts(&parse(text, Some("type"))?) };
    let tap = netdev("tap,id=hn0,vhost=off,helper=/usr/lib/qemu/qemu-bridge-helper").unwrap();
    assert_eq!(
        tap.to_wire(),
        json!({"id": "hn0", "type": "tap", "helper": "/usr/lib/qemu/qemu-bridge-helper", "vhost": false})
    );
    let user = netdev("user,id=a,guestfwd=tcp:1,guestfwd=tcp:2").unwrap().to_wire();
    assert_eq!(user["guestfwd"], json!([{"str": "tcp:1"}, {"str": "tcp:2"}]));
    for (text, message) in [
        ("user,id=a,foo=1", "Invalid parameter 'foo'"),
        ("bogus,id=a", "Parameter 'type' does not accept value 'bogus'"),
        ("user", "Parameter 'id' is missing"),
        ("user,id=a,restrict=maybe", "Parameter 'restrict' expects 'on' or 'off'"),
        ("user,id=a,ipv6-prefixlen=x", "Parameter 'ipv6-prefixlen' expects an int64 value"),
        ("hubport,id=a,hubid=4294967295999", "Parameter 'hubid' expects int32_t"),
    ] {
        assert_eq!(netdev(text).unwrap_err().message(), message, "{text}");
    }
}
