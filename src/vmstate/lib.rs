//! Device state on the wire: one plain struct per device, its codec, its description, and the list of all devices.
//!
//! The format is that of QEMU's migration stream: integers big-endian, fields one after the other with no framing, a version per
//! section, optional subsections after the fields. What surrounds the sections (ids, footers, RAM) is the migration room's.
//!
//! # For a device's author
//!
//! Keep a *wire struct* apart from the run-time state, with the fields in QEMU's order, and say how the two convert:
//!
//! ```
//! use lockstep_vmstate::{Buffer, LoadError, Snapshot, Timer, Unused, VmState};
//! # use std::sync::Mutex;
//!
//! #[derive(Clone, Debug, PartialEq, VmState)]
//! #[vmstate(name = "mc146818rtc", version = 3, minimum = 1)]
//! pub struct RtcState {
//!     pub cmos_data: Buffer<128>,
//!     pub cmos_index: u8,
//!     pub unused0: Unused<28>,
//!     pub periodic_timer: Timer,
//!     pub next_periodic_time: i64,
//!     pub unused1: Unused<24>,
//!     #[vmstate(since = 2)]
//!     pub irq_coalesced: u32,
//!     #[vmstate(since = 2)]
//!     pub period: u32,
//!     #[vmstate(since = 3)]
//!     pub base_rtc: u64,
//!     #[vmstate(since = 3)]
//!     pub last_update: u64,
//!     #[vmstate(since = 3)]
//!     pub offset: i64,
//!     #[vmstate(since = 3)]
//!     pub update_timer: Timer,
//!     #[vmstate(since = 3)]
//!     pub next_alarm_time: u64,
//!     #[vmstate(subsection)]
//!     pub irq_reinject: Option<RtcReinject>,
//! }
//!
//! #[derive(Clone, Debug, PartialEq, VmState)]
//! #[vmstate(name = "mc146818rtc/irq_reinject_on_ack_count", version = 1)]
//! pub struct RtcReinject {
//!     pub irq_reinject_on_ack_count: u16,
//! }
//! # struct Rtc { state: Mutex<RtcState> }
//!
//! impl Snapshot for Rtc {
//!     type Wire = RtcState;
//!     fn snapshot(&self) -> RtcState {
//!         self.state.lock().unwrap().clone() // from registers to wire
//!     }
//!     fn validate(&self, wire: &RtcState) -> Result<(), LoadError> {
//!         if wire.cmos_index > 127 {
//!             return Err(LoadError::invalid("cmos_index is out of range"));
//!         }
//!         Ok(())
//!     }
//!     fn restore(&self, wire: RtcState) {
//!         *self.state.lock().unwrap() = wire; // from wire to registers, timers re-armed, lines re-driven
//!     }
//! }
//! ```
//!
//! and register it: `registry.register("0000:00:04.0/rtl8139", device.clone())` where `device` is an `Arc` of the implementor. The
//! order of registration is the order of the sections, as in QEMU.
//!
//! Loading has **two phases**: every section is parsed and validated first ([`SaveState::prepare`], which must not touch the device),
//! and only when all of them are good are they applied ([`Prepared`], which cannot fail). A COLO secondary depends on this.
//!
//! What the derive takes:
//!
//! | on | attribute | meaning |
//! |---|---|---|
//! | struct | `name = "..."`, `version = N`, `minimum = N` | as QEMU's; `minimum` defaults to `version` |
//! | field | `name = "..."` | its name in the description, where it is not the Rust name |
//! | field | `since = N` | absent (zero) in sections older than version N |
//! | field | `count = EXPR, max = N` | of a `Vec`: how many elements there are, from fields before it; more than `max` is an error |
//! | field | `when = EXPR` | of an `Option`: it is in the stream if EXPR over earlier fields and `version` holds |
//! | field | `each` | of an array: QEMU tests whether it is there, and so describes its elements one by one |
//! | field | `subsection` | of an `Option` of another `VmState`, whose name is `parent/...` |
//! | field | `kind = "..."` | QEMU's type name where it is special (`"int32 le"`, `"pci config"`, `"uint8 equal"`, `"tmp"`) |
//!
//! Field types: integers, `bool`, `[T; N]`, [`Buffer`], [`Unused`], [`Timer`], `Vec<T>` and other wire structs.

mod codec;
mod describe;
mod error;
mod registry;
mod wire;

pub use codec::{Decoder, Encoder};
pub use describe::{Layout, LayoutField, Shape};
pub use error::LoadError;
pub use lockstep_vmstate_derive::VmState;
pub use registry::{Entry, Prepared, SaveState, Snapshot, StateInfo, StateRegistry, check_roundtrip};
pub use wire::{Buffer, Timer, Unused, VmState, Wire};

/// What the derive's output names.
#[doc(hidden)]
pub mod derive_support {
    pub use crate::describe::{StructFields, describe_struct};
    pub use crate::wire::check_version;
    pub use serde_json::Value;
}

// The derive's output names this crate by its outer name.
extern crate self as lockstep_vmstate;

/// Writes the test that a device's state survives a trip through the wire: `vmstate_roundtrip!(name, || device)` where the closure
/// builds an `Arc` of a [`Snapshot`] in some interesting state; what comes back from the wire is put in a second, fresh device made by
/// the optional third argument, and both must save the same bytes.
#[macro_export]
macro_rules! vmstate_roundtrip {
    ($name:ident, $device:expr) => {
        $crate::vmstate_roundtrip!($name, $device, $device);
    };
    ($name:ident, $device:expr, $fresh:expr) => {
        #[test]
        fn $name() {
            let (device, fresh) = (($device)(), ($fresh)());
            if let Err(e) = $crate::check_roundtrip(&device, &fresh) {
                panic!("{e}");
            }
        }
    };
}

#[cfg(test)]
mod tests;
