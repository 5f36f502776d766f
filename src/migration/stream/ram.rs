//! The records of the section `ram`.

use lockstep_util::{Result, err};
use lockstep_vmstate::{Decoder, LoadError};

/// Bytes of a page, in the stream and in the dirty log.
pub const PAGE: usize = 4096;

/// The flags in the low bits of a record's first word.
mod flag {
    pub const ZERO: u64 = 0x002;
    pub const MEM_SIZE: u64 = 0x004;
    pub const PAGE: u64 = 0x008;
    pub const EOS: u64 = 0x010;
    pub const CONTINUE: u64 = 0x020;
    pub const XBZRLE: u64 = 0x040;
    pub const HOOK: u64 = 0x080;
    pub const MULTIFD_FLUSH: u64 = 0x200;
    pub const MASK: u64 = super::PAGE as u64 - 1;
}

/// More blocks than any machine has.
const MAX_BLOCKS: usize = 1024;

/// Names and lengths of the blocks of guest memory; a block is known by its place here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    blocks: Vec<(String, u64)>,
}

impl BlockTable {
    /// From names and lengths in bytes.
    pub fn new(blocks: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self { blocks: blocks.into_iter().collect() }
    }

    /// The blocks of a list.
    pub fn of(blocks: &[lockstep_memory::RamBlock]) -> Self {
        Self::new(blocks.iter().map(|b| (b.name().to_owned(), b.size())))
    }

    /// Names and lengths.
    pub fn blocks(&self) -> &[(String, u64)] {
        &self.blocks
    }

    /// Sum of all lengths, in bytes.
    pub fn total(&self) -> u64 {
        self.blocks.iter().map(|b| b.1).sum()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.blocks.iter().position(|b| b.0 == name)
    }

    /// Refuses a sender whose blocks are not these.
    fn check(&self, theirs: &[(&str, u64)]) -> Result<()> {
        for &(name, len) in theirs {
            let at = self
                .find(name)
                .ok_or_else(|| err!("Unknown ramblock \"{name}\", cannot accept migration: Invalid argument"))?;
            let ours = self.blocks[at].1;
            if ours != len {
                return Err(err!("Size mismatch: {name}: {len:#x} != {ours:#x}: Invalid argument"));
            }
        }
        Ok(())
    }
}

/// What one record says. Block numbers and offsets are checked: they are inside the table's blocks.
#[derive(Debug, PartialEq, Eq)]
pub enum RamRecord<'a> {
    /// The sender's blocks are the table's.
    Sizes,
    /// A page filled with one byte, almost always zero.
    Zero {
        /// Number of the block.
        block: usize,
        /// Offset in it, in bytes.
        offset: u64,
        /// The byte.
        fill: u8,
    },
    /// A page as it is.
    Page {
        /// Number of the block.
        block: usize,
        /// Offset in it, in bytes.
        offset: u64,
        /// The page.
        data: &'a [u8; PAGE],
    },
    /// A page as its difference from the one sent before.
    Xbzrle {
        /// Number of the block.
        block: usize,
        /// Offset in it, in bytes.
        offset: u64,
        /// The difference.
        delta: &'a [u8],
    },
    /// The end of this part.
    End,
}

/// Reads records.
#[derive(Debug)]
pub struct RamDecoder {
    table: BlockTable,
    last: Option<usize>,
}

impl RamDecoder {
    /// For a machine with these blocks.
    pub fn new(table: BlockTable) -> Self {
        Self { table, last: None }
    }

