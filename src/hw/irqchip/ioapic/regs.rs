//! Registers of the 82093AA (Intel 290566-001), with the EOI register of version 0x20.

use super::IoApicState;

/// Number of inputs.
pub const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
/// How often a level is sent again, without its line's having been low since, until it has to wait: see [`IoApicRegs::held`].
const STORM: u16 = 1000;
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;
const EXTERNAL: u32 = 7;
pub(crate) const VERSION: u32 = 0x20;
/// That of the kernel's.
pub(crate) const KERNEL_VERSION: u32 = 0x11;

/// An interrupt on its way to the local APICs, in the form of a message signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Address: destination and its mode.
    pub address: u64,
    /// Data: vector, delivery mode, trigger mode.
    pub data: u32,
}

impl Message {
    fn of(entry: u64) -> Self {
        let destination = entry >> 56;
        let logical = entry >> 11 & 1;
        let data = (entry & 0x7ff) as u32 | (entry & LEVEL) as u32;
        Self { address: 0xfee0_0000 | destination << 12 | logical << 2, data }
    }

    /// Whether the vector comes from the 8259.
    pub fn is_external(self) -> bool {
        self.data >> 8 & 7 == EXTERNAL
    }

    /// With another vector.
    pub fn with_vector(self, vector: u8) -> Self {
        Self { data: self.data & !0xff | u32::from(vector), ..self }
    }
}

/// The registers.
#[derive(Clone, Debug, PartialEq)]
pub struct IoApicRegs {
    id: u8,
    select: u8,
    requests: u32,
    /// Inputs that are high, as far as they have been told since the start, a reset or a load: an edge is seen by them. They do not travel,
    /// so that after a load a line that is still high may interrupt once more, but no edge is missed.
    levels: u32,
    /// How often in a row each input was still high at an end of interrupt.
    repeats: [u16; PINS],
    /// Inputs whose level waits: a chip takes a while to send it again, in which a guest goes on, and one that has masked the cause in
    /// vain (8139cp does, if two CPUs meet in its polling) ends it then. Sent at once, its handler would be all that it ever runs.
    held: u32,
    entries: [u64; PINS],
}

impl Default for IoApicRegs {
    /// As after a reset: all inputs masked.
    fn default() -> Self {
        Self { id: 0, select: 0, requests: 0, levels: 0, repeats: [0; PINS], held: 0, entries: [MASKED; PINS] }
    }
}

impl IoApicRegs {
    /// Sets an input. The timer's GSI 0 is wired to input 2.
    pub fn set_input(&mut self, gsi: u32, level: bool) {
        let pin = if gsi == 0 { 2 } else { gsi as usize };
        let Some(entry) = self.entries.get(pin) else { return };
        let bit = 1 << pin;
        let was = self.levels & bit != 0;
        self.levels = if level { self.levels | bit } else { self.levels & !bit };
        if entry & LEVEL != 0 {
            if level {
                self.requests |= bit;
            } else {
                self.requests &= !bit;
                self.held &= !bit;
                self.repeats[pin] = 0;
            }
        } else if level && !was && entry & MASKED == 0 {
            // Edges at a masked input are lost (section 3.2.4).
            self.requests |= bit;
        }
    }

    /// The messages to send now.
    pub fn service(&mut self) -> Vec<Message> {
        let mut messages = vec![];
        let mut left = self.requests & !self.held;
        while left != 0 {
            let pin = left.trailing_zeros() as usize;
            left &= left - 1;
            let entry = &mut self.entries[pin];
            if *entry & MASKED != 0 {
                continue;
            }
            if *entry & LEVEL == 0 {
                self.requests &= !(1 << pin);
            } else if *entry & REMOTE_IRR != 0 {
                continue;
            } else {
                *entry |= REMOTE_IRR;
            }
            messages.push(Message::of(*entry));
        }
        messages
    }

