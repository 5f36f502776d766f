//! Devices for human input: tablet, mouse, keyboard (HID 1.11).

mod descriptors;
mod keyboard;
mod pointer;
mod types;
mod vmstate;

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, Ordering},
};

use lockstep_event::{Clock, Clocks, Timer};
use lockstep_util::Result;
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use types::{USB_KBD, USB_MOUSE, USB_TABLET};
pub use vmstate::{HidKeyboardState, HidPointerState, UsbKeyboardState, UsbPointerState};

use super::{
    bus::{Port, Refusal, Token, UsbDevice},
    control::{ControlPipe, Function, Request},
};
use crate::core::{Board, Device, InputDevice, InputEvent, InputHub, InputKind, ResetKind};
use keyboard::Keyboard;
use pointer::Pointer;

/// Which device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Positions.
    Tablet,
    /// Movement.
    Mouse,
    /// Keys.
    Keyboard,
}

/// What the device is for.
enum Input {
    Pointer(Pointer),
    Keyboard(Keyboard),
}

struct Hid {
    kind: Kind,
    serial: String,
    microsoft: bool,
    version: u16,
    input: Input,
    /// Report protocol (1) or boot protocol (0).
    protocol: u8,
    /// Time after which a report is repeated, in units of 4 ms; 0 for never.
    idle: u8,
    /// That time is over.
    repeat: bool,
    /// The repeating has to be timed anew.
    rearm: bool,
}

impl Hid {
    fn clear(&mut self) {
        self.input = match self.kind {
            Kind::Keyboard => Input::Keyboard(Keyboard::default()),
            kind => Input::Pointer(Pointer::new(kind == Kind::Tablet)),
        };
        self.protocol = 1;
        self.idle = 0;
        self.repeat = false;
        self.rearm = true;
    }

    fn has_news(&self) -> bool {
        let waiting = match &self.input {
            Input::Pointer(p) => p.count,
            Input::Keyboard(k) => k.count,
        };
        waiting > 0 || self.repeat
    }

    fn report(&mut self) -> Vec<u8> {
        self.repeat = false;
        match &mut self.input {
            Input::Pointer(p) => p.report(),
            Input::Keyboard(k) => k.report(),
        }
    }
}

impl Function for Hid {
    fn descriptor(&self, kind: u8, index: u8) -> Option<Vec<u8>> {
        descriptors::descriptor(self.kind, kind, index, &self.serial, self.microsoft, self.version)
    }

    fn request(&mut self, request: &Request, data: &[u8]) -> Option<Vec<u8>> {
        const REPORT: u16 = 0x22;
        match request.code {
            // GET_DESCRIPTOR of the interface
            0x8106 if request.value >> 8 == REPORT => Some(descriptors::report(self.kind).to_vec()),
            // GET_REPORT, SET_REPORT
            0xa101 => Some(self.report()),
            0x2109 => match &mut self.input {
                Input::Keyboard(k) => {
                    k.lamps = *data.first()?;
                    Some(vec![])
                }
                Input::Pointer(_) => None,
            },
            // GET_IDLE, SET_IDLE
            0xa102 => Some(vec![self.idle]),
            0x210a => {
                self.idle = (request.value >> 8) as u8;
                self.rearm = true;
                Some(vec![])
            }
            // GET_PROTOCOL, SET_PROTOCOL
            0xa103 if self.kind != Kind::Tablet => Some(vec![self.protocol]),
            0x210b if self.kind != Kind::Tablet => {
                self.protocol = request.value as u8;
                Some(vec![])
            }
            code if self.microsoft => descriptors::microsoft(code, request.index),
            _ => None,
        }
    }
}

struct State {
    pipe: ControlPipe,
    hid: Hid,
}

/// A device.
pub struct HidDevice {
    kind: Kind,
    port: Port,
    clocks: Clocks,
    state: Mutex<State>,
    idle_timer: Timer,
    inputs: InputHub,
    input: OnceLock<u32>,
    /// The host asks for reports, so that events come here first.
    in_use: AtomicBool,
    section: OnceLock<u32>,
    board: Board,
}

