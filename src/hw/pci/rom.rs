//! Option ROMs: a BAR with an image behind it.

use lockstep_memory::{RamBlock, Region};
use lockstep_util::{Result, bail, err};

use super::{BarKind, PciFunction};
use crate::core::{Board, PropertySet};

/// Gives a function its expansion ROM, as its properties `romfile`, `romsize` and `rombar` say. The block is named
/// `BUSPATH/block_name.rom`. Returns the block, `None` when the function has no ROM; writes the size back.
///
/// # Errors
/// When the file is not there, empty or too large.
pub fn add_option_rom(
    board: &Board,
    function: &PciFunction,
    properties: &mut PropertySet,
    block_name: &str,
) -> Result<Option<RamBlock>> {
    let Some(file) = properties.str("romfile").filter(|f| !f.is_empty()).map(str::to_owned) else {
        return Ok(None);
    };
    if properties.i64("rombar") == Some(0) {
        return Ok(None);
    }
    let image = board.firmware.read(&file).ok_or_else(|| err!("failed to find romfile \"{file}\""))??;
    if image.is_empty() {
        bail!("romfile \"{file}\" is empty");
    }
    let limit = match properties.u32("romsize") {
        u32::MAX => 2 << 30,
        size => u64::from(size),
    };
    if image.len() as u64 > limit {
        bail!("romfile \"{file}\" ({} bytes) is too large for ROM size {limit}", image.len());
    }
    let size = match properties.u32("romsize") {
        u32::MAX => (image.len() as u64).next_power_of_two().max(lockstep_memory::PAGE_SIZE),
        given if given.is_power_of_two() => u64::from(given),
        given => bail!("ROM size {given} is not a power of two"),
    };
    let block = board.ram.allocate(format!("{}/{block_name}.rom", function.bus_path()), size)?;
    block.write(0, &image).map_err(|_| err!("romfile \"{file}\" does not fit"))?;
    properties.set("romsize", size);
    function.add_bar(6, BarKind::Rom, &Region::rom(format!("{block_name}.rom"), block.clone()));
    Ok(Some(block))
}
