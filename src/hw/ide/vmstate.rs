//! A channel's state on the wire, in QEMU's layout, and how it is taken from registers and put back.

use lockstep_vmstate::{Buffer, LoadError, VmState};

use super::{
    atapi::{SectorForm, Source},
    busmaster::TableEnd,
    channel::{Channel, Retry, retry},
    drive::{Drive, TaskFile, Then},
    regs::{SELECT_ALWAYS, status},
};
use crate::pci::PciDeviceState;

/// The section `ide` of a PIIX3 IDE function.
#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide", version = 3, minimum = 3)]
pub struct IdeState {
    /// Configuration space.
    pub parent_obj: PciDeviceState,
    /// Bus masters.
    pub bmdma: [BusMasterState; 2],
    /// Channels.
    pub bus: [BusState; 2],
    /// Drives of the first channel.
    #[vmstate(name = "bus[0].ifs")]
    pub ifs0: [DriveState; 2],
    /// Drives of the second channel.
    #[vmstate(name = "bus[1].ifs")]
    pub ifs1: [DriveState; 2],
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide bmdma", version = 3, minimum = 3)]
pub struct BusMasterState {
    pub cmd: u8,
    pub migration_compat_status: u8,
    pub addr: u32,
    pub migration_retry_sector_num: i64,
    pub migration_retry_nsector: u32,
    pub migration_retry_unit: u8,
    #[vmstate(subsection)]
    pub current: Option<CurrentRegion>,
    #[vmstate(subsection)]
    pub status: Option<BusMasterStatus>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide bmdma_current", version = 1)]
pub struct CurrentRegion {
    pub cur_addr: u32,
    pub cur_prd_last: u32,
    pub cur_prd_addr: u32,
    pub cur_prd_len: u32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide bmdma/status", version = 1)]
pub struct BusMasterStatus {
    pub status: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide_bus", version = 1)]
pub struct BusState {
    pub cmd: u8,
    pub unit: u8,
    #[vmstate(subsection)]
    pub error: Option<BusError>,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide_bus/error", version = 2, minimum = 1)]
pub struct BusError {
    pub error_status: i32,
    #[vmstate(since = 2)]
    pub retry_sector_num: i64,
    #[vmstate(since = 2)]
    pub retry_nsector: u32,
    #[vmstate(since = 2)]
    pub retry_unit: u8,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide_drive", version = 3, minimum = 3)]
pub struct DriveState {
    pub mult_sectors: i32,
    pub identify_set: i32,
    #[vmstate(when = identify_set != 0)]
    pub identify_data: Option<Buffer<512>>,
    pub feature: u8,
    pub error: u8,
    pub nsector: u32,
    pub sector: u8,
    pub lcyl: u8,
    pub hcyl: u8,
    pub hob_feature: u8,
    pub hob_sector: u8,
    pub hob_nsector: u8,
    pub hob_lcyl: u8,
    pub hob_hcyl: u8,
    pub select: u8,
    pub status: u8,
    pub lba48: u8,
    pub sense_key: u8,
    pub asc: u8,
    pub cdrom_changed: u8,
    #[vmstate(subsection)]
    pub pio: Option<PioState>,
    #[vmstate(subsection)]
    pub tray: Option<TrayState>,
    #[vmstate(subsection)]
    pub events: Option<EventState>,
}

/// Size of QEMU's transfer buffer: 256 sectors and a word.
const IO_BUFFER: usize = 256 * 512 + 4;

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide_drive/pio_state", version = 1)]
pub struct PioState {
    pub req_nb_sectors: i32,
    #[vmstate(count = IO_BUFFER, max = IO_BUFFER)]
    pub io_buffer: Vec<u8>,
    pub cur_io_buffer_offset: i32,
    pub cur_io_buffer_len: i32,
    pub end_transfer_fn_idx: u8,
    pub elementary_transfer_size: i32,
    pub packet_transfer_size: i32,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide_drive/tray_state", version = 1)]
pub struct TrayState {
    pub tray_open: bool,
    pub tray_locked: bool,
}

#[derive(Clone, Debug, PartialEq, VmState)]
#[vmstate(name = "ide_drive/atapi/gesn_state", version = 1)]
pub struct EventState {
    #[vmstate(name = "events.new_media")]
    pub new_media: bool,
    #[vmstate(name = "events.eject_request")]
    pub eject_request: bool,
}

/// What follows a transfer, by its number on the wire.
const THEN: [Then; 6] =
    [Then::ReadSectors, Then::WriteSectors, Then::Stop, Then::PacketReply, Then::PacketCommand, Then::Dummy];

/// Bits of the old combined status that mean a request to try again.
const ABUSED: u8 = (retry::DMA | retry::PIO | retry::READ | retry::FLUSH) as u8;

/// At the end of the transfer buffer, where no transfer reaches: the packet command whose answer is under way. QEMU does not look there.
const STASH: usize = IO_BUFFER - 16;
const STASH_MARK: [u8; 4] = *b"pkt:";

/// A channel's parts of the section.
pub struct ChannelState {
    pub bm: BusMasterState,
    pub bus: BusState,
    pub drives: [DriveState; 2],
}

impl ChannelState {
    pub fn save(channel: &Channel) -> Self {
        let bm = &channel.bm;
        let retry = under_way(channel);
        let status = BusMasterStatus { status: bm.status };
        Self {
            bm: BusMasterState {
                cmd: bm.command,
                migration_compat_status: bm.status & !ABUSED | retry.what as u8 & ABUSED,
                addr: bm.address,
                migration_retry_sector_num: retry.sector,
                migration_retry_nsector: retry.count,
                migration_retry_unit: retry.unit,
                current: None,
                status: (bm.status & ABUSED != 0).then_some(status),
            },
            bus: BusState {
                cmd: channel.control,
                unit: channel.unit as u8,
                error: (retry.what != 0).then_some(BusError {
                    error_status: retry.what,
                    retry_sector_num: retry.sector,
                    retry_nsector: retry.count,
                    retry_unit: retry.unit,
                }),
            },
            drives: [0, 1].map(|unit| {
                let again = if usize::from(retry.unit) == unit { retry.what } else { 0 };
                DriveState::save(&channel.drives[unit], again)
            }),
        }
    }