/// The only endpoint beside 0.
const REPORTS: u8 = 1;

impl HidDevice {
    /// A device for a port. It takes input events from now on.
    pub(super) fn new(
        board: &Board,
        kind: Kind,
        port: Port,
        serial: String,
        microsoft: bool,
        version: u16,
    ) -> Arc<Self> {
        let mut hid = Hid {
            kind,
            serial,
            microsoft,
            version,
            input: Input::Keyboard(Keyboard::default()),
            protocol: 1,
            idle: 0,
            repeat: false,
            rearm: false,
        };
        hid.clear();
        let device = Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let expired = move || {
                if let Some(device) = me.upgrade() {
                    device.state.lock().hid.repeat = true;
                    device.wake();
                }
            };
            Self {
                kind,
                port,
                clocks: board.clocks.clone(),
                state: Mutex::new(State { pipe: ControlPipe::default(), hid }),
                idle_timer: board.clocks.timer(Clock::Virtual, expired),
                inputs: board.input.clone(),
                input: OnceLock::new(),
                in_use: AtomicBool::new(false),
                section: OnceLock::new(),
                board: board.clone(),
            }
        });
        let index = board.input.register(device.clone());
        let _ = device.input.set(index);
        if kind == Kind::Keyboard {
            board.input.activate(index);
        }
        device
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state);
        if std::mem::take(&mut state.hid.rearm) {
            self.time_repeat(&state);
        }
        result
    }

    fn time_repeat(&self, state: &State) {
        const UNIT_NS: i64 = 4_000_000;
        match state.hid.idle {
            0 => self.idle_timer.cancel(),
            n => self.idle_timer.arm(self.clocks.now_ns(Clock::Virtual) + i64::from(n) * UNIT_NS),
        }
    }

    fn wake(&self) {
        if self.state.lock().pipe.remote_wakeup {
            self.port.wake();
        }
    }

    /// The host began to ask for reports.
    fn begin_use(&self) {
        if self.kind != Kind::Keyboard
            && !self.in_use.swap(true, Ordering::SeqCst)
            && let Some(input) = self.input.get()
        {
            self.inputs.activate(*input);
        }
    }

    /// The lamps that the host set: number lock, capitals lock, scroll lock from bit 0 on.
    pub fn lamps(&self) -> u8 {
        match &self.state.lock().hid.input {
            Input::Keyboard(k) => k.lamps,
            Input::Pointer(_) => 0,
        }
    }
}

impl UsbDevice for HidDevice {
    fn address(&self) -> u8 {
        self.state.lock().pipe.address
    }

    fn put(&self, token: Token, endpoint: u8, data: &[u8]) -> std::result::Result<(), Refusal> {
        match endpoint {
            0 => self.with(|s| s.pipe.put(token, data, &mut s.hid)),
            _ => Err(Refusal::Stall),
        }
    }

    fn get(&self, endpoint: u8, most: usize) -> std::result::Result<Vec<u8>, Refusal> {
        match endpoint {
            0 => self.with(|s| s.pipe.get(most, &mut s.hid)),
            REPORTS => {
                self.begin_use();
                self.with(|s| {
                    if !s.hid.has_news() {
                        return Err(Refusal::Nak);
                    }
                    s.hid.rearm = true;
                    let mut report = s.hid.report();
                    report.truncate(most);
                    Ok(report)
                })
            }
            _ => Err(Refusal::Stall),
        }
    }

    fn bus_reset(&self) {
        self.with(|s| {
            s.pipe.reset();
            s.hid.clear();
        });
    }

    fn product(&self) -> &str {
        descriptors::product(self.kind)
    }
}

