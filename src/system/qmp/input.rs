//! Keys and pointing devices.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use lockstep_hw::core::{Axis, Category, InputEvent as Event, Key, MouseButton};
use lockstep_qapi::{Registry, cmd, schema::*};
use lockstep_util::{Error, Result, bail};

use super::{Ctx, keys};
use crate::vm::Vm;

/// How long a key stays down unless the user says.
const HOLD: Duration = Duration::from_millis(100);
/// Steps that wait at most; what comes on top is dropped, as a keyboard drops keys that nobody reads.
const LONGEST_QUEUE: usize = 1024;

/// Keys on their way to the guest, with pauses between.
#[derive(Default)]
pub struct KeyQueue {
    steps: RefCell<VecDeque<(Key, bool, Duration)>>,
    running: std::cell::Cell<bool>,
}

impl KeyQueue {
    /// Presses keys, and lets go of them in reverse.
    pub fn press(self: &Rc<Self>, vm: &Rc<Vm>, request: &cmd::SendKey) {
        let keys: Vec<_> = request.keys.iter().filter_map(key).collect();
        let hold = match request.hold_time {
            Some(ms) => Duration::from_millis(u64::try_from(ms).unwrap_or(0)),
            None => HOLD,
        };
        self.add(vm, &keys, hold);
    }

    fn add(self: &Rc<Self>, vm: &Rc<Vm>, keys: &[Key], hold: Duration) {
        let downs = keys.iter().map(|k| (*k, true, hold));
        let ups = keys.iter().rev().map(|k| (*k, false, hold));
        let mut steps = self.steps.borrow_mut();
        if steps.len() + 2 * keys.len() > LONGEST_QUEUE {
            return;
        }
        steps.extend(downs.chain(ups));
        if !self.running.replace(true) {
            let (queue, vm) = (self.clone(), Rc::downgrade(vm));
            tokio::task::spawn_local(async move {
                loop {
                    let step = queue.steps.borrow_mut().pop_front();
                    let (Some((key, down, pause)), Some(vm)) = (step, vm.upgrade()) else { break };
                    send(&vm, &[Event::Key(key, down)]);
                    drop(vm);
                    tokio::time::sleep(pause).await;
                }
                queue.running.set(false);
            });
        }
    }
}

/// Gives the guest events of one moment. A guest that stands gets none.
pub(crate) fn send(vm: &Vm, events: &[Event]) {
    if vm.is_running() || vm.state() == RunState::Suspended {
        for event in events {
            vm.board.input.send(event);
        }
        vm.board.input.sync();
    }
}

pub(super) fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryMice>(async |vm: Ctx, _| {
        let info = |m: lockstep_hw::core::MouseInfo| MouseInfo {
            name: m.name,
            index: m.index.into(),
            current: m.current,
            absolute: m.absolute,
        };
        Ok(vm.board.input.mice().into_iter().rev().map(info).collect())
    });
    registry.register::<cmd::SendKey>(async |vm: Ctx, a: cmd::SendKey| {
        vm.key_queue.press(&vm, &a);
        Ok(())
    });
    registry.register::<cmd::InputSendEvent>(async |vm: Ctx, a: cmd::InputSendEvent| {
        if let Some(device) = &a.device {
            let node = vm.board.tree.find(device).ok_or_else(|| Error::device_not_found(device))?;
            if node.kind.category != Category::Display {
                bail!("Device {device} (head {}) is not bound to a QemuConsole", a.head.unwrap_or(0));
            }
        }
        if !vm.is_running() && vm.state() != RunState::Suspended {
            bail!("VM not running");
        }
        let events = a.events.iter().map(|e| event(&vm, e)).collect::<Result<Vec<_>>>()?;
        send(&vm, &events.into_iter().flatten().collect::<Vec<_>>());
        Ok(())
    });
}

/// A key of the guest's keyboard; keys that a PC keyboard does not have are no events.
fn key(value: &KeyValue) -> Option<Key> {
    match value {
        KeyValue::Number(n) => keys::of_number(n.data),
        KeyValue::Qcode(code) => keys::of_name(code.data.as_str()),
    }
}

/// The event as devices know it; an error when no device takes events of its kind.
fn event(vm: &Vm, event: &InputEvent) -> Result<Option<Event>> {
    let axis = |axis: InputAxis| match axis {
        InputAxis::X => Axis::X,
        InputAxis::Y => Axis::Y,
    };
    let clamp = |value: i64| i32::try_from(value).unwrap_or(if value < 0 { i32::MIN } else { i32::MAX });
    let made = match event {
        InputEvent::Key(e) => key(&e.data.key).map(|key| Event::Key(key, e.data.down)),
        InputEvent::Btn(e) => button(e.data.button).map(|button| Event::Button(button, e.data.down)),
        InputEvent::Rel(e) => Some(Event::Relative(axis(e.data.axis), clamp(e.data.value))),
        InputEvent::Abs(e) => Some(Event::Absolute(axis(e.data.axis), clamp(e.data.value))),
        InputEvent::Mtt(_) => None,
    };
    let absolute = vm.board.input.mice().iter().any(|m| m.absolute);
    let handled = match event.tag() {
        InputEventKind::Mtt => false,
        InputEventKind::Abs => absolute,
        _ => true,
    };
    if !handled {
        bail!("Input handler not found for event type {}", event.tag().as_str());
    }
    Ok(made)
}

fn button(button: InputButton) -> Option<MouseButton> {
    Some(match button {
        InputButton::Left => MouseButton::Left,
        InputButton::Middle => MouseButton::Middle,
        InputButton::Right => MouseButton::Right,
        InputButton::WheelUp => MouseButton::WheelUp,
        InputButton::WheelDown => MouseButton::WheelDown,
        InputButton::Side => MouseButton::Side,
        InputButton::Extra => MouseButton::Extra,
        InputButton::WheelLeft => MouseButton::WheelLeft,
        InputButton::WheelRight => MouseButton::WheelRight,
        InputButton::Touch => return None,
    })
}

/// The keys of HMP's `sendkey`: names or `0x` numbers, joined by dashes.
///
/// # Errors
/// A key that is not known.
pub fn parse_keys(text: &str) -> Result<Vec<KeyValue>> {
    // A dash may be a name of its own at the end ("shift--" is not one).
    let mut keys = vec![];
    for name in text.split('-') {
        let name = if name == "<" { "less" } else { name };
        let number = name.strip_prefix("0x").and_then(|hex| i64::from_str_radix(hex, 16).ok());
        keys.push(match (number, QKeyCode::from_name(name)) {
            (Some(data), _) => KeyValue::Number(IntWrapper { data }),
            (None, Some(data)) => KeyValue::Qcode(QKeyCodeWrapper { data }),
            (None, None) => bail!("invalid parameter: {name}"),
        });
    }
    Ok(keys)
}
