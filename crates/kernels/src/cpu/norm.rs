//! RMSNorm.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut, by_type};
use super::sums::{dot, dot3};
use super::vectorize::{Value, mul_add, part_rows, summed_rows, vectorized};
use crate::backend::Outcome;
use crate::ops::RmsNorm;

/// See [`crate::Backend::rms_norm_forward`].
///
/// # Errors
/// Lengths that do not fit, rows without values.
pub(crate) fn rms_norm_forward(
    isa: Isa,
    norm: RmsNorm,
    x: Floats<'_>,
    weight: &[f32],
    y: FloatsMut<'_>,
    inverse_rms: &mut [f32],
) -> Outcome {
    let at = Refusal("rms_norm_forward");
    let elements = check(at, norm, weight)?;
    at.length("x", x.len(), elements)?;
    at.length("y", y.len(), elements)?;
    at.length("inverse_rms", inverse_rms.len(), norm.rows)?;
    by_type!(forward(isa, norm, x, weight, y, inverse_rms); Floats x, FloatsMut y);
    Ok(())
}

fn forward<X: Value, Y: Value>(isa: Isa, norm: RmsNorm, x: &[X], weight: &[f32], y: &mut [Y], inverse_rms: &mut [f32]) {
    let part = part_rows(norm.width);
    let values = part * norm.width;
    x.par_chunks(values)
        .zip(y.par_chunks_mut(values))
        .zip(inverse_rms.par_chunks_mut(part))
        .for_each(|((x, y), inverse_rms)| forward_part(isa, norm, x, weight, y, inverse_rms));
}

vectorized! {
    fn forward_part<const FMA: bool, X: Value, Y: Value>(
        isa: Isa,
        norm: RmsNorm,
        x: &[X],
        weight: &[f32],
        y: &mut [Y],
        inverse_rms: &mut [f32],
    ) {
        let RmsNorm { width, eps, accumulate, .. } = norm;
        for ((x, y), inverse_rms) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(inverse_rms) {
            let mean_square = f64::from(dot::<FMA, X, X>(x, x)) / width as f64;
            let r = (1.0 / (mean_square + eps).sqrt()) as f32;
            *inverse_rms = r;
            for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                let normed = x.widen() * r * *weight;
                *y = Y::round(if accumulate { y.widen() + normed } else { normed });
            }
        }
    }
}

/// See [`crate::Backend::rms_norm_backward`].
///
/// `d_weight` is summed over parts of the rows, and the sums of the parts in order.
///
/// # Errors
/// As [`rms_norm_forward`].
pub(crate) fn rms_norm_backward(
    isa: Isa,
    norm: RmsNorm,
    dy: Floats<'_>,
    x: Floats<'_>,
    weight: &[f32],
    inverse_rms: &[f32],
    dx: FloatsMut<'_>,
    d_weight: &mut [f32],
) -> Outcome {
    let at = Refusal("rms_norm_backward");
    let elements = check(at, norm, weight)?;
    at.length("dy", dy.len(), elements)?;
    at.length("x", x.len(), elements)?;
    at.length("inverse_rms", inverse_rms.len(), norm.rows)?;
    at.length("dx", dx.len(), elements)?;
    at.length("d_weight", d_weight.len(), norm.width)?;
    by_type!(
        backward(isa, norm, dy, x, weight, inverse_rms, dx, d_weight);
        Floats dy, Floats x, FloatsMut dx
    );
    Ok(())
}

fn backward<Y: Value, X: Value, D: Value>(
    isa: Isa,
    norm: RmsNorm,
    dy: &[Y],
    x: &[X],
    weight: &[f32],
    inverse_rms: &[f32],
    dx: &mut [D],
    d_weight: &mut [f32],
) {
    let part = summed_rows(norm.rows, norm.width);
    let values = part * norm.width;
    let mut sums = vec![0.0; norm.rows.div_ceil(part) * norm.width];
    dy.par_chunks(values)
        .zip(x.par_chunks(values))
        .zip(inverse_rms.par_chunks(part))
        .zip(dx.par_chunks_mut(values))
        .zip(sums.par_chunks_mut(norm.width))
        .for_each(|((((dy, x), r), dx), sums)| backward_part(isa, norm, dy, x, weight, r, dx, sums));
    for sums in sums.chunks_exact(norm.width) {
        d_weight.iter_mut().zip(sums).for_each(|(d_weight, sum)| *d_weight += sum);
    }
}

vectorized! {
    fn backward_part<const FMA: bool, Y: Value, X: Value, D: Value>(
        isa: Isa,
        norm: RmsNorm,
        dy: &[Y],
        x: &[X],
        weight: &[f32],
        inverse_rms: &[f32],
        dx: &mut [D],
        d_weight: &mut [f32],
    ) {
        let RmsNorm { width, accumulate, .. } = norm;
        let rows = dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((dy, x), dx), r) in rows.zip(inverse_rms) {
            // y_i = x_i * r * weight_i, with r = (mean(x²) + eps)^(-1/2) and so dr/dx_j = -r³ * x_j / width
            let shrink = r * r * r * dot3::<FMA, Y, X>(dy, x, weight) / width as f32;
            for ((((dx, dy), x), weight), d_weight) in dx.iter_mut().zip(dy).zip(x).zip(weight).zip(&mut *d_weight) {
                let (dy, x) = (dy.widen() * r, x.widen());
                let gradient = mul_add::<FMA>(-shrink, x, dy * *weight);
                *dx = D::round(if accumulate { dx.widen() + gradient } else { gradient });
                *d_weight = mul_add::<FMA>(dy, x, *d_weight);
            }
        }
    }
}

/// How many elements the rows have.
fn check(at: Refusal, norm: RmsNorm, weight: &[f32]) -> Outcome<usize> {
    at.shape(norm.width > 0, || "width is 0; a row needs at least one value".to_owned())?;
    at.length("weight", weight.len(), norm.width)?;
    Ok(norm.rows.saturating_mul(norm.width))
}
