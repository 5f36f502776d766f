//! A PS/2 keyboard (IBM Personal System/2 Hardware Interface Technical Reference, "Keyboards").

use super::{
    keymap,
    queue::{NO_COMMAND, Queue},
    vmstate::{KeyboardState, LedState, ReplyQueueState},
};
use crate::core::Key;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
/// Identification of a keyboard with translation (MF2), and what it is without.
const ID: [u8; 3] = [ACK, 0xab, 0x83];
const TRANSLATED_ID: u8 = 0x41;

const SET_LEDS: u8 = 0xed;
const SCAN_CODE_SET: u8 = 0xf0;
const SET_RATE: u8 = 0xf3;
const SET_MAKE_BREAK: u8 = 0xfc;

/// The numbers of scan code sets after the controller's translation.
const TRANSLATED_SET: [u8; 4] = [0xff, 0x43, 0x41, 0x3f];

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Keyboard {
    queue: Queue,
    command: i32,
    enabled: bool,
    translated: bool,
    set: u8,
    leds: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self { queue: Queue::default(), command: NO_COMMAND, enabled: true, translated: false, set: 2, leds: 0 }
    }
}

impl Keyboard {
    /// As after power on. The controller translates until it is told otherwise.
    pub(super) fn power_on(&mut self) {
        *self = Self { translated: false, ..Self::default() };
    }

    pub(super) fn has_data(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn read(&mut self) -> u8 {
        self.queue.pop()
    }

    pub(super) fn set_translated(&mut self, translated: bool) {
        self.translated = translated;
    }

    /// A key went down or up.
    pub(super) fn key(&mut self, key: Key, down: bool) {
        if self.enabled {
            let codes = keymap::scan_codes(key, down, if self.translated { 1 } else { self.set });
            self.queue.push(&codes);
        }
    }

    pub(super) fn write(&mut self, value: u8) {
        match u8::try_from(self.command) {
            Ok(command) => {
                self.command = NO_COMMAND;
                self.parameter(command, value);
            }
            Err(_) => self.start(value),
        }
    }

    fn start(&mut self, command: u8) {
        match command {
            0x00 | 0xfa => self.queue.reply(&[ACK]),
            0xee => self.queue.reply(&[0xee]),
            0xf2 if self.translated => self.queue.reply(&[ACK, ID[1], TRANSLATED_ID]),
            0xf2 => self.queue.reply(&ID),
            SET_LEDS | SCAN_CODE_SET | SET_RATE | SET_MAKE_BREAK => {
                self.command = command.into();
                self.queue.reply(&[ACK]);
            }
            0xf4 => {
                self.enabled = true;
                self.queue.reply(&[ACK]);
            }
            0xf5 | 0xf6 => {
                self.set_defaults();
                self.enabled = command == 0xf6;
                self.queue.reply(&[ACK]);
            }
            0xff => {
                self.set_defaults();
                self.queue.reply(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.queue.reply(&[RESEND]),
        }
    }

    fn parameter(&mut self, command: u8, value: u8) {
        match (command, value) {
            (SCAN_CODE_SET, 0) => {
                let set = if self.translated { TRANSLATED_SET[usize::from(self.set & 3)] } else { self.set };
                self.queue.reply(&[ACK, set]);
            }
            (SCAN_CODE_SET, 1 | 2) => {
                self.set = value;
                self.queue.reply(&[ACK]);
            }
            // Set 3 was an option of terminals' keyboards.
            (SCAN_CODE_SET, _) => self.queue.reply(&[RESEND]),
            (SET_LEDS, leds) => {
                self.leds = leds & 7;
                self.queue.reply(&[ACK]);
            }
            _ => self.queue.reply(&[ACK]),
        }
    }

    fn set_defaults(&mut self) {
        *self = Self { translated: self.translated, ..Self::default() };
    }

    pub(super) fn save(&self) -> KeyboardState {
        let (parent_obj, replies) = self.queue.save(self.command);
        KeyboardState {
            parent_obj,
            scan_enabled: self.enabled.into(),
            translate: self.translated.into(),
            scancode_set: self.set.into(),
            need_high_bit: None,
            led_state: (self.leds != 0).then(|| LedState { ledstate: self.leds.into() }),
            replies: replies.map(|cwptr| ReplyQueueState { cwptr }),
        }
    }

    pub(super) fn load(&mut self, wire: &KeyboardState) {
        *self = Self {
            queue: Queue::load(&wire.parent_obj, wire.replies.as_ref().map(|r| r.cwptr)),
            command: wire.parent_obj.write_cmd,
            enabled: wire.scan_enabled != 0,
            translated: wire.translate != 0,
            set: wire.scancode_set as u8,
            leds: wire.led_state.as_ref().map_or(0, |l| l.ledstate as u8),
        };
    }
}
