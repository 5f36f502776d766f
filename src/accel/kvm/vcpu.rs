//! One vCPU in the kernel: running it, and moving its registers in and out.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT, KVM_INTERNAL_ERROR_EMULATION, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    KVM_SYSTEM_EVENT_RESET, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, Msrs, kvm_cpuid_entry2, kvm_debug_exit_arch,
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
    kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use lockstep_hw::core::{IoCpu, IoRegisters, set_io_cpu};
use lockstep_memory::AddressSpace;
use lockstep_util::{Result, err};
use parking_lot::Mutex;

use super::{
    debug,
    fallback::{self, Fallback},
    kvm_error,
};
use crate::{
    DebugControl, DebugStop, Vcpu, VcpuEvent,
    cpu_state::{CpuState, FpuState, MpState, PendingEvents, Segment, TableRegister, msr},
    threads::set_immediate_exit_flag,
};

/// VMware's port, whose arguments and results are in registers.
const VMWARE_PORT: u16 = 0x5658;

/// The registers of a vCPU during an access to such a port.
struct Caller(Cell<IoRegisters>);

impl IoCpu for Caller {
    fn registers(&self) -> IoRegisters {
        self.0.get()
    }

    fn set_registers(&self, registers: &IoRegisters) {
        self.0.set(*registers);
    }
}

/// A vCPU of KVM.
pub struct KvmVcpu {
    fd: VcpuFd,
    id: u32,
    /// EAX of CPUID leaf 1, which EDX holds after a reset.
    signature: u32,
    /// How wide a physical address is.
    address_bits: u32,
    msr_indices: Arc<Vec<u32>>,
    memory: AddressSpace,
    ports: AddressSpace,
    exit_wanted: Arc<AtomicBool>,
    cpuid: Vec<kvm_cpuid_entry2>,
    /// For what the kernel cannot execute, once that happened.
    fallback: Option<Fallback>,
    software: Option<Arc<lockstep_cpu::Machine>>,
    /// The last exit was I/O whose instruction the kernel has yet to complete.
    io_pending: bool,
    /// When the state was saved that is loaded, if the counter went on since.
    saved_at: Arc<Mutex<Option<Instant>>>,
    /// A debugger's wishes.
    debug: DebugControl,
    /// Flags of `KVM_SET_GUEST_DEBUG` that the host has.
    debug_flags: u32,
}

impl KvmVcpu {
    pub(super) fn new(
        fd: VcpuFd,
        id: u32,
        cpuid: &[kvm_cpuid_entry2],
        msr_indices: Arc<Vec<u32>>,
        memory: AddressSpace,
        ports: AddressSpace,
        software: Option<Arc<lockstep_cpu::Machine>>,
        debug_flags: u32,
        saved_at: Arc<Mutex<Option<Instant>>>,
    ) -> Result<Self> {
        let exit_wanted = Arc::new(AtomicBool::new(false));
        let eax = |function| cpuid.iter().find(|e| e.function == function).map(|e| e.eax);
        let signature = eax(1).unwrap_or(0);
        let address_bits = eax(0x8000_0008).map_or(36, |e| e & 0xff).clamp(32, 52);
        let mut cpu = Self {
            fd,
            id,
            signature,
            address_bits,
            msr_indices,
            memory,
            ports,
            exit_wanted,
            cpuid: cpuid.to_vec(),
            fallback: None,
            software,
            io_pending: false,
            debug: DebugControl::default(),
            debug_flags,
            saved_at,
        };
        // Only MSRs that can be read are moved: some hosts list ones that they refuse.
        let readable = cpu.msr_indices.iter().copied().filter(|&i| cpu.read_msrs(&[i]).is_ok_and(|v| v.len() == 1));
        cpu.msr_indices = Arc::new(readable.collect());
        cpu.reset()?;
        Ok(cpu)
    }

