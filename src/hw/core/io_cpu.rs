//! The general registers of the CPU that makes an I/O access: a paravirtual port passes its arguments in them.

use std::{cell::RefCell, rc::Rc};

/// EAX, EBX, ECX, EDX, ESI, EDI.
pub type IoRegisters = [u32; 6];

/// A CPU in the middle of an I/O instruction.
pub trait IoCpu {
    /// The registers.
    fn registers(&self) -> IoRegisters;
    /// Sets all but EAX, which the instruction itself sets.
    fn set_registers(&self, registers: &IoRegisters);
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<dyn IoCpu>>> = const { RefCell::new(None) };
}

/// Says which CPU this thread runs. An engine whose registers cannot be had during I/O says none: paravirtual ports then do not answer.
pub fn set_io_cpu(cpu: Option<Rc<dyn IoCpu>>) {
    CURRENT.with(|c| *c.borrow_mut() = cpu);
}

/// The CPU that this thread runs.
pub fn io_cpu() -> Option<Rc<dyn IoCpu>> {
    CURRENT.with(|c| c.borrow().clone())
}
