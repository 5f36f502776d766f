//! The sections `usb-ptr` and `usb-kbd` in QEMU's layout.

use lockstep_vmstate::{LoadError, VmState};

use super::{
    keyboard::Keyboard,
    pointer::{Pointer, PointerEvent},
};
use crate::usb::control::UsbDeviceState;

/// The section of a mouse or tablet.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "usb-ptr", version = 1)]
#[allow(missing_docs)]
pub struct UsbPointerState {
    pub dev: UsbDeviceState,
    pub hid: HidPointerState,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "HIDPointerDevice", version = 1)]
#[allow(missing_docs)]
pub struct HidPointerState {
    #[vmstate(name = "ptr.queue")]
    pub queue: [PointerEvent; 16],
    pub head: u32,
    pub n: u32,
    pub protocol: i32,
    pub idle: u8,
}

/// The section of a keyboard.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "usb-kbd", version = 1)]
#[allow(missing_docs)]
pub struct UsbKeyboardState {
    pub dev: UsbDeviceState,
    pub hid: HidKeyboardState,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "HIDKeyboardDevice", version = 1)]
#[allow(missing_docs)]
pub struct HidKeyboardState {
    #[vmstate(name = "kbd.keycodes")]
    pub keycodes: [u32; 16],
    pub head: u32,
    pub n: u32,
    #[vmstate(name = "kbd.modifiers")]
    pub modifiers: u16,
    #[vmstate(name = "kbd.leds")]
    pub leds: u8,
    #[vmstate(name = "kbd.key")]
    pub key: [u8; 16],
    #[vmstate(name = "kbd.keys")]
    pub keys: i32,
    pub protocol: i32,
    pub idle: u8,
}

fn check_queue(head: u32, n: u32) -> Result<(), LoadError> {
    if head > 16 || n > 16 {
        return Err(LoadError::invalid("HID: the queue of events is out of range"));
    }
    Ok(())
}

impl HidPointerState {
    pub(super) fn save(p: &Pointer, protocol: u8, idle: u8) -> Self {
        Self { queue: p.queue, head: p.head, n: p.count, protocol: protocol.into(), idle }
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        check_queue(self.head, self.n)
    }

    pub(super) fn load(&self, p: &mut Pointer) {
        p.queue = self.queue;
        p.head = self.head % 16;
        p.count = self.n.min(15);
    }
}

impl HidKeyboardState {
    pub(super) fn save(k: &Keyboard, protocol: u8, idle: u8) -> Self {
        let mut key = [0; 16];
        key[..k.keys.len()].copy_from_slice(&k.keys);
        Self {
            keycodes: k.codes,
            head: k.head,
            n: k.count,
            modifiers: k.modifiers,
            leds: k.lamps,
            key,
            keys: k.keys.len() as i32,
            protocol: protocol.into(),
            idle,
        }
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        if !(0..=16).contains(&self.keys) {
            return Err(LoadError::invalid("HID: more keys are down than there is room for"));
        }
        check_queue(self.head, self.n)
    }

    pub(super) fn load(&self, k: &mut Keyboard) {
        *k = Keyboard {
            codes: self.keycodes,
            head: self.head % 16,
            count: self.n,
            modifiers: self.modifiers,
            lamps: self.leds,
            keys: self.key[..self.keys as usize].to_vec(),
        };
    }
}
