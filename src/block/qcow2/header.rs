//! The qcow2 header and its extensions as bytes: parsing with every bound checked, and writing back what was read.
//!
//! Field by field after the format's specification (docs/interop/qcow2 in the QEMU tree; layout only).

use lockstep_util::{Result, bail};

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Length of a version 2 header.
pub const V2_LENGTH: u32 = 72;
/// Length of the version 3 header that we write.
pub const V3_LENGTH: u32 = 112;
/// Shortest version 3 header.
pub const V3_MIN_LENGTH: u32 = 104;

/// Incompatible features.
pub mod incompatible {
    /// Refcounts may be wrong.
    pub const DIRTY: u64 = 1 << 0;
    /// The image is damaged and must not be written.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data lies in another file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// `compression_type` is not zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have subcluster bitmaps.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// What this implementation handles.
    pub const SUPPORTED: u64 = DIRTY | CORRUPT | COMPRESSION | EXTENDED_L2;
}

/// Compatible features.
pub mod compatible {
    /// Refcount updates may be postponed under the dirty bit.
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// Features to be cleared by who does not know them.
pub mod autoclear {
    /// The bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1 << 0;
}

/// Header extensions.
pub mod extension {
    /// Ends the list.
    pub const END: u32 = 0;
    /// Name of the backing file's format.
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Names of the feature bits.
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    /// Persistent dirty bitmaps.
    pub const BITMAPS: u32 = 0x2385_2875;
    /// Encryption header.
    pub const CRYPTO: u32 = 0x0537_be77;
    /// Name of the external data file.
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// Names written into new version 3 images: (kind, bit, name).
const FEATURE_NAMES: &[(u8, u8, &str)] = &[
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];
const FEATURE_NAME_SIZE: usize = 48;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a header.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl Compression {
    /// Names as options have them.
    pub const NAMES: &'static [(&'static str, Self)] = &[("zlib", Self::Zlib), ("zstd", Self::Zstd)];

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// One header extension, kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its data without padding.
    pub data: Vec<u8>,
}

/// The header, in host byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// Virtual length in bytes.
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where it lies.
    pub l1_offset: u64,
    /// Where the refcount table lies.
    pub reftable_offset: u64,
    /// Its length in clusters.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where their table lies.
    pub snapshots_offset: u64,
    /// Feature bits.
    pub incompatible: u64,
    /// Feature bits.
    pub compatible: u64,
    /// Feature bits.
    pub autoclear: u64,
    /// log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Backing file name, empty if there is none.
    pub backing_file: String,
    /// Extensions in their order, the end marker excluded.
    pub extensions: Vec<Extension>,
    /// Header fields beyond those that are known.
    pub unknown_fields: Vec<u8>,
}

