//! `file`: a regular file of the host as a protocol node.
//!
//! Reads that the page cache can serve are done at once on the graph's thread (`RWF_NOWAIT`), everything else goes to
//! the pool.

mod lock;
pub mod pool;
mod sys;

use crate::child::Perm;
use crate::driver::{
    BlockDriver, DriverDef, DriverKind, Extent, FormatInfo, Limits, LocalBoxFuture, Preallocation, Status, WriteFlags,
    errno,
};
use crate::node::Node;
use crate::open::{OpenContext, OpenFlags};
use lock::ImageLock;
use lockstep_util::{Error, Result, bail, err, fds};
use pool::Orphans;
use rustix::fs::OFlags;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Weak;
use std::sync::Arc;

/// The driver's row.
pub static FILE: DriverDef = DriverDef {
    name: "file",
    kind: DriverKind::Protocol,
    protocols: &["file"],
    needs_filename: true,
    supports_backing: false,
    probe: None,
    parse_filename: Some(|filename, options| {
        options.set("filename", filename.strip_prefix("file:").unwrap_or(filename));
        Ok(())
    }),
    strong_options: &["filename"],
    open: |cx| Box::pin(open(cx)),
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Locking {
    On,
    Off,
    Auto,
}

async fn open(cx: &mut OpenContext) -> Result<Box<dyn BlockDriver>> {
    let Some(filename) = cx.options.take_str("filename")? else {
        bail!("The 'file' block driver requires a file name");
    };
    let locking = cx
        .options
        .take_enum("locking", &[("on", Locking::On), ("off", Locking::Off), ("auto", Locking::Auto)])?
        .unwrap_or(Locking::Auto);
    let aio = cx.options.take_enum("aio", &[("threads", ()), ("native", ()), ("io_uring", ())])?;
    // Every engine is served by the pool; the choice has no effect that a user can see.
    let _ = aio;
    let direct = cx.flags().cache_direct;
    let flags = cx.flags();
    let (file, writable) = open_data(&filename, flags, false)?;
    let meta = file.metadata().map_err(|e| Error::with_errno(format!("Could not stat '{filename}'"), &e))?;
    if meta.is_dir() {
        bail!("'file' driver requires '{filename}' to be a regular file");
    }
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("'file' driver requires '{filename}' to be a regular file");
        }
    }
    let length = sys::length(&file).map_err(|e| Error::with_errno("Could not get image size", &e))?;
    let lock = match locking {
        Locking::Off => None,
        wanted => {
            let own = File::open(proc_path(&file)).or_else(|_| File::open(&filename));
            match own {
                Ok(own) => {
                    let lock = ImageLock::new(own, &filename);
                    match (lock.works(), wanted) {
                        (true, _) => Some(lock),
                        (false, Locking::On) => bail!("File lock requested but OFD locks are not supported"),
                        (false, _) => None,
                    }
                }
                Err(e) if wanted == Locking::On => {
                    return Err(Error::with_errno(format!("Could not open '{filename}'"), &e));
                }
                Err(_) => None,
            }
        }
    };
    let alignment = if direct { sys::direct_alignment(&file) } else { 1 };
    Ok(Box::new(FileDriver {
        node: cx.node.weak(),
        filename,
        file: RefCell::new(Arc::new(file)),
        writable: Cell::new(writable),
        pending: RefCell::default(),
        length: Cell::new(length),
        lock: RefCell::new(lock),
        orphans: Orphans::new(),
        alignment,
        caps: Caps::default(),
        data_hint: Cell::new(None),
        discards: Cell::default(),
    }))
}

/// Creates a file of the given length, or empties one that nobody uses.
pub(crate) async fn create(filename: &str, size: u64, prealloc: Preallocation) -> Result<()> {
    let could_not = format!("Could not create '{filename}'");
    let path = filename.to_owned();
    if prealloc == Preallocation::Metadata {
        bail!("Unsupported preallocation mode 'metadata'");
    }
    pool::run(&Orphans::new(), move || Ok(create_blocking(&path, size, prealloc)))
        .await
        .map_err(|e| Error::with_errno(&could_not, &e))?
}

