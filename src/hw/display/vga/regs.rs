//! Registers of the VGA and its VBE extensions, without any I/O (IBM VGA/XGA Technical Reference 1992; Bochs VBE display API;
//! QEMU's standard VGA specification).

/// Sequencer registers.
pub mod seq {
    pub const CLOCKING: usize = 1;
    pub const PLANES: usize = 2;
    pub const CHARACTER_MAP: usize = 3;
    pub const MEMORY_MODE: usize = 4;
}

/// Graphics controller registers.
pub mod gfx {
    pub const SET_RESET: usize = 0;
    pub const ENABLE_SET_RESET: usize = 1;
    pub const COMPARE: usize = 2;
    pub const ROTATE: usize = 3;
    pub const READ_PLANE: usize = 4;
    pub const MODE: usize = 5;
    pub const MISC: usize = 6;
    pub const COMPARE_IGNORE: usize = 7;
    pub const BIT_MASK: usize = 8;
}

/// VBE registers by index.
pub mod vbe {
    pub const ID: usize = 0;
    pub const XRES: usize = 1;
    pub const YRES: usize = 2;
    pub const BPP: usize = 3;
    pub const ENABLE: usize = 4;
    pub const BANK: usize = 5;
    pub const VIRTUAL_WIDTH: usize = 6;
    pub const VIRTUAL_HEIGHT: usize = 7;
    pub const X_OFFSET: usize = 8;
    pub const Y_OFFSET: usize = 9;
    pub const MEMORY: usize = 10;

    pub const ENABLED: u16 = 0x01;
    pub const CAPABILITIES: u16 = 0x02;
    pub const DAC_8BIT: u16 = 0x20;
    pub const KEEP_MEMORY: u16 = 0x80;

    pub const LATEST: u16 = 0xb0c5;
    pub const OLDEST: u16 = 0xb0c0;
    pub const MAX_XRES: u16 = 16000;
    pub const MAX_YRES: u16 = 12000;
    pub const MAX_BPP: u16 = 32;
}

const SEQ_MASK: [u8; 8] = [0x03, 0x3d, 0x0f, 0x3f, 0x0e, 0x00, 0x00, 0xff];
const GFX_MASK: [u8; 16] = [0x0f, 0x0f, 0x0f, 0x1f, 0x03, 0x7b, 0x0f, 0x0f, 0xff, 0, 0, 0, 0, 0, 0, 0];
/// Bits of the attribute controller's mode, overscan, planes, panning and colour select registers.
const ATTRIBUTE_MASK: [u8; 5] = [0xef, 0xff, 0x3f, 0x0f, 0x0f];

/// Miscellaneous output: the CRTC is at 3Dxh rather than at 3Bxh.
const COLOR: u8 = 0x01;
/// Status 1: in vertical retrace, and not displaying.
const RETRACE: u8 = 0x09;

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regs {
    /// What was read last, one byte a plane.
    pub latch: u32,
    pub sr_index: u8,
    pub sr: [u8; 8],
    pub gr_index: u8,
    pub gr: [u8; 16],
    pub ar_index: u8,
    pub ar: [u8; 21],
    pub ar_data: bool,
    pub cr_index: u8,
    pub cr: [u8; 256],
    pub msr: u8,
    pub fcr: u8,
    pub st00: u8,
    pub st01: u8,
    pub dac_state: u8,
    pub dac_sub: u8,
    pub dac_read: u8,
    pub dac_write: u8,
    pub dac_cache: [u8; 3],
    pub palette: [u8; 768],
    pub bank_offset: u32,
    pub vbe_index: u16,
    pub vbe: [u16; 10],
    /// In units of four bytes.
    pub vbe_start: u32,
    /// In bytes.
    pub vbe_line: u32,
    pub vbe_bank_mask: u32,
    /// Size of the video memory in bytes.
    pub vram_size: u32,
}

/// What a write asks of the wiring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Clear the first bytes of video memory.
    Clear(u32),
}

