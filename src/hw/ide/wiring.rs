//! A channel between its ports, its backends, guest memory and its interrupt line.

use std::{
    io,
    sync::{Arc, Weak},
};

use lockstep_block::{BlockBackend, BlockOp, MediumChange};
use lockstep_memory::{AccessRules, Region};
use parking_lot::{Mutex, MutexGuard};

use super::{
    atapi::SectorForm,
    busmaster::{ScatterList, TableEnd, walk},
    channel::{Channel, DmaTransfer, Job, Outcome, Request},
    drive::{Drive, DriveConfig, DriveKind},
    mmc,
    regs::{CD_SECTOR, SECTOR},
};
use crate::{
    core::{DriveEvents, IrqLine, NoEvents, io_handler},
    pci::DmaSpace,
};

/// What is called when a request has ended.
pub type Completion = Box<dyn FnOnce(io::Result<Vec<u8>>) + Send>;

/// What a drive needs of its backend.
pub trait Disk: Send + Sync {
    /// Hands a request in. The completion may be called at once or later, on any thread.
    fn submit(&self, op: BlockOp, done: Completion);
    /// The guest switched its volatile write cache.
    fn set_write_cache(&self, on: bool) {
        let _ = on;
    }
}

impl Disk for BlockBackend {
    fn submit(&self, op: BlockOp, done: Completion) {
        BlockBackend::submit(self, op, done);
    }

    fn set_write_cache(&self, on: bool) {
        BlockBackend::set_write_cache(self, on);
    }
}

/// A drive's connections; an empty CD-ROM drive has no backend.
#[derive(Clone)]
struct Attached {
    disk: Option<Arc<dyn Disk>>,
    events: Arc<dyn DriveEvents>,
}

struct State {
    channel: Channel,
    attached: [Attached; 2],
    /// What the line was last driven to; `None` when a migration stream may have set the interrupt controllers otherwise.
    line_level: Option<bool>,
}

/// A channel and its connections.
pub struct IdeChannel {
    state: Mutex<State>,
    line: IrqLine,
    dma: DmaSpace,
    me: Weak<Self>,
}

impl IdeChannel {
    /// A channel without drives.
    pub fn new(line: IrqLine, dma: DmaSpace) -> Arc<Self> {
        let nothing = || Attached { disk: None, events: Arc::new(NoEvents) };
        let state = State {
            channel: Channel::new([Drive::new(None), Drive::new(None)]),
            attached: [nothing(), nothing()],
            line_level: Some(false),
        };
        Arc::new_cyclic(|me| Self { state: Mutex::new(state), line, dma, me: me.clone() })
    }

    /// Connects a drive.
    pub fn attach(&self, unit: usize, config: DriveConfig, disk: Option<Arc<dyn Disk>>, events: Arc<dyn DriveEvents>) {
        let mut state = self.state.lock();
        state.channel.drives[unit] = Drive::new(Some(config));
        state.attached[unit] = Attached { disk, events };
    }

    /// Whether a place is taken.
    pub fn has_drive(&self, unit: usize) -> bool {
        self.state.lock().channel.drives[unit].is_present()
    }

    /// Has the drive follow changes of its medium.
    pub fn follow_medium(self: &Arc<Self>, unit: usize, backend: &BlockBackend) {
        let (me, handle) = (self.me.clone(), backend.clone());
        backend.on_medium_change(move |change| {
            let sectors = handle.len() / SECTOR;
            let Some(channel) = me.upgrade() else { return };
            match change {
                MediumChange::Inserted | MediumChange::Resized => channel.with(|c| c.medium_changed(unit, sectors)),
                MediumChange::Removed => channel.with(|c| c.medium_changed(unit, 0)),
                MediumChange::TrayOpened => channel.set_tray(unit, true),
                MediumChange::TrayClosed => {
                    channel.set_tray(unit, false);
                    channel.with(|c| c.medium_changed(unit, sectors));
                }
                MediumChange::EjectRequested { force } => channel.request_eject(unit, force),
            }
        });
    }

    /// The user asks the guest to let go of the medium; with `force` a lock is lifted.
    pub fn request_eject(&self, unit: usize, force: bool) {
        self.with(|c| {
            let packet = &mut c.drives[unit].packet;
            packet.eject_request = true;
            packet.tray_locked &= !force;
        });
    }

