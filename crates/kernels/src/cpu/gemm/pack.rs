//! Packing: from a matrix in memory to units in the order in which tiles read them.
//!
//! *Step-major*: the units of one step side by side, as B's panels have them, and A where its memory runs across k.
//! *Row-major*: a row's units of all steps side by side, for A where its memory runs along k but cannot be read as it
//! lies. What lies beyond the width or beyond an odd end of k is zero.

use std::ops::Range;

use half::bf16;

use super::form::widen;
use crate::cpu::slices::Floats;

/// Rows of op(A), or columns of op(B), in memory.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// The whole operand.
    pub values: Floats<'a>,
    /// Elements from a row of its memory to the next.
    pub stride: usize,
    /// Rows of memory run along k: the operand lies there as (width, k); otherwise as (k, width).
    pub along_k: bool,
    /// Length of a sum, in elements.
    pub k: usize,
}

/// What elements are and how units are made of them.
pub(super) trait Packing: Copy {
    /// An element in memory.
    type Value: Copy;
    /// Elements in a unit.
    const UNIT: usize;
    /// Zero.
    const ZERO: Self::Value;
    /// The operand's elements.
    fn values<'a>(of: Floats<'a>) -> &'a [Self::Value];
    /// The unit of one element, or of two that are neighbours along k.
    fn unit(first: Self::Value, second: Self::Value) -> u32;
}

/// f32 as they are.
#[derive(Clone, Copy)]
pub(super) struct Single;

/// bf16, two to a unit.
#[derive(Clone, Copy)]
pub(super) struct Paired;

/// bf16, widened to f32.
#[derive(Clone, Copy)]
pub(super) struct Widened;

impl Packing for Single {
    type Value = f32;
    const UNIT: usize = 1;
    const ZERO: f32 = 0.0;

    fn values<'a>(of: Floats<'a>) -> &'a [f32] {
        match of {
            Floats::F32(values) => values,
            Floats::Bf16(_) => unreachable!("the table of kernels was chosen by the type of the operands"),
        }
    }
    #[inline(always)]
    fn unit(first: f32, _: f32) -> u32 {
        first.to_bits()
    }
}

impl Packing for Paired {
    type Value = bf16;
    const UNIT: usize = 2;
    const ZERO: bf16 = bf16::ZERO;

    fn values<'a>(of: Floats<'a>) -> &'a [bf16] {
        Widened::values(of)
    }
    #[inline(always)]
    fn unit(first: bf16, second: bf16) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }
}

impl Packing for Widened {
    type Value = bf16;
    const UNIT: usize = 1;
    const ZERO: bf16 = bf16::ZERO;

    fn values<'a>(of: Floats<'a>) -> &'a [bf16] {
        match of {
            Floats::Bf16(values) => values,
            Floats::F32(_) => unreachable!("the table of kernels was chosen by the type of the operands"),
        }
    }
    #[inline(always)]
    fn unit(first: bf16, _: bf16) -> u32 {
        widen(first).to_bits()
    }
}

/// How a square block is transposed while it is packed.
pub(super) trait Transpose<P: Packing>: Copy {
    /// Rows, and units of each.
    const SIDE: usize;

    /// `to[u * to_stride + r]` = unit u of row r; rows are `stride` elements apart.
    ///
    /// # Safety
    /// The instructions are there; `from` reaches all rows and units, `to` all that is written.
    unsafe fn block(from: *const P::Value, stride: usize, to: *mut u32, to_stride: usize);
}

/// One unit at a time.
#[derive(Clone, Copy)]
pub(super) struct OneByOne;

impl<P: Packing> Transpose<P> for OneByOne {
    const SIDE: usize = 1;

    #[inline(always)]
    unsafe fn block(from: *const P::Value, _: usize, to: *mut u32, _: usize) {
        // SAFETY: the caller points at one unit on either side; the second element exists if a unit has two.
        unsafe { *to = P::unit(*from, if P::UNIT == 2 { *from.add(1) } else { P::ZERO }) }
    }
}

/// Packs rows or columns `part` of an operand step-major: those of one step side by side, `target.len() / steps` units
/// from a step to the next.
///
/// # Safety
/// The instructions of `T` are there. Bounds are checked.
#[inline(always)]
pub(super) unsafe fn step_major<P: Packing, T: Transpose<P>>(
    source: &Source<'_>,
    part: Range<usize>,
    steps: Range<usize>,
    target: &mut [u32],
) {
    if steps.is_empty() {
        return;
    }
    let stride = target.len() / steps.len();
    assert!(part.len() <= stride && target.len() == stride * steps.len());
    if source.along_k {
        // SAFETY: the caller's promise.
        unsafe { across_memory::<P, T>(source, part, steps, target, stride) }
    } else {
        along_memory::<P>(source, part, steps, target, stride);
    }
}