impl Regs {
    /// After power on, with so many bytes of memory.
    pub fn new(vram_size: u32) -> Self {
        let mut vbe = [0; 10];
        vbe[self::vbe::ID] = self::vbe::LATEST;
        Self {
            latch: 0,
            sr_index: 0,
            sr: [0; 8],
            gr_index: 0,
            gr: [0; 16],
            ar_index: 0,
            ar: [0; 21],
            ar_data: false,
            cr_index: 0,
            cr: [0; 256],
            msr: 0,
            fcr: 0,
            st00: 0,
            st01: 0,
            dac_state: 0,
            dac_sub: 0,
            dac_read: 0,
            dac_write: 0,
            dac_cache: [0; 3],
            palette: [0; 768],
            bank_offset: 0,
            vbe_index: 0,
            vbe,
            vbe_start: 0,
            vbe_line: 0,
            vbe_bank_mask: (vram_size >> 16).saturating_sub(1),
            vram_size,
        }
    }

    /// Whether a VBE mode is on.
    pub fn vbe_on(&self) -> bool {
        self.vbe[vbe::ENABLE] & vbe::ENABLED != 0
    }

    /// Whether palette entries have eight bits.
    pub fn dac_8bit(&self) -> bool {
        self.vbe[vbe::ENABLE] & vbe::DAC_8BIT != 0
    }

    /// A sequencer register as a VBE mode makes it.
    pub fn seq(&self, n: usize) -> u8 {
        let value = self.sr[n];
        match n {
            _ if !self.vbe_on() => value,
            seq::CLOCKING if self.vbe[vbe::BPP] == 4 => value & !0x08,
            seq::PLANES if self.vbe[vbe::BPP] != 4 => value | 0x0f,
            seq::MEMORY_MODE if self.vbe[vbe::BPP] != 4 => value | 0x08,
            _ => value,
        }
    }

    fn decodes(&self, port: u16) -> bool {
        match port & 0xfff0 {
            0x3b0 => self.msr & COLOR == 0,
            0x3d0 => self.msr & COLOR != 0,
            _ => true,
        }
    }

    /// Reads a port from 3B0h to 3DFh.
    pub fn read(&mut self, port: u16) -> u8 {
        if !self.decodes(port) {
            return 0xff;
        }
        match port {
            0x3c0 if !self.ar_data => self.ar_index,
            0x3c1 => self.ar.get(usize::from(self.ar_index & 0x1f)).copied().unwrap_or(0),
            0x3c2 => self.st00,
            0x3c4 => self.sr_index,
            0x3c5 => self.sr[usize::from(self.sr_index & 7)],
            0x3c7 => self.dac_state,
            0x3c8 => self.dac_write,
            0x3c9 => {
                let value = self.palette[usize::from(self.dac_read) * 3 + usize::from(self.dac_sub.min(2))];
                self.dac_sub += 1;
                if self.dac_sub >= 3 {
                    self.dac_sub = 0;
                    self.dac_read = self.dac_read.wrapping_add(1);
                }
                value
            }
            0x3ca => self.fcr,
            0x3cc => self.msr,
            0x3ce => self.gr_index,
            0x3cf => self.gr[usize::from(self.gr_index & 0x0f)],
            0x3b4 | 0x3d4 => self.cr_index,
            0x3b5 | 0x3d5 => self.cr[usize::from(self.cr_index)],
            0x3ba | 0x3da => {
                // There is no beam: whoever waits for it to be somewhere finds it there at the second look.
                self.st01 ^= RETRACE;
                self.ar_data = false;
                self.st01
            }
            _ => 0,
        }
    }

