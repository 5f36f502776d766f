//! The channels at their ports: against recorded accesses of another implementation, and path by path.

use std::{io, sync::Arc};

use lockstep_block::BlockOp;
use lockstep_vmstate::{Decoder, Encoder, SaveState, check_roundtrip};
use parking_lot::Mutex;

use super::*;
use crate::{
    core::{DriveEvents, ErrorAction, OnError},
    testing::{Random, Rig, replay},
};

/// A disk in memory. It answers at once, or when it is told to.
struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    fail: Mutex<Option<i32>>,
    held: Mutex<Option<Vec<(BlockOp, Completion)>>>,
    log: Mutex<Vec<String>>,
}

impl MemoryDisk {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let (fail, held, log) = Default::default();
        Arc::new(Self { bytes: Mutex::new(bytes), fail, held, log })
    }

    fn execute(&self, op: BlockOp) -> io::Result<Vec<u8>> {
        if let Some(errno) = *self.fail.lock() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut bytes = self.bytes.lock();
        let (text, data) = match op {
            BlockOp::Read { offset, len } => {
                let at = offset as usize;
                (format!("read {offset} {len}"), bytes[at..at + len].to_vec())
            }
            BlockOp::Write { offset, data } => {
                bytes[offset as usize..][..data.len()].copy_from_slice(&data);
                (format!("write {offset} {}", data.len()), data)
            }
            BlockOp::Discard { offset, len } => (format!("discard {offset} {len}"), vec![]),
            BlockOp::Flush => ("flush".to_owned(), vec![]),
            op => panic!("{op:?}"),
        };
        self.log.lock().push(text);
        Ok(data)
    }

    fn hold(&self) {
        *self.held.lock() = Some(vec![]);
    }

    fn release(&self) {
        for (op, done) in self.held.lock().take().unwrap_or_default() {
            let result = self.execute(op);
            done(result);
        }
    }
}

impl Disk for MemoryDisk {
    fn submit(&self, op: BlockOp, done: Completion) {
        if let Some(held) = &mut *self.held.lock() {
            held.push((op, done));
            return;
        }
        let result = self.execute(op);
        done(result);
    }
}

#[derive(Default)]
struct Events(Mutex<Vec<(bool, ErrorAction, i32)>>);

impl DriveEvents for Events {
    fn io_error(&self, is_read: bool, action: ErrorAction, errno: i32) {
        self.0.lock().push((is_read, action, errno));
    }
}

fn config(kind: DriveKind, bytes: usize, serial: &str) -> DriveConfig {
    let sectors = bytes as u64 / 512;
    DriveConfig {
        kind,
        serial: serial.into(),
        model: wiring::default_model(kind).into(),
        version: "2.5+".into(),
        wwn: 0,
        geometry: Geometry::default_for(sectors),
        sectors,
        physical_exponent: 0,
        rotation_rate: 0,
        discard: kind == DriveKind::Disk,
        write_cache: true,
        read_error: OnError::Report,
        write_error: OnError::Enospc,
    }
}

struct Setup {
    rig: Rig,
    ide: Arc<Piix3Ide>,
    disk: Arc<MemoryDisk>,
    cd: Arc<MemoryDisk>,
    events: Arc<Events>,
}

/// 4 MiB, each sector filled with its number times 0x01010101; a CD of 75 sectors, each quarter filled with its number.
fn setup_with(change: impl FnOnce(&mut DriveConfig)) -> Setup {
    let disk = (0..8192_u32).flat_map(|i| i.wrapping_mul(0x0101_0101).to_le_bytes().repeat(128)).collect();
    let cd = (0..300_u32).flat_map(|i| i.to_le_bytes().repeat(512)).collect();
    let (disk, cd) = (MemoryDisk::new(disk), MemoryDisk::new(cd));
    let rig = Rig::new();
    let lines = [rig.line(14), rig.line(15)];
    let ide = Piix3Ide::new(&rig.board, &rig.bus, 9, lines).unwrap();
    let events = Arc::new(Events::default());
    let mut first = config(DriveKind::Disk, disk.bytes.lock().len(), "QM00001");
    change(&mut first);
    ide.channel(0).attach(0, first, Some(disk.clone()), events.clone());
    let second = config(DriveKind::Cd, cd.bytes.lock().len(), "QM00003");
    ide.channel(1).attach(0, second, Some(cd.clone()), events.clone());
    rig.enable(ide.function(), &[(4, 0xc121)]);
    Setup { rig, ide, disk, cd, events }
}

