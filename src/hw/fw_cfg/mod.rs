//! The firmware configuration device (QEMU's `docs/specs/fw_cfg.rst`): named blobs for firmware and kernels, by ports and by DMA.

mod items;
mod regs;
mod vmstate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use lockstep_memory::{AccessRules, AddressSpace, RamBlock, Region};
use lockstep_util::{Result, err};
use lockstep_vmstate::{LoadError, Snapshot};
use parking_lot::Mutex;

pub use items::{Blob, FILE_NAME_MAX, Items};
pub use vmstate::{AcpiSizesState, DmaState, FwCfgState};

use self::regs::{Transfer, Window};
use crate::core::{Board, io_handler};

/// Numbers of items without a name.
#[allow(missing_docs)]
pub mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NOGRAPHIC: u16 = 0x04;
    pub const CPU_COUNT: u16 = 0x05;
    pub const KERNEL_ADDRESS: u16 = 0x07;
    pub const KERNEL_SIZE: u16 = 0x08;
    pub const INITRD_ADDRESS: u16 = 0x0a;
    pub const INITRD_SIZE: u16 = 0x0b;
    pub const NUMA: u16 = 0x0d;
    pub const BOOT_MENU: u16 = 0x0e;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const KERNEL_ENTRY: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const COMMAND_LINE_ADDRESS: u16 = 0x13;
    pub const COMMAND_LINE_SIZE: u16 = 0x14;
    pub const COMMAND_LINE_DATA: u16 = 0x15;
    pub const SETUP_ADDRESS: u16 = 0x16;
    pub const SETUP_SIZE: u16 = 0x17;
    pub const SETUP_DATA: u16 = 0x18;
    pub const FILE_DIRECTORY: u16 = 0x19;
    pub const FIRST_FILE: u16 = 0x20;
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
    pub const HPET: u16 = 0x8004;
}

/// The device.
pub struct FwCfg {
    state: Mutex<State>,
    memory: AddressSpace,
    selected: Mutex<Vec<(String, SelectHook)>>,
}

type SelectHook = Arc<dyn Fn() + Send + Sync>;

struct State {
    items: Items,
    window: Window,
}

impl FwCfg {
    /// The device at its usual ports.
    pub fn new(board: &Board) -> Arc<Self> {
        let state = Mutex::new(State { items: Items::default(), window: Window::default() });
        let device = Arc::new(Self { state, memory: board.memory_space.clone(), selected: Mutex::default() });
        let (reader, writer) = (device.clone(), device.clone());
        let ports = io_handler(
            AccessRules { unaligned: true, ..AccessRules::sizes(1, 2) },
            move |_, size| if size == 1 { reader.read_byte().into() } else { 0 },
            // Writes to items through the data port went away with QEMU 2.4.
            move |offset, size, value| {
                if offset == 0 && size == 2 {
                    writer.select(value as u16);
                }
            },
        );
        let writer = device.clone();
        let dma = io_handler(
            AccessRules { unaligned: true, ..AccessRules::sizes(1, 8) },
            |offset, size| {
                let end = (offset + u64::from(size)).min(8) as usize;
                let mut value = [0; 8];
                let signature = &regs::DMA_SIGNATURE[(offset as usize).min(end)..end];
                value[..signature.len()].copy_from_slice(signature);
                u64::from_le_bytes(value)
            },
            move |offset, size, value| writer.write_dma_register(offset, size, value),
        );
        board.ports.add(0x510, &Region::io("fwcfg", 2, ports));
        board.ports.add(0x514, &Region::io("fwcfg.dma", 8, dma));
        device.set(key::SIGNATURE, b"QEMU".to_vec());
        // Version 1, with DMA.
        device.set(key::ID, 3u32.to_le_bytes());
        device
    }

    /// Sets an item that has a number.
    pub fn set(&self, key: u16, data: impl Into<Vec<u8>>) {
        self.state.lock().items.set(key, Blob::Bytes(data.into().into()));
    }

    /// Sets a 16-bit item.
    pub fn set_u16(&self, key: u16, value: u16) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets a 32-bit item.
    pub fn set_u32(&self, key: u16, value: u32) {
        self.set(key, value.to_le_bytes());
    }