fn create_blocking(path: &str, size: u64, prealloc: Preallocation) -> Result<()> {
    let failed = |e: io::Error| Error::with_errno(format!("Could not create '{path}'"), &e);
    // Not truncated here: somebody may be using it, which only the lock tells.
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    let mut lock = ImageLock::new(File::open(path).map_err(failed)?, path);
    if lock.works() {
        lock.acquire(Perm::WRITE | Perm::RESIZE, Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED)?;
    }
    let regular = file.metadata().map_err(failed)?.is_file();
    if regular {
        file.set_len(0).map_err(|e| Error::with_errno(format!("Could not clear '{path}'"), &e))?;
        sys::truncate(&file, 0, size, prealloc)?;
    } else if sys::length(&file).map_err(failed)? < size {
        bail!("Device '{path}' is smaller than the requested size");
    }
    Ok(())
}

fn proc_path(file: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Opens for what the flags and the users need; says whether the result is writable.
fn open_data(filename: &str, flags: OpenFlags, has_writers: bool) -> Result<(File, bool)> {
    let want_write = !flags.read_only && (has_writers || !flags.auto_read_only);
    let mut wanted = OFlags::NONBLOCK | if want_write { OFlags::RDWR } else { OFlags::RDONLY };
    if flags.cache_direct {
        wanted |= OFlags::DIRECT;
    }
    match fds::open(Path::new(filename), wanted, 0) {
        Ok(file) => Ok((file.into(), want_write)),
        Err(e) if fds::set_of_path(Path::new(filename)).is_some() && e.kind() == io::ErrorKind::NotFound => {
            Err(err!("Failed to find fdset {filename}"))
        }
        Err(e)
            if want_write
                && flags.auto_read_only
                && matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS)) =>
        {
            open_data(filename, OpenFlags { read_only: true, ..flags }, false)
        }
        Err(e) if flags.cache_direct && e.raw_os_error() == Some(libc::EINVAL) => {
            Err(err!("Could not open '{filename}': filesystem does not support O_DIRECT"))
        }
        Err(e) => Err(Error::with_errno(format!("Could not open '{filename}'"), &e)),
    }
}

/// What the file system turned out not to do.
#[derive(Default)]
struct Caps {
    no_nowait_read: Cell<bool>,
    no_nowait_write: Cell<bool>,
    no_punch: Cell<bool>,
    no_zero_range: Cell<bool>,
}

struct FileDriver {
    node: Weak<Node>,
    filename: String,
    file: RefCell<Arc<File>>,
    writable: Cell<bool>,
    /// A descriptor with other rights, opened by `check_perms`, not in use yet.
    pending: RefCell<Option<(File, bool)>>,
    length: Cell<u64>,
    lock: RefCell<Option<ImageLock>>,
    orphans: Arc<Orphans>,
    alignment: u32,
    caps: Caps,
    /// The last stretch known to be data: sequential status queries cost one `lseek` each otherwise.
    data_hint: Cell<Option<(u64, u64)>>,
    discards: Cell<Discards>,
}

/// Discards that were asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Discards {
    done: u64,
    failed: u64,
    bytes: u64,
}

impl FileDriver {
    fn file(&self) -> Arc<File> {
        self.file.borrow().clone()
    }

    fn flags(&self) -> OpenFlags {
        self.node.upgrade().map(|n| n.flags()).unwrap_or_default()
    }

    /// Later requests must not overtake those whose futures were dropped.
    async fn after_orphans(&self) {
        if self.orphans.any() {
            self.orphans.wait().await;
        }
    }

    fn forget_status(&self) {
        self.data_hint.set(None);
    }

    fn grown_to(&self, end: u64) {
        self.length.set(self.length.get().max(end));
    }
}

