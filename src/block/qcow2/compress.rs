//! Compressed clusters: raw deflate or zstd, packed at byte granularity.

use super::header::Compression;
use super::map::{Entry, Kind};
use super::{COMPRESSED, Qcow2};
use crate::driver::{WriteFlags, errno};
use crate::requests::RequestKind;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use std::io::{self, Read};
use std::rc::Rc;

/// Compressed data is addressed in these units, in bytes.
const SECTOR: u64 = 512;
/// Largest refcount value reached by packing compressed clusters; more would not help.
const ZSTD_LEVEL: i32 = 3;

impl Qcow2 {
    /// Where the data of a compressed entry lies: offset and length (at most, in whole sectors).
    pub(super) fn compressed_place(&self, entry: u64) -> (u64, u64) {
        let shift = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = (entry >> shift & ((1 << (self.cluster_bits - 8)) - 1)) + 1;
        (offset, sectors * SECTOR - offset % SECTOR)
    }

    fn compressed_entry(&self, offset: u64, len: u64) -> Option<u64> {
        let shift = 62 - (self.cluster_bits - 8);
        let sectors = (offset + len - 1) / SECTOR - offset / SECTOR;
        (offset < 1 << shift).then_some(COMPRESSED | offset | sectors << shift)
    }

    /// The contents of a compressed cluster. The one used last is kept: neighbours are read one after the other.
    pub(super) async fn decompress(&self, entry: u64) -> io::Result<Rc<Vec<u8>>> {
        if let Some((key, data)) = &*self.decompressed.borrow()
            && *key == entry
        {
            return Ok(data.clone());
        }
        let (offset, len) = self.compressed_place(entry);
        let freed = self.compressed_freed.get();
        let mut packed = vec![0; len as usize];
        self.file().read(offset, &mut packed).await?;
        let kind = self.header.borrow().compression;
        let data = Rc::new(unpack(kind, &packed, self.cluster_size() as usize)?);
        // An entry is no key any more once its place may have been freed and used again.
        if self.compressed_freed.get() == freed {
            *self.decompressed.borrow_mut() = Some((entry, data.clone()));
        }
        Ok(data)
    }

    /// Writes whole clusters compressed (the last one may be cut by the image's end). A cluster that does not get
    /// smaller is written as it is.
    pub(super) async fn write_compressed(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let size = self.cluster_size();
        let end = offset + data.len() as u64;
        if !offset.is_multiple_of(size) || (!end.is_multiple_of(size) && end != self.size()) {
            return Err(errno(libc::EINVAL));
        }
        for (i, part) in data.chunks(size as usize).enumerate() {
            let at = offset + i as u64 * size;
            let mut cluster = part.to_vec();
            cluster.resize(size as usize, 0);
            let kind = self.header.borrow().compression;
            match pack(kind, &cluster)? {
                Some(packed) => self.write_packed(at, &packed).await?,
                None => self.write_guest(at, part).await?,
            }
        }
        Ok(())
    }

    async fn write_packed(&self, at: u64, packed: &[u8]) -> io::Result<()> {
        self.check_not_corrupt()?;
        let size = self.cluster_size();
        let len = packed.len() as u64;
        let _range = self.ranges.begin(RequestKind::Exclusive, at, size).await;
        let _meta = self.meta.lock().await;
        self.limit_deferred_frees().await?;
        let table = self.l2_for_change(at).await?;
        let index = self.l2_index(at);
        let old = self.entry(&table, index);
        let empty = |kind| matches!(kind, Kind::Unallocated | Kind::Zero { host: None });
        if !matches!(self.classify(old, 0), Ok(run) if empty(run.kind)) {
            // Compressed writes are for images being made: they overwrite nothing.
            return Err(errno(libc::EIO));
        }
        // Go on behind the last compressed cluster if there is room, else in a new cluster.
        let tail = self.compressed_tail.get();
        let room = if tail == 0 { 0 } else { size - tail % size };
        let first = tail >> self.cluster_bits;
        let shared = !tail.is_multiple_of(size) && self.refcount(first).await? < self.refs.max();
        let (offset, fresh) = if shared && len <= room {
            (tail, None)
        } else {
            let fresh = self.allocate_exact(1).await?;
            // The next cluster behind the tail continues it.
            if shared && fresh.offset == tail - tail % size + size {
                (tail, Some(fresh))
            } else {
                (fresh.offset, Some(fresh))
            }
        };
        let Some(entry) = self.compressed_entry(offset, len) else { return Err(errno(libc::EFBIG)) };
        self.file().write(offset, packed, WriteFlags::empty()).await?;
        if shared && offset == tail {
            self.add_reference(first).await?;
        }
        self.unsynced.set(true);
        self.set_entry(&table, index, Entry { word: entry, bitmap: 0 });
        if let Some(fresh) = fresh {
            fresh.keep();
        }
        let end = offset + len;
        self.compressed_tail.set(if end.is_multiple_of(size) { 0 } else { end });
        Ok(())
    }
}

/// Compresses a cluster; `None` if it does not get smaller.
fn pack(kind: Compression, cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match kind {
        Compression::Zlib => {
            // Raw deflate; readers know the window of 4 KiB that this format prescribes.
            let mut out = vec![0; cluster.len()];
            let mut deflate = Compress::new_with_window_bits(flate2::Compression::default(), false, 12);
            let status = deflate.compress(cluster, &mut out, FlushCompress::Finish)?;
            let n = deflate.total_out() as usize;
            if status != Status::StreamEnd || n >= cluster.len() {
                return Ok(None);
            }
            out.truncate(n);
            Ok(Some(out))
        }
        Compression::Zstd => {
            let out = zstd::bulk::compress(cluster, ZSTD_LEVEL)?;
            Ok((out.len() < cluster.len()).then_some(out))
        }
    }
}

/// Decompresses a cluster. `packed` may go on behind the compressed data.
fn unpack(kind: Compression, packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; size];
    match kind {
        Compression::Zlib => {
            let mut inflate = Decompress::new(false);
            let status = inflate.decompress(packed, &mut out, FlushDecompress::Finish).map_err(|_| errno(libc::EIO))?;
            let complete = status == Status::StreamEnd || status == Status::BufError || status == Status::Ok;
            if !complete || inflate.total_out() as usize != size {
                return Err(errno(libc::EIO));
            }
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?.single_frame();
            decoder.read_exact(&mut out).map_err(|_| errno(libc::EIO))?;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clusters_come_back_from_both_compressions_with_bytes_behind_them() {
        let cluster: Vec<u8> = (0..65536u32).map(|i| (i / 100) as u8).collect();
        for kind in [Compression::Zlib, Compression::Zstd] {
            let mut packed = pack(kind, &cluster).unwrap().expect("this compresses");
            packed.extend_from_slice(&[0xa5; 700]);
            assert_eq!(unpack(kind, &packed, cluster.len()).unwrap(), cluster, "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn damaged_data_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            for kind in [Compression::Zlib, Compression::Zstd] {
                let _ = unpack(kind, &bytes, 4096);
            }
        }
    }
}