fn be32(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn be64(data: &[u8], at: usize) -> u64 {
    u64::from(be32(data, at)) << 32 | u64::from(be32(data, at + 4))
}

impl Header {
    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.incompatible & incompatible::EXTENDED_L2 != 0 { 16 } else { 8 }
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// L1 entries that a virtual length needs.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        let per_table = u128::from(self.cluster_size()) * u128::from(self.l2_entries());
        u128::from(size).div_ceil(per_table) as u64
    }

    /// The extension of that type.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().find(|e| e.kind == kind).map(|e| e.data.as_slice())
    }

    /// Sets, replaces or (with `None`) removes an extension.
    pub fn set_extension(&mut self, kind: u32, data: Option<Vec<u8>>) {
        match (self.extensions.iter_mut().find(|e| e.kind == kind), data) {
            (Some(e), Some(data)) => e.data = data,
            (Some(_), None) => self.extensions.retain(|e| e.kind != kind),
            // The backing format goes first, as other writers have it.
            (None, Some(data)) if kind == extension::BACKING_FORMAT => {
                self.extensions.insert(0, Extension { kind, data });
            }
            (None, Some(data)) => self.extensions.push(Extension { kind, data }),
            (None, None) => {}
        }
    }

    /// The backing file's format as the image names it.
    pub fn backing_format(&self) -> Option<String> {
        self.extension(extension::BACKING_FORMAT).map(|d| String::from_utf8_lossy(d).into_owned())
    }

    /// Parses the first bytes of an image: at least a header, at most a cluster is looked at. `head` must hold the first
    /// cluster, or the whole file if that is shorter.
    pub fn parse(head: &[u8]) -> Result<Self> {
        if head.len() < V2_LENGTH as usize || be32(head, 0) != MAGIC {
            bail!("Image is not in qcow2 format");
        }
        let version = be32(head, 4);
        if !(2..=3).contains(&version) {
            bail!("Unsupported qcow2 version {version}");
        }
        let cluster_bits = be32(head, 20);
        if !(9..=21).contains(&cluster_bits) {
            bail!("Unsupported cluster size: 2^{cluster_bits}");
        }
        let cluster_size = 1u64 << cluster_bits;
        let mut header = Self {
            version,
            cluster_bits,
            size: be64(head, 24),
            l1_size: be32(head, 36),
            l1_offset: be64(head, 40),
            reftable_offset: be64(head, 48),
            reftable_clusters: be32(head, 56),
            snapshot_count: be32(head, 60),
            snapshots_offset: be64(head, 64),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Zlib,
            backing_file: String::new(),
            extensions: Vec::new(),
            unknown_fields: Vec::new(),
        };
        let mut length = u64::from(V2_LENGTH);
        if version == 3 {
            if head.len() < V3_MIN_LENGTH as usize {
                bail!("qcow2 header too short");
            }
            header.incompatible = be64(head, 72);
            header.compatible = be64(head, 80);
            header.autoclear = be64(head, 88);
            header.refcount_order = be32(head, 96);
            length = u64::from(be32(head, 100));
            if length < u64::from(V3_MIN_LENGTH) {
                bail!("qcow2 header too short");
            }
        }
        if length > cluster_size {
            bail!("qcow2 header exceeds cluster size");
        }
        if length > head.len() as u64 {
            bail!("Could not read unknown qcow2 header fields");
        }
        let length = length as usize;
        let mut compression = 0;
        if version == 3 && length > V3_MIN_LENGTH as usize {
            compression = head[V3_MIN_LENGTH as usize];
            if length > V3_LENGTH as usize {
                header.unknown_fields = head[V3_LENGTH as usize..length].to_vec();
            }
        }
        let backing_offset = be64(head, 8);
        let backing_size = be32(head, 16);
        if backing_offset > cluster_size {
            bail!("Invalid backing file offset");
        }
        // Extensions lie between the header and the backing file's name.
        let end = if backing_offset != 0 { backing_offset } else { cluster_size };
        let end = end.min(head.len() as u64) as usize;
        header.extensions = parse_extensions(head, length, end)?;
        header.check_features(compression)?;
        if header.refcount_order > 6 {
            bail!("Reference count entry width too large; may not exceed 64 bits");
        }
        match be32(head, 32) {
            0 => {}
            1 | 2 => bail!("Encrypted qcow2 images are not supported"),
            method => bail!("Unsupported encryption method {method}"),
        }
        if backing_offset != 0 {
            let size = backing_size as usize;
            if size > 1023.min(cluster_size as usize - backing_offset as usize) {
                bail!("Backing file name too long");
            }
            let from = backing_offset as usize;
            let Some(name) = head.get(from..from + size) else { bail!("Could not read backing file name") };
            header.backing_file = String::from_utf8_lossy(name).into_owned();
        }
        Ok(header)
    }

    fn check_features(&mut self, compression: u8) -> Result<()> {
        let unknown = self.incompatible & !incompatible::SUPPORTED;
        if unknown != 0 {
            bail!("Unsupported qcow2 feature(s): {}", self.feature_names(unknown));
        }
        let bit = self.incompatible & incompatible::COMPRESSION != 0;
        self.compression = match compression {
            0 if bit => bail!("qcow2: Compression type incompatible feature bit must not be set"),
            0 => Compression::Zlib,
            1 if !bit => bail!("qcow2: Compression type incompatible feature bit must be set"),
            1 => Compression::Zstd,
            other => bail!("qcow2: unknown compression type: {other}"),
        };
        if self.incompatible & incompatible::EXTENDED_L2 != 0 && self.cluster_bits < 14 {
            bail!("Unsupported subcluster size: {}", self.cluster_size() / 32);
        }
        Ok(())
    }

    fn feature_names(&self, bits: u64) -> String {
        let mut names = Vec::new();
        let mut left = bits;
        if let Some(table) = self.extension(extension::FEATURE_NAMES) {
            for entry in table.chunks_exact(FEATURE_NAME_SIZE) {
                if entry[0] == 0 && entry[1] < 64 && left & (1 << entry[1]) != 0 {
                    let name = entry[2..].split(|b| *b == 0).next().unwrap_or_default();
                    names.push(String::from_utf8_lossy(name).into_owned());
                    left &= !(1 << entry[1]);
                }
            }
        }
        if left != 0 {
            names.push(format!("Unknown incompatible feature: {left:x}"));
        }
        names.join(", ")
    }

    /// The bytes for the image's start. Fails if they do not fit into a cluster.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let length =
            if self.version == 2 { V2_LENGTH as usize } else { V3_LENGTH as usize + self.unknown_fields.len() };
        let mut out = vec![0; length];
        let mut put32 = |at: usize, v: u32| out[at..at + 4].copy_from_slice(&v.to_be_bytes());
        put32(0, MAGIC);
        put32(4, self.version);
        put32(20, self.cluster_bits);
        put32(36, self.l1_size);
        put32(56, self.reftable_clusters);
        put32(60, self.snapshot_count);
        if self.version == 3 {
            put32(96, self.refcount_order);
            put32(100, length as u32);
        }
        let mut put64 = |at: usize, v: u64| out[at..at + 8].copy_from_slice(&v.to_be_bytes());
        put64(24, self.size);
        put64(40, self.l1_offset);
        put64(48, self.reftable_offset);
        put64(64, self.snapshots_offset);
        if self.version == 3 {
            put64(72, self.incompatible);
            put64(80, self.compatible);
            put64(88, self.autoclear);
            out[V3_MIN_LENGTH as usize] = match self.compression {
                Compression::Zlib => 0,
                Compression::Zstd => 1,
            };
            out[V3_LENGTH as usize..].copy_from_slice(&self.unknown_fields);
        }
        for extension in &self.extensions {
            out.extend_from_slice(&extension.kind.to_be_bytes());
            out.extend_from_slice(&(extension.data.len() as u32).to_be_bytes());
            out.extend_from_slice(&extension.data);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out.extend_from_slice(&[0; 8]);
        if !self.backing_file.is_empty() {
            let at = out.len() as u64;
            out[8..16].copy_from_slice(&at.to_be_bytes());
            out[16..20].copy_from_slice(&(self.backing_file.len() as u32).to_be_bytes());
            out.extend_from_slice(self.backing_file.as_bytes());
        }
        if out.len() as u64 > self.cluster_size() {
            bail!("The qcow2 header with its extensions and backing file name does not fit into a cluster");
        }
        Ok(out)
    }

    /// The feature name table for new images.
    pub fn feature_name_table() -> Vec<u8> {
        let mut table = vec![0; FEATURE_NAMES.len() * FEATURE_NAME_SIZE];
        for (entry, (kind, bit, name)) in table.chunks_exact_mut(FEATURE_NAME_SIZE).zip(FEATURE_NAMES) {
            entry[0] = *kind;
            entry[1] = *bit;
            entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
        }
        table
    }
}

