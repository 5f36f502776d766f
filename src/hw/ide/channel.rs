//! One channel: two drives, the ports they share, the bus master, and what the channel asks of the world outside.
//!
//! Everything here is pure: an access changes registers and leaves behind an interrupt level and perhaps a [`Request`], which the
//! wiring carries out and brings back to [`Channel::complete`].

use crate::core::ErrorAction;

use super::{
    atapi::SectorForm,
    busmaster::{BusMaster, TableEnd},
    drive::{Drive, DriveKind, Then},
    regs::{SECTOR, SELECT_ALWAYS, control, status},
};

/// Work for the outside.
#[derive(Debug)]
pub struct Request {
    /// Comes back with the result; a result whose tag is no longer awaited is dropped.
    pub tag: u64,
    /// The drive whose backend it is for.
    pub unit: usize,
    /// What is to be done.
    pub job: Job,
}

/// Kinds of work. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum Job {
    /// Read for the data port.
    Read { offset: u64, len: usize },
    /// Write what came through the data port.
    Write { offset: u64, data: Vec<u8> },
    /// Make writes stable.
    Flush,
    /// Move data between backend or buffer and guest memory, by the descriptor table at `table`.
    Dma { table: u32, transfer: DmaTransfer },
}

/// What a bus master transfer moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DmaTransfer {
    /// The sectors do not exist: only the table is judged.
    Nothing { len: usize },
    /// Backend to memory; nothing happens if the table is shorter.
    Read { offset: u64, len: usize },
    /// Memory to backend; nothing happens if the table is shorter.
    Write { offset: u64, len: usize },
    /// A list of ranges to discard, in memory.
    Trim { len: usize },
    /// Sectors of a CD to memory, as much as the table takes.
    ReadSome { lba: u32, form: SectorForm, len: u64 },
    /// A buffer to memory, as much as the table takes.
    Reply(Vec<u8>),
}

/// How a request ended.
#[derive(Debug)]
pub struct Outcome {
    /// Data of a [`Job::Read`], or the error number.
    pub result: Result<Vec<u8>, i32>,
    /// Of a DMA request: how far its table was walked, or `None` when it was too short and nothing was moved.
    pub table: Option<TableEnd>,
}

/// A command that waits: the drive is ready to move data and the bus master is not started, or a request is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaCommand {
    Read,
    Write,
    Trim,
    /// A packet command's answer from the buffer.
    Reply,
    /// A packet command's answer from the medium.
    CdRead,
}

/// Why a request is outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    ReadSectors { count: u32 },
    WriteSectors { count: u32 },
    Flush,
    CdSectors,
    Dma(DmaCommand),
}

/// Bits that say what to try again (`error_status` on the wire).
pub mod retry {
    pub const DMA: i32 = 0x08;
    pub const PIO: i32 = 0x10;
    pub const READ: i32 = 0x20;
    pub const ATAPI: i32 = 0x20;
    pub const FLUSH: i32 = 0x40;
    pub const TRIM: i32 = 0x80;
    pub const MASK: i32 = 0xf8;
}

/// What stopped on an error, or was under way when the state was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    /// What to try again; 0 for nothing.
    pub what: i32,
    pub unit: u8,
    pub sector: i64,
    pub count: u32,
}

/// A backend's error and what was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoErrorReport {
    /// The drive.
    pub unit: usize,
    /// Whether it was a read.
    pub is_read: bool,
    /// What was done.
    pub action: ErrorAction,
    /// The host's error number.
    pub errno: i32,
}

