//! Requests to a node: range and alignment checks, order between overlapping requests, hooks, emulation of what the
//! driver cannot do itself.

use crate::driver::{BlockDriver, Extent, Preallocation, Status, WriteFlags, errno};
use crate::node::Node;
use crate::requests::{RequestGuard, RequestKind};
use lockstep_util::{Error, Result, bail};
use std::io;
use std::rc::Rc;

/// Longest request accepted at all, in bytes (requests beyond 2 GiB - 1 sector are refused as QEMU does).
pub const MAX_REQUEST: u64 = (1 << 31) - 512;

/// Chunk for zeroes that have to be written out.
const ZERO_CHUNK: u64 = 1 << 20;

impl Node {
    fn check_request(&self, offset: u64, len: u64) -> io::Result<()> {
        if len > MAX_REQUEST || offset > i64::MAX as u64 - len {
            return Err(errno(libc::EIO));
        }
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable() { Ok(()) } else { Err(errno(libc::EPERM)) }
    }

    /// Keeps a range's contents until the guard is dropped: writes wait, reads (also those under the guard) go on.
    pub async fn fence(&self, offset: u64, len: u64) -> RequestGuard {
        self.requests.begin(RequestKind::Fence, offset, len).await
    }

    /// Waits until a range is free of requests and keeps it so. Requests of the holder itself on the same range must go
    /// through [`Node::read_locked`] and [`Node::write_locked`].
    pub async fn lock_range(&self, offset: u64, len: u64) -> RequestGuard {
        self.requests.begin(RequestKind::Exclusive, offset, len).await
    }

