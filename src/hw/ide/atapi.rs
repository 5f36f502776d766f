//! Packet commands of a CD-ROM drive: how they run, and what they need of the medium (MMC-6, SPC-3).

use super::{
    channel::{Channel, DmaCommand, DmaTransfer, Job, Waiting},
    drive::{Drive, Then},
    mmc,
    regs::{CD_SECTOR, error, reason, status},
};

/// Sense keys (SPC-3, table 27).
pub mod sense {
    pub const NONE: u8 = 0;
    pub const NOT_READY: u8 = 2;
    pub const ILLEGAL_REQUEST: u8 = 5;
    pub const UNIT_ATTENTION: u8 = 6;
}

/// Additional sense codes (SPC-3, annex D).
pub mod asc {
    pub const ILLEGAL_OPCODE: u8 = 0x20;
    pub const LBA_OUT_OF_RANGE: u8 = 0x21;
    pub const INVALID_FIELD: u8 = 0x24;
    pub const MEDIUM_MAY_HAVE_CHANGED: u8 = 0x28;
    pub const INCOMPATIBLE_FORMAT: u8 = 0x30;
    pub const SAVING_NOT_SUPPORTED: u8 = 0x39;
    pub const MEDIUM_NOT_PRESENT: u8 = 0x3a;
    pub const REMOVAL_PREVENTED: u8 = 0x53;
}

/// What a packet command answers with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Nothing is going on.
    #[default]
    None,
    /// Bytes, of which those from `at` on are left.
    Bytes { data: Vec<u8>, at: usize },
    /// Sectors of the medium from `lba` on; of the first, the bytes from `skip` on.
    Medium { lba: u32, skip: u32, form: SectorForm },
}

/// How a sector is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectorForm {
    /// The 2048 data bytes.
    Data,
    /// 2352 bytes with sync, header and (zero) error correction, mode 1.
    Raw,
}

impl SectorForm {
    pub fn size(self) -> u32 {
        match self {
            Self::Data => 2048,
            Self::Raw => 2352,
        }
    }
}

/// What a packet device has beside the task file.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// The command came with the DMA bit.
    pub dma: bool,
    /// The command, to be able to run it again.
    pub command: [u8; 12],
    pub source: Source,
    /// Bytes of the answer that are left, of them `elementary` in the present data request.
    pub left: u64,
    pub elementary: u32,
    pub sense_key: u8,
    pub asc: u8,
    /// The medium was changed: 1 reports the empty drive, 2 the new medium.
    pub changed: u8,
    pub tray_open: bool,
    pub tray_locked: bool,
    pub new_media: bool,
    pub eject_request: bool,
}

impl Packet {
    /// What a reset leaves: only events for the host.
    pub fn reset(&mut self) {
        *self = Self { new_media: self.new_media, eject_request: self.eject_request, ..Self::default() };
    }

    pub fn medium_changed(&mut self) {
        self.changed = 1;
        self.new_media = true;
        self.eject_request = false;
    }

    /// What the bus master has to move.
    pub fn dma_transfer(&self) -> DmaTransfer {
        match &self.source {
            Source::None => DmaTransfer::Reply(vec![]),
            Source::Bytes { data, .. } => DmaTransfer::Reply(data[..data.len().min(self.left as usize)].to_vec()),
            Source::Medium { lba, form, .. } => DmaTransfer::ReadSome { lba: *lba, form: *form, len: self.left },
        }
    }
}

/// The most that one data request moves.
const LARGEST_REQUEST: u32 = 0xfffe;

impl Drive {
    /// A medium is in and the tray is closed.
    pub fn has_medium(&self) -> bool {
        !self.packet.tray_open && self.sectors() > 0
    }

    /// Number of 2048-byte sectors.
    pub fn cd_sectors(&self) -> u32 {
        u32::try_from(self.sectors() / 4).unwrap_or(u32::MAX)
    }

