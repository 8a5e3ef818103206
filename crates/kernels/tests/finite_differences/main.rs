//! Every backward pass of the reference backend against central differences of its forward pass, in f64.
//!
//! A kernel is a function from named inputs to outputs; the loss is the sum of its outputs times fixed random weights, so
//! the gradient of an output is its weights. With a step of 1e-5 a central difference is off by about 1e-10 relative
//! (the step squared) and by as much again for rounding (1e-16 / 1e-5); 1e-7 tells a right gradient from a wrong one.

mod products;
mod routing;
mod rows;
mod tokens;

use std::env;

use cambium_kernels::KernelError;
use cambium_kernels::backend::Backend;
use cambium_kernels::buffer::{Buffer, Element};
use cambium_kernels::reference::{Reference, ReferenceBuffer};
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;
const FIXED_SEED: u64 = 17;

type Values = Vec<f64>;
type Outcome<T> = Result<T, KernelError>;

/// Runs `test` with a fixed seed and with a fresh one (`CAMBIUM_TEST_SEED` if it is set), which is printed.
fn with_seeds(test: impl Fn(&mut StdRng) -> Outcome<()>) {
    let fresh = env::var("CAMBIUM_TEST_SEED").map_or_else(|_| rand::random(), |s| s.parse().expect("a decimal seed"));
    for seed in [FIXED_SEED, fresh] {
        println!("seed {seed}; run it again with CAMBIUM_TEST_SEED={seed}");
        test(&mut StdRng::seed_from_u64(seed)).expect("a kernel refused its arguments");
    }
}

fn draw(random: &mut StdRng, len: usize) -> Values {
    (0..len).map(|_| random.random_range(-1.5..1.5)).collect()
}

/// The gradients that `backward` gives for `inputs` are those of `forward`.
///
/// `forward(inputs)` gives the outputs; `backward(d_outputs)` the gradient of each input, from the same point.
fn agrees(
    what: &str,
    random: &mut StdRng,
    inputs: &[Values],
    forward: impl Fn(&[Values]) -> Outcome<Vec<Values>>,
    backward: impl Fn(&[Values]) -> Outcome<Vec<Values>>,
) -> Outcome<()> {
    let d_outputs: Vec<Values> = forward(inputs)?.iter().map(|output| draw(random, output.len())).collect();
    let loss = |inputs: &[Values]| -> Outcome<f64> {
        let outputs = forward(inputs)?;
        Ok(outputs.iter().flatten().zip(d_outputs.iter().flatten()).map(|(output, weight)| output * weight).sum())
    };
    let gradients = backward(&d_outputs)?;
    assert_eq!(gradients.len(), inputs.len(), "{what}: a gradient for each input");
    for (which, gradient) in gradients.iter().enumerate() {
        let mut moved = inputs.to_vec();
        let mut differences = Vec::new();
        for i in 0..moved[which].len() {
            let at = moved[which][i];
            moved[which][i] = at + STEP;
            let above = loss(&moved)?;
            moved[which][i] = at - STEP;
            let below = loss(&moved)?;
            moved[which][i] = at;
            differences.push((above - below) / (2.0 * STEP));
        }
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let distance: Values = gradient.iter().zip(&differences).map(|(g, d)| g - d).collect();
        assert_eq!(gradient.len(), differences.len(), "{what}: length of gradient {which}");
        let relative = norm(&distance) / norm(&differences).max(1e-3);
        assert!(relative < TOLERANCE, "{what}: gradient of input {which} is off by {relative:.2e}");
    }
    Ok(())
}

/// Memory of the reference backend, filled.
fn floats(values: &[f64]) -> Outcome<ReferenceBuffer> {
    let backend = Reference::new();
    let mut buffer = backend.alloc(Element::F32, values.len())?;
    backend.write(&Tensor::from_slice(values, values.len(), &Device::Cpu)?, buffer.view_mut())?;
    Ok(buffer)
}

fn indices(values: &[u32]) -> Outcome<ReferenceBuffer> {
    let backend = Reference::new();
    let mut buffer = backend.alloc(Element::U32, values.len())?;
    backend.write_u32(values, buffer.view_mut())?;
    Ok(buffer)
}

/// Memory to write to, not written yet.
fn fresh(len: usize) -> Outcome<ReferenceBuffer> {
    Reference::new().alloc(Element::F32, len)
}

fn zeros(len: usize) -> Outcome<ReferenceBuffer> {
    Reference::new().zeros(Element::F32, len)
}

fn values(buffer: &ReferenceBuffer) -> Outcome<Values> {
    Ok(Reference::new().read(buffer.view(), &[buffer.len()])?.to_vec1()?)
}
