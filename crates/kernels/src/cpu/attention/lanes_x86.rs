//! [`Lanes`] of AVX2 with FMA and of AVX-512.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// All ones, then zeros: eight words from `8 - count` on are the mask of the first `count` lanes.
static FIRST_LANES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The mask of the first `count` of eight lanes.
///
/// # Safety
/// AVX is there.
#[inline(always)]
unsafe fn first_lanes(count: usize) -> __m256i {
    // SAFETY: the caller runs with AVX; words 8-count..16-count of the 16 exist because count is held to 8.
    unsafe { _mm256_loadu_si256(FIRST_LANES.as_ptr().add(8 - count.min(8)).cast()) }
}

impl Lanes for Avx2 {
    type V = __m256;
    const N: usize = 8;
    const EXP2_LOWEST: f32 = -127.0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: AVX2, and 8 floats behind `from`, by the caller.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> __m256 {
        // SAFETY: AVX2, and 8 values of 16 bits behind `from`, by the caller.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        // SAFETY: AVX2, and room for 8 floats behind `to`, by the caller.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
        // SAFETY: AVX2, and `count` floats behind `from`, by the caller; masked lanes are not read.
        unsafe { _mm256_maskload_ps(from, first_lanes(count)) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, v: __m256) {
        // SAFETY: AVX2, and room for `count` floats behind `to`, by the caller; masked lanes are not written.
        unsafe { _mm256_maskstore_ps(to, first_lanes(count), v) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller runs with FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn scale2(v: __m256, n: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2. n is integral from -127 to 128 after the minimum (which gives 128 for a
        // NaN), so the biased exponent lies in 0 (the float zero) to 255 (infinity).
        unsafe {
            let exponent = _mm256_cvtps_epi32(_mm256_min_ps(n, _mm256_set1_ps(128.0)));
            let biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
            _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    unsafe fn keep_first(v: __m256, count: usize, other: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_blendv_ps(other, v, _mm256_castsi256_ps(first_lanes(count))) }
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m256) -> f32 {
        // SAFETY: the caller runs with AVX2.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// The mask of the first `count` of sixteen lanes.
#[inline(always)]
fn first_of_sixteen(count: usize) -> __mmask16 {
    ((1_u32 << count.min(16)) - 1) as __mmask16
}

impl Lanes for Avx512 {
    type V = __m512;
    const N: usize = 16;
    // `vscalefps` makes denormals; 2^-151 rounds to zero.
    const EXP2_LOWEST: f32 = -151.0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: AVX-512, and 16 floats behind `from`, by the caller.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> __m512 {
        // SAFETY: AVX-512, and 16 values of 16 bits behind `from`, by the caller.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        // SAFETY: AVX-512, and room for 16 floats behind `to`, by the caller.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        // SAFETY: AVX-512, and `count` floats behind `from`, by the caller; masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first_of_sixteen(count), from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, v: __m512) {
        // SAFETY: AVX-512, and room for `count` floats behind `to`, by the caller; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first_of_sixteen(count), v) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    unsafe fn scale2(v: __m512, n: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_scalef_ps(v, n) }
    }
    #[inline(always)]
    unsafe fn keep_first(v: __m512, count: usize, other: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_mask_blend_ps(first_of_sixteen(count), other, v) }
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_reduce_max_ps(v) }
    }
}
