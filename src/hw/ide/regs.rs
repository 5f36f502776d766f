//! Names of the bits and registers of the ATA command block (ATA/ATAPI-7 volume 2, clauses 5 and 6; ATA8-ACS) and of the PIIX bus
//! master (Intel 82371SB, section 2.7).

/// Status register.
pub mod status {
    /// The drive is busy; nothing else in the register counts.
    pub const BUSY: u8 = 0x80;
    /// Ready.
    pub const READY: u8 = 0x40;
    /// Seek complete.
    pub const SEEK: u8 = 0x10;
    /// Data request: the drive wants data moved.
    pub const DRQ: u8 = 0x08;
    /// The error register has a reason.
    pub const ERR: u8 = 0x01;
}

/// Error register.
pub mod error {
    /// Command aborted.
    pub const ABORTED: u8 = 0x04;
    /// Media change requested (ATAPI).
    pub const MEDIA_CHANGE: u8 = 0x20;
}

/// Device register: LBA addressing.
pub const SELECT_LBA: u8 = 0x40;
/// Device register: bits that always read as one.
pub const SELECT_ALWAYS: u8 = 0xa0;

/// Device control register.
pub mod control {
    /// Interrupts off.
    pub const NO_INTERRUPT: u8 = 0x02;
    /// Software reset.
    pub const RESET: u8 = 0x04;
    /// Reads give the previous contents of the two-deep registers.
    pub const HIGH_ORDER: u8 = 0x80;
}

/// Interrupt reason of a packet command, in the sector count register.
pub mod reason {
    /// The transfer is of a command packet.
    pub const COMMAND: u32 = 0x01;
    /// The transfer is to the host.
    pub const TO_HOST: u32 = 0x02;
}

/// Bus master command register.
pub mod bm_command {
    /// Start.
    pub const START: u8 = 0x01;
    /// Bits that are kept.
    pub const MASK: u8 = 0x09;
}

/// Bus master status register.
pub mod bm_status {
    /// A transfer is active.
    pub const ACTIVE: u8 = 0x01;
    /// A transfer failed.
    pub const ERROR: u8 = 0x02;
    /// The drive raised its interrupt.
    pub const INTERRUPT: u8 = 0x04;
    /// Drives capable of DMA, set by software.
    pub const CAPABLE: u8 = 0x60;
}

/// Most sectors that a READ MULTIPLE block may have.
pub const MAX_MULTIPLE: u8 = 16;
/// Bytes in a sector of a disk.
pub const SECTOR: u64 = 512;
/// Bytes in a sector of a data CD.
pub const CD_SECTOR: u64 = 2048;
