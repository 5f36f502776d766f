//! What IDENTIFY (PACKET) DEVICE answers (ATA8-ACS 7.12, ATA/ATAPI-7 volume 1).

use super::{
    drive::{Drive, DriveConfig, DriveKind},
    regs::MAX_MULTIPLE,
};

const MULTIWORD_DMA: usize = 62;

impl Drive {
    /// The 512 bytes. What SET FEATURES changes stays until the disk is made anew.
    pub fn identify(&mut self) -> Vec<u8> {
        if let Some(config) = &self.config
            && !std::mem::replace(&mut self.identify_set, true)
        {
            let words = match config.kind {
                DriveKind::Disk => disk(config, self.heads, self.track, self.multiple),
                DriveKind::Cd => cd(config),
            };
            for (bytes, word) in self.identify.chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        self.identify.to_vec()
    }

    fn set_word(&mut self, at: usize, value: u16) {
        self.identify[at * 2..at * 2 + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Shows the write cache as on or off.
    pub fn set_write_cache(&mut self, on: bool) {
        if let Some(config) = &mut self.config {
            config.write_cache = on;
        }
        self.set_word(85, features_enabled(on));
    }

    /// Selects a transfer mode (SET FEATURES 03h). False when there is no such mode.
    pub fn set_transfer_mode(&mut self, mode: u8) -> bool {
        let selected = 1 << (8 + (mode & 7));
        let (single, multi, ultra) = match mode >> 3 {
            0 | 1 => (0, 0, 0),
            2 => (selected, 0, 0),
            4 => (0, selected, 0),
            8 => (0, 0, selected),
            _ => return false,
        };
        self.set_word(MULTIWORD_DMA, 0x07 | single);
        self.set_word(63, 0x07 | multi);
        self.set_word(88, 0x3f | ultra);
        true
    }

    /// Shows a new capacity.
    pub fn resized(&mut self) {
        let sectors = self.sectors();
        if self.identify_set {
            self.set_word(60, capacity28(sectors) as u16);
            self.set_word(61, (capacity28(sectors) >> 16) as u16);
            for i in 0..4 {
                self.set_word(100 + i, (sectors >> (16 * i)) as u16);
            }
        }
    }
}

fn features_enabled(write_cache: bool) -> u16 {
    1 << 14 | u16::from(write_cache) << 5 | 1
}

/// Sectors that 28 bits can count.
fn capacity28(sectors: u64) -> u64 {
    sectors.min(0x0fff_ffff)
}

/// Two characters a word, the first one high, padded with spaces.
fn put_text(words: &mut [u16], text: &str) {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    for word in words {
        *word = u16::from_be_bytes([bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')]);
    }
}

fn common(config: &DriveConfig) -> [u16; 256] {
    let mut w = [0; 256];
    put_text(&mut w[10..20], &config.serial);
    w[20..23].copy_from_slice(&[3, 512, 4]);
    put_text(&mut w[23..27], &config.version);
    put_text(&mut w[27..47], &config.model);
    w[48] = 1;
    w[53] = 7;
    w[62..65].copy_from_slice(&[7, 7, 3]);
    w[88] = 0x3f | 1 << 13;
    w
}

fn disk(config: &DriveConfig, heads: u32, track: u32, multiple: u8) -> [u16; 256] {
    let mut w = common(config);
    let (cylinders, heads, track) = (config.geometry.cylinders as u16, heads as u16, track as u16);
    w[0] = 0x0040;
    w[1] = cylinders;
    w[3] = heads;
    w[4] = track.wrapping_mul(512);
    w[5] = 512;
    w[6] = track;
    w[47] = 0x8000 | u16::from(MAX_MULTIPLE);
    // IORDY, LBA, DMA
    w[49] = 1 << 11 | 1 << 9 | 1 << 8;
    w[51..53].fill(0x200);
    w[54..57].copy_from_slice(&[cylinders, heads, track]);
    let old = u32::from(cylinders).wrapping_mul(u32::from(heads)).wrapping_mul(u32::from(track));
    w[57..59].copy_from_slice(&[old as u16, (old >> 16) as u16]);
    if multiple > 0 {
        w[59] = 0x100 | u16::from(multiple);
    }
    let small = capacity28(config.sectors);
    w[60..62].copy_from_slice(&[small as u16, (small >> 16) as u16]);
    w[65..69].fill(120);
    // ATA-4 to ATA-7
    w[80..82].copy_from_slice(&[0xf0, 0x16]);
    // NOP, write cache, SMART; flushes and 48-bit addresses
    w[82] = 1 << 14 | 1 << 5 | 1;
    w[83] = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10;
    let wwn = if config.wwn != 0 { 1 << 8 } else { 0 };
    w[84] = 1 << 14 | wwn;
    w[85] = features_enabled(config.write_cache);
    w[86] = 1 << 13 | 1 << 12 | 1 << 10;
    w[87] = 1 << 14 | wwn;
    w[93] = 1 << 14 | 1 << 13 | 1;
    for (i, word) in w[100..104].iter_mut().enumerate() {
        *word = (config.sectors >> (16 * i)) as u16;
    }
    w[106] = 0x6000 | u16::from(config.physical_exponent);
    for (i, word) in w[108..112].iter_mut().enumerate() {
        *word = (config.wwn >> (48 - 16 * i)) as u16;
    }
    if config.discard {
        w[69] = 1 << 14;
        w[169] = 1;
    }
    w[217] = config.rotation_rate;
    w
}

fn cd(config: &DriveConfig) -> [u16; 256] {
    let mut w = common(config);
    // Removable CD-ROM, 12-byte packets, DRQ within 50 us
    w[0] = 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5;
    // LBA, DMA
    w[49] = 1 << 9 | 1 << 8;
    w[65..69].copy_from_slice(&[0xb4, 0xb4, 0x12c, 0xb4]);
    w[71..73].fill(30);
    w[80] = 0x1e;
    if config.wwn != 0 {
        w[84] = 1 << 8;
        w[87] = 1 << 8;
    }
    w
}