/// A channel's registers.
pub struct Channel {
    pub drives: [Drive; 2],
    /// The selected drive.
    pub unit: usize,
    /// Device control register.
    pub control: u8,
    pub bm: BusMaster,
    /// The interrupt line's level.
    pub irq: bool,
    /// The line was driven, if only to the same level.
    pub irq_driven: bool,
    pub retry: Retry,
    /// The DMA command that waits for the bus master.
    pub dma: Option<DmaCommand>,
    /// The tag of the request that is outside, and why it is.
    pub waiting: Option<(u64, Waiting)>,
    /// Drives whose write cache was switched: their backends want to know.
    pub write_cache: [Option<bool>; 2],
    next_tag: u64,
    request: Option<Request>,
    report: Option<IoErrorReport>,
    tray: Option<(usize, bool)>,
}

/// Registers of the command block.
const DATA: u64 = 0;
const ERROR: u64 = 1;
const COUNT: u64 = 2;
const SECTOR_NUMBER: u64 = 3;
const LOW_CYLINDER: u64 = 4;
const HIGH_CYLINDER: u64 = 5;
const SELECT: u64 = 6;

impl Channel {
    pub fn new(drives: [Drive; 2]) -> Self {
        Self {
            drives,
            unit: 0,
            control: 0,
            bm: BusMaster::default(),
            irq: false,
            irq_driven: false,
            retry: Retry::default(),
            dma: None,
            waiting: None,
            write_cache: [None; 2],
            next_tag: 0,
            request: None,
            report: None,
            tray: None,
        }
    }

    /// The selected drive.
    pub fn active(&mut self) -> &mut Drive {
        &mut self.drives[self.unit]
    }

    /// The request that the last access led to.
    pub fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    /// The backend's error that the last completion brought.
    pub fn take_report(&mut self) -> Option<IoErrorReport> {
        self.report.take()
    }

    /// A drive whose tray the guest moved, and whether it is open now.
    pub fn take_tray(&mut self) -> Option<(usize, bool)> {
        self.tray.take()
    }

    pub(super) fn tray_moved(&mut self, open: bool) {
        self.tray = Some((self.unit, open));
    }

    /// Hardware reset.
    pub fn reset(&mut self) {
        self.unit = 0;
        self.control = 0;
        self.drives.iter_mut().for_each(Drive::reset);
        self.retry = Retry::default();
        self.forget_request();
        self.bm = BusMaster::default();
        self.lower();
    }

    fn forget_request(&mut self) {
        self.waiting = None;
        self.request = None;
        self.dma = None;
    }

    pub(super) fn raise(&mut self) {
        if self.control & control::NO_INTERRUPT == 0 {
            self.irq = true;
            self.irq_driven = true;
            self.bm.status |= super::regs::bm_status::INTERRUPT;
        }
    }

    fn lower(&mut self) {
        self.irq = false;
        self.irq_driven = true;
    }

    fn nobody_home(&self) -> bool {
        !self.drives.iter().any(Drive::is_present)
    }

    /// Reads a register of the command block, one byte.
    pub fn read(&mut self, register: u64) -> u8 {
        let nobody = self.nobody_home();
        let absent = nobody || self.unit == 1 && !self.drives[1].is_present();
        let high = self.control & control::HIGH_ORDER != 0;
        let r = &self.drives[self.unit].regs;
        match register {
            // Boot loaders rely on a byte access taking a word.
            DATA => self.read_data(2) as u8,
            ERROR if absent => 0,
            ERROR => {
                if high {
                    r.hob_feature
                } else {
                    r.error
                }
            }
            _ if nobody && register < 7 => 0,
            COUNT => {
                if high {
                    r.hob_nsector
                } else {
                    r.nsector as u8
                }
            }
            SECTOR_NUMBER => {
                if high {
                    r.hob_sector
                } else {
                    r.sector
                }
            }
            LOW_CYLINDER => {
                if high {
                    r.hob_lcyl
                } else {
                    r.lcyl
                }
            }
            HIGH_CYLINDER => {
                if high {
                    r.hob_hcyl
                } else {
                    r.hcyl
                }
            }
            SELECT => r.select,
            _ => {
                self.lower();
                self.alternate_status()
            }
        }
    }