    /// Writes a port from 3B0h to 3DFh.
    pub fn write(&mut self, port: u16, value: u8) {
        if !self.decodes(port) {
            return;
        }
        match port {
            0x3c0 => {
                if self.ar_data {
                    self.write_attribute(value);
                } else {
                    self.ar_index = value & 0x3f;
                }
                self.ar_data = !self.ar_data;
            }
            0x3c2 => self.msr = value & !0x10,
            0x3c4 => self.sr_index = value & 7,
            0x3c5 => {
                let n = usize::from(self.sr_index & 7);
                self.sr[n] = value & SEQ_MASK[n];
            }
            0x3c7 => {
                self.dac_read = value;
                self.dac_sub = 0;
                self.dac_state = 3;
            }
            0x3c8 => {
                self.dac_write = value;
                self.dac_sub = 0;
                self.dac_state = 0;
            }
            0x3c9 => {
                self.dac_cache[usize::from(self.dac_sub.min(2))] = value;
                self.dac_sub += 1;
                if self.dac_sub >= 3 {
                    let at = usize::from(self.dac_write) * 3;
                    self.palette[at..at + 3].copy_from_slice(&self.dac_cache);
                    self.dac_sub = 0;
                    self.dac_write = self.dac_write.wrapping_add(1);
                }
            }
            0x3ce => self.gr_index = value & 0x0f,
            0x3cf => {
                let n = usize::from(self.gr_index & 0x0f);
                self.gr[n] = value & GFX_MASK[n];
                self.follow_vbe();
            }
            0x3b4 | 0x3d4 => self.cr_index = value,
            0x3b5 | 0x3d5 => self.write_crtc(value),
            0x3ba | 0x3da => self.fcr = value & 0x10,
            _ => {}
        }
    }

    fn write_attribute(&mut self, value: u8) {
        match usize::from(self.ar_index & 0x1f) {
            n @ 0..0x10 => self.ar[n] = value & 0x3f,
            n @ 0x10..0x15 => self.ar[n] = value & ATTRIBUTE_MASK[n - 0x10],
            _ => {}
        }
    }

    fn write_crtc(&mut self, value: u8) {
        const PROTECT: u8 = 0x80;
        const LINE_COMPARE_8: u8 = 0x10;
        let n = usize::from(self.cr_index);
        if self.cr[0x11] & PROTECT != 0 && n <= 7 {
            if n == 7 {
                self.cr[7] = self.cr[7] & !LINE_COMPARE_8 | value & LINE_COMPARE_8;
                self.follow_vbe();
            }
            return;
        }
        self.cr[n] = value;
        self.follow_vbe();
    }

    /// The selected VBE register.
    pub fn read_vbe(&self, index: u16) -> u16 {
        let n = usize::from(index);
        if n == vbe::MEMORY {
            return (self.vram_size >> 16) as u16;
        }
        let asks = self.vbe[vbe::ENABLE] & vbe::CAPABILITIES != 0;
        match n {
            vbe::XRES if asks => vbe::MAX_XRES,
            vbe::YRES if asks => vbe::MAX_YRES,
            vbe::BPP if asks => vbe::MAX_BPP,
            _ => self.vbe.get(n).copied().unwrap_or(0),
        }
    }

    /// Writes a VBE register.
    pub fn write_vbe(&mut self, index: u16, value: u16) -> Option<Action> {
        match usize::from(index) {
            vbe::ID if (vbe::OLDEST..=vbe::LATEST).contains(&value) => self.vbe[vbe::ID] = value,
            n @ (vbe::XRES | vbe::YRES | vbe::BPP | vbe::VIRTUAL_WIDTH | vbe::X_OFFSET | vbe::Y_OFFSET) => {
                self.vbe[n] = value;
                self.settle_vbe();
                self.follow_vbe();
            }
            vbe::BANK => {
                let bank = u32::from(value) & self.vbe_bank_mask;
                self.vbe[vbe::BANK] = bank as u16;
                self.bank_offset = bank << 16;
            }
            vbe::ENABLE => return self.enable_vbe(value),
            _ => {}
        }
        None
    }

