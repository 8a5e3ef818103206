//! [`Form`] for AVX2 with FMA, for AVX-512, and for pairs of bf16 with AVX512_BF16.

use std::arch::x86_64::*;

use half::bf16;

use super::form::{Form, first, put_first, round, widen};

/// A unit is one f32, eight to a vector.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// A unit is one f32, sixteen to a vector.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// A unit is two bf16, the first in the low half; `vdpbf16ps` multiplies.
///
/// That instruction rounds after each of its two additions to nearest even, takes denormal inputs as zero and flushes
/// denormal results; so does the one that rounds results to bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Form for Avx2 {
    type Units = __m256;
    type Sums = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m256 {
        // SAFETY: the instructions are there, and the caller points at a unit.
        unsafe { _mm256_set1_ps(f32::from_bits(from.read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m256 {
        // SAFETY: the instructions are there, and the caller points at 8 units.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, sum: __m256) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the instructions are there.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn read(from: *const f32, count: usize) -> __m256 {
        // SAFETY: the instructions are there, and the caller points at `count` floats; an array of 8 is 32 plain bytes.
        unsafe { std::mem::transmute::<[f32; 8], __m256>(first(from, count, 0.0)) }
    }
    #[inline(always)]
    unsafe fn write(to: *mut f32, count: usize, sums: __m256) {
        // SAFETY: as for reading, with room for `count` floats.
        unsafe { put_first(to, count, std::mem::transmute::<__m256, [f32; 8]>(sums)) }
    }
    #[inline(always)]
    unsafe fn read_bf16(from: *const bf16, count: usize) -> __m256 {
        // SAFETY: as for floats, with values of 16 bits.
        unsafe { std::mem::transmute::<[f32; 8], __m256>(first(from, count, bf16::ZERO).map(widen)) }
    }
    #[inline(always)]
    unsafe fn write_bf16(to: *mut bf16, count: usize, sums: __m256) {
        // SAFETY: as for floats, with values of 16 bits.
        unsafe { put_first(to, count, std::mem::transmute::<__m256, [f32; 8]>(sums).map(round)) }
    }
}

impl Form for Avx512 {
    type Units = __m512;
    type Sums = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m512 {
        // SAFETY: the instructions are there, and the caller points at a unit.
        unsafe { _mm512_set1_ps(f32::from_bits(from.read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512 {
        // SAFETY: the instructions are there, and the caller points at 16 units.
        unsafe { _mm512_loadu_ps(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn read(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the instructions are there, and the caller points at `count` floats; no others are read.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(count), from) }
    }
    #[inline(always)]
    unsafe fn write(to: *mut f32, count: usize, sums: __m512) {
        // SAFETY: the instructions are there, and the caller has room for `count` floats; no others are written.
        unsafe { _mm512_mask_storeu_ps(to, first_lanes(count), sums) }
    }
    #[inline(always)]
    unsafe fn read_bf16(from: *const bf16, count: usize) -> __m512 {
        // SAFETY: the instructions are there, and the caller points at `count` values; no others are read.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn write_bf16(to: *mut bf16, count: usize, sums: __m512) {
        // SAFETY: the instructions are there, and the caller has room for `count` values; no others are written.
        unsafe {
            let bits = _mm512_castps_si512(sums);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let quiet_nan = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(sums, sums);
            let bits = _mm512_mask_blend_epi32(is_nan, nearest, quiet_nan);
            let rounded = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_mask_storeu_epi16(to.cast(), first_lanes(count), rounded);
        }
    }
}

impl Form for Pairs {
    type Units = __m512i;
    type Sums = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the instructions are there.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m512i {
        // SAFETY: the instructions are there, and the caller points at a unit.
        unsafe { _mm512_set1_epi32(from.read_unaligned().cast_signed()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512i {
        // SAFETY: the instructions are there, and the caller points at 16 units.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        // SAFETY: the instructions are there; __m512i and __m512bh are both 64 plain bytes.
        unsafe {
            let a = std::mem::transmute::<__m512i, __m512bh>(a);
            let b = std::mem::transmute::<__m512i, __m512bh>(b);
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller's promise is that of the same method there.
        unsafe { Avx512::add(a, b) }
    }
    #[inline(always)]
    unsafe fn read(from: *const f32, count: usize) -> __m512 {
        // SAFETY: the caller's promise is that of the same method there.
        unsafe { Avx512::read(from, count) }
    }
    #[inline(always)]
    unsafe fn write(to: *mut f32, count: usize, sums: __m512) {
        // SAFETY: the caller's promise is that of the same method there.
        unsafe { Avx512::write(to, count, sums) }
    }
    #[inline(always)]
    unsafe fn read_bf16(from: *const bf16, count: usize) -> __m512 {
        // SAFETY: the caller's promise is that of the same method there.
        unsafe { Avx512::read_bf16(from, count) }
    }
    #[inline(always)]
    unsafe fn write_bf16(to: *mut bf16, count: usize, sums: __m512) {
        // SAFETY: the instructions are there, and the caller has room for `count` values; no others are written.
        unsafe {
            // __m256bh and __m256i are both 32 plain bytes.
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums));
            _mm256_mask_storeu_epi16(to.cast(), first_lanes(count), rounded);
        }
    }
}

/// The mask of the first `count` of sixteen lanes.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    ((1_u32 << count.min(16)) - 1) as __mmask16
}