/// Memory runs the way that a step's units do: interleave (or copy) rows of it.
#[inline(always)]
fn along_memory<P: Packing>(
    source: &Source<'_>,
    part: Range<usize>,
    steps: Range<usize>,
    target: &mut [u32],
    stride: usize,
) {
    let values = P::values(source.values);
    for (step, units) in steps.zip(target.chunks_exact_mut(stride)) {
        let first = step * P::UNIT;
        let row = |k: usize| &values[k * source.stride + part.start..k * source.stride + part.end];
        let (units, beyond) = units.split_at_mut(part.len());
        beyond.fill(0);
        let (blocks, rest) = units.as_chunks_mut::<16>();
        let (even, even_rest) = row(first).as_chunks::<16>();
        if P::UNIT == 2 && first + 1 < source.k {
            let (odd, odd_rest) = row(first + 1).as_chunks::<16>();
            for ((units, even), odd) in blocks.iter_mut().zip(even).zip(odd) {
                *units = std::array::from_fn(|lane| P::unit(even[lane], odd[lane]));
            }
            for ((unit, even), odd) in rest.iter_mut().zip(even_rest).zip(odd_rest) {
                *unit = P::unit(*even, *odd);
            }
        } else {
            for (units, even) in blocks.iter_mut().zip(even) {
                *units = std::array::from_fn(|lane| P::unit(even[lane], P::ZERO));
            }
            for (unit, even) in rest.iter_mut().zip(even_rest) {
                *unit = P::unit(*even, P::ZERO);
            }
        }
    }
}

/// Memory runs along k: transpose it, block by block.
///
/// # Safety
/// The instructions of `T` are there. Bounds are checked.
#[inline(always)]
unsafe fn across_memory<P: Packing, T: Transpose<P>>(
    source: &Source<'_>,
    part: Range<usize>,
    steps: Range<usize>,
    target: &mut [u32],
    stride: usize,
) {
    let values = P::values(source.values);
    let whole_steps = steps.len().min((source.k / P::UNIT).saturating_sub(steps.start));
    let (block_rows, block_steps) = (part.len() / T::SIDE * T::SIDE, whole_steps / T::SIDE * T::SIDE);
    let last = part.start + block_rows;
    assert!(block_rows == 0 || (last - 1) * source.stride + (steps.start + block_steps) * P::UNIT <= values.len());
    for row in (0..block_rows).step_by(T::SIDE) {
        for step in (0..block_steps).step_by(T::SIDE) {
            // SAFETY: rows part.start + row.. + SIDE are below `last` and steps steps.start + step.. + SIDE below
            // steps.start + block_steps, so their elements lie inside `values` by the assertion; the target has
            // `stride` units, at least part.len(), for each of the steps.
            unsafe {
                let from = (part.start + row) * source.stride + (steps.start + step) * P::UNIT;
                let to = target.as_mut_ptr().add(step * stride + row);
                T::block(values.as_ptr().add(from), source.stride, to, stride);
            }
        }
    }
    for (step, units) in target.chunks_exact_mut(stride).enumerate() {
        let done = if step < block_steps { block_rows } else { 0 };
        for (row, unit) in units[..part.len()].iter_mut().enumerate().skip(done) {
            *unit = unit_at::<P>(source, values, part.start + row, steps.start + step);
        }
        units[part.len()..].fill(0);
    }
}

/// Packs rows `part` of an operand whose memory runs along k row-major, `steps.len()` units from a row to the next.
///
/// Bounds are checked.
#[inline(always)]
pub(super) fn row_major<P: Packing>(source: &Source<'_>, part: Range<usize>, steps: Range<usize>, target: &mut [u32]) {
    if steps.is_empty() {
        return;
    }
    let values = P::values(source.values);
    for (row, units) in part.zip(target.chunks_exact_mut(steps.len())) {
        let elements = &values[row * source.stride + steps.start * P::UNIT..][..source.k - steps.start * P::UNIT];
        if P::UNIT == 2 {
            let (pairs, last) = elements.as_chunks::<2>();
            for (unit, pair) in units.iter_mut().zip(pairs) {
                *unit = P::unit(pair[0], pair[1]);
            }
            if let (Some(unit), [value]) = (units.get_mut(pairs.len()), last) {
                *unit = P::unit(*value, P::ZERO);
            }
        } else {
            for (unit, value) in units.iter_mut().zip(elements) {
                *unit = P::unit(*value, P::ZERO);
            }
        }
    }
}

#[inline(always)]
fn unit_at<P: Packing>(source: &Source<'_>, values: &[P::Value], row: usize, step: usize) -> u32 {
    let (at, k) = (row * source.stride, step * P::UNIT);
    let second = if P::UNIT == 2 && k + 1 < source.k { values[at + k + 1] } else { P::ZERO };
    P::unit(values[at + k], second)
}
