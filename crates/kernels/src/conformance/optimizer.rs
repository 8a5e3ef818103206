//! Cases of the optimizer, the gradient's norm and noise.

use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::compare::same_bits;
use super::tolerance::Tolerance;
use super::{FLOATS, Failure};
use crate::backend::{Backend, Outcome};
use crate::buffer::Element;
use crate::ops::{AdamW, NoiseKey};

/// Lengths that fill no vector, one, several, with and without a rest, and more than one thread's part.
const LENGTHS: [usize; 6] = [0, 1, 15, 16, 333, 20_011];

impl Kernel<4> for AdamW {
    fn call<B: Backend>(&self, on: &B, [grad, master, moment1, moment2]: &mut [Placed<B>; 4]) -> Outcome<Reply> {
        on.adamw(*self, grad.get(), master.get_mut(), moment1.get_mut(), moment2.get_mut(), None).map(Reply::from)
    }
}

/// With weights to compute with, which come last.
impl Kernel<5> for AdamW {
    fn call<B: Backend>(&self, on: &B, arguments: &mut [Placed<B>; 5]) -> Outcome<Reply> {
        let [grad, master, moment1, moment2, compute] = arguments;
        let compute = Some(compute.get_mut());
        on.adamw(*self, grad.get(), master.get_mut(), moment1.get_mut(), moment2.get_mut(), compute).map(Reply::from)
    }
}

pub(super) fn adamw<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    // A learning rate so large that an error in the step would show beside the weight.
    let base = AdamW { lr: 0.3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 1.0 };
    let steps = [
        base,
        // 1 - 0.999 in f32 would be off by 1e-5: coefficients are f64 until they are used.
        AdamW { beta2: 0.999, ..base },
        AdamW { step: 2, grad_scale: 0.25, ..base },
        AdamW { step: 1000, beta2: 0.999, eps: 1e-3, weight_decay: 0.0, ..base },
        AdamW { step: 3_000_000_000, ..base },
    ];
    for step in steps {
        for len in LENGTHS {
            for element in FLOATS {
                let arguments = adamw_inputs(bench, step, len, element);
                bench.agree(&step, arguments.clone())?;
                let [grad, master, moment1, moment2, _] = arguments;
                bench.agree(&step, [grad, master, moment1, moment2])?;
            }
        }
    }
    for element in FLOATS {
        let arguments = adamw_inputs(bench, base, 15, element);
        bench.refuses_faults(&base, &arguments)?;
        bench.refuses_shape(&AdamW { step: 0, ..base }, &arguments)?;
    }
    Ok(())
}

fn adamw_inputs<B: Backend>(bench: &mut Bench<'_, B>, step: AdamW, len: usize, element: Element) -> [Argument; 5] {
    let fresh = step.step == 1;
    let (moment1, moment2) = if fresh {
        (vec![0.0; len], vec![0.0; len])
    } else {
        (bench.draw.normals(len), bench.draw.uniforms(len, 0.01, 1.0))
    };
    let tolerance = Tolerance::operations(16.0);
    [
        Argument::f32("grad", bench.draw.normals(len)),
        Argument::f32("master", bench.draw.normals(len)).updated(tolerance),
        Argument::f32("moment1", moment1).updated(tolerance),
        Argument::f32("moment2", moment2).updated(tolerance),
        Argument::floats("compute", element, vec![0.0; len]).overwritten(tolerance.of_terms(1.0)),
    ]
}

#[derive(Debug)]
struct SumSquares;

impl Kernel<1> for SumSquares {
    fn call<B: Backend>(&self, on: &B, [x]: &mut [Placed<B>; 1]) -> Outcome<Reply> {
        // Squares and sum in f64: what is left is the order of the sum.
        let sum = on.sum_squares(x.get())?;
        Ok(Reply(vec![("sum", Tolerance::relative(1e-12), vec![sum])]))
    }
}

/// Holds a backend to a sum in f64; a bound on the reply alone would add the roundoff of f32.
fn is_summed_in_f64<B: Backend>(bench: &mut Bench<'_, B>, x: &Argument) -> Checked {
    let want: f64 = x.values.iter().map(|x| x * x).sum();
    let placed = Placed::place(bench.subject, x, &mut bench.draw)?;
    let got = bench.subject.sum_squares(placed.get())?;
    if (got - want).abs() <= 1e-12 * want {
        return Ok(());
    }
    Err(Failure::wrong(format!("sum_squares of {} values is {got}, but in f64 it is {want}", x.values.len())))
}

pub(super) fn sum_squares<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for len in LENGTHS {
        for element in FLOATS {
            let x = Argument::floats("x", element, bench.draw.normals(len));
            is_summed_in_f64(bench, &x)?;
            bench.agree(&SumSquares, [x.clone()])?;
            bench.refuses_elements(&SumSquares, &[x])?;
        }
    }
    // Squares beyond f32, and what is not finite.
    let x = Argument::floats("x", Element::F32, vec![3e30, -2e25, 1e-30]);
    is_summed_in_f64(bench, &x)?;
    for element in FLOATS {
        for diverged in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut values = bench.draw.normals(100);
            values[bench.draw.below(100)] = diverged;
            let placed = Placed::place(bench.subject, &Argument::floats("x", element, values), &mut bench.draw)?;
            let sum = bench.subject.sum_squares(placed.get())?;
            if sum.is_finite() {
                return Err(Failure::wrong(format!("sum_squares is {sum} although one element is {diverged}")));
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct FillNormal {
    key: NoiseKey,
    first: u64,
    deviation: f64,
}

impl Kernel<1> for FillNormal {
    fn call<B: Backend>(&self, on: &B, [target]: &mut [Placed<B>; 1]) -> Outcome<Reply> {
        on.fill_normal(self.key, self.first, self.deviation, target.get_mut()).map(Reply::from)
    }
}

pub(super) fn fill_normal<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for element in FLOATS {
        let fresh =
            |len| [Argument::floats("target", element, vec![0.0; len]).overwritten(Tolerance::operations(16.0))];
        let key = NoiseKey { seed: bench.draw.below(usize::MAX) as u64, stream: bench.draw.below(usize::MAX) as u64 };
        for first in [0, 1, 3, u64::from(u32::MAX) - 5, 1 << 60] {
            for len in LENGTHS {
                bench.agree(&FillNormal { key, first, deviation: 0.02 }, fresh(len))?;
            }
        }
        bench.refuses_elements(&FillNormal { key, first: 0, deviation: 1.0 }, &fresh(9))?;

        // Any range made alone has the bits that it has in the whole.
        let [whole] = bench.on_subject(&FillNormal { key, first: 100, deviation: 1.0 }, &fresh(1000))?;
        for range in [0..1, 1..2, 3..500, 17..18, 500..1000] {
            let part = FillNormal { key, first: 100 + range.start as u64, deviation: 1.0 };
            let [part] = bench.on_subject(&part, &fresh(range.len()))?;
            if !same_bits(&part, &whole[range.clone()]) {
                return Err(Failure::wrong(format!("fill_normal: range {range:?} made alone has other bits")));
            }
        }
    }
    Ok(())
}