    /// Has a paravirtual port find the registers that its arguments are in.
    fn do_io(&mut self) {
        // SAFETY: the exit reason is KVM_EXIT_IO, so that this member is the valid one.
        let port = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io.port };
        let registers = (port == VMWARE_PORT).then(|| self.fd.get_regs().ok()).flatten();
        let Some(mut kernel) = registers else {
            self.exchange_data();
            return;
        };
        let low = [kernel.rax, kernel.rbx, kernel.rcx, kernel.rdx, kernel.rsi, kernel.rdi].map(|r| r as u32);
        let caller = Rc::new(Caller(Cell::new(low)));
        set_io_cpu(Some(caller.clone()));
        let read = self.exchange_data();
        set_io_cpu(None);
        let [_, rbx, rcx, rdx, rsi, rdi] = caller.0.get().map(u64::from);
        if caller.0.get() != low {
            (kernel.rbx, kernel.rcx, kernel.rdx, kernel.rsi, kernel.rdi) = (rbx, rcx, rdx, rsi, rdi);
            // Setting registers ends what the kernel had under way: its own register too is set here.
            kernel.rax = read.unwrap_or(kernel.rax);
            if let Err(e) = self.fd.set_regs(&kernel) {
                tracing::error!("{}", kvm_error("KVM_SET_REGS", e));
            }
        }
    }

    /// Carries out an exit for I/O. The value, if one was read.
    fn exchange_data(&mut self) -> Option<u64> {
        let mut last = None;
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_IO, so that this member is the valid one.
        let io = unsafe { run.__bindgen_anon_1.io };
        let (size, count) = (usize::from(io.size), io.count as usize);
        // SAFETY: the kernel puts `size * count` bytes at `data_offset` inside the shared mapping of the vCPU.
        let data = unsafe {
            let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
            std::slice::from_raw_parts_mut(start, size * count)
        };
        for chunk in data.chunks_exact_mut(size) {
            if u32::from(io.direction) == KVM_EXIT_IO_OUT {
                let mut bytes = [0; 8];
                bytes[..size].copy_from_slice(chunk);
                let _ = self.ports.store(io.port.into(), size as u32, u64::from_le_bytes(bytes));
            } else {
                let value = self
                    .ports
                    .load(io.port.into(), size as u32)
                    .unwrap_or_else(|_| self.ports.unassigned_value(size as u32));
                chunk.copy_from_slice(&value.to_le_bytes()[..size]);
                last = Some(value);
            }
        }
        self.io_pending = true;
        last
    }

    fn do_mmio(&mut self) {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_MMIO, so that this member is the valid one.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        let len = (mmio.len as usize).min(8);
        let simple = len.is_power_of_two();
        if mmio.is_write != 0 {
            if simple {
                let _ = self.memory.store(mmio.phys_addr, len as u32, u64::from_le_bytes(mmio.data));
            } else {
                let _ = self.memory.write(mmio.phys_addr, &mmio.data[..len]);
            }
        } else if simple {
            let value = self
                .memory
                .load(mmio.phys_addr, len as u32)
                .unwrap_or_else(|_| self.memory.unassigned_value(len as u32));
            mmio.data[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        } else {
            let mut data = [0; 8];
            let _ = self.memory.read(mmio.phys_addr, &mut data[..len]);
            mmio.data = data;
        }
        self.io_pending = true;
    }

    /// Runs until the kernel has something for us. `None`: go on.
    fn run_once(&mut self) -> Option<VcpuEvent> {
        // What kvm-ioctls makes of the exit is dropped: it hides the sizes of string I/O.
        let outcome = self.fd.run().map(drop);
        self.io_pending = false;
        self.fd.set_kvm_immediate_exit(0);
        match outcome {
            Ok(()) => {}
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => return None,
            Err(e) => return Some(VcpuEvent::InternalError(format!("error: kvm run failed {e}"))),
        }
        let run = self.fd.get_kvm_run();
        match run.exit_reason {
            KVM_EXIT_IO => {
                self.do_io();
                None
            }
            KVM_EXIT_MMIO => {
                self.do_mmio();
                None
            }
            KVM_EXIT_DEBUG => {
                // SAFETY: the exit reason says that this member is the valid one.
                let exit = unsafe { run.__bindgen_anon_1.debug.arch };
                match debug::stop(&self.debug, &exit) {
                    Some(stop) => Some(VcpuEvent::Debug(stop)),
                    None => match self.give_back_exception(&exit) {
                        Ok(()) => None,
                        Err(e) => Some(VcpuEvent::InternalError(format!("{}\n", e.message()))),
                    },
                }
            }
            KVM_EXIT_SHUTDOWN => Some(VcpuEvent::TripleFault),
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the exit reason says that this member is the valid one.
                let kind = unsafe { run.__bindgen_anon_1.system_event.type_ };
                Some(if kind == KVM_SYSTEM_EVENT_RESET { VcpuEvent::SystemReset } else { VcpuEvent::SystemShutdown })
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason says that this member is the valid one.
                let internal = unsafe { run.__bindgen_anon_1.internal };
                if internal.suberror == KVM_INTERNAL_ERROR_EMULATION {
                    match self.execute_for_kernel() {
                        // The kernel has not seen the step.
                        Ok(Some(None)) if self.debug.step => return Some(VcpuEvent::Debug(DebugStop::Step)),
                        Ok(Some(event)) => return event,
                        Ok(None) => {}
                        Err(e) => tracing::error!("the software CPU cannot step in: {e}"),
                    }
                }
                let mut text = format!("KVM internal error. Suberror: {}\n", internal.suberror);
                for (i, data) in internal.data.iter().take(internal.ndata.min(16) as usize).enumerate() {
                    text.push_str(&format!("extra data[{i}]: 0x{data:016x}\n"));
                }
                Some(VcpuEvent::InternalError(text))
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says that this member is the valid one.
                let reason = unsafe { run.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason };
                Some(VcpuEvent::InternalError(format!("KVM: entry failed, hardware error {reason:#x}\n")))
            }
            // With the in-kernel local APIC the kernel waits by itself; it is no reason to stop.
            KVM_EXIT_HLT => None,
            reason => Some(VcpuEvent::InternalError(format!("KVM: unknown exit, hardware reason {reason}\n"))),
        }
    }

    fn read_msrs(&self, indices: &[u32]) -> Result<Vec<(u32, u64)>> {
        let mut found = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(256) {
            let entries: Vec<_> = chunk.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = Msrs::from_entries(&entries).map_err(|e| err!("too many MSRs: {e:?}"))?;
            let n = self.fd.get_msrs(&mut msrs).map_err(|e| kvm_error("KVM_GET_MSRS", e))?;
            found.extend(msrs.as_slice().iter().take(n).map(|e| (e.index, e.data)));
        }
        Ok(found)
    }

    /// Writes MSRs; one that the host refuses is an error only if it matters here.
    fn write_msrs(&self, values: &[(u32, u64)]) -> Result<()> {
        let mut rest = values;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(256)];
            let entries: Vec<_> =
                chunk.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
            let msrs = Msrs::from_entries(&entries).map_err(|e| err!("too many MSRs: {e:?}"))?;
            let n = self.fd.set_msrs(&msrs).map_err(|e| kvm_error("KVM_SET_MSRS", e))?;
            if n < chunk.len() {
                let (index, data) = chunk[n];
                // Read-only ones that hold the value already are refused by some hosts.
                if data != 0 && self.read_msrs(&[index])?.first() != Some(&(index, data)) {
                    tracing::debug!("MSR {index:#x} refuses {data:#x}");
                    if index == msr::PVM_VCPU_STRUCT {
                        return Err(err!("this host cannot run a guest that runs natively under kvm-pvm"));
                    }
                }
                rest = &rest[n + 1..];
            } else {
                rest = &rest[n..];
            }
        }
        Ok(())
    }

    /// All but the local APIC, with these MSRs.
    fn registers(&self, msrs: &[u32]) -> Result<CpuState> {
        let mp_state = self.fd.get_mp_state().map_err(|e| kvm_error("KVM_GET_MP_STATE", e))?;
        let regs = self.fd.get_regs().map_err(|e| kvm_error("KVM_GET_REGS", e))?;
        let sregs = self.fd.get_sregs().map_err(|e| kvm_error("KVM_GET_SREGS", e))?;
        let events = self.fd.get_vcpu_events().map_err(|e| kvm_error("KVM_GET_VCPU_EVENTS", e))?;
        let xsave = self.fd.get_xsave().map_err(|e| kvm_error("KVM_GET_XSAVE", e))?;
        let xcrs = self.fd.get_xcrs().map_err(|e| kvm_error("KVM_GET_XCRS", e))?;
        let debug = self.fd.get_debug_regs().map_err(|e| kvm_error("KVM_GET_DEBUGREGS", e))?;
        let mut state = CpuState {
            regs: general(&regs),
            rip: regs.rip,
            rflags: regs.rflags,
            segs: [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs].map(|s| segment(&s)),
            ldt: segment(&sregs.ldt),
            tr: segment(&sregs.tr),
            gdt: TableRegister { base: sregs.gdt.base, limit: sregs.gdt.limit.into() },
            idt: TableRegister { base: sregs.idt.base, limit: sregs.idt.limit.into() },
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            dr: [debug.db[0], debug.db[1], debug.db[2], debug.db[3], 0, 0, debug.dr6, debug.dr7],
            xcr0: xcrs.xcrs[..xcrs.nr_xcrs.min(16) as usize].iter().find(|x| x.xcr == 0).map_or(1, |x| x.value),
            fpu: fpu_from_xsave(&xsave),
            msrs: self.read_msrs(msrs)?,
            events: events_from_kvm(&events),
            mp_state: match mp_state.mp_state {
                KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
                KVM_MP_STATE_INIT_RECEIVED => MpState::InitReceived,
                KVM_MP_STATE_HALTED => MpState::Halted,
                KVM_MP_STATE_SIPI_RECEIVED => MpState::SipiReceived,
                _ => MpState::Runnable,
            },
            tsc_khz: self.fd.get_tsc_khz().unwrap_or(0),
            ..CpuState::default()
        };
        state.set_msr(msr::EFER, sregs.efer);
        state.set_msr(msr::APIC_BASE, sregs.apic_base);
        Ok(state)
    }

    /// How far the time stamp counter went on since the state was saved that is loaded.
    fn counted_since_saved(&self) -> u64 {
        let Some(at) = *self.saved_at.lock() else { return 0 };
        cycles(at.elapsed(), self.fd.get_tsc_khz().unwrap_or(0))
    }

    fn load_special(&self, state: &CpuState) -> Result<()> {
        let [es, cs, ss, ds, fs, gs] = state.segs.map(|s| segment_for_kvm(&s));
        let sregs = kvm_sregs {
            es,
            cs,
            ss,
            ds,
            fs,
            gs,
            ldt: segment_for_kvm(&state.ldt),
            tr: segment_for_kvm(&state.tr),
            gdt: kvm_bindings::kvm_dtable { base: state.gdt.base, limit: state.gdt.limit as u16, ..Default::default() },
            idt: kvm_bindings::kvm_dtable { base: state.idt.base, limit: state.idt.limit as u16, ..Default::default() },
            cr0: state.cr0,
            cr2: state.cr2,
            cr3: state.cr3,
            cr4: state.cr4,
            cr8: state.cr8,
            efer: state.msr(msr::EFER),
            apic_base: state.msr(msr::APIC_BASE),
            interrupt_bitmap: [0; 4],
        };
        self.fd.set_sregs(&sregs).map_err(|e| kvm_error("KVM_SET_SREGS", e))
    }

    fn load_fpu(&self, state: &CpuState) -> Result<()> {
        let xsave = xsave_from_fpu(&state.fpu);
        // SAFETY: without dynamically enabled features the state has 4096 bytes, the size of this type.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(|e| kvm_error("KVM_SET_XSAVE", e))
    }

    fn load_debug(&self, state: &CpuState) -> Result<()> {
        let debug = kvm_debugregs {
            db: [state.dr[0], state.dr[1], state.dr[2], state.dr[3]],
            dr6: state.dr[6],
            dr7: state.dr[7],
            ..Default::default()
        };
        self.fd.set_debug_regs(&debug).map_err(|e| kvm_error("KVM_SET_DEBUGREGS", e))
    }

    /// Has the software CPU execute the instruction that the kernel stopped at. `None`: it cannot step in. Some of `None`: go on.
    fn execute_for_kernel(&mut self) -> Result<Option<Option<VcpuEvent>>> {
        let msrs: Vec<u32> = fallback::MSRS.into_iter().filter(|i| self.msr_indices.contains(i)).collect();
        let before = self.registers(&msrs)?;
        // A guest that runs natively under kvm-pvm shows the host's segments.
        let native = self.msr_indices.contains(&msr::PVM_VCPU_STRUCT)
            && self.read_msrs(&[msr::PVM_VCPU_STRUCT])?.first().is_some_and(|(_, value)| value & 1 != 0);
        let Some(software) = self.software.as_ref().filter(|_| !native) else { return Ok(None) };
        if self.fallback.is_none() {
            let made = Fallback::new(software, &self.cpuid);
            self.fallback = Some(made.map_err(|e| lockstep_util::Error::with_errno("no software CPU", &e))?);
        }
        let Some(after) = self.fallback.as_mut().and_then(|f| f.step(&before)) else {
            return Ok(Some(Some(VcpuEvent::TripleFault)));
        };
        self.load_changes(&before, &after)?;
        Ok(Some(None))
    }

    /// An exception that the kernel showed to a debugger was the guest's own.
    fn give_back_exception(&self, exit: &kvm_debug_exit_arch) -> Result<()> {
        let mut events = self.fd.get_vcpu_events().map_err(|e| kvm_error("KVM_GET_VCPU_EVENTS", e))?;
        events.exception.injected = 1;
        events.exception.nr = exit.exception as u8;
        events.exception.has_error_code = 0;
        if exit.exception == debug::DB {
            let mut registers = self.fd.get_debug_regs().map_err(|e| kvm_error("KVM_GET_DEBUGREGS", e))?;
            registers.dr6 = exit.dr6;
            self.fd.set_debug_regs(&registers).map_err(|e| kvm_error("KVM_SET_DEBUGREGS", e))?;
        }
        self.fd.set_vcpu_events(&events).map_err(|e| kvm_error("KVM_SET_VCPU_EVENTS", e))
    }

    /// Gives the kernel what is not as it was.
    fn load_changes(&self, before: &CpuState, after: &CpuState) -> Result<()> {
        let special =
            |s: &CpuState| (s.segs, s.ldt, s.tr, s.gdt, s.idt, [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.msr(msr::EFER)]);
        if special(after) != special(before) {
            self.load_special(after)?;
        }
        self.fd.set_regs(&general_for_kvm(after)).map_err(|e| kvm_error("KVM_SET_REGS", e))?;
        if (&after.fpu, after.xcr0) != (&before.fpu, before.xcr0) {
            self.load_fpu(after)?;
        }
        if after.dr != before.dr {
            self.load_debug(after)?;
        }
        let changed = |&&(i, v): &&(u32, u64)| v != before.msr(i) && !matches!(i, msr::EFER | msr::APIC_BASE);
        let msrs: Vec<_> = after.msrs.iter().filter(changed).copied().collect();
        self.write_msrs(&msrs)?;
        if after.events != before.events {
            self.fd.set_vcpu_events(&events_for_kvm(&after.events)).map_err(|e| kvm_error("KVM_SET_VCPU_EVENTS", e))?;
        }
        if after.mp_state == MpState::Halted {
            self.fd
                .set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED })
                .map_err(|e| kvm_error("KVM_SET_MP_STATE", e))?;
        }
        Ok(())
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> VcpuEvent {
        let flag = std::ptr::from_mut(&mut self.fd.get_kvm_run().immediate_exit);
        set_immediate_exit_flag(flag);
        let event = loop {
            if self.exit_wanted.swap(false, Ordering::SeqCst) {
                break VcpuEvent::Kicked;
            }
            if let Some(event) = self.run_once() {
                break event;
            }
        };
        set_immediate_exit_flag(std::ptr::null_mut());
        event
    }

    fn finish_io(&mut self) {
        // An instruction that touches memory twice exits for each part.
        while self.io_pending {
            self.fd.set_kvm_immediate_exit(1);
            if self.run_once().is_some() {
                return;
            }
        }
    }

    fn save(&mut self) -> Result<CpuState> {
        let lapic = self.fd.get_lapic().map_err(|e| kvm_error("KVM_GET_LAPIC", e))?;
        let mut state = self.registers(&self.msr_indices)?;
        for (to, from) in state.apic.regs.iter_mut().zip(lapic.regs) {
            *to = from as u8;
        }
        Ok(state)
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: state.xcr0, ..Default::default() };
        self.fd.set_xcrs(&xcrs).map_err(|e| kvm_error("KVM_SET_XCRS", e))?;
        self.load_special(state)?;
        self.fd.set_regs(&general_for_kvm(state)).map_err(|e| kvm_error("KVM_SET_REGS", e))?;
        self.load_fpu(state)?;
        let settable: Vec<_> = state
            .msrs
            .iter()
            .copied()
            .map(|(i, v)| match i {
                // QEMU fills up what is above the widest address.
                msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_MASK7 => (i, v & ((1 << self.address_bits) - 1)),
                msr::TSC => (i, v.wrapping_add(self.counted_since_saved())),
                _ => (i, v),
            })
            .filter(|&(i, _)| {
                // The deadline is armed once the local APIC is there; these two went with the special registers.
                !matches!(i, msr::TSC_DEADLINE | msr::EFER | msr::APIC_BASE) && self.msr_indices.contains(&i)
            })
            .collect();
        self.write_msrs(&settable)?;
        let mut lapic = kvm_lapic_state::default();
        for (to, from) in lapic.regs.iter_mut().zip(state.apic.regs.iter()) {
            *to = *from as _;
        }
        self.fd.set_lapic(&lapic).map_err(|e| kvm_error("KVM_SET_LAPIC", e))?;
        if let Some(&deadline) = state.msrs.iter().find(|(i, _)| *i == msr::TSC_DEADLINE)
            && self.msr_indices.contains(&msr::TSC_DEADLINE)
        {
            self.write_msrs(&[deadline])?;
        }
        self.load_debug(state)?;
        self.fd.set_vcpu_events(&events_for_kvm(&state.events)).map_err(|e| kvm_error("KVM_SET_VCPU_EVENTS", e))?;
        let mp_state = match state.mp_state {
            MpState::Runnable => KVM_MP_STATE_RUNNABLE,
            MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
            MpState::InitReceived => KVM_MP_STATE_INIT_RECEIVED,
            MpState::Halted => KVM_MP_STATE_HALTED,
            MpState::SipiReceived => KVM_MP_STATE_SIPI_RECEIVED,
        };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(|e| kvm_error("KVM_SET_MP_STATE", e))?;
        self.io_pending = false;
        Ok(())
    }

    fn update(&mut self, change: &mut dyn FnMut(&mut CpuState)) -> Result<()> {
        let before = self.save()?;
        let mut after = before.clone();
        change(&mut after);
        self.load_changes(&before, &after)
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<()> {
        let request = debug::request(control, self.debug_flags)?;
        self.fd.set_guest_debug(&request).map_err(|e| kvm_error("KVM_SET_GUEST_DEBUG", e))?;
        self.debug = control.clone();
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.load(&CpuState::reset(self.id, self.id == 0, self.signature))
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let exit_wanted = self.exit_wanted.clone();
        Box::new(move || exit_wanted.store(true, Ordering::SeqCst))
    }

    fn id(&self) -> u32 {
        self.id
    }
}

