//! Sums of tensors, and biases.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut, by_type};
use super::vectorize::{Value, part_rows, summed_rows, vectorized};
use crate::backend::Outcome;

/// See [`crate::Backend::add`].
///
/// # Errors
/// Lengths that differ.
pub(crate) fn add(isa: Isa, source: Floats<'_>, target: FloatsMut<'_>) -> Outcome {
    Refusal("add").length("source", source.len(), target.len())?;
    by_type!(add_parts(isa, source, target); Floats source, FloatsMut target);
    Ok(())
}

fn add_parts<S: Value, T: Value>(isa: Isa, source: &[S], target: &mut [T]) {
    let part = part_rows(1);
    let parts = source.par_chunks(part).zip(target.par_chunks_mut(part));
    parts.for_each(|(source, target)| add_part(isa, source, target));
}

vectorized! {
    fn add_part<const FMA: bool, S: Value, T: Value>(isa: Isa, source: &[S], target: &mut [T]) {
        for (target, source) in target.iter_mut().zip(source) {
            *target = T::round(target.widen() + source.widen());
        }
    }
}

/// See [`crate::Backend::bias_forward`].
///
/// # Errors
/// Lengths that do not fit.
pub(crate) fn bias_forward(isa: Isa, rows: usize, width: usize, bias: &[f32], x: FloatsMut<'_>) -> Outcome {
    let at = Refusal("bias_forward");
    at.length("bias", bias.len(), width)?;
    at.length("x", x.len(), rows.saturating_mul(width))?;
    if width > 0 {
        by_type!(add_bias(isa, bias, x); FloatsMut x);
    }
    Ok(())
}

fn add_bias<X: Value>(isa: Isa, bias: &[f32], x: &mut [X]) {
    x.par_chunks_mut(part_rows(bias.len()) * bias.len()).for_each(|x| add_bias_part(isa, bias, x));
}

vectorized! {
    fn add_bias_part<const FMA: bool, X: Value>(isa: Isa, bias: &[f32], x: &mut [X]) {
        for x in x.chunks_exact_mut(bias.len()) {
            for (x, bias) in x.iter_mut().zip(bias) {
                *x = X::round(x.widen() + *bias);
            }
        }
    }
}

/// See [`crate::Backend::bias_backward`].
///
/// Summed over parts of the rows, and the sums of the parts in order.
///
/// # Errors
/// Lengths that do not fit.
pub(crate) fn bias_backward(isa: Isa, rows: usize, width: usize, dx: Floats<'_>, d_bias: &mut [f32]) -> Outcome {
    let at = Refusal("bias_backward");
    at.length("dx", dx.len(), rows.saturating_mul(width))?;
    at.length("d_bias", d_bias.len(), width)?;
    if width > 0 {
        by_type!(sum_rows(isa, rows, dx, d_bias); Floats dx);
    }
    Ok(())
}

fn sum_rows<X: Value>(isa: Isa, rows: usize, x: &[X], total: &mut [f32]) {
    let width = total.len();
    let part = summed_rows(rows, width);
    let mut sums = vec![0.0; rows.div_ceil(part) * width];
    let parts = x.par_chunks(part * width).zip(sums.par_chunks_mut(width));
    parts.for_each(|(x, sums)| sum_rows_part(isa, x, sums));
    for sums in sums.chunks_exact(width) {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

vectorized! {
    fn sum_rows_part<const FMA: bool, X: Value>(isa: Isa, x: &[X], sums: &mut [f32]) {
        for x in x.chunks_exact(sums.len()) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += x.widen();
            }
        }
    }
}
