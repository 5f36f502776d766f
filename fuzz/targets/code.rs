//! Code of a hostile guest on the software CPU: any mode, interpreted, translated, or both and compared. Nothing around the guest's
//! memory is touched, and the guest stops when it is asked to.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_cpu::{
    Cpu, CpuLink, Engine, Exit, Machine, Platform, Registers, request,
    state::{Segment, Table},
    supported_cpuid,
};
use lockstep_memory::{AccessRules, AddressSpace, IoHandler, RamBlock, Region};
use std::{
    ptr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x30_0000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
/// Behind the memory: registers of a device.
const DEVICE: u64 = RAM;
/// How long the guest may run.
const TIME: Duration = Duration::from_micros(300);

/// Registers that count.
struct Device(AtomicU64);

impl IoHandler for Device {
    fn read(&self, offset: u64, _: u32) -> u64 {
        self.0.fetch_add(offset | 1, Ordering::Relaxed)
    }
    fn write(&self, _: u64, _: u32, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
    fn rules(&self) -> AccessRules {
        AccessRules { valid_min: 1, valid_max: 8, unaligned: true, handled_min: 1, handled_max: 8 }
    }
}

/// Reading the time-stamp counter raises an interrupt now and then.
struct Chips {
    tsc: AtomicU64,
    link: Arc<CpuLink>,
}

impl Platform for Chips {
    fn interrupt_pending(&self) -> bool {
        self.tsc.load(Ordering::Relaxed) % 4 == 3
    }
    fn take_interrupt(&self) -> Option<u8> {
        let at = self.tsc.fetch_add(1, Ordering::Relaxed);
        (at % 4 == 3).then_some(at as u8 | 32)
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, index: u32) -> Option<u64> {
        (index & 1 != 0).then_some(index.into())
    }
    fn write_msr(&self, index: u32, _: u64) -> bool {
        index & 2 != 0
    }
    fn read_apic(&self, offset: u32) -> u32 {
        offset
    }
    fn write_apic(&self, _: u32, _: u32) {}
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn tsc(&self) -> u64 {
        let at = self.tsc.fetch_add(1, Ordering::Relaxed);
        if at % 4 == 2 {
            self.link.raise(request::INTERRUPT);
        }
        at
    }
    fn ferr(&self) {}
}

/// Pages before and behind the guest's memory that nobody may touch, where nothing else is.
struct Guards([Option<usize>; 2]);

const GUARD: usize = 1 << 20;

impl Guards {
    fn around(first: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        Self([first - GUARD, first + RAM as usize].map(|at| {
            // SAFETY: a new mapping that replaces none.
            let got = unsafe { libc::mmap(ptr::without_provenance_mut(at), GUARD, libc::PROT_NONE, flags, -1, 0) };
            if got.addr() == at {
                return Some(at);
            }
            if got != libc::MAP_FAILED {
                // SAFETY: mapped just now, elsewhere: an old kernel.
                unsafe { libc::munmap(got, GUARD) };
            }
            None
        }))
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        for at in self.0.iter().flatten() {
            // SAFETY: mapped in `around`, used by nobody.
            unsafe { libc::munmap(ptr::without_provenance_mut(*at), GUARD) };
        }
    }
}

/// Who is to be stopped, and when.
static RUNNING: Mutex<Option<(Instant, Arc<CpuLink>)>> = Mutex::new(None);

fn start_watch() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(TIME / 3);
                if let Some((until, link)) = &*RUNNING.lock().unwrap()
                    && Instant::now() >= *until
                {
                    link.raise(request::EXIT);
                }
            }
        });
    });
}

fn put(ram: &RamBlock, at: u64, value: u64) {
    ram.write(at, &value.to_le_bytes()).unwrap();
}

/// Tables for all modes: identical pages, flat segments, a task, handlers that halt.
fn furnish(ram: &RamBlock, long: bool) {
    if long {
        put(ram, 0x1000, 0x2007);
        put(ram, 0x2000, 0x3007);
        (0..512).for_each(|i| put(ram, 0x3000 + 8 * i, i << 21 | 0x87));
    } else {
        // Pages of 4 MiB.
        (0..512).for_each(|i| put(ram, 0x1000 + 8 * i, (2 * i + 1) << 54 | 0x87 << 32 | 2 * i << 22 | 0x87));
    }
    let segments = [
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_7000_0067,
        0,
        0x00cf_9b00_0000_ffff,
        // A call gate and a task gate.
        0x0000_ec00_0038_a000,
        0x0000_e500_0030_0000,
    ];
    (1..).zip(segments).for_each(|(i, d)| put(ram, GDT + 8 * i, d));
    put(ram, 0x7004, STACK - 0x1000);
    put(ram, 0x7024, STACK - 0x2000);
    for v in 0..256 {
        let target = 0xa000 + 16 * v;
        if long {
            put(ram, IDT + 16 * v, target & 0xffff | 8 << 16 | 0x8e00 << 32);
        } else {
            put(ram, IDT + 8 * v, target & 0xffff | 0x40 << 16 | 0xee00 << 32);
        }
        // Some come back.
        ram.write(target, if v % 8 == 1 { &[0xcf] } else { &[0xf4] }).unwrap();
    }
}