    /// Reads; what lies beyond the end reads as zeroes.
    pub async fn read(self: &Rc<Self>, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_request(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let _work = self.start_work();
        let _request = self.requests.begin(RequestKind::Read, offset, buf.len() as u64).await;
        self.read_aligned(offset, buf).await
    }

    /// Reads within a range that the caller holds by [`Node::lock_range`].
    pub async fn read_locked(self: &Rc<Self>, _guard: &RequestGuard, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_request(offset, buf.len() as u64)?;
        let _work = self.start_work();
        self.read_aligned(offset, buf).await
    }

    async fn read_aligned(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let driver = self.driver()?;
        let length = driver.length()?;
        let align = u64::from(driver.limits().request_alignment);
        let inside = length.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (head, tail) = buf.split_at_mut(inside);
        tail.fill(0);
        if inside == 0 {
            return Ok(());
        }
        if align == 1 || (offset.is_multiple_of(align) && (inside as u64).is_multiple_of(align)) {
            return self.read_split(driver, offset, head).await;
        }
        let start = offset - offset % align;
        let end = (offset + inside as u64).next_multiple_of(align);
        let mut bounce = vec![0; (end - start) as usize];
        self.read_split(driver, start, &mut bounce).await?;
        let skip = (offset - start) as usize;
        head.copy_from_slice(&bounce[skip..skip + inside]);
        Ok(())
    }

    async fn read_split(&self, driver: &dyn BlockDriver, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let max = driver.limits().max_transfer as usize;
        if buf.len() <= max {
            return driver.read(offset, buf).await;
        }
        for (i, part) in buf.chunks_mut(max).enumerate() {
            driver.read(offset + (i * max) as u64, part).await?;
        }
        Ok(())
    }

    /// Writes.
    pub async fn write(self: &Rc<Self>, offset: u64, data: &[u8], flags: WriteFlags) -> io::Result<()> {
        self.check_request(offset, data.len() as u64)?;
        self.check_writable()?;
        if data.is_empty() {
            return Ok(());
        }
        let zeroes = match self.flags().detect_zeroes {
            DetectZeroes::Off => None,
            DetectZeroes::On => Some(WriteFlags::empty()),
            DetectZeroes::Unmap => Some(WriteFlags::MAY_UNMAP),
        };
        if let Some(extra) = zeroes
            && !flags.contains(WriteFlags::COMPRESSED)
            && is_zero(data)
        {
            return self.write_zeroes(offset, data.len() as u64, flags | extra).await;
        }
        let _work = self.start_work();
        let request = self.begin_write(offset, data.len() as u64).await?;
        let done = self.write_aligned(offset, data, flags).await;
        let done = self.finish_write(offset, data.len() as u64, flags, done).await;
        drop(request);
        self.settle_hooks(offset, data.len() as u64).await;
        done
    }

    /// Writes within a range that the caller holds by [`Node::lock_range`]. Hooks are run as for every write.
    pub async fn write_locked(
        self: &Rc<Self>,
        _guard: &RequestGuard,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.check_request(offset, data.len() as u64)?;
        self.check_writable()?;
        let _work = self.start_work();
        self.run_before_hooks(offset, data.len() as u64).await?;
        let driver = self.driver()?;
        let done = self.write_split(driver, offset, data, flags).await;
        self.finish_write(offset, data.len() as u64, flags, done).await
    }

    /// Waits for whom it has to and runs the hooks. An unaligned range is widened and held alone.
    async fn begin_write(&self, offset: u64, len: u64) -> io::Result<RequestGuard> {
        let align = u64::from(self.driver()?.limits().request_alignment);
        let request = if align > 1 && (!offset.is_multiple_of(align) || !len.is_multiple_of(align)) {
            let start = offset - offset % align;
            let end = (offset + len).next_multiple_of(align);
            self.requests.begin(RequestKind::Exclusive, start, end - start).await
        } else {
            self.requests.begin(RequestKind::Write, offset, len).await
        };
        self.run_before_hooks(offset, len).await?;
        Ok(request)
    }

    async fn run_before_hooks(&self, offset: u64, len: u64) -> io::Result<()> {
        for hook in self.write_hooks() {
            if let Some(work) = hook.before_write(offset, len) {
                work.await?;
            }
        }
        // The wait may have been long: the image may have been given away or closed.
        self.check_writable()
    }

    async fn settle_hooks(&self, offset: u64, len: u64) {
        for hook in self.write_hooks() {
            if let Some(work) = hook.settle_write(offset, len) {
                work.await;
            }
        }
    }

    async fn finish_write(
        self: &Rc<Self>,
        offset: u64,
        len: u64,
        flags: WriteFlags,
        done: io::Result<()>,
    ) -> io::Result<()> {
        self.write_gen.set(self.write_gen.get() + 1);
        for hook in self.write_hooks() {
            hook.after_write(offset, len, done.is_ok());
        }
        done?;
        self.highest_write.set(self.highest_write.get().max(offset + len));
        if flags.contains(WriteFlags::FUA) && !self.driver()?.supports_fua() {
            self.flush().await?;
        }
        Ok(())
    }

    async fn write_aligned(&self, offset: u64, data: &[u8], flags: WriteFlags) -> io::Result<()> {
        let driver = self.driver()?;
        let align = u64::from(driver.limits().request_alignment);
        let len = data.len() as u64;
        if align == 1 || (offset.is_multiple_of(align) && len.is_multiple_of(align)) {
            return self.write_split(driver, offset, data, flags).await;
        }
        // Read-modify-write of the edges; the range is held exclusively.
        let start = offset - offset % align;
        let end = (offset + len).next_multiple_of(align);
        let mut bounce = vec![0; (end - start) as usize];
        let block = align as usize;
        let total = bounce.len();
        if start != offset {
            self.read_aligned(start, &mut bounce[..block]).await?;
        }
        if end != offset + len && (total > block || start == offset) {
            self.read_aligned(end - align, &mut bounce[total - block..]).await?;
        }
        let skip = (offset - start) as usize;
        bounce[skip..skip + data.len()].copy_from_slice(data);
        self.write_split(driver, start, &bounce, flags).await
    }

    async fn write_split(
        &self,
        driver: &dyn BlockDriver,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> io::Result<()> {
        let max = driver.limits().max_transfer as usize;
        if data.len() <= max {
            return driver.write(offset, data, flags).await;
        }
        for (i, part) in data.chunks(max).enumerate() {
            driver.write(offset + (i * max) as u64, part, flags).await?;
        }
        Ok(())
    }

    /// Writes zeroes, by the driver's own means if it has any.
    pub async fn write_zeroes(self: &Rc<Self>, offset: u64, len: u64, flags: WriteFlags) -> io::Result<()> {
        if offset > i64::MAX as u64 || len > i64::MAX as u64 - offset {
            return Err(errno(libc::EIO));
        }
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        // Zeroing by unmapping needs the user's leave (`discard=unmap`).
        let flags = if self.flags().unmap { flags } else { flags - WriteFlags::MAY_UNMAP };
        let _work = self.start_work();
        let request = self.begin_write(offset, len).await?;
        let done = self.zero_range(offset, len, flags).await;
        let done = self.finish_write(offset, len, flags, done).await;
        drop(request);
        self.settle_hooks(offset, len).await;
        done
    }

    async fn zero_range(&self, offset: u64, len: u64, flags: WriteFlags) -> io::Result<()> {
        let driver = self.driver()?;
        let limits = driver.limits();
        let align = u64::from(limits.request_alignment);
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let mut n = (end - at).min(limits.max_zeroes);
            let aligned = align == 1 || (at.is_multiple_of(align) && n >= align);
            let mut result = Err(errno(libc::ENOTSUP));
            if aligned {
                n -= n % align;
                result = driver.write_zeroes(at, n, flags).await;
            } else {
                n = n.min(at.next_multiple_of(align).max(at + 1) - at);
            }
            match result {
                Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => {
                    if flags.contains(WriteFlags::NO_FALLBACK) {
                        return Err(e);
                    }
                    let zeroes = vec![0; n.min(ZERO_CHUNK) as usize];
                    let stop = at + n;
                    while at < stop {
                        let part = (stop - at).min(zeroes.len() as u64) as usize;
                        self.write_aligned(at, &zeroes[..part], flags - WriteFlags::MAY_UNMAP).await?;
                        at += part as u64;
                    }
                }
                Err(e) => return Err(e),
                Ok(()) => at += n,
            }
        }
        Ok(())
    }

    /// Tells that a range's contents are not needed. Without `discard=unmap` nothing happens.
    pub async fn discard(self: &Rc<Self>, offset: u64, len: u64) -> io::Result<()> {
        if offset > i64::MAX as u64 || len > i64::MAX as u64 - offset {
            return Err(errno(libc::EIO));
        }
        self.check_writable()?;
        if len == 0 || !self.flags().unmap {
            return Ok(());
        }
        let _work = self.start_work();
        let request = self.requests.begin(RequestKind::Write, offset, len).await;
        self.run_before_hooks(offset, len).await?;
        let done = self.discard_range(offset, len).await;
        let done = self.finish_write(offset, len, WriteFlags::empty(), done).await;
        drop(request);
        self.settle_hooks(offset, len).await;
        done
    }

    async fn discard_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let driver = self.driver()?;
        let limits = driver.limits();
        let align = u64::from(limits.request_alignment);
        let mut at = offset.next_multiple_of(align);
        let end = offset + len - (offset + len) % align;
        while at < end {
            let n = (end - at).min(limits.max_zeroes);
            match driver.discard(at, n).await {
                Err(e) if e.raw_os_error() != Some(libc::ENOTSUP) => return Err(e),
                _ => at += n,
            }
        }
        Ok(())
    }

