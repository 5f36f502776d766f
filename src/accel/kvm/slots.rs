//! Memory slots: the guest's RAM as the kernel knows it, and the log of pages that the guest wrote.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use lockstep_memory::{DirtyLog, FlatRange, FlatTarget, FlatView, MemoryListener, PAGE_SIZE, RamBlock};
use lockstep_util::{Result, err};
use parking_lot::Mutex;

/// Follows an address space and keeps the kernel's slots equal to its RAM ranges.
pub(super) struct Slots {
    vm: Arc<VmFd>,
    table: Mutex<Vec<Option<Slot>>>,
}

#[derive(Clone)]
struct Slot {
    guest: u64,
    size: u64,
    block: RamBlock,
    offset: u64,
    readonly: bool,
    logged: bool,
}

impl Slot {
    /// The slot for a range; ranges that are not whole pages are left to user space.
    fn of(range: &FlatRange) -> Option<Self> {
        let FlatTarget::Ram { block, offset, readonly } = &range.target else { return None };
        let size = range.len_minus_1() + 1;
        let aligned = [range.start, size, *offset].iter().all(|v| v % PAGE_SIZE == 0);
        aligned.then(|| Self {
            guest: range.start,
            size,
            block: block.clone(),
            offset: *offset,
            readonly: *readonly,
            logged: block.is_logged(),
        })
    }

    fn same_place(&self, other: &Self) -> bool {
        self.guest == other.guest
            && self.size == other.size
            && self.offset == other.offset
            && self.readonly == other.readonly
            && self.block.same(&other.block)
    }
}

impl Slots {
    pub(super) fn new(vm: Arc<VmFd>, count: usize) -> Self {
        Self { vm, table: Mutex::new(vec![None; count.clamp(8, 512)]) }
    }

    fn set(&self, index: usize, slot: &Slot, size: u64) -> std::result::Result<(), kvm_ioctls::Error> {
        let mut flags = 0;
        if slot.logged {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        if slot.readonly {
            flags |= KVM_MEM_READONLY;
        }
        let region = kvm_userspace_memory_region {
            slot: index as u32,
            flags,
            guest_phys_addr: slot.guest,
            memory_size: size,
            userspace_addr: slot.block.host_address() as u64 + slot.offset,
        };
        // SAFETY: the range is inside the block, which the table keeps alive while the slot exists.
        unsafe { self.vm.set_user_memory_region(region) }
    }

    /// Merges a slot's log into its block. The kernel starts a new one.
    fn sync_slot(&self, index: usize, slot: &Slot) {
        if !slot.logged {
            return;
        }
        let words = match self.vm.get_dirty_log(index as u32, slot.size as usize) {
            Ok(words) => words,
            Err(e) => {
                // Losing a dirty page would be a silent difference between the two sides: take all of them.
                tracing::error!("KVM_GET_DIRTY_LOG of slot {index}: {e}");
                slot.block.mark_dirty(slot.offset, slot.size);
                return;
            }
        };
        let first = slot.offset / PAGE_SIZE;
        let (word, shift) = ((first / 64) as usize, first % 64);
        for (i, &bits) in words.iter().enumerate().filter(|&(_, &bits)| bits != 0) {
            slot.block.merge_dirty_word(word + i, bits << shift);
            if shift != 0 && bits >> (64 - shift) != 0 {
                slot.block.merge_dirty_word(word + i + 1, bits >> (64 - shift));
            }
        }
    }
}

impl MemoryListener for Slots {
    fn view_changed(&self, _old: &FlatView, new: &FlatView) {
        let mut table = self.table.lock();
        let wanted: Vec<Slot> = new.ranges().iter().filter_map(Slot::of).collect();
        for index in 0..table.len() {
            let Some(slot) = table[index].clone() else { continue };
            if !wanted.iter().any(|w| w.same_place(&slot)) {
                self.sync_slot(index, &slot);
                if let Err(e) = self.set(index, &slot, 0) {
                    tracing::error!("removing memory slot {index}: {e}");
                }
                table[index] = None;
            }
        }
        for slot in wanted {
            if table.iter().flatten().any(|s| s.same_place(&slot)) {
                continue;
            }
            let Some(index) = table.iter().position(Option::is_none) else {
                tracing::error!("no free memory slot for {:#x}", slot.guest);
                return;
            };
            match self.set(index, &slot, slot.size) {
                Ok(()) => table[index] = Some(slot),
                Err(e) => tracing::error!("memory slot at {:#x}, {:#x} bytes: {e}", slot.guest, slot.size),
            }
        }
    }
}

impl DirtyLog for Slots {
    fn logging_changed(&self, block: &RamBlock) -> Result<()> {
        let mut table = self.table.lock();
        for index in 0..table.len() {
            let Some(mut slot) = table[index].clone() else { continue };
            if !slot.block.same(block) || slot.logged == block.is_logged() {
                continue;
            }
            self.sync_slot(index, &slot);
            slot.logged = block.is_logged();
            self.set(index, &slot, slot.size).map_err(|e| err!("cannot track the guest's writes: {e}"))?;
            table[index] = Some(slot);
        }
        Ok(())
    }

    fn sync(&self) {
        let table = self.table.lock();
        for (index, slot) in table.iter().enumerate() {
            if let Some(slot) = slot {
                self.sync_slot(index, slot);
            }
        }
    }
}
