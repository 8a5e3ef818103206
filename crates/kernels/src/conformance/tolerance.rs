//! How far a backend may be from the exact result, and why.
//!
//! Inputs are rounded to their element type before either side sees them, so a difference is made of two parts only:
//! the rounding of the computation, which is f32 whatever the element type, and the rounding of what is stored. Errors
//! are relative 2-norms over an output.

use super::compare::norm;
use crate::buffer::Element;

/// Unit roundoff of f32: half of the distance between neighbours, relative.
pub(super) const F32: f64 = 1.0 / 16_777_216.0;

/// Unit roundoff of bfloat16, which keeps 8 bits of a number.
pub(super) const BF16: f64 = 1.0 / 256.0;

/// What an output is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tolerance {
    /// Nothing is computed: every bit as the reference has it.
    Exact,
    /// The error that the computation may make before its result is stored.
    Computed {
        /// Relative to the result.
        relative: f64,
        /// Or relative to this, for each element, if that is more: the size of the terms whose sum the result is. A few
        /// sums may by chance all come out near zero, but their errors do not.
        terms: f64,
    },
}

impl Tolerance {
    /// A fixed number of f32 operations in a row, library functions such as `exp` counted by the units of last place
    /// that they may lose.
    pub(super) fn operations(count: f64) -> Self {
        Self::relative(count * F32)
    }

    /// A sum of `terms` products in f32. Rounding errors of a sum add up like a random walk, so its error grows with
    /// the root of its length; 4 leaves room for cancellation, 16 for short sums.
    pub(super) fn sum(terms: usize) -> Self {
        Self::relative(4.0 * F32 * (terms as f64 + 16.0).sqrt())
    }

    /// As [`Self::sum`], of products of standard normal numbers.
    pub(super) fn products(terms: usize) -> Self {
        Self::sum(terms).of_terms((terms as f64).sqrt())
    }

    /// An error relative to the result.
    pub(super) fn relative(relative: f64) -> Self {
        Self::Computed { relative, terms: 0.0 }
    }

    /// The terms of each result have this size, whatever their sum is.
    pub(super) fn of_terms(self, terms: f64) -> Self {
        match self {
            Self::Exact => Self::Exact,
            Self::Computed { relative, .. } => Self::Computed { relative, terms },
        }
    }

    /// The relative error of storing `want` as `element`.
    ///
    /// Rounding to nearest loses at most one unit roundoff, and over many elements 0.43 of it in the root mean square;
    /// truncation would lose 0.82. Long bf16 outputs are therefore held to a little more than one half, "long" being
    /// the number of elements that make up the norm: `(sum of squares)² / sum of fourth powers`.
    fn stored(element: Element, want: &[f64]) -> f64 {
        match element {
            Element::F32 => F32,
            Element::Bf16 => {
                let squares: f64 = want.iter().map(|w| w.powi(2)).sum();
                let fourths: f64 = want.iter().map(|w| w.powi(4)).sum();
                let count = squares * squares / fourths.max(f64::MIN_POSITIVE);
                BF16 * (0.5 + 1.2 / count.max(1.0).sqrt()).min(1.0)
            }
            Element::U32 => 0.0,
        }
    }

    /// How far, in the 2-norm, a result may be from `want`, stored as `element`; `before` is what it was added to.
    pub(super) fn distance(self, element: Element, want: &[f64], before: &[f64]) -> f64 {
        let Self::Computed { relative, terms } = self else { return 0.0 };
        let terms = terms * (want.len() as f64).sqrt();
        relative * (norm(want) + norm(before)).max(terms) + Self::stored(element, want) * norm(want)
    }
}
