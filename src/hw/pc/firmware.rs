//! The BIOS image and what it sees of the ROM area.

use lockstep_memory::{RamBlock, Region};
use lockstep_util::{Result, err};

use crate::core::Board;

/// Option ROMs that firmware copies go here.
const OPTION_ROM_AREA: u64 = 0xc_0000;
const OPTION_ROM_SIZE: u64 = 0x2_0000;
/// At most this much of the BIOS is shown below 1 MiB.
const ISA_BIOS_MAX: u64 = 0x2_0000;

/// Loads the BIOS below 4 GiB and below 1 MiB of `pci`, and makes the area for option ROMs.
///
/// # Errors
/// When the image is not there or has an impossible size.
pub(super) fn load(board: &Board, pci: &Region, name: &str) -> Result<RamBlock> {
    // QEMU's code for PCs prints by itself, with this name.
    let failed = || err!("could not load PC BIOS '{name}'").said_by("qemu");
    let image = board.firmware.read(name).ok_or_else(failed)?.map_err(|_| failed())?;
    let size = image.len() as u64;
    if size == 0 || !size.is_multiple_of(0x1_0000) {
        return Err(failed());
    }
    let bios = board.ram.allocate("pc.bios", size)?;
    bios.write(0, &image).map_err(|_| failed())?;
    let region = Region::rom("pc.bios", bios.clone());
    let shown = size.min(ISA_BIOS_MAX);
    let low = Region::alias("isa-bios", &region, size - shown, shown);
    low.set_readonly(true);
    pci.add_overlap(0x10_0000 - shown, &low, 1);
    pci.add((1 << 32) - size, &region);
    let option_roms = board.ram.allocate("pc.rom", OPTION_ROM_SIZE)?;
    pci.add_overlap(OPTION_ROM_AREA, &Region::rom("pc.rom", option_roms), 1);
    Ok(bios)
}