    /// Reads the status without acknowledging the interrupt.
    pub fn alternate_status(&self) -> u8 {
        if self.nobody_home() || self.unit == 1 && !self.drives[1].is_present() {
            return 0;
        }
        self.drives[self.unit].regs.status
    }

    /// Writes a register of the command block, one byte.
    pub fn write(&mut self, register: u64, value: u8) {
        let busy = self.drives[self.unit].regs.status & (status::BUSY | status::DRQ) != 0;
        // The command block belongs to the drive while it works (ATA8-ACS 7.1).
        if register != 7 && busy {
            return;
        }
        self.control &= !control::HIGH_ORDER;
        let both = self.drives.iter_mut().map(|d| &mut d.regs);
        match register {
            DATA => {}
            ERROR => both.for_each(|r| r.hob_feature = std::mem::replace(&mut r.feature, value)),
            COUNT => both.for_each(|r| {
                r.hob_nsector = r.nsector as u8;
                r.nsector = value.into();
            }),
            SECTOR_NUMBER => both.for_each(|r| r.hob_sector = std::mem::replace(&mut r.sector, value)),
            LOW_CYLINDER => both.for_each(|r| r.hob_lcyl = std::mem::replace(&mut r.lcyl, value)),
            HIGH_CYLINDER => both.for_each(|r| r.hob_hcyl = std::mem::replace(&mut r.hcyl, value)),
            SELECT => {
                both.for_each(|r| r.select = value | SELECT_ALWAYS);
                self.unit = usize::from(value >> 4 & 1);
            }
            _ => {
                self.lower();
                self.execute(value);
            }
        }
    }

    /// Writes the device control register.
    pub fn write_control(&mut self, value: u8) {
        let begins = self.control & control::RESET == 0 && value & control::RESET != 0;
        self.control = value;
        if begins {
            self.forget_request();
            self.bm.stop();
            for unit in 0..2 {
                self.drives[unit].reset();
                self.diagnose(unit);
            }
            self.control &= !control::RESET;
        }
    }

    /// Resets the selected drive alone (DEVICE RESET).
    pub(super) fn reset_device(&mut self) {
        self.forget_request();
        let drive = self.active();
        drive.reset();
        drive.regs.status = 0;
    }

    /// The outcome of EXECUTE DEVICE DIAGNOSTIC: passed.
    pub(super) fn diagnose(&mut self, unit: usize) {
        let drive = &mut self.drives[unit];
        drive.set_signature();
        drive.regs.select = SELECT_ALWAYS;
        drive.regs.status = if drive.is_disk() { status::READY | status::SEEK } else { 0 };
        drive.regs.error = 0x01;
        self.raise();
    }

    /// Reads the data port, 2 or 4 bytes; zero when there is nothing to read.
    pub fn read_data(&mut self, size: usize) -> u32 {
        let drive = self.active();
        if drive.regs.status & status::DRQ == 0 || !drive.is_reading() {
            return 0;
        }
        let Some(bytes) = drive.buffer.get(drive.at..drive.at + size) else { return 0 };
        let mut value = [0; 4];
        value[..size].copy_from_slice(bytes);
        drive.at += size;
        self.data_moved();
        u32::from_le_bytes(value)
    }

    /// Writes the data port, 2 or 4 bytes; ignored when the drive wants none.
    pub fn write_data(&mut self, size: usize, value: u32) {
        let drive = self.active();
        if drive.regs.status & status::DRQ == 0 || drive.is_reading() {
            return;
        }
        let Some(bytes) = drive.buffer.get_mut(drive.at..drive.at + size) else { return };
        bytes.copy_from_slice(&value.to_le_bytes()[..size]);
        drive.at += size;
        self.data_moved();
    }

