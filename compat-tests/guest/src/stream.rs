//! The byte stream of bulk transfers: any part of it can be made, and checked, from its seed and offset.
use crate::cpu::mix;

/// Fills `part` with the bytes from `offset` on of the stream of `seed`: little-endian words, word k being `mix(seed + k)`.
pub fn fill(seed: u64, offset: u64, part: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let mut word = offset / 8;
    let head = if skip == 0 { 0 } else { (8 - skip).min(part.len()) };
    let (head, rest) = part.split_at_mut(head);
    if !head.is_empty() {
        head.copy_from_slice(&mix(seed.wrapping_add(word)).to_le_bytes()[skip..skip + head.len()]);
        word += 1;
    }
    let (words, tail) = rest.as_chunks_mut::<8>();
    for target in words {
        *target = mix(seed.wrapping_add(word)).to_le_bytes();
        word += 1;
    }
    let tail_length = tail.len();
    tail.copy_from_slice(&mix(seed.wrapping_add(word)).to_le_bytes()[..tail_length]);
}
