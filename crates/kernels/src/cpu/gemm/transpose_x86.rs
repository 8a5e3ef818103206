//! Transpositions in registers: 16 by 16 units with AVX-512, 8 by 8 with AVX2.

use std::arch::x86_64::*;

use half::bf16;

use super::pack::{Paired, Single, Transpose, Widened};

/// 16 by 16 units.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// 8 by 8 units.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

impl Transpose<Single> for Avx512 {
    const SIDE: usize = 16;

    #[inline(always)]
    unsafe fn block(from: *const f32, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promise: 16 rows of 16 floats.
        unsafe { sixteen(|row| _mm512_loadu_si512(from.add(row * stride).cast()), to, to_stride) }
    }
}

impl Transpose<Paired> for Avx512 {
    const SIDE: usize = 16;

    #[inline(always)]
    unsafe fn block(from: *const bf16, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promise: 16 rows of 16 pairs.
        unsafe { sixteen(|row| _mm512_loadu_si512(from.add(row * stride).cast()), to, to_stride) }
    }
}

impl Transpose<Widened> for Avx512 {
    const SIDE: usize = 16;

    #[inline(always)]
    unsafe fn block(from: *const bf16, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promise: 16 rows of 16 bf16.
        unsafe {
            let widened = |row| {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(row * stride).cast()));
                _mm512_slli_epi32::<16>(bits)
            };
            sixteen(widened, to, to_stride);
        }
    }
}

impl Transpose<Single> for Avx2 {
    const SIDE: usize = 8;

    #[inline(always)]
    unsafe fn block(from: *const f32, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promise: 8 rows of 8 floats.
        unsafe { eight(|row| _mm256_loadu_si256(from.add(row * stride).cast()), to, to_stride) }
    }
}

impl Transpose<Widened> for Avx2 {
    const SIDE: usize = 8;

    #[inline(always)]
    unsafe fn block(from: *const bf16, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promise: 8 rows of 8 bf16.
        unsafe {
            let widened = |row| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(row * stride).cast()));
                _mm256_slli_epi32::<16>(bits)
            };
            eight(widened, to, to_stride);
        }
    }
}

/// Stores the columns of sixteen rows of sixteen units.
///
/// # Safety
/// AVX-512 F and BW are there; `to` reaches 16 units at each of 16 strides.
#[inline(always)]
unsafe fn sixteen(row: impl Fn(usize) -> __m512i, to: *mut u32, to_stride: usize) {
    // SAFETY: registers only, but for the stores, which the caller vouches for.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); 16];
        for (r, vector) in rows.iter_mut().enumerate() {
            *vector = row(r);
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
                _mm512_storeu_si512(to.add((4 * lane + i) * to_stride).cast(), column);
            }
        }
    }
}

/// Stores the columns of eight rows of eight units.
///
/// # Safety
/// AVX2 is there; `to` reaches 8 units at each of 8 strides.
#[inline(always)]
unsafe fn eight(row: impl Fn(usize) -> __m256i, to: *mut u32, to_stride: usize) {
    // SAFETY: registers only, but for the stores, which the caller vouches for.
    unsafe {
        let mut four = [_mm256_setzero_si256(); 8];
        for quad in 0..2 {
            let [a, b, c, d] = [row(4 * quad), row(4 * quad + 1), row(4 * quad + 2), row(4 * quad + 3)];
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            four[4 * quad] = _mm256_unpacklo_epi64(ab_low, cd_low);
            four[4 * quad + 1] = _mm256_unpackhi_epi64(ab_low, cd_low);
            four[4 * quad + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
            four[4 * quad + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
        }
        // Lane l of four[4 * quad + i] holds column 4 * l + i of rows 4 * quad..4 * quad + 4.
        for i in 0..4 {
            let (low, high) = (four[i], four[4 + i]);
            _mm256_storeu_si256(to.add(i * to_stride).cast(), _mm256_permute2x128_si256::<0x20>(low, high));
            _mm256_storeu_si256(to.add((4 + i) * to_stride).cast(), _mm256_permute2x128_si256::<0x31>(low, high));
        }
    }
}
