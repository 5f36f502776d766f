//! Which pieces of a disk still have to be copied.

/// A bit for each `granularity` bytes of a disk.
#[derive(Clone, Debug)]
pub struct DirtyMap {
    words: Vec<u64>,
    granularity: u64,
    size: u64,
    dirty: u64,
}

impl DirtyMap {
    /// A clean map for `size` bytes; `granularity` is a power of two.
    pub fn new(size: u64, granularity: u64) -> Self {
        assert!(granularity.is_power_of_two());
        let bits = size.div_ceil(granularity);
        Self { words: vec![0; bits.div_ceil(64) as usize], granularity, size, dirty: 0 }
    }

    /// Bytes a bit stands for.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether no piece that the range touches is dirty.
    pub fn is_clean_range(&self, offset: u64, len: u64) -> bool {
        match self.next_dirty(offset, self.granularity) {
            Some((dirty, _)) => dirty >= offset.saturating_add(len),
            None => true,
        }
    }

    /// Dirty bytes (the last piece counts only as far as the disk goes).
    pub fn dirty_bytes(&self) -> u64 {
        let last = self.size.div_ceil(self.granularity).wrapping_sub(1);
        let tail = self.size % self.granularity;
        let short = if tail != 0 && self.size > 0 && self.bit(last) { self.granularity - tail } else { 0 };
        self.dirty * self.granularity - short
    }

    /// Whether anything is dirty.
    pub fn is_clean(&self) -> bool {
        self.dirty == 0
    }

    fn bit(&self, index: u64) -> bool {
        self.words[(index / 64) as usize] >> (index % 64) & 1 != 0
    }

    /// Marks every piece that `len` bytes at `offset` touch.
    pub fn set(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset < end {
            self.change(offset / self.granularity, end.div_ceil(self.granularity), true);
        }
    }

    /// Unmarks the pieces that lie wholly within `len` bytes at `offset` (the disk's end completes the last piece).
    pub fn clear(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        let first = offset.div_ceil(self.granularity);
        let last = if end == self.size { end.div_ceil(self.granularity) } else { end / self.granularity };
        if first < last {
            self.change(first, last, false);
        }
    }

    /// Sets or clears the bits `first..last`, a word at a time.
    fn change(&mut self, first: u64, last: u64, value: bool) {
        let mut at = first;
        while at < last {
            let (word, low) = ((at / 64) as usize, at % 64);
            let high = (last - (at - low)).min(64);
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            let old = self.words[word].count_ones();
            self.words[word] = if value { self.words[word] | mask } else { self.words[word] & !mask };
            self.dirty = self.dirty + u64::from(self.words[word].count_ones()) - u64::from(old);
            at += high - low;
        }
    }

    /// The first dirty range at or after `from`, not longer than `max` bytes: offset and length in bytes.
    pub fn next_dirty(&self, from: u64, max: u64) -> Option<(u64, u64)> {
        let start = self.find(from / self.granularity, true)?;
        let end = self.find(start, false).unwrap_or(self.size.div_ceil(self.granularity));
        let offset = start * self.granularity;
        let len = (end * self.granularity).min(self.size) - offset;
        Some((offset, len.min(max.max(self.granularity))))
    }

    /// The first bit at or after `from` with the given value.
    fn find(&self, from: u64, value: bool) -> Option<u64> {
        let bits = self.size.div_ceil(self.granularity);
        let mut word = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        while word < self.words.len() {
            let w = if value { self.words[word] } else { !self.words[word] } & mask;
            if w != 0 {
                let bit = word as u64 * 64 + u64::from(w.trailing_zeros());
                return (bit < bits).then_some(bit);
            }
            mask = u64::MAX;
            word += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_map_agrees_with_a_set_of_pieces(
            size in 1u64..20_000,
            ops in prop::collection::vec((any::<bool>(), 0u64..22_000, 0u64..9_000), 1..40),
        ) {
            let g = 64;
            let mut map = DirtyMap::new(size, g);
            let mut model = vec![false; size.div_ceil(g) as usize];
            for (set, offset, len) in ops {
                if set { map.set(offset, len) } else { map.clear(offset, len) }
                let end = (offset + len).min(size);
                for (i, piece) in model.iter_mut().enumerate() {
                    let (from, to) = (i as u64 * g, ((i as u64 + 1) * g).min(size));
                    if set && offset < end && from < end && to > offset {
                        *piece = true;
                    } else if !set && offset <= from && to <= end {
                        *piece = false;
                    }
                }
            }
            let bytes: u64 =
                model.iter().enumerate().filter(|(_, d)| **d).map(|(i, _)| g.min(size - i as u64 * g)).sum();
            prop_assert_eq!(map.dirty_bytes(), bytes);
            let mut walked = vec![false; model.len()];
            let mut at = 0;
            while let Some((offset, len)) = map.next_dirty(at, 256) {
                prop_assert!(offset >= at && len > 0 && offset + len <= size && len <= 256);
                for piece in &mut walked[(offset / g) as usize..(offset + len).div_ceil(g) as usize] {
                    *piece = true;
                }
                at = (offset + len).next_multiple_of(g);
                if at >= size { break }
            }
            prop_assert_eq!(walked, model);
        }
    }
}
