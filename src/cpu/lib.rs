//! A software x86-64 processor, for hosts without a usable KVM and for instructions that KVM cannot finish.
//!
//! Instructions are decoded once into blocks of operations ([`block`]), found by where their bytes lie in host memory. Blocks of
//! 64-bit code that run often become machine code ([`jit`]); the rest is interpreted. Common operations are handlers that call each other in tail position ([`ops`]). Instructions that only compute and are
//! rarer run on the host itself, on the guest's registers ([`host`]). The rest takes the long way ([`execute`]).
//! Memory goes through a translation cache ([`mem`]) to the machine's RAM, or to its devices.

mod alignment;
mod alu;
mod arena;
mod block;
mod breakpoints;
mod counting;
mod cpu;
mod debug;
mod decode;
mod exclusive;
mod execute;
mod fault;
mod features;
mod fpu;
mod gather;
mod host;
mod interrupt;
mod jit;
mod machine;
mod mem;
pub mod msr;
mod ops;
mod paging;
mod pcid;
mod platform;
mod registers;
mod segment;
pub mod state;
mod string;
mod system;
mod task;
#[cfg(test)]
mod tests;
mod trace;

pub use cpu::{Cpu, Exit};
pub use debug::{DebugControl, DebugStop, WatchKind, Watchpoint};
pub use features::supported_cpuid;
pub use jit::Engine;
pub use machine::Machine;
pub use platform::{Bell, CpuLink, CpuidLeaf, Platform, request};
pub use registers::{Events, Registers};
pub use trace::DumpRegisters;
