//! Who is right when copies differ: the pure part of quorum reads.

/// Versions of one piece of data, grouped by content.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Index of the copy to believe, if a group is large enough.
    pub winner: Option<usize>,
    /// Indices of copies that differ from the winner (or all voters if there is none).
    pub losers: Vec<usize>,
}

/// Votes among the copies that could be read (`(index, content)`). The largest group of equal copies wins if it has at
/// least `threshold` members; of equally large groups the one with the copy that comes first.
pub fn vote<T: AsRef<[u8]>>(copies: &[(usize, T)], threshold: usize) -> Verdict {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (at, (_, content)) in copies.iter().enumerate() {
        let equal = |group: &&mut Vec<usize>| copies[group[0]].1.as_ref() == content.as_ref();
        match groups.iter_mut().find(equal) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    let largest = groups.iter().map(Vec::len).max().unwrap_or(0);
    let Some(best) = groups.iter().find(|g| g.len() == largest && largest >= threshold.max(1)) else {
        return Verdict { winner: None, losers: copies.iter().map(|(i, _)| *i).collect() };
    };
    let losers = (0..copies.len()).filter(|at| !best.contains(at)).map(|at| copies[at].0).collect();
    Verdict { winner: Some(copies[best[0]].0), losers }
}

/// The error most children had; of equally frequent ones the one that came first.
pub fn vote_errno(errors: &[i32]) -> i32 {
    let count = |e: i32| errors.iter().filter(|x| **x == e).count();
    let most = errors.iter().map(|e| count(*e)).max().unwrap_or(0);
    errors.iter().copied().find(|e| count(*e) == most).unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_winner_has_the_most_equals_and_at_least_the_threshold(
            contents in prop::collection::vec(0u8..4, 1..8), threshold in 1usize..6,
        ) {
            let copies: Vec<_> = contents.iter().map(|c| vec![*c; 3]).enumerate().collect();
            let verdict = vote(&copies, threshold);
            let count = |c: u8| contents.iter().filter(|x| **x == c).count();
            let most = contents.iter().map(|c| count(*c)).max().unwrap();
            match verdict.winner {
                Some(w) => {
                    prop_assert!(most >= threshold);
                    prop_assert_eq!(count(contents[w]), most);
                    let losers: Vec<_> = (0..contents.len()).filter(|i| contents[*i] != contents[w]).collect();
                    prop_assert_eq!(verdict.losers, losers);
                }
                None => {
                    prop_assert!(most < threshold);
                    prop_assert_eq!(verdict.losers.len(), contents.len());
                }
            }
        }
    }

    #[test]
    fn the_most_frequent_error_is_reported() {
        assert_eq!(vote_errno(&[libc::EIO, libc::ENOSPC, libc::ENOSPC]), libc::ENOSPC);
        assert_eq!(vote_errno(&[]), libc::EIO);
    }
}
