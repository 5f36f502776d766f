//! A PS/2 mouse with the wheel and five-button extensions of Microsoft's IntelliMouse.

use super::{
    queue::{NO_COMMAND, Queue},
    vmstate::MouseState,
};
use crate::core::{Axis, InputEvent, MouseButton};

const ACK: u8 = 0xfa;
const SELF_TEST_PASSED: u8 = 0xaa;

const SET_RESOLUTION: u8 = 0xe8;
const SET_RATE: u8 = 0xf3;
const RESET_WRAP: u8 = 0xec;
const RESET: u8 = 0xff;

const STATUS_REMOTE: u8 = 0x40;
const STATUS_ENABLED: u8 = 0x20;
const STATUS_SCALE_2: u8 = 0x10;

const TYPE_WHEEL: u8 = 3;
const TYPE_FIVE_BUTTONS: u8 = 4;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mouse {
    queue: Queue,
    command: i32,
    status: u8,
    resolution: u8,
    rate: u8,
    wrap: bool,
    kind: u8,
    /// How far the knock (rates 200, 100, 80 or 200, 200, 80) has come.
    knock: u8,
    moved: [i32; 3],
    buttons: u8,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            queue: Queue::default(),
            command: NO_COMMAND,
            status: 0,
            resolution: 2,
            rate: 100,
            wrap: false,
            kind: 0,
            knock: 0,
            moved: [0; 3],
            buttons: 0,
        }
    }
}

impl Mouse {
    pub(super) fn power_on(&mut self) {
        *self = Self::default();
    }

