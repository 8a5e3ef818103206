//! RMSNorm.

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::ops::RmsNorm;

pub(super) fn forward(shape: RmsNorm, x: In<'_>, weight: In<'_>, y: Out<'_>, inverse_rms: Out<'_>) -> Outcome {
    let at = Arguments("rms_norm_forward");
    let RmsNorm { rows, width, eps, accumulate } = shape;
    at.shape(width > 0, || "width is 0; a row needs at least one value".to_owned())?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let weight = at.f32s("weight", weight, width)?;
    let y = at.floats_mut("y", y, elements([rows, width]))?;
    let inverse_rms = at.f32s_mut("inverse_rms", inverse_rms, rows)?;

    for ((x, y), inverse_rms) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(inverse_rms) {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
        *inverse_rms = 1.0 / (mean_square + eps).sqrt();
        for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
            let normed = x * *inverse_rms * weight;
            *y = if accumulate { *y + normed } else { normed };
        }
    }
    Ok(())
}

pub(super) fn backward(
    shape: RmsNorm,
    dy: In<'_>,
    x: In<'_>,
    weight: In<'_>,
    inverse_rms: In<'_>,
    dx: Out<'_>,
    d_weight: Out<'_>,
) -> Outcome {
    let at = Arguments("rms_norm_backward");
    let RmsNorm { rows, width, accumulate, .. } = shape;
    at.shape(width > 0, || "width is 0; a row needs at least one value".to_owned())?;
    let dy = at.floats("dy", dy, elements([rows, width]))?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let weight = at.f32s("weight", weight, width)?;
    let inverse_rms = at.f32s("inverse_rms", inverse_rms, rows)?;
    let dx = at.floats_mut("dx", dx, elements([rows, width]))?;
    let d_weight = at.f32s_mut("d_weight", d_weight, width)?;

    for (row, r) in inverse_rms.iter().enumerate() {
        let range = row * width..(row + 1) * width;
        let (dy, x, dx) = (&dy[range.clone()], &x[range.clone()], &mut dx[range]);
        // y_i = x_i * r * weight_i, with r = (mean(x²) + eps)^(-1/2) and so dr/dx_j = -r³ * x_j / width
        let dot: f64 = (0..width).map(|i| dy[i] * weight[i] * x[i]).sum();
        for i in 0..width {
            let gradient = r * dy[i] * weight[i] - r.powi(3) * x[i] * dot / width as f64;
            dx[i] = if accumulate { dx[i] + gradient } else { gradient };
            d_weight[i] += dy[i] * x[i] * r;
        }
    }
    Ok(())
}
