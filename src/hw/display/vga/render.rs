//! What is on the screen: text with the guest's font, planar, packed and VBE graphics.

use lockstep_memory::RamBlock;

use super::regs::{Regs, gfx, seq, vbe};
use crate::display::Image;

type Rgb = [u8; 3];

/// Larger pictures than any mode of this memory has are not drawn.
const MOST_PIXELS: usize = 64 << 20;

/// Draws what the registers show of the video memory.
pub fn render(regs: &Regs, vram: &RamBlock) -> Image {
    const PALETTE_ENABLED: u8 = 0x20;
    const GRAPHICS: u8 = 0x01;
    let (width, height) = size(regs);
    if width == 0 || height == 0 || width * height > MOST_PIXELS {
        return Image::black(640, 480);
    }
    if regs.ar_index & PALETTE_ENABLED == 0 {
        Image::black(width, height)
    } else if regs.gr[gfx::MISC] & GRAPHICS == 0 {
        text(regs, vram)
    } else {
        graphics(regs, vram, width, height)
    }
}

/// Lines that the CRTC displays.
fn crtc_height(regs: &Regs) -> usize {
    let cr = |n: usize| usize::from(regs.cr[n]);
    (cr(0x12) | (cr(7) & 0x02) << 7 | (cr(7) & 0x40) << 3) + 1
}

fn size(regs: &Regs) -> (usize, usize) {
    if regs.vbe_on() {
        return (regs.vbe[vbe::XRES].into(), regs.vbe[vbe::YRES].into());
    }
    if regs.gr[gfx::MISC] & 1 == 0 {
        let cell = cell(regs);
        let (columns, rows) = text_size(regs, cell.1);
        return (columns * cell.0, rows * cell.1);
    }
    ((usize::from(regs.cr[1]) + 1) * 8, crtc_height(regs))
}

/// The three bytes of a palette entry.
fn colour(regs: &Regs, n: usize) -> Rgb {
    let entry = &regs.palette[(n & 0xff) * 3..][..3];
    let widen = |v: u8| {
        let v = v & 0x3f;
        v << 2 | (v & 1) << 1 | v & 1
    };
    std::array::from_fn(|i| if regs.dac_8bit() { entry[i] } else { widen(entry[i]) })
}

/// The sixteen colours of text and planar modes, through the attribute controller.
fn colours16(regs: &Regs) -> [Rgb; 16] {
    const SELECT_ALL: u8 = 0x80;
    std::array::from_fn(|i| {
        let (v, select) = (regs.ar[i], regs.ar[0x14]);
        let n = match regs.ar[0x10] & SELECT_ALL {
            0 => (select & 0x0c) << 4 | v & 0x3f,
            _ => (select & 0x0f) << 4 | v & 0x0f,
        };
        colour(regs, n.into())
    })
}

/// Width and height of a character.
fn cell(regs: &Regs) -> (usize, usize) {
    let width = match (regs.seq(seq::CLOCKING) & 0x08 != 0, regs.seq(seq::CLOCKING) & 0x01 != 0) {
        (true, _) => 16,
        (_, true) => 8,
        _ => 9,
    };
    (width, usize::from(regs.cr[9] & 0x1f) + 1)
}

fn text_size(regs: &Regs, cell_height: usize) -> (usize, usize) {
    const CGA_100_LINES: u8 = 100;
    let rows = if regs.cr[6] == CGA_100_LINES { 100 } else { crtc_height(regs) / cell_height };
    (usize::from(regs.cr[1]) + 1, rows)
}

fn start_address(regs: &Regs) -> usize {
    usize::from(regs.cr[0x0c]) << 8 | usize::from(regs.cr[0x0d])
}

fn read(vram: &RamBlock, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let have = (vram.size() as usize).saturating_sub(at).min(len);
    let _ = vram.read(at as u64, &mut bytes[..have]);
    bytes
}

/// The characters on the screen, row by row; `None` in a graphics mode.
pub fn text_rows(regs: &Regs, vram: &RamBlock) -> Option<Vec<Vec<u8>>> {
    if regs.gr[gfx::MISC] & 1 != 0 || regs.vbe_on() {
        return None;
    }
    let (columns, rows) = text_size(regs, cell(regs).1);
    let line = usize::from(regs.cr[0x13]) << 3;
    let row =
        |y: usize| read(vram, start_address(regs) * 4 + y * line, columns * 4).iter().step_by(4).copied().collect();
    Some((0..rows).map(row).collect())
}

