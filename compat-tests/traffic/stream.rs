//! The byte stream of bulk transfers; `guest/src/stream.rs` makes the same.

/// Fills `part` with the bytes from `offset` on of the stream of `seed`: little-endian words, word k mixed from `seed + k`.
pub fn fill(seed: u64, offset: u64, part: &mut [u8]) {
    let mut at = offset;
    let mut rest = part;
    while !rest.is_empty() {
        let skip = (at % 8) as usize;
        let count = (8 - skip).min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&mix(seed.wrapping_add(at / 8)).to_le_bytes()[skip..skip + count]);
        at += count as u64;
        rest = later;
    }
}

/// The output function of splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Checks that `part` is what the stream has at `offset`.
///
/// # Errors
/// The offset of the first byte that differs.
pub fn check(seed: u64, offset: u64, part: &[u8]) -> Result<(), u64> {
    let mut expected = vec![0; part.len()];
    fill(seed, offset, &mut expected);
    match part.iter().zip(&expected).position(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some(at) => Err(offset + at as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_the_stream_can_be_made_alone() {
        let mut whole = [0; 100];
        fill(7, 0, &mut whole);
        for start in 0..40 {
            for length in 0..60 {
                assert_eq!(check(7, start, &whole[start as usize..start as usize + length]), Ok(()));
            }
        }
        whole[33] ^= 1;
        assert_eq!(check(7, 20, &whole[20..50]), Err(33));
    }
}