impl BlockDriver for FileDriver {
    fn format_name(&self) -> &'static str {
        "file"
    }

    fn length(&self) -> io::Result<u64> {
        // Disks are counted in sectors: the rest of the last one reads as zeroes.
        Ok(self.length.get().next_multiple_of(512))
    }

    fn format_info(&self) -> FormatInfo {
        FormatInfo { specific: Some(serde_json::json!({"type": "file", "data": {}})), ..FormatInfo::default() }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.after_orphans().await;
            let file = self.file();
            let mut done = 0;
            if self.alignment == 1 && !self.caps.no_nowait_read.get() {
                match sys::read_nowait(&file, offset, buf) {
                    Ok(n) if n == buf.len() => return Ok(()),
                    Ok(n) => done = n,
                    Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => self.caps.no_nowait_read.set(true),
                    Err(_) => {}
                }
            }
            let len = buf.len() - done;
            let at = offset + done as u64;
            let align = self.alignment as usize;
            let data = pool::run(&self.orphans, move || sys::read(&file, at, len, align)).await?;
            buf[done..].copy_from_slice(data.as_slice());
            Ok(())
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.after_orphans().await;
            self.forget_status();
            let file = self.file();
            let fua = flags.contains(WriteFlags::FUA);
            let end = offset + data.len() as u64;
            let mut done = 0;
            if self.alignment == 1 && !fua && !self.caps.no_nowait_write.get() {
                match sys::write_nowait(&file, offset, data) {
                    Ok(n) if n == data.len() => {
                        self.grown_to(end);
                        return Ok(());
                    }
                    Ok(n) => done = n,
                    Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => self.caps.no_nowait_write.set(true),
                    Err(_) => {}
                }
            }
            let owned = sys::AlignedBuf::from_slice(&data[done..], self.alignment as usize);
            let at = offset + done as u64;
            pool::run(&self.orphans, move || sys::write(&file, at, owned.as_slice(), fua)).await?;
            self.grown_to(end);
            Ok(())
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: WriteFlags) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            self.after_orphans().await;
            self.forget_status();
            let file = self.file();
            let unmap = flags.contains(WriteFlags::MAY_UNMAP);
            let length = self.length.get();
            let end = offset + len;
            let (no_punch, no_zero) = (self.caps.no_punch.get(), self.caps.no_zero_range.get());
            let way = pool::run(&self.orphans, move || sys::zero(&file, offset, len, length, unmap, no_punch, no_zero))
                .await?;
            self.caps.no_punch.set(way.no_punch);
            self.caps.no_zero_range.set(way.no_zero_range);
            if !way.done {
                return Err(errno(libc::ENOTSUP));
            }
            self.grown_to(end);
            Ok(())
        })
    }

    fn discard<'a>(&'a self, offset: u64, len: u64) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            if self.caps.no_punch.get() {
                return Err(errno(libc::ENOTSUP));
            }
            self.after_orphans().await;
            self.forget_status();
            let file = self.file();
            let result = pool::run(&self.orphans, move || sys::punch(&file, offset, len)).await;
            if let Err(e) = &result
                && e.raw_os_error() == Some(libc::EOPNOTSUPP)
            {
                self.caps.no_punch.set(true);
            }
            let mut discards = self.discards.get();
            match &result {
                Ok(()) => {
                    discards.done += 1;
                    discards.bytes += len;
                }
                Err(_) => discards.failed += 1,
            }
            self.discards.set(discards);
            result
        })
    }

    fn specific_stats(&self) -> Option<serde_json::Value> {
        let Discards { done, failed, bytes } = self.discards.get();
        Some(serde_json::json!({
            "driver": "file", "discard-nb-ok": done, "discard-nb-failed": failed, "discard-bytes-ok": bytes,
        }))
    }

    fn flush(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            self.after_orphans().await;
            let file = self.file();
            pool::run(&self.orphans, move || file.sync_data()).await
        })
    }

    fn supports_fua(&self) -> bool {
        true
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64, want_zero: bool) -> LocalBoxFuture<'a, io::Result<Extent>> {
        Box::pin(async move {
            let map = self.node.upgrade().map(|n| (n, offset));
            let data = Status::DATA | Status::ALLOCATED;
            if !want_zero {
                return Ok(Extent { status: data, len, map });
            }
            if let Some((start, end)) = self.data_hint.get()
                && (start..end).contains(&offset)
            {
                return Ok(Extent { status: data, len: len.min(end - offset), map });
            }
            self.after_orphans().await;
            let stretch = sys::stretch(&self.file(), offset, self.length.get());
            Ok(match stretch {
                sys::Stretch::Data(end) => {
                    self.data_hint.set(Some((offset, end)));
                    Extent { status: data, len: len.min(end - offset), map }
                }
                sys::Stretch::Hole(end) => {
                    Extent { status: Status::ZERO | Status::ALLOCATED, len: len.min(end - offset), map }
                }
            })
        })
    }

    fn truncate<'a>(&'a self, len: u64, _exact: bool, prealloc: Preallocation) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.after_orphans().await;
            self.forget_status();
            let file = self.file();
            let old = self.length.get();
            if prealloc == Preallocation::Metadata {
                bail!("Unsupported preallocation mode 'metadata'");
            }
            if len < old && prealloc != Preallocation::Off {
                bail!("Preallocation can't be used for shrinking files");
            }
            pool::run(&self.orphans, move || Ok(sys::truncate(&file, old, len, prealloc))).await??;
            self.length.set(len);
            Ok(())
        })
    }

    fn activate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            // The other side may have changed the length.
            let length = sys::length(&self.file()).map_err(|e| Error::with_errno("Could not get image size", &e))?;
            self.length.set(length);
            self.forget_status();
            Ok(())
        })
    }

    fn reopen(&self, flags: OpenFlags) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (file, writable) = open_data(&self.filename, flags, self.writable.get())?;
            *self.file.borrow_mut() = Arc::new(file);
            self.writable.set(writable);
            Ok(())
        })
    }

    fn has_detached_requests(&self) -> bool {
        self.orphans.any()
    }

    fn check_perms(&self, perm: Perm, shared: Perm) -> Result<()> {
        let flags = self.flags();
        let writers = perm.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED | Perm::RESIZE);
        if writers && !self.writable.get() && !flags.read_only {
            *self.pending.borrow_mut() = Some(open_data(&self.filename, flags, true)?);
        }
        if let Some(lock) = &mut *self.lock.borrow_mut()
            && !flags.inactive
        {
            let shared = if flags.force_share { Perm::all() } else { shared };
            lock.acquire(perm, shared).inspect_err(|_| {
                self.pending.borrow_mut().take();
            })?;
        }
        Ok(())
    }

    fn set_perms(&self, perm: Perm, shared: Perm) {
        let flags = self.flags();
        if let Some((file, writable)) = self.pending.borrow_mut().take() {
            *self.file.borrow_mut() = Arc::new(file);
            self.writable.set(writable);
        }
        if let Some(lock) = &mut *self.lock.borrow_mut() {
            if flags.inactive {
                lock.reduce(Perm::empty(), Perm::all());
            } else {
                lock.reduce(perm, if flags.force_share { Perm::all() } else { shared });
            }
        }
    }

    fn abort_perms(&self) {
        self.pending.borrow_mut().take();
        let (perm, shared) = match self.node.upgrade() {
            Some(node) => crate::perm::cumulative(&node),
            None => (Perm::empty(), Perm::all()),
        };
        self.set_perms(perm, shared);
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: self.alignment, ..Limits::default() }
    }

    fn allocated_size(&self) -> LocalBoxFuture<'_, Option<u64>> {
        Box::pin(async {
            use std::os::unix::fs::MetadataExt;
            self.file().metadata().ok().map(|m| m.blocks() * 512)
        })
    }

    fn plain_filename(&self, _node: &Node) -> Option<String> {
        Some(self.filename.clone())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
