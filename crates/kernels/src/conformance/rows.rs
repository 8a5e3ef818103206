//! Cases of the kernels that work row by row: norm, activation, gate, bias, sum.

use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::tolerance::Tolerance;
use super::{FLOATS, type_pairs};
use crate::backend::{Backend, Outcome};
use crate::ops::RmsNorm;

/// Rows and widths: none, one, and widths that fill no vector, one, or several and a rest.
const SIZES: [(usize, usize); 8] = [(0, 5), (1, 1), (3, 15), (5, 16), (17, 33), (2, 64), (9, 100), (70, 130)];

/// Large, because the norm of a single value is constant but for epsilon: with a small one its gradient would be all
/// cancellation, a difference 1 - x²r² of the size of epsilon.
const BACKWARD_EPS: f64 = 1.0;

#[derive(Debug)]
struct RmsNormForward(RmsNorm);

impl Kernel<4> for RmsNormForward {
    fn call<B: Backend>(&self, on: &B, [x, weight, y, r]: &mut [Placed<B>; 4]) -> Outcome<Reply> {
        on.rms_norm_forward(self.0, x.get(), weight.get(), y.get_mut(), r.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct RmsNormBackward(RmsNorm);

impl Kernel<6> for RmsNormBackward {
    fn call<B: Backend>(&self, on: &B, [dy, x, weight, r, dx, dw]: &mut [Placed<B>; 6]) -> Outcome<Reply> {
        on.rms_norm_backward(self.0, dy.get(), x.get(), weight.get(), r.get(), dx.get_mut(), dw.get_mut())
            .map(Reply::from)
    }
}

fn rms_norm_inputs<B: Backend>(
    bench: &mut Bench<'_, B>,
    shape: RmsNorm,
    (x, y): (crate::Element, crate::Element),
) -> [Argument; 4] {
    let len = shape.rows * shape.width;
    let out = Argument::floats("y", y, bench.draw.normals(len));
    let tolerance = Tolerance::sum(shape.width);
    [
        Argument::floats("x", x, bench.draw.normals(len)),
        Argument::f32("weight", bench.draw.normals(shape.width)),
        if shape.accumulate { out.updated(tolerance) } else { out.overwritten(tolerance) },
        Argument::f32("inverse_rms", vec![0.0; shape.rows]).overwritten(tolerance),
    ]
}

pub(super) fn rms_norm_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for accumulate in [false, true] {
            for types in type_pairs() {
                let shape = RmsNorm { rows, width, eps: 1e-5, accumulate };
                let arguments = rms_norm_inputs(bench, shape, types);
                bench.agree(&RmsNormForward(shape), arguments)?;
            }
        }
    }
    // A large epsilon, and a row of zeros: the epsilon alone stands under the root.
    let shape = RmsNorm { rows: 2, width: 19, eps: 0.5, accumulate: false };
    for types in type_pairs() {
        let mut arguments = rms_norm_inputs(bench, shape, types);
        arguments[0].values[..19].fill(0.0);
        bench.agree(&RmsNormForward(shape), arguments.clone())?;
        bench.refuses_faults(&RmsNormForward(shape), &arguments)?;
    }
    Ok(())
}

pub(super) fn rms_norm_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for accumulate in [false, true] {
            for types in type_pairs() {
                let arguments = rms_norm_backward_inputs(bench, rows, width, accumulate, types)?;
                let shape = RmsNorm { rows, width, eps: BACKWARD_EPS, accumulate };
                bench.agree(&RmsNormBackward(shape), arguments)?;
            }
        }
    }
    let arguments = rms_norm_backward_inputs(bench, 3, 7, false, (FLOATS[0], FLOATS[1]))?;
    let shape = RmsNorm { rows: 3, width: 7, eps: BACKWARD_EPS, accumulate: false };
    bench.refuses_faults(&RmsNormBackward(shape), &arguments)
}

