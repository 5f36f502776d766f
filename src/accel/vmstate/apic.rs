//! The section `apic`.

use lockstep_vmstate::VmState;

use crate::{
    CpuState,
    cpu_state::{ApicState, msr},
};

/// The local APIC as QEMU's stream has it.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "apic", version = 3)]
pub struct ApicWire {
    apicbase: u32,
    id: u8,
    arb_id: u8,
    tpr: u8,
    spurious_vec: u32,
    log_dest: u8,
    dest_mode: u8,
    isr: [u32; 8],
    tmr: [u32; 8],
    irr: [u32; 8],
    lvt: [u32; 6],
    esr: u32,
    icr: [u32; 2],
    divide_conf: u32,
    count_shift: i32,
    initial_count: u32,
    initial_count_load_time: i64,
    next_time: i64,
    timer_expiry: i64,
    #[vmstate(subsection)]
    sipi: Option<Sipi>,
}

/// A CPU that waits for a start-up message. The kernel says that in `mp_state`, so that this comes from QEMU and is not looked at.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "apic_sipi", version = 1)]
pub struct Sipi {
    sipi_vector: i32,
    wait_for_sipi: i32,
}

/// Offsets in the register page (Intel SDM volume 3, table 11-1).
const ID: usize = 0x20;
const VERSION: usize = 0x30;
const TPR: usize = 0x80;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR: [usize; 2] = [0x300, 0x310];
const LVT: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

fn bank(apic: &ApicState, at: usize) -> [u32; 8] {
    std::array::from_fn(|i| apic.get(at + 16 * i))
}

fn x2apic(state: &CpuState) -> bool {
    state.msr(msr::APIC_BASE) & 1 << 10 != 0
}

/// The timer's modes in its LVT entry (Intel SDM volume 3, figure 11-8), and the entry's mask.
const MODE: u32 = 3 << 17;
const ONE_SHOT: u32 = 0;
const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;

/// The timer's divisor as a power of two, from its divide configuration register (figure 11-10). It counts nanoseconds.
fn divisor_shift(divide: u32) -> u32 {
    (divide & 3 | divide >> 1 & 4).wrapping_add(1) & 7
}

impl ApicWire {
    /// The wire form at `now`, in nanoseconds of the virtual clock.
    pub(super) fn from_state(state: &CpuState, now: i64) -> Self {
        let apic = &state.apic;
        let (divide, lvt_timer) = (apic.get(DIVIDE), apic.get(LVT));
        let shift = divisor_shift(divide);
        // The stream does not have the count, but when it began.
        let (initial, count) = (apic.get(INITIAL_COUNT), apic.get(CURRENT_COUNT));
        let loaded_at = now.saturating_sub(i64::from(initial.saturating_sub(count)) << shift);
        let next = loaded_at.saturating_add(i64::from(initial) + 1 << shift);
        let counts = initial != 0 && lvt_timer & MASKED == 0;
        let armed = counts && (lvt_timer & MODE == PERIODIC || lvt_timer & MODE == ONE_SHOT && count != 0);
        Self {
            apicbase: state.msr(msr::APIC_BASE) as u32,
            id: if x2apic(state) { apic.get(ID) } else { apic.get(ID) >> 24 } as u8,
            arb_id: 0,
            tpr: apic.get(TPR) as u8,
            spurious_vec: apic.get(SVR),
            log_dest: (apic.get(LDR) >> 24) as u8,
            dest_mode: (apic.get(DFR) >> 28) as u8,
            isr: bank(apic, ISR),
            tmr: bank(apic, TMR),
            irr: bank(apic, IRR),
            lvt: std::array::from_fn(|i| apic.get(LVT + 16 * i)),
            esr: apic.get(ESR),
            icr: ICR.map(|at| apic.get(at)),
            divide_conf: divide,
            count_shift: shift as i32,
            initial_count: initial,
            initial_count_load_time: loaded_at,
            next_time: if armed { next } else { 0 },
            timer_expiry: if armed { next } else { -1 },
            sipi: None,
        }
    }

    pub(super) fn apply(&self, state: &mut CpuState, now: i64) {
        state.set_msr(msr::APIC_BASE, self.apicbase.into());
        let x2apic = x2apic(state);
        let apic = &mut state.apic;
        *apic = ApicState::default();
        apic.set(ID, if x2apic { u32::from(self.id) } else { u32::from(self.id) << 24 });
        apic.set(VERSION, 0x0005_0014);
        apic.set(TPR, self.tpr.into());
        // In x2APIC mode the logical id follows from the id (Intel SDM volume 3, 11.12.10.2).
        let logical = u32::from(self.id) >> 4 << 16 | 1 << (self.id & 15);
        apic.set(LDR, if x2apic { logical } else { u32::from(self.log_dest) << 24 });
        apic.set(DFR, u32::from(self.dest_mode) << 28 | 0x0fff_ffff);
        apic.set(SVR, self.spurious_vec);
        for i in 0..8 {
            apic.set(ISR + 16 * i, self.isr[i]);
            apic.set(TMR + 16 * i, self.tmr[i]);
            apic.set(IRR + 16 * i, self.irr[i]);
        }
        for (i, &lvt) in self.lvt.iter().enumerate() {
            apic.set(LVT + 16 * i, lvt);
        }
        apic.set(ESR, self.esr);
        for (at, icr) in ICR.into_iter().zip(self.icr) {
            apic.set(at, icr);
        }
        apic.set(DIVIDE, self.divide_conf);
        let initial = i64::from(self.initial_count);
        let elapsed = now.saturating_sub(self.initial_count_load_time).max(0) >> divisor_shift(self.divide_conf);
        let count = match self.lvt[0] & MODE {
            PERIODIC => initial - elapsed % (initial + 1),
            _ => (initial - elapsed).max(0),
        };
        // A timer that has done its work would go off again when the kernel gets it.
        let over = self.lvt[0] & MODE == ONE_SHOT && count == 0;
        apic.set(INITIAL_COUNT, if over { 0 } else { self.initial_count });
        apic.set(CURRENT_COUNT, count as u32);
    }
}
