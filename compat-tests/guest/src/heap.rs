//! The heap: sizes rounded up to powers of two, one free list each, fresh memory from 16 MiB upwards.
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::null_mut;

/// Physical address of the first byte of the heap.
pub const START: usize = 0x100_0000;

struct State {
    next: usize,
    end: usize,
    /// Heads of the lists of free blocks of 2^n bytes; a block's first word points to the next one.
    free: [*mut *mut u8; 40],
}

/// The global allocator.
pub struct Heap(UnsafeCell<State>);

// SAFETY: there is one CPU, and interrupt handlers do not allocate.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State { next: START, end: START, free: [null_mut(); 40] }));

/// Gives the heap the memory up to physical address `end`.
pub fn start(end: usize) {
    // SAFETY: called once, before the first allocation.
    unsafe { (*HEAP.0.get()).end = end }
}

/// Bytes never yet handed out.
pub fn untouched() -> usize {
    // SAFETY: one CPU, no concurrent allocation.
    unsafe { (*HEAP.0.get()).end - (*HEAP.0.get()).next }
}

fn class(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(16).next_power_of_two().trailing_zeros() as usize
}

// SAFETY: blocks are disjoint, 2^n bytes long and 2^n aligned (up to 64 KiB, more than any layout here asks for).
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one CPU; see Sync.
        let state = unsafe { &mut *self.0.get() };
        let class = class(layout);
        let head = state.free[class];
        if !head.is_null() {
            // SAFETY: the list holds blocks given back by dealloc, which stored the link.
            state.free[class] = unsafe { *head }.cast();
            return head.cast();
        }
        let size = 1usize << class;
        let start = state.next.next_multiple_of(size.min(1 << 16));
        if start + size > state.end {
            return null_mut();
        }
        state.next = start + size;
        start as *mut u8
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: one CPU; see Sync.
        let state = unsafe { &mut *self.0.get() };
        let class = class(layout);
        // SAFETY: the block is ours again and at least 16 bytes long.
        unsafe { *block.cast::<*mut u8>() = state.free[class].cast() };
        state.free[class] = block.cast();
    }
}

/// A buffer of `size` bytes whose contents do not matter; `None` if memory is short. Filling it with zeros would touch every page,
/// which a hypervisor with shadow page tables makes expensive.
pub fn try_buffer(size: usize) -> Option<alloc::vec::Vec<u8>> {
    let layout = Layout::from_size_align(size.max(16), 16).ok()?;
    // SAFETY: the block comes from the global allocator; Vec<u8> frees it with alignment 1, which makes the same class of sizes
    // from 16 bytes up. RAM always holds some bytes.
    unsafe {
        let block = HEAP.alloc(layout);
        (!block.is_null()).then(|| alloc::vec::Vec::from_raw_parts(block, layout.size(), layout.size()))
    }
}

/// [`try_buffer`] for what the guest cannot do without.
pub fn buffer(size: usize) -> alloc::vec::Vec<u8> {
    try_buffer(size).expect("out of memory")
}
