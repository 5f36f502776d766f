//! The 8042 keyboard controller with a PS/2 keyboard and mouse.

mod keyboard;
mod keymap;
mod mouse;
mod queue;
mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub(crate) use keymap::scan_codes;
pub use vmstate::{ControllerState, KeyboardState, MouseState};

use self::{keyboard::Keyboard, mouse::Mouse, regs::Controller};
use crate::core::{
    Axis, Board, InputDevice, InputEvent, InputKind, IrqLine, MachineRequest, RequestSink, ResetCause, byte_registers,
};

/// The controller's output pins.
pub struct Pins {
    /// Interrupt of the keyboard (ISA 1).
    pub keyboard: IrqLine,
    /// Interrupt of the mouse (ISA 12).
    pub mouse: IrqLine,
    /// The A20 gate.
    pub a20: IrqLine,
}

struct Parts {
    controller: Controller,
    keyboard: Keyboard,
    mouse: Mouse,
}

/// Controller, keyboard and mouse.
pub struct I8042 {
    parts: Mutex<Parts>,
    pins: Pins,
    requests: RequestSink,
}

impl I8042 {
    /// The controller at its usual ports; its devices take the board's input.
    pub fn new(board: &Board, pins: Pins) -> Arc<Self> {
        let parts = Parts { controller: Controller::default(), keyboard: Keyboard::default(), mouse: Mouse::default() };
        let device = Arc::new(Self { parts: Mutex::new(parts), pins, requests: board.requests.clone() });
        let data = byte_registers(
            "i8042-data",
            1,
            &device,
            |d: &Self, _| d.with(|p| p.controller.read_data(&mut p.keyboard, &mut p.mouse)),
            |d: &Self, _, value| d.with(|p| p.controller.write_data(value, &mut p.keyboard, &mut p.mouse)),
        );
        let command = byte_registers(
            "i8042-cmd",
            1,
            &device,
            |d: &Self, _| d.parts.lock().controller.status(),
            |d: &Self, _, value| d.with(|p| p.controller.command(value)),
        );
        board.ports.add(0x60, &data);
        board.ports.add(0x64, &command);
        board.input.register(Arc::new(KeyboardInput(device.clone())));
        board.input.register(Arc::new(MouseInput(device.clone())));
        device
    }

    fn with<T>(&self, f: impl FnOnce(&mut Parts) -> T) -> T {
        let mut parts = self.parts.lock();
        let result = f(&mut parts);
        let p = &mut *parts;
        p.controller.set_pending(p.keyboard.has_data(), p.mouse.has_data());
        let levels = p.controller.irq_levels();
        self.pins.keyboard.set(levels.0);
        self.pins.mouse.set(levels.1);
        let (a20, reset) = p.controller.take_outputs();
        if let Some(a20) = a20 {
            self.pins.a20.set(a20);
        }
        drop(parts);
        if reset {
            self.requests.request(MachineRequest::Reset(ResetCause::GuestReset));
        }
        result
    }

    /// Has the mouse interrupt as if it had moved a little, so that its driver looks at another device of the user's.
    pub(super) fn nudge_mouse(&self) {
        self.with(|p| {
            p.mouse.event(&InputEvent::Relative(Axis::X, 1));
            p.mouse.sync();
        });
    }

    /// Resets the controller and its devices.
    pub fn reset(&self) {
        self.with(|p| {
            p.keyboard.power_on();
            p.mouse.power_on();
            p.controller.reset();
        });
    }

    /// The sections, in order: `ps2kbd`, `ps2mouse`, `pckbd`.
    pub fn sections(self: &Arc<Self>) -> (Arc<KeyboardSection>, Arc<MouseSection>, Arc<ControllerSection>) {
        let d = || self.clone();
        (Arc::new(KeyboardSection(d())), Arc::new(MouseSection(d())), Arc::new(ControllerSection(d())))
    }
}

struct KeyboardInput(Arc<I8042>);

impl InputDevice for KeyboardInput {
    fn name(&self) -> &str {
        "QEMU PS/2 Keyboard"
    }

    fn kind(&self) -> InputKind {
        InputKind::Keyboard
    }

    fn event(&self, event: &InputEvent) {
        if let InputEvent::Key(key, down) = *event {
            self.0.with(|p| p.keyboard.key(key, down));
        }
    }
}

struct MouseInput(Arc<I8042>);

impl InputDevice for MouseInput {
    fn name(&self) -> &str {
        "QEMU PS/2 Mouse"
    }

    fn kind(&self) -> InputKind {
        InputKind::RelativePointer
    }

    fn event(&self, event: &InputEvent) {
        self.0.parts.lock().mouse.event(event);
    }

    fn sync(&self) {
        self.0.with(|p| p.mouse.sync());
    }
}

/// The section `ps2kbd`.
pub struct KeyboardSection(Arc<I8042>);

impl Snapshot for KeyboardSection {
    type Wire = KeyboardState;

    fn snapshot(&self) -> KeyboardState {
        self.0.parts.lock().keyboard.save()
    }

    fn validate(&self, wire: &KeyboardState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: KeyboardState) {
        self.0.parts.lock().keyboard.load(&wire);
    }
}

/// The section `ps2mouse`.
pub struct MouseSection(Arc<I8042>);

impl Snapshot for MouseSection {
    type Wire = MouseState;

    fn snapshot(&self) -> MouseState {
        self.0.parts.lock().mouse.save()
    }

    fn validate(&self, wire: &MouseState) -> Result<(), LoadError> {
        wire.validate()
    }

    fn restore(&self, wire: MouseState) {
        self.0.parts.lock().mouse.load(&wire);
    }
}

/// The section `pckbd`.
pub struct ControllerSection(Arc<I8042>);

impl Snapshot for ControllerSection {
    type Wire = ControllerState;

    fn snapshot(&self) -> ControllerState {
        self.0.parts.lock().controller.save()
    }

    fn restore(&self, wire: ControllerState) {
        self.0.parts.lock().controller.load(&wire);
    }
}
