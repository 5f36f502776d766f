//! One drive: its configuration, its task file, and the buffer behind the data port.

use crate::core::OnError;

use super::{
    atapi::Packet,
    regs::{MAX_MULTIPLE, SELECT_ALWAYS, SELECT_LBA, status},
    smart::Smart,
};

/// What kind of drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveKind {
    /// An ATA disk.
    Disk,
    /// An ATAPI CD-ROM or DVD-ROM.
    Cd,
}

/// Cylinders, heads and sectors a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u32,
    /// Heads.
    pub heads: u32,
    /// Sectors a track.
    pub sectors: u32,
}

impl Geometry {
    /// What a disk of `sectors` 512-byte sectors reports when nobody says otherwise: 16 heads, 63 sectors, at most 16383 cylinders
    /// (ATA-5 clause 6.2.1).
    pub fn default_for(sectors: u64) -> Self {
        let cylinders = (sectors / (16 * 63)).clamp(2, 16383) as u32;
        Self { cylinders, heads: 16, sectors: 63 }
    }
}

/// What a drive is made as.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    /// Disk or CD.
    pub kind: DriveKind,
    /// Serial number, up to 20 characters.
    pub serial: String,
    /// Model, up to 40 characters.
    pub model: String,
    /// Firmware version, up to 8 characters.
    pub version: String,
    /// World wide name; 0 for none.
    pub wwn: u64,
    /// Geometry of a disk.
    pub geometry: Geometry,
    /// Capacity, in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sectors in a physical one, as a power of two.
    pub physical_exponent: u8,
    /// Revolutions a minute, 1 for a solid state disk, 0 for unknown.
    pub rotation_rate: u16,
    /// Whether TRIM is offered.
    pub discard: bool,
    /// Whether the volatile write cache is on.
    pub write_cache: bool,
    /// What happens when a read fails.
    pub read_error: OnError,
    /// What happens when a write fails.
    pub write_error: OnError,
}

/// What happens when the data port has moved the whole buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing was going on.
    Dummy,
    /// The command is over.
    Stop,
    /// Go on reading sectors.
    ReadSectors,
    /// Write the buffer's sectors.
    WriteSectors,
    /// The buffer is a command packet.
    PacketCommand,
    /// Go on with a packet command's answer.
    PacketReply,
}

/// The task file: what both drives of a channel get written, and each reads as its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFile {
    pub feature: u8,
    pub error: u8,
    /// Sector count; a running command's holds the 48-bit form's 16 bits, or 256 or 65536 for 0.
    pub nsector: u32,
    pub sector: u8,
    pub lcyl: u8,
    pub hcyl: u8,
    pub hob_feature: u8,
    pub hob_nsector: u8,
    pub hob_sector: u8,
    pub hob_lcyl: u8,
    pub hob_hcyl: u8,
    pub select: u8,
    pub status: u8,
    /// The running command uses 48-bit addresses.
    pub lba48: bool,
}

/// A drive, or the place where one could be.
pub struct Drive {
    pub config: Option<DriveConfig>,
    pub regs: TaskFile,
    /// Heads and sectors a track as INITIALIZE DEVICE PARAMETERS set them.
    pub heads: u32,
    pub track: u32,
    /// Sectors of a READ MULTIPLE block; 0 when that is off.
    pub multiple: u8,
    pub identify: Box<[u8; 512]>,
    pub identify_set: bool,
    /// A reset puts the geometry back.
    pub reset_reverts: bool,
    /// The buffer behind the data port; `at..buffer.len()` is still to be moved.
    pub buffer: Vec<u8>,
    pub at: usize,
    pub then: Then,
    /// Sectors that one data request moves.
    pub block: u32,
    pub packet: Packet,
    pub smart: Smart,
}

impl Drive {
    pub fn new(config: Option<DriveConfig>) -> Self {
        let geometry = config.as_ref().map_or(Geometry { cylinders: 0, heads: 0, sectors: 0 }, |c| c.geometry);
        let mut drive = Self {
            config,
            regs: TaskFile::default(),
            heads: geometry.heads,
            track: geometry.sectors,
            multiple: 0,
            identify: Box::new([0; 512]),
            identify_set: false,
            reset_reverts: false,
            buffer: vec![],
            at: 0,
            then: Then::Dummy,
            block: 0,
            packet: Packet::default(),
            smart: Smart::default(),
        };
        drive.reset();
        drive
    }

    pub fn is_present(&self) -> bool {
        self.config.is_some()
    }

    /// Whether it is a disk. An empty place counts as one, as it answers to the same commands.
    pub fn is_disk(&self) -> bool {
        self.config.as_ref().is_none_or(|c| c.kind == DriveKind::Disk)
    }

    pub fn sectors(&self) -> u64 {
        self.config.as_ref().map_or(0, |c| c.sectors)
    }

