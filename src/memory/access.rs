//! What a region of registers is asked, and how accesses of other sizes are adapted to it.

/// Why an access did not reach a device or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemTxError {
    /// Nothing answers at this address, or not with this size.
    #[error("nothing answers at this address")]
    Decode,
    /// The device refused.
    #[error("the device refused the access")]
    Device,
}

/// Registers behind a range of memory or I/O ports. All values are little-endian.
pub trait IoHandler: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8, within [`rules`](Self::rules)) at `offset` of the region.
    fn read(&self, offset: u64, size: u32) -> u64;
    /// Writes the low `size` bytes of `value` at `offset` of the region.
    fn write(&self, offset: u64, size: u32, value: u64);
    /// Which accesses it takes.
    fn rules(&self) -> AccessRules {
        AccessRules::default()
    }
}

/// Which accesses a guest may make (`valid_*`), and which the handler implements (`handled_*`): the others are split or widened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessRules {
    /// Smallest size a guest may use, in bytes.
    pub valid_min: u32,
    /// Largest size a guest may use, in bytes.
    pub valid_max: u32,
    /// Whether a guest may access unaligned addresses.
    pub unaligned: bool,
    /// Smallest size the handler sees, in bytes.
    pub handled_min: u32,
    /// Largest size the handler sees, in bytes.
    pub handled_max: u32,
}

impl Default for AccessRules {
    /// Aligned accesses of 1 to 4 bytes, handed on as they are.
    fn default() -> Self {
        Self { valid_min: 1, valid_max: 4, unaligned: false, handled_min: 1, handled_max: 4 }
    }
}

impl AccessRules {
    /// Any aligned size up to `max`, of which the handler sees single bytes.
    pub const fn bytes(max: u32) -> Self {
        Self { valid_min: 1, valid_max: max, unaligned: true, handled_min: 1, handled_max: 1 }
    }

    /// Sizes from `min` to `max`, handed on as they are.
    pub const fn sizes(min: u32, max: u32) -> Self {
        Self { valid_min: min, valid_max: max, unaligned: false, handled_min: min, handled_max: max }
    }

    fn accepts(&self, offset: u64, size: u32) -> bool {
        (self.valid_min..=self.valid_max).contains(&size) && (self.unaligned || offset.is_multiple_of(u64::from(size)))
    }

    /// Why an access is not accepted, in QEMU's words.
    pub(crate) fn refusal(&self, offset: u64, size: u32) -> String {
        if !self.unaligned && !offset.is_multiple_of(u64::from(size)) {
            "unaligned".into()
        } else {
            format!("invalid size (min:{} max:{})", self.valid_min, self.valid_max)
        }
    }

    fn step(&self, size: u32) -> u32 {
        size.clamp(self.handled_min.max(1), self.handled_max.max(1))
    }
}

fn mask(size: u32) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// One guest access of 1, 2, 4 or 8 bytes.
pub(crate) fn read(handler: &dyn IoHandler, offset: u64, size: u32) -> Result<u64, MemTxError> {
    let rules = handler.rules();
    if !rules.accepts(offset, size) {
        return Err(MemTxError::Decode);
    }
    let step = rules.step(size);
    let mut value = 0;
    let mut at = 0;
    while at < size {
        value |= (handler.read(offset + u64::from(at), step) & mask(step)) << (at * 8);
        at += step;
    }
    Ok(value & mask(size))
}

/// One guest access of 1, 2, 4 or 8 bytes.
pub(crate) fn write(handler: &dyn IoHandler, offset: u64, size: u32, value: u64) -> Result<(), MemTxError> {
    let rules = handler.rules();
    if !rules.accepts(offset, size) {
        return Err(MemTxError::Decode);
    }
    let step = rules.step(size);
    let mut at = 0;
    while at < size {
        handler.write(offset + u64::from(at), step, (value >> (at * 8)) & mask(step));
        at += step;
    }
    Ok(())
}

/// The size of the next access when `len` bytes at `offset` are to be transferred.
pub(crate) fn next_size(handler: &dyn IoHandler, offset: u64, len: usize) -> u32 {
    let rules = handler.rules();
    let mut size = rules.valid_max.clamp(1, 8);
    if !rules.unaligned && offset != 0 {
        size = size.min(1 << offset.trailing_zeros().min(3));
    }
    while size as usize > len {
        size /= 2;
    }
    size.max(1)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    struct Log(AccessRules, Mutex<Vec<(u64, u32, u64)>>);

    impl IoHandler for Log {
        fn read(&self, offset: u64, size: u32) -> u64 {
            self.1.lock().push((offset, size, 0));
            0x1122_3344_5566_7788 >> (offset * 8)
        }
        fn write(&self, offset: u64, size: u32, value: u64) {
            self.1.lock().push((offset, size, value));
        }
        fn rules(&self) -> AccessRules {
            self.0
        }
    }

    #[test]
    fn wide_accesses_are_split_for_a_byte_device() {
        let log = Log(AccessRules::bytes(4), Mutex::default());
        assert_eq!(read(&log, 0, 4), Ok(0x5566_7788));
        write(&log, 1, 2, 0xabcd).unwrap();
        assert_eq!(*log.1.lock(), [(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 0), (1, 1, 0xcd), (2, 1, 0xab)]);
    }

    #[test]
    fn sizes_and_alignments_outside_the_rules_are_refused() {
        let log = Log(AccessRules::sizes(2, 4), Mutex::default());
        assert_eq!(read(&log, 0, 1), Err(MemTxError::Decode));
        assert_eq!(read(&log, 0, 8), Err(MemTxError::Decode));
        assert_eq!(write(&log, 1, 2, 0), Err(MemTxError::Decode));
        assert!(log.1.lock().is_empty());
    }

    #[test]
    fn the_next_size_follows_alignment_and_length() {
        let log = Log(AccessRules::default(), Mutex::default());
        assert_eq!(
            [next_size(&log, 0, 9), next_size(&log, 2, 9), next_size(&log, 4, 3), next_size(&log, 1, 1)],
            [4, 2, 2, 1]
        );
    }
}