/// Cycles of a counter of so many kHz.
fn cycles(time: Duration, khz: u32) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(khz) / 1_000_000).unwrap_or(0)
}

fn general(r: &kvm_regs) -> [u64; 16] {
    [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]
}

fn general_for_kvm(state: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.regs;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, shift: u32| u32::from(value & 1) << shift;
    let flags = u32::from(s.type_ & 15) << 8
        | bit(s.s, 12)
        | u32::from(s.dpl & 3) << 13
        | bit(u8::from(s.present != 0 && s.unusable == 0), 15)
        | bit(s.avl, 20)
        | bit(s.l, 21)
        | bit(s.db, 22)
        | bit(s.g, 23);
    Segment { selector: s.selector, base: s.base, limit: s.limit, flags: if s.unusable != 0 { 0 } else { flags } }
}

fn segment_for_kvm(s: &Segment) -> kvm_segment {
    let bit = |shift: u32| (s.flags >> shift & 1) as u8;
    let present = bit(15);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.flags >> 8 & 15) as u8,
        present,
        dpl: (s.flags >> 13 & 3) as u8,
        db: bit(22),
        s: bit(12),
        l: bit(21),
        g: bit(23),
        avl: bit(20),
        unusable: u8::from(present == 0),
        padding: 0,
    }
}

