//! Model-specific registers and CPUID as a guest sees them.

use crate::{
    Cpu,
    platform::CpuidLeaf,
    state::{cr, seg},
    system::canonical,
};

/// Indices (Intel SDM volume 4).
#[allow(missing_docs)]
pub mod index {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDATE: u32 = 0x79;
    pub const BIOS_SIGNATURE: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const MTRR_PHYS: u32 = 0x200;
    pub const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const MC0_CTL: u32 = 0x400;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    /// Northbridge and other registers of AMD's families that Linux reads and sets at boot.
    pub const AMD_CONFIGURATION: [u32; 5] = [0xc001_001f, 0xc001_0055, 0xc001_0058, 0xc001_1022, 0xc001_1029];
    pub const VM_HSAVE_PA: u32 = 0xc001_0117;
}

/// Machine check banks that there are.
const BANKS: u32 = 10;

/// Registers that are kept here and named.
#[derive(Clone, Debug)]
pub struct Msrs {
    /// Subtracted from nothing: what is added to the platform's counter.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// SYSENTER's registers.
    pub sysenter_cs: u64,
    /// See `sysenter_cs`.
    pub sysenter_esp: u64,
    /// See `sysenter_cs`.
    pub sysenter_eip: u64,
    /// SYSCALL's registers.
    pub star: u64,
    /// See `star`.
    pub lstar: u64,
    /// See `star`.
    pub cstar: u64,
    /// See `star`.
    pub fmask: u64,
    /// What SWAPGS swaps with.
    pub kernel_gs_base: u64,
    /// Page attribute table.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SPEC_CTRL.
    pub spec_ctrl: u64,
    /// Variable MTRRs: base and mask alternating.
    pub mtrr_variable: [u64; 16],
    /// Fixed MTRRs in the order of their indices.
    pub mtrr_fixed: [u64; 11],
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// Machine check status and control.
    pub mcg_status: u64,
    /// See `mcg_status`.
    pub mcg_ctl: u64,
    /// CTL, STATUS, ADDR, MISC of each bank.
    pub mc_banks: [u64; 4 * BANKS as usize],
    /// SVM's host save area.
    pub vm_hsave_pa: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        let mut mc_banks = [0; 4 * BANKS as usize];
        mc_banks.iter_mut().step_by(4).for_each(|c| *c = u64::MAX);
        Self {
            tsc_offset: 0,
            tsc_adjust: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            spec_ctrl: 0,
            mtrr_variable: [0; 16],
            mtrr_fixed: [0; 11],
            mtrr_def_type: 0,
            mcg_status: 0,
            mcg_ctl: u64::MAX,
            mc_banks,
            vm_hsave_pa: 0,
        }
    }
}

impl Cpu {
    /// The time-stamp counter as the guest reads it.
    pub(crate) fn read_tsc(&self) -> u64 {
        self.platform.tsc().wrapping_add(self.msrs.tsc_offset)
    }

    /// Reads an MSR. Nothing: there is none.
    pub fn read_msr(&mut self, n: u32) -> Option<u64> {
        use index::*;
        let m = &self.msrs;
        Some(match n {
            TSC => self.read_tsc(),
            TSC_ADJUST => m.tsc_adjust,
            FEATURE_CONTROL => 1,
            SPEC_CTRL => m.spec_ctrl,
            BIOS_SIGNATURE => 0x0100_0065,
            BIOS_UPDATE => 0,
            // 8 variable ranges, fixed ranges, write combining.
            MTRR_CAP => 8 | 1 << 8 | 1 << 10,
            SYSENTER_CS => m.sysenter_cs,
            SYSENTER_ESP => m.sysenter_esp,
            SYSENTER_EIP => m.sysenter_eip,
            // Control register present, and the software recovery that QEMU's processors tell of.
            MCG_CAP => u64::from(BANKS) | 1 << 8 | 1 << 24,
            MCG_STATUS => m.mcg_status,
            MCG_CTL => m.mcg_ctl,
            // 1000 MHz of bus over 4, as QEMU answers.
            PERF_STATUS => 1000 | 4 << 40,
            MISC_ENABLE => m.misc_enable,
            n if (MTRR_PHYS..MTRR_PHYS + 16).contains(&n) => m.mtrr_variable[(n - MTRR_PHYS) as usize],
            n if MTRR_FIXED.contains(&n) => m.mtrr_fixed[MTRR_FIXED.iter().position(|&f| f == n)?],
            PAT => m.pat,
            MTRR_DEF_TYPE => m.mtrr_def_type,
            n if (MC0_CTL..MC0_CTL + 4 * BANKS).contains(&n) => m.mc_banks[(n - MC0_CTL) as usize],
            EFER => self.efer,
            STAR => m.star,
            LSTAR => m.lstar,
            CSTAR => m.cstar,
            FMASK => m.fmask,
            FS_BASE => self.segs[seg::FS].base,
            GS_BASE => self.segs[seg::GS].base,
            KERNEL_GS_BASE => m.kernel_gs_base,
            TSC_AUX => m.tsc_aux,
            VM_HSAVE_PA => m.vm_hsave_pa,
            SYSCFG | HWCR => 0,
            n if AMD_CONFIGURATION.contains(&n) => 0,
            // The platform counts without the guest's offset.
            TSC_DEADLINE => match self.outside(|cpu| cpu.platform.read_msr(n))? {
                0 => 0,
                at => at.wrapping_add(self.msrs.tsc_offset),
            },
            _ => return self.outside(|cpu| cpu.platform.read_msr(n)),
        })
    }

