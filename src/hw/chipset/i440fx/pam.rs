//! What the segments between C0000 and FFFFF show: RAM or what is on the PCI bus (the ROMs).

use lockstep_memory::Region;

/// Where reads go to RAM.
const READ: u8 = 1;
/// Where writes go to RAM.
const WRITE: u8 = 2;

struct Segment {
    /// Which attribute register, and which half of it.
    register: usize,
    shift: u32,
    pci: Region,
    rom: Region,
}

/// All 13 segments.
pub(super) struct Segments {
    segments: Vec<Segment>,
}

impl Segments {
    /// Segments shown in `memory`, above the RAM that is there.
    pub(super) fn new(memory: &Region, ram: &Region, pci: &Region) -> Self {
        // PAM0's upper half is the 64 KiB BIOS segment; the others have two segments of 16 KiB each (table 3-5).
        let layout = std::iter::once((0, 4, 0xf_0000, 0x1_0000))
            .chain((0..12).map(|n| (1 + n / 2, if n % 2 == 0 { 0 } else { 4 }, 0xc_0000 + n as u64 * 0x4000, 0x4000)));
        let segments = layout
            .map(|(register, shift, start, size)| {
                let segment = Segment {
                    register,
                    shift,
                    pci: Region::alias("pam-pci", pci, start, size),
                    rom: Region::alias("pam-rom", ram, start, size),
                };
                segment.rom.set_readonly(true);
                segment.rom.set_enabled(false);
                memory.add_overlap(start, &segment.pci, 1);
                memory.add_overlap(start, &segment.rom, 1);
                segment
            })
            .collect();
        Self { segments }
    }

    pub(super) fn apply(&self, attributes: &[u8]) {
        for s in &self.segments {
            let mode = attributes[s.register] >> s.shift & (READ | WRITE);
            // Writes to RAM under reads from PCI are dropped: no BIOS for this bridge copies that way.
            s.pci.set_enabled(mode & READ == 0);
            s.rom.set_enabled(mode == READ);
        }
    }
}
