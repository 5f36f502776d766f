//! APICs as operating systems drive them.

use lockstep_vmstate::{VmState, vmstate_roundtrip};

use super::*;

#[derive(Default)]
struct Cpu(Mutex<Vec<String>>);

impl ApicCpu for Cpu {
    fn interrupts_changed(&self) {}
    fn nmi(&self) {
        self.0.lock().push("nmi".into());
    }
    fn smi(&self) {
        self.0.lock().push("smi".into());
    }
    fn init(&self) {
        self.0.lock().push("init".into());
    }
    fn start_up(&self, vector: u8) {
        self.0.lock().push(format!("start {vector:#x}"));
    }
}

struct Setup {
    board: Board,
    bus: Arc<ApicBus>,
    ioapic: Arc<IoApic>,
    pic: Arc<PicPair>,
    cpus: Vec<Arc<Cpu>>,
}

fn setup() -> Setup {
    let board = Board::new(Clocks::manual());
    let bus = ApicBus::new(&board, &[0, 1, 2]);
    let ioapic = IoApic::new(&board);
    let pic = PicPair::new(&board, bus.lint0());
    ioapic.connect(bus.clone(), pic.clone());
    bus.connect(&ioapic, &pic);
    let cpus: Vec<_> = (0..3).map(|_| Arc::new(Cpu::default())).collect();
    for (n, cpu) in cpus.iter().enumerate() {
        let apic = bus.apic(n).unwrap();
        apic.connect(cpu.clone());
        apic.write(0xf0, 0x1ff);
        apic.write(0xd0, 1 << (24 + n));
    }
    Setup { board, bus, ioapic, pic, cpus }
}

impl Setup {
    fn apic(&self, n: usize) -> &Arc<LocalApic> {
        self.bus.apic(n).unwrap()
    }

    fn ioapic_entry(&self, pin: u32, low: u32, high: u32) {
        for (index, value) in [(0x11 + pin * 2, high), (0x10 + pin * 2, low)] {
            self.board.memory_space.write_u32(0xfec0_0000, index);
            self.board.memory_space.write_u32(0xfec0_0010, value);
        }
    }
}

#[test]
fn identity_and_state_after_reset() {
    let s = setup();
    s.apic(1).reset();
    let read = |offset| s.apic(1).read(offset);
    assert_eq!([read(0x20), read(0x30), read(0xe0), read(0xf0)], [1 << 24, 0x5_0014, 0xffff_ffff, 0xff]);
    assert_eq!((read(0x320), read(0x350), s.apic(0).base()), (0x1_0000, 0x1_0000, 0xfee0_0900));
}

#[test]
fn higher_vectors_interrupt_lower_ones_and_wait_for_task_priority() {
    let s = setup();
    let a = s.apic(0);
    s.board.memory_space.write_u32(0xfee0_0000, 0x31);
    assert!(!a.has_interrupt(), "the first page is no place for messages");
    s.bus.send_msi(0xfee0_0000, 0x31);
    s.bus.send_msi(0xfee0_0000, 0x52);
    s.bus.send_msi(0xfee0_0000, 0x35);
    assert_eq!((a.take_vector(), a.take_vector()), (Some(0x52), None));
    a.set_cr8(3);
    a.write(0xb0, 0);
    assert_eq!(a.take_vector(), None);
    a.set_cr8(2);
    assert_eq!(a.take_vector(), Some(0x35));
    assert_eq!(a.read(0xa0), 0x30);
    s.bus.send_msi(0xfee0_0000, 0x37);
    assert!(!a.has_interrupt(), "the same class waits");
}

#[test]
fn a_level_goes_round_by_the_end_of_interrupt() {
    let s = setup();
    s.ioapic_entry(11, 0xa059, 0x0100_0000);
    s.ioapic.set_irq(11, true);
    let a = s.apic(1);
    assert_eq!((a.take_vector(), a.read(0x1a0) >> 25 & 1), (Some(0x59), 1));
    a.write(0xb0, 0);
    assert_eq!(a.take_vector(), Some(0x59), "the line is still high");
    s.ioapic.set_irq(11, false);
    a.write(0xb0, 0);
    assert_eq!(a.take_vector(), None);
}

#[test]
fn messages_reach_whom_they_address() {
    let s = setup();
    let taken = || [0, 1, 2].map(|n| s.apic(n).take_vector().inspect(|_| s.apic(n).write(0xb0, 0)).is_some());
    let send = |high: u32, low: u32| {
        s.apic(0).write(0x310, high);
        s.apic(0).write(0x300, low);
        taken()
    };
    assert_eq!(send(0x0200_0000, 0x40), [false, false, true]);
    assert_eq!(send(0x0300_0000, 0x840), [true, true, false], "logical, flat");
    assert_eq!(send(0xff00_0000, 0x40), [true; 3]);
    assert_eq!(send(0, 0x4_0040), [true, false, false]);
    assert_eq!(send(0, 0x8_0040), [true; 3]);
    assert_eq!(send(0, 0xc_0040), [false, true, true]);
    s.apic(0).set_cr8(1);
    s.apic(2).set_cr8(2);
    assert_eq!(send(0x0700_0000, 0x940), [false, true, false], "the lowest priority");
    assert_eq!(send(0, 0x8_0004), [false; 3], "no such vector");
    s.apic(0).write(0x280, 0);
    assert_eq!(s.apic(0).read(0x280), 0x20);
}

