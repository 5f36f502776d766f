//! Builds the guest and disk images that boot it.
//!
//! Layout of an image, in sectors of 512 bytes: 0 the boot sector with the image header, 1.. the kernel, from 32 MiB on the log of the
//! guest's key-value store.
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SECTOR: usize = 512;
const HEADER_AT: usize = 0x1a0;
const HEADER_MAGIC: &[u8; 8] = b"LSGUEST1";
const KERNEL_AT: u64 = 0x20000;
const BOOT_SECTOR_AT: u64 = 0x7c00;
const LOG_LBA: u32 = (32 << 20) / SECTOR as u32;
const LOG_SECTORS: u32 = (2u64 << 30) as u32 / SECTOR as u32;

/// What an image says about its guest.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// Virtual size of the disk in bytes: at least 3 GiB. In the COLO procedure all disks have 10 GiB.
    pub disk_bytes: u64,
    /// IPv4 address of the guest.
    pub address: [u8; 4],
    /// IPv4 address of its gateway.
    pub gateway: [u8; 4],
    /// Length of the network prefix in bits.
    pub prefix: u8,
}

impl Default for GuestImage {
    fn default() -> Self {
        Self { disk_bytes: 10 << 30, address: [192, 168, 77, 2], gateway: [192, 168, 77, 1], prefix: 24 }
    }
}

impl GuestImage {
    /// Makes a qcow2 image at `path` with the `qemu-img` of `PATH`, replacing what is there.
    ///
    /// # Errors
    /// If the guest cannot be built, `qemu-img` fails or the folder cannot be written.
    pub fn create(&self, path: &Path) -> io::Result<()> {
        let kernel = build_kernel()?;
        let raw = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        self.write_raw(&std::fs::read(kernel)?, raw.as_file())?;
        to_qcow2(raw.path(), path)
    }

    /// Makes an image whose boot sector is `code`, padded and signed, for guests that need no more.
    ///
    /// # Errors
    /// As [`create`](Self::create), and if the code is longer than a boot sector has room for.
    pub fn create_boot_sector(&self, code: &[u8], path: &Path) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        sector
            .get_mut(..code.len())
            .filter(|_| code.len() <= SECTOR - 2)
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(code);
        sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
        let raw = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        raw.as_file().set_len(self.disk_bytes)?;
        raw.as_file().write_all_at(&sector, 0)?;
        to_qcow2(raw.path(), path)
    }

    fn write_raw(&self, elf: &[u8], file: &File) -> io::Result<()> {
        let segments = loaded_segments(elf).ok_or_else(|| io::Error::other("The guest is no ELF program"))?;
        let segment = |address| segments.iter().find(|(at, _)| *at == address).map(|(_, bytes)| *bytes);
        let (Some(boot), Some(kernel)) = (segment(BOOT_SECTOR_AT), segment(KERNEL_AT)) else {
            return Err(io::Error::other("The guest lacks its boot sector or kernel"));
        };
        let mut boot = boot.to_vec();
        let header = boot.get_mut(HEADER_AT..).filter(|header| header.starts_with(HEADER_MAGIC));
        header.ok_or_else(|| io::Error::other("The boot sector lacks its header"))?[8..][..40]
            .copy_from_slice(&self.header(kernel));
        file.set_len(self.disk_bytes)?;
        file.write_all_at(&boot, 0)?;
        file.write_all_at(kernel, SECTOR as u64)
    }

    /// The header after its magic; `guest/src/header.rs` reads it.
    fn header(&self, kernel: &[u8]) -> [u8; 40] {
        let mut log_id = [0; 8];
        let _ = rustix::rand::getrandom(&mut log_id[..], rustix::rand::GetRandomFlags::empty());
        let mut header = Vec::with_capacity(40);
        for number in [kernel.len().div_ceil(SECTOR) as u32, LOG_LBA, LOG_SECTORS] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        header.extend_from_slice(&self.address);
        header.extend_from_slice(&self.gateway);
        header.extend_from_slice(&[self.prefix, 0, 0, 0]);
        header.extend_from_slice(&log_id);
        header.resize(40, 0);
        header.try_into().expect("40 bytes")
    }
}

/// Names the guest's ELF file to a process that shall not build it.
pub const KERNEL: &str = "LOCKSTEP_GUEST_KERNEL";

/// Builds the guest and returns the path of its ELF file. Quick when nothing has changed.
///
/// # Errors
/// If cargo fails; what it said goes to standard error.
pub fn build_kernel() -> io::Result<PathBuf> {
    if let Some(kernel) = std::env::var_os(KERNEL) {
        return Ok(kernel.into());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    // Its flags are in a configuration file that cargo finds from the current folder, and that these variables would override.
    for variable in
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(variable);
    }
    succeed(cargo.current_dir(&folder).args(["build", "--release", "--quiet", "--locked"]).stdin(Stdio::null()))?;
    Ok(folder.join("target/x86_64-unknown-linux-gnu/release/lockstep-guest"))
}

fn to_qcow2(raw: &Path, path: &Path) -> io::Result<()> {
    let mut convert = Command::new("qemu-img");
    succeed(convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(path).stdin(Stdio::null()))
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    if !output.status.success() {
        io::stderr().write_all(&output.stderr)?;
        return Err(io::Error::other(format!("{:?} failed: {}", command.get_program(), output.status)));
    }
    Ok(())
}

/// Physical address and file contents of the segments that an ELF64 program loads.
fn loaded_segments(elf: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let word = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry, count) = (word(0x20)? as usize, half(0x36)?, half(0x38)?);
    let headers = (0..count).map(|i| table + i * entry);
    let loads = headers.filter(|at| elf.get(*at..*at + 4) == Some(&[1, 0, 0, 0]));
    loads
        .map(|at| Some((word(at + 0x18)?, elf.get(word(at + 8)? as usize..)?.get(..word(at + 0x20)? as usize)?)))
        .collect()
}