fn setup() -> Setup {
    setup_with(|_| {})
}

impl Setup {
    fn task_file(&self, feature: u8, count: u8, lba: u32) {
        let [a, b, c, d] = lba.to_le_bytes();
        for (i, v) in [feature, count, a, b, c, 0xe0 | d & 0x0f].into_iter().enumerate() {
            self.rig.outb(0x1f1 + i as u64, v);
        }
    }

    fn status(&self) -> u8 {
        self.rig.inb(0x3f6)
    }

    /// Points the primary bus master at one region and gives a command.
    fn dma(&self, command: u8, to_memory: bool, address: u32, len: u32) {
        let entry = [address, 0x8000_0000 | len & 0xffff].map(u32::to_le_bytes).concat();
        self.rig.write(0x1000, &entry);
        self.rig.outl(0xc124, 0x1000);
        self.rig.outb(0xc122, 0x06);
        self.rig.outb(0xc120, u8::from(to_memory) << 3);
        self.rig.outb(0x1f7, command);
        self.rig.outb(0xc120, u8::from(to_memory) << 3 | 1);
    }
}

#[test]
fn every_access_of_a_recorded_session_has_the_same_answer() {
    replay(&setup().rig, include_str!("session.txt"));
}

#[test]
fn identify_shows_the_disk() {
    let s = setup_with(|c| c.wwn = 0x5000_c500_1234_5678);
    s.rig.outb(0x1f7, 0xec);
    assert_eq!(s.status(), 0x58);
    let words: Vec<_> = (0..256).map(|_| s.rig.inw(0x1f0)).collect();
    assert_eq!(s.status(), 0x50);
    let text: Vec<_> = words[27..47].iter().flat_map(|w| w.to_be_bytes()).collect();
    assert_eq!(String::from_utf8(text).unwrap().trim_end(), "QEMU HARDDISK");
    assert_eq!((words[60], words[61], words[100]), (8192, 0, 8192));
    assert_eq!(words[108..112], [0x5000, 0xc500, 0x1234, 0x5678]);
    assert_eq!((words[84], words[87]), (0x4100, 0x4100));
}

#[test]
fn a_large_dma_read_is_one_request() {
    let s = setup();
    let table: Vec<_> = (0..16)
        .flat_map(|i| [0x10_0000 + i * 0x1_0000, u32::from(i == 15) << 31].map(u32::to_le_bytes))
        .flatten()
        .collect();
    s.rig.write(0x2000, &table);
    for (register, value) in [(2, 0x08), (2, 0x00), (3, 0), (3, 0), (4, 0), (4, 0), (5, 0), (5, 0), (6, 0xe0)] {
        s.rig.outb(0x1f0 + register, value);
    }
    s.rig.outl(0xc124, 0x2000);
    s.rig.outb(0x1f7, 0x25);
    s.rig.outb(0xc120, 9);
    assert_eq!(*s.disk.log.lock(), ["read 0 1048576"]);
    assert_eq!((s.status(), s.rig.inb(0xc122)), (0x50, 0x04));
    assert_eq!(s.rig.read(0x10_0000 + 2047 * 512), 2047_u32.wrapping_mul(0x0101_0101).to_le_bytes());
    assert_eq!(*s.rig.irqs.lock(), [(14, true)]);
}