fn text(regs: &Regs, vram: &RamBlock) -> Image {
    let (cell_width, cell_height) = cell(regs);
    let (columns, rows) = text_size(regs, cell_height);
    let mut image = Image::black(columns * cell_width, rows * cell_height);
    let colours = colours16(regs);
    let line = usize::from(regs.cr[0x13]) << 3;
    let map = usize::from(regs.seq(seq::CHARACTER_MAP));
    // A font is 256 characters of 32 lines in plane 2.
    let font_at = |n: usize| n * 8192 * 4;
    let fonts =
        [font_at(map >> 4 & 1 | map << 1 & 6), font_at(map >> 5 & 1 | map >> 1 & 6)].map(|at| read(vram, at, 8192 * 4));
    const LINE_GRAPHICS: u8 = 0x04;
    let joined = regs.ar[0x10] & LINE_GRAPHICS != 0;
    for y in 0..rows {
        let cells = read(vram, start_address(regs) * 4 + y * line, columns * 4);
        for (x, cell) in cells.chunks_exact(4).enumerate() {
            let (character, attribute) = (cell[0], cell[1]);
            let font = &fonts[usize::from(attribute >> 3 & 1)];
            let pair = [colours[usize::from(attribute >> 4)], colours[usize::from(attribute & 0x0f)]];
            for dy in 0..cell_height {
                let bits = font[(usize::from(character) * 32 + dy) * 4 + 2];
                for dx in 0..cell_width {
                    let on = match (cell_width, dx) {
                        (16, _) => bits >> (7 - dx / 2) & 1,
                        // The ninth column of line graphics repeats the eighth.
                        (_, 8) => u8::from(joined && (0xc0..=0xdf).contains(&character)) & bits,
                        _ => bits >> (7 - dx) & 1,
                    };
                    image.set(x * cell_width + dx, y * cell_height + dy, pair[usize::from(on)]);
                }
            }
        }
    }
    draw_cursor(regs, vram, &mut image, (cell_width, cell_height), (columns, rows), &colours);
    image
}

fn draw_cursor(
    regs: &Regs,
    vram: &RamBlock,
    image: &mut Image,
    cell: (usize, usize),
    (columns, rows): (usize, usize),
    colours: &[Rgb; 16],
) {
    const OFF: u8 = 0x20;
    let line = usize::from(regs.cr[0x13]) << 1;
    let at = usize::from(regs.cr[0x0e]) << 8 | usize::from(regs.cr[0x0f]);
    let Some(offset) = at.checked_sub(start_address(regs)).filter(|_| regs.cr[0x0a] & OFF == 0 && line > 0) else {
        return;
    };
    let (x, y) = (offset % line, offset / line);
    if x >= columns || y >= rows {
        return;
    }
    let attribute = read(vram, at * 4, 4)[1];
    let (first, last) = (usize::from(regs.cr[0x0a] & 0x1f), usize::from(regs.cr[0x0b] & 0x1f));
    for dy in first..(last + 1).min(cell.1) {
        for dx in 0..cell.0 {
            image.set(x * cell.0 + dx, y * cell.1 + dy, colours[usize::from(attribute & 0x0f)]);
        }
    }
}

/// How a line's bytes become pixels.
#[derive(Clone, Copy, PartialEq)]
enum Pixels {
    /// A bit of each plane.
    Planar,
    /// Two bits from pairs of planes, as CGA has them.
    Cga,
    /// A byte a pixel, of which each is shown twice.
    PackedTwice,
    /// Whole pixels of so many bits.
    Packed(u16),
}

