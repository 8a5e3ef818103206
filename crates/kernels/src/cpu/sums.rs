//! Sums of a row, in lanes that are added up pairwise: one order on every instruction set and any number of threads.

use super::vectorize::{Value, mul_add};

/// Sums side by side. Fewer than elsewhere, since rows may be as short as a head.
const LANES: usize = 32;

/// `sum(a * b)`, of equal lengths.
#[inline(always)]
pub(super) fn dot<const FMA: bool, A: Value, B: Value>(a: &[A], b: &[B]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] = mul_add::<FMA>(a[i].widen(), b[i].widen(), lanes[i]);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = mul_add::<FMA>(a.widen(), b.widen(), *lane);
    }
    pairwise(lanes)
}

/// `sum(a * b * c)`, of equal lengths.
#[inline(always)]
pub(super) fn dot3<const FMA: bool, A: Value, B: Value>(a: &[A], b: &[B], c: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for i in 0..LANES {
            lanes[i] = mul_add::<FMA>(a[i].widen() * b[i].widen(), c[i], lanes[i]);
        }
    }
    for (((lane, a), b), c) in lanes.iter_mut().zip(a_rest).zip(b_rest).zip(c_rest) {
        *lane = mul_add::<FMA>(a.widen() * b.widen(), *c, *lane);
    }
    pairwise(lanes)
}

/// `sum(a²)` in f64; not finite if any element is not.
#[inline(always)]
pub(super) fn squares<const FMA: bool, A: Value>(a: &[A]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let square = |a: &A, sum: f64| {
        let a = f64::from(a.widen());
        // The square of an f32 is exact in f64: fused or not, the bits are the same.
        if FMA { a.mul_add(a, sum) } else { a * a + sum }
    };
    let (blocks, rest) = a.as_chunks::<LANES>();
    for a in blocks {
        for i in 0..LANES {
            lanes[i] = square(&a[i], lanes[i]);
        }
    }
    for (lane, a) in lanes.iter_mut().zip(rest) {
        *lane = square(a, *lane);
    }
    lanes.iter().sum()
}

#[inline(always)]
fn pairwise(mut lanes: [f32; LANES]) -> f32 {
    let mut pairs = LANES / 2;
    while pairs > 0 {
        for i in 0..pairs {
            lanes[i] += lanes[i + pairs];
        }
        pairs /= 2;
    }
    lanes[0]
}
