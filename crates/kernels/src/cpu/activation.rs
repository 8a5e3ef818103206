//! SwiGLU and the sigmoid gate of a shared expert.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut, by_type};
use super::sums::dot;
use super::vectorize::{Value, exp, mul_add, part_rows, vectorized};
use crate::backend::Outcome;

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// See [`crate::Backend::swiglu_forward`].
///
/// # Errors
/// Lengths that do not fit.
pub(crate) fn swiglu_forward(isa: Isa, rows: usize, width: usize, gate_up: Floats<'_>, out: FloatsMut<'_>) -> Outcome {
    let at = Refusal("swiglu_forward");
    let elements = rows.saturating_mul(width);
    at.length("gate_up", gate_up.len(), elements.saturating_mul(2))?;
    at.length("out", out.len(), elements)?;
    if elements > 0 {
        by_type!(swiglu(isa, width, gate_up, out); Floats gate_up, FloatsMut out);
    }
    Ok(())
}

fn swiglu<G: Value, O: Value>(isa: Isa, width: usize, gate_up: &[G], out: &mut [O]) {
    let values = part_rows(width) * width;
    let parts = gate_up.par_chunks(2 * values).zip(out.par_chunks_mut(values));
    parts.for_each(|(gate_up, out)| swiglu_part(isa, width, gate_up, out));
}

vectorized! {
    fn swiglu_part<const FMA: bool, G: Value, O: Value>(isa: Isa, width: usize, gate_up: &[G], out: &mut [O]) {
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                let gate = gate.widen();
                *out = O::round(gate * sigmoid::<FMA>(gate) * up.widen());
            }
        }
    }
}

/// See [`crate::Backend::swiglu_backward`].
///
/// # Errors
/// Lengths that do not fit.
pub(crate) fn swiglu_backward(
    isa: Isa,
    rows: usize,
    width: usize,
    d_out: Floats<'_>,
    gate_up: Floats<'_>,
    d_gate_up: FloatsMut<'_>,
) -> Outcome {
    let at = Refusal("swiglu_backward");
    let elements = rows.saturating_mul(width);
    at.length("d_out", d_out.len(), elements)?;
    at.length("gate_up", gate_up.len(), elements.saturating_mul(2))?;
    at.length("d_gate_up", d_gate_up.len(), elements.saturating_mul(2))?;
    if elements > 0 {
        by_type!(
            swiglu_gradient(isa, width, d_out, gate_up, d_gate_up);
            Floats d_out, Floats gate_up, FloatsMut d_gate_up
        );
    }
    Ok(())
}

fn swiglu_gradient<O: Value, G: Value, D: Value>(
    isa: Isa,
    width: usize,
    d_out: &[O],
    gate_up: &[G],
    d_gate_up: &mut [D],
) {
    let values = part_rows(width) * width;
    let parts = d_out.par_chunks(values).zip(gate_up.par_chunks(2 * values)).zip(d_gate_up.par_chunks_mut(2 * values));
    parts.for_each(|((d_out, gate_up), d_gate_up)| swiglu_gradient_part(isa, width, d_out, gate_up, d_gate_up));
}

vectorized! {
    fn swiglu_gradient_part<const FMA: bool, O: Value, G: Value, D: Value>(
        isa: Isa,
        width: usize,
        d_out: &[O],
        gate_up: &[G],
        d_gate_up: &mut [D],
    ) {
        let pairs = gate_up.chunks_exact(2 * width).zip(d_gate_up.chunks_exact_mut(2 * width));
        for (d_out, (gate_up, d_gate_up)) in d_out.chunks_exact(width).zip(pairs) {
            let (gate, up) = gate_up.split_at(width);
            let (d_gate, d_up) = d_gate_up.split_at_mut(width);
            for ((((d_out, gate), up), d_gate), d_up) in d_out.iter().zip(gate).zip(up).zip(d_gate).zip(d_up) {
                let (d_out, gate, up) = (d_out.widen(), gate.widen(), up.widen());
                // out = gate * sigmoid(gate) * up
                let s = sigmoid::<FMA>(gate);
                *d_gate = D::round(d_out * up * (s * mul_add::<FMA>(gate, 1.0 - s, 1.0)));
                *d_up = D::round(d_out * (gate * s));
            }
        }
    }
}

