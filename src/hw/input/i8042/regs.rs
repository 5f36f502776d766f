//! The controller's registers (IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device
//! Controller").

use lockstep_util::log::{Log, item};

use super::{
    keyboard::Keyboard,
    mouse::Mouse,
    vmstate::{ControllerPart, ControllerState, ExtendedState, OutputPortState},
};

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SELF_TEST: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_MOUSE: u8 = 0x20;

const MODE_KEYBOARD_IRQ: u8 = 0x01;
const MODE_MOUSE_IRQ: u8 = 0x02;
const MODE_KEYBOARD_OFF: u8 = 0x10;
const MODE_MOUSE_OFF: u8 = 0x20;
const MODE_TRANSLATE: u8 = 0x40;

const OUTPUT_RESET: u8 = 0x01;
const OUTPUT_A20: u8 = 0x02;
const OUTPUT_KEYBOARD_FULL: u8 = 0x10;
const OUTPUT_MOUSE_FULL: u8 = 0x20;
const OUTPUT_ONES: u8 = 0xcc;

/// Who has something for the output buffer.
const PENDING_KEYBOARD: u8 = 0x01;
const PENDING_MOUSE: u8 = 0x02;
const PENDING_REPLY: u8 = 0x04;
const PENDING_MOUSE_REPLY: u8 = 0x08;

const WRITE_MODE: u8 = 0x60;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const WRITE_OUTPUT_BUFFER: u8 = 0xd2;
const WRITE_MOUSE_BUFFER: u8 = 0xd3;
const WRITE_MOUSE: u8 = 0xd4;

/// Where the byte in the output buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    None = 0,
    Keyboard = 1,
    Mouse = 2,
    Controller = 4,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Controller {
    /// A command that waits for its parameter; 0 for none.
    command: u8,
    status: u8,
    mode: u8,
    outport: u8,
    pending: u8,
    source: Source,
    /// The byte that was read last.
    output: u8,
    /// A byte of the controller's own.
    reply: u8,
    a20_change: Option<bool>,
    reset_wanted: bool,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            command: 0,
            status: STATUS_COMMAND | STATUS_UNLOCKED,
            mode: MODE_KEYBOARD_IRQ | MODE_MOUSE_IRQ,
            outport: OUTPUT_RESET | OUTPUT_A20 | OUTPUT_ONES,
            pending: 0,
            source: Source::None,
            output: 0,
            reply: 0,
            a20_change: None,
            reset_wanted: false,
        }
    }
}

impl Controller {
    pub(super) fn reset(&mut self) {
        *self = Self { a20_change: Some(true), ..Self::default() };
    }

    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// Levels of the keyboard's and the mouse's interrupt.
    pub(super) fn irq_levels(&self) -> (bool, bool) {
        if self.status & STATUS_OUTPUT_FULL == 0 {
            return (false, false);
        }
        let mouse = self.status & STATUS_MOUSE != 0;
        let keyboard_on = self.mode & (MODE_KEYBOARD_IRQ | MODE_KEYBOARD_OFF) == MODE_KEYBOARD_IRQ;
        (!mouse && keyboard_on, mouse && self.mode & MODE_MOUSE_IRQ != 0)
    }

    /// What the A20 gate changes to, and whether a reset is asked for, since this was asked last.
    pub(super) fn take_outputs(&mut self) -> (Option<bool>, bool) {
        (self.a20_change.take(), std::mem::take(&mut self.reset_wanted))
    }

    /// Tells which devices have data, and fills the output buffer if it is free.
    pub(super) fn set_pending(&mut self, keyboard: bool, mouse: bool) {
        self.pending &= !(PENDING_KEYBOARD | PENDING_MOUSE);
        self.pending |= if keyboard { PENDING_KEYBOARD } else { 0 } | if mouse { PENDING_MOUSE } else { 0 };
        if self.status & STATUS_OUTPUT_FULL != 0 {
            return;
        }
        let mut ready = self.pending;
        if self.mode & MODE_KEYBOARD_OFF != 0 {
            ready &= !PENDING_KEYBOARD;
        }
        if self.mode & MODE_MOUSE_OFF != 0 {
            ready &= !PENDING_MOUSE;
        }
        let (source, mouse) = match ready {
            0 => return,
            r if r & PENDING_REPLY != 0 => (Source::Controller, false),
            r if r & PENDING_MOUSE_REPLY != 0 => (Source::Controller, true),
            r if r & PENDING_KEYBOARD != 0 => (Source::Keyboard, false),
            _ => (Source::Mouse, true),
        };
        self.source = source;
        self.status |= STATUS_OUTPUT_FULL;
        self.outport |= OUTPUT_KEYBOARD_FULL;
        if mouse {
            self.status |= STATUS_MOUSE;
            self.outport |= OUTPUT_MOUSE_FULL;
        }
    }

