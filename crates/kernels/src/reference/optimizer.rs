//! AdamW, the sum of squares behind the gradient's norm, and noise.

use super::arguments::Arguments;
use super::{In, Out};
use crate::backend::Outcome;
use crate::noise::normal_at;
use crate::ops::{AdamW, NoiseKey};

pub(super) fn adamw(
    step: AdamW,
    grad: In<'_>,
    master: Out<'_>,
    moment1: Out<'_>,
    moment2: Out<'_>,
    compute: Option<Out<'_>>,
) -> Outcome {
    let at = Arguments("adamw");
    at.shape(step.step > 0, || "step is 0; steps count from 1".to_owned())?;
    let len = master.len;
    let grad = at.f32s("grad", grad, len)?;
    let master = at.f32s_mut("master", master, len)?;
    let moment1 = at.f32s_mut("moment1", moment1, len)?;
    let moment2 = at.f32s_mut("moment2", moment2, len)?;
    let compute = compute.map(|compute| at.floats_mut("compute", compute, len)).transpose()?;

    let correction1 = 1.0 - step.beta1.powf(step.step as f64);
    let correction2 = 1.0 - step.beta2.powf(step.step as f64);
    for i in 0..len {
        let grad = grad[i] * step.grad_scale;
        moment1[i] = step.beta1 * moment1[i] + (1.0 - step.beta1) * grad;
        moment2[i] = step.beta2 * moment2[i] + (1.0 - step.beta2) * grad * grad;
        let denominator = (moment2[i] / correction2).sqrt() + step.eps;
        master[i] *= 1.0 - step.lr * step.weight_decay;
        master[i] -= step.lr * (moment1[i] / correction1) / denominator;
    }
    if let Some(compute) = compute {
        compute.copy_from_slice(master);
    }
    Ok(())
}

pub(super) fn sum_squares(x: In<'_>) -> Outcome<f64> {
    Ok(Arguments("sum_squares").floats("x", x, x.len)?.iter().map(|x| x * x).sum())
}

pub(super) fn fill_normal(key: NoiseKey, first: u64, deviation: f64, target: Out<'_>) -> Outcome {
    let len = target.len;
    let target = Arguments("fill_normal").floats_mut("target", target, len)?;
    (0..).zip(target).for_each(|(i, target): (u64, _)| *target = deviation * normal_at(key, first.wrapping_add(i)));
    Ok(())
}
