//! SwiGLU and the sigmoid gate of a shared expert.

use super::arguments::{Arguments, In, Out, elements};
use super::compile::{Kernel, Source};
use super::launch::Grid;
use crate::backend::Outcome;

pub(super) static SOURCE: Source = Source {
    file: "activation.cu",
    text: include_str!("activation.cu"),
    kernels: &[&SWIGLU_FORWARD, &SWIGLU_BACKWARD, &SIGMOID_GATE_FORWARD, &SIGMOID_GATE_BACKWARD],
};
static SWIGLU_FORWARD: Kernel = Kernel { source: &SOURCE, name: "swiglu_forward", types: 2 };
static SWIGLU_BACKWARD: Kernel = Kernel { source: &SOURCE, name: "swiglu_backward", types: 3 };
static SIGMOID_GATE_FORWARD: Kernel = Kernel { source: &SOURCE, name: "sigmoid_gate_forward", types: 2 };
static SIGMOID_GATE_BACKWARD: Kernel = Kernel { source: &SOURCE, name: "sigmoid_gate_backward", types: 3 };

pub(super) fn swiglu_forward(at: Arguments<'_>, rows: usize, width: usize, gate_up: In<'_>, out: Out<'_>) -> Outcome {
    let gate_up = at.floats("gate_up", gate_up, elements([rows, width, 2]))?;
    let out = at.floats("out", &out, elements([rows, width]))?;
    if out.len == 0 {
        return Ok(());
    }
    let types = [gate_up.element, out.element];
    let arguments = [width.into(), gate_up.into(), out.into()];
    // SAFETY: a block for each of `rows`, which gate_up has of 2 * `width` and out of `width`.
    unsafe { at.1.launch(&SWIGLU_FORWARD, &types, Grid::rows(at.0, rows, width)?, &arguments) }
}

pub(super) fn swiglu_backward(
    at: Arguments<'_>,
    rows: usize,
    width: usize,
    d_out: In<'_>,
    gate_up: In<'_>,
    d_gate_up: Out<'_>,
) -> Outcome {
    let d_out = at.floats("d_out", d_out, elements([rows, width]))?;
    let gate_up = at.floats("gate_up", gate_up, elements([rows, width, 2]))?;
    let d_gate_up = at.floats("d_gate_up", &d_gate_up, elements([rows, width, 2]))?;
    if d_out.len == 0 {
        return Ok(());
    }
    let types = [d_out.element, gate_up.element, d_gate_up.element];
    let arguments = [width.into(), d_out.into(), gate_up.into(), d_gate_up.into()];
    // SAFETY: a block for each of `rows`, which gate_up and d_gate_up have of 2 * `width` and d_out of `width`.
    unsafe { at.1.launch(&SWIGLU_BACKWARD, &types, Grid::rows(at.0, rows, width)?, &arguments) }
}

pub(super) fn sigmoid_gate_forward(
    at: Arguments<'_>,
    rows: usize,
    width: usize,
    logit: In<'_>,
    x: In<'_>,
    out: Out<'_>,
) -> Outcome {
    let logit = at.f32s("logit", logit, rows)?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let out = at.floats("out", &out, elements([rows, width]))?;
    if out.len == 0 {
        return Ok(());
    }
    let types = [x.element, out.element];
    let arguments = [width.into(), logit.into(), x.into(), out.into()];
    // SAFETY: a block for each of `rows`, which x and out have of `width`; logit has `rows` values.
    unsafe { at.1.launch(&SIGMOID_GATE_FORWARD, &types, Grid::rows(at.0, rows, width)?, &arguments) }
}

pub(super) fn sigmoid_gate_backward(
    at: Arguments<'_>,
    rows: usize,
    width: usize,
    d_out: In<'_>,
    logit: In<'_>,
    x: In<'_>,
    dx: Out<'_>,
    d_logit: Out<'_>,
) -> Outcome {
    let d_out = at.floats("d_out", d_out, elements([rows, width]))?;
    let logit = at.f32s("logit", logit, rows)?;
    let x = at.floats("x", x, elements([rows, width]))?;
    let dx = at.floats("dx", &dx, elements([rows, width]))?;
    let d_logit = at.f32s("d_logit", &d_logit, rows)?;
    if rows == 0 {
        return Ok(());
    }
    let types = [d_out.element, x.element, dx.element];
    let arguments = [width.into(), d_out.into(), logit.into(), x.into(), dx.into(), d_logit.into()];
    // SAFETY: a block for each of `rows`, which d_out, x and dx have of `width`; logit and d_logit have `rows` values.
    unsafe { at.1.launch(&SIGMOID_GATE_BACKWARD, &types, Grid::rows(at.0, rows, width)?, &arguments) }
}