    /// Whether the tray is open, and whether it is locked.
    pub fn tray(&self, unit: usize) -> (bool, bool) {
        let state = self.state.lock();
        let packet = &state.channel.drives[unit].packet;
        (packet.tray_open, packet.tray_locked)
    }

    /// The user opens or closes the tray.
    pub fn set_tray(&self, unit: usize, open: bool) {
        self.with(|c| c.drives[unit].packet.tray_open = open);
    }

    /// Changes registers, then does what that led to: the line under the lock, all else after it.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Channel) -> T) -> T {
        let mut state = self.state.lock();
        let result = f(&mut state.channel);
        self.settle(state);
        result
    }

    /// Looks at registers.
    pub(super) fn peek<T>(&self, f: impl FnOnce(&Channel) -> T) -> T {
        f(&self.state.lock().channel)
    }

    /// Takes registers over from a migration stream: the interrupt controllers load the line's level themselves.
    pub(super) fn load(&self, f: impl FnOnce(&mut Channel)) {
        let mut state = self.state.lock();
        f(&mut state.channel);
        state.line_level = None;
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let level = state.channel.irq;
        if std::mem::take(&mut state.channel.irq_driven) && state.line_level.replace(level) != Some(level) {
            self.line.set(level);
        }
        let request = state.channel.take_request();
        let report = state.channel.take_report();
        let tray = state.channel.take_tray();
        let write_cache = std::mem::take(&mut state.channel.write_cache);
        if request.is_none() && report.is_none() && tray.is_none() && write_cache == [None; 2] {
            return;
        }
        let attached = state.attached.clone();
        drop(state);
        if let Some(r) = report {
            attached[r.unit].events.io_error(r.is_read, r.action, r.errno);
        }
        if let Some((unit, open)) = tray {
            attached[unit].events.tray_moved(open);
        }
        for (on, attached) in write_cache.into_iter().zip(&attached) {
            if let (Some(on), Some(disk)) = (on, &attached.disk) {
                disk.set_write_cache(on);
            }
        }
        if let Some(request) = request {
            let disk = attached[request.unit].disk.clone();
            self.perform(request, disk);
        }
    }

    fn finish(&self, tag: u64, result: Result<Vec<u8>, i32>, table: Option<TableEnd>) {
        self.with(|c| c.complete(tag, Outcome { result, table }));
    }

    /// A completion that hands a result back to the registers, after `deliver` has moved the data.
    fn completion(
        &self,
        tag: u64,
        table: Option<TableEnd>,
        deliver: impl FnOnce(&Self, Vec<u8>) -> Vec<u8> + Send + 'static,
    ) -> Completion {
        let me = self.me.clone();
        Box::new(move |result| {
            let Some(channel) = me.upgrade() else { return };
            if !channel.peek(|c| c.awaits(tag)) {
                return;
            }
            let result = result.map(|data| deliver(&channel, data)).map_err(|e| e.raw_os_error().unwrap_or(libc::EIO));
            channel.finish(tag, result, table);
        })
    }

    fn perform(&self, request: Request, disk: Option<Arc<dyn Disk>>) {
        let Request { tag, job, .. } = request;
        let (table, transfer) = match job {
            Job::Dma { table, transfer } => (table, transfer),
            Job::Read { offset, len } => return self.submit(disk, tag, BlockOp::Read { offset, len }),
            Job::Write { offset, data } => return self.submit(disk, tag, BlockOp::Write { offset, data }),
            Job::Flush => return self.submit(disk, tag, BlockOp::Flush),
        };
        let limit = match &transfer {
            DmaTransfer::Nothing { len }
            | DmaTransfer::Read { len, .. }
            | DmaTransfer::Write { len, .. }
            | DmaTransfer::Trim { len } => *len as u64,
            DmaTransfer::ReadSome { len, .. } => *len,
            DmaTransfer::Reply(data) => data.len() as u64,
        };
        let (list, end) = walk(table, limit, |at| {
            let mut entry = [0; 8];
            let _ = self.dma.read(at.into(), &mut entry);
            let [a, b] = [0, 4].map(|i| u32::from_le_bytes([entry[i], entry[i + 1], entry[i + 2], entry[i + 3]]));
            (a, b)
        });
        match transfer {
            DmaTransfer::Reply(data) => {
                scatter(&self.dma, &list, &data);
                self.finish(tag, Ok(vec![]), Some(end));
            }
            DmaTransfer::ReadSome { lba, form, .. } => self.read_cd(disk, tag, lba, form, list, end),
            _ if !end.complete => self.finish(tag, Ok(vec![]), Some(end)),
            DmaTransfer::Nothing { .. } => self.finish(tag, Ok(vec![]), Some(end)),
            DmaTransfer::Read { offset, len } => {
                let done = self.completion(tag, Some(end), move |channel, data| {
                    scatter(&channel.dma, &list, &data);
                    vec![]
                });
                submit_to(disk, BlockOp::Read { offset, len }, done);
            }
            DmaTransfer::Write { offset, len } => {
                let data = gather(&self.dma, &list, len);
                let done = self.completion(tag, Some(end), |_, _| vec![]);
                submit_to(disk, BlockOp::Write { offset, data }, done);
            }
            DmaTransfer::Trim { len } => {
                let ranges = trim_ranges(&gather(&self.dma, &list, len));
                let capacity = self.peek(|c| c.drives[request.unit].sectors());
                let done = self.completion(tag, Some(end), |_, _| vec![]);
                Trim::start(disk, ranges, capacity, done);
            }
        }
    }

    fn submit(&self, disk: Option<Arc<dyn Disk>>, tag: u64, op: BlockOp) {
        submit_to(disk, op, self.completion(tag, None, |_, data| data));
    }

    fn read_cd(
        &self,
        disk: Option<Arc<dyn Disk>>,
        tag: u64,
        lba: u32,
        form: SectorForm,
        list: ScatterList,
        end: TableEnd,
    ) {
        let room: u64 = list.iter().map(|&(_, len)| u64::from(len)).sum();
        let sectors = room.div_ceil(form.size().into());
        if sectors == 0 {
            return self.finish(tag, Ok(vec![]), Some(end));
        }
        let done = self.completion(tag, Some(end), move |channel, data| {
            let data = match form {
                SectorForm::Data => data,
                SectorForm::Raw => {
                    data.chunks_exact(2048).zip(lba..).flat_map(|(s, lba)| mmc::raw_sector(lba, s)).collect()
                }
            };
            scatter(&channel.dma, &list, &data);
            vec![]
        });
        // A table describes at most 32 MiB.
        let op = BlockOp::Read { offset: u64::from(lba) * CD_SECTOR, len: (sectors * CD_SECTOR) as usize };
        submit_to(disk, op, done);
    }
}

