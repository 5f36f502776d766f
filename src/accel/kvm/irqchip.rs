//! The in-kernel 8259s, IOAPIC and 8254: interrupts in, state in and out.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state, kvm_irqchip, kvm_pic_state,
    kvm_pit_channel_state, kvm_pit_state2,
};
use lockstep_event::Clock;
use lockstep_hw::{
    core::IrqSink,
    irqchip::{KernelIrqChip, MsiSink, ioapic::IoApicState, pic::PicState},
    timer::pit::{PitChannelState, PitState},
};
use lockstep_util::Result;

use super::{KvmMachine, kvm_error};

/// `KVM_PIT_FLAGS_HPET_LEGACY`: channel 0 is disconnected.
const IRQ_DISABLED: u32 = 1;

impl KvmMachine {
    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.vm.get_irqchip(&mut chip).map_err(|e| kvm_error("KVM_GET_IRQCHIP failed", e))?;
        Ok(chip)
    }

    fn set_irqchip(&self, chip: &kvm_irqchip) -> Result<()> {
        self.vm.set_irqchip(chip).map_err(|e| kvm_error("KVM_SET_IRQCHIP failed", e))
    }

    /// The virtual clock less the clock that the kernel's timer counts with, in nanoseconds.
    fn clock_offset(&self) -> i64 {
        self.clocks.now_ns(Clock::Virtual) - self.clocks.now_ns(Clock::Realtime)
    }

    fn read_pit(&self) -> Result<PitState> {
        let raw = self.vm.get_pit2().map_err(|e| kvm_error("KVM_GET_PIT2 failed", e))?;
        let offset = self.clock_offset();
        Ok(PitState {
            irq_disabled: raw.flags & IRQ_DISABLED,
            channels: raw.channels.map(|c| channel_state(&c, offset)),
            next_transition_time: -1,
        })
    }

    fn write_pit(&self, state: &PitState) -> Result<()> {
        let offset = self.clock_offset();
        let raw = kvm_pit_state2 {
            channels: std::array::from_fn(|i| kernel_channel(&state.channels[i], offset)),
            flags: if state.irq_disabled != 0 { IRQ_DISABLED } else { 0 },
            ..Default::default()
        };
        self.vm.set_pit2(&raw).map_err(|e| kvm_error("KVM_SET_PIT2 failed", e))
    }

    /// The guest was stopped: the timer's state is kept here until it runs, because the kernel's clock runs on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stopped(&self) -> Result<()> {
        let state = self.read_pit()?;
        *self.stopped_pit.lock() = Some(state);
        *self.stopped_clock.lock() = Some(self.read_clock()?);
        Ok(())
    }

    /// The guest is about to run: the timer goes on where it stood.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn starting(&self) -> Result<()> {
        if let Some(state) = self.stopped_pit.lock().take() {
            self.write_pit(&state)?;
        }
        if let Some(clock) = self.stopped_clock.lock().take() {
            self.write_clock(clock)?;
        }
        Ok(())
    }
}

impl IrqSink for KvmMachine {
    fn set_irq(&self, n: u32, level: bool) {
        if let Err(e) = self.vm.set_irq_line(n, level) {
            tracing::error!("kvm_set_irq: {e}");
        }
    }
}

impl MsiSink for KvmMachine {
    fn send_msi(&self, address: u64, data: u32) {
        let msi = kvm_bindings::kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        if let Err(e) = self.vm.signal_msi(msi) {
            tracing::debug!("KVM_SIGNAL_MSI: {e}");
        }
    }
}

impl KernelIrqChip for KvmMachine {
    fn pic(&self, slave: bool) -> Result<PicState> {
        let chip = self.irqchip(if slave { KVM_IRQCHIP_PIC_SLAVE } else { KVM_IRQCHIP_PIC_MASTER })?;
        // SAFETY: for this chip the kernel fills in this member; all bit patterns of it are valid.
        let raw = unsafe { chip.chip.pic };
        Ok(PicState {
            last_irr: raw.last_irr,
            irr: raw.irr,
            imr: raw.imr,
            isr: raw.isr,
            priority_add: raw.priority_add,
            irq_base: raw.irq_base,
            read_reg_select: raw.read_reg_select,
            poll: raw.poll,
            special_mask: raw.special_mask,
            init_state: raw.init_state,
            auto_eoi: raw.auto_eoi,
            rotate_on_auto_eoi: raw.rotate_on_auto_eoi,
            special_fully_nested_mode: raw.special_fully_nested_mode,
            init4: raw.init4,
            single_mode: 0,
            elcr: raw.elcr,
        })
    }

