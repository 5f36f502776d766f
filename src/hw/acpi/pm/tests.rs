//! Power management as firmware and ACPI drivers use it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lockstep_vmstate::vmstate_roundtrip;

use super::*;

struct Setup {
    board: Board,
    pm: Arc<Piix4Pm>,
    sci: Arc<AtomicBool>,
    smis: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<MachineRequest>>>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let bus = PciBus::new(&Region::whole_space("pci"), &board.ports);
    let (sci, smis) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (level, count) = (sci.clone(), smis.clone());
    let sci_line = IrqLine::new(Arc::new(move |_: u32, l: bool| level.store(l, Ordering::Relaxed)), 9);
    let smi_line = IrqLine::new(
        Arc::new(move |_: u32, l: bool| {
            count.fetch_add(usize::from(l), Ordering::Relaxed);
        }),
        0,
    );
    let config = PmConfig {
        smbus_base: 0x700,
        smm: true,
        disable_s3: false,
        disable_s4: false,
        s4_value: 2,
        parallel: true,
        serial: [false; 2],
    };
    let pm = Piix4Pm::new(&board, &bus, 1, config, sci_line, smi_line).unwrap();
    let requests = Arc::new(Mutex::new(vec![]));
    let log = requests.clone();
    board.requests.set_receiver(move |r| log.lock().push(r));
    pm.config_write(PM_BASE, 0x601, 4);
    pm.config_write(PM_ENABLE, 1, 1);
    Setup { board, pm, sci, smis, requests }
}

impl Setup {
    fn sci(&self) -> bool {
        self.sci.load(Ordering::Relaxed)
    }

    fn read(&self, port: u64) -> u16 {
        self.board.port_space.read_u16(0x600 + port)
    }

    fn write(&self, port: u64, value: u16) {
        self.board.port_space.write_u16(0x600 + port, value);
    }
}

const SECOND: i64 = 1_000_000_000;

#[test]
fn configuration_after_firmware_is_that_of_the_documented_machine() {
    let s = setup();
    let read = |at| s.pm.config_read(at, 4);
    assert_eq!([read(0x00), read(0x04) >> 16, read(0x08), read(0x3c)], [0x7113_8086, 0x0280, 0x0680_0003, 0x100]);
    assert_eq!([read(0x40), read(0x5c), read(0x60), read(0x80)], [0x601, 0x9000_0000, 0x6000_0000, 1]);
    assert_eq!([read(0x90), read(0xd0)], [0x701, 0x9_0000]);
}

#[test]
fn the_timer_counts_at_its_frequency_and_interrupts_when_its_top_bit_changes() {
    let s = setup();
    s.board.clocks.advance_virtual_to(SECOND);
    assert_eq!(s.board.port_space.read_u32(0x608), PM_TIMER_HZ);
    assert_eq!(s.board.port_space.read_u8(0x609), (PM_TIMER_HZ >> 8) as u8);
    s.write(0, 1);
    s.write(2, 1);
    assert!(!s.sci());
    s.board.clocks.advance_virtual_to(SECOND * 234 / 100);
    assert!(!s.sci());
    s.board.clocks.advance_virtual_to(SECOND * 235 / 100);
    assert!(s.sci(), "2^23 cycles are 2.343 s");
    assert_eq!(s.read(0) & 1, 1);
    s.write(0, 1);
    assert!(!s.sci());
}

#[test]
fn the_power_button_is_an_event_once_it_is_enabled() {
    let s = setup();
    s.board.powerdown.notify();
    assert_eq!(s.read(0) & 0x100, 0);
    s.write(2, 0x100);
    s.board.powerdown.notify();
    assert!(s.sci());
    s.board.port_space.write_u8(0x601, 0x01);
    assert!(!s.sci(), "cleared by a byte access");
}

#[test]
fn acpi_is_switched_by_apm_and_sleeps_by_its_control_register() {
    let s = setup();
    let apm = |v| s.board.port_space.write_u8(0xb2, v);
    apm(0xf1);
    assert_eq!((s.read(4), s.board.port_space.read_u8(0xb2)), (1, 0xf1));
    apm(0x10);
    assert_eq!(s.smis.load(Ordering::Relaxed), 0);
    s.pm.config_write(SMI_CONTROL, 0x02, 1);
    apm(0x10);
    assert_eq!(s.smis.load(Ordering::Relaxed), 1);
    s.write(4, 0x2001);
    s.write(4, 0x2001 | 1 << 10);
    s.write(4, 0x2001 | 2 << 10);
    s.write(4, 0x2001 | 5 << 10);
    let wanted = [
        MachineRequest::Shutdown(ShutdownCause::GuestShutdown),
        MachineRequest::Suspend,
        MachineRequest::SuspendToDisk,
    ];
    assert_eq!(*s.requests.lock(), wanted);
    assert_eq!(s.read(4) & 0x2000, 0);
    apm(0xf0);
    assert_eq!(s.read(4) & 1, 0);
}

#[test]
fn a_memory_on_the_smbus_is_read_and_written() {
    let s = setup();
    let ports = &s.board.port_space;
    let run = |address: u8, command: u8, protocol: u8| {
        ports.write_u8(0x700, 0xff);
        ports.write_u8(0x704, address);
        ports.write_u8(0x703, command);
        ports.write_u8(0x702, 0x40 | protocol << 2);
        ports.read_u8(0x700)
    };
    ports.write_u8(0x705, 0x5a);
    assert_eq!(run(0xa2, 7, 2), 2);
    ports.write_u8(0x705, 0);
    assert_eq!((run(0xa3, 7, 2), ports.read_u8(0x705)), (2, 0x5a));
    assert_eq!((run(0xa1, 7, 2), ports.read_u8(0x705)), (2, 0));
    assert_eq!(run(0x30, 7, 2), 4, "nobody answers");
    assert_eq!(run(0xa1, 7, 6), 4, "no such protocol");
}

#[test]
fn general_purpose_events_interrupt() {
    let s = setup();
    s.board.port_space.write_u8(0xafe2, 0x02);
    assert_eq!(s.board.port_space.read_u32(0xafe0), 0x0002_0000);
    assert!(!s.sci());
}

#[test]
fn the_ports_move_with_their_base() {
    let s = setup();
    s.pm.config_write(PM_BASE, 0xb001, 4);
    assert_eq!(s.board.port_space.read_u16(0x604), 0xffff);
    assert_eq!(s.board.port_space.read_u16(0xb004), 0);
    s.pm.reset(ResetKind::Warm);
    assert_eq!(s.board.port_space.read_u16(0xb004), 0xffff);
}

#[test]
fn the_wire_form_has_qemus_length() {
    let mut out = lockstep_vmstate::Encoder::new();
    setup().pm.snapshot().encode(&mut out);
    assert_eq!(out.into_bytes().len(), 2432);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        s.write(0, 1);
        s.write(2, 0x101);
        s.board.powerdown.notify();
        s.board.port_space.write_u8(0xb3, 4);
        s.board.port_space.write_u8(0x703, 4);
        s.pm
    },
    || setup().pm
);
