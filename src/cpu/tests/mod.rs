//! Claims about the processor.

mod bench;
mod faults;
mod fuzz;
mod instructions;
mod interrupts;
mod lockstep;
mod support;
mod translated;