    /// Ends the service of a vector at all its inputs.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for (pin, entry) in self.entries.iter_mut().enumerate() {
            if *entry & (LEVEL | 0xff) != LEVEL | u64::from(vector) {
                continue;
            }
            *entry &= !REMOTE_IRR;
            if *entry & MASKED == 0 && self.requests & 1 << pin != 0 {
                self.repeats[pin] += 1;
                if self.repeats[pin] == STORM {
                    self.repeats[pin] = 0;
                    self.held |= 1 << pin;
                }
            }
        }
    }

    /// Whether levels wait to be sent.
    pub(super) fn holds(&self) -> bool {
        self.held != 0
    }

    /// Lets those go that wait.
    pub(super) fn release(&mut self) {
        self.held = 0;
    }

    pub(super) fn read(&self, offset: u64, size: u32) -> u32 {
        match offset & 0xff {
            0x00 => self.select.into(),
            0x10 if size == 4 => self.indirect(),
            _ => 0,
        }
    }

    fn indirect(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION | (PINS as u32 - 1) << 16,
            select => match self.entries.get(usize::from(select.wrapping_sub(0x10) >> 1)) {
                Some(entry) => (entry >> (32 * (select & 1))) as u32,
                None => 0,
            },
        }
    }

    pub(super) fn write(&mut self, offset: u64, size: u32, value: u32) {
        match offset & 0xff {
            0x00 => self.select = value as u8,
            0x10 if size == 4 => self.write_indirect(value),
            0x40 if size == 4 => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn write_indirect(&mut self, value: u32) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0x0f;
            return;
        }
        let select = self.select;
        let Some(entry) = self.entries.get_mut(usize::from(select.wrapping_sub(0x10) >> 1)) else { return };
        let kept = *entry & READ_ONLY;
        let value = u64::from(value);
        *entry = if select & 1 == 0 { *entry & !0xffff_ffff | value } else { *entry & 0xffff_ffff | value << 32 };
        *entry = *entry & !READ_ONLY | kept;
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
    }

    /// The wire form.
    pub fn state(&self) -> IoApicState {
        IoApicState {
            id: self.id,
            ioregsel: self.select,
            unused: lockstep_vmstate::Unused,
            irr: self.requests,
            ioredtbl: self.entries,
        }
    }

    /// Takes the registers over from the wire form.
    pub(crate) fn load(&mut self, wire: &IoApicState) {
        let (requests, entries) = (wire.irr, wire.ioredtbl);
        *self = Self { id: wire.id, select: wire.ioregsel, requests, entries, ..Self::default() };
        // What was held there, or it would have been sent.
        let waits = |pin: &usize| self.entries[*pin] & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
        self.held = (0..PINS).filter(waits).fold(0, |held, pin| held | 1 << pin) & requests;
    }

    /// What `info pic` shows; the kernel's has another version.
    pub(crate) fn describe(&self, version: u32) -> String {
        let mut text = format!("ioapic0: ver=0x{version:x} id=0x{:02x} sel=0x{:02x}", self.id, self.select);
        if self.select >= 0x10 {
            text += &format!(" (redir[{}])", (self.select - 0x10) >> 1);
        }
        text.push('\n');
        for (pin, &e) in self.entries.iter().enumerate() {
            let mode = ["fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "extINT"][(e >> 8 & 7) as usize];
            let flag = |bit: u64, on: &'static str, off: &'static str| if e & bit != 0 { on } else { off };
            text += &format!(
                "  pin {pin:<2} 0x{e:016x} dest={:x} vec={:<3} {} {:<5} {:<6} {:<6} {}\n",
                e >> 56,
                e & 0xff,
                flag(1 << 13, "active-lo", "active-hi"),
                flag(LEVEL, "level", "edge"),
                flag(MASKED, "masked", ""),
                mode,
                flag(1 << 11, "logical", "physical"),
            );
        }
        let list = |bits: u32| {
            let set: String = (0..PINS).filter(|p| bits >> p & 1 != 0).map(|p| format!("{p} ")).collect();
            if set.is_empty() { "(none)".to_owned() } else { set }
        };
        let remote = self.entries.iter().enumerate().fold(0, |b, (p, e)| b | u32::from(e & REMOTE_IRR != 0) << p);
        text + &format!("  IRR      {}\n  Remote IRR {}\n", list(self.requests), list(remote))
    }
}
