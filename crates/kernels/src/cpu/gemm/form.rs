//! How operands lie in packed memory, in *units* of 32 bits, and the instructions that multiply them.
//!
//! A unit is one f32, or a pair of bf16 that are neighbours along k. A product over units is then one loop for both:
//! broadcast a unit of A, multiply with a vector of units of B, accumulate in f32 lanes. Packed memory is `[u32]`,
//! whatever the units hold.
//!
//! Every method is `#[inline(always)]`, so that it takes the instructions of the `#[target_feature]` function that it
//! ends up in (`table.rs`). Nothing else may call them: that is what "the instructions are there" means in the SAFETY
//! comments.

use half::bf16;

/// What a unit is, and the instructions that multiply it.
pub(super) trait Form: Copy {
    /// A vector of units.
    type Units: Copy;
    /// A vector of f32 sums, as many as there are units in a vector.
    type Sums: Copy;
    /// Units in a vector.
    const LANES: usize;

    /// Sums of nothing.
    unsafe fn zero() -> Self::Sums;
    /// All lanes the unit at `from`, at any alignment.
    unsafe fn splat(from: *const u32) -> Self::Units;
    /// Reads a vector of units, at any alignment.
    unsafe fn load(from: *const u32) -> Self::Units;
    /// `sum` plus the products of the values in the units.
    unsafe fn multiply_add(a: Self::Units, b: Self::Units, sum: Self::Sums) -> Self::Sums;
    /// The lanes' sums.
    unsafe fn add(a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Reads the first `count` lanes (all, if that is more), at any alignment; the others are zero and not read.
    unsafe fn read(from: *const f32, count: usize) -> Self::Sums;
    /// Writes the first `count` lanes (all, if that is more) only, at any alignment.
    unsafe fn write(to: *mut f32, count: usize, sums: Self::Sums);
    /// [`Form::read`] of bf16.
    unsafe fn read_bf16(from: *const bf16, count: usize) -> Self::Sums;
    /// [`Form::write`] of bf16, rounded to nearest, ties to even.
    unsafe fn write_bf16(to: *mut bf16, count: usize, sums: Self::Sums);
}

/// `bf16::from_f32` without branches, so that the compiler makes vector instructions of it.
#[inline(always)]
pub(super) fn round(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { nearest })
}

/// The f32 of a bf16.
#[inline(always)]
pub(super) fn widen(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// A unit is one f32, in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Form for Portable {
    type Units = [f32; 8];
    type Sums = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(from: *const u32) -> [f32; 8] {
        // SAFETY: the caller points at a unit.
        [f32::from_bits(unsafe { from.read_unaligned() }); 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> [f32; 8] {
        // SAFETY: the caller points at 8 units, each the bits of an f32.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 8], b: [f32; 8], sum: [f32; 8]) -> [f32; 8] {
        // Not `f32::mul_add`: without an FMA instruction that is a call into libm.
        std::array::from_fn(|lane| a[lane] * b[lane] + sum[lane])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn read(from: *const f32, count: usize) -> [f32; 8] {
        // SAFETY: the caller points at `count` floats.
        unsafe { first(from, count, 0.0) }
    }
    #[inline(always)]
    unsafe fn write(to: *mut f32, count: usize, sums: [f32; 8]) {
        // SAFETY: the caller points at room for `count` floats.
        unsafe { put_first(to, count, sums) }
    }
    #[inline(always)]
    unsafe fn read_bf16(from: *const bf16, count: usize) -> [f32; 8] {
        // SAFETY: the caller points at `count` values.
        unsafe { first(from, count, bf16::ZERO).map(widen) }
    }
    #[inline(always)]
    unsafe fn write_bf16(to: *mut bf16, count: usize, sums: [f32; 8]) {
        // SAFETY: the caller points at room for `count` values.
        unsafe { put_first(to, count, sums.map(round)) }
    }
}

/// The first `count` of eight values (all, if that is more), the others `rest`.
///
/// # Safety
/// `from` reaches that many.
#[inline(always)]
pub(super) unsafe fn first<T: Copy>(from: *const T, count: usize, rest: T) -> [T; 8] {
    let mut values = [rest; 8];
    // SAFETY: the caller's values are as many as are copied; an array is as aligned as its element, and reads need not be.
    unsafe {
        if count >= 8 {
            return from.cast::<[T; 8]>().read_unaligned();
        }
        std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count);
    }
    values
}

/// Writes the first `count` of eight values (all, if that is more).
///
/// # Safety
/// `to` has room for that many.
#[inline(always)]
pub(super) unsafe fn put_first<T: Copy>(to: *mut T, count: usize, values: [T; 8]) {
    // SAFETY: the caller has room for as many as are copied.
    unsafe {
        if count >= 8 {
            return to.cast::<[T; 8]>().write_unaligned(values);
        }
        std::ptr::copy_nonoverlapping(values.as_ptr(), to, count);
    }
}
