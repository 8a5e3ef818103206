//! Rotary position embedding.

use bytemuck::{cast_slice, cast_slice_mut};
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
        // All heads of a token turn by the same angles: they are laid out as the values meet them, once.
        let angles_len = if interleaved { rotary_dim } else { rotary_dim / 2 };
        let (mut cos, mut sin) = (vec![0.0_f32; angles_len], vec![0.0_f32; angles_len]);
        let (mut own, mut other) = (vec![0_u64; rotary_dim / 2], vec![0_u64; rotary_dim / 2]);
        for (token, x) in (first..).zip(x.chunks_exact_mut(heads * head_dim)) {
            let (angles, _) = table[token % seq_len * rotary_dim..][..rotary_dim].as_chunks::<2>();
            for (i, [c, s]) in angles.iter().enumerate() {
                let s = if inverse { -*s } else { *s };
                if interleaved {
                    (cos[2 * i], cos[2 * i + 1]) = (*c, *c);
                    (sin[2 * i], sin[2 * i + 1]) = (-s, s);
                } else {
                    (cos[i], sin[i]) = (*c, s);
                }
            }
            for x in x.chunks_exact_mut(head_dim) {
                let x = &mut x[rotary_start..rotary_start + rotary_dim];
                if interleaved {
                    turn_neighbours::<FMA, X>(x, &cos, &sin, &mut own, &mut other);
                } else {
                    turn_halves::<FMA, X>(x, &cos, &sin);
                }
            }
        }
    }
}

/// Each value of the first half with its like in the second.
#[inline(always)]
fn turn_halves<const FMA: bool, X: Value>(x: &mut [X], cos: &[f32], sin: &[f32]) {
    let (a, b) = x.split_at_mut(cos.len());
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let [x, y] = [a.widen(), b.widen()];
        *a = X::round(mul_add::<FMA>(x, *cos, -(y * *sin)));
        *b = X::round(mul_add::<FMA>(y, *cos, x * *sin));
    }
}

/// Each value with its neighbour; the sines of the first of two are negated. `own` and `other` are room for as many pairs.
///
/// Neighbours as loops over pairs would be gathered one by one: here two halves of a word swap places instead.
#[inline(always)]
fn turn_neighbours<const FMA: bool, X: Value>(
    x: &mut [X],
    cos: &[f32],
    sin: &[f32],
    own: &mut [u64],
    other: &mut [u64],
) {
    for (own, x) in cast_slice_mut::<u64, f32>(own).iter_mut().zip(&*x) {
        *own = x.widen();
    }
    for (other, own) in other.iter_mut().zip(&*own) {
        *other = own.rotate_left(32);
    }
    let (own, other) = (cast_slice::<u64, f32>(own), cast_slice::<u64, f32>(other));
    for ((((x, own), other), cos), sin) in x.iter_mut().zip(own).zip(other).zip(cos).zip(sin) {
        *x = X::round(mul_add::<FMA>(*own, *cos, *other * *sin));
    }
}
