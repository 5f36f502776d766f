//! A picture of a screen, and the two formats that `screendump` writes.

use std::io::{self, Write};

use flate2::{Compression, Crc, write::ZlibEncoder};

/// A picture, three bytes a pixel: red, green, blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Rows from top to bottom, without padding.
    pub rgb: Vec<u8>,
}

impl Image {
    /// A black picture.
    pub fn black(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![0; width * height * 3] }
    }

    #[inline]
    pub(super) fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        let at = (y * self.width + x) * 3;
        if let Some(pixel) = self.rgb.get_mut(at..at + 3) {
            pixel.copy_from_slice(&colour);
        }
    }

    /// Rows from top to bottom.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.rgb.chunks_exact((self.width * 3).max(1))
    }

    /// Writes it as a binary portable pixmap (PPM, P6).
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_ppm(&self, mut to: impl Write) -> io::Result<()> {
        write!(to, "P6\n{} {}\n255\n", self.width, self.height)?;
        to.write_all(&self.rgb)
    }

    /// Writes it as PNG (ISO/IEC 15948), eight bits a channel.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_png(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(b"\x89PNG\r\n\x1a\n")?;
        let mut header = Vec::with_capacity(13);
        header.extend((self.width as u32).to_be_bytes());
        header.extend((self.height as u32).to_be_bytes());
        // Eight bits, true colour, the only methods there are, not interlaced.
        header.extend([8, 2, 0, 0, 0]);
        write_chunk(&mut to, b"IHDR", &header)?;
        let mut data = ZlibEncoder::new(Vec::new(), Compression::fast());
        for row in self.rows() {
            const NO_FILTER: u8 = 0;
            data.write_all(&[NO_FILTER])?;
            data.write_all(row)?;
        }
        write_chunk(&mut to, b"IDAT", &data.finish()?)?;
        write_chunk(&mut to, b"IEND", &[])
    }
}

fn write_chunk(to: &mut impl Write, name: &[u8; 4], data: &[u8]) -> io::Result<()> {
    let mut crc = Crc::new();
    crc.update(name);
    crc.update(data);
    to.write_all(&(data.len() as u32).to_be_bytes())?;
    to.write_all(name)?;
    to.write_all(data)?;
    to.write_all(&crc.sum().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_picture_comes_out_of_both_formats() {
        let mut image = Image::black(2, 2);
        image.set(1, 0, [1, 2, 3]);
        let mut ppm = vec![];
        image.write_ppm(&mut ppm).unwrap();
        assert_eq!(ppm, b"P6\n2 2\n255\n\0\0\0\x01\x02\x03\0\0\0\0\0\0");
        let mut png = vec![];
        image.write_png(&mut png).unwrap();
        let at = png.windows(4).position(|w| w == b"IDAT").unwrap() + 4;
        let mut data = vec![];
        flate2::read::ZlibDecoder::new(&png[at..]).read_to_end(&mut data).unwrap();
        assert_eq!(data, [0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0]);
    }
}
