//! RMSNorm.

use super::arguments::{Arguments, In, Out, elements};
use super::buffer::CudaBuffer;
use super::columns::{add_chunks, chunks};
use super::compile::{Kernel, Source};
use super::launch::{Grid, Value};
use crate::backend::Outcome;
use crate::buffer::Element;
use crate::ops::RmsNorm;

pub(super) static SOURCE: Source =
    Source { file: "norm.cu", text: include_str!("norm.cu"), kernels: &[&FORWARD, &BACKWARD_INPUT, &BACKWARD_WEIGHT] };
static FORWARD: Kernel = Kernel { source: &SOURCE, name: "rms_norm_forward", types: 2 };
static BACKWARD_INPUT: Kernel = Kernel { source: &SOURCE, name: "rms_norm_backward_input", types: 3 };
static BACKWARD_WEIGHT: Kernel = Kernel { source: &SOURCE, name: "rms_norm_backward_weight", types: 2 };

pub(super) fn forward(
    at: Arguments<'_>,
    shape: RmsNorm,
    x: In<'_>,
    weight: In<'_>,
    y: Out<'_>,
    inverse_rms: Out<'_>,
) -> Outcome {
    let RmsNorm { rows, width, eps, accumulate } = shape;
    at.shape(width > 0, || "width is 0; a row needs at least one value".to_owned())?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let weight = at.f32s("weight", weight, width)?;
    let y = at.floats("y", &y, elements([rows, width]))?;
    let inverse_rms = at.f32s("inverse_rms", &inverse_rms, rows)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments = [
        width.into(),
        Value::F32(eps as f32),
        accumulate.into(),
        x.into(),
        weight.into(),
        y.into(),
        inverse_rms.into(),
    ];
    // SAFETY: a block for each of `rows`, which x and y have of `width`; weight has `width` values, inverse_rms `rows`.
    unsafe { at.1.launch(&FORWARD, &[x.element, y.element], Grid::rows(at.0, rows, width)?, &arguments) }
}

pub(super) fn backward(
    at: Arguments<'_>,
    shape: RmsNorm,
    dy: In<'_>,
    x: In<'_>,
    weight: In<'_>,
    inverse_rms: In<'_>,
    dx: Out<'_>,
    d_weight: Out<'_>,
) -> Outcome {
    let RmsNorm { rows, width, accumulate, .. } = shape;
    at.shape(width > 0, || "width is 0; a row needs at least one value".to_owned())?;
    let dy = at.floats("dy", dy, elements([rows, width]))?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let weight = at.f32s("weight", weight, width)?;
    let inverse_rms = at.f32s("inverse_rms", inverse_rms, rows)?;
    let dx = at.floats("dx", &dx, elements([rows, width]))?;
    let d_weight = at.f32s("d_weight", &d_weight, width)?;
    if rows == 0 {
        return Ok(());
    }
    let arguments =
        [width.into(), accumulate.into(), dy.into(), x.into(), weight.into(), inverse_rms.into(), dx.into()];
    let types = [dy.element, x.element, dx.element];
    // SAFETY: a block for each of `rows`, which dy, x and dx have of `width`; weight has `width` values, inverse_rms
    // `rows`.
    unsafe { at.1.launch(&BACKWARD_INPUT, &types, Grid::rows(at.0, rows, width)?, &arguments) }?;

    let (count, chunk_rows) = chunks(rows);
    let partial = CudaBuffer::new(at.1, Element::F32, elements([count, width]))?;
    let arguments = [
        rows.into(),
        width.into(),
        chunk_rows.into(),
        dy.into(),
        x.into(),
        inverse_rms.into(),
        Value::U64(partial.address()),
    ];
    let grid = Grid::columns(at.0, width, count)?;
    // SAFETY: dy and x have `rows` of `width`, inverse_rms `rows`; the kernel keeps to those in the last of `count`
    // chunks and in the last blocks of columns; partial has a row of `width` for each chunk.
    unsafe { at.1.launch(&BACKWARD_WEIGHT, &[dy.element, x.element], grid, &arguments) }?;
    add_chunks(at, &partial, count, d_weight)
}
