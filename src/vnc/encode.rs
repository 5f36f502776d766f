//! Rectangles of pixels on the wire (RFC 6143, 7.7): raw and ZRLE.

use flate2::{Compress, Compression, FlushCompress};

use crate::pixel::PixelFormat;
use crate::screen::{Picture, Rect};

/// Numbers of encodings that are known here; those below zero are announcements.
pub mod encoding {
    pub const RAW: i32 = 0;
    pub const ZRLE: i32 = 16;
    /// The viewer follows when the screen's size changes (7.8.2).
    pub const DESKTOP_SIZE: i32 = -223;
    /// It is told whether positions or movements are wanted (QEMU's).
    pub const POINTER_CHANGE: i32 = -257;
    /// It sends the codes of keys (QEMU's).
    pub const EXTENDED_KEYS: i32 = -258;
}

/// A side of ZRLE's tiles.
const TILE: usize = 64;
/// More colours are not looked for.
const COLOURS: usize = 16;

/// Appends a rectangle's header.
pub fn header(rect: Rect, encoding: i32, out: &mut Vec<u8>) {
    for value in [rect.x, rect.y, rect.width, rect.height] {
        out.extend(value.to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

/// Appends a rectangle as it is. It lies within the picture.
pub fn raw(picture: &Picture, rect: Rect, format: &PixelFormat, out: &mut Vec<u8>) {
    header(rect, encoding::RAW, out);
    for_each(picture, rect, |colour| format.put(format.value(colour), out));
}

fn for_each(picture: &Picture, rect: Rect, mut f: impl FnMut([u8; 3])) {
    for y in usize::from(rect.y)..usize::from(rect.y) + usize::from(rect.height) {
        let at = (y * picture.width + usize::from(rect.x)) * 3;
        for pixel in picture.rgb[at..at + usize::from(rect.width) * 3].chunks_exact(3) {
            f([pixel[0], pixel[1], pixel[2]]);
        }
    }
}

/// A viewer's ZRLE stream.
pub struct Zrle {
    stream: Compress,
    plain: Vec<u8>,
}

impl Default for Zrle {
    fn default() -> Self {
        Self { stream: Compress::new(Compression::fast(), true), plain: Vec::new() }
    }
}

impl Zrle {
    /// Appends a rectangle. It lies within the picture.
    pub fn rectangle(&mut self, picture: &Picture, rect: Rect, format: &PixelFormat, out: &mut Vec<u8>) {
        header(rect, encoding::ZRLE, out);
        self.plain.clear();
        for y in (0..rect.height).step_by(TILE) {
            for x in (0..rect.width).step_by(TILE) {
                let tile = Rect {
                    x: rect.x + x,
                    y: rect.y + y,
                    width: (rect.width - x).min(TILE as u16),
                    height: (rect.height - y).min(TILE as u16),
                };
                put_tile(picture, tile, format, &mut self.plain);
            }
        }
        let length_at = out.len();
        out.extend([0; 4]);
        self.compress(out);
        let length = (out.len() - length_at - 4) as u32;
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn compress(&mut self, out: &mut Vec<u8>) {
        let begin = self.stream.total_in();
        loop {
            out.reserve(self.plain.len() / 4 + 1024);
            let done = (self.stream.total_in() - begin) as usize;
            // It cannot fail: the stream is never finished, and has no dictionary.
            let _ = self.stream.compress_vec(&self.plain[done..], out, FlushCompress::Sync);
            // Room that is left means that all has come out.
            if out.len() < out.capacity() {
                return;
            }
        }
    }
}

fn put_tile(picture: &Picture, tile: Rect, format: &PixelFormat, out: &mut Vec<u8>) {
    let mut colours: Vec<[u8; 3]> = Vec::with_capacity(COLOURS + 1);
    let mut last = None;
    for_each(picture, tile, |colour| {
        if last != Some(colour) && colours.len() <= COLOURS && !colours.contains(&colour) {
            colours.push(colour);
        }
        last = Some(colour);
    });
    let bits = match colours.len() {
        1 => {
            out.push(1);
            return format.put_compressed(format.value(colours[0]), out);
        }
        2 => 1,
        3..=4 => 2,
        5..=COLOURS => 4,
        _ => {
            out.push(0);
            return for_each(picture, tile, |colour| format.put_compressed(format.value(colour), out));
        }
    };
    out.push(colours.len() as u8);
    colours.iter().for_each(|colour| format.put_compressed(format.value(*colour), out));
    for y in 0..tile.height {
        let (mut byte, mut filled) = (0u8, 0);
        for_each(picture, Rect { y: tile.y + y, height: 1, ..tile }, |colour| {
            let index = colours.iter().position(|c| *c == colour).unwrap_or(0) as u8;
            byte = byte << bits | index;
            filled += bits;
            if filled == 8 {
                out.push(byte);
                (byte, filled) = (0, 0);
            }
        });
        if filled != 0 {
            out.push(byte << (8 - filled));
        }
    }
}
