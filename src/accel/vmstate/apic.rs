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
    current_count: Option<CurrentCount>,
}

/// The timer's count when the state was taken, of our own pairs: QEMU's stream only has times of a clock that is the
/// host's for an in-kernel APIC.
#[derive(Clone, Debug, Default, PartialEq, VmState)]
#[vmstate(name = "apic/lockstep_current_count", version = 1)]
pub struct CurrentCount {
    current_count: u32,
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

impl ApicWire {
    pub(super) fn from_state(state: &CpuState) -> Self {
        let apic = &state.apic;
        let divide = apic.get(DIVIDE);
        let count = apic.get(CURRENT_COUNT);
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
            count_shift: ((divide & 3 | (divide >> 1 & 4)).wrapping_add(1) & 7) as i32,
            initial_count: apic.get(INITIAL_COUNT),
            initial_count_load_time: 0,
            next_time: 0,
            timer_expiry: -1,
            current_count: (count != 0).then_some(CurrentCount { current_count: count }),
        }
    }

    pub(super) fn apply(&self, state: &mut CpuState) {
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
        apic.set(INITIAL_COUNT, self.initial_count);
        apic.set(CURRENT_COUNT, self.current_count.as_ref().map_or(self.initial_count, |c| c.current_count));
    }
}