    pub(super) fn read_data(&mut self, keyboard: &mut Keyboard, mouse: &mut Mouse) -> u8 {
        if self.status & STATUS_OUTPUT_FULL != 0 {
            self.status &= !(STATUS_OUTPUT_FULL | STATUS_MOUSE);
            self.outport &= !(OUTPUT_KEYBOARD_FULL | OUTPUT_MOUSE_FULL);
            match self.source {
                Source::Keyboard => self.output = keyboard.read(),
                Source::Mouse => self.output = mouse.read(),
                Source::Controller => {
                    self.output = self.reply;
                    self.pending &= !(PENDING_REPLY | PENDING_MOUSE_REPLY);
                }
                Source::None => {}
            }
        }
        self.output
    }

    pub(super) fn write_data(&mut self, value: u8, keyboard: &mut Keyboard, mouse: &mut Mouse) {
        match std::mem::take(&mut self.command) {
            0 => {
                keyboard.write(value);
                self.mode &= !MODE_KEYBOARD_OFF;
            }
            WRITE_MODE => {
                self.mode = value;
                keyboard.set_translated(value & MODE_TRANSLATE != 0);
            }
            WRITE_OUTPUT_BUFFER => self.reply(value, PENDING_REPLY),
            WRITE_MOUSE_BUFFER => self.reply(value, PENDING_MOUSE_REPLY),
            WRITE_OUTPUT_PORT => {
                self.outport = value;
                self.a20_change = Some(value & OUTPUT_A20 != 0);
                self.reset_wanted |= value & OUTPUT_RESET == 0;
            }
            _ => {
                mouse.write(value);
                self.mode &= !MODE_MOUSE_OFF;
            }
        }
    }

    pub(super) fn command(&mut self, value: u8) {
        match value {
            0x20 => self.reply(self.mode, PENDING_REPLY),
            WRITE_MODE | WRITE_OUTPUT_PORT | WRITE_OUTPUT_BUFFER | WRITE_MOUSE_BUFFER | WRITE_MOUSE => {
                self.command = value;
            }
            0xa7 => self.mode |= MODE_MOUSE_OFF,
            0xa8 => self.mode &= !MODE_MOUSE_OFF,
            // Tests of the lines to mouse and keyboard: no error.
            0xa9 | 0xab => self.reply(0, PENDING_REPLY),
            0xaa => {
                self.status |= STATUS_SELF_TEST;
                self.reply(0x55, PENDING_REPLY);
            }
            0xad => self.mode |= MODE_KEYBOARD_OFF,
            0xae => self.mode &= !MODE_KEYBOARD_OFF,
            0xc0 => self.reply(0x80, PENDING_REPLY),
            0xd0 => self.reply(self.outport, PENDING_REPLY),
            0xdd | 0xdf => {
                let on = value == 0xdf;
                self.outport = if on { self.outport | OUTPUT_A20 } else { self.outport & !OUTPUT_A20 };
                self.a20_change = Some(on);
            }
            // Pulses outputs low; bit 0 is the CPU's reset.
            0xf0.. => self.reset_wanted |= value & 1 == 0,
            _ if Log::global().has(item::GUEST_ERRORS) => {
                Log::global().write(&format!("unsupported keyboard cmd={value:#04x}\n"));
            }
            _ => {}
        }
    }

    fn reply(&mut self, value: u8, pending: u8) {
        self.reply = value;
        self.pending = self.pending & !(PENDING_REPLY | PENDING_MOUSE_REPLY) | pending;
    }

    /// What the output port is when nobody has written it.
    fn usual_outport(status: u8) -> u8 {
        let full = if status & STATUS_OUTPUT_FULL != 0 { OUTPUT_KEYBOARD_FULL } else { 0 };
        let mouse = if status & STATUS_MOUSE != 0 { OUTPUT_MOUSE_FULL } else { 0 };
        OUTPUT_RESET | OUTPUT_A20 | OUTPUT_ONES | full | mouse
    }

    pub(super) fn save(&self) -> ControllerState {
        let usual = Self::usual_outport(self.status);
        ControllerState {
            kbd: ControllerPart {
                write_cmd: self.command,
                status: self.status,
                mode: self.mode,
                pending_tmp: self.pending,
                outport: (self.outport != usual).then_some(OutputPortState { outport: self.outport }),
                extended: Some(ExtendedState {
                    migration_flags: 0,
                    obsrc: self.source as u32,
                    obdata: self.output,
                    cbdata: self.reply,
                }),
            },
        }
    }

    pub(super) fn load(&mut self, wire: &ControllerState) {
        let kbd = &wire.kbd;
        let mut loaded = Self {
            command: kbd.write_cmd,
            status: kbd.status,
            mode: kbd.mode,
            outport: kbd.outport.as_ref().map_or(Self::usual_outport(kbd.status), |o| o.outport),
            pending: kbd.pending_tmp & 0x0f,
            ..Self::default()
        };
        if let Some(extended) = &kbd.extended {
            loaded.source = match extended.obsrc {
                1 => Source::Keyboard,
                2 => Source::Mouse,
                4 => Source::Controller,
                _ => Source::None,
            };
            (loaded.output, loaded.reply) = (extended.obdata, extended.cbdata);
        } else if kbd.status & STATUS_OUTPUT_FULL != 0 {
            // Older streams leave it to be guessed.
            loaded.source = if kbd.status & STATUS_MOUSE != 0 { Source::Mouse } else { Source::Keyboard };
        }
        *self = loaded;
    }
}
