//! The state of the in-kernel 8259s, IOAPIC and 8254, raw, for migration.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state, kvm_irqchip, kvm_pic_state,
    kvm_pit_state2,
};
use lockstep_util::Result;

use super::{KvmMachine, kvm_error};

/// One 8259 as the kernel shows it.
pub type PicRaw = kvm_pic_state;
/// The IOAPIC as the kernel shows it.
pub type IoApicRaw = kvm_ioapic_state;
/// The 8254 as the kernel shows it.
pub type PitRaw = kvm_pit_state2;

impl KvmMachine {
    fn irqchip(&self, chip_id: u32) -> Result<kvm_irqchip> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.vm.get_irqchip(&mut chip).map_err(|e| kvm_error("KVM_GET_IRQCHIP failed", e))?;
        Ok(chip)
    }

    fn set_irqchip(&self, chip: &kvm_irqchip) -> Result<()> {
        self.vm.set_irqchip(chip).map_err(|e| kvm_error("KVM_SET_IRQCHIP failed", e))
    }

    /// The state of the master (`slave` false) or slave 8259.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pic(&self, slave: bool) -> Result<PicRaw> {
        let chip = self.irqchip(if slave { KVM_IRQCHIP_PIC_SLAVE } else { KVM_IRQCHIP_PIC_MASTER })?;
        // SAFETY: for this chip the kernel fills in this member; all bit patterns of it are valid.
        Ok(unsafe { chip.chip.pic })
    }

    /// Sets the state of an 8259.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_pic(&self, slave: bool, state: &PicRaw) -> Result<()> {
        let chip_id = if slave { KVM_IRQCHIP_PIC_SLAVE } else { KVM_IRQCHIP_PIC_MASTER };
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        chip.chip.pic = *state;
        self.set_irqchip(&chip)
    }

    /// The state of the IOAPIC.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ioapic(&self) -> Result<IoApicRaw> {
        let chip = self.irqchip(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: for this chip the kernel fills in this member; all bit patterns of it are valid.
        Ok(unsafe { chip.chip.ioapic })
    }

    /// Sets the state of the IOAPIC.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_ioapic(&self, state: &IoApicRaw) -> Result<()> {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        chip.chip.ioapic = *state;
        self.set_irqchip(&chip)
    }

    /// The state of the 8254.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pit(&self) -> Result<PitRaw> {
        self.vm.get_pit2().map_err(|e| kvm_error("KVM_GET_PIT2 failed", e))
    }

    /// Sets the state of the 8254.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_pit(&self, state: &PitRaw) -> Result<()> {
        self.vm.set_pit2(state).map_err(|e| kvm_error("KVM_SET_PIT2 failed", e))
    }
}
