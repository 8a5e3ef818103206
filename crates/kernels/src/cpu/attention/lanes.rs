//! Vectors of f32 lanes that the attention kernels are written over, and the exponential, once for all of them.
//!
//! Every method is `#[inline(always)]`, so a kernel's body takes the instructions of the `#[target_feature]` function
//! that it ends up in (`table.rs`). Nothing else may call them: that is what "the instruction set is there" means in
//! the SAFETY comments.

/// A vector of f32 lanes.
pub(super) trait Lanes: Copy {
    /// The register.
    type V: Copy;
    /// Lanes of it, a divisor of 16.
    const N: usize;
    /// `exp2` is zero from here down; the reduction of the argument works from here up.
    const EXP2_LOWEST: f32;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `N` values, at any alignment.
    unsafe fn load(from: *const f32) -> Self::V;
    /// Reads the first `count` (or `N`, if that is less) values; the other lanes are zero and not read.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V;
    /// Reads `N` bf16 values given as their bits, at any alignment.
    unsafe fn widen(from: *const u16) -> Self::V;
    /// Writes `N` values, at any alignment.
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Writes the first `count` (or `N`, if that is less) values only.
    unsafe fn store_first(to: *mut f32, count: usize, v: Self::V);
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the machine can.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater one; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The lesser one; `b` where either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(v: Self::V) -> Self::V;
    /// `v * 2^n` for integral `n` from `EXP2_LOWEST` up; infinite where the result is too large.
    unsafe fn scale2(v: Self::V, n: Self::V) -> Self::V;
    /// The first `count` lanes of `v`, the others of `other`.
    unsafe fn keep_first(v: Self::V, count: usize, other: Self::V) -> Self::V;
    /// The greatest lane.
    unsafe fn max_lane(v: Self::V) -> f32;
}

/// Minimax polynomial of `(2^f - 1) / f` for f in [-0.5, 0.5], lowest power first; 2e-9 relative error of `2^f`.
const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_48, 0.055_503_324, 0.009_618_437, 0.001_339_887_5, 0.000_153_533_62];

/// `2^x` within 2 ulp; zero instead of denormals where the lanes have no cheap way to make them. NaN stays NaN.
///
/// # Safety
/// The instruction set of `L` is there.
#[inline(always)]
pub(super) unsafe fn exp2<L: Lanes>(x: L::V) -> L::V {
    // SAFETY: the caller's promise is that of every call here; no memory is touched.
    unsafe {
        let x = L::max(L::splat(L::EXP2_LOWEST), x);
        let n = L::round(x);
        let f = L::sub(x, n);
        let mut p = L::splat(EXP2[5]);
        p = L::mul_add(p, f, L::splat(EXP2[4]));
        p = L::mul_add(p, f, L::splat(EXP2[3]));
        p = L::mul_add(p, f, L::splat(EXP2[2]));
        p = L::mul_add(p, f, L::splat(EXP2[1]));
        p = L::mul_add(p, f, L::splat(EXP2[0]));
        p = L::mul_add(p, f, L::splat(1.0));
        L::scale2(p, n)
    }
}

/// Eight lanes in plain Rust; the compiler makes of them what the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Adding and taking away 1.5 * 2^23 rounds a float below 2^22 to an integer, ties to even.
const ROUNDER: f32 = 12_582_912.0;

impl Lanes for Portable {
    type V = [f32; 8];
    const N: usize = 8;
    const EXP2_LOWEST: f32 = -127.0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller points at 8 floats; an array has its element's alignment, and the read needs none.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V {
        let mut lanes = [0.0; 8];
        // SAFETY: the caller points at `count` floats, and no more than the 8 of `lanes` are copied.
        unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count.min(8)) };
        lanes
    }
    #[inline(always)]
    unsafe fn widen(from: *const u16) -> Self::V {
        // SAFETY: the caller points at 8 values of 16 bits.
        let bits = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        std::array::from_fn(|lane| f32::from_bits(u32::from(bits[lane]) << 16))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller points at room for 8 floats.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, v: Self::V) {
        // SAFETY: the caller points at room for `count` floats, and no more than the 8 of `v` are copied.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), to, count.min(8)) };
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not `f32::mul_add`: without an FMA instruction that is a call into libm.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        std::array::from_fn(|lane| (v[lane] + ROUNDER) - ROUNDER)
    }
    #[inline(always)]
    unsafe fn scale2(v: Self::V, n: Self::V) -> Self::V {
        std::array::from_fn(|lane| {
            // n is integral and at least -127 (128 for a NaN): biased, 0 is the float zero and 255 infinity.
            let biased = (n[lane].min(128.0) as i32 + 127) as u32;
            v[lane] * f32::from_bits(biased << 23)
        })
    }
    #[inline(always)]
    unsafe fn keep_first(v: Self::V, count: usize, other: Self::V) -> Self::V {
        std::array::from_fn(|lane| if lane < count { v[lane] } else { other[lane] })
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        let mut greatest = v[0];
        for &lane in &v[1..] {
            greatest = if lane > greatest { lane } else { greatest };
        }
        greatest
    }
}
