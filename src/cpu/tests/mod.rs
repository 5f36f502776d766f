//! Claims about the processor.

mod bench;
mod calls;
mod debug;
mod dirty;
mod faults;
mod fuzz;
mod instructions;
mod interrupts;
mod lockstep;
mod loops;
mod support;
mod translated;
