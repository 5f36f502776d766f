//! What the secondary has said ahead of the primary: its bytes by sequence number.

use std::collections::VecDeque;

use crate::packet::{after, earlier, later};

/// The outcome of looking up a range of the primary's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    /// All bytes are there and equal.
    Full,
    /// The first so many bytes are there and equal, the rest is missing.
    Partial(usize),
    /// Some byte differs.
    Differs,
}

#[derive(Debug)]
struct Chunk {
    seq: u32,
    since: i64,
    data: Vec<u8>,
    /// Where in `data` the bytes start.
    from: usize,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.data[self.from..]
    }
    fn end(&self) -> u32 {
        self.seq.wrapping_add((self.data.len() - self.from) as u32)
    }
}

/// Disjoint pieces in sequence order.
#[derive(Debug, Default)]
pub(super) struct Stream {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl Stream {
    /// Adds the bytes `data[from..]`, which start at `seq`. Bytes that are there already must be equal: false if not (a
    /// guest that contradicts itself).
    #[must_use]
    pub fn insert(&mut self, mut seq: u32, data: Vec<u8>, mut from: usize, since: i64) -> bool {
        let end = seq.wrapping_add((data.len() - from) as u32);
        // Nearly always the bytes come in order.
        if self.chunks.back().is_none_or(|last| !after(last.end(), seq)) {
            self.bytes += data.len() - from;
            self.chunks.push_back(Chunk { seq, since, data, from });
            return true;
        }
        let mut index = self.chunks.partition_point(|c| !after(c.end(), seq));
        while seq != end {
            let gap_end = self.chunks.get(index).map_or(end, |c| earlier(end, later(c.seq, seq)));
            let gap = gap_end.wrapping_sub(seq) as usize;
            if gap > 0 {
                self.bytes += gap;
                self.chunks.insert(index, Chunk { seq, since, data: data[from..from + gap].to_vec(), from: 0 });
                index += 1;
                seq = gap_end;
                from += gap;
            }
            let Some(chunk) = self.chunks.get(index).filter(|c| seq != end && !after(c.seq, seq)) else { continue };
            let skip = seq.wrapping_sub(chunk.seq) as usize;
            let known = &chunk.bytes()[skip..];
            let n = known.len().min(data.len() - from);
            if known[..n] != data[from..from + n] {
                return false;
            }
            seq = seq.wrapping_add(n as u32);
            from += n;
            index += 1;
        }
        true
    }

    /// Compares `wanted`, which starts at `seq`.
    pub fn covers(&self, mut seq: u32, mut wanted: &[u8]) -> Coverage {
        let mut done = 0;
        for chunk in &self.chunks {
            if wanted.is_empty() {
                break;
            }
            if !after(chunk.end(), seq) {
                continue;
            }
            if after(chunk.seq, seq) {
                break;
            }
            let known = &chunk.bytes()[seq.wrapping_sub(chunk.seq) as usize..];
            let n = known.len().min(wanted.len());
            if known[..n] != wanted[..n] {
                return Coverage::Differs;
            }
            done += n;
            seq = seq.wrapping_add(n as u32);
            wanted = &wanted[n..];
        }
        if wanted.is_empty() { Coverage::Full } else { Coverage::Partial(done) }
    }

    /// Forgets everything before `seq`.
    pub fn trim(&mut self, seq: u32) {
        while let Some(first) = self.chunks.front_mut() {
            if !after(first.end(), seq) {
                self.bytes -= first.data.len() - first.from;
                self.chunks.pop_front();
                continue;
            }
            if after(seq, first.seq) {
                let n = seq.wrapping_sub(first.seq) as usize;
                first.from += n;
                first.seq = seq;
                self.bytes -= n;
            }
            break;
        }
    }

    /// The end of the last piece.
    pub fn end(&self) -> Option<u32> {
        self.chunks.back().map(Chunk::end)
    }

    /// When the oldest piece came.
    pub fn oldest(&self) -> Option<i64> {
        self.chunks.front().map(|c| c.since)
    }

    pub fn pieces(&self) -> usize {
        self.chunks.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn clear(&mut self) {
        self.chunks.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_cover_across_the_wrap() {
        let text: Vec<u8> = (0..100).collect();
        let base = 0xffff_ffe0u32;
        let cuts = [(50, 100), (0, 10), (5, 30), (20, 60), (0, 100)];
        let mut stream = Stream::default();
        assert!(stream.insert(base.wrapping_add(50), text[50..60].to_vec(), 0, 0));
        for (a, b) in cuts {
            assert!(stream.insert(base.wrapping_add(a as u32), text[a..b].to_vec(), 0, 0), "{a}..{b}");
        }
        assert_eq!(stream.bytes(), 100);
        assert_eq!(stream.covers(base, &text), Coverage::Full);
        assert_eq!(stream.covers(base.wrapping_add(7), &text[7..40]), Coverage::Full);
        stream.trim(base.wrapping_add(33));
        assert_eq!(stream.bytes(), 67);
        assert_eq!(stream.covers(base.wrapping_add(33), &text[33..]), Coverage::Full);
        assert_eq!(stream.covers(base.wrapping_add(30), &text[30..]), Coverage::Partial(0));
    }

    #[test]
    fn a_contradiction_and_a_hole_are_seen() {
        let mut stream = Stream::default();
        assert!(stream.insert(10, b"abc".to_vec(), 0, 0));
        assert!(!stream.insert(11, b"xx".to_vec(), 0, 0));
        assert!(stream.insert(20, b"z".to_vec(), 0, 0));
        assert_eq!(stream.covers(10, b"abcdefghijz"), Coverage::Partial(3));
        assert_eq!(stream.covers(10, b"abd"), Coverage::Differs);
    }
}
