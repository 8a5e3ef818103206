//! Packing for the AVX-512 tile: panels of 32 columns, a step (one f32 or one pair of bf16) after the other.
//!
//! Whatever is not there (columns behind the last, the second half of an odd pair) is zero, so a tile computes it
//! harmlessly. Four cases: a step's values lie side by side in memory (copied), or in two rows (interleaved), or along the
//! rows (transposed in registers, 16 by 16).

use std::arch::x86_64::*;

use super::tile::COLUMNS;

/// A matrix of `k` by `width` elements of 2 or 4 bytes, `k` along the rows or across them.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub(super) start: *const u8,
    /// Bytes from a row in memory to the next.
    pub(super) stride_bytes: usize,
    /// Elements along k.
    pub(super) k: usize,
    /// Columns of B, or rows of A.
    pub(super) width: usize,
    /// Rows in memory run along k: (width, k). Otherwise (k, width).
    pub(super) k_contiguous: bool,
    /// Elements are bf16; otherwise f32.
    pub(super) bf16: bool,
}

impl Source {
    /// Elements of one step.
    fn per_step(&self) -> usize {
        if self.bf16 { 2 } else { 1 }
    }

    pub(super) fn steps(&self) -> usize {
        self.k.div_ceil(self.per_step())
    }

    fn element_bytes(&self) -> usize {
        if self.bf16 { 2 } else { 4 }
    }

    /// From element k0 along k, `k` elements.
    pub(super) fn along_k(self, k0: usize, k: usize) -> Self {
        let bytes = if self.k_contiguous { k0 * self.element_bytes() } else { k0 * self.stride_bytes };
        // `wrapping_add` only computes an address; reads are bounded by k and width.
        Self { start: self.start.wrapping_add(bytes), k, ..self }
    }

    /// From column `first`, `width` columns.
    pub(super) fn columns(self, first: usize, width: usize) -> Self {
        let bytes = if self.k_contiguous { first * self.stride_bytes } else { first * self.element_bytes() };
        Self { start: self.start.wrapping_add(bytes), width, ..self }
    }
}

/// Packs all of `source` into panels of (steps, 32).
///
/// # Safety
/// The CPU has AVX-512 F, BW and VL; `source` may be read, and `out` be written for `steps * width` values, the width
/// rounded up to a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn panels(source: Source, out: *mut u32) {
    let steps = source.steps();
    for (panel, first) in (0..source.width).step_by(COLUMNS).enumerate() {
        let part = source.columns(first, COLUMNS.min(source.width - first));
        // SAFETY: each panel is `steps * 32` values of `out`, and `part` is part of `source`.
        unsafe {
            let out = out.add(panel * steps * COLUMNS);
            rows_of_steps(part, out, COLUMNS);
        }
    }
}

/// Packs `source` as (steps, stride): one step's values side by side, then zeros; `stride` is a multiple of 16.
///
/// # Safety
/// As for [`panels`], `out` having `steps * stride` values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn rows_of_steps(source: Source, out: *mut u32, stride: usize) {
    for first in (0..stride).step_by(16) {
        let width = source.width.saturating_sub(first).min(16);
        // SAFETY: 16 values of every step at `first` lie inside of a row of `stride` values.
        unsafe {
            let out = out.add(first);
            if width == 0 {
                for step in 0..source.steps() {
                    _mm512_storeu_si512(out.add(step * stride).cast(), _mm512_setzero_si512());
                }
            } else if source.k_contiguous {
                transpose(source.columns(first, width), out, stride);
            } else {
                side_by_side(source.columns(first, width), out, stride);
            }
        }
    }
}

/// Up to 16 columns of a source whose rows in memory run across k.
#[inline(always)]
unsafe fn side_by_side(source: Source, out: *mut u32, stride: usize) {
    let mask = lanes(source.width);
    for step in 0..source.steps() {
        // SAFETY: masked loads touch `width` elements of rows below k only.
        unsafe {
            let row = |index: usize| source.start.add(index * source.stride_bytes);
            let values = if source.bf16 {
                let even = _mm256_maskz_loadu_epi16(mask, row(2 * step).cast());
                let odd = match 2 * step + 1 < source.k {
                    true => _mm256_maskz_loadu_epi16(mask, row(2 * step + 1).cast()),
                    false => _mm256_setzero_si256(),
                };
                let odd = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
                _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd)
            } else {
                _mm512_maskz_loadu_epi32(mask, row(step).cast())
            };
            _mm512_storeu_si512(out.add(step * stride).cast(), values);
        }
    }
}

/// Up to 16 columns of a source whose rows in memory run along k: 16 steps of each are transposed at a time.
#[inline(always)]
unsafe fn transpose(source: Source, out: *mut u32, stride: usize) {
    let steps = source.steps();
    let halves = source.k * source.element_bytes() / 2;
    for first in (0..steps).step_by(16) {
        // In units of 2 bytes, so that an odd bf16 at the end of k is read without its neighbour.
        let valid = (halves - 2 * first).min(32);
        let mask = if valid == 32 { u32::MAX } else { (1 << valid) - 1 };
        // SAFETY: masked loads touch `valid` units of columns below `width` only; stores stay below `steps`.
        unsafe {
            let mut block = [_mm512_setzero_si512(); 16];
            for (column, values) in block.iter_mut().enumerate().take(source.width) {
                let at = source.start.add(column * source.stride_bytes + 4 * first);
                *values = _mm512_maskz_loadu_epi16(mask, at.cast());
            }
            let block = transpose_16(block);
            for (step, values) in block.into_iter().enumerate().take(steps - first) {
                _mm512_storeu_si512(out.add((first + step) * stride).cast(), values);
            }
        }
    }
}

/// Transposes 16 by 16 values of 4 bytes.
#[inline(always)]
unsafe fn transpose_16(rows: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller runs with AVX-512 F enabled.
    unsafe {
        let mut pairs = rows;
        for i in 0..8 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        let mut quads = pairs;
        for i in 0..4 {
            for j in 0..2 {
                let (low, high) = (pairs[4 * i + j], pairs[4 * i + 2 + j]);
                quads[4 * i + 2 * j] = _mm512_unpacklo_epi64(low, high);
                quads[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(low, high);
            }
        }
        // quads[4 g + c] holds, in its 128-bit lane l, column 4 l + c of rows 4 g to 4 g + 3.
        let mut out = quads;
        for c in 0..4 {
            let (a, b, d, e) = (quads[c], quads[4 + c], quads[8 + c], quads[12 + c]);
            let (low_even, low_odd) = (_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
            let (high_even, high_odd) = (_mm512_shuffle_i32x4(d, e, 0x88), _mm512_shuffle_i32x4(d, e, 0xdd));
            out[c] = _mm512_shuffle_i32x4(low_even, high_even, 0x88);
            out[8 + c] = _mm512_shuffle_i32x4(low_even, high_even, 0xdd);
            out[4 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
            out[12 + c] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
        }
        out
    }
}

fn lanes(count: usize) -> u16 {
    ((1u32 << count) - 1) as u16
}