    /// Refuses what a channel cannot be.
    ///
    /// # Errors
    /// Naming what is out of range.
    pub fn validate(&self, channel: &Channel) -> Result<(), LoadError> {
        if self.bus.unit > 1 || self.bus.error.as_ref().is_some_and(|e| e.retry_unit > 1) {
            return Err(LoadError::invalid("ide_bus: no such unit"));
        }
        self.drives.iter().zip(&channel.drives).try_for_each(|(state, drive)| state.validate(drive))
    }

    /// Takes validated state over.
    pub fn load(self, channel: &mut Channel) {
        let Self { bm, bus, drives } = self;
        channel.control = bus.cmd;
        channel.unit = bus.unit.into();
        channel.waiting = None;
        channel.dma = None;
        for (unit, state) in drives.into_iter().enumerate() {
            let drive = &mut channel.drives[unit];
            let says = state.identify_data.is_some();
            state.load(drive);
            channel.write_cache[unit] = drive.config.as_ref().filter(|_| says).map(|c| c.write_cache);
        }
        let status = bm.status.map_or(0, |s| s.status);
        let mut what = bus.error.as_ref().map_or(0, |e| e.error_status);
        channel.bm.command = bm.cmd;
        channel.bm.address = bm.addr;
        channel.bm.status = status;
        if status == 0 {
            channel.bm.status = bm.migration_compat_status & !ABUSED;
            what |= i32::from(bm.migration_compat_status & ABUSED);
        }
        channel.bm.rewind();
        if let Some(c) = bm.current {
            let last = c.cur_prd_last != 0;
            let (region, region_len) = (c.cur_prd_addr, c.cur_prd_len);
            channel.bm.walked(&TableEnd { next: c.cur_addr, last, region, region_len, ..TableEnd::default() });
        }
        channel.retry = Retry {
            what,
            unit: bm.migration_retry_unit & 1,
            sector: bm.migration_retry_sector_num,
            count: bm.migration_retry_nsector,
        };
    }
}

/// What has to be tried again where this state is loaded: what stopped on an error, a request that has not come back, or a DMA
/// command that waits for the bus master.
fn under_way(channel: &Channel) -> Retry {
    let what = match (channel.retry.what, channel.waiting, channel.dma) {
        (0, Some((_, waiting)), _) => waiting.retry_bits(),
        (0, None, Some(command)) => command.retry_bits(),
        (what, ..) => what,
    };
    Retry { what, ..channel.retry }
}

impl DriveState {
    fn save(drive: &Drive, again: i32) -> Self {
        let r = &drive.regs;
        let p = &drive.packet;
        let needs_buffer = r.status & status::DRQ != 0 || again & (retry::PIO | retry::ATAPI) != 0;
        Self {
            mult_sectors: drive.multiple.into(),
            identify_set: drive.identify_set.into(),
            identify_data: drive.identify_set.then_some(Buffer(*drive.identify)),
            feature: r.feature,
            error: r.error,
            nsector: r.nsector,
            sector: r.sector,
            lcyl: r.lcyl,
            hcyl: r.hcyl,
            hob_feature: r.hob_feature,
            hob_sector: r.hob_sector,
            hob_nsector: r.hob_nsector,
            hob_lcyl: r.hob_lcyl,
            hob_hcyl: r.hob_hcyl,
            select: r.select,
            status: r.status,
            lba48: r.lba48.into(),
            sense_key: p.sense_key,
            asc: p.asc,
            cdrom_changed: p.changed,
            pio: needs_buffer.then(|| PioState::save(drive, again)),
            tray: (p.tray_open || p.tray_locked)
                .then_some(TrayState { tray_open: p.tray_open, tray_locked: p.tray_locked }),
            events: (p.new_media || p.eject_request)
                .then_some(EventState { new_media: p.new_media, eject_request: p.eject_request }),
        }
    }

