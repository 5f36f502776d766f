//! A guest small enough to be a firmware image: it runs from the first instruction on, with any engine.

use std::path::Path;

const LISTING: &str = include_str!("guest.txt");

/// Writes the image.
pub fn write(path: &Path) {
    let digits: String = LISTING
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(';').next().unwrap_or_default().trim())
        .collect();
    let mut image = vec![0; 0x1_0000];
    for (byte, pair) in image.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("hexadecimal");
    }
    // A CPU begins here: a far jump to F000:0000.
    image[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    std::fs::write(path, image).expect("an image");
}

/// The numbers that a guest has written; what is not complete yet is left out.
pub fn numbers(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once(' ').map_or("", |(whole, _)| whole);
    whole.split(' ').filter(|n| !n.is_empty()).map(|n| u64::from_str_radix(n, 16).expect("a number")).collect()
}
