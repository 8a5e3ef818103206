//! Rotary position embedding.

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::ops::RopeShape;

pub(super) fn rope(shape: RopeShape, table: In<'_>, x: Out<'_>) -> Outcome {
    let at = Arguments("rope");
    let RopeShape { tokens, seq_len, heads, head_dim, rotary_start, rotary_dim, interleaved, inverse } = shape;
    at.shape(rotary_dim.is_multiple_of(2), || format!("rotary_dim = {rotary_dim} is odd; rotate pairs"))?;
    at.shape(rotary_start.saturating_add(rotary_dim) <= head_dim, || {
        format!("rotary_start = {rotary_start} and rotary_dim = {rotary_dim} exceed head_dim = {head_dim}")
    })?;
    at.shape(tokens.checked_rem(seq_len).unwrap_or(tokens) == 0, || {
        format!("tokens = {tokens} is not a multiple of seq_len = {seq_len}; give whole sequences")
    })?;
    let table = at.f32s("table", table, elements([seq_len, rotary_dim]))?;
    let x = at.floats_mut("x", x, elements([tokens, heads, head_dim]))?;

    let half = rotary_dim / 2;
    for token in 0..tokens {
        for head in 0..heads {
            let start = (token * heads + head) * head_dim + rotary_start;
            for pair in 0..half {
                let (first, second) = if interleaved {
                    (start + 2 * pair, start + 2 * pair + 1)
                } else {
                    (start + pair, start + pair + half)
                };
                let angle = ((token % seq_len) * half + pair) * 2;
                let (cos, sin) = (table[angle], if inverse { -table[angle + 1] } else { table[angle + 1] });
                (x[first], x[second]) = (x[first] * cos - x[second] * sin, x[second] * cos + x[first] * sin);
            }
        }
    }
    Ok(())
}