    fn packet_status(&mut self, error: u8, status: u8) {
        self.regs.error = error;
        self.regs.status = status;
        self.regs.nsector = self.regs.nsector & !7 | reason::TO_HOST | reason::COMMAND;
        self.stop_transfer();
        self.packet.source = Source::None;
        self.packet.left = 0;
        self.packet.elementary = 0;
    }

    /// The command is over and went well.
    pub fn packet_ok(&mut self) {
        self.packet_status(0, status::READY | status::SEEK);
    }

    fn byte_count_limit(&self) -> u32 {
        match u32::from(self.regs.lcyl) | u32::from(self.regs.hcyl) << 8 {
            0xffff => LARGEST_REQUEST,
            n => n,
        }
    }
}

impl Channel {
    /// Ends a packet command well.
    pub(super) fn packet_done(&mut self) {
        self.active().packet_ok();
        self.raise();
    }

    /// Ends a packet command with sense data.
    pub(super) fn packet_error(&mut self, key: u8, code: u8) {
        let drive = self.active();
        drive.packet_status(key << 4, status::READY | status::ERR);
        drive.packet.sense_key = key;
        drive.packet.asc = code;
        self.raise();
    }

    /// A backend's error, as sense data.
    pub(super) fn packet_io_error(&mut self, errno: i32) {
        if errno == libc::ENOMEDIUM {
            self.packet_error(sense::NOT_READY, asc::MEDIUM_NOT_PRESENT);
        } else {
            self.packet_error(sense::ILLEGAL_REQUEST, asc::LBA_OUT_OF_RANGE);
        }
    }

    /// The command packet has arrived.
    pub(super) fn packet_command(&mut self) {
        let drive = self.active();
        if let Some(packet) = drive.buffer.first_chunk::<12>() {
            drive.packet.command = *packet;
        }
        drive.then = Then::PacketCommand;
        let packet = drive.packet.command;
        let Some(command) = mmc::COMMANDS.iter().find(|c| c.code == packet[0]) else {
            if drive.packet.sense_key == sense::UNIT_ATTENTION {
                return self.packet_attention();
            }
            return self.packet_error(sense::ILLEGAL_REQUEST, asc::ILLEGAL_OPCODE);
        };
        if !command.during_attention {
            if drive.packet.sense_key == sense::UNIT_ATTENTION {
                return self.packet_attention();
            }
            // A new medium is reported as an empty drive first and as a change then: guests that do not poll events see both.
            if drive.has_medium() && drive.packet.changed != 0 {
                if drive.packet.changed == 1 {
                    drive.packet.changed = 2;
                    return self.packet_error(sense::NOT_READY, asc::MEDIUM_NOT_PRESENT);
                }
                drive.packet.changed = 0;
                return self.packet_error(sense::UNIT_ATTENTION, asc::MEDIUM_MAY_HAVE_CHANGED);
            }
        }
        if command.needs_medium && !drive.has_medium() {
            return self.packet_error(sense::NOT_READY, asc::MEDIUM_NOT_PRESENT);
        }
        if command.has_data == mmc::Data::Always && !self.accepts_data() {
            return;
        }
        (command.run)(self, &packet);
    }

    /// An attention condition waits to be fetched (MMC-6 4.1.6.1).
    fn packet_attention(&mut self) {
        let drive = self.active();
        drive.stop_transfer();
        drive.regs.error = error::MEDIA_CHANGE | sense::UNIT_ATTENTION << 4;
        drive.regs.status = status::ERR;
        drive.regs.nsector = 0;
        self.raise();
    }

    /// A command that answers through the data port needs a byte count limit (ATA8-ACS 7.21.5). Without one it is aborted.
    pub(super) fn accepts_data(&mut self) -> bool {
        let drive = self.active();
        if drive.packet.dma || drive.byte_count_limit() != 0 {
            return true;
        }
        drive.abort();
        self.raise();
        false
    }