    /// Makes everything written before stable. Costs nothing when nothing was written since the last flush.
    pub async fn flush(self: &Rc<Self>) -> io::Result<()> {
        if self.flags().inactive || self.is_read_only() {
            return Ok(());
        }
        let _work = self.start_work();
        let driver = self.driver()?;
        let generation = self.write_gen.get();
        let _one_at_a_time = self.flushing.lock().await;
        if self.flags().no_flush {
            return driver.write_back().await;
        }
        // A composite's children can have been written by others; it asks them all.
        if self.flushed_gen.get() >= generation && self.child_edges().is_empty() {
            return Ok(());
        }
        let generation = self.write_gen.get();
        driver.flush().await?;
        self.flushed_gen.set(generation);
        Ok(())
    }

    /// Status of the start of a range in this very node. Beyond the end: zeroes up to what was asked.
    pub async fn block_status(self: &Rc<Self>, offset: u64, len: u64, want_zero: bool) -> io::Result<Extent> {
        let length = self.len()?;
        if offset >= length || len == 0 {
            return Ok(Extent::new(Status::ZERO | Status::ALLOCATED | Status::EOF, len));
        }
        let _work = self.start_work();
        let len = len.min(length - offset);
        let driver = self.driver()?;
        let align = u64::from(driver.limits().request_alignment);
        let start = offset - offset % align;
        let asked = (offset + len).next_multiple_of(align) - start;
        let mut extent = driver.block_status(start, asked, want_zero).await?;
        let skip = offset - start;
        extent.len = extent.len.saturating_sub(skip).clamp(1, len);
        if let Some((_, at)) = &mut extent.map {
            *at += skip;
        }
        if extent.status.contains(Status::RECURSE)
            && let Some((node, at)) = extent.map.clone()
        {
            extent.status -= Status::RECURSE;
            if want_zero && extent.status.contains(Status::DATA) && !extent.status.contains(Status::ZERO) {
                let below = Box::pin(node.block_status(at, extent.len, want_zero)).await?;
                if below.status.contains(Status::EOF) && below.status.contains(Status::ZERO) {
                    // Beyond the end of the file below: zeroes whatever the length there.
                    extent.status |= Status::ZERO;
                    extent.len = extent.len.min(below.len.max(1));
                } else {
                    extent.len = extent.len.min(below.len);
                    extent.status |= below.status & Status::ZERO;
                }
            }
        }
        if want_zero
            && self.def().supports_backing
            && !extent.status.intersects(Status::ALLOCATED | Status::DATA | Status::ZERO)
        {
            // Nothing below: zeroes.
            let below = match self.cow_child() {
                Some(child) => child.node().len()?,
                None => 0,
            };
            if offset >= below {
                extent.status |= Status::ZERO;
            }
        }
        if offset + extent.len == length {
            extent.status |= Status::EOF;
        }
        Ok(extent)
    }

