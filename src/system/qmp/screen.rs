//! Pictures of the screen.

use std::{fs::File, io::BufWriter};

use lockstep_hw::{core::Category, display::Image};
use lockstep_qapi::{Registry, cmd, schema::*};
use lockstep_util::{Error, Result, bail, err};

use super::Ctx;
use crate::vm::Vm;

pub(super) fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::Screendump>(async |vm: Ctx, a: cmd::Screendump| {
        dump(&vm, &a.filename, a.device.as_deref(), a.head, a.format == Some(ImageFormat::Png))
    });
}

/// Writes what a display shows to a file.
///
/// # Errors
/// When there is no such display, or the file cannot be written.
pub fn dump(vm: &Vm, filename: &str, device: Option<&str>, head: Option<i64>, png: bool) -> Result<()> {
    let image = screen(vm, device, head)?;
    let cannot = |e: std::io::Error| Error::with_errno(format_args!("Could not create '{filename}'"), &e);
    let mut file = BufWriter::new(File::create(filename).map_err(cannot)?);
    let written = if png { image.write_png(&mut file) } else { image.write_ppm(&mut file) };
    written
        .and_then(|()| std::io::Write::flush(&mut file))
        .map_err(|e| Error::with_errno(format_args!("Failed to write image to '{filename}'"), &e))
}

fn screen(vm: &Vm, device: Option<&str>, head: Option<i64>) -> Result<Image> {
    let node = match device {
        Some(id) => {
            let node = vm.board.tree.find(id).ok_or_else(|| Error::device_not_found(id))?;
            if node.kind.category != Category::Display || head.unwrap_or(0) != 0 {
                bail!("Device {id} (head {}) is not bound to a QemuConsole", head.unwrap_or(0));
            }
            Some(node)
        }
        None if head.is_some() => bail!("'head' must be specified together with 'device'"),
        None => vm.board.tree.devices().into_iter().find(|n| n.kind.category == Category::Display),
    };
    let image = node.and_then(|n| n.device.screen());
    image.ok_or_else(|| err!("There is no console to take a screendump from"))
}