    /// Answers with bytes, at most `limit` of them.
    pub(super) fn packet_answer(&mut self, mut data: Vec<u8>, limit: usize) {
        data.truncate(limit);
        let drive = self.active();
        drive.packet.left = data.len() as u64;
        drive.packet.elementary = 0;
        drive.packet.source = Source::Bytes { data, at: 0 };
        drive.regs.status = status::READY | status::SEEK;
        if drive.packet.dma {
            drive.regs.status |= status::DRQ;
            drive.stop_transfer();
            self.start_dma(DmaCommand::Reply);
        } else {
            self.packet_reply();
        }
    }

    /// Answers with sectors, which exist.
    pub(super) fn packet_sectors(&mut self, lba: u32, count: u32, form: SectorForm) {
        let drive = self.active();
        drive.packet.left = u64::from(count) * u64::from(form.size());
        drive.packet.elementary = 0;
        drive.packet.source = Source::Medium { lba, skip: 0, form };
        drive.regs.status = status::READY | status::SEEK;
        if drive.packet.dma {
            drive.regs.status |= status::DRQ | status::BUSY;
            drive.stop_transfer();
            self.start_dma(DmaCommand::CdRead);
        } else {
            self.packet_reply();
        }
    }

    /// Offers the next part of the answer at the data port, or ends the command.
    pub(super) fn packet_reply(&mut self) {
        let drive = self.active();
        if drive.packet.left == 0 {
            return self.packet_done();
        }
        let limit = match drive.byte_count_limit() {
            // Without a limit (a DMA command that cannot be done by DMA) the most is moved.
            0 => LARGEST_REQUEST,
            n => n,
        };
        let left = drive.packet.left;
        // A request that is not the last moves an even number of bytes.
        let size = if left <= u64::from(limit) { left as u32 } else { limit & !1 };
        if size == 0 {
            return self.packet_error(sense::ILLEGAL_REQUEST, asc::INVALID_FIELD);
        }
        [drive.regs.lcyl, drive.regs.hcyl] = [size as u8, (size >> 8) as u8];
        drive.packet.elementary = size;
        match &mut drive.packet.source {
            Source::None => self.packet_done(),
            Source::Bytes { data, at } => {
                let end = (*at + size as usize).min(data.len());
                let part = data[*at..end].to_vec();
                *at = end;
                self.offer(part);
            }
            Source::Medium { lba, skip, form } => {
                let sectors = (*skip + size).div_ceil(form.size());
                let job = Job::Read { offset: u64::from(*lba) * CD_SECTOR, len: sectors as usize * CD_SECTOR as usize };
                drive.regs.status |= status::BUSY;
                self.remember_for_retry();
                self.submit(Waiting::CdSectors, job);
            }
        }
    }

    fn offer(&mut self, part: Vec<u8>) {
        let drive = self.active();
        drive.packet.left = drive.packet.left.saturating_sub(drive.packet.elementary.into());
        drive.packet.elementary = 0;
        drive.regs.nsector = drive.regs.nsector & !7 | reason::TO_HOST;
        drive.start_transfer(part, Then::PacketReply);
        self.raise();
    }

    /// The sectors of a data request were read.
    pub(super) fn cd_sectors_read(&mut self, data: Option<Vec<u8>>) {
        let drive = self.active();
        drive.regs.status &= !status::BUSY;
        let size = drive.packet.elementary as usize;
        let Source::Medium { lba, skip, form } = &mut drive.packet.source else { return self.packet_done() };
        // An error that is ignored reads as zeroes.
        let data = data.unwrap_or_else(|| vec![0; (*skip as usize + size).div_ceil(2048) * 2048]);
        let first = *skip as usize;
        let part = match form {
            SectorForm::Data if first == 0 => {
                let mut data = data;
                data.truncate(size);
                data
            }
            SectorForm::Data => data.iter().skip(first).take(size).copied().collect(),
            SectorForm::Raw => {
                let sectors = data.chunks_exact(2048).zip(*lba..).flat_map(|(s, lba)| mmc::raw_sector(lba, s));
                sectors.skip(first).take(size).collect()
            }
        };
        let moved = *skip + size as u32;
        *lba = lba.saturating_add(moved / form.size());
        *skip = moved % form.size();
        self.offer(part);
    }
}
