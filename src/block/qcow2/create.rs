//! Laying out a new image.

use super::header::{self, Compression, Header, compatible, extension, incompatible};
use super::open::MAX_L1_BYTES;
use super::refcount::{MAX_TABLE_BYTES, set_entry};
use crate::driver::{Preallocation, WriteFlags};
use crate::node::Node;
use lockstep_util::{Result, ResultExt, bail};
use std::rc::Rc;

/// What a new image shall be like. The defaults are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Virtual length in bytes.
    pub size: u64,
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Width of a refcount in bits.
    pub refcount_bits: u64,
    /// Refcount updates may be postponed.
    pub lazy_refcounts: bool,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Backing file as it is to be written.
    pub backing_file: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// What is allocated at once.
    pub preallocation: Preallocation,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: 0,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Zlib,
            backing_file: None,
            backing_format: None,
            preallocation: Preallocation::Off,
        }
    }
}

impl CreateOptions {
    /// Checks what goes with what.
    pub fn check(&self) -> Result<()> {
        let cluster = self.cluster_size;
        let (min, max) = (512, 2 << 20);
        if !cluster.is_power_of_two() || !(min..=max).contains(&cluster) {
            bail!("Cluster size must be a power of two between {min} and {}k", max / 1024);
        }
        if self.extended_l2 {
            if self.version < 3 {
                bail!(
                    "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or \
                     greater)"
                );
            }
            if cluster < 16384 {
                bail!("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
            }
        }
        if self.preallocation != Preallocation::Off && self.backing_file.is_some() && !self.extended_l2 {
            bail!("Backing file and preallocation can only be used at the same time if extended_l2 is on");
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            bail!("Backing format cannot be used without backing file");
        }
        if self.version < 3 && self.lazy_refcounts {
            bail!("Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)");
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            bail!("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if self.version < 3 && self.refcount_bits != 16 {
            bail!(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or \
                 greater)"
            );
        }
        if self.version < 3 && self.compression != Compression::Zlib {
            bail!(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or \
                 greater)"
            );
        }
        if self.size > i64::MAX as u64 {
            bail!("Image size must be less than 8 EiB!");
        }
        Ok(())
    }

    fn header(&self) -> Header {
        let mut header = Header {
            version: self.version,
            cluster_bits: self.cluster_size.trailing_zeros(),
            size: self.size,
            l1_size: 0,
            l1_offset: 0,
            reftable_offset: self.cluster_size,
            reftable_clusters: 0,
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: self.refcount_bits.trailing_zeros(),
            compression: self.compression,
            backing_file: self.backing_file.clone().unwrap_or_default(),
            extensions: Vec::new(),
            unknown_fields: Vec::new(),
        };
        if self.lazy_refcounts {
            header.compatible |= compatible::LAZY_REFCOUNTS;
        }
        if self.compression != Compression::Zlib {
            header.incompatible |= incompatible::COMPRESSION;
        }
        if self.extended_l2 {
            header.incompatible |= incompatible::EXTENDED_L2;
        }
        if let Some(format) = &self.backing_format {
            header.set_extension(extension::BACKING_FORMAT, Some(format.as_bytes().to_vec()));
        }
        if self.version >= 3 {
            header.set_extension(extension::FEATURE_NAMES, Some(Header::feature_name_table()));
        }
        header
    }
}

/// Writes an empty image into an empty file: header, refcount table, refcount blocks, L1 table, in that order of places.
/// Preallocation is the caller's (it needs the image open).
pub async fn format(file: &Rc<Node>, options: &CreateOptions) -> Result<()> {
    options.check()?;
    let cluster = options.cluster_size;
    let mut header = options.header();
    let l1_entries = header.l1_entries_for(options.size);
    if l1_entries * 8 > MAX_L1_BYTES {
        bail!("The image size is too large (try using a larger cluster size)");
    }
    let l1_clusters = (l1_entries * 8).div_ceil(cluster);
    let per_block = cluster * 8 / options.refcount_bits;
    let (mut tables, mut blocks) = (1, 1);
    loop {
        let total = 1 + tables + blocks + l1_clusters;
        let needed_blocks = total.div_ceil(per_block);
        let needed_tables = (needed_blocks * 8).div_ceil(cluster);
        if needed_blocks <= blocks && needed_tables <= tables {
            break;
        }
        (tables, blocks) = (tables.max(needed_tables), blocks.max(needed_blocks));
    }
    if tables * cluster > MAX_TABLE_BYTES {
        bail!("The image size is too large (try using a larger cluster size)");
    }
    let total = 1 + tables + blocks + l1_clusters;
    let first_block = 1 + tables;
    let l1_cluster = first_block + blocks;
    header.reftable_clusters = tables as u32;
    header.l1_size = l1_entries as u32;
    // An image of length 0 has no table, and yet a place for one, as other readers expect.
    header.l1_offset = l1_cluster * cluster;

    let mut metadata = vec![0; (l1_cluster * cluster) as usize];
    let bytes = header.to_bytes()?;
    metadata[..bytes.len()].copy_from_slice(&bytes);
    for block in 0..blocks {
        let entry = (cluster + block * 8) as usize;
        let at = (first_block + block) * cluster;
        metadata[entry..entry + 8].copy_from_slice(&at.to_be_bytes());
        let first = block * per_block;
        let content = &mut metadata[at as usize..(at + cluster) as usize];
        for used in first..(first + per_block).min(total) {
            set_entry(content, (used - first) as usize, header.refcount_order, 1);
        }
    }
    // The header goes last: before it is there, the file is no image.
    let head = header::V2_LENGTH as usize;
    let error = "Could not write qcow2 header";
    file.write(head as u64, &metadata[head..], WriteFlags::empty()).await.context(error)?;
    let l1 = vec![0; (l1_entries * 8) as usize];
    file.write(header.l1_offset, &l1, WriteFlags::empty()).await.context(error)?;
    file.flush().await.context(error)?;
    file.write(0, &metadata[..head], WriteFlags::empty()).await.context(error)?;
    file.flush().await.context(error)
}
