//! What happens to a block of scores between its products: the running softmax of the forward, and in the backward
//! the probabilities again and the gradient of the scores.
//!
//! Scores are taken in base 2: with `c = scale * log2(e)`, `exp(scale * s - lse) = 2^(c * s - lse * log2(e))`. The
//! forward rounds `c * s` before it takes the greatest one away, so that this one's exponent is zero and no sum is
//! below one, however large the scores. On the diagonal block column j of row i counts for `j <= i` only; beyond it nothing is
//! read (the products leave it out) and zeros are written.

use super::form::{Form, Vector};
use super::lanes::{Lanes, exp2};

/// Rows and columns of a block.
pub(super) const BLOCK: usize = 64;

/// What a block of queries has seen so far: the greatest score (base 2) of each row, and the sum of exponentials
/// relative to it, still spread over `L::N` lanes.
pub(super) struct Running<'a> {
    /// (BLOCK).
    pub greatest: &'a mut [f32],
    /// (BLOCK, lanes).
    pub sums: &'a mut [f32],
    /// (BLOCK): what the last step multiplies everything before it with.
    pub rescale: &'a mut [f32],
}

/// A block of scores in the forward.
pub(super) struct Step {
    /// Rows of it, even.
    pub rows: usize,
    /// Is it on the diagonal?
    pub diagonal: bool,
    /// `scale * log2(e)`.
    pub factor: f32,
}

/// Takes a block of scores into the running softmax and turns it into `2^(score - greatest)`, in units along the
/// columns: in place where a unit is an f32, otherwise in `pairs`.
///
/// # Safety
/// The instructions of `F` are there. Bounds are asserted here.
#[inline(always)]
pub(super) unsafe fn running_softmax<F: Form>(
    step: &Step,
    scores: &mut [f32],
    pairs: &mut [u32],
    running: &mut Running<'_>,
) {
    let lanes = F::L::N;
    assert!(step.rows <= BLOCK && BLOCK.is_multiple_of(2 * lanes));
    assert!(scores.len() >= BLOCK * BLOCK && (F::UNIT == 1 || pairs.len() >= BLOCK * BLOCK / F::UNIT));
    assert!(running.greatest.len() >= BLOCK && running.rescale.len() >= BLOCK);
    assert!(running.sums.len() >= BLOCK * lanes);
    let scores = scores.as_mut_ptr();
    let probabilities = if F::UNIT == 1 { scores.cast::<u32>() } else { pairs.as_mut_ptr() };
    // SAFETY: scores and probabilities have room for BLOCK rows of BLOCK columns, and the rest is as asserted.
    unsafe {
        if step.diagonal {
            softmax_rows::<F, true>(step, scores, probabilities, running);
        } else {
            softmax_rows::<F, false>(step, scores, probabilities, running);
        }
    }
}

/// [`running_softmax`] of a block on the diagonal or off it.
///
/// # Safety
/// As there, with its assertions made.
#[inline(always)]
unsafe fn softmax_rows<F: Form, const DIAGONAL: bool>(
    step: &Step,
    scores: *mut f32,
    probabilities: *mut u32,
    running: &mut Running<'_>,
) {
    let lanes = F::L::N;
    let mut seen = [f32::NEG_INFINITY; BLOCK];
    // SAFETY: rows are below BLOCK and columns in whole pairs of vectors below BLOCK, for which all of these have room;
    // the rest is the caller's promise.
    unsafe {
        let factor = F::L::splat(step.factor);
        let lowest = F::L::splat(f32::NEG_INFINITY);
        for (r, seen) in seen.iter_mut().enumerate().take(step.rows) {
            let count = if DIAGONAL { r + 1 } else { BLOCK };
            let row = scores.add(r * BLOCK);
            let mut greatest = lowest;
            for column in (0..count).step_by(lanes) {
                let score = F::L::mul(F::L::load(row.add(column)), factor);
                let score = if DIAGONAL { F::L::keep_first(score, count - column, lowest) } else { score };
                greatest = F::L::max(greatest, score);
            }
            *seen = F::L::max_lane(greatest);
        }
        for r in (0..BLOCK).step_by(lanes) {
            let before = F::L::load(running.greatest.as_ptr().add(r));
            let now = F::L::max(before, F::L::load(seen.as_ptr().add(r)));
            F::L::store(running.greatest.as_mut_ptr().add(r), now);
            F::L::store(running.rescale.as_mut_ptr().add(r), exp2::<F::L>(F::L::sub(before, now)));
        }
        for r in 0..step.rows {
            let count = if DIAGONAL { r + 1 } else { BLOCK };
            let row = scores.add(r * BLOCK);
            let target = probabilities.add(r * BLOCK / F::UNIT);
            let greatest = F::L::splat(*running.greatest.as_ptr().add(r));
            let rescale = F::L::splat(*running.rescale.as_ptr().add(r));
            let sums = running.sums.as_mut_ptr().add(r * lanes);
            let mut sum = F::L::mul(F::L::load(sums), rescale);
            for column in (0..BLOCK).step_by(2 * lanes) {
                let mut both = [F::L::splat(0.0); 2];
                for (vector, probability) in both.iter_mut().enumerate() {
                    let column = column + vector * lanes;
                    if column < count {
                        let exponent = F::L::sub(F::L::mul(F::L::load(row.add(column)), factor), greatest);
                        *probability = probability_of::<F, DIAGONAL>(exponent, count - column);
                        sum = F::L::add(sum, *probability);
                    }
                }
                F::store_row(target, column, both[0], both[1]);
            }
            F::L::store(sums, sum);
        }
    }
}