impl InputDevice for HidDevice {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Tablet => "QEMU HID Tablet",
            Kind::Mouse => "QEMU HID Mouse",
            Kind::Keyboard => "QEMU HID Keyboard",
        }
    }

    fn kind(&self) -> InputKind {
        match self.kind {
            Kind::Tablet => InputKind::AbsolutePointer,
            Kind::Mouse => InputKind::RelativePointer,
            Kind::Keyboard => InputKind::Keyboard,
        }
    }

    fn event(&self, event: &InputEvent) {
        let news = match (&mut self.state.lock().hid.input, event) {
            (Input::Pointer(p), _) => {
                p.event(event);
                false
            }
            (Input::Keyboard(k), InputEvent::Key(key, down)) => {
                const SET: u8 = 1;
                k.push(&crate::input::i8042::scan_codes(*key, *down, SET))
            }
            _ => false,
        };
        if news {
            self.wake();
        }
    }

    fn sync(&self) {
        let news = match &mut self.state.lock().hid.input {
            Input::Pointer(p) => p.sync(),
            Input::Keyboard(_) => false,
        };
        if news {
            self.wake();
        }
    }
}

impl Device for HidDevice {
    fn reset(&self, _: ResetKind) {
        // The controller resets its ports.
    }

    fn qtree_lines(&self) -> Vec<String> {
        let (address, port) = (self.address(), self.port.number + 1);
        vec![format!("addr 0.{address}, port {port}, speed 12, name {}, attached", self.product())]
    }

    fn unplug(&self) -> Result<()> {
        self.port.unplug();
        self.idle_timer.cancel();
        self.input.get().inspect(|n| self.inputs.unregister(**n));
        self.section.get().inspect(|id| self.board.states.unregister(**id));
        Ok(())
    }
}

/// A mouse's or tablet's part of the stream.
struct PointerSection(Arc<HidDevice>);

impl Snapshot for PointerSection {
    type Wire = UsbPointerState;

    fn snapshot(&self) -> UsbPointerState {
        let state = self.0.state.lock();
        let none = Pointer::new(false);
        let pointer = match &state.hid.input {
            Input::Pointer(p) => p,
            Input::Keyboard(_) => &none,
        };
        UsbPointerState {
            dev: state.pipe.save(),
            hid: HidPointerState::save(pointer, state.hid.protocol, state.hid.idle),
        }
    }

    fn validate(&self, wire: &UsbPointerState) -> std::result::Result<(), LoadError> {
        wire.dev.check()?;
        wire.hid.check()
    }

    fn restore(&self, wire: UsbPointerState) {
        self.0.with(|s| {
            s.pipe.load(&wire.dev, &mut s.hid);
            if let Input::Pointer(p) = &mut s.hid.input {
                wire.hid.load(p);
            }
            s.hid.protocol = wire.hid.protocol as u8;
            s.hid.idle = wire.hid.idle;
            s.hid.repeat = false;
            s.hid.rearm = true;
        });
    }
}

/// A keyboard's part of the stream.
struct KeyboardSection(Arc<HidDevice>);

impl Snapshot for KeyboardSection {
    type Wire = UsbKeyboardState;

    fn snapshot(&self) -> UsbKeyboardState {
        let state = self.0.state.lock();
        let none = Keyboard::default();
        let keyboard = match &state.hid.input {
            Input::Keyboard(k) => k,
            Input::Pointer(_) => &none,
        };
        UsbKeyboardState {
            dev: state.pipe.save(),
            hid: HidKeyboardState::save(keyboard, state.hid.protocol, state.hid.idle),
        }
    }

    fn validate(&self, wire: &UsbKeyboardState) -> std::result::Result<(), LoadError> {
        wire.dev.check()?;
        wire.hid.check()
    }

    fn restore(&self, wire: UsbKeyboardState) {
        self.0.with(|s| {
            s.pipe.load(&wire.dev, &mut s.hid);
            if let Input::Keyboard(k) = &mut s.hid.input {
                wire.hid.load(k);
            }
            s.hid.protocol = wire.hid.protocol as u8;
            s.hid.idle = wire.hid.idle;
            s.hid.repeat = false;
            s.hid.rearm = true;
        });
    }
}
