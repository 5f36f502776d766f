//! What the display says of itself (VESA E-EDID 1.4, CTA-861-G): the preferred size, and common ones up to the largest allowed.

/// Where a size is listed.
#[derive(Clone, Copy)]
enum Listing {
    /// A bit of the established timings, by byte of the block.
    Bit(usize, u8),
    /// A bit of the third established timings' descriptor.
    Third(usize, u8),
    /// A standard timing.
    Standard([u8; 2]),
    /// A short video descriptor.
    Cta(u8),
}

use Listing::{Bit, Cta, Standard, Third};

/// Sizes in the order in which they are listed.
const SIZES: &[(u16, u16, Listing)] = &[
    (5120, 2160, Cta(125)),
    (4096, 2160, Cta(101)),
    (3840, 2160, Cta(96)),
    (2560, 1080, Cta(89)),
    (2048, 1152, Standard([0xe1, 0xc0])),
    (1920, 1080, Cta(31)),
    (1920, 1080, Standard([0xd1, 0xc0])),
    (3840, 2160, Cta(97)),
    (1920, 1440, Third(11, 0x20)),
    (1920, 1200, Standard([0xd1, 0x00])),
    (1856, 1392, Third(10, 0x08)),
    (1792, 1344, Third(10, 0x20)),
    (1600, 1200, Standard([0xa9, 0x40])),
    (1680, 1050, Standard([0xb3, 0x00])),
    (1440, 900, Standard([0x95, 0x00])),
    (1280, 1024, Standard([0x81, 0x80])),
    (1280, 960, Standard([0x81, 0x40])),
    (1400, 1050, Third(8, 0x02)),
    (1360, 768, Third(8, 0x80)),
    (1280, 768, Third(7, 0x40)),
    (1024, 768, Bit(36, 0x08)),
    (800, 600, Bit(35, 0x01)),
    (640, 480, Bit(35, 0x20)),
];

const STANDARD: usize = 38;
const DESCRIPTORS: [usize; 4] = [54, 72, 90, 108];
const CTA: usize = 128;

/// What the blocks are made of.
#[derive(Clone, Copy, Debug)]
pub struct Monitor {
    /// Preferred size.
    pub preferred: (u16, u16),
    /// Largest size; 0 for no limit.
    pub largest: (u16, u16),
    /// In thousandths of a hertz; 0 for 75 Hz.
    pub refresh: u32,
}

/// The two blocks, in the 384 bytes that the device shows.
pub fn blocks(monitor: &Monitor) -> [u8; 384] {
    let mut e = [0; 384];
    let (x, y) = (u32::from(monitor.preferred.0), u32::from(monitor.preferred.1));
    // At 100 dots an inch.
    let (wide_mm, high_mm) = (x * 254 / 1000, y * 254 / 1000);
    e[1..7].fill(0xff);
    // Manufacturer RHT, product 1234h, week 42 of 2014, version 1.4.
    e[8..12].copy_from_slice(&[0x49, 0x14, 0x34, 0x12]);
    e[16..20].copy_from_slice(&[42, 2014_u16.wrapping_sub(1990) as u8, 1, 4]);
    // Digital, eight bits a colour; size; gamma 2.2; sRGB with the preferred timing first; its chromaticity.
    e[20..25].copy_from_slice(&[0xa5, (wide_mm / 10) as u8, (high_mm / 10) as u8, 120, 0x06]);
    e[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    let refresh = if monitor.refresh == 0 { 75_000 } else { monitor.refresh };
    e[DESCRIPTORS[0]..][..18].copy_from_slice(&timing(x, y, refresh, wide_mm, high_mm));
    // Established timings III, version 10.
    e[DESCRIPTORS[1]..][..6].copy_from_slice(&[0, 0, 0, 0xf7, 0, 10]);
    // Range: 50 to 125 Hz, 30 to 160 kHz, 2550 MHz, no secondary formula.
    e[DESCRIPTORS[2]..][..18].copy_from_slice(b"\0\0\0\xfd\0\x32\x7d\x1e\xa0\xff\x01\x0a      ");
    e[DESCRIPTORS[3]..][..18].copy_from_slice(b"\0\0\0\xfc\0QEMU Monitor\x0a");
    // CTA-861 extension: video data block, then unused descriptors.
    e[CTA] = 2;
    e[CTA + 1] = 3;
    let (mut standard, mut short) = (STANDARD, CTA + 5);
    let (most_x, most_y) = monitor.largest;
    for &(x, y, listing) in SIZES {
        if most_x != 0 && x > most_x || most_y != 0 && y > most_y {
            continue;
        }
        match listing {
            Bit(at, bit) => e[at] |= bit,
            Third(at, bit) => e[DESCRIPTORS[1] + at] |= bit,
            Standard(bytes) => {
                e[standard..standard + 2].copy_from_slice(&bytes);
                standard += 2;
            }
            Cta(code) => {
                e[short] = code;
                short += 1;
            }
        }
    }
    while standard < DESCRIPTORS[0] {
        e[standard..standard + 2].fill(0x01);
        standard += 2;
    }
    e[CTA + 4] = 0x40 | (short - CTA - 5) as u8;
    e[CTA + 2] = (short - CTA) as u8;
    let mut at = short;
    while at + 18 < CTA + 127 {
        e[at + 3] = 0x10;
        at += 18;
    }
    e[126] = 1;
    for block in [0, CTA] {
        let sum = e[block..block + 127].iter().fold(0_u8, |a, b| a.wrapping_add(*b));
        e[block + 127] = sum.wrapping_neg();
    }
    e
}

/// A detailed timing descriptor, with margins in proportion to the size.
fn timing(x: u32, y: u32, refresh: u32, wide_mm: u32, high_mm: u32) -> [u8; 18] {
    let (x_front, x_sync, x_blank) = (x * 25 / 100, x * 3 / 100, x * 35 / 100);
    let (y_front, y_sync, y_blank) = (y * 5 / 1000, y * 5 / 1000, y * 35 / 1000);
    let clock = u64::from(refresh) * u64::from(x + x_blank) * u64::from(y + y_blank) / 10_000_000;
    let [clock_low, clock_high] = (clock.min(0xffff) as u16).to_le_bytes();
    let high = |a: u32, b: u32| ((a >> 8) << 4) as u8 | (b >> 8 & 0x0f) as u8;
    [
        clock_low,
        clock_high,
        x as u8,
        x_blank as u8,
        high(x, x_blank),
        y as u8,
        y_blank as u8,
        high(y, y_blank),
        x_front as u8,
        x_sync as u8,
        (y_front as u8) << 4 | y_sync as u8 & 0x0f,
        ((x_front >> 8 & 3) << 6 | (x_sync >> 8 & 3) << 4 | (y_front >> 4 & 3) << 2 | y_sync >> 4 & 3) as u8,
        wide_mm as u8,
        high_mm as u8,
        high(wide_mm, high_mm),
        0,
        0,
        // Digital separate sync.
        0x18,
    ]
}