/// `2^exponent`, on the diagonal of the first `count` lanes only.
///
/// # Safety
/// The instructions of `F` are there.
#[inline(always)]
unsafe fn probability_of<F: Form, const DIAGONAL: bool>(exponent: Vector<F>, count: usize) -> Vector<F> {
    // SAFETY: as the caller promises.
    unsafe {
        let lowest = F::L::splat(f32::NEG_INFINITY);
        exp2::<F::L>(if DIAGONAL { F::L::keep_first(exponent, count, lowest) } else { exponent })
    }
}

/// Ends a running softmax: divides `out`, `rows` rows of `stride` values relative to the greatest score, by the sums,
/// and writes the natural logarithms of the sums of exponentials.
///
/// # Safety
/// The instructions of `L` are there. Bounds are asserted here.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes>(running: &mut Running<'_>, out: &mut [f32], stride: usize, lse: &mut [f32]) {
    assert!(stride.is_multiple_of(L::N) && lse.len() * stride <= out.len());
    for (r, (lse, row)) in lse.iter_mut().zip(out.chunks_exact_mut(stride)).enumerate() {
        let lanes = &mut running.sums[r * L::N..][..L::N];
        let mut half = L::N / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        let sum = lanes[0];
        // SAFETY: a row is whole vectors.
        unsafe {
            let inverse = L::splat(1.0 / sum);
            for column in (0..stride).step_by(L::N) {
                let values = row.as_mut_ptr().add(column);
                L::store(values, L::mul(L::load(values), inverse));
            }
        }
        let log2 = f64::from(running.greatest[r]) + f64::from(sum).log2();
        *lse = (log2 * std::f64::consts::LN_2) as f32;
    }
}

/// A block of scores in the backward.
pub(super) struct Gradient<'a> {
    /// Rows of it, even.
    pub rows: usize,
    /// Is it on the diagonal?
    pub diagonal: bool,
    /// `scale * log2(e)`.
    pub factor: f32,
    /// The scale of the scores.
    pub scale: f32,
    /// (BLOCK): minus the log of the sum of exponentials, base 2.
    pub offset: &'a [f32],
    /// (BLOCK): the sum over a row of `d_out * out`.
    pub delta: &'a [f32],
}

/// A matrix (BLOCK, BLOCK) in units along its rows, along its columns, or in both ways: where a unit is an f32 the two
/// are the same and `along_columns` stays empty.
pub(super) struct Packed<'a> {
    /// Units along the rows (summed over queries).
    pub along_rows: &'a mut [u32],
    /// Units along the columns (summed over keys).
    pub along_columns: &'a mut [u32],
}