    fn validate(&self, drive: &Drive) -> Result<(), LoadError> {
        if !(0..=16).contains(&self.mult_sectors) {
            return Err(LoadError::invalid("ide_drive: mult_sectors is out of range"));
        }
        if self.nsector > 65536 {
            return Err(LoadError::invalid("ide_drive: nsector is out of range"));
        }
        let Some(pio) = &self.pio else { return Ok(()) };
        let in_buffer = |at: i32| usize::try_from(at).is_ok_and(|at| at <= IO_BUFFER);
        let end = pio.cur_io_buffer_offset.checked_add(pio.cur_io_buffer_len).unwrap_or(-1);
        if !in_buffer(pio.cur_io_buffer_offset) || !in_buffer(pio.cur_io_buffer_len) || !in_buffer(end) {
            return Err(LoadError::invalid("ide_drive/pio_state: the transfer leaves the buffer"));
        }
        if usize::from(pio.end_transfer_fn_idx) >= THEN.len() {
            return Err(LoadError::invalid("ide_drive/pio_state: end_transfer_fn_idx is out of range"));
        }
        let is_packet = matches!(THEN[usize::from(pio.end_transfer_fn_idx)], Then::PacketCommand | Then::PacketReply);
        if is_packet && drive.is_disk() {
            return Err(LoadError::invalid("ide_drive/pio_state: a packet command on a disk"));
        }
        if pio.packet_transfer_size < 0 || pio.elementary_transfer_size < 0 || pio.req_nb_sectors < 0 {
            return Err(LoadError::invalid("ide_drive/pio_state: a size is negative"));
        }
        Ok(())
    }