    /// Status of the start of a range as a reader sees it: down the backing chain until a layer knows, at most to (and
    /// not including) `base`.
    pub async fn block_status_above(
        self: &Rc<Self>,
        base: Option<&Rc<Node>>,
        offset: u64,
        len: u64,
    ) -> io::Result<(Extent, usize)> {
        let mut node = self.clone();
        let mut len = len;
        let mut depth = 0;
        let mut eof_len: Option<u64> = None;
        loop {
            let mut extent = node.block_status(offset, len, true).await?;
            if node.filtered_child().is_none() {
                if extent.status.contains(Status::ALLOCATED) {
                    if depth > 0 && extent.status.contains(Status::EOF) && extent.status.contains(Status::ZERO) {
                        // A short backing file reads as zeroes beyond its end.
                        let length = node.len()?;
                        if offset >= length {
                            extent.len = len;
                        }
                    }
                    if let Some(end) = eof_len {
                        if offset + extent.len < end {
                            extent.status -= Status::EOF;
                        } else {
                            extent.status |= Status::EOF;
                        }
                    }
                    return Ok((extent, depth));
                }
                if eof_len.is_none() {
                    eof_len = Some(node.len()?);
                }
            } else {
                extent.status -= Status::ALLOCATED;
            }
            len = extent.len;
            let next = match node.backing() {
                Some(next) if base.is_none_or(|b| !Rc::ptr_eq(b, &next)) => next,
                next => {
                    if next.is_none() && base.is_none() && node.cow_child().is_none() {
                        extent.status |= Status::ZERO;
                    }
                    if let Some(end) = eof_len
                        && offset + extent.len < end
                    {
                        extent.status -= Status::EOF;
                    }
                    return Ok((extent, depth));
                }
            };
            if node.filtered_child().is_none() {
                depth += 1;
            }
            node = next;
        }
    }

