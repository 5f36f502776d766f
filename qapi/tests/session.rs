//! A session with a few real commands behind it, asked what QEMU 10.0.2 was asked.

use super::*;
use crate::schema::{RunState, StatusInfo, VersionTriple};
use crate::{Dispatcher, Registry, event};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

fn version() -> VersionInfo {
    VersionInfo { qemu: VersionTriple { major: 10, minor: 0, micro: 2 }, package: "Lockstep".into() }
}

/// A machine that only runs or not.
type Machine = Rc<Cell<bool>>;

fn dispatcher() -> Dispatcher<Machine> {
    let mut r = Registry::<Machine>::new(version());
    r.register::<cmd::QueryStatus>(async |running, _| {
        let status = if running.get() { RunState::Running } else { RunState::Prelaunch };
        Ok(StatusInfo { running: running.get(), status })
    });
    r.register::<cmd::Cont>(async |running, _| {
        running.set(true);
        Ok(())
    });
    r.announce::<event::Stop>();
    r.build()
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits"),
    }
}

struct Monitor {
    session: Session,
    dispatcher: Dispatcher<Machine>,
    machine: Machine,
}

impl Monitor {
    fn new() -> Self {
        let dispatcher = dispatcher();
        let config = SessionConfig { version: version(), oob: true, pretty: false };
        let mut session = Session::new(config, dispatcher.catalogue().clone());
        session.open();
        Self { session, dispatcher, machine: Machine::default() }
    }

    fn negotiated(enable: &str) -> Self {
        let mut m = Self::new();
        m.ask(&format!(r#"{{"execute":"qmp_capabilities","arguments":{{"enable":[{enable}]}}}}"#));
        m
    }

    fn run(&mut self) {
        while let Some(call) = self.session.next_oob() {
            let result = self.dispatcher.catalogue().call_oob(&call);
            self.session.finish(call, result);
        }
        while let Some(call) = self.session.next_call() {
            let result = now(self.dispatcher.call(self.machine.clone(), &call.name, call.arguments.clone()));
            self.session.finish(call, result);
        }
    }

    fn ask(&mut self, text: &str) -> String {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let n = self.session.feed(rest);
            rest = &rest[n..];
            self.run();
        }
        String::from_utf8(self.session.take_output()).unwrap()
    }
}

fn error(class: &str, desc: &str) -> String {
    format!("{{\"error\": {{\"class\": \"{class}\", \"desc\": \"{desc}\"}}}}\r\n")
}

#[test]
fn the_greeting_is_qemus() {
    let mut m = Monitor::new();
    assert_eq!(
        m.ask(" "),
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 2}, \"package\": \"Lockstep\"}, \
         \"capabilities\": [\"oob\"]}}\r\n"
    );
}

