//! Keyboard and pointer events on their way from a display or monitor to devices.

use std::sync::Arc;

use parking_lot::Mutex;

/// A key, by its Linux input event code (`KEY_*` of `linux/input-event-codes.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub u16);

/// A button of a pointing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MouseButton {
    Left,
    Middle,
    Right,
    WheelUp,
    WheelDown,
    Side,
    Extra,
    WheelLeft,
    WheelRight,
}

/// A direction of movement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Axis {
    X,
    Y,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputEvent {
    /// A key went down or up.
    Key(Key, bool),
    /// A button went down or up.
    Button(MouseButton, bool),
    /// Movement, in pixels.
    Relative(Axis, i32),
    /// Position, 0 to 32767.
    Absolute(Axis, i32),
}

/// Which events a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Keys.
    Keyboard,
    /// Buttons and movement.
    RelativePointer,
    /// Buttons and positions.
    AbsolutePointer,
}

impl InputKind {
    fn takes(self, event: &InputEvent) -> bool {
        match event {
            InputEvent::Key(..) => self == Self::Keyboard,
            InputEvent::Button(..) => self != Self::Keyboard,
            InputEvent::Relative(..) => self == Self::RelativePointer,
            InputEvent::Absolute(..) => self == Self::AbsolutePointer,
        }
    }
}

/// A device that takes input. Called on the main context.
pub trait InputDevice: Send + Sync {
    /// The name in `info mice` and `query-mice`.
    fn name(&self) -> &str;
    /// Which events it takes.
    fn kind(&self) -> InputKind;
    /// An event.
    fn event(&self, event: &InputEvent);
    /// All events of one moment have been given.
    fn sync(&self) {}
}

/// A pointing device as `query-mice` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MouseInfo {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Whether it is the one that gets events.
    pub current: bool,
    /// Whether it takes positions.
    pub absolute: bool,
}

struct Registered {
    index: u32,
    device: Arc<dyn InputDevice>,
    active: bool,
}

#[derive(Default)]
struct Hub {
    /// The number given last; numbers begin at 1.
    last: u32,
    /// The first that takes an event gets it.
    devices: Vec<Registered>,
}

/// Gives each event to the first device that takes it. Clones share the list.
#[derive(Clone, Default)]
pub struct InputHub {
    hub: Arc<Mutex<Hub>>,
}

impl InputHub {
    /// Adds a device behind those active. Returns its number.
    pub fn register(&self, device: Arc<dyn InputDevice>) -> u32 {
        let mut hub = self.hub.lock();
        hub.last += 1;
        let index = hub.last;
        hub.devices.push(Registered { index, device, active: false });
        index
    }

    /// Takes a device away.
    pub fn unregister(&self, index: u32) {
        self.hub.lock().devices.retain(|d| d.index != index);
    }

    /// Puts a device before all others (`mouse_set`, or the guest began to use it). False if there is none.
    pub fn activate(&self, index: u32) -> bool {
        let mut hub = self.hub.lock();
        let Some(at) = hub.devices.iter().position(|d| d.index == index) else { return false };
        let mut device = hub.devices.remove(at);
        device.active = true;
        hub.devices.insert(0, device);
        true
    }

    /// Puts a device behind all others (the guest no longer uses it).
    pub fn deactivate(&self, index: u32) {
        let mut hub = self.hub.lock();
        if let Some(at) = hub.devices.iter().position(|d| d.index == index) {
            let mut device = hub.devices.remove(at);
            device.active = false;
            hub.devices.push(device);
        }
    }

    /// Gives an event to the device it is for. False when there is none.
    pub fn send(&self, event: &InputEvent) -> bool {
        let device = self.hub.lock().devices.iter().find(|d| d.device.kind().takes(event)).map(|d| d.device.clone());
        device.inspect(|d| d.event(event)).is_some()
    }

    /// Ends a group of events.
    pub fn sync(&self) {
        let devices: Vec<_> = self.hub.lock().devices.iter().map(|d| d.device.clone()).collect();
        devices.iter().for_each(|d| d.sync());
    }

    /// Whether the pointer in use takes positions.
    pub fn pointer_is_absolute(&self) -> bool {
        self.mice().first().is_some_and(|m| m.absolute)
    }

    /// The pointing devices, the one in use first: users are shown it last.
    pub fn mice(&self) -> Vec<MouseInfo> {
        let hub = self.hub.lock();
        let pointers = hub.devices.iter().filter(|d| d.device.kind() != InputKind::Keyboard);
        pointers
            .enumerate()
            .map(|(at, d)| MouseInfo {
                name: d.device.name().to_owned(),
                index: d.index,
                current: at == 0,
                absolute: d.device.kind() == InputKind::AbsolutePointer,
            })
            .collect()
    }
}
