//! The board: what every device is built on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use lockstep_event::Clocks;
use lockstep_memory::{AddressSpace, RamList, Region};
use lockstep_util::Result;
use lockstep_vmstate::StateRegistry;
use parking_lot::Mutex;

use super::{Backends, DeviceTree, Globals, InputHub, Notifier, RequestSink, ResetRegistry};

/// Handles to what devices of one machine share. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    /// The machine's clocks.
    pub clocks: Clocks,
    /// Blocks of RAM, ROM and video memory.
    pub ram: RamList,
    /// Sections of the migration stream, in order.
    pub states: StateRegistry,
    /// Root of the memory map, the whole 64-bit space.
    pub memory: Region,
    /// Root of the I/O ports, 64 KiB.
    pub ports: Region,
    /// The memory map as a CPU outside system management mode and bus masters see it.
    pub memory_space: AddressSpace,
    /// The I/O ports.
    pub port_space: AddressSpace,
    /// What a reset of the machine resets.
    pub resets: ResetRegistry,
    /// Where devices ask for a reset or for power off.
    pub requests: RequestSink,
    /// Called when the user presses the power button (`system_powerdown`).
    pub powerdown: Notifier,
    /// Called when the machine wakes from suspend to RAM.
    pub wakeup: Notifier,
    /// Called each time the machine begins to run, before its CPUs do.
    pub resumed: Notifier,
    /// Disks and the like that users name by id.
    pub backends: Backends,
    /// Keyboards and pointing devices.
    pub input: InputHub,
    /// Devices and buses as users see them.
    pub tree: DeviceTree,
    /// Defaults that the user changed with `-global`.
    pub globals: Globals,
    /// Where firmware images are looked for.
    pub firmware: FirmwareFiles,
}

impl Board {
    /// A bare board.
    pub fn new(clocks: Clocks) -> Self {
        let (memory, ports) = (Region::whole_space("system"), Region::container("io", 0x1_0000));
        Self {
            clocks,
            ram: RamList::new(),
            states: StateRegistry::new(),
            memory_space: AddressSpace::memory("memory", &memory),
            port_space: AddressSpace::ports("I/O", &ports),
            memory,
            ports,
            resets: ResetRegistry::default(),
            requests: RequestSink::default(),
            powerdown: Notifier::default(),
            wakeup: Notifier::default(),
            resumed: Notifier::default(),
            backends: Backends::default(),
            input: InputHub::default(),
            tree: DeviceTree::default(),
            globals: Globals::default(),
            firmware: FirmwareFiles::default(),
        }
    }
}

/// The folders in which firmware images (BIOS, option ROMs) are looked for.
#[derive(Clone)]
pub struct FirmwareFiles {
    folders: Arc<Mutex<Vec<PathBuf>>>,
}

/// Where distributions install the images that QEMU loads.
const DEFAULT_FOLDERS: [&str; 5] =
    ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu", "/usr/share/ipxe/qemu", "/usr/share/qemu-firmware"];

/// An option ROM is at most 16 MiB: no file a user names may fill the memory.
const LARGEST_FILE: u64 = 16 << 20;

impl Default for FirmwareFiles {
    fn default() -> Self {
        Self { folders: Arc::new(Mutex::new(DEFAULT_FOLDERS.map(PathBuf::from).to_vec())) }
    }
}

impl FirmwareFiles {
    /// Looks in `folder` before all others known so far (`-L`).
    pub fn prepend(&self, folder: impl Into<PathBuf>) {
        self.folders.lock().insert(0, folder.into());
    }

    /// The folders, in the order of the search.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.folders.lock().clone()
    }

    /// The file of a name: the name itself if it is one, else the first folder's that has it.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        if name.is_empty() {
            return None;
        }
        if Path::new(name).is_file() {
            return Some(name.into());
        }
        self.folders.lock().iter().map(|f| f.join(name)).find(|p| p.is_file())
    }

    /// Reads the file of a name.
    ///
    /// # Errors
    /// `None` when there is no such file; the inner error when it cannot be read or is larger than 16 MiB.
    pub fn read(&self, name: &str) -> Option<Result<Vec<u8>>> {
        let path = self.find(name)?;
        let read = || {
            let length = std::fs::metadata(&path)?.len();
            if length > LARGEST_FILE {
                return Err(std::io::Error::from_raw_os_error(libc::EFBIG));
            }
            std::fs::read(&path)
        };
        Some(read().map_err(|e| lockstep_util::Error::with_errno(format!("Could not open '{}'", path.display()), &e)))
    }
}
