//! Rotary position embedding.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{FloatsMut, by_type};
use super::vectorize::{Value, mul_add, part_rows, vectorized};
use crate::backend::Outcome;
use crate::ops::RopeShape;

/// See [`crate::Backend::rope`].
///
/// # Errors
/// Lengths that do not fit, a part to rotate that is odd or does not lie in the head, sequences that are not whole.
pub(crate) fn rope(isa: Isa, shape: RopeShape, table: &[f32], x: FloatsMut<'_>) -> Outcome {
    let at = Refusal("rope");
    let RopeShape { tokens, seq_len, heads, head_dim, rotary_start, rotary_dim, .. } = shape;
    at.shape(rotary_dim.is_multiple_of(2), || format!("rotary_dim = {rotary_dim} is odd; rotate pairs"))?;
    at.shape(rotary_start.saturating_add(rotary_dim) <= head_dim, || {
        format!("rotary_start = {rotary_start} and rotary_dim = {rotary_dim} exceed head_dim = {head_dim}")
    })?;
    at.shape(tokens.checked_rem(seq_len).unwrap_or(tokens) == 0, || {
        format!("tokens = {tokens} is not a multiple of seq_len = {seq_len}; give whole sequences")
    })?;
    at.length("table", table.len(), seq_len.saturating_mul(rotary_dim))?;
    at.length("x", x.len(), tokens.saturating_mul(heads).saturating_mul(head_dim))?;
    if x.len() > 0 && rotary_dim > 0 {
        by_type!(rotate(isa, shape, table, x); FloatsMut x);
    }
    Ok(())
}

fn rotate<X: Value>(isa: Isa, shape: RopeShape, table: &[f32], x: &mut [X]) {
    let width = shape.heads * shape.head_dim;
    let part = part_rows(width);
    let parts = x.par_chunks_mut(part * width).enumerate();
    parts.for_each(|(i, x)| rotate_part(isa, shape, i * part, table, x));
}

vectorized! {
    /// Tokens from `first` on.
    fn rotate_part<const FMA: bool, X: Value>(
        isa: Isa,
        shape: RopeShape,
        first: usize,
        table: &[f32],
        x: &mut [X],
    ) {
        let RopeShape { seq_len, heads, head_dim, rotary_start, rotary_dim, interleaved, inverse, .. } = shape;
        let (mut cos, mut sin) = (vec![0.0_f32; rotary_dim / 2], vec![0.0_f32; rotary_dim / 2]);
        for (token, x) in (first..).zip(x.chunks_exact_mut(heads * head_dim)) {
            // All heads of a token turn by the same angles: they are parted into cosines and sines once.
            let (angles, _) = table[token % seq_len * rotary_dim..][..rotary_dim].as_chunks::<2>();
            for ((cos, sin), angle) in cos.iter_mut().zip(&mut sin).zip(angles) {
                (*cos, *sin) = (angle[0], if inverse { -angle[1] } else { angle[1] });
            }
            for x in x.chunks_exact_mut(head_dim) {
                let x = &mut x[rotary_start..rotary_start + rotary_dim];
                if interleaved {
                    let (pairs, _) = x.as_chunks_mut::<2>();
                    for ((pair, cos), sin) in pairs.iter_mut().zip(&cos).zip(&sin) {
                        let [a, b] = [pair[0].widen(), pair[1].widen()];
                        *pair = turn::<FMA>(a, b, *cos, *sin).map(X::round);
                    }
                } else {
                    let (a, b) = x.split_at_mut(rotary_dim / 2);
                    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(&cos).zip(&sin) {
                        [*a, *b] = turn::<FMA>(a.widen(), b.widen(), *cos, *sin).map(X::round);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn turn<const FMA: bool>(a: f32, b: f32, cos: f32, sin: f32) -> [f32; 2] {
    [mul_add::<FMA>(a, cos, -(b * sin)), mul_add::<FMA>(b, cos, a * sin)]
}
