//! The processor: ports, time stamp counter, waiting for interrupts, guest time.
use crate::boot;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Writes a byte to an I/O port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: device registers do not alias Rust memory; DMA goes to buffers their drivers own.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) }
}
/// Reads a byte from an I/O port.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for outb.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack)) }
    value
}
/// Writes 16 bits to an I/O port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as for outb.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack)) }
}
/// Writes 32 bits to an I/O port.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as for outb.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) }
}
/// Reads 32 bits from an I/O port.
pub fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for outb.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) }
    value
}

/// The time stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and nothing forbids ring 0 its use.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Does this run natively under kvm-pvm?
pub fn is_pvm() -> bool {
    boot::PVM_NATIVE.load(Relaxed) != 0
}

/// Waits for an interrupt. May return without one.
pub fn idle() {
    if is_pvm() { boot::idle_pvm() } else { boot::idle_plain() }
}

/// Lets a pending interrupt in, without waiting.
pub fn window() {
    if is_pvm() { boot::window_pvm() } else { boot::window_plain() }
}

static LAST_TSC: AtomicU64 = AtomicU64::new(0);
static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static CYCLES: AtomicU64 = AtomicU64::new(0);

/// Finds the counter's rate and starts guest time at 0.
pub fn start_clock() {
    let khz = if is_pvm() { rdmsr(0x4b56_4d13) } else { measure_tsc_khz() };
    TSC_KHZ.store(khz.max(1), Relaxed);
    LAST_TSC.store(rdtsc(), Relaxed);
}

/// Counts cycles over 20 ms of PIT channel 2 (8254 mode 0, gate and output in port 0x61).
fn measure_tsc_khz() -> u64 {
    let gate = inb(0x61) & !3;
    outb(0x61, gate);
    outb(0x43, 0xb0);
    let count = 1_193_182u32 / 50;
    outb(0x42, count as u8);
    outb(0x42, (count >> 8) as u8);
    let start = rdtsc();
    outb(0x61, gate | 1);
    while inb(0x61) & 0x20 == 0 {}
    (rdtsc() - start) / 20
}

fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: called for MSRs that kvm-pvm has, only under kvm-pvm.
    unsafe { asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nostack)) }
    u64::from(high) << 32 | u64::from(low)
}

/// The time stamp counter and its rate in kHz.
pub fn counter() -> (u64, u64) {
    (rdtsc(), TSC_KHZ.load(Relaxed))
}

/// The power management timer of the chipset (3.579545 MHz, 24 bits), which follows the machine's virtual clock. The firmware has put
/// it there.
pub fn acpi_timer() -> u32 {
    inl(0x608) & 0xff_ffff
}

/// KVM's clock in nanoseconds, where it has one for this guest (Documentation/virt/kvm/x86/msr.rst).
pub fn kvmclock() -> Option<u64> {
    if boot::HAS_KVMCLOCK.load(Relaxed) == 0 {
        return None;
    }
    // SAFETY: the page is mapped and nothing else lies in it; all values are whole numbers.
    let read = |at: u64| unsafe { core::ptr::read_volatile((boot::KVMCLOCK + at) as *const u32) };
    let wide = |at| u64::from(read(at)) | u64::from(read(at + 4)) << 32;
    loop {
        let version = read(0);
        let (then, time, factor, shift) = (wide(8), wide(16), read(24), read(28) as i8);
        let passed = rdtsc().wrapping_sub(then);
        let passed = if shift < 0 { passed >> -shift } else { passed << shift };
        if version & 1 == 0 && read(0) == version {
            return Some(time.wrapping_add((u128::from(passed) * u128::from(factor) >> 32) as u64));
        }
    }
}

/// Guest time in microseconds. It never runs backwards and leaves out gaps: a failover or a migration may make the counter jump,
/// and TCP timers and timestamps must not notice.
pub fn now_us() -> u64 {
    let tsc = rdtsc();
    let khz = TSC_KHZ.load(Relaxed);
    let passed = tsc.wrapping_sub(LAST_TSC.swap(tsc, Relaxed));
    let passed = if passed > khz * 2000 { khz / 10 } else { passed };
    let cycles = CYCLES.load(Relaxed) + passed;
    CYCLES.store(cycles, Relaxed);
    (u128::from(cycles) * 1000 / u128::from(khz)) as u64
}

/// Guest time in milliseconds as a TCP timestamp value (RFC 7323).
pub fn timestamp() -> u32 {
    (now_us() / 1000) as u32
}

/// Numbers that no two VMs share, even if both were loaded from one checkpoint: mixed from the time stamp counter at each call and
/// from RDRAND where the CPU has it.
pub struct Entropy {
    state: u64,
    has_rdrand: bool,
}

impl Entropy {
    /// Looks for RDRAND.
    pub fn new() -> Self {
        let has_rdrand = core::arch::x86_64::__cpuid(1).ecx & 1 << 30 != 0;
        Self { state: rdtsc(), has_rdrand }
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        let hardware = if self.has_rdrand { rdrand() } else { 0 };
        self.state = mix(self.state ^ rdtsc().rotate_left(17) ^ hardware);
        self.state
    }
}

fn rdrand() -> u64 {
    let value: u64;
    // SAFETY: called only when CPUID reports the instruction. A failure leaves 0, which is as good as not having it.
    unsafe { asm!("rdrand {}", out(reg) value, options(nomem, nostack)) }
    value
}

/// The output function of splitmix64.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
