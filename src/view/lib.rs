//! A pair of VMs as its two monitors tell of it: who is what, why it checkpoints, how long the guest stands still.
//!
//! [`monitor`] talks to a VM, [`model`] remembers, [`screen`] draws for a terminal and [`plain`] writes for pipes. It only asks: nothing
//! about a VM changes because somebody looks at it.

pub mod model;
pub mod monitor;
pub mod plain;
pub mod screen;
