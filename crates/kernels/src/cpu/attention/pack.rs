//! Blocks of rows out of the tensors into packed units, zeros behind their ends, and packed results back.

use half::bf16;

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

impl<'a> Rows<'a> {
    fn f32_row(&self, values: &'a [f32], r: usize) -> &'a [f32] {
        let start = self.first + r * self.stride;
        &values[start..start + self.width]
    }

    fn bf16_row(&self, values: &'a [bf16], r: usize) -> &'a [bf16] {
        let start = self.first + r * self.stride;
        &values[start..start + self.width]
    }

    /// Writes [`BLOCK`] rows of `stride` units, `unit` values along a row in each.
    pub(super) fn pack_along_columns(&self, unit: usize, target: &mut [u32], stride: usize) {
        for (r, target) in target.chunks_exact_mut(stride).take(BLOCK).enumerate() {
            if r >= self.count {
                target.fill(0);
                continue;
            }
            let filled = self.width.div_ceil(unit);
            match self.values {
                Floats::F32(values) => {
                    debug_assert_eq!(unit, 1);
                    target[..filled].copy_from_slice(bytemuck::cast_slice(self.f32_row(values, r)));
                }
                Floats::Bf16(values) if unit == 1 => widen(self.bf16_row(values, r), &mut target[..filled]),
                Floats::Bf16(values) => {
                    let row = self.bf16_row(values, r);
                    let halves: &mut [bf16] = bytemuck::cast_slice_mut(&mut target[..filled]);
                    halves[..row.len()].copy_from_slice(row);
                    halves[row.len()..].fill(bf16::ZERO);
                }
            }
            target[filled..].fill(0);
        }
    }

    /// Writes `BLOCK / unit` rows of `stride` units, `unit` values of successive rows in each.
    pub(super) fn pack_along_rows(&self, unit: usize, target: &mut [u32], stride: usize) {
        let values = match self.values {
            Floats::Bf16(values) if unit == 2 => values,
            _ => return self.pack_along_columns(unit, target, stride),
        };
        for (pair, target) in target.chunks_exact_mut(stride).take(BLOCK / 2).enumerate() {
            let r = 2 * pair;
            let filled = if r < self.count { self.width } else { 0 };
            if r + 1 < self.count {
                let (even, odd) = (self.bf16_row(values, r), self.bf16_row(values, r + 1));
                for ((unit, even), odd) in target.iter_mut().zip(even).zip(odd) {
                    *unit = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
                }
            } else if r < self.count {
                for (unit, even) in target.iter_mut().zip(self.bf16_row(values, r)) {
                    *unit = u32::from(even.to_bits());
                }
            }
            target[filled..].fill(0);
        }
    }

    /// `sums[r]` becomes the dot product of row `r` with that of `other`, zero behind the last one. Sixteen partial
    /// sums, added pairwise: an order that depends on the width only.
    pub(super) fn dots(&self, other: &Self, sums: &mut [f32]) {
        sums[self.count..].fill(0.0);
        for (r, sum) in sums.iter_mut().enumerate().take(self.count) {
            *sum = match (self.values, other.values) {
                (Floats::F32(a), Floats::F32(b)) => dot(self.f32_row(a, r), other.f32_row(b, r), |x| x),
                (Floats::Bf16(a), Floats::Bf16(b)) => dot(self.bf16_row(a, r), other.bf16_row(b, r), bf16::to_f32),
                _ => unreachable!("the element types of all operands are equal: checked before any job starts"),
            };
        }
    }
}

fn widen(row: &[bf16], target: &mut [u32]) {
    for (unit, value) in target.iter_mut().zip(row) {
        *unit = u32::from(value.to_bits()) << 16;
    }
}

#[inline(always)]
fn dot<T: Copy>(a: &[T], b: &[T], widen: impl Fn(T) -> f32) -> f32 {
    let mut partial = [0.0_f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    for (lane, (&x, &y)) in a_chunks.remainder().iter().zip(b_chunks.remainder()).enumerate() {
        partial[lane] = widen(x) * widen(y);
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for (lane, sum) in partial.iter_mut().enumerate() {
            *sum += widen(a[lane]) * widen(b[lane]);
        }
    }
    sum_lanes(&mut partial)
}

/// The sum of up to sixteen (a power of two) lanes, folded in halves.
pub(super) fn sum_lanes(lanes: &mut [f32]) -> f32 {
    let mut half = lanes.len() / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `target[column * BLOCK + row] = source[row * stride + column]` for [`BLOCK`] rows of `columns` units.
#[inline(always)]
pub(super) fn transpose(source: &[u32], stride: usize, columns: usize, target: &mut [u32]) {
    for (column, target) in target.chunks_exact_mut(BLOCK).take(columns).enumerate() {
        for (row, unit) in target.iter_mut().enumerate() {
            *unit = source[row * stride + column];
        }
    }
}
