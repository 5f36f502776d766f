//! Pixel formats (RFC 6143, 7.4).

/// How a viewer wants its pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    bytes: usize,
    depth: u8,
    big_endian: bool,
    max: [u16; 3],
    shift: [u8; 3],
    /// Pixels are indices of a palette that the viewer has to be told first.
    pub palette: bool,
}

impl PixelFormat {
    /// The one that a server offers: 32 bits, the lowest of which are blue.
    pub const NATIVE: Self =
        Self { bytes: 4, depth: 24, big_endian: false, max: [255; 3], shift: [16, 8, 0], palette: false };
    /// The colours of a viewer that has a palette: three bits of red, three of green, two of blue.
    const PALETTE: Self =
        Self { bytes: 1, depth: 8, big_endian: false, max: [7, 7, 3], shift: [0, 3, 6], palette: true };

    /// Reads the 16 bytes of a format; nothing where they make no sense.
    pub fn parse(b: &[u8; 16]) -> Option<Self> {
        if b[3] == 0 {
            return (b[0] == 8).then_some(Self::PALETTE);
        }
        let bytes = match b[0] {
            8 => 1,
            16 => 2,
            32 => 4,
            _ => return None,
        };
        let max = [4, 6, 8].map(|at| u16::from_be_bytes([b[at], b[at + 1]]));
        let shift = [b[10], b[11], b[12]];
        let fits = |(max, shift): (&u16, &u8)| {
            let bits = u32::from(*shift) + (16 - max.leading_zeros());
            *max != 0 && bits <= 8 * bytes as u32
        };
        let format = Self { bytes, depth: b[1], big_endian: b[2] != 0, max, shift, palette: false };
        max.iter().zip(&shift).all(fits).then_some(format)
    }

    /// The 16 bytes of a format.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut b = [0; 16];
        b[0] = 8 * self.bytes as u8;
        b[1] = self.depth;
        b[2] = self.big_endian.into();
        b[3] = (!self.palette).into();
        for (at, max) in [4, 6, 8].into_iter().zip(self.max) {
            b[at..at + 2].copy_from_slice(&max.to_be_bytes());
        }
        b[10..13].copy_from_slice(&self.shift);
        b
    }

    /// A colour's value.
    #[inline]
    pub fn value(&self, rgb: [u8; 3]) -> u32 {
        let part = |i: usize| {
            let max = u32::from(self.max[i]);
            let level = if max == 255 { rgb[i].into() } else { (u32::from(rgb[i]) * max + 127) / 255 };
            level << self.shift[i]
        };
        part(0) | part(1) | part(2)
    }

    /// Appends a pixel.
    #[inline]
    pub fn put(&self, value: u32, out: &mut Vec<u8>) {
        let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
        out.extend_from_slice(if self.big_endian { &big[4 - self.bytes..] } else { &little[..self.bytes] });
    }

    /// Appends a pixel as ZRLE has it: of four bytes whose colours fit three, these three (7.7.5).
    #[inline]
    pub fn put_compressed(&self, value: u32, out: &mut Vec<u8>) {
        let used = self.max.iter().zip(self.shift).fold(0, |all, (max, shift)| all | u32::from(*max) << shift);
        let at = out.len();
        self.put(value, out);
        if self.bytes != 4 || self.depth > 24 {
            return;
        }
        if used & 0xff00_0000 == 0 {
            out.remove(if self.big_endian { at } else { at + 3 });
        } else if used & 0xff == 0 {
            out.remove(if self.big_endian { at + 3 } else { at });
        }
    }

    /// The message that tells a viewer the palette (7.6.2).
    pub fn palette_message(&self) -> Vec<u8> {
        let mut message = vec![1, 0, 0, 0, 1, 0];
        for index in 0..256u32 {
            for i in 0..3 {
                let max = u32::from(self.max[i]);
                let level = (index >> self.shift[i] & max) * 0xffff / max;
                message.extend((level as u16).to_be_bytes());
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u8, depth: u8, big: u8, max: [u16; 3], shift: [u8; 3]) -> Option<PixelFormat> {
        let mut b = [0; 16];
        b[..4].copy_from_slice(&[bits, depth, big, 1]);
        for (i, max) in max.into_iter().enumerate() {
            b[4 + 2 * i..6 + 2 * i].copy_from_slice(&max.to_be_bytes());
        }
        b[10..13].copy_from_slice(&shift);
        PixelFormat::parse(&b)
    }

    fn bytes(format: PixelFormat, rgb: [u8; 3]) -> (Vec<u8>, Vec<u8>) {
        let (mut plain, mut compressed) = (vec![], vec![]);
        format.put(format.value(rgb), &mut plain);
        format.put_compressed(format.value(rgb), &mut compressed);
        (plain, compressed)
    }

    #[test]
    fn colours_go_where_the_viewer_wants_them() {
        let colour = [0x12, 0x80, 0xff];
        assert_eq!(bytes(PixelFormat::NATIVE, colour), (vec![0xff, 0x80, 0x12, 0], vec![0xff, 0x80, 0x12]));
        let big = format(32, 24, 1, [255; 3], [16, 8, 0]).unwrap();
        assert_eq!(bytes(big, colour), (vec![0, 0x12, 0x80, 0xff], vec![0x12, 0x80, 0xff]));
        let high = format(32, 24, 0, [255; 3], [24, 16, 8]).unwrap();
        assert_eq!(bytes(high, colour), (vec![0, 0xff, 0x80, 0x12], vec![0xff, 0x80, 0x12]));
        let short = format(16, 16, 0, [31, 63, 31], [11, 5, 0]).unwrap();
        let (plain, compressed) = bytes(short, colour);
        assert_eq!((u16::from_le_bytes([plain[0], plain[1]]), plain), (2 << 11 | 32 << 5 | 31, compressed));
        assert_eq!(PixelFormat::parse(&PixelFormat::NATIVE.to_bytes()), Some(PixelFormat::NATIVE));
    }

    #[test]
    fn formats_that_make_no_sense_are_refused() {
        assert_eq!(format(24, 24, 0, [255; 3], [16, 8, 0]), None);
        assert_eq!(format(32, 24, 0, [255, 0, 255], [16, 8, 0]), None);
        assert_eq!(format(32, 24, 0, [255; 3], [25, 8, 0]), None);
        assert_eq!(format(8, 8, 0, [255; 3], [0, 0, 255]), None);
        assert_eq!(PixelFormat::parse(&[32, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_palette_spans_all_colours() {
        let message = PixelFormat::PALETTE.palette_message();
        assert_eq!(message.len(), 6 + 256 * 6);
        assert_eq!((&message[6..12], &message[message.len() - 6..]), (&[0; 6][..], &[0xff; 6][..]));
    }
}