#[test]
fn nothing_works_before_the_negotiation() {
    let mut m = Monitor::new();
    m.ask(" ");
    let expecting = error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'");
    assert_eq!(m.ask(r#"{"execute":"query-status"}"#), expecting);
    assert_eq!(m.ask(r#"{"execute":"nosuch"}"#), expecting);
    assert_eq!(
        m.ask(r#"{"execute":"qmp_capabilities","arguments":{"enable":["foo"]}}"#),
        error("GenericError", "Parameter 'null' does not accept value 'foo'")
    );
    m.session.event(&EventMessage::now::<event::Stop>(&crate::NoArgs));
    assert!(!m.session.has_output());
    assert_eq!(
        m.ask(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]},"id":7}"#),
        "{\"return\": {}, \"id\": 7}\r\n"
    );
    assert_eq!(
        m.ask(r#"{"execute":"qmp_capabilities"}"#),
        error("CommandNotFound", "Capabilities negotiation is already complete, command ignored")
    );
    m.session.event(&EventMessage::at::<event::Stop>(&crate::NoArgs, std::time::Duration::new(5, 7000)));
    assert_eq!(m.ask(""), "{\"timestamp\": {\"seconds\": 5, \"microseconds\": 7}, \"event\": \"STOP\"}\r\n");
}

#[test]
fn malformed_requests_get_qemus_answers() {
    let mut m = Monitor::negotiated("");
    let generic = |desc| error("GenericError", desc);
    for (request, answer) in [
        (r#"{"execute":42}"#, generic("QMP input member 'execute' must be a string")),
        (r#"{"foo":1}"#, generic("QMP input member 'foo' is unexpected")),
        (r#"{"execute":"query-status","bogus":1}"#, generic("QMP input member 'bogus' is unexpected")),
        (r#"{"execute":"query-status","arguments":5}"#, generic("QMP input member 'arguments' must be an object")),
        (r#"{"execute":"query-status","arguments":{"x":1}}"#, generic("Parameter 'x' is unexpected")),
        ("[1,2]", generic("QMP input must be a JSON object")),
        ("5 ", generic("QMP input must be a JSON object")),
        ("\"str\"", generic("QMP input must be a JSON object")),
        ("{}", generic("QMP input lacks member 'execute'")),
        (r#"{"exec-oob":"query-status"}"#, generic("QMP input member 'exec-oob' is unexpected")),
        (r#"{"execute" "query-status"}"#, generic("JSON parse error, missing : in object pair")),
        (r#"{"execute":"nosuch"}"#, error("CommandNotFound", "The command nosuch has not been found")),
        (r#"{"execute":"stop"}"#, error("CommandNotFound", "The command stop has not been found")),
    ] {
        assert_eq!(m.ask(request), answer, "{request}");
    }
}

#[test]
fn ids_come_back_and_lines_do_not_matter() {
    let mut m = Monitor::negotiated("");
    let status = r#"{"return": {"running": false, "status": "prelaunch"}"#;
    for id in [r#""abc""#, r#"{"a": [1, 2]}"#, "null", "-0.5"] {
        let answer = m.ask(&format!("{{'execute':'query-status','id':{id}}}"));
        assert_eq!(answer, format!("{status}, \"id\": {id}}}\r\n"));
    }
    assert_eq!(
        m.ask(r#"{"execute":"nosuch","id":9}"#),
        "{\"id\": 9, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command nosuch has not been found\"}}\r\n"
    );
    let both = m.ask("{\"execute\":\n\"cont\"}{\"execute\":\"query-status\"}}");
    let expected = "{\"return\": {}}\r\n{\"return\": {\"running\": true, \"status\": \"running\"}}\r\n".to_owned()
        + &error("GenericError", "JSON parse error, expecting value");
    assert_eq!(both, expected);
}

#[test]
fn input_is_taken_no_faster_than_commands_run() {
    let mut m = Monitor::negotiated("");
    let two = br#"{"execute":"query-status"}{"execute":"query-status"}"#;
    assert_eq!(m.session.feed(two), two.len() / 2);
    assert!(!m.session.wants_input());
    let call = m.session.next_call().unwrap();
    assert!(!m.session.wants_input());
    assert_eq!(m.session.next_call(), None);
    m.session.finish(call, Ok(Value::Null));
    assert!(m.session.wants_input());

    let mut m = Monitor::negotiated("'oob'");
    let one = br#"{"execute":"query-status"}"#;
    assert_eq!(m.session.feed(&one.repeat(20)), QUEUE_LENGTH * one.len());
    let call = m.session.next_call().unwrap();
    assert!(m.session.wants_input(), "a place is free while the command runs");
    assert_eq!(m.session.feed(&one.repeat(20)), one.len());
    m.session.finish(call, Ok(Value::Null));
    assert!(!m.session.wants_input());
}

#[test]
fn a_command_that_cannot_overtake_says_so() {
    let mut m = Monitor::negotiated("'oob'");
    assert_eq!(
        m.ask(r#"{"exec-oob":"query-status","id":1}"#),
        "{\"id\": 1, \"error\": {\"class\": \"GenericError\", \"desc\": \"The command query-status does not support OOB\"}}\r\n"
    );
    assert_eq!(
        m.ask(r#"{"exec-oob":"query-status","execute":"query-status"}"#),
        error("GenericError", "QMP input member 'execute' clashes with 'exec-oob'")
    );
}

#[test]
fn a_new_client_starts_from_the_greeting() {
    let mut m = Monitor::negotiated("");
    m.session.feed(br#"{"execute":"que"#);
    m.session.close();
    m.session.open();
    m.session.take_output();
    assert!(m.ask(r#"{"execute":"query-status"}"#).contains("Expecting capabilities negotiation"));
}

#[test]
fn only_what_is_registered_is_listed() {
    let mut m = Monitor::negotiated("");
    let answer = m.ask(r#"{"execute":"query-commands"}"#);
    for name in ["qmp_capabilities", "query-commands", "query-qmp-schema", "query-version", "query-status", "cont"] {
        assert!(answer.contains(&format!("\"{name}\"")), "{name}");
    }
    assert!(!answer.contains("\"stop\""));
    let schema = m.ask(r#"{"execute":"query-qmp-schema"}"#);
    assert!(schema.contains("\"STOP\"") && !schema.contains("\"RESUME\"") && !schema.contains("\"stop\""));
}

proptest::proptest! {
    #[test]
    fn how_input_is_cut_does_not_matter(cuts in proptest::collection::vec(1usize..20, 0..40), garbage in ".{0,20}") {
        let text = format!(
            "{{'execute':'query-status','id':1}}{garbage}\n{{\"execute\":\n 'cont'}} }} {{'execute':'query-status','id':[2]}}"
        );
        let whole = Monitor::negotiated("").ask(&text);
        let mut m = Monitor::negotiated("");
        let mut pieces = String::new();
        let mut rest = text.as_bytes();
        let mut cuts = cuts.into_iter();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
            let mut piece = piece;
            while !piece.is_empty() {
                let n = m.session.feed(piece);
                piece = &piece[n..];
                m.run();
            }
            pieces.push_str(std::str::from_utf8(&m.session.take_output()).unwrap());
            rest = after;
        }
        proptest::prop_assert_eq!(pieces, whole);
    }
}
