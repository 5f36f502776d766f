//! PCI configuration space, mechanism 1.
use crate::cpu::{inl, outl};

/// One function on bus 0.
#[derive(Clone, Copy)]
pub struct Function(u32);

impl Function {
    /// The first function whose identity (device << 16 | vendor) and class (class, subclass, interface) satisfy `wanted`.
    pub fn find(wanted: impl Fn(u32, u32) -> bool) -> Option<Self> {
        (0..32u32).find_map(|slot| {
            let first = Function(slot << 11);
            if first.read(0) == 0xffff_ffff {
                return None;
            }
            let functions = if first.read(0x0c) & 0x80_0000 != 0 { 8 } else { 1 };
            (0..functions)
                .map(|number| Function(slot << 11 | number << 8))
                .find(|function| function.read(0) != 0xffff_ffff && wanted(function.read(0), function.read(8) >> 8))
        })
    }

    /// The 32-bit register at byte `offset`.
    pub fn read(self, offset: u32) -> u32 {
        outl(0xcf8, 0x8000_0000 | self.0 | offset);
        inl(0xcfc)
    }

    /// Sets the 32-bit register at byte `offset`.
    pub fn write(self, offset: u32, value: u32) {
        outl(0xcf8, 0x8000_0000 | self.0 | offset);
        outl(0xcfc, value);
    }

    /// First port of base address register `bar`.
    pub fn ports(self, bar: u32) -> u16 {
        (self.read(0x10 + bar * 4) & 0xfffc) as u16
    }

    /// Turns on port decoding and bus mastering. The upper half of the register (status) is cleared by writing ones, so it gets zeros.
    pub fn enable(self) {
        self.write(4, self.read(4) & 0xffff | 5);
    }

    /// The interrupt line that the BIOS chose.
    pub fn irq(self) -> u8 {
        self.read(0x3c) as u8 & 15
    }
}

/// Stops USB controllers: the BIOS leaves them running, and a frame list that nobody reads costs the host 1000 wake-ups a second.
pub fn stop_usb() {
    if let Some(uhci) = Function::find(|_, class| class == 0x0c_0300) {
        crate::cpu::outw(uhci.ports(4), 0);
    }
}
