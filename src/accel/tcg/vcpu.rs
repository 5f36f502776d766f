//! A software CPU as a vCPU.

use std::sync::Arc;

use lockstep_cpu::{Cpu, Exit, Platform, request};
use lockstep_util::{Result, err};

use super::{
    convert::{from_state, to_state},
    icount::Icount,
    platform::TcgPlatform,
};
use crate::{
    CpuState, DebugControl, Vcpu, VcpuEvent,
    cpu_state::{MpState, msr},
};

/// A vCPU that this process executes.
pub struct TcgVcpu {
    cpu: Box<Cpu>,
    platform: Arc<TcgPlatform>,
    id: u32,
    icount: Option<Arc<Icount>>,
    /// EAX of CPUID leaf 1, which EDX holds after a reset.
    signature: u32,
}

impl TcgVcpu {
    pub(super) fn new(
        mut cpu: Box<Cpu>,
        platform: Arc<TcgPlatform>,
        id: u32,
        signature: u32,
        icount: Option<Arc<Icount>>,
    ) -> Result<Self> {
        if icount.is_some() {
            cpu.count_instructions();
        }
        let mut this = Self { cpu, platform, id, icount, signature };
        this.reset()?;
        Ok(this)
    }

    /// Runs in turn with the other vCPUs.
    fn run_counted(&mut self, icount: &Icount) -> VcpuEvent {
        let index = self.id as usize;
        while icount.wait_for_turn(index) {
            match self.cpu.run() {
                Exit::Kicked => break,
                Exit::Turn => icount.pass(index),
                Exit::Halted => icount.idle(index, self.cpu.waits_for()),
                Exit::TripleFault => return VcpuEvent::TripleFault,
                Exit::Debug(stop) => return VcpuEvent::Debug(stop),
            }
        }
        VcpuEvent::Kicked
    }
}

impl Vcpu for TcgVcpu {
    fn run(&mut self) -> VcpuEvent {
        if let Some(icount) = self.icount.clone() {
            icount.take_part(true);
            let event = self.run_counted(&icount);
            icount.take_part(false);
            return event;
        }
        loop {
            match self.cpu.run() {
                Exit::Turn => {}
                Exit::Kicked => return VcpuEvent::Kicked,
                Exit::Halted => self.cpu.wait(),
                Exit::TripleFault => return VcpuEvent::TripleFault,
                Exit::Debug(stop) => return VcpuEvent::Debug(stop),
            }
        }
    }

    /// Instructions end before `run` returns.
    fn finish_io(&mut self) {}

    fn save(&mut self) -> Result<CpuState> {
        let mut state = to_state(&self.cpu.registers());
        // The APIC is a device of the machine's, with a section of its own.
        let base = self.platform.apic_base();
        state.cr8 = self.platform.task_priority().into();
        state.set_msr(msr::APIC_BASE, base);
        state.events.interrupt_waits = self.platform.interrupt_pending();
        // The guest's counter and the virtual clock differ by an offset.
        let offset = self.cpu.tsc_offset();
        let deadline = self.platform.read_msr(msr::TSC_DEADLINE).unwrap_or(0);
        state.set_msr(msr::TSC_DEADLINE, if deadline == 0 { 0 } else { deadline.wrapping_add(offset) });
        if state.mp_state == MpState::InitReceived && base & 0x100 != 0 {
            state.mp_state = MpState::Runnable;
        }
        self.platform.set_waiting(state.mp_state == MpState::InitReceived);
        Ok(state)
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        if state.fpu.avx512.as_ref().is_some_and(|a| a.iter().any(|&b| b != 0)) {
            return Err(err!("TCG has no AVX-512 registers"));
        }
        self.cpu.set_registers(&from_state(state));
        let deadline = match state.msr(msr::TSC_DEADLINE) {
            0 => 0,
            value => value.wrapping_sub(self.cpu.tsc_offset()).max(1),
        };
        self.platform.set_deadline(deadline);
        Ok(())
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<()> {
        self.cpu.set_debug(control);
        Ok(())
    }

    fn hold(&mut self, stands: bool) {
        if let Some(icount) = &self.icount {
            icount.hold(self.id as usize, stands);
        }
    }

    fn reset(&mut self) -> Result<()> {
        self.load(&CpuState::reset(self.id, self.id == 0, self.signature))
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let link = self.cpu.link().clone();
        Box::new(move || link.raise(request::EXIT))
    }

    fn id(&self) -> u32 {
        self.id
    }
}
