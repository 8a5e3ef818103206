//! Which source a sample is taken from: exact shares, for any sample index, without counting from the first.
//!
//! The sources are the leaves of a binary tree. A node that has been asked k times has sent `round(k * left / whole)` of
//! these to its left child and the others to its right one, in integers, so its split is never more than half a sample
//! off the weights, and the k-th sample finds its way down by two roundings per level. The tree is Huffman's: a node's
//! uncle weighs no less than the node, so two levels up the weight has at least doubled, and the half samples that a
//! source inherits from above sum to less than 1/2 * (1 + 1 + 1/2 + 1/2 + 1/4 + ...) = 2. So **over any prefix of
//! samples every source is within two of its share**. Picking the source with the largest deficit comes within one, but
//! has to count from the first sample, or keep a table as long as the precision of the weights.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The largest weight becomes this integer, the others in proportion: shares are exact to 2^-40 of it.
const SCALE: f64 = (1u64 << 40) as f64;

/// Shares of a few sources.
#[derive(Clone, Debug)]
pub(crate) struct Blend {
    nodes: Vec<Node>,
    root: usize,
}

#[derive(Clone, Copy, Debug)]
enum Node {
    Source(usize),
    Split { left: usize, right: usize, left_weight: u64, weight: u64 },
}

impl Blend {
    /// A blend by weights that [`weight_rule`] accepts; there is at least one.
    pub(crate) fn new(weights: &[f64]) -> Blend {
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let mut nodes = Vec::with_capacity(2 * weights.len());
        let mut heap = BinaryHeap::with_capacity(weights.len());
        for (source, weight) in weights.iter().enumerate() {
            nodes.push(Node::Source(source));
            heap.push(Reverse(((weight / largest * SCALE).round() as u64, source)));
        }
        let mut root = 0;
        while let Some(Reverse((left_weight, left))) = heap.pop() {
            root = left;
            if let Some(Reverse((right_weight, right))) = heap.pop() {
                let weight = left_weight + right_weight;
                heap.push(Reverse((weight, nodes.len())));
                nodes.push(Node::Split { left, right, left_weight, weight });
            }
        }
        Blend { nodes, root }
    }

    /// The source of a sample, and how many samples were taken from that source before it.
    pub(crate) fn pick(&self, sample: u64) -> (usize, u64) {
        let mut nth = sample;
        let mut node = self.root;
        loop {
            match self.nodes[node] {
                Node::Source(source) => return (source, nth),
                Node::Split { left, right, left_weight, weight } => {
                    let before = share(nth.into(), left_weight, weight);
                    let after = share(u128::from(nth) + 1, left_weight, weight);
                    (node, nth) = if after > before { (left, before) } else { (right, nth - before) };
                }
            }
        }
    }
}

/// `round(count * part / whole)`; it grows by 0 or 1 with each count since part < whole.
fn share(count: u128, part: u64, whole: u64) -> u64 {
    let whole = u128::from(whole);
    ((count * u128::from(part) + whole / 2) / whole) as u64
}

/// What is wrong with a weight beside the largest of its blend; `None` if nothing is.
pub(crate) fn weight_rule(weight: f64, largest: f64) -> Option<&'static str> {
    if !(weight.is_finite() && weight > 0.0) {
        Some("a weight is a finite number above 0; leave out a source that is not wanted")
    } else if (weight / largest * SCALE).round() < 1.0 {
        Some("it vanishes beside the largest weight (below 2^-41 of it); raise it or leave the source out")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_source_takes_every_sample() {
        let blend = Blend::new(&[0.3]);
        for sample in [0, 1, 7, u64::MAX] {
            assert_eq!(blend.pick(sample), (0, sample));
        }
    }

    #[test]
    fn equal_weights_alternate_and_unequal_ones_keep_their_shares() {
        let sources = |weights: &[f64], count| {
            let blend = Blend::new(weights);
            (0..count).map(|sample| blend.pick(sample).0).collect::<Vec<_>>()
        };
        assert_eq!(sources(&[1.0, 1.0], 6), [0, 1, 0, 1, 0, 1]);
        assert_eq!(sources(&[3.0, 1.0], 8).iter().filter(|&&source| source == 1).count(), 2);
        let picks = sources(&[5.0, 3.0, 2.0], 1000);
        assert_eq!([0, 1, 2].map(|source| picks.iter().filter(|&&s| s == source).count()), [500, 300, 200]);
    }

    #[test]
    fn weights_that_are_no_shares_are_refused() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-13] {
            assert!(weight_rule(bad, 1.0).is_some(), "{bad}");
        }
        assert!(weight_rule(1e-12, 1.0).is_none());
    }

    #[test]
    fn the_last_sample_indices_do_not_overflow() {
        let blend = Blend::new(&[1e-12, 1.0, 1e-12]);
        let (source, nth) = blend.pick(u64::MAX);
        assert!(source < 3 && nth < u64::MAX);
    }

    proptest! {
        #[test]
        fn any_prefix_has_every_source_within_two_of_its_share_and_numbers_its_samples_in_order(
            exponents in prop::collection::vec(-12.0f64..0.0, 1..24),
        ) {
            let weights = exponents.iter().map(|exponent| exponent.exp()).collect::<Vec<_>>();
            let total = weights.iter().sum::<f64>();
            let blend = Blend::new(&weights);
            let mut counts = vec![0u64; weights.len()];
            for sample in 0..4000 {
                let (source, nth) = blend.pick(sample);
                prop_assert_eq!(nth, counts[source]);
                counts[source] += 1;
                for (count, weight) in counts.iter().zip(&weights) {
                    let off = *count as f64 - weight / total * (sample + 1) as f64;
                    prop_assert!(off.abs() < 2.0, "{off} after {sample} of {weights:?}");
                }
            }
        }

        #[test]
        fn shares_hold_far_from_the_first_sample(
            weights in prop::collection::vec(0.01f64..1.0, 2..9), first in 0..1u64 << 50,
        ) {
            let blend = Blend::new(&weights);
            let total = weights.iter().sum::<f64>();
            let mut counts = vec![0u64; weights.len()];
            for sample in first..first + 2000 {
                counts[blend.pick(sample).0] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let off = *count as f64 - weight / total * 2000.0;
                prop_assert!(off.abs() < 4.0, "{off} of {weights:?}");
            }
        }
    }
}