    /// Whether the start of the range is allocated in this node or above `base` (`include_base`: or in it), and how far.
    pub async fn is_allocated_above(
        self: &Rc<Self>,
        base: Option<&Rc<Node>>,
        include_base: bool,
        offset: u64,
        len: u64,
    ) -> io::Result<(bool, u64)> {
        let stop = if include_base { base.and_then(|b| b.backing()) } else { base.cloned() };
        if let Some(stop) = &stop
            && Rc::ptr_eq(self, stop)
        {
            return Ok((false, len));
        }
        let mut node = self.clone();
        let mut n = len;
        loop {
            if node.filtered_child().is_none() {
                let length = node.len()?;
                if offset < length {
                    let extent = node.block_status(offset, n, false).await?;
                    if extent.status.contains(Status::ALLOCATED) {
                        return Ok((true, extent.len));
                    }
                    // Where this layer ends, the unallocated stretch may go on below.
                    if offset + extent.len < length || Rc::ptr_eq(&node, self) {
                        n = n.min(extent.len);
                    }
                } else if !Rc::ptr_eq(&node, self) {
                    // Beyond the end of a layer that has been cut: zeroes that hide what is below.
                    return Ok((true, n));
                }
            }
            match node.backing() {
                Some(next) if stop.as_ref().is_none_or(|s| !Rc::ptr_eq(s, &next)) => node = next,
                _ => return Ok((false, n)),
            }
        }
    }

    /// Changes the length.
    pub async fn truncate(self: &Rc<Self>, len: u64, exact: bool, prealloc: Preallocation) -> Result<()> {
        if len > MAX_LENGTH {
            bail!("Required too big image size, it must be not greater than {MAX_LENGTH}");
        }
        if self.is_read_only() {
            bail!("Image is read-only");
        }
        let _work = self.start_work();
        let driver = self.driver()?;
        let old = driver.length().map_err(|e| Error::with_errno("Failed to get old image size", &e))?;
        let start = old.min(len);
        let _request = self.requests.begin(RequestKind::Exclusive, start, old.max(len) - start).await;
        driver.truncate(len, exact, prealloc).await?;
        self.write_gen.set(self.write_gen.get() + 1);
        let now = driver.length()?;
        if now != old {
            self.notify_resized(now);
        }
        Ok(())
    }

    /// Forgets this layer's data. The caller has drained the node (or is its only user).
    pub async fn make_empty(self: &Rc<Self>) -> io::Result<()> {
        self.check_writable()?;
        let _work = self.start_work();
        self.driver()?.make_empty().await?;
        self.write_gen.set(self.write_gen.get() + 1);
        Ok(())
    }
}

/// Largest length of a node, in bytes.
pub const MAX_LENGTH: u64 = i64::MAX as u64 & !((1 << 30) - 1);

/// What is done with writes whose data is zeroes (`detect-zeroes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// They are written as they are.
    #[default]
    Off,
    /// They become writes of zeroes.
    On,
    /// They become writes of zeroes that may unmap.
    Unmap,
}

impl DetectZeroes {
    /// Names as options have them.
    pub const NAMES: &'static [(&'static str, Self)] = &[("off", Self::Off), ("on", Self::On), ("unmap", Self::Unmap)];

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

/// Whether every byte is zero.
pub fn is_zero(data: &[u8]) -> bool {
    // Most data that is not zero shows it at once; the rest goes in words.
    let (a, words, b) = unaligned_words(data);
    a.iter().all(|x| *x == 0) && b.iter().all(|x| *x == 0) && words.iter().all(|w| *w == [0; 32])
}

fn unaligned_words(data: &[u8]) -> (&[u8], &[[u8; 32]], &[u8]) {
    let (words, rest) = data.as_chunks::<32>();
    (&[], words, rest)
}