/// Offsets in the XSAVE area (Intel SDM volume 1, 13.4; components 2 and 5 to 7 at their standard places).
mod xsave_at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    pub const XSTATE_BV: usize = 512;
    pub const YMM_HIGH: usize = 576;
    pub const AVX512: usize = 1088;
}

fn fpu_from_xsave(xsave: &kvm_xsave) -> FpuState {
    let area: Vec<u8> = xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect();
    let u16_at = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let u64_at = |at: usize| u64::from_le_bytes(area[at..at + 8].try_into().unwrap_or_default());
    let xstate_bv = u64_at(xsave_at::XSTATE_BV);
    let mut fpu = FpuState {
        fcw: u16_at(xsave_at::FCW),
        fsw: u16_at(xsave_at::FSW),
        ftw: area[xsave_at::FTW],
        fop: u16_at(xsave_at::FOP),
        fip: u64_at(xsave_at::FIP),
        fdp: u64_at(xsave_at::FDP),
        mxcsr: u64_at(xsave_at::MXCSR) as u32,
        xstate_bv,
        ..FpuState::default()
    };
    for (i, st) in fpu.st.iter_mut().enumerate() {
        st.copy_from_slice(&area[xsave_at::ST + 16 * i..][..10]);
    }
    for (i, ymm) in fpu.ymm.iter_mut().enumerate() {
        ymm[..16].copy_from_slice(&area[xsave_at::XMM + 16 * i..][..16]);
        if xstate_bv & 4 != 0 {
            ymm[16..].copy_from_slice(&area[xsave_at::YMM_HIGH + 16 * i..][..16]);
        }
    }
    if xstate_bv & 0xe0 != 0 {
        let mut avx512 = Box::new([0; 1600]);
        avx512.copy_from_slice(&area[xsave_at::AVX512..][..1600]);
        fpu.avx512 = Some(avx512);
    }
    fpu
}

