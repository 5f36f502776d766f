//! Starting a Linux kernel without a boot loader: the pieces that the option ROM `linuxboot_dma.bin` puts together (Linux/x86 boot
//! protocol, `Documentation/arch/x86/boot.rst`).

use std::{
    fs::File,
    io::{self, Read},
};

use lockstep_util::{Error, Result, bail, err};

use super::{BootEntry, KernelConfig, PcConfig};
use crate::{
    core::Board,
    fw_cfg::{FwCfg, key},
};

const OPTION_ROM: &str = "linuxboot_dma.bin";
/// Larger files than this are no kernels and no initial RAM disks.
const LARGEST_FILE: u64 = 2 << 30;
const SECTOR: usize = 512;

/// Offsets in the header.
const SETUP_SECTORS: usize = 0x1f1;
const VIDEO_MODE: usize = 0x1fa;
const MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const LOADER: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const INITRD_ADDRESS: usize = 0x218;
const INITRD_SIZE: usize = 0x21c;
const HEAP_END: usize = 0x224;
const COMMAND_LINE: usize = 0x228;
const INITRD_MAX: usize = 0x22c;

const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
/// A loader without a number of its own; QEMU's is 0xb0.
const LOADER_TYPE: u8 = 0xb0;

/// Where the pieces go.
const REAL_MODE: u32 = 0x1_0000;
const COMMAND_LINE_ADDRESS: u32 = 0x2_0000;
const PROTECTED_MODE: u32 = 0x10_0000;
const DEFAULT_INITRD_MAX: u32 = 0x37ff_ffff;
/// Firmware keeps its tables at the end of RAM.
const TABLES: u64 = 0x2_0000 + 0x8000;

/// QEMU's code for PCs prints its errors by itself, with this name.
const SPEAKER: &str = "qemu";

fn check_length(file: &File, what: &str, path: &str) -> Result<()> {
    if file.metadata().is_ok_and(|m| m.len() > LARGEST_FILE) {
        bail!("{what} file '{path}' is too large");
    }
    Ok(())
}

fn read_kernel(path: &str) -> Result<Vec<u8>> {
    let mut file =
        File::open(path).map_err(|e| Error::with_errno(format!("could not open kernel file '{path}'"), &e))?;
    check_length(&file, "kernel", path)?;
    let failed = |e: &io::Error| Error::with_errno(format!("could not load kernel '{path}'"), e);
    let mut image = vec![];
    file.read_to_end(&mut image).map_err(|e| failed(&e))?;
    if image.is_empty() {
        // What QEMU takes for the reason: what it did before.
        return Err(failed(&io::Error::from_raw_os_error(libc::ENOENT)));
    }
    Ok(image)
}

/// Reads the initial RAM disk. The words are those of GLib's mapped files.
fn read_initrd(path: &str) -> Result<Vec<u8>> {
    let error = |text: String, e: &io::Error| Error::with_errno(format!("error reading initrd {path}: {text}"), e);
    let mut file = File::open(path)
        .map_err(|e| error(format!("Failed to open file \u{201c}{path}\u{201d}: open() failed"), &e))?;
    check_length(&file, "initrd", path)?;
    let mut image = vec![];
    match file.metadata() {
        Ok(m) if m.is_dir() => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        _ => file.read_to_end(&mut image),
    }
    .map_err(|e| error(format!("Failed to map {path}' {path}': mmap() failed"), &e))?;
    Ok(image)
}

struct Header<'a>(&'a mut [u8]);

