//! A machine of RAM only, and a processor in 64-bit mode with an identity map.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use lockstep_memory::{AddressSpace, RamBlock, Region};

use crate::{Cpu, CpuLink, Engine, Machine, Platform, Registers, request, state::Segment, supported_cpuid};

/// A platform without devices. Reading the time-stamp counter can raise an interrupt, so that tests know when it comes.
#[derive(Default)]
pub struct Quiet {
    pub tsc: AtomicU64,
    /// The first reading raises this vector at this processor.
    pub on_tsc: OnceLock<(u8, Arc<CpuLink>)>,
    pub raised: AtomicBool,
    pub done: AtomicBool,
}

impl Platform for Quiet {
    fn interrupt_pending(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }
    fn take_interrupt(&self) -> Option<u8> {
        self.raised.swap(false, Ordering::SeqCst).then(|| self.on_tsc.get().map(|(v, _)| *v))?
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _value: u8) {}
    fn read_msr(&self, _index: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _index: u32, _value: u64) -> bool {
        false
    }
    fn read_apic(&self, _offset: u32) -> u32 {
        0
    }
    fn write_apic(&self, _offset: u32, _value: u32) {}
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn tsc(&self) -> u64 {
        if let Some((_, link)) = self.on_tsc.get()
            && !self.done.swap(true, Ordering::SeqCst)
        {
            self.raised.store(true, Ordering::SeqCst);
            link.raise(request::INTERRUPT);
        }
        self.tsc.fetch_add(1, Ordering::Relaxed)
    }
    fn ferr(&self) {}
}

pub const RAM: u64 = 16 << 20;
/// Where tests put code, data and the stack.
pub const CODE: u64 = 0x10_0000;
pub const DATA: u64 = 0x20_0000;
pub const STACK: u64 = 0x30_0000;
pub const GDT: u64 = 0x8000;
pub const IDT: u64 = 0x9000;

/// Segments of 64-bit mode, supervisor.
pub fn code_segment() -> Segment {
    Segment { selector: 8, base: 0, limit: 0xffff_ffff, flags: 0xa0_9b00 }
}

pub fn data_segment() -> Segment {
    Segment { selector: 16, base: 0, limit: 0xffff_ffff, flags: 0xc0_9300 }
}

fn bare_on(platforms: &[Arc<dyn Platform>], engine: Engine) -> (Vec<Box<Cpu>>, RamBlock) {
    let root = Region::whole_space("memory");
    let ram = RamBlock::new("ram", RAM).unwrap();
    root.add(0, &Region::ram("ram", ram.clone()));
    let memory = AddressSpace::memory("memory", &root);
    let ports = AddressSpace::ports("io", &Region::whole_space("io"));
    let machine = Machine::new(&memory, &ports);
    let mut model = supported_cpuid();
    // What is random differs between two runs.
    for leaf in &mut model {
        match leaf.leaf {
            1 => leaf.ecx &= !(1 << 30),
            7 => leaf.ebx &= !(1 << 18),
            _ => {}
        }
    }
    let one = |platform: &Arc<dyn Platform>| {
        let (platform, model) = (platform.clone(), model.clone());
        let mut cpu = Cpu::with_engine(&machine, platform, CpuLink::new(), model, platforms.len(), engine).unwrap();
        if engine == Engine::Check {
            cpu.translator.hot = 0;
        }
        cpu
    };
    (platforms.iter().map(one).collect(), ram)
}

pub fn put64(ram: &RamBlock, at: u64, value: u64) {
    ram.write(at, &value.to_le_bytes()).unwrap();
}

/// A processor in 64-bit mode at privilege level 0, first GiB mapped as it is, by pages of 2 MiB; all vectors lead to a HLT at
/// 0xa000 + 16 * vector.
pub fn long_mode() -> (Box<Cpu>, RamBlock) {
    long_mode_on(Arc::<Quiet>::default())
}

/// As [`long_mode`], with a choice of what executes.
pub fn long_mode_with(engine: Engine) -> (Box<Cpu>, RamBlock) {
    long_mode_of(Arc::<Quiet>::default(), engine)
}

