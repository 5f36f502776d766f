//! System calls on image files. Everything here may block; callers choose the thread.

use crate::driver::Preallocation;
use lockstep_util::{Error, Result};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

/// A buffer whose start is aligned for direct I/O.
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeroes.
    pub fn zeroed(len: usize, align: usize) -> Self {
        let bytes = vec![0; len + if align > 1 { align } else { 0 }];
        let start = if align > 1 { bytes.as_ptr().align_offset(align) } else { 0 };
        Self { bytes, start, len }
    }

    /// A copy of a slice.
    pub fn from_slice(data: &[u8], align: usize) -> Self {
        if align <= 1 {
            return Self { bytes: data.to_vec(), start: 0, len: data.len() };
        }
        let mut buf = Self::zeroed(data.len(), align);
        buf.as_mut_slice().copy_from_slice(data);
        buf
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Length of a regular file or block device, in bytes.
pub fn length(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.is_file() {
        return Ok(meta.len());
    }
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

/// What direct I/O must be aligned to. The kernel tells since 6.1; 4096 suits every disk otherwise.
pub fn direct_alignment(file: &File) -> u32 {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    match statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(s) if s.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && s.stx_dio_offset_align > 0 => {
            s.stx_dio_offset_align.max(s.stx_dio_mem_align).next_power_of_two()
        }
        _ => 4096,
    }
}

/// Reads what the page cache has; stops short where it would have to wait.
pub fn read_nowait(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let n = rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT)?;
    Ok(n)
}

/// Writes what the page cache takes without waiting.
pub fn write_nowait(file: &File, offset: u64, data: &[u8]) -> io::Result<usize> {
    let n = rustix::io::pwritev2(file, &[IoSlice::new(data)], offset, ReadWriteFlags::NOWAIT)?;
    Ok(n)
}

/// Reads `len` bytes; beyond the end zeroes.
pub fn read(file: &File, offset: u64, len: usize, align: usize) -> io::Result<AlignedBuf> {
    let mut buf = AlignedBuf::zeroed(len, align);
    let out = buf.as_mut_slice();
    let mut done = 0;
    while done < len {
        match file.read_at(&mut out[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(buf)
}

/// Writes all, stable when it returns if `fua`.
pub fn write(file: &File, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
    file.write_all_at(data, offset)?;
    if fua { file.sync_data() } else { Ok(()) }
}

/// What a zero write came to, and what the file system cannot do.
pub struct ZeroWay {
    /// The range is zero now.
    pub done: bool,
    /// Holes cannot be punched.
    pub no_punch: bool,
    /// `FALLOC_FL_ZERO_RANGE` is missing.
    pub no_zero_range: bool,
}

/// Makes a range zero without writing it, if there is a way.
pub fn zero(
    file: &File,
    offset: u64,
    len: u64,
    length: u64,
    unmap: bool,
    no_punch: bool,
    no_zero_range: bool,
) -> io::Result<ZeroWay> {
    let mut way = ZeroWay { done: false, no_punch, no_zero_range };
    let end = offset + len;
    if offset >= length {
        // Nothing there yet: the file just grows, and a hole reads as zeroes.
        if unmap || rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len).is_err() {
            rustix::fs::ftruncate(file, end)?;
        }
        way.done = true;
        return Ok(way);
    }
    let inside = end.min(length) - offset;
    if unmap && !way.no_punch {
        match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, inside) {
            Ok(()) => way.done = true,
            Err(Errno::OPNOTSUPP) => way.no_punch = true,
            Err(e) => return Err(e.into()),
        }
    }
    if !way.done && !way.no_zero_range {
        match rustix::fs::fallocate(file, FallocateFlags::ZERO_RANGE, offset, inside) {
            Ok(()) => way.done = true,
            Err(Errno::OPNOTSUPP | Errno::INVAL) => way.no_zero_range = true,
            Err(e) => return Err(e.into()),
        }
    }
    if !way.done && !way.no_punch {
        match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, inside) {
            Ok(()) => {
                let _ = rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, inside);
                way.done = true;
            }
            Err(Errno::OPNOTSUPP) => way.no_punch = true,
            Err(e) => return Err(e.into()),
        }
    }
    if way.done && end > length {
        rustix::fs::ftruncate(file, end)?;
    }
    Ok(way)
}

/// Gives a range's blocks back.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
    Ok(())
}

/// A stretch of a sparse file, up to an offset.
pub enum Stretch {
    /// Data until there.
    Data(u64),
    /// A hole until there.
    Hole(u64),
}

/// What lies at `offset` (below `length`).
pub fn stretch(file: &File, offset: u64, length: u64) -> Stretch {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(at) if at > offset => Stretch::Hole(at.min(length).max(offset + 1)),
        Ok(_) => match rustix::fs::seek(file, SeekFrom::Hole(offset)) {
            Ok(end) if end > offset => Stretch::Data(end.min(length.next_multiple_of(4096)).max(offset + 1)),
            _ => Stretch::Data(length.max(offset + 1)),
        },
        // No data up to the end.
        Err(Errno::NXIO) => Stretch::Hole(length.max(offset + 1)),
        Err(_) => Stretch::Data(length.max(offset + 1)),
    }
}

/// Changes the length and fills what is new.
pub fn truncate(file: &File, old: u64, len: u64, prealloc: Preallocation) -> Result<()> {
    match prealloc {
        Preallocation::Falloc if len > old => rustix::fs::fallocate(file, FallocateFlags::empty(), old, len - old)
            .map_err(|e| Error::with_errno("Could not preallocate data for the new file", &e.into())),
        Preallocation::Full if len > old => write_zeroes(file, old, len).map_err(|e| {
            let _ = rustix::fs::ftruncate(file, old);
            Error::with_errno("Could not write zeros for preallocation", &e)
        }),
        Preallocation::Off if old == 0 && len > 0 => {
            // A first block that is there lets anyone find out the alignment of direct I/O.
            let failed = |e: io::Error| Error::with_errno("Failed to resize file", &e);
            rustix::fs::ftruncate(file, len).map_err(|e| failed(e.into()))?;
            file.write_all_at(&[0; 4096][..len.min(4096) as usize], 0).map_err(failed)
        }
        _ => rustix::fs::ftruncate(file, len).map_err(|e| Error::with_errno("Failed to resize file", &e.into())),
    }
}

fn write_zeroes(file: &File, from: u64, to: u64) -> io::Result<()> {
    let chunk = vec![0; 1 << 16];
    let mut at = from;
    while at < to {
        let n = (to - at).min(chunk.len() as u64) as usize;
        file.write_all_at(&chunk[..n], at)?;
        at += n as u64;
    }
    file.sync_data()
}
