//! Interrupt table, the two 8259 interrupt controllers, the timer tick.
use crate::boot;
use crate::cpu::outb;
use core::sync::atomic::Ordering::Relaxed;

/// IRQ of the timer.
pub const TIMER: u8 = 0;
/// Timer interrupts a second.
pub const TICKS_PER_SECOND: u32 = 100;

/// Fills the interrupt table, moves the controllers to vectors 0x20 to 0x2f with everything masked but `lines`, starts the tick.
pub fn start(lines: &[u8]) {
    for i in 0..48u64 {
        // SAFETY: the table is 4 KiB at a fixed address that nothing else uses; interrupts are off.
        unsafe {
            let target = boot::VECTORS[i as usize];
            let gate = (boot::IDT + i * 16) as *mut u64;
            gate.write_volatile(target & 0xffff | 8 << 16 | 0x8e00 << 32 | (target >> 16 & 0xffff) << 48);
            gate.add(1).write_volatile(target >> 32);
        }
    }
    let mask = lines.iter().fold(!(1u16 << TIMER | 1 << 2), |mask, line| mask & !(1 << line));
    for (port, first_vector, wiring) in [(0x20u16, 0x20u8, 4u8), (0xa0, 0x28, 2)] {
        outb(port, 0x11);
        outb(port + 1, first_vector);
        outb(port + 1, wiring);
        outb(port + 1, 1);
    }
    outb(0x21, mask as u8);
    outb(0xa1, (mask >> 8) as u8);
    let divisor = 1_193_182 / TICKS_PER_SECOND;
    outb(0x43, 0x34);
    outb(0x40, divisor as u8);
    outb(0x40, (divisor >> 8) as u8);
}

/// The interrupts taken since the last call, bit n = IRQ n.
pub fn take() -> u32 {
    boot::IRQ_SEEN.swap(0, Relaxed)
}