    /// Adds a file, or replaces its contents.
    ///
    /// # Errors
    /// When the name is too long or there is no room in the directory.
    pub fn set_file(&self, name: &str, data: impl Into<Vec<u8>>) -> Result<()> {
        self.add(name, Blob::Bytes(data.into().into()))
    }

    /// Adds a file whose contents are a block of memory, which migrates.
    ///
    /// # Errors
    /// As [`set_file`](Self::set_file).
    pub fn add_memory_file(&self, name: &str, block: &RamBlock, len: u64) -> Result<()> {
        self.add(name, Blob::Memory(block.clone(), len))
    }

    fn add(&self, name: &str, blob: Blob) -> Result<()> {
        self.state.lock().items.set_file(name, blob).map_err(|text| err!("fw_cfg file '{name}': {text}"))
    }

    /// Names and sizes of all files in the directory's order.
    pub fn files(&self) -> Vec<(String, u64)> {
        self.state.lock().items.files()
    }

    /// The contents of a file.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().items.file(name)
    }

    /// Resets it: item 0 selected.
    pub fn reset(&self) {
        self.state.lock().window = Window::default();
    }

    /// Has `f` called each time a file is selected, before it is read.
    pub fn on_select(&self, name: &str, f: impl Fn() + Send + Sync + 'static) {
        self.selected.lock().push((name.to_owned(), Arc::new(f)));
    }

    fn select(&self, key: u16) {
        let hook = {
            let mut state = self.state.lock();
            let known = state.items.in_range(key);
            state.window.select(key, known);
            let name = state.items.file_name(key);
            name.and_then(|n| self.selected.lock().iter().find(|(of, _)| of == n).map(|(_, hook)| hook.clone()))
        };
        if let Some(hook) = hook {
            hook();
        }
    }

    fn read_byte(&self) -> u8 {
        let state = &mut *self.state.lock();
        let mut byte = [0];
        state.window.read(&state.items, &mut byte);
        byte[0]
    }

    fn write_dma_register(&self, offset: u64, size: u32, value: u64) {
        let start = {
            let mut state = self.state.lock();
            state.window.write_dma_address(offset, size, value)
        };
        if let Some(address) = start {
            self.transfer(address);
        }
    }

    /// Does what the descriptor at a guest address says. Memory is accessed with the lock let go.
    fn transfer(&self, address: u64) {
        let mut descriptor = [0; 16];
        if self.memory.read(address, &mut descriptor).is_err() {
            let _ = self.memory.write(address, &regs::DMA_ERROR.to_be_bytes());
            return;
        }
        let transfer = Transfer::parse(&descriptor);
        if let Some(key) = transfer.select {
            self.select(key);
        }
        let outcome = self.move_bytes(&transfer);
        let _ = self.memory.write(address, &outcome.to_be_bytes());
    }

    fn move_bytes(&self, transfer: &Transfer) -> u32 {
        if transfer.writes {
            // No item takes writes.
            return regs::DMA_ERROR;
        }
        let mut left = transfer.length;
        let mut to = transfer.address;
        let mut chunk = [0; 4096];
        while left > 0 {
            let n = left.min(chunk.len() as u32);
            let ended = {
                let state = &mut *self.state.lock();
                if transfer.reads {
                    state.window.read(&state.items, &mut chunk[..n as usize])
                } else {
                    state.window.skip(&state.items, n)
                }
            };
            if transfer.reads && self.memory.write(to, &chunk[..n as usize]).is_err() {
                return regs::DMA_ERROR;
            }
            if ended && !transfer.reads {
                // Nothing is left to skip.
                break;
            }
            to = to.wrapping_add(n.into());
            left -= n;
        }
        0
    }
}

impl Snapshot for FwCfg {
    type Wire = FwCfgState;

    fn snapshot(&self) -> FwCfgState {
        let state = self.state.lock();
        state.window.save(&state.items)
    }

    fn validate(&self, wire: &FwCfgState) -> Result<(), LoadError> {
        self.state.lock().items.check_sizes(wire)
    }

    fn restore(&self, wire: FwCfgState) {
        self.state.lock().window.load(&wire);
    }
}
