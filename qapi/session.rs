//! One connection of a monitor: from bytes to calls, and from replies and events to bytes.
//!
//! A session does no I/O and runs no command. Its owner feeds what it reads, takes the calls out, runs them, hands the
//! results back, and writes what [`Session::take_output`] returns. Commands run in order, one at a time; those out of
//! band overtake them. The session is `Send`, so that a reader on its own thread can share it with the main context.

use crate::dispatch::Catalogue;
use crate::json::{Reader, write_pretty, write_value};
use crate::message::EventMessage;
use crate::wire::{Map, Wire};
use crate::{cmd, schema::QMPCapability, schema::VersionInfo, visit};
use lockstep_util::{Error, ErrorClass, Result, bail, err};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many requests may wait, with out-of-band execution enabled; without, one.
pub const QUEUE_LENGTH: usize = 8;

/// A request that can be run: the command exists and may run now.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The command.
    pub name: String,
    /// Its arguments, not yet checked.
    pub arguments: Map,
    /// Whether it came as `exec-oob`.
    pub oob: bool,
    id: Option<Value>,
}

/// How a session answers.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// What the greeting says.
    pub version: VersionInfo,
    /// Whether out-of-band execution is offered: only if input is read apart from the main context.
    pub oob: bool,
    /// One member a line (`pretty=on`).
    pub pretty: bool,
}

/// A monitor's connection.
pub struct Session {
    config: SessionConfig,
    catalogue: Arc<Catalogue>,
    reader: Reader,
    negotiated: bool,
    oob_enabled: bool,
    in_band: VecDeque<Result<Value>>,
    out_of_band: VecDeque<Value>,
    running: bool,
    suspended: bool,
    output: String,
}

impl Session {
    /// A session for the commands that `catalogue` lists; nothing is said before [`Session::open`].
    pub fn new(config: SessionConfig, catalogue: Arc<Catalogue>) -> Self {
        Self {
            config,
            catalogue,
            reader: Reader::default(),
            negotiated: false,
            oob_enabled: false,
            in_band: VecDeque::new(),
            out_of_band: VecDeque::new(),
            running: false,
            suspended: false,
            output: String::new(),
        }
    }

    /// A client is there: greets it and expects the negotiation.
    pub fn open(&mut self) {
        self.negotiated = false;
        self.oob_enabled = false;
        let mut capabilities = Vec::new();
        if self.config.oob {
            capabilities.push(QMPCapability::Oob.as_str());
        }
        let version = self.config.version.to_wire();
        self.send(&json!({"QMP": {"version": version, "capabilities": capabilities}}));
    }

    /// The client is gone: drops what it had asked for. A command that runs goes on; its reply still comes, and goes to
    /// whoever listens then, as in QEMU.
    pub fn close(&mut self) {
        self.in_band.clear();
        self.out_of_band.clear();
        self.reader = Reader::default();
        self.suspended = self.running && !self.oob_enabled;
    }

    /// False while the client must wait: read no more then.
    pub fn wants_input(&self) -> bool {
        !self.suspended
    }