    pub(super) fn has_data(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn read(&mut self) -> u8 {
        self.queue.pop()
    }

    /// Notes movement and buttons; [`sync`](Self::sync) sends them.
    pub(super) fn event(&mut self, event: &InputEvent) {
        if self.status & STATUS_ENABLED == 0 {
            return;
        }
        match *event {
            InputEvent::Relative(Axis::X, by) => self.moved[0] = self.moved[0].saturating_add(by),
            // Up is positive.
            InputEvent::Relative(Axis::Y, by) => self.moved[1] = self.moved[1].saturating_sub(by),
            InputEvent::Button(button, down) => self.button(button, down),
            InputEvent::Key(..) | InputEvent::Absolute(..) => {}
        }
    }

    fn button(&mut self, button: MouseButton, down: bool) {
        let bit = match button {
            MouseButton::Left => 0x01,
            MouseButton::Right => 0x02,
            MouseButton::Middle => 0x04,
            MouseButton::Side => 0x08,
            MouseButton::Extra => 0x10,
            MouseButton::WheelUp | MouseButton::WheelDown => {
                if down {
                    let step = if button == MouseButton::WheelUp { -1 } else { 1 };
                    self.moved[2] = self.moved[2].saturating_add(step);
                }
                return;
            }
            MouseButton::WheelLeft | MouseButton::WheelRight => return,
        };
        if down {
            self.buttons |= bit;
        } else {
            self.buttons &= !bit;
        }
    }

    /// Sends what has happened, in as many packets as it takes and fit.
    pub(super) fn sync(&mut self) {
        if self.status & STATUS_ENABLED == 0 || self.status & STATUS_REMOTE != 0 {
            return;
        }
        while self.send() && self.moved != [0; 3] {}
    }

    fn packet(&mut self) -> Vec<u8> {
        let step = |moved: &mut i32, limit: i32| {
            let by = (*moved).clamp(-limit, limit);
            *moved -= by;
            by
        };
        let (x, y) = (step(&mut self.moved[0], 127), step(&mut self.moved[1], 127));
        let first = 0x08 | u8::from(x < 0) << 4 | u8::from(y < 0) << 5 | self.buttons & 7;
        let mut packet = vec![first, x as u8, y as u8];
        match self.kind {
            TYPE_WHEEL => packet.push(step(&mut self.moved[2], 127) as u8),
            TYPE_FIVE_BUTTONS => {
                packet.push(step(&mut self.moved[2], 7) as u8 & 0x0f | (self.buttons & 0x18) << 1);
            }
            _ => self.moved[2] = 0,
        }
        packet
    }

    fn send(&mut self) -> bool {
        let before = self.moved;
        let packet = self.packet();
        let sent = self.queue.push(&packet);
        if !sent {
            self.moved = before;
        }
        sent
    }

    pub(super) fn write(&mut self, value: u8) {
        match u8::try_from(self.command) {
            Ok(command) => {
                self.command = NO_COMMAND;
                match command {
                    SET_RATE => self.set_rate(value),
                    _ => self.resolution = value,
                }
                self.queue.reply(&[ACK]);
            }
            Err(_) if self.wrap && value == RESET_WRAP => {
                self.wrap = false;
                self.queue.reply(&[ACK]);
            }
            Err(_) if self.wrap && value != RESET => self.queue.reply(&[value]),
            Err(_) => self.start(value),
        }
    }

    fn start(&mut self, command: u8) {
        match command {
            0xe6 => self.status &= !STATUS_SCALE_2,
            0xe7 => self.status |= STATUS_SCALE_2,
            0xea => self.status &= !STATUS_REMOTE,
            0xee => self.wrap = true,
            0xf0 => self.status |= STATUS_REMOTE,
            0xf4 => self.status |= STATUS_ENABLED,
            0xf5 => self.status &= !STATUS_ENABLED,
            0xf6 => self.set_defaults(),
            SET_RESOLUTION | SET_RATE => self.command = command.into(),
            0xf2 => return self.queue.reply(&[ACK, self.kind]),
            0xe9 => {
                let buttons = self.buttons & 1 | (self.buttons & 2) << 1 | (self.buttons & 4) >> 1;
                return self.queue.reply(&[ACK, self.status | buttons, self.resolution, self.rate]);
            }
            0xeb => {
                let mut reply = vec![ACK];
                reply.extend(self.packet());
                return self.queue.reply(&reply);
            }
            RESET => {
                self.power_on();
                return self.queue.reply(&[ACK, SELF_TEST_PASSED, 0]);
            }
            _ => {}
        }
        self.queue.reply(&[ACK]);
    }

    fn set_defaults(&mut self) {
        (self.rate, self.resolution, self.status) = (100, 2, 0);
    }

    fn set_rate(&mut self, rate: u8) {
        self.rate = rate;
        self.knock = match (self.knock, rate) {
            (0, 200) => 1,
            (1, 100) => 2,
            (1, 200) => 3,
            (2, 80) => {
                self.kind = TYPE_WHEEL;
                0
            }
            (3, 80) => {
                self.kind = TYPE_FIVE_BUTTONS;
                0
            }
            _ => 0,
        };
    }

    pub(super) fn save(&self) -> MouseState {
        // QEMU's stream does not tell the mouse's replies from its movements.
        let (parent_obj, _) = self.queue.save(self.command);
        MouseState {
            parent_obj,
            mouse_status: self.status,
            mouse_resolution: self.resolution,
            mouse_sample_rate: self.rate,
            mouse_wrap: self.wrap.into(),
            mouse_type: self.kind,
            mouse_detect_state: self.knock,
            mouse_dx: self.moved[0],
            mouse_dy: self.moved[1],
            mouse_dz: self.moved[2],
            mouse_buttons: self.buttons,
        }
    }

    pub(super) fn load(&mut self, wire: &MouseState) {
        *self = Self {
            queue: Queue::load(&wire.parent_obj, None),
            command: wire.parent_obj.write_cmd,
            status: wire.mouse_status,
            resolution: wire.mouse_resolution,
            rate: wire.mouse_sample_rate,
            wrap: wire.mouse_wrap != 0,
            kind: wire.mouse_type,
            knock: wire.mouse_detect_state,
            moved: [wire.mouse_dx, wire.mouse_dy, wire.mouse_dz],
            buttons: wire.mouse_buttons,
        };
    }
}