/// See [`crate::Backend::sigmoid_gate_forward`].
///
/// # Errors
/// Lengths that do not fit.
pub(crate) fn sigmoid_gate_forward(
    isa: Isa,
    rows: usize,
    width: usize,
    logit: &[f32],
    x: Floats<'_>,
    out: FloatsMut<'_>,
) -> Outcome {
    let at = Refusal("sigmoid_gate_forward");
    let elements = rows.saturating_mul(width);
    at.length("logit", logit.len(), rows)?;
    at.length("x", x.len(), elements)?;
    at.length("out", out.len(), elements)?;
    if elements > 0 {
        by_type!(gate(isa, width, logit, x, out); Floats x, FloatsMut out);
    }
    Ok(())
}

fn gate<X: Value, O: Value>(isa: Isa, width: usize, logit: &[f32], x: &[X], out: &mut [O]) {
    let part = part_rows(width);
    let parts = logit.par_chunks(part).zip(x.par_chunks(part * width)).zip(out.par_chunks_mut(part * width));
    parts.for_each(|((logit, x), out)| gate_part(isa, width, logit, x, out));
}

vectorized! {
    fn gate_part<const FMA: bool, X: Value, O: Value>(
        isa: Isa,
        width: usize,
        logit: &[f32],
        x: &[X],
        out: &mut [O],
    ) {
        for ((logit, x), out) in logit.iter().zip(x.chunks_exact(width)).zip(out.chunks_exact_mut(width)) {
            let s = sigmoid::<FMA>(*logit);
            for (out, x) in out.iter_mut().zip(x) {
                *out = O::round(mul_add::<FMA>(s, x.widen(), out.widen()));
            }
        }
    }
}

/// See [`crate::Backend::sigmoid_gate_backward`].
///
/// # Errors
/// Lengths that do not fit.
pub(crate) fn sigmoid_gate_backward(
    isa: Isa,
    rows: usize,
    width: usize,
    d_out: Floats<'_>,
    logit: &[f32],
    x: Floats<'_>,
    dx: FloatsMut<'_>,
    d_logit: &mut [f32],
) -> Outcome {
    let at = Refusal("sigmoid_gate_backward");
    let elements = rows.saturating_mul(width);
    at.length("d_out", d_out.len(), elements)?;
    at.length("logit", logit.len(), rows)?;
    at.length("x", x.len(), elements)?;
    at.length("dx", dx.len(), elements)?;
    at.length("d_logit", d_logit.len(), rows)?;
    if width == 0 {
        d_logit.fill(0.0); // the sum of nothing
    } else {
        by_type!(gate_gradient(isa, width, d_out, logit, x, dx, d_logit); Floats d_out, Floats x, FloatsMut dx);
    }
    Ok(())
}

fn gate_gradient<O: Value, X: Value, D: Value>(
    isa: Isa,
    width: usize,
    d_out: &[O],
    logit: &[f32],
    x: &[X],
    dx: &mut [D],
    d_logit: &mut [f32],
) {
    let part = part_rows(width);
    let values = part * width;
    d_out
        .par_chunks(values)
        .zip(logit.par_chunks(part))
        .zip(x.par_chunks(values))
        .zip(dx.par_chunks_mut(values))
        .zip(d_logit.par_chunks_mut(part))
        .for_each(|((((d_out, logit), x), dx), d_logit)| {
            gate_gradient_part(isa, width, d_out, logit, x, dx, d_logit);
        });
}

vectorized! {
    fn gate_gradient_part<const FMA: bool, O: Value, X: Value, D: Value>(
        isa: Isa,
        width: usize,
        d_out: &[O],
        logit: &[f32],
        x: &[X],
        dx: &mut [D],
        d_logit: &mut [f32],
    ) {
        let rows = d_out.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((d_out, x), dx), (logit, d_logit)) in rows.zip(logit.iter().zip(d_logit)) {
            // out += sigmoid(logit) * x
            let s = sigmoid::<FMA>(*logit);
            *d_logit = dot::<FMA, O, X>(d_out, x) * s * (1.0 - s);
            for (dx, d_out) in dx.iter_mut().zip(d_out) {
                *dx = D::round(s * d_out.widen());
            }
        }
    }
}