    fn enable_vbe(&mut self, value: u16) -> Option<Action> {
        let mut action = None;
        if value & vbe::ENABLED != 0 && !self.vbe_on() {
            self.vbe[vbe::VIRTUAL_WIDTH] = 0;
            self.vbe[vbe::X_OFFSET] = 0;
            self.vbe[vbe::Y_OFFSET] = 0;
            self.vbe[vbe::ENABLE] |= vbe::ENABLED;
            self.settle_vbe();
            self.follow_vbe();
            if value & vbe::KEEP_MEMORY == 0 {
                action = Some(Action::Clear(u32::from(self.vbe[vbe::YRES]) * self.vbe_line));
            }
        } else {
            self.bank_offset = 0;
        }
        self.vbe[vbe::ENABLE] = value;
        action
    }

    /// Brings the VBE registers within what there is.
    fn settle_vbe(&mut self) {
        if !self.vbe_on() {
            return;
        }
        let size = u64::from(self.vram_size);
        let r = &mut self.vbe;
        let bits = match r[vbe::BPP] {
            15 => 16,
            n @ (4 | 8 | 16 | 24 | 32) => n,
            _ => {
                r[vbe::BPP] = 8;
                8
            }
        };
        r[vbe::XRES] = (r[vbe::XRES] & !7).clamp(8, vbe::MAX_XRES);
        r[vbe::VIRTUAL_WIDTH] = (r[vbe::VIRTUAL_WIDTH] & !7).min(vbe::MAX_XRES).max(r[vbe::XRES]);
        let line = u64::from(r[vbe::VIRTUAL_WIDTH]) * u64::from(bits) / 8;
        let lines = size / line;
        r[vbe::YRES] = r[vbe::YRES].clamp(1, vbe::MAX_YRES).min(u16::try_from(lines).unwrap_or(u16::MAX));
        r[vbe::X_OFFSET] = r[vbe::X_OFFSET].min(vbe::MAX_XRES);
        r[vbe::Y_OFFSET] = r[vbe::Y_OFFSET].min(vbe::MAX_YRES);
        let shown = u64::from(r[vbe::YRES]) * line;
        let x = u64::from(r[vbe::X_OFFSET]) * u64::from(bits) / 8;
        let mut start = x + u64::from(r[vbe::Y_OFFSET]) * line;
        if start + shown > size {
            r[vbe::Y_OFFSET] = 0;
            start = x;
            if start + shown > size {
                r[vbe::X_OFFSET] = 0;
                start = 0;
            }
        }
        r[vbe::VIRTUAL_HEIGHT] = lines as u16;
        self.vbe_line = line as u32;
        self.vbe_start = (start / 4) as u32;
    }

    /// Sets the plain VGA registers as a VBE mode has them.
    pub fn follow_vbe(&mut self) {
        if !self.vbe_on() {
            return;
        }
        // Graphics, memory at A0000h for 64 KiB.
        self.gr[gfx::MISC] = self.gr[gfx::MISC] & !0x0c | 0x05;
        self.cr[0x17] |= 3;
        self.cr[0x13] = (self.vbe_line >> 3) as u8;
        self.cr[0x01] = (self.vbe[vbe::XRES] >> 3).wrapping_sub(1) as u8;
        let last = self.vbe[vbe::YRES].wrapping_sub(1);
        self.cr[0x12] = last as u8;
        self.cr[0x07] = self.cr[0x07] & !0x42 | (last >> 7 & 0x02) as u8 | (last >> 3 & 0x40) as u8;
        // No split screen, no doubled lines.
        self.cr[0x18] = 0xff;
        self.cr[0x07] |= 0x10;
        self.cr[0x09] = (self.cr[0x09] | 0x40) & !0x9f;
        let shift = if self.vbe[vbe::BPP] == 4 { 0 } else { 2 << 5 };
        self.gr[gfx::MODE] = self.gr[gfx::MODE] & !0x60 | shift;
    }
}

/// A bit a plane, spread to a byte a plane.
pub fn spread(planes: u8) -> u32 {
    (0..4).map(|i| if planes >> i & 1 != 0 { 0xff << (8 * i) } else { 0 }).sum()
}
