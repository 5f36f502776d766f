//! What a BIOS finds in CMOS RAM.

use lockstep_util::{Result, bail, size::MIB};

use super::PcConfig;
use crate::rtc::Rtc;

/// A disk's geometry, for CMOS RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskCmos {
    /// Cylinders.
    pub cylinders: u32,
    /// Heads.
    pub heads: u32,
    /// Sectors of a track.
    pub sectors: u32,
    /// How the BIOS is to translate: 1 none, 2 LBA, 3 large, 4 revised ECHS.
    pub translation: u8,
}

/// Floppy type of a 2.88 MB drive.
const FLOPPY_288: u8 = 5;
/// There is an FPU, and a PS/2 mouse port.
const EQUIPMENT: u8 = 0x06;
/// A disk type that says: see the extended type, and: see the geometry.
const DISK_EXTENDED: u8 = 0x0f;
const DISK_USER: u8 = 47;

fn set_u16(rtc: &Rtc, at: usize, value: u16) {
    value.to_le_bytes().into_iter().enumerate().for_each(|(i, byte)| rtc.set_cmos(at + i, byte));
}

fn boot_nibble(letter: char) -> Option<u8> {
    match letter {
        'a' | 'b' => Some(1),
        'c' => Some(2),
        'd' => Some(3),
        'n' => Some(4),
        _ => None,
    }
}

/// Writes the boot order.
///
/// # Errors
/// For letters that are no boot devices, or more than three.
pub(super) fn set_boot_order(rtc: &Rtc, order: &str, floppy_check: bool) -> Result<()> {
    let mut nibbles = [0; 3];
    if order.chars().count() > nibbles.len() {
        bail!("Too many boot devices for PC");
    }
    for (nibble, letter) in nibbles.iter_mut().zip(order.chars()) {
        match boot_nibble(letter) {
            Some(n) => *nibble = n,
            None => bail!("Invalid boot device for PC: '{letter}'"),
        }
    }
    rtc.set_cmos(0x3d, nibbles[1] << 4 | nibbles[0]);
    rtc.set_cmos(0x38, nibbles[2] << 4 | u8::from(!floppy_check));
    Ok(())
}

/// Writes sizes of memory, the number of CPUs, equipment, floppy drives and the boot order.
///
/// # Errors
/// As [`set_boot_order`].
pub(super) fn fill(rtc: &Rtc, config: &PcConfig) -> Result<()> {
    let (below, above) = (config.below_4g(), config.above_4g());
    set_u16(rtc, 0x15, (below / 1024).min(640) as u16);
    let extended = (below.saturating_sub(MIB) / 1024).min(0xffff) as u16;
    set_u16(rtc, 0x17, extended);
    set_u16(rtc, 0x30, extended);
    set_u16(rtc, 0x34, (below.saturating_sub(16 * MIB) / 0x1_0000).min(0xffff) as u16);
    let high = (above / 0x1_0000).to_le_bytes();
    (0..3).for_each(|i| rtc.set_cmos(0x5b + i, high[i]));
    rtc.set_cmos(0x5f, (config.cpus.len() as u32).saturating_sub(1).min(255) as u8);
    rtc.set_cmos(0x14, EQUIPMENT);
    rtc.set_cmos(0x10, if config.floppy_drive { FLOPPY_288 << 4 } else { 0 });
    set_boot_order(rtc, &config.boot.order, config.boot.floppy_check)
}

/// Writes the geometries of the first channel's disks, and the translations of all four.
pub(super) fn fill_disks(rtc: &Rtc, disks: &[Option<DiskCmos>; 4]) {
    let kind = |n: usize| if disks[n].is_some() { DISK_EXTENDED } else { 0 };
    rtc.set_cmos(0x12, kind(0) << 4 | kind(1));
    for (disk, (kind_at, at)) in disks.iter().zip([(0x19, 0x1b), (0x1a, 0x24)]) {
        let Some(d) = disk else { continue };
        rtc.set_cmos(kind_at, DISK_USER);
        set_u16(rtc, at, d.cylinders as u16);
        rtc.set_cmos(at + 2, d.heads as u8);
        // No write precompensation; control byte: more than 8 heads.
        set_u16(rtc, at + 3, 0xffff);
        rtc.set_cmos(at + 5, 0xc0 | if d.heads > 8 { 8 } else { 0 });
        set_u16(rtc, at + 6, d.cylinders as u16);
        rtc.set_cmos(at + 8, d.sectors as u8);
    }
    let translations =
        (0..4).fold(0, |byte, n| byte | disks[n].map_or(0, |d| (d.translation.saturating_sub(1) & 3) << (n * 2)));
    rtc.set_cmos(0x39, translations);
}