/// Probabilities `p = exp(scale * s - lse)`, and from `dp = d_out · vᵀ` the gradient of the raw scores
/// `ds = p * (dp - delta) * scale`.
///
/// # Safety
/// The instructions of `F` are there. Bounds are asserted here.
#[inline(always)]
pub(super) unsafe fn score_gradient<F: Form>(
    step: &Gradient<'_>,
    scores: &[f32],
    d_probabilities: &[f32],
    probabilities: &mut [u32],
    d_scores: &mut Packed<'_>,
) {
    let units = BLOCK * BLOCK / F::UNIT;
    assert!(step.rows <= BLOCK && step.rows.is_multiple_of(2) && BLOCK.is_multiple_of(2 * F::L::N));
    assert!(scores.len() >= BLOCK * BLOCK && d_probabilities.len() >= BLOCK * BLOCK);
    assert!(step.offset.len() >= BLOCK && step.delta.len() >= BLOCK);
    assert!(probabilities.len() >= units && d_scores.along_rows.len() >= units);
    assert!(F::UNIT == 1 || d_scores.along_columns.len() >= units);
    // SAFETY: the assertions are those that it asks for.
    unsafe {
        if step.diagonal {
            gradient_rows::<F, true>(step, scores, d_probabilities, probabilities, d_scores);
        } else {
            gradient_rows::<F, false>(step, scores, d_probabilities, probabilities, d_scores);
        }
    }
}

/// [`score_gradient`] of a block on the diagonal or off it.
///
/// # Safety
/// As there, with its assertions made.
#[inline(always)]
unsafe fn gradient_rows<F: Form, const DIAGONAL: bool>(
    step: &Gradient<'_>,
    scores: &[f32],
    d_probabilities: &[f32],
    probabilities: &mut [u32],
    d_scores: &mut Packed<'_>,
) {
    let lanes = F::L::N;
    let (scores, d_probabilities) = (scores.as_ptr(), d_probabilities.as_ptr());
    let probabilities = probabilities.as_mut_ptr();
    let (along_rows, along_columns) = (d_scores.along_rows.as_mut_ptr(), d_scores.along_columns.as_mut_ptr());
    // SAFETY: rows r, r + 1 are below BLOCK and columns in whole pairs of vectors below BLOCK, for which all of these
    // have room; `along_columns` is touched only where it has; the rest is the caller's promise.
    unsafe {
        let zero = F::L::splat(0.0);
        let factor = F::L::splat(step.factor);
        for r in (0..step.rows).step_by(2) {
            for column in (0..BLOCK).step_by(2 * lanes) {
                // [row][vector]
                let (mut p, mut ds) = ([[zero; 2]; 2], [[zero; 2]; 2]);
                for odd in 0..2 {
                    let row = r + odd;
                    let count = if DIAGONAL { row + 1 } else { BLOCK };
                    let offset = F::L::splat(*step.offset.get_unchecked(row));
                    let delta = F::L::splat(*step.delta.get_unchecked(row));
                    for vector in 0..2 {
                        let column = column + vector * lanes;
                        if column >= count {
                            continue;
                        }
                        let at = row * BLOCK + column;
                        let exponent = F::L::mul_add(F::L::load(scores.add(at)), factor, offset);
                        // A probability is at most one: held to that, gradients stay finite when scores are so large
                        // that the rounding of `offset` alone is a large exponent.
                        let exponent = F::L::min(zero, exponent);
                        let probability = probability_of::<F, DIAGONAL>(exponent, count - column);
                        let from_delta = F::L::sub(F::L::load(d_probabilities.add(at)), delta);
                        let scaled = F::L::mul(F::L::mul(probability, F::L::splat(step.scale)), from_delta);
                        p[odd][vector] = probability;
                        ds[odd][vector] =
                            if DIAGONAL { F::L::keep_first(scaled, count - column, zero) } else { scaled };
                    }
                }
                for vector in 0..2 {
                    let column = column + vector * lanes;
                    F::store_rows(probabilities, BLOCK, r, column, p[0][vector], p[1][vector]);
                    F::store_rows(along_rows, BLOCK, r, column, ds[0][vector], ds[1][vector]);
                }
                if F::UNIT != 1 {
                    for (odd, ds) in ds.into_iter().enumerate() {
                        F::store_row(along_columns.add((r + odd) * BLOCK / F::UNIT), column, ds[0], ds[1]);
                    }
                }
            }
        }
    }
}