    /// Writes an MSR. False: there is none, or it does not take the value.
    pub fn write_msr(&mut self, n: u32, value: u64) -> bool {
        use index::*;
        let address = matches!(n, SYSENTER_ESP | SYSENTER_EIP | LSTAR | CSTAR | FS_BASE | GS_BASE | KERNEL_GS_BASE);
        if address && !canonical(value) {
            return false;
        }
        let types = |v: u64| v.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=6));
        match n {
            TSC => {
                let old = self.read_tsc();
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(value.wrapping_sub(old));
                self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(value.wrapping_sub(old));
            }
            TSC_ADJUST => {
                self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(value.wrapping_sub(self.msrs.tsc_adjust));
                self.msrs.tsc_adjust = value;
            }
            SPEC_CTRL => self.msrs.spec_ctrl = value,
            PRED_CMD | BIOS_UPDATE | BIOS_SIGNATURE => {}
            SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = value,
            SYSENTER_EIP => self.msrs.sysenter_eip = value,
            MCG_STATUS => self.msrs.mcg_status = value,
            MCG_CTL => {
                if value != 0 && value != u64::MAX {
                    return false;
                }
                self.msrs.mcg_ctl = value;
            }
            PERF_STATUS => return false,
            MISC_ENABLE => self.msrs.misc_enable = value,
            n if (MTRR_PHYS..MTRR_PHYS + 16).contains(&n) => self.msrs.mtrr_variable[(n - MTRR_PHYS) as usize] = value,
            n if MTRR_FIXED.contains(&n) => {
                if !types(value) {
                    return false;
                }
                if let Some(i) = MTRR_FIXED.iter().position(|&f| f == n) {
                    self.msrs.mtrr_fixed[i] = value;
                }
            }
            PAT => {
                if !value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)) {
                    return false;
                }
                self.msrs.pat = value;
            }
            MTRR_DEF_TYPE => self.msrs.mtrr_def_type = value & 0xcff,
            n if (MC0_CTL..MC0_CTL + 4 * BANKS).contains(&n) => {
                let status = (n - MC0_CTL) % 4 == 1;
                if status && value != 0 {
                    return false;
                }
                self.msrs.mc_banks[(n - MC0_CTL) as usize] = value;
            }
            EFER => {
                let allowed = self.efer_allowed;
                let paging = self.cr0 & cr::CR0_PG != 0;
                if value & !(allowed | cr::EFER_LMA) != 0 || paging && (value ^ self.efer) & cr::EFER_LME != 0 {
                    return false;
                }
                self.efer = value & allowed & !cr::EFER_LMA | self.efer & cr::EFER_LMA;
                self.flush_tlb();
            }
            STAR => self.msrs.star = value,
            LSTAR => self.msrs.lstar = value,
            CSTAR => self.msrs.cstar = value,
            FMASK => self.msrs.fmask = value & 0xffff_ffff,
            FS_BASE => self.segs[seg::FS].base = value,
            GS_BASE => self.segs[seg::GS].base = value,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            VM_HSAVE_PA => self.msrs.vm_hsave_pa = value,
            SYSCFG | HWCR => {}
            n if AMD_CONFIGURATION.contains(&n) => {}
            FEATURE_CONTROL | MTRR_CAP | MCG_CAP => return false,
            TSC_DEADLINE => {
                let at = if value == 0 { 0 } else { value.wrapping_sub(self.msrs.tsc_offset) };
                return self.outside(|cpu| cpu.platform.write_msr(n, at));
            }
            _ => {
                let taken = self.outside(|cpu| cpu.platform.write_msr(n, value));
                if n == APIC_BASE {
                    self.reload_map();
                }
                return taken;
            }
        }
        true
    }

    /// CPUID: the model's leaves, with what the present state changes (Intel SDM volume 2).
    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let highest = |base: u32| self.cpuid.iter().find(|l| l.leaf == base).map(|l| l.eax);
        let known = match leaf >> 16 {
            0x8000 => highest(0x8000_0000).is_some_and(|max| leaf <= max),
            0x4000 => highest(0x4000_0000).is_some_and(|max| leaf <= max.max(0x4000_0001)),
            _ => highest(0).is_some_and(|max| leaf <= max),
        };
        // Outside all ranges the highest basic leaf answers.
        let leaf = if known { leaf } else { highest(0).unwrap_or(0) };
        let find =
            |leaf: u32, sub: u32| self.cpuid.iter().find(|l| l.leaf == leaf && l.subleaf.is_none_or(|s| s == sub));
        let CpuidLeaf { eax, mut ebx, mut ecx, mut edx, .. } = find(leaf, subleaf).copied().unwrap_or_default();
        match leaf {
            1 => {
                if self.cr4 & cr::CR4_OSXSAVE != 0 {
                    ecx |= 1 << 27;
                } else {
                    ecx &= !(1 << 27);
                }
                if self.platform.apic_base() & 0x800 == 0 {
                    edx &= !(1 << 9);
                }
            }
            0xb if ebx == 0 && ecx == 0 => {
                ecx = subleaf & 0xff;
                edx = find(0xb, 0).map_or(0, |l| l.edx);
            }
            0xd if subleaf == 0 => ebx = if self.xcr0 & 4 != 0 { 832 } else { 576 },
            0x8000_0001 if self.bits != 2 && self.vendor_is_intel => edx &= !(1 << 11),
            _ => {}
        }
        [eax, ebx, ecx, edx]
    }
}