fn graphics(regs: &Regs, vram: &RamBlock, width: usize, height: usize) -> Image {
    let (line, start) = match regs.vbe_on() {
        true => (regs.vbe_line as usize, regs.vbe_start as usize),
        false => (usize::from(regs.cr[0x13]) << 3, start_address(regs)),
    };
    let split = match regs.vbe_on() {
        true => usize::MAX,
        false => {
            let cr = |n: usize| usize::from(regs.cr[n]);
            cr(0x18) | (cr(7) & 0x10) << 4 | (cr(9) & 0x40) << 3
        }
    };
    let shift = regs.gr[gfx::MODE] >> 5 & 3;
    let double_dots = regs.seq(seq::CLOCKING) & 0x08 != 0 && shift < 2;
    let pixels = match (shift, regs.vbe_on()) {
        (0, _) => Pixels::Planar,
        (1, _) => Pixels::Cga,
        (_, false) => Pixels::PackedTwice,
        (_, true) => Pixels::Packed(regs.vbe[vbe::BPP]),
    };
    let doubled = u32::from(regs.cr[9] >> 7);
    let repeat = if shift == 1 { doubled as usize } else { ((usize::from(regs.cr[9] & 0x1f) + 1) << doubled) - 1 };
    let scale = if double_dots { 2 } else { 1 };
    let mut image = Image::black(width * scale, height);
    let (colours, all) = (colours16(regs), std::array::from_fn::<_, 256, _>(|i| colour(regs, i)));
    let planes = usize::from(regs.ar[0x12] & 0x0f);
    let bytes = match pixels {
        Pixels::Planar | Pixels::Cga => width.div_ceil(8) * 4,
        Pixels::PackedTwice => width.div_ceil(2),
        Pixels::Packed(bits) => width * usize::from(bits).next_multiple_of(8) / 8,
    };
    let (mut at, mut source_y, mut left) = (start * 4, 0, repeat);
    for y in 0..height {
        let data = read(vram, interleaved(regs, at, source_y), bytes);
        for x in 0..width {
            let pixel = match pixels {
                Pixels::Planar => {
                    let cell = &data[x / 8 * 4..][..4];
                    let bit = |p: usize| usize::from(cell[p] >> (7 - x % 8) & 1) << p;
                    colours[(bit(0) | bit(1) | bit(2) | bit(3)) & planes]
                }
                Pixels::Cga => {
                    let cell = &data[x / 8 * 4..][..4];
                    let (pair, at) = (x % 8 / 4, 6 - x % 4 * 2);
                    let two = |p: usize| usize::from(cell[p] >> at & 3) & if planes >> p & 1 != 0 { 3 } else { 0 };
                    colours[two(pair) | two(pair + 2) << 2]
                }
                Pixels::PackedTwice => all[usize::from(data[x / 2])],
                Pixels::Packed(bits) => packed(&data, x, bits, &all),
            };
            (0..scale).for_each(|i| image.set(x * scale + i, y, pixel));
        }
        if left == 0 {
            let mask = usize::from(regs.cr[0x17] & 3 ^ 3);
            if source_y & mask == mask {
                at += line;
            }
            source_y += 1;
            left = repeat;
        } else {
            left -= 1;
        }
        if y == split {
            at = 0;
        }
    }
    image
}

/// The address of a line in modes that keep odd and even lines apart.
fn interleaved(regs: &Regs, at: usize, y: usize) -> usize {
    let mut at = at;
    if regs.cr[0x17] & 1 == 0 {
        let shift = 14 + usize::from(regs.cr[0x17] >> 6 & 1);
        at = at & !(1 << shift) | (y & 1) << shift;
    }
    if regs.cr[0x17] & 2 == 0 {
        at = at & !0x8000 | (y & 2) << 14;
    }
    at
}

fn packed(data: &[u8], x: usize, bits: u16, all: &[Rgb; 256]) -> Rgb {
    let wide = |v: u16, bits: u32| {
        let v = v << (8 - bits);
        (v | v >> bits) as u8
    };
    match bits {
        15 => {
            let v = u16::from_le_bytes([data[2 * x], data[2 * x + 1]]);
            [wide(v >> 10 & 31, 5), wide(v >> 5 & 31, 5), wide(v & 31, 5)]
        }
        16 => {
            let v = u16::from_le_bytes([data[2 * x], data[2 * x + 1]]);
            [wide(v >> 11, 5), wide(v >> 5 & 63, 6), wide(v & 31, 5)]
        }
        24 => [data[3 * x + 2], data[3 * x + 1], data[3 * x]],
        32 => [data[4 * x + 2], data[4 * x + 1], data[4 * x]],
        _ => all[usize::from(data[x])],
    }
}
