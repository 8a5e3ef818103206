//! Blocks of rows out of the tensors into packed units, zeros behind their ends, and packed results back.
//!
//! At a few hundred tokens copies cost as much as the softmax, so they go through the vector instructions too.

use half::bf16;

use super::form::Form;
use super::lanes::Lanes;
use super::softmax::BLOCK;
use crate::cpu::slices::Floats;

/// Up to [`BLOCK`] rows of one head: row `r` is the `width` values from `first + r * stride` on.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub values: Floats<'a>,
    pub first: usize,
    pub stride: usize,
    pub count: usize,
    pub width: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn row<'v, T>(&self, values: &'v [T], r: usize) -> &'v [T] {
        let start = self.first + r * self.stride;
        &values[start..start + self.width]
    }
}

/// Writes [`BLOCK`] rows of `stride` units, a multiple of the lanes, with units along each row.
///
/// # Safety
/// The instructions of `F` are there.
#[inline(always)]
pub(super) unsafe fn pack_along_columns<F: Form>(rows: &Rows<'_>, target: &mut [u32], stride: usize) {
    assert!(rows.count <= BLOCK && stride.is_multiple_of(F::L::N) && rows.width.div_ceil(F::UNIT) <= stride);
    for (r, target) in target.chunks_exact_mut(stride).take(BLOCK).enumerate() {
        if r >= rows.count {
            target.fill(0);
            continue;
        }
        match rows.values {
            Floats::F32(values) => {
                let row = rows.row(values, r);
                // SAFETY: the row has `width` floats and the target `stride` units of their size.
                unsafe { copy_row::<F::L>(row.as_ptr(), rows.width, target.as_mut_ptr().cast(), stride) }
            }
            Floats::Bf16(values) if F::UNIT == 1 => {
                for (unit, value) in target.iter_mut().zip(rows.row(values, r)) {
                    *unit = widen(*value).to_bits();
                }
                target[rows.width..].fill(0);
            }
            Floats::Bf16(values) => {
                let row = rows.row(values, r);
                // SAFETY: the row has `width / 2` whole pairs, which are copied as 32 bits each whatever they hold,
                // and the target `stride` units.
                unsafe { copy_row::<F::L>(row.as_ptr().cast(), rows.width / 2, target.as_mut_ptr().cast(), stride) }
                if rows.width % 2 == 1 {
                    target[rows.width / 2] = u32::from(row[rows.width - 1].to_bits());
                }
            }
        }
    }
}

/// Copies `count` words of 32 bits and fills up to `stride`, a multiple of the lanes, with zeros.
///
/// # Safety
/// The instructions of `L` are there, `source` points at `count` words and `target` at room for `stride`.
#[inline(always)]
unsafe fn copy_row<L: Lanes>(source: *const f32, count: usize, target: *mut f32, stride: usize) {
    let whole = count / L::N * L::N;
    // SAFETY: all of this stays below `count` in the source and below `stride`, which is whole vectors and at least
    // `count`, in the target.
    unsafe {
        for column in (0..whole).step_by(L::N) {
            L::store(target.add(column), L::load(source.add(column)));
        }
        if whole < count {
            L::store(target.add(whole), L::load_first(source.add(whole), count - whole));
        }
        for column in (count.next_multiple_of(L::N)..stride).step_by(L::N) {
            L::store(target.add(column), L::splat(0.0));
        }
    }
}

/// Writes `BLOCK / UNIT` rows of `stride` units, a multiple of the lanes, with units of successive rows.
///
/// # Safety
/// The instructions of `F` are there.
#[inline(always)]
pub(super) unsafe fn pack_along_rows<F: Form>(rows: &Rows<'_>, target: &mut [u32], stride: usize) {
    let values = match rows.values {
        Floats::Bf16(values) if F::UNIT == 2 => values,
        // SAFETY: as here; a unit is one value, so it lies along both.
        _ => return unsafe { pack_along_columns::<F>(rows, target, stride) },
    };
    for (pair, target) in target.chunks_exact_mut(stride).take(BLOCK / 2).enumerate() {
        let r = 2 * pair;
        let filled = if r < rows.count { rows.width } else { 0 };
        if r + 1 < rows.count {
            for ((unit, even), odd) in target.iter_mut().zip(rows.row(values, r)).zip(rows.row(values, r + 1)) {
                *unit = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
            }
        } else if r < rows.count {
            for (unit, even) in target.iter_mut().zip(rows.row(values, r)) {
                *unit = u32::from(even.to_bits());
            }
        }
        target[filled..].fill(0);
    }
}

