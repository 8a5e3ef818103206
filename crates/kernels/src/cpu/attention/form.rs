//! How operands of a product lie in a packed block: in *units* of 32 bits.
//!
//! A unit is one f32, or a pair of bf16 that are neighbours along the summed dimension. A product over units is then
//! the same loop for both: broadcast a unit of A, multiply with a vector of units of B, accumulate in f32 lanes.
//! Packed blocks are `[u32]`, whatever the units hold.

use super::lanes::Lanes;

/// What a unit is, and the instructions that multiply it.
pub(super) trait Form: Copy {
    /// Lanes of the accumulators; `L::N` units are a vector of operands.
    type L: Lanes;
    /// A vector of `L::N` units.
    type Units: Copy;
    /// Values in a unit.
    const UNIT: usize;

    /// All lanes the unit at `from`.
    unsafe fn splat(from: *const u32) -> Self::Units;
    /// Reads `L::N` units, at any alignment.
    unsafe fn load(from: *const u32) -> Self::Units;
    /// `c` plus the products of the values in the units.
    unsafe fn accumulate(a: Self::Units, b: Self::Units, c: Vector<Self>) -> Vector<Self>;

    /// Stores columns `column..column + 2N` of a row whose units run along the columns.
    unsafe fn store_row(row: *mut u32, column: usize, low: Vector<Self>, high: Vector<Self>);
    /// Stores columns `column..column + N` of rows `r` (even) and `r + 1` of a matrix whose units run along the rows
    /// and whose rows of units are `stride` long.
    unsafe fn store_rows(
        matrix: *mut u32,
        stride: usize,
        r: usize,
        column: usize,
        even: Vector<Self>,
        odd: Vector<Self>,
    );
}

/// The accumulators of a form.
pub(super) type Vector<F> = <<F as Form>::L as Lanes>::V;

/// A unit is one f32.
#[derive(Clone, Copy)]
pub(super) struct Single<L>(std::marker::PhantomData<L>);

impl<L: Lanes> Form for Single<L> {
    type L = L;
    type Units = L::V;
    const UNIT: usize = 1;

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> L::V {
        // SAFETY: the caller points at a unit, which is an f32 here and aligned as one.
        unsafe { L::splat(*from.cast::<f32>()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> L::V {
        // SAFETY: the caller points at `N` units.
        unsafe { L::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn accumulate(a: L::V, b: L::V, c: L::V) -> L::V {
        // SAFETY: the caller runs with the instructions of L.
        unsafe { L::mul_add(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store_row(row: *mut u32, column: usize, low: L::V, high: L::V) {
        // SAFETY: the caller's row has 2N units from `column` on.
        unsafe {
            L::store(row.add(column).cast(), low);
            L::store(row.add(column + L::N).cast(), high);
        }
    }
    #[inline(always)]
    unsafe fn store_rows(matrix: *mut u32, stride: usize, r: usize, column: usize, even: L::V, odd: L::V) {
        // SAFETY: the caller's matrix has N units from `column` on in rows r and r + 1.
        unsafe {
            L::store(matrix.add(r * stride + column).cast(), even);
            L::store(matrix.add((r + 1) * stride + column).cast(), odd);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use pairs::Pairs;

#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::x86_64::*;

    use super::super::lanes_x86::Avx512;
    use super::Form;

    /// A unit is two bf16, the first in the low half; `vdpbf16ps` multiplies.
    ///
    /// That instruction takes denormal inputs as zero, flushes denormal results and rounds to nearest even.
    #[derive(Clone, Copy)]
    pub(crate) struct Pairs;

    /// Words of two vectors of 16, one after the other, in turn: 0, 16, 1, 17 and so on.
    static IN_TURN: [u16; 32] = {
        let mut order = [0; 32];
        let mut lane = 0;
        while lane < 16 {
            order[2 * lane] = lane as u16;
            order[2 * lane + 1] = lane as u16 + 16;
            lane += 1;
        }
        order
    };

    impl Form for Pairs {
        type L = Avx512;
        type Units = __m512i;
        const UNIT: usize = 2;

        #[inline(always)]
        unsafe fn splat(from: *const u32) -> __m512i {
            // SAFETY: the caller points at a unit and runs with AVX-512.
            unsafe { _mm512_set1_epi32(*from.cast::<i32>()) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512i {
            // SAFETY: the caller points at 16 units and runs with AVX-512.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn accumulate(a: __m512i, b: __m512i, c: __m512) -> __m512 {
            // SAFETY: the caller runs with AVX512_BF16; __m512i and __m512bh are both 64 plain bytes.
            unsafe {
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                let b = std::mem::transmute::<__m512i, __m512bh>(b);
                _mm512_dpbf16_ps(c, a, b)
            }
        }
        #[inline(always)]
        unsafe fn store_row(row: *mut u32, column: usize, low: __m512, high: __m512) {
            // SAFETY: AVX512_BF16 by the caller, whose row has 32 columns, 16 units, from the even `column` on.
            // __m512bh and __m512i are both 64 plain bytes.
            unsafe {
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(row.add(column / 2).cast(), both);
            }
        }
        #[inline(always)]
        unsafe fn store_rows(matrix: *mut u32, stride: usize, r: usize, column: usize, even: __m512, odd: __m512) {
            // SAFETY: AVX512_BF16 and BW by the caller, whose matrix has 16 units from `column` on in row r / 2 of
            // pairs. IN_TURN is 64 bytes. __m512bh and __m512i are both 64 plain bytes.
            unsafe {
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
                let order = _mm512_loadu_si512(IN_TURN.as_ptr().cast());
                let pairs = _mm512_permutexvar_epi16(order, both);
                _mm512_storeu_si512(matrix.add(r / 2 * stride + column).cast(), pairs);
            }
        }
    }
}
