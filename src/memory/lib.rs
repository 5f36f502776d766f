//! Guest memory: RAM blocks with dirty tracking, the tree of regions, and the flat view that accesses go through.
//!
//! Devices and chipsets build a tree of [`Region`]s. An [`AddressSpace`] renders its root into a [`FlatView`], a sorted list
//! without overlaps, and publishes it as a snapshot: readers take no lock. Listeners (KVM's memory slots) are told of each
//! new view. RAM is a [`RamBlock`]; [`RamList`] is what migration walks.

mod access;
mod bitmap;
mod ram;
mod region;
mod space;
mod view;

pub use access::{AccessRules, IoHandler, MemTxError};
pub use bitmap::DirtyBitmap;
pub use ram::{DirtyClient, DirtyLog, PAGE_SIZE, RamBlock, RamList};
pub use region::{Region, Transaction};
pub use space::{AddressSpace, MemoryListener};
pub use view::{FlatRange, FlatTarget, FlatView};