impl Header<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.0[at + i]))
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Puts kernel, initial RAM disk and command line into fw_cfg. Returns what to boot first.
///
/// # Errors
/// When a file cannot be read, is no kernel, or does not fit in RAM.
pub(super) fn load(board: &Board, fw_cfg: &FwCfg, config: &PcConfig, kernel: &KernelConfig) -> Result<BootEntry> {
    let mut image = read_kernel(&kernel.image).map_err(|e| e.said_by(SPEAKER))?;
    if image.len() < 0x400 || image[MAGIC..MAGIC + 4] != *b"HdrS" {
        return Err(err!("invalid kernel header").said_by(SPEAKER));
    }
    let setup_sectors = match image[SETUP_SECTORS] {
        0 => 4,
        n => usize::from(n),
    };
    let setup_size = (setup_sectors + 1) * SECTOR;
    if image.len() <= setup_size {
        return Err(err!("invalid kernel header").said_by(SPEAKER));
    }
    let protected = image.split_off(setup_size);
    let mut header = Header(&mut image);
    let protocol = header.u16(PROTOCOL);
    if protocol < 0x202 || header.0[LOAD_FLAGS] & LOADED_HIGH == 0 {
        bail!("kernel: the boot protocol {:#x} is too old", protocol);
    }
    let initrd_max = if protocol >= 0x203 { header.u32(INITRD_MAX) } else { DEFAULT_INITRD_MAX };
    let initrd_max = u64::from(initrd_max).min(config.below_4g().saturating_sub(TABLES));
    header.set(COMMAND_LINE, &COMMAND_LINE_ADDRESS.to_le_bytes());
    if let Some(mode) = video_mode(&kernel.command_line) {
        header.set(VIDEO_MODE, &mode.to_le_bytes());
    }
    header.set(LOADER, &[LOADER_TYPE]);
    let flags = header.0[LOAD_FLAGS] | CAN_USE_HEAP;
    header.set(LOAD_FLAGS, &[flags]);
    header.set(HEAP_END, &((COMMAND_LINE_ADDRESS - REAL_MODE - 0x200) as u16).to_le_bytes());
    if let Some(path) = &kernel.initrd {
        let initrd = read_initrd(path).map_err(|e| e.said_by(SPEAKER))?;
        let length = initrd.len() as u64;
        if length >= initrd_max {
            bail!("initrd is too large, cannot support.(max: {initrd_max}, need {length})");
        }
        let address = ((initrd_max - length) & !4095) as u32;
        header.set(INITRD_ADDRESS, &address.to_le_bytes());
        header.set(INITRD_SIZE, &(length as u32).to_le_bytes());
        fw_cfg.set_u32(key::INITRD_ADDRESS, address);
        fw_cfg.set_u32(key::INITRD_SIZE, length as u32);
        fw_cfg.set(key::INITRD_DATA, initrd);
    }
    let mut command_line = kernel.command_line.clone().into_bytes();
    command_line.push(0);
    fw_cfg.set_u32(key::COMMAND_LINE_ADDRESS, COMMAND_LINE_ADDRESS);
    fw_cfg.set_u32(key::COMMAND_LINE_SIZE, command_line.len() as u32);
    fw_cfg.set(key::COMMAND_LINE_DATA, command_line);
    fw_cfg.set_u32(key::KERNEL_ADDRESS, PROTECTED_MODE);
    fw_cfg.set_u32(key::KERNEL_SIZE, protected.len() as u32);
    fw_cfg.set(key::KERNEL_DATA, protected);
    fw_cfg.set_u32(key::SETUP_ADDRESS, REAL_MODE);
    fw_cfg.set_u32(key::SETUP_SIZE, image.len() as u32);
    fw_cfg.set(key::SETUP_DATA, image);
    let rom = board.firmware.read(OPTION_ROM).ok_or_else(|| err!("could not load '{OPTION_ROM}'"))??;
    fw_cfg.set_file(&format!("genroms/{OPTION_ROM}"), rom)?;
    Ok(BootEntry { index: 0, path: format!("/rom@genroms/{OPTION_ROM}") })
}

/// `vga=` of a command line.
fn video_mode(command_line: &str) -> Option<u16> {
    let value = command_line.split_ascii_whitespace().find_map(|w| w.strip_prefix("vga="))?;
    match value {
        "normal" => Some(0xffff),
        "ext" => Some(0xfffe),
        "ask" => Some(0xfffd),
        hex if hex.starts_with("0x") => u16::from_str_radix(&hex[2..], 16).ok(),
        number => number.parse().ok(),
    }
}
