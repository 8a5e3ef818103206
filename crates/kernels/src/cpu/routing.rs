//! The way of tokens to their experts and back.
//!
//! Rows are summed in f32 and rounded once. Parts are ranges of tokens or of rows, so no two threads write one row.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut, by_type};
use super::sums::dot;
use super::vectorize::{LANES, Value, mul_add, part_rows, vectorized};
use crate::backend::Outcome;
use crate::error::KernelError;

/// Sorts assignments by expert, stably: `assignment[row]` is the assignment that sorted row `row` serves, `position`
/// its inverse. A counting sort, in one thread: it moves 12 bytes an assignment.
///
/// # Errors
/// Lengths that do not fit, ids without an expert, offsets that do not count the ids.
pub(crate) fn sort_by_expert(
    ids: &[u32],
    offsets: &[usize],
    assignment: &mut [u32],
    position: &mut [u32],
) -> Result<(), KernelError> {
    let at = Refusal("sort_by_expert");
    at.length("assignment", assignment.len(), ids.len())?;
    at.length("position", position.len(), ids.len())?;
    at.shape(u32::try_from(ids.len()).is_ok(), || format!("{} assignments exceed 32-bit indices", ids.len()))?;
    at.shape(!offsets.is_empty(), || "offsets are empty; give one more than there are experts".to_owned())?;
    let experts = offsets.len() - 1;
    at.below("expert", ids, experts)?;

    let mut next = vec![0; experts + 1];
    ids.iter().for_each(|&id| next[id as usize + 1] += 1);
    (0..experts).for_each(|e| next[e + 1] += next[e]);
    at.shape(offsets == next, || format!("offsets {offsets:?} do not count the ids, which make {next:?}"))?;

    for ((a, &id), position) in (0..).zip(ids).zip(position) {
        let row = next[id as usize];
        next[id as usize] += 1;
        assignment[row] = a;
        *position = row as u32; // fits: rows are as many as ids, checked above
    }
    Ok(())
}

/// Dispatch: `rows[i] = x[assignment[i] / top_k]`; x (T, width), rows (A, width), one float type.
///
/// # Errors
/// Lengths and types that do not fit, assignments not below T * `top_k`.
pub(crate) fn gather_rows(
    _isa: Isa, // rows are copied as they are
    top_k: usize,
    width: usize,
    x: Floats<'_>,
    assignment: &[u32],
    rows: FloatsMut<'_>,
) -> Result<(), KernelError> {
    let at = Refusal("gather_rows");
    check_top_k(at, top_k)?;
    at.is("rows", rows.element(), x.element())?;
    let tokens = at.rows("x", x.len(), width)?;
    at.length("rows", rows.len(), assignment.len().saturating_mul(width))?;
    at.below("assignment", assignment, tokens.saturating_mul(top_k))?;
    match (x, rows) {
        (Floats::F32(x), FloatsMut::F32(rows)) => copy_rows(top_k, width, x, assignment, rows),
        (Floats::Bf16(x), FloatsMut::Bf16(rows)) => copy_rows(top_k, width, x, assignment, rows),
        _ => unreachable!("one element type, checked above"),
    }
    Ok(())
}

fn copy_rows<T: Value>(top_k: usize, width: usize, x: &[T], assignment: &[u32], rows: &mut [T]) {
    let part = part_rows(width);
    rows.par_chunks_mut(part * width).zip(assignment.par_chunks(part)).for_each(|(rows, assignment)| {
        for (row, &a) in rows.chunks_exact_mut(width).zip(assignment) {
            row.copy_from_slice(&x[a as usize / top_k * width..][..width]);
        }
    });
}

/// Backward of the dispatch: `dx[t] +=` the sum over k, in order, of `d_rows[position[t * top_k + k]]`.
///
/// # Errors
/// Lengths that do not fit, positions without a row.
pub(crate) fn scatter_rows_add(
    isa: Isa,
    top_k: usize,
    width: usize,
    d_rows: Floats<'_>,
    position: &[u32],
    dx: FloatsMut<'_>,
) -> Result<(), KernelError> {
    let at = Refusal("scatter_rows_add");
    check_top_k(at, top_k)?;
    let tokens = at.rows("dx", dx.len(), width)?;
    let row_count = at.rows("d_rows", d_rows.len(), width)?;
    at.length("position", position.len(), tokens.saturating_mul(top_k))?;
    at.below("row", position, row_count)?;
    sum_all_rows(isa, top_k, width, d_rows, position, None, dx);
    Ok(())
}