#[test]
fn other_cpus_are_started() {
    let s = setup();
    for low in [0xc_4500, 0xc_8500, 0xc_4610] {
        s.apic(0).write(0x300, low);
    }
    assert_eq!(*s.cpus[1].0.lock(), ["init", "start 0x10"]);
    assert!(s.cpus[0].0.lock().is_empty());
    s.apic(2).write(0xf0, 0x1ff);
    s.apic(2).write(0x360, 0x400);
    s.apic(2).inject_nmi();
    assert_eq!(s.cpus[2].0.lock().last().map(String::as_str), Some("nmi"));
}

#[test]
fn the_8259_reaches_the_boot_cpu_through_lint0() {
    let s = setup();
    for (port, value) in [(0x20, 0x11), (0x21, 0x08), (0x21, 4), (0x21, 1), (0x21, 0)] {
        s.board.port_space.write_u8(port, value);
    }
    s.apic(0).write(0x350, 0x700);
    s.pic.set_irq(0, true);
    assert!(s.apic(0).has_interrupt() && !s.apic(1).has_interrupt());
    assert_eq!((s.apic(0).take_vector(), s.apic(0).take_vector()), (Some(0x08), None));
    s.board.port_space.write_u8(0x20, 0x20);
    s.pic.set_irq(0, false);
    s.apic(0).write(0x350, 0x1_0700);
    s.pic.set_irq(0, true);
    assert!(!s.apic(0).has_interrupt(), "masked");
}

#[test]
fn the_timer_counts_once_or_again_and_again() {
    let s = setup();
    let a = s.apic(0);
    let advance = |ns: i64| s.board.clocks.advance_virtual_to(s.board.clocks.now_ns(Clock::Virtual) + ns);
    a.write(0x3e0, 0x03);
    a.write(0x320, 0x50);
    a.write(0x380, 1000);
    advance(8000);
    assert_eq!((a.read(0x390), a.take_vector()), (500, None));
    advance(8100);
    assert_eq!((a.read(0x390), a.take_vector()), (0, Some(0x50)));
    a.write(0xb0, 0);
    advance(100_000);
    assert_eq!(a.take_vector(), None);
    a.write(0x320, 0x2_0050);
    a.write(0x380, 1000);
    for _ in 0..5 {
        advance(16_016);
        assert_eq!(a.take_vector(), Some(0x50));
        a.write(0xb0, 0);
    }
    a.write(0x320, 0x4_0050);
    assert!(a.set_deadline(Some(s.board.clocks.now_ns(Clock::Virtual) + 500)));
    advance(499);
    assert_eq!(a.take_vector(), None);
    advance(1);
    assert_eq!(a.take_vector(), Some(0x50));
}

#[test]
fn x2apic_registers_are_msrs() {
    let s = setup();
    let a = s.apic(1);
    assert_eq!(a.read_msr(0x802), None);
    assert!(a.set_base(a.base() | 1 << 10));
    assert_eq!((a.read_msr(0x802), a.read_msr(0x80d), a.read_msr(0x80e)), (Some(1), Some(2), None));
    assert!(a.write_msr(0x83f, 0x66));
    assert_eq!(a.take_vector(), Some(0x66));
    assert!(a.write_msr(0x80b, 0) && !a.write_msr(0x80b, 1));
    assert!(a.write_msr(0x830, 2 << 32 | 0x41));
    assert_eq!(s.apic(2).take_vector(), Some(0x41));
    assert!(!a.set_base(0xfee0_0800), "not back to the page without being turned off");
}

#[test]
fn the_wire_form_has_qemus_length() {
    let mut out = lockstep_vmstate::Encoder::new();
    setup().apic(0).snapshot().encode(&mut out);
    assert_eq!(out.into_bytes().len(), 181);
}

vmstate_roundtrip!(
    state_survives_the_wire,
    || {
        let s = setup();
        let a = s.apic(0).clone();
        a.write(0x3e0, 0x0b);
        a.write(0x320, 0x2_0050);
        a.write(0x380, 1000);
        s.bus.send_msi(0xfee0_0000, 0x8031);
        a.take_vector();
        s.bus.send_msi(0xfee0_0000, 0x52);
        a
    },
    || setup().apic(0).clone()
);
