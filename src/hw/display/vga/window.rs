//! The window at A0000h: how bytes there reach the four planes of video memory.
//!
//! In memory the planes lie side by side: byte `n` of plane `p` is at `4 * n + p`.

use lockstep_memory::RamBlock;

use super::regs::{Regs, gfx, seq, spread};

/// What an access is to.
enum Target {
    /// A byte of memory, if the planes' mask lets it be written.
    Byte {
        at: u64,
        plane: u8,
    },
    /// The same byte of all planes.
    Planes {
        at: u64,
    },
    Nothing,
}

fn target(regs: &Regs, offset: u64) -> Target {
    let offset = match regs.gr[gfx::MISC] >> 2 & 3 {
        0 => Some(offset),
        1 => (offset < 0x1_0000).then(|| offset + u64::from(regs.bank_offset)),
        2 => offset.checked_sub(0x1_0000).filter(|&o| o < 0x8000),
        _ => offset.checked_sub(0x1_8000),
    };
    let Some(offset) = offset else { return Target::Nothing };
    let size = u64::from(regs.vram_size);
    const CHAIN_4: u8 = 0x08;
    const ODD_EVEN: u8 = 0x10;
    if regs.seq(seq::MEMORY_MODE) & CHAIN_4 != 0 {
        let plane = (offset & 3) as u8;
        return if offset < size { Target::Byte { at: offset, plane } } else { Target::Nothing };
    }
    if regs.gr[gfx::MODE] & ODD_EVEN != 0 {
        let plane = regs.gr[gfx::READ_PLANE] & 2 | (offset & 1) as u8;
        let at = (offset & !1) << 1 | u64::from(plane);
        return if at < size { Target::Byte { at, plane } } else { Target::Nothing };
    }
    if offset * 4 < size { Target::Planes { at: offset * 4 } } else { Target::Nothing }
}

fn load(vram: &RamBlock, at: u64) -> u32 {
    let mut bytes = [0; 4];
    let _ = vram.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Reads a byte of the window.
pub fn read(regs: &mut Regs, vram: &RamBlock, offset: u64) -> u8 {
    match target(regs, offset) {
        Target::Nothing => 0xff,
        Target::Byte { at, .. } => {
            let mut byte = [0];
            let _ = vram.read(at, &mut byte);
            byte[0]
        }
        Target::Planes { at } => {
            regs.latch = load(vram, at);
            const COMPARE: u8 = 0x08;
            if regs.gr[gfx::MODE] & COMPARE == 0 {
                return regs.latch.to_le_bytes()[usize::from(regs.gr[gfx::READ_PLANE] & 3)];
            }
            let differs = (regs.latch ^ spread(regs.gr[gfx::COMPARE])) & spread(regs.gr[gfx::COMPARE_IGNORE]);
            let [a, b, c, d] = differs.to_le_bytes();
            !(a | b | c | d)
        }
    }
}

/// Writes a byte of the window.
pub fn write(regs: &Regs, vram: &RamBlock, offset: u64, value: u8) {
    let enabled = regs.seq(seq::PLANES);
    match target(regs, offset) {
        Target::Nothing => {}
        Target::Byte { at, plane } => {
            if enabled >> plane & 1 != 0 {
                let _ = vram.write(at, &[value]);
            }
        }
        Target::Planes { at } => {
            let mask = spread(enabled);
            let new = combine(regs, value);
            let _ = vram.write(at, &(load(vram, at) & !mask | new & mask).to_le_bytes());
        }
    }
}

/// What the graphics controller makes of a byte and the latches, one byte a plane.
fn combine(regs: &Regs, value: u8) -> u32 {
    let everywhere = |byte: u8| u32::from_le_bytes([byte; 4]);
    let rotated = value.rotate_right(u32::from(regs.gr[gfx::ROTATE] & 7));
    let (data, bits) = match regs.gr[gfx::MODE] & 3 {
        0 => {
            let set = spread(regs.gr[gfx::ENABLE_SET_RESET]);
            (everywhere(rotated) & !set | spread(regs.gr[gfx::SET_RESET]) & set, regs.gr[gfx::BIT_MASK])
        }
        1 => return regs.latch,
        2 => (spread(value & 0x0f), regs.gr[gfx::BIT_MASK]),
        _ => (spread(regs.gr[gfx::SET_RESET]), regs.gr[gfx::BIT_MASK] & rotated),
    };
    let data = match regs.gr[gfx::ROTATE] >> 3 & 3 {
        0 => data,
        1 => data & regs.latch,
        2 => data | regs.latch,
        _ => data ^ regs.latch,
    };
    let bits = everywhere(bits);
    data & bits | regs.latch & !bits
}
