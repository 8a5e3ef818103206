//! AdamW, the sum of squares behind the gradient's norm, and noise.

use rayon::prelude::*;

use super::copies::convert;
use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut, by_type};
use super::sums::squares;
use super::vectorize::{Value, part_rows, vectorized};
use crate::backend::Outcome;
use crate::noise::normal_block;
use crate::ops::{AdamW, NoiseKey};

/// What a step multiplies by: made in f64, since `1 - beta` in f32 would lose half of its digits.
#[derive(Clone, Copy)]
struct Coefficients {
    grad_scale: f32,
    decay: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    root_correction2: f32,
    eps: f32,
    step_size: f32,
}

impl Coefficients {
    fn new(step: AdamW) -> Self {
        let AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = step;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            grad_scale: grad_scale as f32,
            decay: (1.0 - lr * weight_decay) as f32,
            beta2: beta2 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            root_correction2: correction(beta2).sqrt() as f32,
            eps: eps as f32,
            step_size: (lr / correction(beta1)) as f32,
        }
    }
}

/// See [`crate::Backend::adamw`]. The order of operations is that of `torch.optim.AdamW`.
///
/// # Errors
/// Lengths that differ, a step of number 0.
pub(crate) fn adamw(
    isa: Isa,
    step: AdamW,
    grad: &[f32],
    master: &mut [f32],
    moment1: &mut [f32],
    moment2: &mut [f32],
    compute: Option<FloatsMut<'_>>,
) -> Outcome {
    let at = Refusal("adamw");
    at.shape(step.step > 0, || "step is 0; steps count from 1".to_owned())?;
    at.length("grad", grad.len(), master.len())?;
    at.length("moment1", moment1.len(), master.len())?;
    at.length("moment2", moment2.len(), master.len())?;
    if let Some(compute) = &compute {
        at.length("compute", compute.len(), master.len())?;
    }
    let coefficients = Coefficients::new(step);
    let part = part_rows(1);
    let parts = grad
        .par_chunks(part)
        .zip(master.par_chunks_mut(part))
        .zip(moment1.par_chunks_mut(part))
        .zip(moment2.par_chunks_mut(part));
    let Some(compute) = compute else {
        parts.for_each(|(((grad, master), m), v)| adamw_part(isa, coefficients, grad, master, m, v));
        return Ok(());
    };
    by_type!(
        parts.zip(compute.par_chunks_mut(part)).for_each(|((((grad, master), m), v), compute)| {
            adamw_part(isa, coefficients, grad, master, m, v);
            convert(isa, master, compute);
        });
        FloatsMut compute
    );
    Ok(())
}

vectorized! {
    fn adamw_part<const FMA: bool>(
        isa: Isa,
        by: Coefficients,
        grad: &[f32],
        master: &mut [f32],
        moment1: &mut [f32],
        moment2: &mut [f32],
    ) {
        for (((g, p), m), v) in grad.iter().zip(master).zip(moment1).zip(moment2) {
            let g = *g * by.grad_scale;
            *p *= by.decay;
            *m += (g - *m) * by.one_minus_beta1;
            *v = *v * by.beta2 + by.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / by.root_correction2 + by.eps;
            *p -= by.step_size * *m / denominator;
        }
    }
}

/// See [`crate::Backend::sum_squares`]: sums over parts in f64, and the sums of the parts in order.
pub(crate) fn sum_squares(isa: Isa, x: Floats<'_>) -> f64 {
    by_type!(sum_parts(isa, x); Floats x)
}

fn sum_parts<X: Value>(isa: Isa, x: &[X]) -> f64 {
    let part = part_rows(1);
    let mut sums = vec![0.0; x.len().div_ceil(part)];
    x.par_chunks(part).zip(&mut sums).for_each(|(x, sum)| *sum = squares_of(isa, x));
    sums.iter().sum()
}

vectorized! {
    fn squares_of<const FMA: bool, X: Value>(isa: Isa, x: &[X]) -> f64 {
        squares::<FMA, X>(x)
    }
}

/// See [`crate::Backend::fill_normal`].
pub(crate) fn fill_normal(key: NoiseKey, first: u64, deviation: f64, target: FloatsMut<'_>) {
    by_type!(fill(key, first, deviation, target); FloatsMut target);
}

fn fill<T: Value>(key: NoiseKey, first: u64, deviation: f64, target: &mut [T]) {
    /// A value takes some 30 ns, far more than the memory that it goes to.
    const PART: usize = 1024;
    target.par_chunks_mut(PART).enumerate().for_each(|(part, target)| {
        let mut index = first.wrapping_add((part * PART) as u64);
        let mut rest = target;
        while !rest.is_empty() {
            // The range may begin and end inside a block of four.
            let inside = (index % 4) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(4 - inside));
            let values = normal_block(key, index / 4);
            for (target, z) in now.iter_mut().zip(&values[inside..]) {
                *target = T::round((deviation * z) as f32);
            }
            index = index.wrapping_add(now.len() as u64);
            rest = later;
        }
    });
}
