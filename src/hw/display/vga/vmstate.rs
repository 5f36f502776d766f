//! The section `vga` in QEMU's layout.

use lockstep_vmstate::{Buffer, LoadError, VmState};

use super::regs::Regs;
use crate::pci::PciDeviceState;

/// The section.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "vga", version = 2)]
pub struct VgaState {
    /// Configuration space.
    pub dev: PciDeviceState,
    /// Registers.
    pub vga: VgaCommonState,
}

/// The registers on the wire.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "vga", version = 2)]
#[allow(missing_docs)]
pub struct VgaCommonState {
    pub latch: u32,
    pub sr_index: u8,
    pub sr: Buffer<8>,
    pub gr_index: u8,
    pub gr: Buffer<16>,
    pub ar_index: u8,
    pub ar: Buffer<21>,
    pub ar_flip_flop: i32,
    pub cr_index: u8,
    pub cr: Buffer<256>,
    pub msr: u8,
    pub fcr: u8,
    pub st00: u8,
    pub st01: u8,
    pub dac_state: u8,
    pub dac_sub_index: u8,
    pub dac_read_index: u8,
    pub dac_write_index: u8,
    pub dac_cache: Buffer<3>,
    pub palette: Buffer<768>,
    pub bank_offset: i32,
    #[vmstate(kind = "uint8 equal")]
    pub is_vbe_vmstate: u8,
    pub vbe_index: u16,
    pub vbe_regs: [u16; 10],
    pub vbe_start_addr: u32,
    pub vbe_line_offset: u32,
    pub vbe_bank_mask: u32,
    #[vmstate(subsection)]
    pub endian: Option<EndianState>,
}

/// Says that the frame buffer is not in the target's byte order.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "vga.endian", version = 1)]
#[allow(missing_docs)]
pub struct EndianState {
    pub big_endian_fb: bool,
}

impl VgaCommonState {
    pub(super) fn save(r: &Regs) -> Self {
        Self {
            latch: r.latch,
            sr_index: r.sr_index,
            sr: r.sr.into(),
            gr_index: r.gr_index,
            gr: r.gr.into(),
            ar_index: r.ar_index,
            ar: r.ar.into(),
            ar_flip_flop: r.ar_data.into(),
            cr_index: r.cr_index,
            cr: r.cr.into(),
            msr: r.msr,
            fcr: r.fcr,
            st00: r.st00,
            st01: r.st01,
            dac_state: r.dac_state,
            dac_sub_index: r.dac_sub,
            dac_read_index: r.dac_read,
            dac_write_index: r.dac_write,
            dac_cache: r.dac_cache.into(),
            palette: r.palette.into(),
            bank_offset: r.bank_offset as i32,
            is_vbe_vmstate: 1,
            vbe_index: r.vbe_index,
            vbe_regs: r.vbe,
            vbe_start_addr: r.vbe_start,
            vbe_line_offset: r.vbe_line,
            vbe_bank_mask: r.vbe_bank_mask,
            endian: None,
        }
    }

    pub(super) fn check(&self, vram_size: u32) -> Result<(), LoadError> {
        if self.is_vbe_vmstate != 1 {
            return Err(LoadError::invalid("vga: is_vbe_vmstate is not 1"));
        }
        if self.vbe_bank_mask != (vram_size >> 16) - 1 {
            return Err(LoadError::invalid("vga: another size of video memory"));
        }
        if self.dac_sub_index > 2 || u32::try_from(self.bank_offset).is_err() {
            return Err(LoadError::invalid("vga: an index is out of range"));
        }
        let shown = u64::from(self.vbe_line_offset) * u64::from(self.vbe_regs[super::regs::vbe::YRES]);
        if shown + u64::from(self.vbe_start_addr) * 4 > u64::from(vram_size)
            && self.vbe_regs[super::regs::vbe::ENABLE] & super::regs::vbe::ENABLED != 0
        {
            return Err(LoadError::invalid("vga: the picture leaves the video memory"));
        }
        Ok(())
    }

    pub(super) fn load(self, r: &mut Regs) {
        *r = Regs {
            latch: self.latch,
            sr_index: self.sr_index,
            sr: *self.sr,
            gr_index: self.gr_index,
            gr: *self.gr,
            ar_index: self.ar_index,
            ar: *self.ar,
            ar_data: self.ar_flip_flop != 0,
            cr_index: self.cr_index,
            cr: *self.cr,
            msr: self.msr,
            fcr: self.fcr,
            st00: self.st00,
            st01: self.st01,
            dac_state: self.dac_state,
            dac_sub: self.dac_sub_index,
            dac_read: self.dac_read_index,
            dac_write: self.dac_write_index,
            dac_cache: *self.dac_cache,
            palette: *self.palette,
            bank_offset: self.bank_offset as u32,
            vbe_index: self.vbe_index,
            vbe: self.vbe_regs,
            vbe_start: self.vbe_start_addr,
            vbe_line: self.vbe_line_offset,
            vbe_bank_mask: self.vbe_bank_mask,
            vram_size: r.vram_size,
        };
        r.follow_vbe();
    }
}