fn xsave_from_fpu(fpu: &FpuState) -> kvm_xsave {
    let mut area = [0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| area[at..at + bytes.len()].copy_from_slice(bytes);
    put(xsave_at::FCW, &fpu.fcw.to_le_bytes());
    put(xsave_at::FSW, &fpu.fsw.to_le_bytes());
    put(xsave_at::FTW, &[fpu.ftw]);
    put(xsave_at::FOP, &fpu.fop.to_le_bytes());
    put(xsave_at::FIP, &fpu.fip.to_le_bytes());
    put(xsave_at::FDP, &fpu.fdp.to_le_bytes());
    put(xsave_at::MXCSR, &fpu.mxcsr.to_le_bytes());
    put(xsave_at::MXCSR + 4, &0xffffu32.to_le_bytes());
    for (i, st) in fpu.st.iter().enumerate() {
        put(xsave_at::ST + 16 * i, st);
    }
    for (i, ymm) in fpu.ymm.iter().enumerate() {
        put(xsave_at::XMM + 16 * i, &ymm[..16]);
        put(xsave_at::YMM_HIGH + 16 * i, &ymm[16..]);
    }
    if let Some(avx512) = &fpu.avx512 {
        put(xsave_at::AVX512, &avx512[..]);
    }
    put(xsave_at::XSTATE_BV, &fpu.xstate_bv.to_le_bytes());
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    xsave
}

fn events_from_kvm(e: &kvm_vcpu_events) -> PendingEvents {
    let exception = (e.exception.injected != 0 || e.exception.pending != 0)
        .then(|| (e.exception.nr, (e.exception.has_error_code != 0).then_some(e.exception.error_code)));
    PendingEvents {
        exception,
        exception_pending: e.exception.pending != 0,
        exception_payload: (e.exception_has_payload != 0).then_some(e.exception_payload),
        interrupt: (e.interrupt.injected != 0).then_some((e.interrupt.nr, e.interrupt.soft != 0)),
        interrupt_waits: false,
        shadow: e.interrupt.shadow != 0,
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: e.nmi.pending != 0,
        nmi_masked: e.nmi.masked != 0,
        sipi_vector: e.sipi_vector,
        smm: e.smi.smm != 0,
        smi_pending: e.smi.pending != 0,
    }
}

fn events_for_kvm(p: &PendingEvents) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SIPI_VECTOR,
        sipi_vector: p.sipi_vector,
        ..Default::default()
    };
    if let Some((vector, error_code)) = p.exception {
        // Without KVM_CAP_EXCEPTION_PAYLOAD a pending exception is given back as an injected one.
        e.exception.injected = 1;
        e.exception.nr = vector;
        e.exception.has_error_code = u8::from(error_code.is_some());
        e.exception.error_code = error_code.unwrap_or(0);
    }
    if let Some((vector, soft)) = p.interrupt {
        e.interrupt.injected = 1;
        e.interrupt.nr = vector;
        e.interrupt.soft = u8::from(soft);
    }
    e.interrupt.shadow = u8::from(p.shadow);
    e.nmi.injected = u8::from(p.nmi_injected);
    e.nmi.pending = u8::from(p.nmi_pending);
    e.nmi.masked = u8::from(p.nmi_masked);
    if p.smm || p.smi_pending {
        e.flags |= KVM_VCPUEVENT_VALID_SMM;
        e.smi.smm = u8::from(p.smm);
        e.smi.pending = u8::from(p.smi_pending);
    }
    e
}
