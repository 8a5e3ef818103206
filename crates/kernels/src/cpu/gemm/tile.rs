//! The AVX-512 register tile: up to 12 rows by 32 columns of C in 24 registers.
//!
//! One step multiplies one f32, or one pair of bf16 that are neighbours along k (`vdpbf16ps`), of each row of A with 32
//! columns of B. A is read where it lies, by broadcasts of 4 bytes with two strides; B is packed. Per step 12 broadcasts
//! and 2 loads feed 24 multiply-adds, so arithmetic bounds it, not loads.
//!
//! Numerics: an element of C is one chain of fused multiply-adds in order of k. `vdpbf16ps` multiplies the pair exactly,
//! adds the odd product before the even one, rounds each addition to f32, and flushes denormals to zero.

use std::arch::x86_64::*;

use half::bf16;

/// Rows of a tile.
pub(super) const ROWS: usize = 12;
/// Columns of a tile.
pub(super) const COLUMNS: usize = 32;

/// A's block as a tile reads it: the 4 bytes of (row, step) lie at `start + row * row_bytes + step * step_bytes`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) start: *const u8,
    pub(super) row_bytes: usize,
    pub(super) step_bytes: usize,
}

/// Where a tile goes.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// Row-major f32.
    F32(*mut f32),
    /// Row-major bf16.
    Bf16(*mut bf16),
}

/// A tile of C: `rows` by `columns` at `target`, rows `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) target: Target,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Add to what is there.
    pub(super) accumulate: bool,
}

/// `C = A · B`, or `+=`, over `steps` steps; `right` is a packed panel of (steps, 32) 4-byte values.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL, and BF16 if `BF16`. `left` may be read for all rows and steps, `right` for
/// `steps * 32` values, and `tile` be written, and read if it accumulates. `1 <= rows <= 12`, `1 <= columns <= 32`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn multiply_bf16(left: Left, right: *const u32, steps: usize, tile: Tile) {
    // SAFETY: the caller's promises are those of `multiply`.
    unsafe { by_rows::<true>(left, right, steps, tile) }
}

/// [`multiply_bf16`] for f32.
///
/// # Safety
/// As for [`multiply_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn multiply_f32(left: Left, right: *const u32, steps: usize, tile: Tile) {
    // SAFETY: the caller's promises are those of `multiply`.
    unsafe { by_rows::<false>(left, right, steps, tile) }
}

/// A tile of exactly as many rows, and of one or two registers of columns, as there are: none is computed in vain.
#[inline(always)]
unsafe fn by_rows<const BF16: bool>(left: Left, right: *const u32, steps: usize, tile: Tile) {
    macro_rules! tiles {
        ($($rows:literal),*) => {
            // SAFETY: as promised by the caller; each arm computes `tile.rows` rows.
            unsafe {
                match (tile.rows, tile.columns > 16) {
                    $(($rows, true) => multiply::<BF16, $rows, 2>(left, right, steps, tile),)*
                    $(($rows, false) => multiply::<BF16, $rows, 1>(left, right, steps, tile),)*
                    _ => {}
                }
            }
        };
    }
    tiles!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
}

/// R rows of W registers.
#[inline(always)]
unsafe fn multiply<const BF16: bool, const R: usize, const W: usize>(
    left: Left,
    right: *const u32,
    steps: usize,
    tile: Tile,
) {
    // SAFETY: reads stay in the ranges that the caller promised: R = tile.rows rows, `steps` steps, 32 columns.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); W]; R];
        let (mut a, mut b) = (left.start, right);
        for _ in 0..steps {
            let mut columns = [_mm512_setzero_ps(); W];
            for (index, values) in columns.iter_mut().enumerate() {
                *values = _mm512_loadu_ps(b.add(16 * index).cast());
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = a.wrapping_add(row * left.row_bytes).cast::<f32>().read_unaligned();
                let value = _mm512_set1_ps(value);
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = multiply_add::<BF16>(*sum, value, column);
                }
            }
            a = a.wrapping_add(left.step_bytes);
            b = b.wrapping_add(COLUMNS);
        }
        for (row, sums) in sums.iter().enumerate() {
            store(&tile, row, sums);
        }
    }
}

#[inline(always)]
unsafe fn multiply_add<const BF16: bool>(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller runs with the instructions enabled.
    unsafe {
        if BF16 {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            let b = std::mem::transmute::<__m512, __m512bh>(b);
            _mm512_dpbf16_ps(sum, a, b)
        } else {
            _mm512_fmadd_ps(a, b, sum)
        }
    }
}

/// Writes one row of sums.
#[inline(always)]
unsafe fn store(tile: &Tile, row: usize, sums: &[__m512]) {
    let masks = masks(tile.columns);
    for (half, (sum, mask)) in sums.iter().copied().zip(masks).enumerate() {
        let offset = row * tile.stride + 16 * half;
        if mask == 0 {
            continue;
        }
        // SAFETY: lanes outside of the tile are masked off; the rest the caller may write, and read to accumulate.
        unsafe {
            match tile.target {
                Target::F32(start) => {
                    let at = start.add(offset);
                    let old = if tile.accumulate { _mm512_maskz_loadu_ps(mask, at) } else { _mm512_setzero_ps() };
                    _mm512_mask_storeu_ps(at, mask, if tile.accumulate { _mm512_add_ps(old, sum) } else { sum });
                }
                Target::Bf16(start) => {
                    let at = start.add(offset).cast::<i16>();
                    let sum = if tile.accumulate {
                        let old = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
                        _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(old, 16)), sum)
                    } else {
                        sum
                    };
                    _mm256_mask_storeu_epi16(at, mask, round(sum));
                }
            }
        }
    }
}

/// f32 to bf16, to nearest, ties to even; NaN stays NaN. In integers, so that it needs no `avx512bf16` and keeps
/// denormals.
#[inline(always)]
unsafe fn round(values: __m512) -> __m256i {
    // SAFETY: the caller runs with AVX-512 F enabled.
    unsafe {
        let bits = _mm512_castps_si512(values);
        let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16))
    }
}

/// Lanes of the two halves of a row of `columns` columns.
#[inline(always)]
fn masks(columns: usize) -> [u16; 2] {
    let mask = (1u64 << columns) - 1;
    [mask as u16, (mask >> 16) as u16]
}

/// Adds f32 sums (rows, columns) to a tile or writes them there, rounding once.
///
/// # Safety
/// The CPU has AVX-512 F, BW, VL; `sums` has `tile.rows` rows, `stride` apart, and `tile` is as for [`multiply_bf16`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn write_out(sums: *const f32, stride: usize, tile: Tile) {
    let masks = masks(tile.columns);
    for row in 0..tile.rows {
        // SAFETY: lanes outside of the tile are masked off.
        unsafe {
            let start = sums.add(row * stride);
            let halves = [_mm512_maskz_loadu_ps(masks[0], start), _mm512_maskz_loadu_ps(masks[1], start.add(16))];
            store(&tile, row, &halves);
        }
    }
}
