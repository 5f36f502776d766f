//! Claims about the processor.

mod alignment;
mod bench;
mod breakpoints;
mod calls;
mod counting;
mod debug;
mod dirty;
mod faults;
mod flat;
mod fuzz;
mod instructions;
mod interrupts;
mod lockstep;
mod loops;
mod pcid;
mod several;
mod support;
mod translated;
