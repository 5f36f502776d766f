//! What runs the guest's CPUs, behind one interface: KVM, the software CPU, or nobody (`qtest`).
//!
//! A [`Vcpu`] runs guest code on a thread of its own until something outside is wanted; [`VcpuSet`] holds the threads and the
//! gate that stops them all. [`CpuState`] is a vCPU's registers in a form that every engine can take and that migration carries.

pub mod cpu_model;
pub mod cpu_state;
pub mod dump;
mod gate;
#[cfg(test)]
mod gate_model;
pub mod kvm;
pub mod qtest;
mod sync;
pub mod tcg;
mod threads;
pub mod vmstate;
pub mod walk;

use lockstep_util::Result;

pub use cpu_state::CpuState;
pub use lockstep_cpu::{DebugControl, DebugStop, WatchKind, Watchpoint};
pub use threads::{VcpuSet, install_kick_handler};

/// Why a vCPU stopped running guest code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Somebody asked it to.
    Kicked,
    /// A triple fault: the machine is to be reset.
    TripleFault,
    /// A hypervisor-level reset or shutdown request (`KVM_EXIT_SYSTEM_EVENT`).
    SystemReset,
    /// See [`SystemReset`](Self::SystemReset).
    SystemShutdown,
    /// A debugger's stop was reached.
    Debug(DebugStop),
    /// The engine cannot go on; the text says why, the registers are as they were.
    InternalError(String),
}

/// One virtual CPU. Its thread holds it while it runs; anyone may use it while the gate is closed.
pub trait Vcpu: Send {
    /// Runs guest code until kicked or until something happens that the machine must handle. I/O is done inside.
    fn run(&mut self) -> VcpuEvent;
    /// Completes an instruction whose I/O was done but whose end the engine has not seen, so that the state is whole.
    fn finish_io(&mut self);
    /// Reads the registers.
    ///
    /// # Errors
    /// When the engine refuses.
    fn save(&mut self) -> Result<CpuState>;
    /// Writes the registers.
    ///
    /// # Errors
    /// When the engine refuses a value; registers may then be part old, part new.
    fn load(&mut self, state: &CpuState) -> Result<()>;
    /// Changes registers.
    ///
    /// # Errors
    /// As for [`save`](Self::save) and [`load`](Self::load).
    fn update(&mut self, change: &mut dyn FnMut(&mut CpuState)) -> Result<()> {
        let mut state = self.save()?;
        change(&mut state);
        self.load(&state)
    }
    /// Sets where to stop for a debugger, in place of what was set before.
    ///
    /// # Errors
    /// When the engine cannot.
    fn set_debug(&mut self, control: &DebugControl) -> Result<()>;
    /// Says that the vCPU will not be run for a while though others are, or that it will be again.
    fn hold(&mut self, _stands: bool) {}
    /// Puts the vCPU in its state after power on.
    ///
    /// # Errors
    /// When the engine refuses.
    fn reset(&mut self) -> Result<()>;
    /// What makes [`run`](Self::run) return soon, from any thread; the vCPU's thread gets a signal as well.
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync>;
    /// The APIC id.
    fn id(&self) -> u32;
}
