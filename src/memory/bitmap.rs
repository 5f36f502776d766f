//! A bitmap with one bit a page, set from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit a page. Setting is lock-free; taking returns and clears whole words.
pub struct DirtyBitmap {
    words: Vec<AtomicU64>,
    pages: u64,
}

impl DirtyBitmap {
    /// A bitmap of `pages` clear bits.
    pub fn new(pages: u64) -> Self {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, pages }
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of 64-page words.
    pub fn words(&self) -> usize {
        self.words.len()
    }

    /// Sets the bits of `count` pages from `first` on; those outside are passed over.
    pub fn set(&self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.pages);
        let mut page = first;
        while page < end {
            let (word, bit) = ((page / 64) as usize, page % 64);
            let n = (64 - bit).min(end - page);
            let mask = if n == 64 { u64::MAX } else { ((1 << n) - 1) << bit };
            // Most writes hit pages that are dirty already: a load is cheaper than a locked write.
            if self.words[word].load(Ordering::Relaxed) & mask != mask {
                self.words[word].fetch_or(mask, Ordering::Release);
            }
            page += n;
        }
    }

    /// Sets the bits of a word that are set in `bits`.
    pub fn merge_word(&self, word: usize, bits: u64) {
        let valid = match self.pages - (word as u64 * 64).min(self.pages) {
            0 => return,
            n if n >= 64 => u64::MAX,
            n => (1 << n) - 1,
        };
        self.words[word].fetch_or(bits & valid, Ordering::Release);
    }

    /// Whether a page's bit is set.
    pub fn get(&self, page: u64) -> bool {
        page < self.pages && self.words[(page / 64) as usize].load(Ordering::Acquire) >> (page % 64) & 1 != 0
    }

    /// Clears a page's bit and says whether it was set.
    pub fn take(&self, page: u64) -> bool {
        let mask = 1 << (page % 64);
        page < self.pages && self.words[(page / 64) as usize].fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Clears 64 bits and returns what they were.
    pub fn take_word(&self, word: usize) -> u64 {
        match self.words[word].load(Ordering::Relaxed) {
            0 => 0,
            _ => self.words[word].swap(0, Ordering::AcqRel),
        }
    }

    /// 64 bits as they are.
    pub fn word(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Acquire)
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Clears all bits.
    pub fn clear(&self) {
        self.words.iter().for_each(|w| w.store(0, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_words_and_stop_at_the_end() {
        let b = DirtyBitmap::new(130);
        b.set(60, 10);
        b.set(128, 99);
        b.set(500, 1);
        let set: Vec<_> = (0..140).filter(|&p| b.get(p)).collect();
        assert_eq!(set, (60..70).chain(128..130).collect::<Vec<_>>());
        assert_eq!(b.count(), 12);
        assert!(b.take(60) && !b.take(60));
        assert_eq!((b.take_word(2), b.take_word(2)), (3, 0));
    }

    #[test]
    fn merging_keeps_bits_past_the_end_clear() {
        let b = DirtyBitmap::new(70);
        b.merge_word(1, u64::MAX);
        assert_eq!((b.count(), b.word(1)), (6, 0x3f));
    }
}
