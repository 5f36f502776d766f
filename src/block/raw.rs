//! `raw`: the file's bytes as they are, or a window of them (`offset`, `size`).

use crate::child::{Child, ChildRole, Perm};
use crate::driver::{
    BlockDriver, DriverDef, DriverKind, Extent, LocalBoxFuture, Preallocation, Status, WriteFlags, errno,
};
use crate::node::Node;
use crate::open::OpenContext;
use lockstep_util::{Result, bail};
use std::any::Any;
use std::cell::Cell;
use std::io;
use std::rc::Rc;

/// Bytes at the start that are protected when the format was guessed.
const SECTOR: u64 = 512;

/// The driver's row.
pub static RAW: DriverDef = DriverDef {
    name: "raw",
    kind: DriverKind::Format,
    protocols: &[],
    needs_filename: false,
    supports_backing: false,
    // The smallest score: any other format that knows the image goes first.
    probe: Some(|_, _| 1),
    parse_filename: None,
    strong_options: &["offset", "size"],
    open: |cx| Box::pin(open(cx)),
};

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let offset = cx.options.take_size("offset")?.unwrap_or(0);
    let size = cx.options.take_size("size")?;
    let windowed = offset != 0 || size.is_some();
    // Without a window the node passes everything on: it shows its file as a filter does.
    let role = if windowed { ChildRole::DATA | ChildRole::PRIMARY } else { ChildRole::FILTER };
    let file = cx.open_file_child(role).await?;
    let below = file.node().len()?;
    if offset > below {
        bail!("Offset ({offset}) cannot be greater than size of the containing file ({below})");
    }
    if let Some(size) = size {
        if size > below - offset {
            bail!(
                "The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of the containing file ({below})"
            );
        }
    } else if windowed {
        // A window to the end follows the file.
    }
    let flags = cx.flags();
    if flags.probed && !flags.read_only {
        let name = file.node().plain_filename().unwrap_or_else(|| file.node().name().to_owned());
        crate::warn_user(&format!(
            "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
             restricted.\n         Specify the 'raw' format explicitly to remove the restrictions."
        ));
    }
    Ok(Box::new(Raw { file, offset, size: Cell::new(size), guessed: flags.probed }))
}

struct Raw {
    file: Rc<Child>,
    offset: u64,
    size: Cell<Option<u64>>,
    guessed: bool,
}

impl Raw {
    fn translate(&self, offset: u64, len: u64, growing: bool) -> io::Result<u64> {
        if let Some(size) = self.size.get()
            && (offset > size || len > size - offset)
        {
            return Err(errno(if growing { libc::ENOSPC } else { libc::EINVAL }));
        }
        offset.checked_add(self.offset).filter(|o| *o <= i64::MAX as u64).ok_or_else(|| errno(libc::EINVAL))
    }

    /// A guest must not turn a raw image into one that is probed as another format next time.
    async fn check_first_sector(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.guessed || offset >= SECTOR {
            return Ok(());
        }
        let mut head = vec![0; SECTOR as usize];
        self.file.node().read(self.offset, &mut head).await?;
        let n = data.len().min((SECTOR - offset) as usize);
        head[offset as usize..offset as usize + n].copy_from_slice(&data[..n]);
        let is_other =
            crate::drivers::TABLE.iter().any(|d| d.name != "raw" && d.probe.is_some_and(|p| p(&head, "") > 1));
        if is_other { Err(errno(libc::EPERM)) } else { Ok(()) }
    }
}

impl BlockDriver for Raw {
    fn format_name(&self) -> &'static str {
        "raw"
    }

    fn length(&self) -> io::Result<u64> {
        match self.size.get() {
            Some(size) => Ok(size),
            None => Ok(self.file.node().len()?.saturating_sub(self.offset)),
        }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let at = self.translate(offset, buf.len() as u64, false)?;
            self.file.node().read(at, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let at = self.translate(offset, data.len() as u64, true)?;
            self.check_first_sector(offset, data).await?;
            self.file.node().write(at, data, flags).await
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let at = self.translate(offset, len, true)?;
            self.file.node().write_zeroes(at, len, flags).await
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let at = self.translate(offset, len, true)?;
            self.file.node().discard(at, len).await
        })
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { self.file.node().flush().await })
    }

    fn write_back(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async { self.file.node().flush().await })
    }

    fn supports_fua(&self) -> bool {
        true
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move {
            let status = Status::DATA | Status::ALLOCATED | Status::RECURSE;
            Ok(Extent { status, len, map: Some((self.file.node(), offset + self.offset)) })
        })
    }

    fn truncate<'a>(&'a self, len: u64, exact: bool, prealloc: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.size.get().is_some() {
                bail!("Cannot resize fixed-size raw disks");
            }
            if len > i64::MAX as u64 - self.offset {
                bail!("Disk size too large for the chosen offset");
            }
            self.file.node().truncate(len + self.offset, exact, prealloc).await
        })
    }

    fn child_perms(&self, node: &Node, role: ChildRole, perm: Perm, shared: Perm) -> (Perm, Perm) {
        crate::perm::default_child_perms(node, role, perm, shared)
    }

    fn limits(&self) -> crate::driver::Limits {
        let below = self.file.node().try_driver().map(|d| d.limits()).unwrap_or_default();
        if self.offset.is_multiple_of(u64::from(below.request_alignment)) {
            below
        } else {
            crate::driver::Limits::default()
        }
    }

    fn plain_filename(&self, _node: &Node) -> Option<String> {
        if self.offset != 0 || self.size.get().is_some() {
            return None;
        }
        self.file.node().plain_filename()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
