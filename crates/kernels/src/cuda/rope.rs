//! Rotary position embedding.

use super::arguments::{Arguments, In, Out, elements};
use super::compile::{Kernel, Source};
use super::launch::Grid;
use crate::backend::Outcome;
use crate::ops::RopeShape;

pub(super) static SOURCE: Source = Source { file: "rope.cu", text: include_str!("rope.cu"), kernels: &[&ROPE] };
static ROPE: Kernel = Kernel { source: &SOURCE, name: "rope", types: 1 };

pub(super) fn rope(at: Arguments<'_>, shape: RopeShape, table: In<'_>, x: Out<'_>) -> Outcome {
    let RopeShape { tokens, seq_len, heads, head_dim, rotary_start, rotary_dim, interleaved, inverse } = shape;
    at.shape(rotary_dim.is_multiple_of(2), || format!("rotary_dim = {rotary_dim} is odd; rotate pairs"))?;
    at.shape(rotary_start.saturating_add(rotary_dim) <= head_dim, || {
        format!("rotary_start = {rotary_start} and rotary_dim = {rotary_dim} exceed head_dim = {head_dim}; rotate less")
    })?;
    at.shape(tokens.checked_rem(seq_len).unwrap_or(tokens) == 0, || {
        format!("tokens = {tokens} is not a multiple of seq_len = {seq_len}; give whole sequences")
    })?;
    let table = at.f32s("table", table, elements([seq_len, rotary_dim]))?;
    let x = at.floats("x", &x, elements([tokens, heads, head_dim]))?;
    let half = rotary_dim / 2;
    let pairs = elements([heads, half]);
    at.shape(pairs <= i32::MAX as usize, || format!("heads = {heads} of {half} pairs are too many; use fewer"))?;
    if tokens == 0 || pairs == 0 {
        return Ok(());
    }
    let arguments = [
        seq_len.into(),
        heads.into(),
        head_dim.into(),
        rotary_start.into(),
        half.into(),
        interleaved.into(),
        inverse.into(),
        table.into(),
        x.into(),
    ];
    // SAFETY: a block for each token, which x has `heads * head_dim` values of; the rotated part lies inside a head, and
    // the table has `seq_len` rows of `half` pairs.
    unsafe { at.1.launch(&ROPE, &[x.element], Grid::rows(at.0, tokens, pairs)?, &arguments) }
}
