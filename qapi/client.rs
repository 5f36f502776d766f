//! The other side of the protocol: requests to write and messages to read, for programs that drive a monitor.

use crate::message::EventMessage;
use crate::wire::{Arguments, Command, Map, Reply};
use lockstep_util::{Error, ErrorClass, Result, err};
use serde_json::{Value, json};

/// A request for a command; `id` comes back with its answer.
pub fn request<K: Command>(args: &K::Args, id: Option<Value>) -> Value {
    build("execute", K::DEF.name, args.to_members(), id)
}

/// A request that overtakes those that wait.
pub fn request_oob<K: Command>(args: &K::Args, id: Option<Value>) -> Value {
    build("exec-oob", K::DEF.name, args.to_members(), id)
}

fn build(verb: &str, name: &str, arguments: Map, id: Option<Value>) -> Value {
    let mut request = Map::from_iter([(verb.to_owned(), Value::String(name.to_owned()))]);
    if !arguments.is_empty() {
        request.insert("arguments".into(), Value::Object(arguments));
    }
    request.extend(id.map(|id| ("id".into(), id)));
    Value::Object(request)
}

/// What a monitor sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The greeting.
    Greeting(Value),
    /// The answer to a request: the value of `return`, or the error.
    Answer {
        /// The id of the request.
        id: Option<Value>,
        /// What became of it.
        result: Result<Value>,
    },
    /// An event that the schema knows.
    Event(EventMessage),
    /// Anything else, such as an event of a newer version.
    Other(Value),
}

impl Incoming {
    /// Sorts a message.
    pub fn from_value(mut value: Value) -> Self {
        if let Some(greeting) = value.get_mut("QMP") {
            return Self::Greeting(greeting.take());
        }
        if let Some(event) = EventMessage::from_value(&value) {
            return Self::Event(event);
        }
        let id = value.get("id").cloned();
        if let Some(result) = value.get_mut("return") {
            return Self::Answer { id, result: Ok(result.take()) };
        }
        if let Some(error) = value.get("error") {
            let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default();
            let class = match text("class") {
                "CommandNotFound" => ErrorClass::CommandNotFound,
                "DeviceNotActive" => ErrorClass::DeviceNotActive,
                "DeviceNotFound" => ErrorClass::DeviceNotFound,
                "KVMMissingCap" => ErrorClass::KvmMissingCap,
                _ => ErrorClass::GenericError,
            };
            return Self::Answer { id, result: Err(Error::with_class(class, text("desc"))) };
        }
        Self::Other(value)
    }
}

/// The typed result of a command, from the value of `return`.
pub fn decode<K: Command>(result: Value) -> Result<K::Ret> {
    K::Ret::from_value(result).map_err(|e| err!("Answer to {}: {e}", K::DEF.name))
}

/// The request that ends the negotiation, with out-of-band execution if `oob`.
pub fn negotiate(oob: bool) -> Value {
    if oob {
        json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}})
    } else {
        json!({"execute": "qmp_capabilities"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::RunState;
    use crate::{NoArgs, cmd, event};

    #[test]
    fn requests_and_answers_are_typed() {
        let migrate = cmd::Migrate { uri: Some("tcp:h:1".into()), ..Default::default() };
        let request = request::<cmd::Migrate>(&migrate, Some(json!(1)));
        assert_eq!(request, json!({"execute": "migrate", "arguments": {"uri": "tcp:h:1"}, "id": 1}));
        let yank = request_oob::<cmd::QueryYank>(&NoArgs, None);
        assert_eq!(yank, json!({"exec-oob": "query-yank"}));
        let Incoming::Answer { id, result } =
            Incoming::from_value(json!({"return": {"running": true, "status": "running"}, "id": 1}))
        else {
            panic!("no answer")
        };
        assert_eq!(id, Some(json!(1)));
        assert_eq!(decode::<cmd::QueryStatus>(result.unwrap()).unwrap().status, RunState::Running);
    }

    #[test]
    fn errors_and_events_are_sorted() {
        let error = json!({"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}});
        assert_eq!(
            Incoming::from_value(error),
            Incoming::Answer { id: None, result: Err(Error::device_not_found("x")) }
        );
        let stop = json!({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}});
        let Incoming::Event(e) = Incoming::from_value(stop.clone()) else { panic!("no event") };
        assert!(e.decode::<event::Stop>().is_some() && e.decode::<event::Resume>().is_none());
        assert_eq!(e.to_value()["event"], stop["event"]);
        let unknown = json!({"event": "X", "timestamp": {"seconds": 1, "microseconds": 2}});
        assert_eq!(Incoming::from_value(unknown.clone()), Incoming::Other(unknown));
    }
}
