//! A keyed permutation of `0..len` that any index can be asked of, in constant memory.
//!
//! Swap-or-not (Hoang, Morris, Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle", figure 1): a round picks a
//! pivot K and pairs each x with K - x mod len; a hash of the pair decides whether the two change places. Each round is
//! an involution on exactly `0..len`, so unlike a Feistel network it needs no cycle walking, and it reaches every
//! permutation even of the smallest sets, where a balanced Feistel network is far from random.
//!
//! **Invariant:** the numbers made here never change, since a resumed run must see the samples of the one that it
//! resumes: a stored value in the tests holds them.

/// A permutation of `0..len`, a pure function of its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    len: u64,
    key: u64,
    rounds: u64,
}

impl Permutation {
    /// `len` is at least 1 and below 2^63.
    pub(crate) fn new(len: u64, key: u64) -> Permutation {
        debug_assert!(len > 0 && len < 1 << 63);
        // Section 4 of the paper: some 6 log2(len) rounds; the constant is for short sets.
        let rounds = 32 + 6 * u64::from(len.ilog2());
        Permutation { len, key, rounds }
    }

    /// Where `index`, below `len`, goes.
    pub(crate) fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.len);
        let mut x = index;
        for round in 0..self.rounds {
            let pivot = below(self.len, stream(self.key, 2 * round));
            let partner = if pivot >= x { pivot - x } else { pivot + (self.len - x) };
            let pair = x.max(partner);
            if mix(stream(self.key, 2 * round + 1) ^ pair) >> 63 == 1 {
                x = partner;
            }
        }
        x
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key of (seed, source, epoch).
pub(crate) fn key(seed: u64, source: u64, epoch: u64) -> u64 {
    [seed, source, epoch].into_iter().fold(0, |hash, word| mix((hash ^ word).wrapping_add(GOLDEN)))
}

/// The value number `counter` of the SplitMix64 generator that starts at `key`.
fn stream(key: u64, counter: u64) -> u64 {
    mix(key.wrapping_add(GOLDEN.wrapping_mul(counter + 1)))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014; Stafford's variant 13).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A random 64-bit word scaled to `0..len`.
fn below(len: u64, word: u64) -> u64 {
    ((u128::from(word) * u128::from(len)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_permutation_is_a_bijection() {
        for len in 1..200 {
            let permutation = Permutation::new(len, key(len, 0, 0));
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                assert!(!std::mem::replace(&mut seen[permutation.apply(index) as usize], true), "{len} {index}");
            }
        }
    }

    #[test]
    fn all_permutations_of_four_come_up_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        let epochs = 24_000;
        for epoch in 0..epochs {
            let permutation = Permutation::new(4, key(7, 3, epoch));
            *counts.entry([0, 1, 2, 3].map(|index| permutation.apply(index))).or_insert(0u64) += 1;
        }
        assert_eq!(counts.len(), 24);
        let expected = epochs as f64 / 24.0;
        let chi2 = counts.values().map(|&count| (count as f64 - expected).powi(2) / expected).sum::<f64>();
        // 23 degrees of freedom: above 49.7 with probability 0.001. The keys are fixed, so this never flickers.
        assert!(chi2 < 49.7, "chi-squared {chi2}");
    }

    #[test]
    fn where_an_index_goes_is_uniform_and_neighbours_part() {
        let len = 1 << 20;
        let permutation = Permutation::new(len, key(1, 0, 0));
        let mut buckets = [0u64; 64];
        let mut near = 0;
        for index in 0..16_384 {
            let here = permutation.apply(index);
            buckets[(here >> 14) as usize] += 1;
            near += u64::from(here.abs_diff(permutation.apply(index + 1)) < 1024);
        }
        let chi2 = buckets.iter().map(|&count| (count as f64 - 256.0).powi(2) / 256.0).sum::<f64>();
        // 63 degrees of freedom: above 103.4 with probability 0.001.
        assert!(chi2 < 103.4, "chi-squared {chi2}");
        // About 16384 * 2048 / 2^20 = 32 pairs are near by chance; 3.5 standard deviations are 20.
        assert!((12..=52).contains(&near), "{near} of 16384 neighbours stay within 1024");
    }

    #[test]
    fn the_numbers_are_those_of_the_first_release() {
        // Made by an independent program from the description at the top of this file.
        let permutation = Permutation::new(10, key(42, 1, 2));
        assert_eq!((0..10).map(|index| permutation.apply(index)).collect::<Vec<_>>(), [0, 2, 3, 7, 8, 4, 6, 9, 1, 5]);
        let permutation = Permutation::new(1 << 40, key(0, 0, 0));
        assert_eq!([0, 1, 1 << 39].map(|index| permutation.apply(index)), [916618445080, 865273141483, 216826837903]);
    }
}
