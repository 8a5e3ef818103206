//! Parts of the columns of one matrix to or from another.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut};
use super::vectorize::{LANES, Value, part_rows, vectorized};
use crate::backend::Outcome;
use crate::ops::Columns;

/// See [`crate::Backend::copy_columns`].
///
/// # Errors
/// Lengths, types and columns that do not fit, groups of rows that are not whole.
pub(crate) fn copy_columns(shape: Columns, source: Floats<'_>, target: FloatsMut<'_>) -> Outcome {
    let source_rows = shape.rows / shape.repeat.max(1);
    check(Refusal("copy_columns"), shape, source_rows, shape.rows, &source, &target)?;
    match (source, target) {
        (Floats::F32(source), FloatsMut::F32(target)) => copy(shape, source, target),
        (Floats::Bf16(source), FloatsMut::Bf16(target)) => copy(shape, source, target),
        _ => {} // `check` refused it
    }
    Ok(())
}

fn copy<T: Value>(shape: Columns, source: &[T], target: &mut [T]) {
    let Columns { rows, columns, source_width, source_start, target_width, target_start, repeat } = shape;
    if rows == 0 || columns == 0 {
        return;
    }
    let part = part_rows(columns);
    target.par_chunks_mut(part * target_width).enumerate().for_each(|(i, target)| {
        for (row, target) in (i * part..).zip(target.chunks_exact_mut(target_width)) {
            let source = &source[row / repeat * source_width + source_start..][..columns];
            target[target_start..target_start + columns].copy_from_slice(source);
        }
    });
}

/// See [`crate::Backend::sum_columns`].
///
/// # Errors
/// As [`copy_columns`].
pub(crate) fn sum_columns(isa: Isa, shape: Columns, source: Floats<'_>, target: FloatsMut<'_>) -> Outcome {
    let target_rows = shape.rows / shape.repeat.max(1);
    check(Refusal("sum_columns"), shape, shape.rows, target_rows, &source, &target)?;
    match (source, target) {
        (Floats::F32(source), FloatsMut::F32(target)) => sum(isa, shape, source, target),
        (Floats::Bf16(source), FloatsMut::Bf16(target)) => sum(isa, shape, source, target),
        _ => {} // `check` refused it
    }
    Ok(())
}

fn sum<T: Value>(isa: Isa, shape: Columns, source: &[T], target: &mut [T]) {
    if shape.rows == 0 || shape.columns == 0 {
        return;
    }
    let part = part_rows(shape.columns * shape.repeat);
    let sources = source.par_chunks(part * shape.repeat * shape.source_width);
    let parts = sources.zip(target.par_chunks_mut(part * shape.target_width));
    parts.for_each(|(source, target)| sum_part(isa, shape, source, target));
}

vectorized! {
    fn sum_part<const FMA: bool, T: Value>(isa: Isa, shape: Columns, source: &[T], target: &mut [T]) {
        let Columns { columns, source_width, source_start, target_width, target_start, repeat, .. } = shape;
        let groups = source.chunks_exact(repeat * source_width).zip(target.chunks_exact_mut(target_width));
        for (group, target) in groups {
            let target = &mut target[target_start..target_start + columns];
            for (block, target) in target.chunks_mut(LANES).enumerate() {
                let mut lanes = [0.0_f32; LANES];
                for row in group.chunks_exact(source_width) {
                    let row = &row[source_start + block * LANES..][..target.len()];
                    for (lane, value) in lanes.iter_mut().zip(row) {
                        *lane += value.widen();
                    }
                }
                for (target, lane) in target.iter_mut().zip(&lanes) {
                    *target = T::round(*lane);
                }
            }
        }
    }
}

fn check(
    at: Refusal,
    shape: Columns,
    source_rows: usize,
    target_rows: usize,
    source: &Floats<'_>,
    target: &FloatsMut<'_>,
) -> Outcome {
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
    at.is("target", target.element(), source.element())?;
    at.length("source", source.len(), source_rows.saturating_mul(source_width))?;
    at.length("target", target.len(), target_rows.saturating_mul(target_width))
}