#[test]
fn a_reset_while_a_request_is_outside_drops_its_result() {
    let s = setup();
    s.disk.hold();
    s.task_file(0, 1, 3);
    s.dma(0xc8, true, 0x3000, 512);
    s.rig.outb(0x3f6, 4);
    s.rig.outb(0x3f6, 0);
    s.rig.outb(0x1f7, 0xec);
    s.disk.release();
    assert_eq!(s.status(), 0x58, "the data of IDENTIFY still waits");
    assert_eq!(s.rig.read(0x3000), [0; 4], "memory is not touched any more");
}

#[test]
fn stopping_the_bus_master_takes_the_memory_back() {
    let s = setup();
    s.disk.hold();
    s.task_file(0, 1, 3);
    s.dma(0xc8, true, 0x3000, 512);
    s.rig.outb(0xc120, 8);
    assert_eq!((s.status(), s.rig.inb(0xc122) & 1), (0x41, 0));
    s.disk.release();
    assert_eq!(s.rig.read(0x3000), [0; 4]);
}

#[test]
fn an_error_is_reported_to_the_guest_or_stops_the_machine() {
    let s = setup_with(|c| c.write_error = OnError::Enospc);
    *s.disk.fail.lock() = Some(libc::EIO);
    s.task_file(0, 1, 3);
    s.dma(0xc8, true, 0x3000, 512);
    assert_eq!((s.rig.inb(0x1f7), s.rig.inb(0x1f1), s.rig.inb(0xc122)), (0x41, 0x04, 0x04));
    *s.disk.fail.lock() = Some(libc::ENOSPC);
    s.rig.write(0x3000, &[7; 512]);
    s.rig.irqs.lock().clear();
    s.task_file(0, 1, 3);
    s.dma(0xca, false, 0x3000, 512);
    let errors = [(true, ErrorAction::Report, libc::EIO), (false, ErrorAction::Stop, libc::ENOSPC)];
    assert_eq!(*s.events.0.lock(), errors);
    assert!(s.rig.irqs.lock().is_empty(), "the guest sees nothing of it");
    *s.disk.fail.lock() = None;
    s.ide.resume();
    assert_eq!((s.status(), s.rig.inb(0xc122)), (0x50, 0x04));
    assert_eq!(s.disk.bytes.lock()[3 * 512..4 * 512], [7; 512]);
}

#[test]
fn errors_of_each_kind_of_request_can_be_retried() {
    // READ SECTORS, WRITE SECTORS, FLUSH
    for command in [0x20_u8, 0x30, 0xe7] {
        let s = setup_with(|c| (c.read_error, c.write_error) = (OnError::Stop, OnError::Stop));
        *s.disk.fail.lock() = Some(libc::EIO);
        s.task_file(0, 1, 3);
        s.rig.outb(0x1f7, command);
        if command == 0x30 {
            (0..256).for_each(|i| s.rig.outw(0x1f0, i));
        }
        assert_eq!(s.status() & 0x80, 0x80, "{command:x} waits");
        *s.disk.fail.lock() = None;
        s.ide.resume();
        assert_eq!(s.status() & 0x81, 0, "{command:x} is done");
        if command == 0x20 {
            assert_eq!(s.rig.inl(0x1f0), 0x0303_0303);
        }
    }
}

#[test]
fn an_ignored_error_looks_like_success() {
    let s = setup_with(|c| c.read_error = OnError::Ignore);
    *s.disk.fail.lock() = Some(libc::EIO);
    s.task_file(0, 1, 3);
    s.rig.outb(0x1f7, 0x20);
    assert_eq!((s.status(), s.rig.inl(0x1f0)), (0x58, 0));
}