fn submit_to(disk: Option<Arc<dyn Disk>>, op: BlockOp, done: Completion) {
    match disk {
        Some(disk) => disk.submit(op, done),
        None => done(Err(io::Error::from_raw_os_error(libc::ENOMEDIUM))),
    }
}

fn scatter(dma: &DmaSpace, list: &ScatterList, data: &[u8]) {
    let mut rest = data;
    for &(address, len) in list {
        let (part, tail) = rest.split_at(rest.len().min(len as usize));
        // What is not memory takes nothing, as on a bus where nobody answers.
        let _ = dma.write(address.into(), part);
        rest = tail;
    }
}

fn gather(dma: &DmaSpace, list: &ScatterList, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    let mut at = 0;
    for &(address, n) in list {
        let end = (at + n as usize).min(len);
        let _ = dma.read(address.into(), &mut data[at..end]);
        at = end;
    }
    data
}

/// The ranges of a TRIM list: 48 bits of address, 16 bits of length; empty entries are padding (ATA8-ACS 7.10.3.2).
fn trim_ranges(list: &[u8]) -> Vec<(u64, u64)> {
    let entries = list.as_chunks::<8>().0.iter().map(|e| u64::from_le_bytes(*e));
    entries.map(|e| (e & 0xffff_ffff_ffff, e >> 48)).filter(|&(_, count)| count > 0).collect()
}

/// A run of discards, some at a time.
struct Trim {
    disk: Arc<dyn Disk>,
    state: Mutex<TrimState>,
}

struct TrimState {
    ranges: std::vec::IntoIter<(u64, u64)>,
    outstanding: usize,
    error: Option<io::Error>,
    done: Option<Completion>,
}

/// Discards that are handed in together.
const TRIM_BATCH: usize = 64;

impl Trim {
    fn start(disk: Option<Arc<dyn Disk>>, ranges: Vec<(u64, u64)>, capacity: u64, done: Completion) {
        let outside = ranges.iter().any(|&(first, count)| first > capacity || count > capacity - first);
        let Some(disk) = disk.filter(|_| !outside) else {
            return done(Err(io::Error::from_raw_os_error(libc::EINVAL)));
        };
        let state = TrimState { ranges: ranges.into_iter(), outstanding: 0, error: None, done: Some(done) };
        Arc::new(Self { disk, state: Mutex::new(state) }).next();
    }

