//! What the machine says of itself (DMTF DSP0134, System Management BIOS 2.8): structures and entry point, which firmware copies.

use lockstep_util::size::{GIB, MIB};

use super::PcConfig;

const MANUFACTURER: &str = "QEMU";
const PRODUCT: &str = "Standard PC (i440FX + PIIX, 1996)";
/// Memory devices are at most this large.
const LARGEST_DEVICE: u64 = 16 * GIB;
const MEMORY_ARRAY: u16 = 0x1000;
const NO_HANDLE: u16 = 0xfffe;
const UNKNOWN: u16 = 0xffff;

/// A structure being written; texts are numbered from 1.
struct Structure {
    bytes: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { bytes: vec![kind, 0, low, high], texts: vec![], count: 0 }
    }

    fn put(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend(bytes.as_ref());
        self
    }

    fn u16(self, value: u16) -> Self {
        self.put(value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.put(value.to_le_bytes())
    }

    fn text(mut self, text: &str) -> Self {
        self.count += 1;
        self.texts.extend(text.bytes().filter(|&b| b != 0));
        self.texts.push(0);
        let number = self.count;
        self.put([number])
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes[1] = self.bytes.len() as u8;
        if self.texts.is_empty() {
            self.texts.push(0);
        }
        self.texts.push(0);
        self.bytes.extend(self.texts);
        self.bytes
    }
}

/// The files `etc/smbios/smbios-anchor` and `etc/smbios/smbios-tables`.
pub(super) fn build(config: &PcConfig) -> (Vec<u8>, Vec<u8>) {
    let mut structures = vec![system(config), chassis(config)];
    let (threads, cores) = config.topology;
    let per_socket = (threads * cores).max(1);
    let sockets = (config.cpus.len() as u32).div_ceil(per_socket);
    structures.extend((0..sockets).map(|n| processor(config, n)));
    let devices = config.ram_size.div_ceil(LARGEST_DEVICE).max(1);
    structures.push(memory_array(config, devices));
    structures.extend((0..devices).map(|n| memory_device(config, n)));
    structures.push(mapping(0, 0, config.below_4g()));
    if config.above_4g() > 0 {
        structures.push(mapping(1, 4 * GIB, config.above_4g()));
    }
    // Boot information: no errors.
    structures.push(Structure::new(32, 0x2000).put([0; 7]).finish());
    structures.push(Structure::new(127, 0x7f00).finish());
    (anchor(&structures), structures.concat())
}

fn system(config: &PcConfig) -> Vec<u8> {
    let mut uuid = config.uuid.unwrap_or_default();
    // The first three fields are little-endian.
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    // No serial number; woken by the power switch; no SKU, no family.
    let s = Structure::new(1, 0x100).text(MANUFACTURER).text(PRODUCT).text(&config.machine_name);
    s.put([0]).put(uuid).put([6, 0, 0]).finish()
}

fn chassis(config: &PcConfig) -> Vec<u8> {
    // Of another kind; states safe, security none.
    let s = Structure::new(3, 0x300).text(MANUFACTURER).put([1]).text(&config.machine_name);
    s.put([0, 0, 3, 3, 3, 2]).put([0; 9]).finish()
}

fn processor(config: &PcConfig, n: u32) -> Vec<u8> {
    const MHZ: u16 = 2000;
    let (eax, edx) = config.cpuid_1;
    let (threads, cores) = config.topology;
    let s = Structure::new(4, 0x400 + n as u16).text(&format!("CPU {n}")).put([3, 0xfe]).text(MANUFACTURER);
    let s = s.u32(eax).u32(edx).text(&config.machine_name).put([0, 0, 0]).u16(MHZ).u16(MHZ);
    // Socket populated and enabled, upgrade other; caches not described; no numbers.
    let s = s.put([0x41, 1]).put([0xff; 6]).put([0; 3]);
    let byte = |n: u32| n.min(255) as u8;
    s.put([byte(cores), byte(cores), byte(cores * threads)]).u16(2).u16(1).finish()
}

fn memory_array(config: &PcConfig, devices: u64) -> Vec<u8> {
    let kib = config.ram_size / 1024;
    // Larger arrays are described in bytes by another field.
    let (short, long) = if kib < 0x8000_0000 { (kib as u32, 0) } else { (0x8000_0000, config.ram_size) };
    let s = Structure::new(16, MEMORY_ARRAY).put([1, 3, 6]).u32(short).u16(NO_HANDLE).u16(devices as u16);
    s.put(long.to_le_bytes()).finish()
}

fn memory_device(config: &PcConfig, n: u64) -> Vec<u8> {
    let mib = (config.ram_size - n * LARGEST_DEVICE).min(LARGEST_DEVICE) / MIB;
    let (short, long) = if mib < 0x7fff { (mib as u16, 0) } else { (0x7fff, mib as u32) };
    let s = Structure::new(17, 0x1100 + n as u16).u16(MEMORY_ARRAY).u16(NO_HANDLE).u16(UNKNOWN).u16(UNKNOWN);
    // A DIMM of RAM, detail other.
    let s = s.u16(short).put([9, 0]).text(&format!("DIMM {n}")).put([0, 7]).u16(2).u16(0).text(MANUFACTURER);
    s.put([0; 4]).u32(long).put([0; 8]).finish()
}

fn mapping(n: u16, start: u64, length: u64) -> Vec<u8> {
    let (first, last) = (start / 1024, (start + length - 1) / 1024);
    let s = Structure::new(19, 0x1300 + n);
    let s = match u32::try_from(last) {
        Ok(last) => s.u32(first as u32).u32(last).u16(MEMORY_ARRAY).put([1]).put([0; 16]),
        Err(_) => {
            let s = s.u32(u32::MAX).u32(u32::MAX).u16(MEMORY_ARRAY).put([1]);
            s.put(start.to_le_bytes()).put((start + length - 1).to_le_bytes())
        }
    };
    s.finish()
}

/// The entry point of 2.1 form. Firmware fills in checksums and the address.
fn anchor(structures: &[Vec<u8>]) -> Vec<u8> {
    const LENGTH: u8 = 0x1f;
    const VERSION: [u8; 2] = [2, 8];
    let largest = structures.iter().map(Vec::len).max().unwrap_or(0) as u16;
    let total: usize = structures.iter().map(Vec::len).sum();
    let mut bytes = b"_SM_\0".to_vec();
    bytes.push(LENGTH);
    bytes.extend(VERSION);
    bytes.extend(largest.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(b"_DMI_\0");
    bytes.extend((total as u16).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend((structures.len() as u16).to_le_bytes());
    bytes.push(VERSION[0] << 4 | VERSION[1]);
    bytes
}