/// Combine: `out[t] +=` the sum over k, in order, of `gates[t, k] * expert_out[position[t * top_k + k]]`.
///
/// # Errors
/// Lengths that do not fit, positions without a row.
pub(crate) fn combine_forward(
    isa: Isa,
    top_k: usize,
    width: usize,
    expert_out: Floats<'_>,
    position: &[u32],
    gates: &[f32],
    out: FloatsMut<'_>,
) -> Result<(), KernelError> {
    let at = Refusal("combine_forward");
    check_top_k(at, top_k)?;
    let tokens = at.rows("out", out.len(), width)?;
    let assignments = tokens.saturating_mul(top_k);
    at.length("expert_out", expert_out.len(), assignments.saturating_mul(width))?;
    at.length("position", position.len(), assignments)?;
    at.length("gates", gates.len(), assignments)?;
    at.below("row", position, assignments)?;
    sum_all_rows(isa, top_k, width, expert_out, position, Some(gates), out);
    Ok(())
}

fn sum_all_rows(
    isa: Isa,
    top_k: usize,
    width: usize,
    rows: Floats<'_>,
    position: &[u32],
    gates: Option<&[f32]>,
    out: FloatsMut<'_>,
) {
    match (rows, out) {
        (Floats::F32(rows), FloatsMut::F32(out)) => sum_parts(isa, top_k, width, rows, position, gates, out),
        (Floats::F32(rows), FloatsMut::Bf16(out)) => sum_parts(isa, top_k, width, rows, position, gates, out),
        (Floats::Bf16(rows), FloatsMut::F32(out)) => sum_parts(isa, top_k, width, rows, position, gates, out),
        (Floats::Bf16(rows), FloatsMut::Bf16(out)) => sum_parts(isa, top_k, width, rows, position, gates, out),
    }
}

fn sum_parts<S: Value, D: Value>(
    isa: Isa,
    top_k: usize,
    width: usize,
    rows: &[S],
    position: &[u32],
    gates: Option<&[f32]>,
    out: &mut [D],
) {
    let part = part_rows(top_k.saturating_mul(width));
    let outs = out.par_chunks_mut(part * width).zip(position.par_chunks(part * top_k)).enumerate();
    outs.for_each(|(i, (out, position))| {
        for (t, (out, position)) in out.chunks_exact_mut(width).zip(position.chunks_exact(top_k)).enumerate() {
            let gates = gates.map(|gates| &gates[(i * part + t) * top_k..][..top_k]);
            sum_rows(isa, rows, position, gates, out);
        }
    });
}

vectorized! {
    /// `out +=` the rows at `position` times their gates, or as they are.
    fn sum_rows<const FMA: bool, S: Value, D: Value>(
        isa: Isa,
        rows: &[S],
        position: &[u32],
        gates: Option<&[f32]>,
        out: &mut [D],
    ) {
        let width = out.len();
        let mut column = 0;
        let mut blocks = out.chunks_exact_mut(LANES);
        for out in &mut blocks {
            let mut sums = [0.0_f32; LANES];
            sums.iter_mut().zip(&*out).for_each(|(sum, out)| *sum = out.widen());
            for (k, &row) in position.iter().enumerate() {
                let row = &rows[row as usize * width + column..][..LANES];
                match gates {
                    Some(gates) => add_gated::<FMA, S>(gates[k], row, &mut sums),
                    None => sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.widen()),
                }
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = D::round(*sum));
            column += LANES;
        }
        for (out, column) in blocks.into_remainder().iter_mut().zip(column..) {
            let mut sum = out.widen();
            for (k, &row) in position.iter().enumerate() {
                let value = rows[row as usize * width + column].widen();
                sum = match gates {
                    Some(gates) => mul_add::<FMA>(gates[k], value, sum),
                    None => sum + value,
                };
            }
            *out = D::round(sum);
        }
    }
}

#[inline(always)]
fn add_gated<const FMA: bool, S: Value>(gate: f32, row: &[S], sums: &mut [f32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum = mul_add::<FMA>(gate, value.widen(), *sum);
    }
}

