//! The flat view: a tree rendered into ranges that do not overlap.

use std::sync::Arc;

use crate::{
    IoHandler, RamBlock,
    region::{Kind, Region},
};

/// What answers in a range.
#[derive(Clone)]
pub enum FlatTarget {
    /// Memory, from this offset of the block on.
    Ram {
        /// The block.
        block: RamBlock,
        /// Offset of the range's first byte in the block.
        offset: u64,
        /// Whether the guest's writes are ignored.
        readonly: bool,
    },
    /// Registers, from this offset of the region on.
    Io {
        /// The device.
        handler: Arc<dyn IoHandler>,
        /// Offset of the range's first byte in the region.
        offset: u64,
    },
}

/// A range of addresses with one target.
#[derive(Clone)]
pub struct FlatRange {
    /// First address.
    pub start: u64,
    /// Last address, inclusive.
    pub last: u64,
    /// Name of the region.
    pub name: Arc<str>,
    /// What answers.
    pub target: FlatTarget,
}

impl FlatRange {
    /// Length in bytes, less one (a range may be the whole space).
    pub fn len_minus_1(&self) -> u64 {
        self.last - self.start
    }

    fn continues(&self, next: &Self) -> bool {
        let distance = next.start.wrapping_sub(self.start);
        self.last.checked_add(1) == Some(next.start)
            && match (&self.target, &next.target) {
                (
                    FlatTarget::Ram { block: a, offset: x, readonly: r },
                    FlatTarget::Ram { block: b, offset: y, readonly: s },
                ) => a.same(b) && r == s && x.wrapping_add(distance) == *y,
                (FlatTarget::Io { handler: a, offset: x }, FlatTarget::Io { handler: b, offset: y }) => {
                    Arc::ptr_eq(a, b) && x.wrapping_add(distance) == *y
                }
                _ => false,
            }
    }
}

/// Ranges sorted by address, without overlaps. Where none is, nothing answers.
#[derive(Clone, Default)]
pub struct FlatView {
    ranges: Vec<FlatRange>,
}

impl FlatView {
    /// Renders a tree.
    pub fn render(root: &Region) -> Self {
        let mut pieces = vec![];
        let base = -i128::from(root.address());
        render(root, base, (0, 1 << 64), false, &mut pieces, 0);
        let mut ranges: Vec<FlatRange> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match ranges.last_mut() {
                Some(last) if last.continues(&piece) => last.last = piece.last,
                _ => ranges.push(piece),
            }
        }
        Self { ranges }
    }

    /// All ranges.
    pub fn ranges(&self) -> &[FlatRange] {
        &self.ranges
    }

    /// The range that an address is in.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&FlatRange> {
        let at = self.ranges.partition_point(|r| r.last < address);
        self.ranges.get(at).filter(|r| r.start <= address)
    }

    /// The first range that ends at or after an address.
    pub fn find_next(&self, address: u64) -> Option<&FlatRange> {
        self.ranges.get(self.ranges.partition_point(|r| r.last < address))
    }
}

/// Adds to `view` what `region` shows inside `clip` (first address, end) where nothing of higher precedence is yet.
/// `base` is where the region's container begins.
fn render(region: &Region, base: i128, clip: (i128, i128), readonly: bool, view: &mut Vec<FlatRange>, depth: usize) {
    let inner = &region.inner;
    let (start, size, readonly, children) = {
        let state = inner.state.lock();
        // A loop of aliases would not end: no machine nests this deep.
        if !state.enabled || depth > 32 {
            return;
        }
        let start = base + i128::from(state.address);
        (start, state.size as i128, readonly || state.readonly, state.children.clone())
    };
    let clip = (clip.0.max(start), clip.1.min(start + size));
    if clip.0 >= clip.1 {
        return;
    }
    if let Kind::Alias { target, offset } = &inner.kind {
        let base = start - i128::from(target.address()) - i128::from(*offset);
        return render(target, base, clip, readonly, view, depth + 1);
    }
    for (_, child) in &children {
        render(child, start, clip, readonly, view, depth + 1);
    }
    let target_at = |address: i128| {
        let offset = (address - start) as u64;
        match &inner.kind {
            Kind::Ram(block) => Some(FlatTarget::Ram { block: block.clone(), offset, readonly }),
            Kind::Io(handler) => Some(FlatTarget::Io { handler: handler.clone(), offset }),
            Kind::Container | Kind::Alias { .. } => None,
        }
    };
    if target_at(clip.0).is_none() {
        return;
    }
    let name: Arc<str> = inner.name.as_str().into();
    let mut at = clip.0;
    let mut index = view.partition_point(|r| i128::from(r.last) < at);
    while at < clip.1 {
        let next_taken = view.get(index).map_or(i128::MAX, |r| i128::from(r.start));
        if next_taken > at {
            let end = next_taken.min(clip.1);
            if let Some(target) = target_at(at) {
                view.insert(index, FlatRange { start: at as u64, last: (end - 1) as u64, name: name.clone(), target });
            }
            at = end;
        } else {
            at = i128::from(view[index].last) + 1;
        }
        index += 1;
    }
}