    /// Registers, transfers and the signature after a hardware or software reset.
    pub fn reset(&mut self) {
        if std::mem::take(&mut self.reset_reverts)
            && let Some(config) = &self.config
        {
            (self.heads, self.track) = (config.geometry.heads, config.geometry.sectors);
        }
        self.multiple = MAX_MULTIPLE;
        self.regs = TaskFile { select: SELECT_ALWAYS, status: status::READY | status::SEEK, ..TaskFile::default() };
        self.packet.reset();
        self.block = 0;
        self.set_signature();
        self.begin_transfer_of(vec![], Then::Dummy);
    }

    /// What tells a host the kind of device (ATA8-ACS table 184).
    pub fn set_signature(&mut self) {
        let regs = &mut self.regs;
        regs.select &= !0x0f;
        regs.nsector = 1;
        regs.sector = 1;
        (regs.lcyl, regs.hcyl) = match &self.config {
            None => (0xff, 0xff),
            Some(c) if c.kind == DriveKind::Cd => (0x14, 0xeb),
            Some(_) => (0, 0),
        };
    }

    fn begin_transfer_of(&mut self, buffer: Vec<u8>, then: Then) {
        self.buffer = buffer;
        self.at = 0;
        self.then = then;
    }

    /// Offers a buffer at the data port.
    pub fn start_transfer(&mut self, buffer: Vec<u8>, then: Then) {
        self.begin_transfer_of(buffer, then);
        if self.regs.status & status::ERR == 0 {
            self.regs.status |= status::DRQ;
        }
    }

    /// Ends whatever goes through the data port.
    pub fn stop_transfer(&mut self) {
        self.begin_transfer_of(vec![], Then::Stop);
    }

    /// Ends a command with "aborted".
    pub fn abort(&mut self) {
        self.stop_transfer();
        self.regs.status = status::READY | status::ERR;
        self.regs.error = super::regs::error::ABORTED;
    }

    /// Whether the buffer goes from the drive to the host.
    pub fn is_reading(&self) -> bool {
        matches!(self.then, Then::Stop | Then::ReadSectors | Then::PacketReply | Then::Dummy)
    }

    /// Completes the sector count before a command that counts sectors: 0 means the most.
    pub fn take_count(&mut self, lba48: bool) {
        let regs = &mut self.regs;
        regs.lba48 = lba48;
        regs.nsector = match (lba48, regs.nsector & 0xff, u32::from(regs.hob_nsector)) {
            (false, 0, _) => 256,
            (false, n, _) => n,
            (true, 0, 0) => 65536,
            (true, low, high) => high << 8 | low,
        };
    }

    /// The sector that the task file addresses.
    pub fn sector(&self) -> u64 {
        let r = &self.regs;
        let low = u64::from(r.hcyl) << 16 | u64::from(r.lcyl) << 8 | u64::from(r.sector);
        if r.select & SELECT_LBA == 0 {
            let cylinder = u64::from(r.hcyl) << 8 | u64::from(r.lcyl);
            let track = u64::from(self.track);
            let sector = cylinder * u64::from(self.heads) * track + u64::from(r.select & 0x0f) * track;
            // Sectors of a track count from 1; sector 0 does not exist and wraps, so that the range check refuses it.
            return sector.wrapping_add(r.sector.into()).wrapping_sub(1);
        }
        if r.lba48 {
            u64::from(r.hob_hcyl) << 40 | u64::from(r.hob_lcyl) << 32 | u64::from(r.hob_sector) << 24 | low
        } else {
            u64::from(r.select & 0x0f) << 24 | low
        }
    }

    /// Puts a sector's address in the task file.
    pub fn set_sector(&mut self, sector: u64) {
        let (heads, track) = (u64::from(self.heads), u64::from(self.track));
        let r = &mut self.regs;
        if r.select & SELECT_LBA != 0 {
            [r.sector, r.lcyl, r.hcyl] = [sector as u8, (sector >> 8) as u8, (sector >> 16) as u8];
            if r.lba48 {
                [r.hob_sector, r.hob_lcyl, r.hob_hcyl] =
                    [(sector >> 24) as u8, (sector >> 32) as u8, (sector >> 40) as u8];
            } else {
                r.select = r.select & 0xf0 | (sector >> 24) as u8 & 0x0f;
            }
        } else if let Some(cylinder) = sector.checked_div(heads * track) {
            let rest = sector % (heads * track);
            [r.lcyl, r.hcyl] = [cylinder as u8, (cylinder >> 8) as u8];
            r.select = r.select & 0xf0 | (rest / track) as u8 & 0x0f;
            r.sector = (rest % track) as u8 + 1;
        }
    }

    /// Whether `count` sectors from `first` on exist.
    pub fn has_sectors(&self, first: u64, count: u64) -> bool {
        let all = self.sectors();
        first < all && count <= all - first
    }
}