fn rms_norm_backward_inputs<B: Backend>(
    bench: &mut Bench<'_, B>,
    rows: usize,
    width: usize,
    accumulate: bool,
    types: (crate::Element, crate::Element),
) -> Result<[Argument; 6], super::Failure> {
    let shape = RmsNorm { rows, width, eps: BACKWARD_EPS, accumulate: false };
    let inputs = rms_norm_inputs(bench, shape, types);
    let [x, weight, _, mut inverse_rms] = bench.on_reference(&RmsNormForward(shape), inputs)?;
    inverse_rms.written = None;
    let dx = Argument::floats("dx", types.1, bench.draw.normals(rows * width));
    // dx is the difference of two terms; of a row of one value it is 1 / (x² + 1) of them, up to a few digits less.
    let tolerance = Tolerance::sum(width + 256);
    let dx = if accumulate { dx.updated(tolerance) } else { dx.overwritten(tolerance) };
    Ok([
        Argument::floats("dy", types.1, bench.draw.normals(rows * width)),
        x,
        weight,
        inverse_rms,
        dx,
        Argument::f32("d_weight", bench.draw.normals(width)).updated(Tolerance::sum(rows)),
    ])
}

#[derive(Debug)]
struct SwigluForward(usize, usize);

impl Kernel<2> for SwigluForward {
    fn call<B: Backend>(&self, on: &B, [gate_up, out]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.swiglu_forward(self.0, self.1, gate_up.get(), out.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct SwigluBackward(usize, usize);

impl Kernel<3> for SwigluBackward {
    fn call<B: Backend>(&self, on: &B, [d_out, gate_up, d_gate_up]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.swiglu_backward(self.0, self.1, d_out.get(), gate_up.get(), d_gate_up.get_mut()).map(Reply::from)
    }
}

/// Gates up to 8 deviations out, where `exp` is large on either side.
fn gates<B: Backend>(bench: &mut Bench<'_, B>, len: usize) -> Vec<f64> {
    bench.draw.normals(len).into_iter().map(|x| 4.0 * x).collect()
}

/// Numbers whose sum is far from zero.
fn mostly_positive<B: Backend>(bench: &mut Bench<'_, B>, len: usize) -> Vec<f64> {
    bench.draw.normals(len).into_iter().map(|x| x + 1.5).collect()
}

pub(super) fn swiglu_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for (inner, outer) in type_pairs() {
            let gate_up = Argument::floats("gate_up", inner, gates(bench, 2 * rows * width));
            let out = Argument::floats("out", outer, vec![0.0; rows * width]).overwritten(Tolerance::operations(16.0));
            bench.agree(&SwigluForward(rows, width), [gate_up.clone(), out.clone()])?;
            if rows == 5 {
                bench.refuses_faults(&SwigluForward(rows, width), &[gate_up, out])?;
            }
        }
    }
    // Far out the sigmoid is 0 or 1, and neither overflows on the way there.
    let gate_up =
        Argument::floats("gate_up", FLOATS[0], vec![-200.0, -95.0, -88.5, 0.0, 95.0, 200.0, 1., 1., 1., 1., 1., 1.]);
    let out = Argument::floats("out", FLOATS[0], vec![0.0; 6]).overwritten(Tolerance::operations(16.0));
    bench.agree(&SwigluForward(1, 6), [gate_up, out])
}

pub(super) fn swiglu_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for (inner, outer) in type_pairs() {
            let arguments = [
                Argument::floats("d_out", outer, bench.draw.normals(rows * width)),
                Argument::floats("gate_up", inner, gates(bench, 2 * rows * width)),
                Argument::floats("d_gate_up", inner, vec![0.0; 2 * rows * width])
                    .overwritten(Tolerance::operations(32.0)),
            ];
            bench.agree(&SwigluBackward(rows, width), arguments.clone())?;
            if rows == 5 {
                bench.refuses_faults(&SwigluBackward(rows, width), &arguments)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct SigmoidGateForward(usize, usize);

impl Kernel<3> for SigmoidGateForward {
    fn call<B: Backend>(&self, on: &B, [logit, x, out]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.sigmoid_gate_forward(self.0, self.1, logit.get(), x.get(), out.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct SigmoidGateBackward(usize, usize);

impl Kernel<5> for SigmoidGateBackward {
    fn call<B: Backend>(&self, on: &B, [d_out, logit, x, dx, d_logit]: &mut [Placed<B>; 5]) -> Outcome<Reply> {
        on.sigmoid_gate_backward(self.0, self.1, d_out.get(), logit.get(), x.get(), dx.get_mut(), d_logit.get_mut())
            .map(Reply::from)
    }
}

pub(super) fn sigmoid_gate_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for (inner, outer) in type_pairs() {
            let arguments = [
                Argument::f32("logit", gates(bench, rows)),
                Argument::floats("x", inner, bench.draw.normals(rows * width)),
                Argument::floats("out", outer, bench.draw.normals(rows * width)).updated(Tolerance::operations(16.0)),
            ];
            bench.agree(&SigmoidGateForward(rows, width), arguments.clone())?;
            if rows == 5 {
                bench.refuses_faults(&SigmoidGateForward(rows, width), &arguments)?;
            }
        }
    }
    Ok(())
}

pub(super) fn sigmoid_gate_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for (inner, outer) in type_pairs() {
            // 1 - sigmoid loses digits where the sigmoid is near 1; logits within 3 keep that below a factor of 20.
            let arguments = [
                Argument::floats("d_out", outer, mostly_positive(bench, rows * width)),
                Argument::f32("logit", bench.draw.uniforms(rows, -3.0, 3.0)),
                Argument::floats("x", inner, bench.draw.uniforms(rows * width, 0.5, 2.0)),
                Argument::floats("dx", inner, vec![0.0; rows * width]).overwritten(Tolerance::operations(16.0)),
                Argument::f32("d_logit", vec![0.0; rows]).overwritten(Tolerance::sum(width + 400)),
            ];
            bench.agree(&SigmoidGateBackward(rows, width), arguments.clone())?;
            if rows == 5 {
                bench.refuses_faults(&SigmoidGateBackward(rows, width), &arguments)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct BiasForward(usize, usize);

impl Kernel<2> for BiasForward {
    fn call<B: Backend>(&self, on: &B, [bias, x]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.bias_forward(self.0, self.1, bias.get(), x.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct BiasBackward(usize, usize);

impl Kernel<2> for BiasBackward {
    fn call<B: Backend>(&self, on: &B, [dx, d_bias]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.bias_backward(self.0, self.1, dx.get(), d_bias.get_mut()).map(Reply::from)
    }
}

pub(super) fn bias_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for element in FLOATS {
            let x = Argument::floats("x", element, bench.draw.normals(rows * width));
            let arguments = [Argument::f32("bias", bench.draw.normals(width)), x.updated(Tolerance::operations(2.0))];
            bench.agree(&BiasForward(rows, width), arguments.clone())?;
            if rows == 5 {
                bench.refuses_faults(&BiasForward(rows, width), &arguments)?;
            }
        }
    }
    Ok(())
}

pub(super) fn bias_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (rows, width) in SIZES {
        for element in FLOATS {
            let dx = Argument::floats("dx", element, bench.draw.normals(rows * width));
            let arguments = [dx, Argument::f32("d_bias", bench.draw.normals(width)).updated(Tolerance::sum(rows))];
            bench.agree(&BiasBackward(rows, width), arguments.clone())?;
            if rows == 5 {
                bench.refuses_faults(&BiasBackward(rows, width), &arguments)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Add;

impl Kernel<2> for Add {
    fn call<B: Backend>(&self, on: &B, [source, target]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.add(source.get(), target.get_mut()).map(Reply::from)
    }
}

pub(super) fn add<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for len in [0, 1, 15, 16, 100, 1000] {
        for (source, target) in type_pairs() {
            let arguments = [
                Argument::floats("source", source, bench.draw.normals(len)),
                Argument::floats("target", target, bench.draw.normals(len)).updated(Tolerance::operations(2.0)),
            ];
            bench.agree(&Add, arguments.clone())?;
            if len == 15 {
                bench.refuses_faults(&Add, &arguments)?;
            }
        }
    }
    Ok(())
}
