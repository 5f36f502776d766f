//! How a type's `create` puts a user's device on a PCI bus.

use std::sync::Arc;

use lockstep_util::Result;

use super::{PciBus, PciDevice};
use crate::core::CreateContext;

/// Where a user wants a device: the bus, the place (`None`: the next free slot), and whether the slot has several functions.
pub struct PciPlace {
    /// The bus.
    pub bus: Arc<PciBus>,
    /// Device and function number.
    pub devfn: Option<u8>,
    /// `multifunction`.
    pub multifunction: bool,
}

impl PciPlace {
    /// What the properties say.
    ///
    /// # Errors
    /// When the bus is none of PCI.
    pub fn of(context: &CreateContext<'_>) -> Result<Self> {
        let devfn = context.properties.i64("addr").and_then(|a| u8::try_from(a).ok());
        Ok(Self { bus: context.bus_object()?, devfn, multifunction: context.properties.bool("multifunction") })
    }

    /// Makes the device visible to the guest, and its place to the user.
    pub fn plug(&self, context: &mut CreateContext<'_>, device: Arc<dyn PciDevice>) {
        context.properties.set("addr", i64::from(device.function().devfn()));
        self.bus.plug(device, context.id);
    }
}