fn parse_extensions(head: &[u8], start: usize, end: usize) -> Result<Vec<Extension>> {
    let mut extensions = Vec::new();
    let mut at = start;
    while at + 8 <= end {
        let kind = be32(head, at);
        let len = be32(head, at + 4) as usize;
        at += 8;
        if kind == extension::END {
            return Ok(extensions);
        }
        if len > end - at {
            bail!("Header extension too large");
        }
        let data = head[at..at + len].to_vec();
        match kind {
            extension::BACKING_FORMAT if len >= 16 => {
                bail!("ERROR: ext_backing_format: len={len} too large (>=16)")
            }
            extension::CRYPTO | extension::DATA_FILE => {
                bail!("Image uses an encryption header or an external data file, which are not supported")
            }
            _ => extensions.push(Extension { kind, data }),
        }
        at = (at + len).next_multiple_of(8);
    }
    Ok(extensions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            version: 3,
            cluster_bits: 16,
            size: 10 << 30,
            l1_size: 20,
            l1_offset: 0x30000,
            reftable_offset: 0x10000,
            reftable_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: 0,
            incompatible: incompatible::DIRTY,
            compatible: compatible::LAZY_REFCOUNTS,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Zlib,
            backing_file: "base.raw".into(),
            extensions: vec![
                Extension { kind: extension::BACKING_FORMAT, data: b"raw".to_vec() },
                Extension { kind: extension::FEATURE_NAMES, data: Header::feature_name_table() },
                Extension { kind: 0x1234_5678, data: vec![1, 2, 3] },
            ],
            unknown_fields: vec![9; 8],
        }
    }

    #[test]
    fn a_header_with_unknown_fields_and_extensions_comes_back_as_it_was() {
        let header = sample();
        let mut bytes = header.to_bytes().unwrap();
        bytes.resize(65536, 0);
        assert_eq!(Header::parse(&bytes).unwrap(), header);
    }

    #[test]
    fn unknown_incompatible_features_are_named() {
        let mut header = sample();
        header.incompatible = 1 << 2 | 1 << 33;
        let bytes = header.to_bytes().unwrap();
        assert_eq!(
            Header::parse(&bytes).unwrap_err().message(),
            "Unsupported qcow2 feature(s): external data file, Unknown incompatible feature: 200000000"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..700), version in 2u32..4, bits in 8u32..23) {
            if bytes.len() >= 24 {
                bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
                bytes[4..8].copy_from_slice(&version.to_be_bytes());
                bytes[20..24].copy_from_slice(&bits.to_be_bytes());
            }
            if let Ok(header) = Header::parse(&bytes) {
                let _ = header.to_bytes();
            }
        }

        #[test]
        fn a_damaged_header_is_parsed_or_refused_without_a_panic(at in 8usize..600, value in any::<u8>()) {
            let mut bytes = sample().to_bytes().unwrap();
            let at = at.min(bytes.len() - 1);
            bytes[at] = value;
            let _ = Header::parse(&bytes);
        }
    }
}