/// `d_expert_out =` (A, width) and `d_gates =` (T, K) of [`combine_forward`].
///
/// # Errors
/// Lengths that do not fit, positions without a row or that name one twice.
pub(crate) fn combine_backward(
    isa: Isa,
    top_k: usize,
    width: usize,
    d_out: Floats<'_>,
    expert_out: Floats<'_>,
    position: &[u32],
    gates: &[f32],
    d_expert_out: FloatsMut<'_>,
    d_gates: &mut [f32],
) -> Result<(), KernelError> {
    let at = Refusal("combine_backward");
    check_top_k(at, top_k)?;
    let tokens = at.rows("d_out", d_out.len(), width)?;
    let assignments = tokens.saturating_mul(top_k);
    at.length("expert_out", expert_out.len(), assignments.saturating_mul(width))?;
    at.length("position", position.len(), assignments)?;
    at.length("gates", gates.len(), assignments)?;
    at.length("d_expert_out", d_expert_out.len(), assignments.saturating_mul(width))?;
    at.length("d_gates", d_gates.len(), assignments)?;
    at.below("row", position, assignments)?;
    let served = invert(at, position)?;

    let mut d_gate_of_row = vec![0.0; assignments];
    let gated = Gated { top_k, width, gates, served: &served };
    by_type!(
        gate_gradient(isa, gated, d_out, expert_out, d_expert_out, &mut d_gate_of_row);
        Floats d_out, Floats expert_out, FloatsMut d_expert_out
    );
    d_gates.iter_mut().zip(position).for_each(|(d_gate, &row)| *d_gate = d_gate_of_row[row as usize]);
    Ok(())
}

/// Which assignment each row serves: with it rows are written in order, by whichever thread, without `unsafe`.
fn invert(at: Refusal, position: &[u32]) -> Outcome<Vec<usize>> {
    const NONE: usize = usize::MAX;
    let mut served = vec![NONE; position.len()];
    for (a, &row) in position.iter().enumerate() {
        let first = std::mem::replace(&mut served[row as usize], a);
        at.shape(first == NONE, || {
            format!("assignments {first} and {a} both name row {row}; give each a row of its own")
        })?;
    }
    Ok(served)
}

/// What a row of an expert's output is multiplied by, and for which token.
#[derive(Clone, Copy)]
struct Gated<'a> {
    top_k: usize,
    width: usize,
    gates: &'a [f32],
    /// The assignment of each row.
    served: &'a [usize],
}

/// Rows in their own order, each of both matrices touched once; a token's gradient is found in a cache K times.
fn gate_gradient<O: Value, E: Value, D: Value>(
    isa: Isa,
    gated: Gated<'_>,
    d_out: &[O],
    expert_out: &[E],
    d_expert_out: &mut [D],
    d_gate_of_row: &mut [f32],
) {
    let part = part_rows(gated.width);
    let rows = expert_out.par_chunks(part * gated.width).zip(d_expert_out.par_chunks_mut(part * gated.width));
    let rows = rows.zip(gated.served.par_chunks(part)).zip(d_gate_of_row.par_chunks_mut(part));
    rows.for_each(|(((expert_out, d_expert_out), served), d_gate)| {
        gate_gradient_part(isa, Gated { served, ..gated }, d_out, expert_out, d_expert_out, d_gate);
    });
}

vectorized! {
    fn gate_gradient_part<const FMA: bool, O: Value, E: Value, D: Value>(
        isa: Isa,
        gated: Gated<'_>,
        d_out: &[O],
        expert_out: &[E],
        d_expert_out: &mut [D],
        d_gate_of_row: &mut [f32],
    ) {
        let Gated { top_k, width, gates, served } = gated;
        let rows = expert_out.chunks_exact(width).zip(d_expert_out.chunks_exact_mut(width));
        for ((expert_out, d_expert_out), (&a, d_gate)) in rows.zip(served.iter().zip(d_gate_of_row)) {
            let (gate, d_out) = (gates[a], &d_out[a / top_k * width..][..width]);
            // out += gate * expert_out
            *d_gate = dot::<FMA, O, E>(d_out, expert_out);
            for (d_expert_out, d_out) in d_expert_out.iter_mut().zip(d_out) {
                *d_expert_out = D::round(gate * d_out.widen());
            }
        }
    }
}

fn check_top_k(at: Refusal, top_k: usize) -> Outcome {
    at.shape(top_k > 0, || "top_k is 0; a token needs at least one expert".to_owned())
}

#[cfg(test)]
mod tests;
