//! XBZRLE: a page as its difference from what the receiver has. Runs of bytes that stay and runs that are new take turns; each is
//! preceded by its length in LEB128.

use super::PAGE;
use lockstep_util::{Result, bail};

/// Applies a difference to a page.
///
/// # Errors
/// When the difference is not well formed or reaches past the page's end; the page may then be half changed.
pub fn apply(mut delta: &[u8], page: &mut [u8; PAGE]) -> Result<()> {
    let mut at = 0;
    while !delta.is_empty() {
        at += run_length(&mut delta)?;
        if at >= PAGE {
            bail!("Failed to load XBZRLE page - decode error!");
        }
        let len = run_length(&mut delta)?;
        if len == 0 || len > delta.len() || len > PAGE - at {
            bail!("Failed to load XBZRLE page - decode error!");
        }
        let (new, rest) = delta.split_at(len);
        page[at..at + len].copy_from_slice(new);
        (at, delta) = (at + len, rest);
    }
    Ok(())
}

/// At most two bytes: 14 bits hold every length within a page.
fn run_length(delta: &mut &[u8]) -> Result<usize> {
    let (len, used) = match **delta {
        [low, ..] if low & 0x80 == 0 => (usize::from(low), 1),
        [low, high, ..] if high & 0x80 == 0 => (usize::from(low & 0x7f) | usize::from(high) << 7, 2),
        _ => bail!("Failed to load XBZRLE page - decode error!"),
    };
    *delta = &delta[used..];
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_take_turns() {
        let mut page = [0xaa; PAGE];
        // 3 stay, 2 new, 300 stay (0xac 0x02), 1 new.
        apply(&[3, 2, 1, 2, 0xac, 0x02, 1, 9], &mut page).unwrap();
        let mut want = [0xaa; PAGE];
        (want[3], want[4], want[305]) = (1, 2, 9);
        assert_eq!(page, want);
    }

    #[test]
    fn what_leaves_the_page_is_refused() {
        for bad in [&[0x80, 0x20, 1, 1][..], &[0, 0], &[0, 5, 1], &[0xff, 0x1f, 2, 1, 1], &[0x80, 0x80, 1], &[0x80]] {
            assert!(apply(bad, &mut [0; PAGE]).is_err(), "{bad:x?}");
        }
    }
}