    fn load(self, drive: &mut Drive) {
        drive.multiple = self.mult_sectors as u8;
        drive.identify_set = self.identify_set != 0;
        if let Some(data) = self.identify_data {
            *drive.identify = *data;
            if let Some(config) = &mut drive.config {
                config.write_cache = drive.identify[85 * 2] & (1 << 5) != 0;
            }
        }
        drive.regs = TaskFile {
            feature: self.feature,
            error: self.error,
            nsector: self.nsector,
            sector: self.sector,
            lcyl: self.lcyl,
            hcyl: self.hcyl,
            hob_feature: self.hob_feature,
            hob_nsector: self.hob_nsector,
            hob_sector: self.hob_sector,
            hob_lcyl: self.hob_lcyl,
            hob_hcyl: self.hob_hcyl,
            select: self.select | SELECT_ALWAYS,
            status: self.status,
            lba48: self.lba48 != 0,
        };
        let p = &mut drive.packet;
        p.reset();
        p.sense_key = self.sense_key;
        p.asc = self.asc;
        p.changed = self.cdrom_changed;
        (p.tray_open, p.tray_locked) = self.tray.map_or((false, false), |t| (t.tray_open, t.tray_locked));
        (p.new_media, p.eject_request) = self.events.map_or((false, false), |e| (e.new_media, e.eject_request));
        // As the PACKET command took it.
        p.dma = self.feature & 1 != 0;
        drive.buffer = vec![];
        drive.at = 0;
        drive.then = Then::Stop;
        drive.block = 0;
        if let Some(pio) = self.pio {
            pio.load(drive);
        }
    }
}

impl PioState {
    fn save(drive: &Drive, again: i32) -> Self {
        let restarts = again & retry::MASK == retry::ATAPI;
        let then = if restarts { Then::PacketCommand } else { drive.then };
        let mut io_buffer = if restarts { drive.packet.command.to_vec() } else { drive.buffer.clone() };
        let len = io_buffer.len() - if restarts { 0 } else { drive.at };
        if let Source::Bytes { data, at } = &drive.packet.source {
            io_buffer.extend(&data[(*at).min(data.len())..]);
        }
        io_buffer.resize(IO_BUFFER, 0);
        if drive.packet.source != Source::None {
            io_buffer[STASH..STASH + 4].copy_from_slice(&STASH_MARK);
            io_buffer[STASH + 4..].copy_from_slice(&drive.packet.command);
        }
        Self {
            req_nb_sectors: drive.block as i32,
            io_buffer,
            cur_io_buffer_offset: if restarts { 0 } else { drive.at as i32 },
            cur_io_buffer_len: len as i32,
            end_transfer_fn_idx: THEN.iter().position(|t| *t == then).unwrap_or(2) as u8,
            elementary_transfer_size: drive.packet.elementary as i32,
            packet_transfer_size: i32::try_from(drive.packet.left).unwrap_or(i32::MAX),
        }
    }

    fn load(self, drive: &mut Drive) {
        let (start, len) = (self.cur_io_buffer_offset as usize, self.cur_io_buffer_len as usize);
        drive.then = THEN[usize::from(self.end_transfer_fn_idx)];
        drive.block = (self.req_nb_sectors as u32).min(16);
        let stash = &self.io_buffer[STASH..];
        let packet: [u8; 12] = match stash.first_chunk() == Some(&STASH_MARK) {
            true => std::array::from_fn(|i| stash[4 + i]),
            false => std::array::from_fn(|i| self.io_buffer[i]),
        };
        drive.packet.left = self.packet_transfer_size as u64;
        drive.packet.command = packet;
        match medium_source(&packet, drive.packet.left) {
            Some(source) => drive.packet.source = source,
            None if drive.packet.left > 0 => {
                let rest = &self.io_buffer[start + len..];
                let rest = &rest[..rest.len().min(drive.packet.left as usize)];
                drive.packet.left = rest.len() as u64;
                drive.packet.source = Source::Bytes { data: rest.to_vec(), at: 0 };
            }
            None => {}
        }
        drive.buffer = self.io_buffer;
        drive.buffer.truncate(start + len);
        drive.at = start;
    }
}

/// Where a read command's answer goes on when `left` bytes of it are missing.
fn medium_source(packet: &[u8; 12], left: u64) -> Option<Source> {
    let word = |at: usize| u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let (count, form) = match packet[0] {
        0x28 => (u32::from(packet[7]) << 8 | u32::from(packet[8]), SectorForm::Data),
        0xa8 => (word(6), SectorForm::Data),
        0xbe if packet[9] & 0xf8 == 0xf8 => (word(5) & 0xff_ffff, SectorForm::Raw),
        0xbe => (word(5) & 0xff_ffff, SectorForm::Data),
        _ => return None,
    };
    let size = u64::from(form.size());
    let done = (u64::from(count) * size).checked_sub(left)?;
    let lba = word(2).checked_add(u32::try_from(done / size).ok()?)?;
    (left > 0).then_some(Source::Medium { lba, skip: (done % size) as u32, form })
}