#[test]
fn state_survives_a_migration() {
    // In the middle of: nothing, a PIO read, a PIO write, an answer of the CD in parts.
    for step in 0..4 {
        let s = setup();
        s.task_file(0, 2, 5);
        match step {
            1 => {
                s.rig.outb(0x1f7, 0x20);
                s.rig.inl(0x1f0);
            }
            2 => {
                s.rig.outb(0x1f7, 0xc5);
                s.rig.outl(0x1f0, 0x1234_5678);
            }
            3 => read_cd(&s),
            _ => {}
        }
        let fresh = setup();
        check_roundtrip(&s.ide, &fresh.ide).unwrap();
        match step {
            1 => {
                for _ in 0..127 {
                    fresh.rig.inl(0x1f0);
                }
                assert_eq!((fresh.status(), fresh.rig.inl(0x1f0)), (0x58, 0x0606_0606));
            }
            2 => {
                (0..255).for_each(|i| fresh.rig.outl(0x1f0, i));
                assert_eq!(fresh.disk.bytes.lock()[5 * 512..5 * 512 + 8], [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
            }
            3 => {
                let words: Vec<_> = (0..3 * 512).map(|_| fresh.rig.inl(0x170)).collect();
                assert_eq!((words[0], words[511], words[512], words[1535]), (3, 3, 4, 5));
                assert_eq!(fresh.rig.inb(0x376), 0x50);
            }
            _ => {}
        }
    }
}

/// READ(10) of sectors 3 to 5, in data requests of 1000 bytes, of which none is read.
fn read_cd(s: &Setup) {
    s.rig.outb(0x171, 0);
    s.rig.outb(0x174, 1000_u16 as u8);
    s.rig.outb(0x175, (1000 >> 8) as u8);
    s.rig.outb(0x177, 0xa0);
    for word in [0x28, 0, 3 << 8, 0, 3, 0] {
        s.rig.outw(0x170, word);
    }
    assert_eq!(s.rig.inb(0x376), 0x58);
}

#[test]
fn a_request_under_way_is_tried_again_where_the_state_is_loaded() {
    // DMA read, PIO read, PIO write, flush, a DMA command whose bus master is not started.
    for step in 0..5 {
        let (s, fresh) = (setup(), setup());
        s.disk.hold();
        s.task_file(0, 1, 3);
        match step {
            0 => s.dma(0xc8, true, 0x3000, 512),
            1 => s.rig.outb(0x1f7, 0x20),
            2 => {
                s.rig.outb(0x1f7, 0x30);
                (0..256).for_each(|_| s.rig.outw(0x1f0, 0x4455));
            }
            3 => s.rig.outb(0x1f7, 0xe7),
            _ => s.rig.outb(0x1f7, 0xc8),
        }
        let mut out = Encoder::new();
        s.ide.save(&mut out).unwrap();
        fresh.ide.prepare(&mut Decoder::new(out.bytes()), 3).unwrap().commit();
        fresh.rig.write(0x1000, &s.rig.read::<8>(0x1000));
        fresh.ide.resume();
        match step {
            0 => assert_eq!(fresh.rig.read(0x3000), [3; 4]),
            1 => assert_eq!((fresh.status(), fresh.rig.inl(0x1f0)), (0x58, 0x0303_0303)),
            2 => assert_eq!(fresh.disk.bytes.lock()[3 * 512..3 * 512 + 4], [0x55, 0x44, 0x55, 0x44]),
            3 => assert_eq!((fresh.status(), &*fresh.disk.log.lock()), (0x50, &vec!["flush".to_owned()])),
            _ => {
                fresh.dma_start(0x3000);
                assert_eq!((fresh.status(), fresh.rig.read(0x3000)), (0x50, [3; 4]));
            }
        }
        s.disk.release();
    }
}

#[test]
fn an_interrupt_that_migrated_is_acknowledged_at_the_line() {
    let (s, fresh) = (setup(), setup());
    s.rig.outb(0x1f7, 0xe7);
    assert_eq!(*s.rig.irqs.lock(), [(14, true)]);
    fresh.ide.restore(s.ide.snapshot());
    assert_eq!(fresh.rig.inb(0x3f6), 0x50);
    assert!(fresh.rig.irqs.lock().is_empty(), "the interrupt controllers have their own state");
    fresh.rig.inb(0x1f7);
    assert_eq!(*fresh.rig.irqs.lock(), [(14, false)]);
}

impl Setup {
    fn dma_start(&self, address: u32) {
        self.rig.write(0x1000, &[address, 0x8000_0200].map(u32::to_le_bytes).concat());
        self.rig.outl(0xc124, 0x1000);
        self.rig.outb(0xc120, 9);
    }
}

#[test]
fn a_stream_that_no_drive_can_be_in_is_refused() {
    let s = setup();
    s.task_file(0, 2, 5);
    s.rig.outb(0x1f7, 0x20);
    let good = s.ide.snapshot();
    let spoil: [fn(&mut IdeState); 5] = [
        |w| w.bus[0].unit = 2,
        |w| w.ifs0[0].mult_sectors = 17,
        |w| w.ifs0[0].pio.as_mut().unwrap().cur_io_buffer_len = i32::MAX,
        |w| w.ifs0[0].pio.as_mut().unwrap().end_transfer_fn_idx = 6,
        |w| w.ifs0[0].pio.as_mut().unwrap().end_transfer_fn_idx = 4,
    ];
    assert!(s.ide.validate(&good).is_ok());
    for change in spoil {
        let mut wire = good.clone();
        change(&mut wire);
        assert!(s.ide.validate(&wire).is_err());
    }
}

#[test]
fn a_changed_medium_is_seen_as_ejected_first() {
    let s = setup();
    let test_unit_ready = || {
        s.rig.outb(0x177, 0xa0);
        (0..6).for_each(|_| s.rig.outw(0x170, 0));
        (s.rig.inb(0x177), s.rig.inb(0x171))
    };
    assert_eq!(test_unit_ready(), (0x50, 0));
    s.ide.channel(1).with(|c| c.medium_changed(0, 400));
    assert_eq!(test_unit_ready(), (0x41, 0x20));
    assert_eq!(test_unit_ready(), (0x41, 0x60));
    assert!(s.cd.log.lock().is_empty());
}

#[test]
fn trim_goes_to_the_backend_in_order() {
    let s = setup();
    let list: Vec<_> = (0..64_u64).flat_map(|i| (i * 16 | 8 << 48).to_le_bytes()).collect();
    s.rig.write(0x3000, &list);
    s.task_file(1, 1, 0);
    s.dma(0x06, false, 0x3000, 512);
    assert_eq!((s.status(), s.disk.log.lock().len()), (0x50, 64));
    assert_eq!(s.disk.log.lock()[1], "discard 8192 4096");
}

#[test]
fn random_accesses_are_survived() {
    let s = setup();
    let mut random = Random(1);
    s.rig.write(
        0x1000,
        &(0..512).flat_map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect::<Vec<_>>(),
    );
    let ports = [0x1f0_u64, 0x1f7, 0x3f6, 0x170, 0x177, 0x376, 0xc120, 0xc128];
    for round in 0..200_000 {
        let base = ports[random.below(8) as usize];
        let port = if base & 0xf000 != 0 || base & 7 == 0 { base + random.below(8) } else { base };
        let value = random.next();
        match random.below(8) {
            0 => _ = s.rig.inb(port),
            1 => _ = s.rig.inw(port),
            2 => _ = s.rig.inl(port),
            3 => s.rig.outw(port, value as u16),
            4 => s.rig.outl(port, 0x1000 | value as u32 & 0xf),
            _ => s.rig.outb(port, value as u8),
        }
        if round % 1000 == 0 {
            let fresh = s.ide.snapshot();
            s.ide.validate(&fresh).unwrap();
            s.ide.restore(fresh);
            s.ide.resume();
        }
    }
}
