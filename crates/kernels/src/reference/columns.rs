//! Parts of the columns of one matrix to or from another.

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::buffer::Buffer;
use crate::ops::Columns;

pub(super) fn copy(shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
    let at = Arguments("copy_columns");
    let (source, target) = check(at, shape, shape.rows / shape.repeat.max(1), shape.rows, source, target)?;
    for row in 0..shape.rows {
        let from = row / shape.repeat * shape.source_width + shape.source_start;
        let to = row * shape.target_width + shape.target_start;
        target[to..to + shape.columns].copy_from_slice(&source[from..from + shape.columns]);
    }
    Ok(())
}

pub(super) fn sum(shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
    let at = Arguments("sum_columns");
    let (source, target) = check(at, shape, shape.rows, shape.rows / shape.repeat.max(1), source, target)?;
    for row in 0..shape.rows {
        let from = row * shape.source_width + shape.source_start;
        let to = row / shape.repeat * shape.target_width + shape.target_start;
        for i in 0..shape.columns {
            let before = if row.is_multiple_of(shape.repeat) { 0.0 } else { target[to + i] };
            target[to + i] = before + source[from + i];
        }
    }
    Ok(())
}

fn check<'a>(
    at: Arguments,
    shape: Columns,
    source_rows: usize,
    target_rows: usize,
    source: In<'a>,
    target: Out<'a>,
) -> Outcome<(&'a [f64], &'a mut [f64])> {
    let Columns { rows, columns, source_width, source_start, target_width, target_start, repeat } = shape;
    at.shape(repeat > 0 && rows.is_multiple_of(repeat), || {
        format!("rows = {rows} is not a multiple of repeat = {repeat}; give whole groups of rows")
    })?;
    at.shape(source_start.saturating_add(columns) <= source_width, || {
        format!("columns = {columns} from {source_start} exceed source_width = {source_width}")
    })?;
    at.shape(target_start.saturating_add(columns) <= target_width, || {
        format!("columns = {columns} from {target_start} exceed target_width = {target_width}")
    })?;
    at.is("target", target.buffer, source.buffer.element())?;
    let source = at.floats("source", source, elements([source_rows, source_width]))?;
    let target = at.floats_mut("target", target, elements([target_rows, target_width]))?;
    Ok((source, target))
}
