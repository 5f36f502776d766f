//! The absolute mouse's words for the guest's driver.

use super::vmstate::VmMouseState;
use crate::core::{IoRegisters, MouseButton};

/// Words that are kept.
pub(super) const CAPACITY: usize = 1024;

const READ_ID: u32 = 0x4541_4552;
const DISABLE: u32 = 0x0000_00f5;
const RELATIVE: u32 = 0x4c45_5252;
const ABSOLUTE: u32 = 0x5342_4152;
const VERSION: u32 = 0x3442_554a;
/// Disabled, or in error.
const STATUS_OFF: u16 = 0xffff;

const LEFT: u32 = 0x20;
const RIGHT: u32 = 0x10;
const MIDDLE: u32 = 0x08;
/// The packet tells movement, not a position.
const MOVED: u32 = 0x0001_0000;

#[derive(Clone, Debug)]
pub(super) struct Queue {
    words: Vec<u32>,
    status: u16,
    absolute: bool,
    buttons: u32,
    wheel: i32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { words: vec![], status: STATUS_OFF, absolute: false, buttons: 0, wheel: 0 }
    }
}

impl Queue {
    pub(super) fn status(&self) -> u32 {
        u32::from(self.status) << 16 | self.words.len() as u32
    }

    /// What the mouse is used for: positions (true), movement (false), nothing.
    pub(super) fn wanted(&self) -> Option<bool> {
        (self.status != STATUS_OFF).then_some(self.absolute)
    }

    /// Carries out a command. Returns what the mouse is used for then.
    pub(super) fn command(&mut self, command: u32) -> Option<bool> {
        match command {
            READ_ID => {
                if self.words.len() < CAPACITY {
                    self.words.push(VERSION);
                }
                self.status = 0;
            }
            DISABLE => self.status = STATUS_OFF,
            RELATIVE => self.absolute = false,
            ABSOLUTE => self.absolute = true,
            _ => {}
        }
        self.wanted()
    }

    /// Takes the first words into registers; false, and an error from then on, when that many cannot be had.
    pub(super) fn take(&mut self, count: usize, registers: &mut IoRegisters) -> bool {
        if count == 0 || count > registers.len() || count > self.words.len() {
            self.status = STATUS_OFF;
            return false;
        }
        for (register, word) in registers.iter_mut().zip(self.words.drain(..count)) {
            *register = word;
        }
        true
    }

    pub(super) fn button(&mut self, button: MouseButton, down: bool) {
        let bit = match button {
            MouseButton::Left => LEFT,
            MouseButton::Right => RIGHT,
            MouseButton::Middle => MIDDLE,
            MouseButton::WheelUp if down => return self.wheel -= 1,
            MouseButton::WheelDown if down => return self.wheel += 1,
            _ => return,
        };
        self.buttons = if down { self.buttons | bit } else { self.buttons & !bit };
    }

    pub(super) fn push(&mut self, position: [i32; 2], absolute: bool) {
        if self.words.len() > CAPACITY - 4 {
            return;
        }
        let kind = if absolute { 0 } else { MOVED };
        self.words.extend([self.buttons | kind, position[0] as u32, position[1] as u32, self.wheel as u32]);
        self.wheel = 0;
    }

    pub(super) fn save(&self) -> VmMouseState {
        let mut queue = Box::new([0; CAPACITY]);
        queue[..self.words.len()].copy_from_slice(&self.words);
        VmMouseState {
            queue_size: CAPACITY as i32,
            queue: *queue,
            nb_queue: self.words.len() as u16,
            status: self.status,
            absolute: self.absolute.into(),
        }
    }

    pub(super) fn load(&mut self, wire: &VmMouseState) {
        *self = Self {
            words: wire.queue[..usize::from(wire.nb_queue).min(CAPACITY)].to_vec(),
            status: wire.status,
            absolute: wire.absolute != 0,
            ..Self::default()
        };
    }
}
