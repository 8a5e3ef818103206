//! How far a backend may be from the exact result, and why.
//!
//! Inputs are rounded to their element type before either side sees them, so a difference is made of two parts only:
//! the rounding of the computation, which is f32 whatever the element type, and the rounding of what is stored. Errors
//! are relative 2-norms over an output.

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
    /// The relative error that the computation may make before its result is stored.
    Computed(f64),
}

impl Tolerance {
    /// A fixed number of f32 operations in a row, library functions such as `exp` counted by the units of last place
    /// that they may lose.
    pub(super) fn operations(count: f64) -> Self {
        Self::Computed(count * F32)
    }

    /// A sum of `terms` products in f32. Rounding errors of a sum add up like a random walk, so its error grows with
    /// the root of its length; 4 leaves room for cancellation, 16 for short sums.
    pub(super) fn sum(terms: usize) -> Self {
        Self::Computed(4.0 * F32 * (terms as f64 + 16.0).sqrt())
    }

    /// The largest relative error of an output stored as `element`, that should be `want`.
    ///
    /// Rounding to nearest loses at most one unit roundoff, and over many elements 0.43 of it in the root mean square;
    /// truncation would lose 0.82. Long bf16 outputs are therefore held to a little more than one half, "long" being
    /// the number of elements that make up the norm: `(sum of squares)² / sum of fourth powers`.
    pub(super) fn bound(self, element: Element, want: &[f64]) -> f64 {
        let Self::Computed(computed) = self else { return 0.0 };
        let stored = match element {
            Element::F32 => F32,
            Element::Bf16 => {
                let squares: f64 = want.iter().map(|w| w.powi(2)).sum();
                let fourths: f64 = want.iter().map(|w| w.powi(4)).sum();
                let count = squares * squares / fourths.max(f64::MIN_POSITIVE);
                BF16 * (0.5 + 1.2 / count.max(1.0).sqrt()).min(1.0)
            }
            Element::U32 => 0.0,
        };
        computed + stored
    }
}
