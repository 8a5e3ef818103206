//! The transposition of a block of units with AVX-512: sixteen rows and columns at a time in registers.

use std::arch::x86_64::*;

use super::softmax::BLOCK;

/// `target[column * BLOCK + row] = source[row * stride + column]` for [`BLOCK`] rows of `columns` units.
///
/// # Safety
/// AVX-512 F is there. Bounds are asserted here.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(source: &[u32], stride: usize, columns: usize, target: &mut [u32]) {
    if columns == 0 {
        return;
    }
    assert!((BLOCK - 1) * stride + columns <= source.len() && columns * BLOCK <= target.len());
    let whole = columns / 16 * 16;
    for row in (0..BLOCK).step_by(16) {
        for column in (0..whole).step_by(16) {
            // SAFETY: the 16 rows from `row` on are rows below BLOCK (a multiple of 16) and the 16 columns from
            // `column` on lie below `columns`: inside both slices by the assertion.
            unsafe {
                transpose16(
                    source.as_ptr().add(row * stride + column),
                    stride,
                    target.as_mut_ptr().add(column * BLOCK + row),
                );
            }
        }
        for column in whole..columns {
            for r in row..row + 16 {
                target[column * BLOCK + r] = source[r * stride + column];
            }
        }
    }
}

/// Sixteen rows of sixteen units, `stride` apart, into columns that are [`BLOCK`] apart.
///
/// # Safety
/// AVX-512 F is there; both pointers reach all of their 16 times 16 units.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose16(source: *const u32, stride: usize, target: *mut u32) {
    // SAFETY: offsets are those of the 16 rows on either side, which the caller vouches for.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); 16];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(source.add(r * stride).cast());
        }
        // 2 x 2 units, then 4 x 4 units within each 128-bit lane.
        let mut four = rows;
        for quad in 0..4 {
            let [a, b, c, d] = [rows[4 * quad], rows[4 * quad + 1], rows[4 * quad + 2], rows[4 * quad + 3]];
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            four[4 * quad] = _mm512_unpacklo_epi64(ab_low, cd_low);
            four[4 * quad + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
            four[4 * quad + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            four[4 * quad + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        // Lane l of four[4 * quad + i] now holds column 4 * l + i of rows 4 * quad..4 * quad + 4: gather the lanes.
        for i in 0..4 {
            let [a, b, c, d] = [four[i], four[4 + i], four[8 + i], four[12 + i]];
            let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
            let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xEE>(c, d));
            let columns = [
                _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low),
                _mm512_shuffle_i32x4::<0xDD>(ab_low, cd_low),
                _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
                _mm512_shuffle_i32x4::<0xDD>(ab_high, cd_high),
            ];
            for (lane, column) in columns.into_iter().enumerate() {
                _mm512_storeu_si512(target.add((4 * lane + i) * BLOCK).cast(), column);
            }
        }
    }
}