    fn data_moved(&mut self) {
        let drive = self.active();
        if drive.at < drive.buffer.len() {
            return;
        }
        drive.regs.status &= !status::DRQ;
        match drive.then {
            Then::Dummy => {}
            Then::Stop => drive.stop_transfer(),
            Then::ReadSectors => self.read_sectors(),
            Then::WriteSectors => self.write_sectors(),
            Then::PacketCommand => self.packet_command(),
            Then::PacketReply => self.packet_reply(),
        }
    }

    /// Hands work to the outside.
    pub(super) fn submit(&mut self, waiting: Waiting, job: Job) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.waiting = Some((tag, waiting));
        self.request = Some(Request { tag, unit: self.unit, job });
    }

    pub(super) fn remember_for_retry(&mut self) {
        let unit = self.unit;
        let drive = &self.drives[unit];
        self.retry = Retry { unit: unit as u8, sector: drive.sector() as i64, count: drive.regs.nsector, ..self.retry };
    }

    fn fail(&mut self) {
        self.active().abort();
        self.raise();
    }

    /// Reads the next block of sectors for the data port.
    pub(super) fn read_sectors(&mut self) {
        let drive = self.active();
        drive.regs.status = status::READY | status::SEEK;
        drive.regs.error = 0;
        let (sector, count) = (drive.sector(), drive.regs.nsector.min(drive.block));
        if count == 0 {
            drive.stop_transfer();
            return;
        }
        drive.regs.status |= status::BUSY;
        self.remember_for_retry();
        if !self.drives[self.unit].has_sectors(sector, count.into()) {
            return self.fail();
        }
        let job = Job::Read { offset: sector * SECTOR, len: count as usize * SECTOR as usize };
        self.submit(Waiting::ReadSectors { count }, job);
    }

    /// Writes the block of sectors that came through the data port.
    pub(super) fn write_sectors(&mut self) {
        let drive = self.active();
        drive.regs.status = status::READY | status::SEEK | status::BUSY;
        let (sector, count) = (drive.sector(), drive.regs.nsector.min(drive.block));
        self.remember_for_retry();
        let drive = &self.drives[self.unit];
        let len = count as usize * SECTOR as usize;
        // A migrated buffer may be shorter than the registers say.
        if count == 0 || !drive.has_sectors(sector, count.into()) || drive.buffer.len() < len {
            return self.fail();
        }
        // The buffer stays: after an error the write may have to be tried again.
        let job = Job::Write { offset: sector * SECTOR, data: drive.buffer[..len].to_vec() };
        self.submit(Waiting::WriteSectors { count }, job);
    }

    /// Makes writes stable, then ends the command.
    pub(super) fn flush(&mut self) {
        if !self.drives[self.unit].is_present() {
            return self.flushed();
        }
        self.active().regs.status |= status::BUSY;
        self.remember_for_retry();
        self.submit(Waiting::Flush, Job::Flush);
    }

    fn flushed(&mut self) {
        self.active().regs.status = status::READY | status::SEEK;
        self.raise();
    }

    /// Begins a DMA command: it waits for the bus master, or goes on at once if that is started.
    pub(super) fn start_dma(&mut self, command: DmaCommand) {
        self.remember_for_retry();
        self.dma = Some(command);
        if self.bm.is_active() {
            self.run_dma();
        }
    }

    /// The bus master's command register was written.
    pub fn write_bus_master_command(&mut self, value: u8) {
        match self.bm.write_command(value) {
            Some(true) => self.run_dma(),
            Some(false) if matches!(self.waiting, Some((_, Waiting::Dma(_)))) => {
                // The guest takes its memory back: what still comes from the backend must not reach it.
                self.waiting = None;
                self.request = None;
                self.fail();
            }
            _ => {}
        }
    }

    fn run_dma(&mut self) {
        let Some(command) = self.dma else { return };
        if self.waiting.is_some() {
            return;
        }
        let drive = &self.drives[self.unit];
        let (sector, len) = (drive.sector(), drive.regs.nsector as usize * SECTOR as usize);
        let exists = drive.has_sectors(sector, drive.regs.nsector.into());
        let transfer = match command {
            DmaCommand::Read | DmaCommand::Write if !exists => DmaTransfer::Nothing { len },
            DmaCommand::Read => DmaTransfer::Read { offset: sector * SECTOR, len },
            DmaCommand::Write => DmaTransfer::Write { offset: sector * SECTOR, len },
            DmaCommand::Trim => DmaTransfer::Trim { len },
            DmaCommand::Reply | DmaCommand::CdRead => self.active().packet.dma_transfer(),
        };
        let table = self.bm.table();
        self.submit(Waiting::Dma(command), Job::Dma { table, transfer });
    }

    fn dma_error(&mut self) {
        self.active().abort();
        self.dma_ended(false);
        self.raise();
    }

    fn dma_ended(&mut self, stays_active: bool) {
        self.dma = None;
        if !stays_active {
            self.bm.status &= !super::regs::bm_status::ACTIVE;
        }
    }

    /// Whether a result with this tag is still awaited.
    pub fn awaits(&self, tag: u64) -> bool {
        self.waiting.is_some_and(|(t, _)| t == tag)
    }

    /// A request has ended.
    pub fn complete(&mut self, tag: u64, outcome: Outcome) {
        let Some((_, waiting)) = self.waiting.take_if(|(t, _)| *t == tag) else { return };
        if let Some(end) = &outcome.table {
            self.bm.walked(end);
        }
        let result = match outcome.result {
            Err(errno) if self.handle_error(waiting, errno) => return,
            Err(_) => None,
            Ok(data) => Some(data),
        };
        match waiting {
            Waiting::ReadSectors { count } => {
                let data = result.unwrap_or_else(|| vec![0; count as usize * SECTOR as usize]);
                let drive = self.active();
                drive.regs.status &= !status::BUSY;
                drive.set_sector(drive.sector() + u64::from(count));
                drive.regs.nsector -= count.min(drive.regs.nsector);
                self.raise();
                self.active().start_transfer(data, Then::ReadSectors);
            }
            Waiting::WriteSectors { count } => self.sectors_written(count),
            Waiting::Flush => self.flushed(),
            Waiting::CdSectors => self.cd_sectors_read(result),
            Waiting::Dma(command) => self.dma_done(command, outcome.table),
        }
    }

    fn sectors_written(&mut self, count: u32) {
        let drive = self.active();
        drive.regs.status &= !status::BUSY;
        drive.set_sector(drive.sector() + u64::from(count));
        drive.regs.nsector -= count.min(drive.regs.nsector);
        let next = drive.regs.nsector.min(drive.block);
        if next == 0 {
            drive.stop_transfer();
        } else {
            let mut buffer = std::mem::take(&mut drive.buffer);
            buffer.resize(next as usize * SECTOR as usize, 0);
            drive.start_transfer(buffer, Then::WriteSectors);
        }
        self.raise();
    }

    fn dma_done(&mut self, command: DmaCommand, table: Option<TableEnd>) {
        let drive = self.active();
        match (command, table) {
            (DmaCommand::Reply | DmaCommand::CdRead, Some(end)) if end.complete => {
                drive.packet_ok();
                self.raise();
                self.dma_ended(false);
            }
            (DmaCommand::Read | DmaCommand::Write, Some(end))
                if end.complete && !drive.has_sectors(drive.sector(), drive.regs.nsector.into()) =>
            {
                self.dma_error();
            }
            (_, Some(end)) if end.complete => {
                drive.set_sector(drive.sector() + u64::from(drive.regs.nsector));
                drive.regs.nsector = 0;
                drive.regs.status = status::READY | status::SEEK;
                self.raise();
                // A table that describes more than the command moved leaves the bus master active (82371SB, section 2.7.2).
                self.dma_ended(end.left_over);
            }
            _ => {
                // The table was too short: the transfer stops without an interrupt.
                drive.regs.status = status::READY | status::SEEK;
                self.dma_ended(false);
            }
        }
    }

    /// Deals with a backend's error as the drive's policy says. False when it is to be ignored.
    fn handle_error(&mut self, waiting: Waiting, errno: i32) -> bool {
        let unit = self.unit;
        let is_read = matches!(
            waiting,
            Waiting::ReadSectors { .. } | Waiting::CdSectors | Waiting::Dma(DmaCommand::Read | DmaCommand::CdRead)
        );
        let policy = self.drives[unit].config.as_ref().map(|c| if is_read { c.read_error } else { c.write_error });
        let action = policy.map_or(ErrorAction::Report, |p| p.action(errno));
        self.report = Some(IoErrorReport { unit, is_read, action, errno });
        match action {
            ErrorAction::Ignore => return false,
            ErrorAction::Stop => self.retry.what = waiting.retry_bits(),
            ErrorAction::Report => match waiting {
                Waiting::Dma(DmaCommand::CdRead | DmaCommand::Reply) => {
                    self.packet_io_error(errno);
                    self.dma_ended(false);
                }
                Waiting::CdSectors => self.packet_io_error(errno),
                Waiting::Dma(_) => self.dma_error(),
                _ => self.fail(),
            },
        }
        true
    }

    /// The machine runs again: what stopped on an error, or was under way when the state was saved, is tried once more.
    pub fn resume(&mut self) {
        let Retry { what, unit, sector, count } = self.retry;
        if what == 0 || self.waiting.is_some() {
            return;
        }
        self.retry.what = 0;
        self.unit = usize::from(unit & 1);
        let is_atapi = what & retry::MASK == retry::ATAPI;
        let drive = self.active();
        if !drive.is_present() {
            return;
        }
        if !is_atapi {
            drive.set_sector(sector as u64);
            drive.regs.nsector = count.min(65536);
        }
        let is_read = what & retry::READ != 0;
        if is_atapi {
            // An answer through the data port goes on where it was; one by DMA begins anew.
            let packet = &self.active().packet;
            if packet.left > 0 && !packet.dma { self.packet_reply() } else { self.packet_command() }
        } else if what & retry::DMA != 0 {
            self.dma = Some(match (what & retry::TRIM != 0, is_read) {
                (true, _) => DmaCommand::Trim,
                (_, true) => DmaCommand::Read,
                _ => DmaCommand::Write,
            });
            self.bm.rewind();
            if self.bm.is_active() {
                self.run_dma();
            }
        } else if what & retry::PIO != 0 {
            if is_read { self.read_sectors() } else { self.write_sectors() }
        } else if what & retry::FLUSH != 0 {
            self.flush();
        }
    }

    /// The drive's medium was put in, taken out or resized outside.
    pub fn medium_changed(&mut self, unit: usize, sectors: u64) {
        let drive = &mut self.drives[unit];
        let Some(config) = &mut drive.config else { return };
        config.sectors = sectors;
        match config.kind {
            DriveKind::Disk => drive.resized(),
            DriveKind::Cd => {
                drive.packet.medium_changed();
                self.raise();
            }
        }
    }
}

impl Waiting {
    /// What the request is called when it has to be tried again.
    pub fn retry_bits(self) -> i32 {
        match self {
            Self::ReadSectors { .. } => retry::PIO | retry::READ,
            Self::WriteSectors { .. } => retry::PIO,
            Self::Flush => retry::FLUSH,
            Self::CdSectors => retry::ATAPI,
            Self::Dma(command) => command.retry_bits(),
        }
    }
}

impl DmaCommand {
    /// What the command is called when it has to be tried again.
    pub fn retry_bits(self) -> i32 {
        match self {
            Self::Read => retry::DMA | retry::READ,
            Self::Write => retry::DMA,
            Self::Trim => retry::DMA | retry::TRIM,
            Self::Reply | Self::CdRead => retry::ATAPI,
        }
    }
}
