//! Sums of a row, in lanes that are added up pairwise: one order on every instruction set and any number of threads.

use super::vectorize::{Value, mul_add};

/// Sums side by side. Fewer than elsewhere, since rows may be as short as a head.
const LANES: usize = 32;

/// `sum(a * b)`, of equal lengths.
#[inline(always)]
pub(super) fn dot<const FMA: bool, A: Value, B: Value>(a: &[A], b: &[B]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
    for (a, b) in a.iter().zip(b) {
        add_products::<FMA>(&mut lanes, wide(a), wide(b));
    }
    if !a_rest.is_empty() {
        add_products::<FMA>(&mut lanes, padded(a_rest), padded(b_rest));
    }
    pairwise(lanes)
}

/// `sum(a * b * c)`, of equal lengths.
#[inline(always)]
pub(super) fn dot3<const FMA: bool, A: Value, B: Value>(a: &[A], b: &[B], c: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest), (c, c_rest)) = (a.as_chunks(), b.as_chunks(), c.as_chunks());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        add_products::<FMA>(&mut lanes, times(wide(a), wide(b)), *c);
    }
    if !a_rest.is_empty() {
        add_products::<FMA>(&mut lanes, times(padded(a_rest), padded(b_rest)), padded(c_rest));
    }
    pairwise(lanes)
}

#[inline(always)]
fn add_products<const FMA: bool>(lanes: &mut [f32; LANES], a: [f32; LANES], b: [f32; LANES]) {
    for i in 0..LANES {
        lanes[i] = mul_add::<FMA>(a[i], b[i], lanes[i]);
    }
}

#[inline(always)]
fn times(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
    std::array::from_fn(|i| a[i] * b[i])
}

#[inline(always)]
fn wide<A: Value>(values: &[A; LANES]) -> [f32; LANES] {
    values.map(Value::widen)
}

/// The end of a row, then zeros. Added lane by lane to as many lanes as it has, it would keep all of them in memory.
#[inline(always)]
fn padded<A: Value>(rest: &[A]) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    for (value, a) in values.iter_mut().zip(rest) {
        *value = a.widen();
    }
    values
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