    /// Reads the next record; `None` if it has not arrived wholly.
    ///
    /// # Errors
    /// When it is not a record, or not one for this machine.
    pub fn next<'a>(&mut self, input: &mut Decoder<'a>) -> Result<Option<RamRecord<'a>>> {
        let mut ahead = input.clone();
        match self.read(&mut ahead) {
            Ok(record) => {
                *input = ahead;
                record.map(Some)
            }
            Err(LoadError::Short) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The outer error says that bytes are missing, the inner one that they are wrong.
    fn read<'a>(&mut self, input: &mut Decoder<'a>) -> Result<Result<RamRecord<'a>>, LoadError> {
        let word = input.get_u64()?;
        let (offset, flags) = (word & !flag::MASK, word & flag::MASK);
        match flags & !flag::CONTINUE {
            flag::EOS => Ok(Ok(RamRecord::End)),
            flag::MEM_SIZE => self.sizes(input, offset),
            flag::ZERO => {
                let block = self.block(input, flags)?;
                let fill = input.get_u8()?;
                Ok(self.page(block, offset).map(|block| RamRecord::Zero { block, offset, fill }))
            }
            flag::PAGE => {
                let block = self.block(input, flags)?;
                let data = input.take(PAGE)?.first_chunk().ok_or(LoadError::Short)?;
                Ok(self.page(block, offset).map(|block| RamRecord::Page { block, offset, data }))
            }
            flag::XBZRLE => {
                let block = self.block(input, flags)?;
                let (encoding, len) = (input.get_u8()?, usize::from(input.get_u16()?));
                if encoding != 1 || len > PAGE {
                    return Ok(Err(err!("Failed to decompress XBZRLE page at {offset:#018x}")));
                }
                let delta = input.take(len)?;
                Ok(self.page(block, offset).map(|block| RamRecord::Xbzrle { block, offset, delta }))
            }
            flag::HOOK => Ok(Err(err!("Unsupported RDMA record in the migration stream"))),
            flag::MULTIFD_FLUSH => Ok(Err(err!("Multifd is not enabled on this side"))),
            flags => Ok(Err(err!("Unknown combination of migration flags: {flags:#x}"))),
        }
    }

    /// The block that a record is of: the one before, or the one named.
    fn block(&mut self, input: &mut Decoder<'_>, flags: u64) -> Result<Result<usize>, LoadError> {
        if flags & flag::CONTINUE != 0 {
            return Ok(self.last.ok_or_else(|| err!("Ack, bad migration stream!")));
        }
        let name = input.get_name()?;
        let found = self.table.find(name).ok_or_else(|| err!("Can't find block {name}"));
        // Taken over only when the record is whole; reading it again gives the same.
        if let Ok(block) = found {
            self.last = Some(block);
        }
        Ok(found)
    }

    fn page(&self, block: Result<usize>, offset: u64) -> Result<usize> {
        let block = block?;
        let len = self.table.blocks[block].1;
        if offset.checked_add(PAGE as u64).is_none_or(|end| end > len) {
            return Err(err!("Illegal RAM offset {offset:#018x}"));
        }
        Ok(block)
    }

    fn sizes<'a>(&mut self, input: &mut Decoder<'a>, total: u64) -> Result<Result<RamRecord<'a>>, LoadError> {
        let (mut theirs, mut sum) = (Vec::new(), 0_u64);
        while sum < total {
            let (name, len) = (input.get_name()?, input.get_u64()?);
            theirs.push((name, len));
            sum = match sum.checked_add(len) {
                Some(sum) if sum <= total && len > 0 && theirs.len() <= MAX_BLOCKS => sum,
                _ => return Ok(Err(err!("Migrated RAM blocks do not add up"))),
            };
        }
        Ok(self.table.check(&theirs).map(|()| RamRecord::Sizes))
    }
}

/// Writes records to a buffer.
#[derive(Debug, Default)]
pub struct RecordWriter {
    last: Option<usize>,
}

impl RecordWriter {
    /// Begins a section: its first page names its block.
    pub fn begin(&mut self) {
        self.last = None;
    }

    /// The blocks of the machine.
    pub fn sizes(&mut self, table: &BlockTable, out: &mut Vec<u8>) {
        out.extend((table.total() | flag::MEM_SIZE).to_be_bytes());
        for (name, len) in table.blocks() {
            put_name(name, out);
            out.extend(len.to_be_bytes());
        }
    }

    /// A page that `read` copies into place. Returns whether it was all zero (and so took nine bytes).
    ///
    /// # Errors
    /// That of `read`; the buffer is then as it was.
    pub fn page<E>(
        &mut self,
        table: &BlockTable,
        block: usize,
        offset: u64,
        out: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let start = out.len();
        let again = if self.last == Some(block) { flag::CONTINUE } else { 0 };
        out.extend((offset | flag::PAGE | again).to_be_bytes());
        if again == 0 {
            put_name(&table.blocks[block].0, out);
        }
        let data = out.len();
        out.resize(data + PAGE, 0);
        if let Err(e) = read(&mut out[data..]) {
            out.truncate(start);
            return Err(e);
        }
        self.last = Some(block);
        let zero = is_zero(&out[data..]);
        if zero {
            out.truncate(data + 1);
            out[start..start + 8].copy_from_slice(&(offset | flag::ZERO | again).to_be_bytes());
        }
        Ok(zero)
    }

    /// The end of a part.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        out.extend(flag::EOS.to_be_bytes());
    }
}

fn put_name(name: &str, out: &mut Vec<u8>) {
    let name = &name.as_bytes()[..name.len().min(255)];
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    // Most pages that are not zero show it in the first bytes.
    words.iter().all(|w| w.iter().fold(0, |all, b| all | b) == 0) && rest.iter().all(|&b| b == 0)
}
