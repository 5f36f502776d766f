//! What the tests of this crate begin with.

use std::cell::RefCell;
use std::rc::Rc;

use lockstep_event::Context;
use serde_json::Value;

use crate::{Graph, Options};

/// Runs a test on a context of its own.
pub(crate) fn on_context<F: Future>(f: F) -> F::Output {
    Context::new("test").unwrap().run(f)
}

/// Options from keys and values.
pub(crate) fn options(pairs: &[(&str, &str)]) -> Options {
    Options::from_pairs(pairs.iter().copied())
}

/// Names and data of events, in order.
pub(crate) type Events = Rc<RefCell<Vec<(String, Value)>>>;

/// A graph, and what it reports.
pub(crate) fn graph_with_events() -> (Graph, Events) {
    let graph = Graph::new();
    let events: Events = Rc::default();
    let sink = events.clone();
    graph.set_event_sink(Rc::new(move |name, data| sink.borrow_mut().push((name.to_owned(), data))));
    (graph, events)
}