/// `sums[r]` becomes the dot product of row `r` of each, zero behind the last one: a sum for each lane, then those
/// folded, an order that depends on the width only.
///
/// # Safety
/// The instructions of `L` are there.
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes>(a: &Rows<'_>, b: &Rows<'_>, sums: &mut [f32]) {
    sums[a.count..].fill(0.0);
    for (r, sum) in sums.iter_mut().enumerate().take(a.count) {
        // SAFETY: the instructions are the caller's promise; `dot` reads vectors that it says exist.
        *sum = unsafe {
            match (a.values, b.values) {
                (Floats::F32(x), Floats::F32(y)) => dot::<L, f32>(a.row(x, r), b.row(y, r), 0.0, |at| L::load(at)),
                (Floats::Bf16(x), Floats::Bf16(y)) => {
                    dot::<L, bf16>(a.row(x, r), b.row(y, r), bf16::ZERO, |at| L::widen(at.cast()))
                }
                _ => unreachable!("the element types of all operands are equal: checked before any job starts"),
            }
        };
    }
}

/// The dot product of two rows of one length; `load` reads `L::N` values from where it is pointed.
///
/// # Safety
/// The instructions of `L` are there.
#[inline(always)]
unsafe fn dot<L: Lanes, T: Copy>(a: &[T], b: &[T], zero: T, load: impl Fn(*const T) -> L::V) -> f32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(L::N), b.chunks_exact(L::N));
    let (mut a_tail, mut b_tail) = ([zero; 16], [zero; 16]);
    a_tail[..a_chunks.remainder().len()].copy_from_slice(a_chunks.remainder());
    b_tail[..b_chunks.remainder().len()].copy_from_slice(b_chunks.remainder());
    let mut lanes = [0.0_f32; 16];
    // SAFETY: chunks are whole vectors, and the tails and `lanes` at least one.
    unsafe {
        let mut sum = L::mul(load(a_tail.as_ptr()), load(b_tail.as_ptr()));
        for (a, b) in a_chunks.zip(b_chunks) {
            sum = L::mul_add(load(a.as_ptr()), load(b.as_ptr()), sum);
        }
        L::store(lanes.as_mut_ptr(), sum);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// To the nearest bf16, ties to even; a NaN stays one.
#[inline(always)]
fn narrow(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
}

/// Where the rows of a result go: row `r` from `r * stride` floats behind the pointer on.
#[derive(Clone, Copy)]
pub(super) enum Place {
    F32(*mut f32),
    Bf16(*mut bf16),
}

/// Writes the first `width` values of `count` rows of `source`, which are `source_stride` long, rounded to the
/// target's type.
///
/// # Safety
/// The instructions of `L` are there. The target's rows, `stride` apart, are the caller's alone to write.
#[inline(always)]
pub(super) unsafe fn unpack<L: Lanes>(
    source: &[f32],
    source_stride: usize,
    count: usize,
    width: usize,
    target: Place,
    stride: usize,
) {
    assert!(width <= source_stride && source_stride.is_multiple_of(L::N) && count * source_stride <= source.len());
    for (r, row) in source.chunks_exact(source_stride).take(count).enumerate() {
        // SAFETY: the row has `source_stride` values, whole vectors; the target's row has `width`, of which lanes from
        // there on are not written.
        unsafe {
            match target {
                Place::F32(target) => {
                    let (source, target, whole) = (row.as_ptr(), target.add(r * stride), width / L::N * L::N);
                    for column in (0..whole).step_by(L::N) {
                        L::store(target.add(column), L::load(source.add(column)));
                    }
                    if whole < width {
                        L::store_first(target.add(whole), width - whole, L::load(source.add(whole)));
                    }
                }
                Place::Bf16(target) => {
                    let target = std::slice::from_raw_parts_mut(target.add(r * stride), width);
                    for (target, value) in target.iter_mut().zip(row) {
                        *target = narrow(*value);
                    }
                }
            }
        }
    }
}

/// `target[column * BLOCK + row] = source[row * stride + column]` for [`BLOCK`] rows of `columns` units.
///
/// # Safety
/// None needed; unsafe for its place in a table with others.
#[inline(always)]
pub(super) unsafe fn transpose(source: &[u32], stride: usize, columns: usize, target: &mut [u32]) {
    for (column, target) in target.chunks_exact_mut(BLOCK).take(columns).enumerate() {
        for (row, unit) in target.iter_mut().enumerate() {
            *unit = source[row * stride + column];
        }
    }
}
