//! Biases, sums over rows, parts of columns, and what goes element by element.

use super::arguments::{Arguments, Array, In, Out, elements};
use super::buffer::CudaBuffer;
use super::compile::{Kernel, Source};
use super::launch::{Grid, Value};
use crate::backend::Outcome;
use crate::buffer::Element;
use crate::ops::Columns;

pub(super) static SOURCE: Source = Source {
    file: "columns.cu",
    text: include_str!("columns.cu"),
    kernels: &[&BIAS_FORWARD, &SUM_CHUNKS, &ADD_CHUNKS, &COPY_COLUMNS, &SUM_COLUMNS, &ADD, &CONVERT],
};
static BIAS_FORWARD: Kernel = Kernel { source: &SOURCE, name: "bias_forward", types: 1 };
static SUM_CHUNKS: Kernel = Kernel { source: &SOURCE, name: "sum_chunks", types: 1 };
static ADD_CHUNKS: Kernel = Kernel { source: &SOURCE, name: "add_chunks", types: 0 };
static COPY_COLUMNS: Kernel = Kernel { source: &SOURCE, name: "copy_columns", types: 1 };
static SUM_COLUMNS: Kernel = Kernel { source: &SOURCE, name: "sum_columns", types: 1 };
static ADD: Kernel = Kernel { source: &SOURCE, name: "add", types: 2 };
static CONVERT: Kernel = Kernel { source: &SOURCE, name: "convert", types: 2 };

/// How a sum over `rows` is cut, whatever the device: the number of chunks, and the rows of each but the last. Enough
/// chunks to keep a card busy, few enough that adding them up takes no time.
pub(super) fn chunks(rows: usize) -> (usize, usize) {
    let chunk_rows = rows.div_ceil(512).max(64);
    (rows.div_ceil(chunk_rows), chunk_rows)
}

/// `target += the sum of the chunks`, in order; `partial` has `count` rows of the target's width.
pub(super) fn add_chunks(at: Arguments<'_>, partial: &CudaBuffer, count: usize, target: Array) -> Outcome {
    let arguments = [target.len.into(), count.into(), Value::U64(partial.address()), target.into()];
    // SAFETY: the kernel keeps to the target's elements; partial has `count` rows of as many, as its maker says.
    unsafe { at.1.launch(&ADD_CHUNKS, &[], Grid::elements(at.0, target.len)?, &arguments) }
}

pub(super) fn bias_forward(at: Arguments<'_>, rows: usize, width: usize, bias: In<'_>, x: Out<'_>) -> Outcome {
    let bias = at.f32s("bias", bias, width)?;
    let x = at.floats("x", &x, elements([rows, width]))?;
    if x.len == 0 {
        return Ok(());
    }
    let arguments = [width.into(), bias.into(), x.into()];
    // SAFETY: a block for each of `rows`, which x has of `width`; bias has `width` values.
    unsafe { at.1.launch(&BIAS_FORWARD, &[x.element], Grid::rows(at.0, rows, width)?, &arguments) }
}

pub(super) fn bias_backward(at: Arguments<'_>, rows: usize, width: usize, dx: In<'_>, d_bias: Out<'_>) -> Outcome {
    let dx = at.floats("dx", dx, elements([rows, width]))?;
    let d_bias = at.f32s("d_bias", &d_bias, width)?;
    if dx.len == 0 {
        return Ok(());
    }
    let (count, chunk_rows) = chunks(rows);
    let partial = CudaBuffer::new(at.1, Element::F32, elements([count, width]))?;
    let arguments = [rows.into(), width.into(), chunk_rows.into(), dx.into(), Value::U64(partial.address())];
    let grid = Grid::columns(at.0, width, count)?;
    // SAFETY: dx has `rows` of `width`; the kernel keeps to those in the last of `count` chunks and in the last blocks of
    // columns; partial has a row of `width` for each chunk.
    unsafe { at.1.launch(&SUM_CHUNKS, &[dx.element], grid, &arguments) }?;
    add_chunks(at, &partial, count, d_bias)
}