fn segment(selector: u16, base: u64, limit: u32, flags: u32) -> Segment {
    Segment { selector, base, limit, flags }
}

/// Real mode, virtual 8086, 16 and 32 bits without and with pages, 64 bits, each of the last three with both privileges.
fn set_mode(r: &mut Registers, mode: u8) {
    let user = mode & 1 != 0;
    let dpl = if user { 0x6000 } else { 0 };
    let flat = |kind: u32| segment(if user { 0x23 } else { 0x10 }, 0, u32::MAX, 0xc0_9300 | kind | dpl);
    r.gdt = Table { base: GDT, limit: 95 };
    r.idt = Table { base: IDT, limit: 0xfff };
    r.tr = segment(48, 0x7000, 0x67, 0x8b00);
    r.segs = [flat(0); 6];
    (r.cr3, r.cr4, r.efer, r.xcr0) = (0x1000, 0x5_0620, 0, 7);
    r.rip = CODE;
    r.rflags = 2 | 0x200 * u64::from(mode & 8 != 0);
    match mode % 8 {
        0 | 1 => {
            let real = segment(0xf000, 0xf_0000, 0xffff, if user { 0xf300 } else { 0x9300 });
            r.segs = [real; 6];
            r.cr0 = if user { 0x11 } else { 0x10 };
            r.rflags |= if user { 1 << 17 } else { 0 };
            r.rip = 0;
            r.idt.base = if user { IDT } else { 0 };
        }
        2 | 3 => {
            r.cr0 = 0x33;
            r.segs[1] = segment(if user { 0x1b } else { 0x40 }, 0, u32::MAX, 0x80_9b00 | dpl);
        }
        4 | 5 => {
            (r.cr0, r.cr4) = (0x8001_0033, 0x0610);
            r.segs[1] = segment(if user { 0x1b } else { 0x40 }, 0, u32::MAX, 0xc0_9b00 | dpl);
        }
        _ => {
            (r.cr0, r.efer) = (0x8001_0033, 0xd01);
            r.segs[1] = segment(if user { 0x2b } else { 8 }, 0, u32::MAX, 0xa0_9b00 | dpl);
        }
    }
}

/// A register's value from a byte: places where something is, and edges.
fn value(byte: u8) -> u64 {
    let places = [
        0,
        1,
        CODE,
        CODE + 0x40,
        CODE + 0xffc,
        0x20_0000,
        0x20_0ffd,
        STACK,
        RAM - 1,
        RAM - 7,
        DEVICE,
        DEVICE + 0xfff,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 47,
        u64::MAX,
    ];
    match byte >> 4 {
        0..8 => places[usize::from(byte & 15)],
        shift => (1 << (4 * (shift - 8))) * u64::from(byte & 15),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((head, code)) = data.split_at_checked(20) else { return };
    start_watch();
    let (mode, how) = (head[0], head[1]);
    let root = Region::whole_space("memory");
    let ram = RamBlock::new("ram", RAM).unwrap();
    let _guards = Guards::around(ram.host_address() as usize);
    root.add(0, &Region::ram("ram", ram.clone()));
    root.add(DEVICE, &Region::io("device", 0x1000, Arc::new(Device(AtomicU64::new(how.into())))));
    let ports = Region::whole_space("io");
    ports.add(0, &Region::io("ports", 0x8000, Arc::new(Device(AtomicU64::new(0)))));
    let machine = Machine::new(&AddressSpace::memory("memory", &root), &AddressSpace::ports("io", &ports));
    let link = CpuLink::new();
    let chips = Arc::new(Chips { tsc: AtomicU64::new(how.into()), link: link.clone() });
    let engine = [Engine::Interpreter, Engine::Translator, Engine::Translator, Engine::Check][usize::from(how & 3)];
    let mut model = supported_cpuid();
    // What is random differs between two runs.
    for leaf in &mut model {
        match leaf.leaf {
            1 => leaf.ecx &= !(1 << 30),
            7 => leaf.ebx &= !(1 << 18),
            _ => {}
        }
    }
    let mut cpu = Cpu::with_engine(&machine, chips, link.clone(), model, 1, engine).unwrap();
    cpu.translate_after(if how & 4 != 0 { 0 } else { 12 });
    furnish(&ram, mode % 8 >= 6);
    let mut r = cpu.registers();
    for (register, byte) in r.gpr.iter_mut().zip(&head[2..18]) {
        *register = value(*byte);
    }
    r.gpr[4] = if how & 8 != 0 { value(head[6]) } else { STACK };
    set_mode(&mut r, mode);
    r.rflags |= u64::from(head[18]) & 0xd5 | u64::from(head[19] & 0x0c) << 8;
    cpu.set_registers(&r);
    let at = if mode % 8 < 2 { 0xf_0000 } else { CODE };
    ram.write(at, &code[..code.len().min(0x4000)]).unwrap();
    *RUNNING.lock().unwrap() = Some((Instant::now() + TIME, link.clone()));
    let exit = cpu.run();
    *RUNNING.lock().unwrap() = None;
    assert!(matches!(exit, Exit::Kicked | Exit::Halted | Exit::TripleFault), "{exit:?}");
    let r = cpu.registers();
    cpu.set_registers(&r);
});