    fn set_pic(&self, slave: bool, state: &PicState) -> Result<()> {
        let chip_id = if slave { KVM_IRQCHIP_PIC_SLAVE } else { KVM_IRQCHIP_PIC_MASTER };
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        chip.chip.pic = kvm_pic_state {
            last_irr: state.last_irr,
            irr: state.irr,
            imr: state.imr,
            isr: state.isr,
            priority_add: state.priority_add,
            irq_base: state.irq_base,
            read_reg_select: state.read_reg_select,
            poll: state.poll,
            special_mask: state.special_mask,
            init_state: state.init_state,
            auto_eoi: state.auto_eoi,
            rotate_on_auto_eoi: state.rotate_on_auto_eoi,
            special_fully_nested_mode: state.special_fully_nested_mode,
            init4: state.init4,
            elcr: state.elcr,
            // Which interrupts may be level-triggered: not the timer, keyboard, cascade, clock and coprocessor.
            elcr_mask: if slave { 0xde } else { 0xf8 },
        };
        self.set_irqchip(&chip)
    }

    fn ioapic(&self) -> Result<IoApicState> {
        let chip = self.irqchip(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: for this chip the kernel fills in this member; all bit patterns of it are valid.
        let raw = unsafe { chip.chip.ioapic };
        Ok(IoApicState {
            id: raw.id as u8,
            ioregsel: raw.ioregsel as u8,
            unused: lockstep_vmstate::Unused,
            irr: raw.irr,
            // SAFETY: both members of the union are all of its 64 bits.
            ioredtbl: raw.redirtbl.map(|r| unsafe { r.bits }),
        })
    }

    fn set_ioapic(&self, state: &IoApicState) -> Result<()> {
        let mut raw = kvm_ioapic_state {
            base_address: 0xfec0_0000,
            id: state.id.into(),
            ioregsel: state.ioregsel.into(),
            irr: state.irr,
            ..Default::default()
        };
        for (to, from) in raw.redirtbl.iter_mut().zip(state.ioredtbl) {
            to.bits = from;
        }
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        chip.chip.ioapic = raw;
        self.set_irqchip(&chip)
    }

    fn pit(&self) -> Result<PitState> {
        match &*self.stopped_pit.lock() {
            Some(state) => Ok(state.clone()),
            None => self.read_pit(),
        }
    }

    fn set_pit(&self, state: &PitState) -> Result<()> {
        let mut stopped = self.stopped_pit.lock();
        if stopped.is_some() {
            *stopped = Some(state.clone());
        }
        // Also now: the speaker's gate and output are asked for while the guest stands.
        self.write_pit(state)
    }
}

fn channel_state(c: &kvm_pit_channel_state, offset: i64) -> PitChannelState {
    PitChannelState {
        count: c.count as i32,
        latched_count: c.latched_count,
        count_latched: c.count_latched,
        status_latched: c.status_latched,
        status: c.status,
        read_state: c.read_state,
        write_state: c.write_state,
        write_latch: c.write_latch,
        rw_mode: c.rw_mode,
        mode: c.mode,
        bcd: c.bcd,
        gate: c.gate,
        count_load_time: c.count_load_time + offset,
        next_transition_time: 0,
    }
}

fn kernel_channel(c: &PitChannelState, offset: i64) -> kvm_pit_channel_state {
    kvm_pit_channel_state {
        count: c.count as u32,
        latched_count: c.latched_count,
        count_latched: c.count_latched,
        status_latched: c.status_latched,
        status: c.status,
        read_state: c.read_state,
        write_state: c.write_state,
        write_latch: c.write_latch,
        rw_mode: c.rw_mode,
        mode: c.mode,
        bcd: c.bcd,
        gate: c.gate,
        count_load_time: c.count_load_time.wrapping_sub(offset),
    }
}