pub(super) fn add(at: Arguments<'_>, source: In<'_>, target: Out<'_>) -> Outcome {
    let source = at.floats("source", source, target.len)?;
    let target = at.floats("target", &target, source.len)?;
    elementwise(at, &ADD, source, target)
}

/// `target = source`, floats of one length.
pub(super) fn convert(at: Arguments<'_>, source: Array, target: Array) -> Outcome {
    elementwise(at, &CONVERT, source, target)
}

fn elementwise(at: Arguments<'_>, kernel: &Kernel, source: Array, target: Array) -> Outcome {
    assert_eq!(source.len, target.len, "{}: one length", at.0);
    if target.len == 0 {
        return Ok(());
    }
    let arguments = [target.len.into(), source.into(), target.into()];
    let grid = Grid::elements(at.0, target.len)?;
    // SAFETY: both have the length that the kernel keeps to.
    unsafe { at.1.launch(kernel, &[source.element, target.element], grid, &arguments) }
}

pub(super) fn copy_columns(at: Arguments<'_>, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
    let groups = shape.rows / shape.repeat.max(1);
    let (source, target) = check(at, shape, groups, shape.rows, source, &target)?;
    // SAFETY: a block for each of `rows`, which the target has of its width; the source has one for each `repeat` of
    // them; the columns lie inside of both widths.
    unsafe { launch(at, &COPY_COLUMNS, shape, shape.rows, source, target) }
}

pub(super) fn sum_columns(at: Arguments<'_>, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
    let groups = shape.rows / shape.repeat.max(1);
    let (source, target) = check(at, shape, shape.rows, groups, source, &target)?;
    // SAFETY: a block for each row of the target, which has `rows / repeat` of its width; the source has `repeat` for
    // each of them; the columns lie inside of both widths.
    unsafe { launch(at, &SUM_COLUMNS, shape, groups, source, target) }
}

/// # Safety
/// As [`Device::launch`](super::device::Device::launch), for a kernel with these parameters and `rows` blocks.
unsafe fn launch(
    at: Arguments<'_>,
    kernel: &Kernel,
    shape: Columns,
    rows: usize,
    source: Array,
    target: Array,
) -> Outcome {
    let Columns { columns, source_width, source_start, target_width, target_start, repeat, .. } = shape;
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let [columns_value, sw, ss, tw, ts, repeat] =
        [columns, source_width, source_start, target_width, target_start, repeat].map(Value::from);
    let arguments = [columns_value, sw, ss, tw, ts, repeat, source.into(), target.into()];
    // SAFETY: as the caller promises.
    unsafe { at.1.launch(kernel, &[source.element], Grid::rows(at.0, rows, columns)?, &arguments) }
}

fn check(
    at: Arguments<'_>,
    shape: Columns,
    source_rows: usize,
    target_rows: usize,
    source: In<'_>,
    target: &Out<'_>,
) -> Outcome<(Array, Array)> {
    let Columns { rows, columns, source_width, source_start, target_width, target_start, repeat } = shape;
    at.shape(repeat > 0 && rows.is_multiple_of(repeat), || {
        format!("rows = {rows} is not a multiple of repeat = {repeat}; give whole groups of rows")
    })?;
    at.shape(source_start.saturating_add(columns) <= source_width, || {
        format!("columns = {columns} from {source_start} exceed source_width = {source_width}; take fewer")
    })?;
    at.shape(target_start.saturating_add(columns) <= target_width, || {
        format!("columns = {columns} from {target_start} exceed target_width = {target_width}; take fewer")
    })?;
    let source = at.floats("source", source, elements([source_rows, source_width]))?;
    let target = at.of(source.element, "target", target, elements([target_rows, target_width]))?;
    Ok((source, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_and_are_few() {
        for rows in (1..5000).chain([32_768, 1 << 20, (1 << 20) + 1]) {
            let (count, chunk_rows) = chunks(rows);
            assert!(count <= 512 && (count - 1) * chunk_rows < rows && count * chunk_rows >= rows, "{rows} rows");
        }
    }
}