    fn next(self: Arc<Self>) {
        let mut state = self.state.lock();
        let batch: Vec<_> = match state.error {
            None => state.ranges.by_ref().take(TRIM_BATCH).collect(),
            Some(_) => vec![],
        };
        if batch.is_empty() {
            let result = state.error.take().map_or(Ok(vec![]), Err);
            let done = state.done.take();
            drop(state);
            if let Some(done) = done {
                done(result);
            }
            return;
        }
        state.outstanding = batch.len();
        drop(state);
        for (first, count) in batch {
            let me = self.clone();
            let op = BlockOp::Discard { offset: first * SECTOR, len: count * SECTOR };
            self.disk.submit(op, Box::new(move |result| me.ended(result.err())));
        }
    }

    fn ended(self: Arc<Self>, error: Option<io::Error>) {
        let last = {
            let mut state = self.state.lock();
            state.error = state.error.take().or(error);
            state.outstanding -= 1;
            state.outstanding == 0
        };
        if last {
            self.next();
        }
    }
}

/// The eight registers of the command block. Wide accesses reach the data port at offset 0, bytes elsewhere.
pub fn command_block(channel: &Arc<IdeChannel>) -> Region {
    let rules = AccessRules { valid_min: 1, valid_max: 4, unaligned: true, handled_min: 1, handled_max: 4 };
    let (reader, writer) = (channel.clone(), channel.clone());
    let handler = io_handler(
        rules,
        move |offset, size| match (offset, size) {
            (0, 2 | 4) => reader.with(|c| c.read_data(size as usize)).into(),
            (_, 1) => reader.with(|c| c.read(offset)).into(),
            (_, 2) => reader.with(|c| {
                let low = c.read(offset);
                let high = if offset < 7 { c.read(offset + 1) } else { 0xff };
                u16::from_le_bytes([low, high]).into()
            }),
            _ => u64::MAX,
        },
        move |offset, size, value| match (offset, size) {
            (0, 2 | 4) => writer.with(|c| c.write_data(size as usize, value as u32)),
            (_, 1) => writer.with(|c| c.write(offset, value as u8)),
            (_, 2) => writer.with(|c| {
                c.write(offset, value as u8);
                if offset < 7 {
                    c.write(offset + 1, (value >> 8) as u8);
                }
            }),
            _ => {}
        },
    );
    Region::io("ide", 8, handler)
}

/// The alternate status and device control register.
pub fn control_block(channel: &Arc<IdeChannel>) -> Region {
    let (reader, writer) = (channel.clone(), channel.clone());
    let handler = io_handler(
        AccessRules::bytes(1),
        move |_, _| reader.peek(Channel::alternate_status).into(),
        move |_, _, value| writer.with(|c| c.write_control(value as u8)),
    );
    Region::io("ide", 1, handler)
}

/// The bus master's command and status registers, which take single bytes only.
pub fn bus_master_block(channel: &Arc<IdeChannel>) -> Region {
    let (reader, writer) = (channel.clone(), channel.clone());
    let handler = io_handler(
        AccessRules::sizes(1, 4),
        move |offset, size| match size {
            1 => reader.peek(|c| c.bm.read(offset)).into(),
            _ => u64::MAX,
        },
        move |offset, size, value| match (offset, size) {
            (0, 1) => writer.with(|c| c.write_bus_master_command(value as u8)),
            (2, 1) => writer.with(|c| c.bm.write_status(value as u8)),
            _ => {}
        },
    );
    Region::io("piix-bmdma", 4, handler)
}

/// The bus master's table address.
pub fn table_address_block(channel: &Arc<IdeChannel>) -> Region {
    let (reader, writer) = (channel.clone(), channel.clone());
    let handler = io_handler(
        AccessRules { unaligned: true, ..AccessRules::sizes(1, 4) },
        move |offset, size| reader.peek(|c| c.bm.read_address(offset, size)).into(),
        move |offset, size, value| writer.with(|c| c.bm.write_address(offset, size, value as u32)),
    );
    Region::io("bmdma", 4, handler)
}

/// A drive's kind by what it is.
pub fn default_model(kind: DriveKind) -> &'static str {
    match kind {
        DriveKind::Disk => "QEMU HARDDISK",
        DriveKind::Cd => "QEMU DVD-ROM",
    }
}
