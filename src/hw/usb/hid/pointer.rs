//! Events of a mouse or tablet, kept until the host asks.

use lockstep_vmstate::VmState;

use crate::core::{Axis, InputEvent, MouseButton};

/// Events that wait; one place is for the event that is being put together.
const QUEUE: u32 = 16;

/// One event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, VmState)]
#[vmstate(name = "HIDPointerEventQueue", version = 1)]
#[allow(missing_docs)]
pub struct PointerEvent {
    pub xdx: i32,
    pub ydy: i32,
    pub dz: i32,
    pub buttons_state: i32,
}

/// The queue.
#[derive(Clone, Debug)]
pub struct Pointer {
    pub absolute: bool,
    pub queue: [PointerEvent; QUEUE as usize],
    pub head: u32,
    pub count: u32,
}

impl Pointer {
    pub fn new(absolute: bool) -> Self {
        Self { absolute, queue: [PointerEvent::default(); QUEUE as usize], head: 0, count: 0 }
    }

    fn at(&mut self, n: u32) -> &mut PointerEvent {
        &mut self.queue[(n % QUEUE) as usize]
    }

    /// An event of the user's.
    pub fn event(&mut self, event: &InputEvent) {
        let absolute = self.absolute;
        let now = self.head + self.count;
        let current = self.at(now);
        match *event {
            InputEvent::Relative(axis, by) if !absolute => match axis {
                Axis::X => current.xdx = current.xdx.saturating_add(by),
                Axis::Y => current.ydy = current.ydy.saturating_add(by),
            },
            InputEvent::Absolute(axis, to) if absolute => match axis {
                Axis::X => current.xdx = to.clamp(0, 0x7fff),
                Axis::Y => current.ydy = to.clamp(0, 0x7fff),
            },
            InputEvent::Button(button, down) => {
                let bit = match button {
                    MouseButton::Left => 0x01,
                    MouseButton::Right => 0x02,
                    MouseButton::Middle => 0x04,
                    MouseButton::Side => 0x08,
                    MouseButton::Extra => 0x10,
                    MouseButton::WheelUp if down => return current.dz = current.dz.saturating_sub(1),
                    MouseButton::WheelDown if down => return current.dz = current.dz.saturating_add(1),
                    _ => return,
                };
                current.buttons_state = current.buttons_state & !bit | if down { bit } else { 0 };
            }
            _ => {}
        }
    }

    /// The moment's events are complete. True when the host has something new to ask for.
    pub fn sync(&mut self) -> bool {
        if self.count == QUEUE - 1 {
            // Full: movement is lost, the buttons are not.
            return false;
        }
        let absolute = self.absolute;
        let now = self.head + self.count;
        let current = *self.at(now);
        let previous = *self.at(now + QUEUE - 1);
        // Movement that the host has not seen is added up while the buttons stay.
        if self.count > 0 && previous.buttons_state == current.buttons_state {
            let previous = self.at(now + QUEUE - 1);
            if absolute {
                (previous.xdx, previous.ydy) = (current.xdx, current.ydy);
            } else {
                previous.xdx = previous.xdx.saturating_add(current.xdx);
                previous.ydy = previous.ydy.saturating_add(current.ydy);
            }
            previous.dz = previous.dz.saturating_add(current.dz);
            let current = self.at(now);
            if !absolute {
                (current.xdx, current.ydy) = (0, 0);
            }
            current.dz = 0;
            return false;
        }
        let position = if absolute { (current.xdx, current.ydy) } else { (0, 0) };
        *self.at(now + 1) =
            PointerEvent { xdx: position.0, ydy: position.1, dz: 0, buttons_state: current.buttons_state };
        self.count += 1;
        true
    }

    /// The next report; the last one again when nothing is new.
    pub fn report(&mut self) -> Vec<u8> {
        let absolute = self.absolute;
        let n = if self.count > 0 { self.head } else { self.head + QUEUE - 1 };
        let event = self.at(n);
        let small = |v: i32| v.clamp(-127, 127);
        let dz = small(event.dz);
        event.dz -= dz;
        let buttons = event.buttons_state as u8;
        // The wheel turns the other way on the bus.
        let wheel = (-dz) as u8;
        let report = if absolute {
            let [x, y] = [event.xdx, event.ydy].map(|v| (v as u16).to_le_bytes());
            vec![buttons, x[0], x[1], y[0], y[1], wheel]
        } else {
            let (dx, dy) = (small(event.xdx), small(event.ydy));
            event.xdx -= dx;
            event.ydy -= dy;
            vec![buttons, dx as u8, dy as u8, wheel]
        };
        let done = event.dz == 0 && (absolute || event.xdx == 0 && event.ydy == 0);
        if self.count > 0 && done {
            self.head = (self.head + 1) % QUEUE;
            self.count -= 1;
        }
        report
    }
}
