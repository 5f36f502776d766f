//! What the image builder wrote into the boot sector: where things lie on the disk, and the guest's address.
use crate::boot;

/// The image header, at byte 0x1a0 of the boot sector, little-endian, no padding.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Header {
    magic: [u8; 8],
    /// Sectors of the kernel that the boot sector had still to load: 0 by now.
    kernel_left: u32,
    /// First sector of the key-value log.
    pub log_lba: u32,
    /// Length of the key-value log in sectors.
    pub log_sectors: u32,
    /// IPv4 address of the guest.
    pub address: [u8; 4],
    /// IPv4 address of its gateway.
    pub gateway: [u8; 4],
    /// Length of the network prefix in bits.
    pub prefix: u8,
    reserved: [u8; 3],
    /// Random number of this image: records of another image's log are not replayed.
    pub log_id: u64,
}

/// A copy of the header in the boot sector.
pub fn read() -> Header {
    // SAFETY: the boot sector stays where the BIOS loaded it, identity-mapped; the struct is plain bytes without alignment.
    unsafe { core::ptr::read_volatile(boot::HEADER as *const Header) }
}
