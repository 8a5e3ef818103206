//! Once per step: the gradient norm, AdamW, and the selection biases.
//!
//! **Invariant:** every parameter is counted once in the norm, by name, whatever the placement: the sums of squares of
//! all tensors are sorted by name and added in f64.

use cambium_kernels::{AdamW, Backend, Buffer, KernelError};
use candle_core::{Device, Tensor};

use crate::error::Outcome;
use crate::stage::Stage;

/// AdamW as a run configures it; decay applies to tensors of two or more dimensions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The largest gradient norm; larger ones are scaled down to it. 0: no clipping.
    pub grad_clip: f64,
}

/// Sums of squares of every tensor's gradient in a stage, by name.
///
/// # Errors
/// [`crate::ModelError::MissingGradient`] if a parameter got none in this step.
pub fn grad_squares<B: Backend>(backend: &B, stage: &Stage<B>, step: u64) -> Outcome<Vec<(String, f64)>> {
    let mut squares = Vec::new();
    for param in stage.params() {
        param.grad_squares(backend, step, &mut squares)?;
    }
    Ok(squares)
}

/// The global norm out of the sums of squares of all tensors of a model, in whatever order they arrive.
#[must_use]
pub fn grad_norm(mut squares: Vec<(String, f64)>) -> f64 {
    squares.sort_by(|a, b| a.0.cmp(&b.0));
    squares.iter().map(|(_, square)| square).sum::<f64>().sqrt()
}

/// What the gradients are multiplied by, as `torch.nn.utils.clip_grad_norm_` has it.
#[must_use]
pub fn clip_scale(norm: f64, grad_clip: f64) -> f64 {
    if grad_clip > 0.0 { (grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// One AdamW step over all parameters of a stage; their gradients are spent.
///
/// # Errors
/// If a kernel fails.
pub fn update<B: Backend>(
    backend: &B,
    stage: &mut Stage<B>,
    settings: &OptimizerSettings,
    lr: f64,
    step: u64,
    grad_scale: f64,
) -> Outcome {
    let step = AdamW {
        lr,
        beta1: settings.beta1,
        beta2: settings.beta2,
        eps: settings.eps,
        weight_decay: settings.weight_decay,
        step,
        grad_scale,
    };
    for param in stage.params_mut() {
        param.update(backend, step)?;
    }
    Ok(())
}

/// Moves the selection biases towards even load, once per step: `b_e += rate * sign(mean load - load_e)`
/// (arXiv 2408.15664, algorithm 1). `load` has the assignments of the whole step, by MoE layer of this stage and expert.
///
/// # Errors
/// If a kernel fails.
pub fn update_selection_biases<B: Backend>(backend: &B, stage: &mut Stage<B>, load: &[Vec<u64>], rate: f64) -> Outcome {
    if rate == 0.0 {
        return Ok(());
    }
    for (block, load) in stage.moe_blocks_mut().zip(load) {
        let Some(bias) = &mut block.selection_bias else { continue };
        let total: u64 = load.iter().sum();
        let mut values = backend.read_f32(bias.master())?;
        for (value, count) in values.iter_mut().zip(load) {
            // Compared as integers, count * E against the total: the mean needs no rounding.
            let step = match (count * load.len() as u64).cmp(&total) {
                std::cmp::Ordering::Less => rate,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Greater => -rate,
            };
            *value = (f64::from(*value) + step) as f32;
        }
        let len = values.len();
        let host = Tensor::from_vec(values, len, &Device::Cpu).map_err(KernelError::Host)?;
        backend.write(&host, bias.master_mut().view_mut())?;
        bias.refresh(backend)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_does_not_depend_on_the_order_in_which_tensors_report() {
        let squares: Vec<_> = (0..100).map(|i| (format!("tensor.{i}"), 1.0 / f64::from(i * i + 3))).collect();
        let reversed = squares.iter().rev().cloned().collect();
        assert_eq!(grad_norm(squares).to_bits(), grad_norm(reversed).to_bits());
    }

    #[test]
    fn small_gradients_are_not_scaled_up() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(1e9, 0.0), 1.0);
        assert_eq!(clip_scale(4.0, 1.0), 1.0 / 4.000_001);
    }
}