    /// Takes input, and returns how much of it: less than all if the session must not take more requests for now. Then
    /// keep the rest until [`Session::wants_input`] says yes again.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        for (i, byte) in bytes.iter().enumerate() {
            if self.suspended {
                return i;
            }
            for request in self.reader.push(*byte).into_iter().flatten() {
                self.request(request);
            }
        }
        bytes.len()
    }

    fn request(&mut self, request: Result<Value>) {
        match request {
            Ok(value) if is_oob(&value) => self.out_of_band.push_back(value),
            request => {
                if !self.oob_enabled || self.in_band.len() == QUEUE_LENGTH - 1 {
                    self.suspended = true;
                }
                self.in_band.push_back(request);
            }
        }
    }

    /// The next call to run out of band, at once. Requests that fail before a command runs are answered here.
    pub fn next_oob(&mut self) -> Option<Call> {
        while let Some(request) = self.out_of_band.pop_front() {
            if let Some(call) = self.begin(request) {
                return Some(call);
            }
        }
        None
    }

    /// The next call to run in order; `None` while one runs. After it, [`Session::finish`] must follow.
    pub fn next_call(&mut self) -> Option<Call> {
        while !self.running {
            let request = self.in_band.pop_front()?;
            let oob_enabled = self.oob_enabled;
            if oob_enabled && self.in_band.len() == QUEUE_LENGTH - 1 {
                self.suspended = false;
            }
            let call = match request {
                Ok(value) => self.begin(value),
                Err(e) => {
                    self.reply(None, Err(e));
                    None
                }
            };
            if call.is_some() {
                self.running = true;
                return call;
            }
            if !oob_enabled {
                self.suspended = false;
            }
        }
        None
    }

    /// The result of a call.
    pub fn finish(&mut self, call: Call, result: Result<Value>) {
        if !call.oob {
            self.running = false;
            if !self.oob_enabled {
                self.suspended = false;
            }
        }
        self.reply(call.id, result);
    }

    /// Sends an event, if the client has negotiated.
    pub fn event(&mut self, event: &EventMessage) {
        if self.negotiated {
            self.send(&event.to_value());
        }
    }

    /// True after the negotiation.
    pub fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// What must be written to the client, in order.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output).into_bytes()
    }

    /// True if [`Session::take_output`] would return something.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Turns a request into a call, or answers it.
    fn begin(&mut self, request: Value) -> Option<Call> {
        let (id, call) = self.parse(request);
        let result = call.and_then(|call| match (self.negotiated, call.name.as_str()) {
            (false, "qmp_capabilities") => self.negotiate(call.arguments).map(|()| None),
            (false, _) => Err(Error::with_class(
                ErrorClass::CommandNotFound,
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            )),
            (true, name) => {
                self.catalogue.permit(name, call.oob)?;
                if name == "qmp_capabilities" {
                    return Err(Error::with_class(
                        ErrorClass::CommandNotFound,
                        "Capabilities negotiation is already complete, command ignored",
                    ));
                }
                Ok(Some(call))
            }
        });
        match result {
            Ok(Some(mut call)) => {
                call.id = id;
                Some(call)
            }
            Ok(None) => {
                self.reply(id, Ok(json!({})));
                None
            }
            Err(e) => {
                self.reply(id, Err(e));
                None
            }
        }
    }

    /// Checks the shape of a request.
    fn parse(&self, request: Value) -> (Option<Value>, Result<Call>) {
        let Value::Object(mut map) = request else { return (None, Err(err!("QMP input must be a JSON object"))) };
        let id = map.remove("id");
        (id, self.parse_members(map))
    }

    fn parse_members(&self, map: Map) -> Result<Call> {
        let mut command: Option<(String, bool)> = None;
        let mut arguments = Map::new();
        for (key, value) in map {
            match (key.as_str(), value) {
                ("execute", value) => set_command(&mut command, "execute", value)?,
                ("exec-oob", value) if self.oob_enabled => set_command(&mut command, "exec-oob", value)?,
                ("arguments", Value::Object(map)) => arguments = map,
                ("arguments", _) => bail!("QMP input member 'arguments' must be an object"),
                _ => bail!("QMP input member '{key}' is unexpected"),
            }
        }
        let (name, oob) = command.ok_or_else(|| err!("QMP input lacks member 'execute'"))?;
        Ok(Call { name, arguments, oob, id: None })
    }

    fn negotiate(&mut self, arguments: Map) -> Result<()> {
        use crate::wire::{Arguments, Command};
        let arguments = visit::arguments(cmd::QmpCapabilities::DEF, arguments, visit::Limits::NONE)?;
        let wanted = cmd::QmpCapabilities::from_members(arguments)?.enable.unwrap_or_default();
        for capability in &wanted {
            match capability {
                QMPCapability::Oob if !self.config.oob => bail!("Capability 'oob' not available"),
                QMPCapability::Oob => {}
            }
        }
        self.oob_enabled = wanted.contains(&QMPCapability::Oob);
        self.negotiated = true;
        Ok(())
    }

    fn reply(&mut self, id: Option<Value>, result: Result<Value>) {
        let mut map = Map::new();
        match result {
            Ok(value) => {
                map.insert("return".into(), value);
                map.extend(id.map(|id| ("id".into(), id)));
            }
            Err(e) => {
                map.extend(id.map(|id| ("id".into(), id)));
                map.insert("error".into(), json!({"class": e.class().as_str(), "desc": e.message()}));
            }
        }
        self.send(&Value::Object(map));
    }

    fn send(&mut self, value: &Value) {
        if self.config.pretty {
            let mut text = String::new();
            write_pretty(value, &mut text);
            self.output.push_str(&text.replace('\n', "\r\n"));
        } else {
            write_value(value, &mut self.output);
        }
        self.output.push_str("\r\n");
    }
}

/// Whether a request goes out of band: it says so, and does not say `execute` too.
fn is_oob(request: &Value) -> bool {
    request.as_object().is_some_and(|m| m.contains_key("exec-oob") && !m.contains_key("execute"))
}

fn set_command(command: &mut Option<(String, bool)>, key: &str, value: Value) -> Result<()> {
    let Value::String(name) = value else { bail!("QMP input member '{key}' must be a string") };
    match command.replace((name, key == "exec-oob")) {
        None => Ok(()),
        Some(_) => Err(err!("QMP input member 'execute' clashes with 'exec-oob'")),
    }
}

#[cfg(test)]
#[path = "tests/session.rs"]
mod tests;
