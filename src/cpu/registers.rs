//! The registers as a whole: taken out and put in, for migration and for other engines.

use crate::{
    Cpu,
    fault::vector,
    msr::Msrs,
    platform::request,
    state::{Segment, Table, cr, flag, gpr},
};

/// Things under way between two instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The next instruction is not interrupted (STI, MOV SS).
    pub shadow: bool,
    /// Executed HLT.
    pub halted: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An application processor that waits for its start-up IPI.
    pub wait_for_sipi: bool,
    /// An event whose delivery has begun elsewhere: vector, error code, whether it is external.
    pub injected: Option<(u8, Option<u32>, bool)>,
}

/// All of a processor that is its own.
#[derive(Clone, Debug)]
pub struct Registers {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// es, cs, ss, ds, fs, gs.
    pub segs: [Segment; 6],
    /// Local descriptor table.
    pub ldt: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdt: Table,
    /// Interrupt descriptor table.
    pub idt: Table,
    /// Control registers 0, 2, 3, 4.
    pub cr0: u64,
    /// See `cr0`.
    pub cr2: u64,
    /// See `cr0`.
    pub cr3: u64,
    /// See `cr0`.
    pub cr4: u64,
    /// Extended features.
    pub efer: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// Debug registers.
    pub dr: [u64; 8],
    /// x87 and SSE as FXSAVE64 stores them.
    pub fx: [u8; 512],
    /// YMM registers; the low halves are XMM.
    pub ymm: [[u8; 32]; 16],
    /// XSTATE_BV.
    pub xstate_bv: u64,
    /// MSRs that are kept here.
    pub msrs: Msrs,
    /// The time-stamp counter now.
    pub tsc: u64,
    /// Events under way.
    pub events: Events,
}

impl Cpu {
    /// The registers. To be called while the processor stands.
    pub fn registers(&mut self) -> Registers {
        let mut general = [0; 16];
        general.copy_from_slice(&self.hot.gpr[..16]);
        // In 64-bit mode all sixteen are stored.
        let bits = std::mem::replace(&mut self.bits, 2);
        let fx = self.legacy_area(true, true);
        self.bits = bits;
        Registers {
            gpr: general,
            rip: self.hot.gpr[gpr::RIP],
            rflags: self.rflags(),
            segs: self.segs,
            ldt: self.ldt,
            tr: self.tr,
            gdt: self.gdt,
            idt: self.idt,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            xcr0: self.xcr0,
            dr: self.dr,
            fx,
            ymm: self.hot.vec,
            xstate_bv: self.components_in_use(),
            msrs: self.msrs.clone(),
            tsc: self.read_tsc(),
            events: Events {
                shadow: self.shadow,
                halted: self.halted,
                nmi_masked: self.nmi_masked,
                nmi_pending: self.nmi_waits || self.link.pending() & request::NMI != 0,
                wait_for_sipi: self.wait_for_sipi,
                // A trap that is due goes first.
                injected: if self.trap_after { Some((vector::DB, None, false)) } else { self.injected },
            },
        }
    }

    /// What the guest's time-stamp counter is ahead of the platform's.
    pub fn tsc_offset(&self) -> u64 {
        self.msrs.tsc_offset
    }

    /// Sets the registers. To be called while the processor stands. What a processor cannot hold is cut off, so that any
    /// value is safe.
    pub fn set_registers(&mut self, r: &Registers) {
        self.hot.gpr[..16].copy_from_slice(&r.gpr);
        self.hot.gpr[gpr::RIP] = r.rip;
        (self.segs, self.ldt, self.tr, self.gdt, self.idt) = (r.segs, r.ldt, r.tr, r.gdt, r.idt);
        self.cr0 = r.cr0 & 0xe005_003f | cr::CR0_ET;
        (self.cr2, self.cr3, self.cr4) = (r.cr2, r.cr3, r.cr4 & self.cr4_allowed);
        self.efer = r.efer & (self.efer_allowed | cr::EFER_LMA);
        if self.cr0 & cr::CR0_PG == 0 || self.cr4 & cr::CR4_PAE == 0 {
            self.efer &= !cr::EFER_LMA;
        }
        self.xcr0 = r.xcr0 & self.xcr0_allowed | 1;
        self.dr = r.dr;
        self.dr[6] = r.dr[6] & 0xe00f | 0xffff_0ff0;
        self.dr[7] = r.dr[7] & 0xffff_2fff | 0x400;
        let mut fx = r.fx;
        let mxcsr = u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]) & 0xffff;
        fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        let bits = std::mem::replace(&mut self.bits, 2);
        // It cannot fail: MXCSR was cut.
        let _ = self.load_legacy(&fx, true, true, true);
        self.bits = bits;
        self.hot.vec = r.ymm;
        self.msrs = r.msrs.clone();
        self.msrs.tsc_offset = r.tsc.wrapping_sub(self.platform.tsc());
        let real = self.cr0 & cr::CR0_PE == 0;
        self.cpl = match (real, r.rflags & flag::VM != 0) {
            (true, _) => 0,
            (_, true) => 3,
            _ => (r.segs[crate::state::seg::SS].flags >> 13 & 3) as u8,
        };
        self.set_rflags(r.rflags & if real { !flag::VM } else { u64::MAX });
        self.shadow = r.events.shadow;
        self.halted = r.events.halted;
        self.nmi_masked = r.events.nmi_masked;
        self.nmi_waits = false;
        self.wait_for_sipi = r.events.wait_for_sipi;
        self.injected = r.events.injected;
        if self.injected.is_some() {
            // So that it is looked at first.
            self.link.raise(request::INTERRUPT);
        }
        self.trap_after = false;
        self.interrupt_waits = false;
        // Old requests belong to what was before; the controller is asked anew.
        self.link.clear(request::INIT | request::SIPI | request::NMI);
        self.link.raise(request::INTERRUPT | request::FLUSH | if r.events.nmi_pending { request::NMI } else { 0 });
        self.flush_tlb();
        self.forget_all_code();
        self.update_mode();
        self.breakpoints_changed();
    }
}
