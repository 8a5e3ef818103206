//! SwiGLU, the sigmoid gate of a shared expert, biases and sums.

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn swiglu_forward(rows: usize, width: usize, gate_up: In<'_>, out: Out<'_>) -> Outcome {
    let at = Arguments("swiglu_forward");
    let gate_up = at.floats("gate_up", gate_up, elements([rows, width, 2]))?;
    let out = at.floats_mut("out", out, elements([rows, width]))?;
    for row in 0..rows {
        for i in 0..width {
            let (gate, up) = (gate_up[2 * row * width + i], gate_up[(2 * row + 1) * width + i]);
            out[row * width + i] = gate * sigmoid(gate) * up;
        }
    }
    Ok(())
}

pub(super) fn swiglu_backward(
    rows: usize,
    width: usize,
    d_out: In<'_>,
    gate_up: In<'_>,
    d_gate_up: Out<'_>,
) -> Outcome {
    let at = Arguments("swiglu_backward");
    let d_out = at.floats("d_out", d_out, elements([rows, width]))?;
    let gate_up = at.floats("gate_up", gate_up, elements([rows, width, 2]))?;
    let d_gate_up = at.floats_mut("d_gate_up", d_gate_up, elements([rows, width, 2]))?;
    for row in 0..rows {
        for i in 0..width {
            let (gate_at, up_at) = (2 * row * width + i, (2 * row + 1) * width + i);
            let (gate, up, d_out) = (gate_up[gate_at], gate_up[up_at], d_out[row * width + i]);
            // out = gate * sigmoid(gate) * up
            let s = sigmoid(gate);
            d_gate_up[gate_at] = d_out * up * s * (1.0 + gate * (1.0 - s));
            d_gate_up[up_at] = d_out * gate * s;
        }
    }
    Ok(())
}

pub(super) fn sigmoid_gate_forward(rows: usize, width: usize, logit: In<'_>, x: In<'_>, out: Out<'_>) -> Outcome {
    let at = Arguments("sigmoid_gate_forward");
    let logit = at.f32s("logit", logit, rows)?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let out = at.floats_mut("out", out, elements([rows, width]))?;
    for (row, logit) in logit.iter().enumerate() {
        for i in row * width..(row + 1) * width {
            out[i] += sigmoid(*logit) * x[i];
        }
    }
    Ok(())
}

pub(super) fn sigmoid_gate_backward(
    rows: usize,
    width: usize,
    d_out: In<'_>,
    logit: In<'_>,
    x: In<'_>,
    dx: Out<'_>,
    d_logit: Out<'_>,
) -> Outcome {
    let at = Arguments("sigmoid_gate_backward");
    let d_out = at.floats("d_out", d_out, elements([rows, width]))?;
    let logit = at.f32s("logit", logit, rows)?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let dx = at.floats_mut("dx", dx, elements([rows, width]))?;
    let d_logit = at.f32s_mut("d_logit", d_logit, rows)?;
    for row in 0..rows {
        // out += sigmoid(logit) * x
        let s = sigmoid(logit[row]);
        let mut d_gate = 0.0;
        for i in row * width..(row + 1) * width {
            dx[i] = s * d_out[i];
            d_gate += d_out[i] * x[i];
        }
        d_logit[row] = d_gate * s * (1.0 - s);
    }
    Ok(())
}

pub(super) fn bias_forward(rows: usize, width: usize, bias: In<'_>, x: Out<'_>) -> Outcome {
    let at = Arguments("bias_forward");
    let bias = at.f32s("bias", bias, width)?;
    let x = at.floats_mut("x", x, elements([rows, width]))?;
    (0..rows * width).for_each(|i| x[i] += bias[i % width]);
    Ok(())
}

pub(super) fn bias_backward(rows: usize, width: usize, dx: In<'_>, d_bias: Out<'_>) -> Outcome {
    let at = Arguments("bias_backward");
    let dx = at.floats("dx", dx, elements([rows, width]))?;
    let d_bias = at.f32s_mut("d_bias", d_bias, width)?;
    (0..rows * width).for_each(|i| d_bias[i % width] += dx[i]);
    Ok(())
}

pub(super) fn add(source: In<'_>, target: Out<'_>) -> Outcome {
    let at = Arguments("add");
    let source = at.floats("source", source, target.len)?;
    let target = at.floats_mut("target", target, source.len())?;
    target.iter_mut().zip(source).for_each(|(target, source)| *target += source);
    Ok(())
}
