//! `null-co` and `null-aio`: a device that stores nothing.

use crate::driver::{BlockDriver, DriverDef, DriverKind, Extent, LocalBoxFuture, Preallocation, Status, WriteFlags};
use crate::node::Node;
use crate::open::OpenContext;
use lockstep_util::{Result, bail};
use std::any::Any;
use std::cell::Cell;
use std::io;

const DEFAULT_SIZE: u64 = 1 << 30;

/// The driver that completes at once.
pub static NULL_CO: DriverDef = definition("null-co", &["null-co"]);
/// The same under the name that completes later in QEMU.
pub static NULL_AIO: DriverDef = definition("null-aio", &["null-aio"]);

const fn definition(name: &'static str, protocols: &'static [&'static str]) -> DriverDef {
    DriverDef {
        name,
        kind: DriverKind::Protocol,
        protocols,
        needs_filename: false,
        supports_backing: false,
        probe: None,
        parse_filename: Some(|filename, _options| match filename.split_once("://") {
            Some((_, "")) => Ok(()),
            _ => {
                bail!("The only allowed filename for this driver is '{}://'", filename.split(':').next().unwrap_or(""))
            }
        }),
        strong_options: &["size"],
        open: |cx| Box::pin(open(cx)),
    }
}

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let size = cx.options.take_size("size")?.unwrap_or(DEFAULT_SIZE);
    let read_zeroes = cx.options.take_bool("read-zeroes")?.unwrap_or(false);
    let latency = cx.options.take_u64("latency-ns")?.unwrap_or(0);
    if i64::try_from(latency).is_err() {
        bail!("latency-ns is invalid");
    }
    Ok(Box::new(Null {
        name: cx.node.def().name,
        size: Cell::new(size),
        read_zeroes,
        latency: std::time::Duration::from_nanos(latency),
    }))
}

struct Null {
    name: &'static str,
    size: Cell<u64>,
    read_zeroes: bool,
    latency: std::time::Duration,
}

impl Null {
    fn wait(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            if !self.latency.is_zero() {
                tokio::time::sleep(self.latency).await;
            }
            Ok(())
        })
    }
}

impl BlockDriver for Null {
    fn format_name(&self) -> &'static str {
        self.name
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.size.get())
    }

    fn read<'a>(&'a self, _offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        // Without read-zeroes the contents are undefined; zeroes leak nothing.
        buf.fill(0);
        self.wait()
    }

    fn write<'a>(&'a self, _offset: u64, _data: &'a [u8], _flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        self.wait()
    }

    fn write_zeroes<'a>(&'a self, _offset: u64, _len: u64, _flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        self.wait()
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        self.wait()
    }

    fn block_status<'a>(&'a self, _o: u64, len: u64, _want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        let zero = if self.read_zeroes { Status::ZERO } else { Status::empty() };
        Box::pin(async move { Ok(Extent::new(Status::ALLOCATED | zero, len)) })
    }

    fn truncate<'a>(&'a self, len: u64, _exact: bool, prealloc: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if prealloc != Preallocation::Off {
                bail!("Unsupported preallocation mode");
            }
            self.size.set(len);
            Ok(())
        })
    }

    fn allocated_size(&self) -> LocalBoxFuture<'_, Option<u64>> {
        Box::pin(async { Some(0) })
    }

    fn plain_filename(&self, node: &Node) -> Option<String> {
        node.given_options.borrow().is_empty().then(|| format!("{}://", self.name))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
