//! AdamW, the sum of squares behind the gradient's norm, and noise.

use half::bf16;
use rayon::prelude::*;

use super::arguments::{Arguments, Array, In, Out};
use super::buffer::CudaBuffer;
use super::compile::{Kernel, Source};
use super::launch::{Grid, Value};
use crate::backend::Outcome;
use crate::buffer::Element;
use crate::noise::normal_block;
use crate::ops::{AdamW, NoiseKey};

pub(super) static SOURCE: Source = Source {
    file: "optimizer.cu",
    text: include_str!("optimizer.cu"),
    kernels: &[&ADAMW, &ADAMW_COMPUTE, &SUM_SQUARES],
};
static ADAMW: Kernel = Kernel { source: &SOURCE, name: "adamw", types: 0 };
static ADAMW_COMPUTE: Kernel = Kernel { source: &SOURCE, name: "adamw_compute", types: 1 };
static SUM_SQUARES: Kernel = Kernel { source: &SOURCE, name: "sum_squares", types: 1 };

/// `Coefficients` of `optimizer.cu`: made in f64, since `1 - beta` in f32 would lose half of its digits.
fn coefficients(step: AdamW) -> [f32; 8] {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = step;
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    [
        grad_scale,
        1.0 - lr * weight_decay,
        beta2,
        1.0 - beta1,
        1.0 - beta2,
        correction(beta2).sqrt(),
        eps,
        lr / correction(beta1),
    ]
    .map(|value| value as f32)
}

pub(super) fn adamw(
    at: Arguments<'_>,
    step: AdamW,
    grad: In<'_>,
    master: Out<'_>,
    moment1: Out<'_>,
    moment2: Out<'_>,
    compute: Option<Out<'_>>,
) -> Outcome {
    at.shape(step.step > 0, || "step is 0; steps count from 1".to_owned())?;
    let len = master.len;
    let grad = at.f32s("grad", grad, len)?;
    let master = at.f32s("master", &master, len)?;
    let moment1 = at.f32s("moment1", &moment1, len)?;
    let moment2 = at.f32s("moment2", &moment2, len)?;
    let compute = compute.map(|compute| at.floats("compute", &compute, len)).transpose()?;
    if len == 0 {
        return Ok(());
    }
    let grid = Grid::elements(at.0, len)?;
    let by = Value::F32x8(coefficients(step));
    let [len, grad, master, moment1, moment2] =
        [len.into(), grad.into(), master.into(), moment1.into(), moment2.into()];
    let Some(compute) = compute else {
        // SAFETY: all four have the length that the kernel keeps to.
        return unsafe { at.1.launch(&ADAMW, &[], grid, &[len, by, grad, master, moment1, moment2]) };
    };
    let arguments = [len, by, grad, master, moment1, moment2, compute.into()];
    // SAFETY: all five have the length that the kernel keeps to.
    unsafe { at.1.launch(&ADAMW_COMPUTE, &[compute.element], grid, &arguments) }
}

/// Chunks on the device, and their sums in order on the host, which waits for them.
pub(super) fn sum_squares(at: Arguments<'_>, x: In<'_>) -> Outcome<f64> {
    const CHUNK: usize = 65_536;
    let x = at.floats("x", x, x.len)?;
    if x.len == 0 {
        return Ok(0.0);
    }
    let count = x.len.div_ceil(CHUNK);
    // Memory is counted in u32s here, for no element type is as long as an f64.
    let memory = CudaBuffer::new(at.1, Element::U32, 2 * count)?;
    let partial = Array { address: memory.address(), element: Element::U32, len: 2 * count };
    let arguments = [x.len.into(), CHUNK.into(), x.into(), partial.into()];
    // SAFETY: a block for each of `count` chunks; the kernel keeps to x's length in the last; partial, the start of an
    // allocation and so aligned to 256 bytes, has a double for each.
    unsafe { at.1.launch(&SUM_SQUARES, &[x.element], Grid::rows(at.0, count, CHUNK)?, &arguments) }?;
    let partial: Vec<[u32; 2]> = at.download::<u32>(partial)?.chunks_exact(2).map(|d| [d[0], d[1]]).collect();
    Ok(partial.into_iter().map(bytemuck::cast::<[u32; 2], f64>).sum())
}

/// Made on the host and copied: a value must have the same bits wherever it is made, and the device's logarithm and sine
/// are not those of the host. Fresh weights and grown ones are made once.
pub(super) fn fill_normal(at: Arguments<'_>, key: NoiseKey, first: u64, deviation: f64, target: Out<'_>) -> Outcome {
    /// Values made at a time, before they go to the device.
    const PIECE: usize = 1 << 22;
    let target = at.floats("target", &target, target.len)?;
    for start in (0..target.len).step_by(PIECE) {
        let target = target.part(start, PIECE.min(target.len - start));
        let values = normals(key, first.wrapping_add(start as u64), deviation, target.len);
        if target.element == Element::F32 {
            at.upload(&values, target)?;
        } else {
            at.upload(&values.into_iter().map(bf16::from_f32).collect::<Vec<_>>(), target)?;
        }
    }
    Ok(())
}

fn normals(key: NoiseKey, first: u64, deviation: f64, len: usize) -> Vec<f32> {
    const PART: usize = 1024;
    let mut values = vec![0.0; len];
    values.par_chunks_mut(PART).enumerate().for_each(|(part, mut rest)| {
        let mut index = first.wrapping_add((part * PART) as u64);
        while !rest.is_empty() {
            // The range may begin and end inside a block of four.
            let inside = (index % 4) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(4 - inside));
            let block = normal_block(key, index / 4);
            now.iter_mut().zip(&block[inside..]).for_each(|(value, z)| *value = (deviation * z) as f32);
            index = index.wrapping_add(now.len() as u64);
            rest = later;
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::normal_at;

    #[test]
    fn noise_has_the_bits_that_each_value_has_alone() {
        let key = NoiseKey { seed: 3, stream: 5 };
        for first in [0, 3, 1 << 40] {
            let values = normals(key, first, 0.5, 2500);
            let alone = (first..).take(2500).map(|index| (0.5 * normal_at(key, index)) as f32);
            assert!(values.iter().zip(alone).all(|(value, alone)| value.to_bits() == alone.to_bits()));
        }
    }

    #[test]
    fn coefficients_keep_the_digits_of_one_minus_beta() {
        let step = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.5, step: 1, grad_scale: 2.0 };
        let by = coefficients(step);
        assert_eq!(by[..3], [2.0, 0.95, 0.999]);
        assert_eq!(by[4], 0.001);
        assert_eq!(by[7], 1.0);
    }
}