/// As [`long_mode`], on a platform that the test keeps.
pub fn long_mode_on(platform: Arc<dyn Platform>) -> (Box<Cpu>, RamBlock) {
    long_mode_of(platform, Engine::chosen())
}

/// Both choices.
pub fn long_mode_of(platform: Arc<dyn Platform>, engine: Engine) -> (Box<Cpu>, RamBlock) {
    let (mut cpus, ram) = long_mode_each(&[platform], engine);
    (cpus.remove(0), ram)
}

/// As [`long_mode`], two processors of one machine.
pub fn long_mode_pair(engine: Engine) -> (Box<Cpu>, Box<Cpu>, RamBlock) {
    let (mut cpus, ram) = long_mode_each(&[Arc::<Quiet>::default(), Arc::<Quiet>::default()], engine);
    let second = cpus.remove(1);
    (cpus.remove(0), second, ram)
}

fn long_mode_each(platforms: &[Arc<dyn Platform>], engine: Engine) -> (Vec<Box<Cpu>>, RamBlock) {
    let (mut cpus, ram) = bare_on(platforms, engine);
    put64(&ram, 0x1000, 0x2000 | 7);
    put64(&ram, 0x2000, 0x3000 | 7);
    for i in 0..512 {
        put64(&ram, 0x3000 + 8 * i, i << 21 | 0x80 | 7);
    }
    put64(&ram, GDT + 8, 0x00af_9b00_0000_ffff);
    put64(&ram, GDT + 16, 0x00cf_9300_0000_ffff);
    put64(&ram, GDT + 24, 0x00cf_fb00_0000_ffff);
    put64(&ram, GDT + 32, 0x00cf_f300_0000_ffff);
    put64(&ram, GDT + 40, 0x00af_fb00_0000_ffff);
    // A task state at 0x7000: RSP0 below the stack's start, IST1 elsewhere.
    put64(&ram, GDT + 48, 0x0000_8b00_7000_0067);
    put64(&ram, 0x7004, STACK - 0x1000);
    put64(&ram, 0x7024, STACK - 0x2000);
    for v in 0..256u64 {
        let target = 0xa000 + 16 * v;
        put64(&ram, IDT + 16 * v, target & 0xffff | 8 << 16 | 0x8e00 << 32 | (target >> 16) << 48);
        ram.write(target, &[0xf4]).unwrap();
    }
    for cpu in &mut cpus {
        let mut r = cpu.registers();
        set_long(&mut r);
        cpu.set_registers(&r);
    }
    (cpus, ram)
}

pub fn set_long(r: &mut Registers) {
    r.cr0 = 0x8000_0033;
    r.cr4 = 0x20 | 1 << 9 | 1 << 10 | 1 << 18;
    r.cr3 = 0x1000;
    r.efer = 0xd01;
    r.xcr0 = 7;
    r.segs = [data_segment(); 6];
    r.segs[1] = code_segment();
    r.gdt.base = GDT;
    r.gdt.limit = 63;
    r.idt.base = IDT;
    r.idt.limit = 0xfff;
    r.tr = Segment { selector: 48, base: 0x7000, limit: 0x67, flags: 0x8b00 };
    r.rip = CODE;
    r.gpr[4] = STACK;
    r.rflags = 2;
}

/// Has a processor of [`long_mode`] run 32-bit code with flat segments, as programs of 32 bits do there.
pub fn make_flat(cpu: &mut Cpu) {
    let mut r = cpu.registers();
    r.segs[1] = Segment { selector: 24, base: 0, limit: 0xffff_ffff, flags: 0xc0_9b00 };
    cpu.set_registers(&r);
    assert!(cpu.is_flat());
}

/// A small generator with a fixed seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Often a value near a boundary.
    pub fn value(&mut self) -> u64 {
        let edge =
            [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX];
        match self.below(4) {
            0 => edge[self.below(13) as usize],
            1 => edge[self.below(13) as usize].wrapping_add(self.below(5)).wrapping_sub(2),
            2 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}
