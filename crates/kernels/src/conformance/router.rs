//! Cases of the router.

use super::Failure;
use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::draw::Draw;
use super::tolerance::Tolerance;
use crate::backend::{Backend, Outcome};
use crate::ops::{Grouping, RouterLoss, RouterShape, Score};

#[derive(Debug)]
struct Forward(RouterShape);

impl Kernel<4> for Forward {
    fn call<B: Backend>(&self, on: &B, [logits, scores, ids, gates]: &mut [Placed<B>; 4]) -> Outcome<Reply> {
        on.router_forward(self.0, logits.get(), None, scores.get_mut(), ids.get_mut(), gates.get_mut()).map(Reply::from)
    }
}

/// With a selection bias, which comes last.
impl Kernel<5> for Forward {
    fn call<B: Backend>(&self, on: &B, [logits, scores, ids, gates, bias]: &mut [Placed<B>; 5]) -> Outcome<Reply> {
        let bias = Some(bias.get());
        on.router_forward(self.0, logits.get(), bias, scores.get_mut(), ids.get_mut(), gates.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct Backward<'a>(RouterShape, RouterLoss<'a>);

impl Kernel<5> for Backward<'_> {
    fn call<B: Backend>(
        &self,
        on: &B,
        [logits, scores, ids, d_gates, d_logits]: &mut [Placed<B>; 5],
    ) -> Outcome<Reply> {
        let (logits, scores, ids) = (logits.get(), scores.get(), ids.get());
        on.router_backward(self.0, self.1, logits, scores, ids, d_gates.get(), d_logits.get_mut()).map(Reply::from)
    }
}

/// Every combination of score, renormalisation and groups, over odd counts of experts and tokens.
fn shapes() -> Vec<RouterShape> {
    let mut shapes = Vec::new();
    for score in [Score::Softmax, Score::Sigmoid] {
        for renormalize in [false, true] {
            let of = |tokens, experts, top_k, scale, groups| RouterShape {
                tokens,
                experts,
                top_k,
                score,
                renormalize,
                scale,
                groups,
            };
            let groups = |groups, top_groups| Some(Grouping { groups, top_groups });
            shapes.extend([
                of(0, 4, 2, 1.0, None),
                of(1, 1, 1, 1.0, None),
                of(13, 7, 3, 2.5, None),
                of(9, 16, 4, 1.0, None),
                of(50, 64, 8, 1.0, None),
                of(11, 12, 4, 2.5, groups(4, 2)),
                of(11, 9, 2, 1.0, groups(3, 1)),
                of(7, 5, 3, 1.0, groups(5, 4)), // groups of one expert
                of(20, 40, 6, 1.5, groups(8, 3)),
            ]);
        }
    }
    shapes
}

/// Logits of tokens whose choices differ clearly, so that no rounding changes which experts are chosen.
fn clear_logits(draw: &mut Draw, shape: RouterShape, bias: &[f64]) -> Vec<f64> {
    let mut logits = Vec::new();
    for _ in 0..shape.tokens {
        let token = loop {
            let token: Vec<f64> = draw.normals(shape.experts).iter().map(|x| f64::from((1.5 * x) as f32)).collect();
            if is_clear(shape, &token, bias) {
                break token;
            }
        };
        logits.extend(token);
    }
    logits
}

fn is_clear(shape: RouterShape, logits: &[f64], bias: &[f64]) -> bool {
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    let choice: Vec<f64> = (0..shape.experts)
        .map(|e| match shape.score {
            Score::Softmax => logits[e].exp() / sum + bias[e],
            Score::Sigmoid => 1.0 / (1.0 + (-logits[e]).exp()) + bias[e],
        })
        .collect();
    let groups = shape.groups.map_or(1, |g| g.groups);
    let ranks = choice.chunks_exact(shape.experts / groups).map(|group| {
        let mut group = group.to_vec();
        group.sort_by(|a, b| b.total_cmp(a));
        group.iter().take(2).sum::<f64>()
    });
    has_gaps(ranks.collect()) && has_gaps(choice)
}

/// Neighbours in order are at least a hundred units roundoff of f32 apart.
fn has_gaps(mut values: Vec<f64>) -> bool {
    values.sort_by(f64::total_cmp);
    values.windows(2).all(|pair| pair[1] - pair[0] > 1e-5 * pair[1].abs().max(0.01))
}

fn inputs(draw: &mut Draw, shape: RouterShape, bias: &[f64]) -> [Argument; 4] {
    let RouterShape { tokens, experts, top_k, .. } = shape;
    // exp(logit - lse) loses up to |logit - lse| units, and that is below 16 here.
    let tolerance = Tolerance::operations(64.0);
    [
        Argument::f32("logits", clear_logits(draw, shape, bias)),
        Argument::f32("scores", vec![0.0; tokens * experts]).overwritten(tolerance),
        Argument::indices("ids", &vec![0; tokens * top_k]).overwritten(Tolerance::Exact),
        Argument::f32("gates", vec![0.0; tokens * top_k]).overwritten(tolerance),
    ]
}

pub(super) fn router_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for shape in shapes() {
        let no_bias = vec![0.0; shape.experts];
        let arguments = inputs(&mut bench.draw, shape, &no_bias);
        bench.agree(&Forward(shape), arguments)?;
        let arguments = biased_inputs(&mut bench.draw, shape);
        bench.agree(&Forward(shape), arguments)?;
    }
    ties_go_to_the_lowest_id(bench)?;

    let shape = shapes()[5];
    let arguments = biased_inputs(&mut bench.draw, shape);
    bench.refuses_faults(&Forward(shape), &arguments)?;
    let groups = |groups, top_groups| Some(Grouping { groups, top_groups });
    for wrong in [
        RouterShape { top_k: 0, ..shape },
        RouterShape { top_k: 13, ..shape },
        RouterShape { groups: groups(5, 2), ..shape },
        RouterShape { groups: groups(0, 0), ..shape },
        RouterShape { groups: groups(4, 0), ..shape },
        RouterShape { groups: groups(4, 5), ..shape },
        RouterShape { groups: groups(4, 1), ..shape },
    ] {
        let mut arguments = arguments.clone();
        for (i, name) in [(2, "ids"), (3, "gates")] {
            arguments[i].values = vec![0.0; wrong.tokens * wrong.top_k];
            arguments[i].name = name;
        }
        bench.refuses_shape(&Forward(wrong), &arguments)?;
    }
    for diverged in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut arguments = arguments.clone();
        let position = bench.draw.below(arguments[0].values.len());
        arguments[0].values[position] = diverged;
        let not_finite = |error: &crate::KernelError| matches!(error, crate::KernelError::NonFinite { .. });
        bench.refuses(&Forward(shape), &arguments, "an error that a number is not finite", not_finite)?;
    }
    Ok(())
}

fn biased_inputs(draw: &mut Draw, shape: RouterShape) -> [Argument; 5] {
    let bias = Argument::f32("selection_bias", draw.uniforms(shape.experts, -0.4, 0.4));
    let [logits, scores, ids, gates] = inputs(draw, shape, &bias.values);
    [logits, scores, ids, gates, bias]
}

/// Equal logits give equal scores wherever they stand in a row, and equal scores the lowest ids.
fn ties_go_to_the_lowest_id<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for mut shape in shapes() {
        shape.tokens = 3;
        let value = bench.draw.uniform(-2.0, 2.0);
        let mut arguments = inputs(&mut bench.draw, RouterShape { tokens: 0, ..shape }, &vec![0.0; shape.experts]);
        let mut logits = vec![f64::from(value as f32); 3 * shape.experts];
        // In the last token every other expert, from the second on, is the better one.
        logits[2 * shape.experts..].iter_mut().skip(1).step_by(2).for_each(|logit| *logit += 1.0);
        arguments[0].values = logits.into_iter().map(|x| f64::from(x as f32)).collect();
        for (i, width, before) in [(1, shape.experts, f64::NAN), (2, shape.top_k, 0.0), (3, shape.top_k, f64::NAN)] {
            arguments[i].values = vec![before; 3 * width];
        }
        bench.agree(&Forward(shape), arguments)?;
    }
    Ok(())
}

pub(super) fn router_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    // The only gate of an only expert has no gradient but rounding errors, and those have no relative size.
    for shape in shapes().into_iter().filter(|shape| shape.experts > 1) {
        let grad = bench.draw.normals(shape.experts);
        for loss in [
            RouterLoss { score_grad: &vec![0.0; shape.experts], z_grad: 0.0 },
            RouterLoss { score_grad: &grad, z_grad: 0.0 },
            RouterLoss { score_grad: &grad, z_grad: 0.3 },
        ] {
            let arguments = backward_inputs(bench, shape)?;
            bench.agree(&Backward(shape, loss), arguments)?;
        }
    }
    let shape = shapes()[2];
    let loss = RouterLoss { score_grad: &[0.5; 7], z_grad: 0.1 };
    let arguments = backward_inputs(bench, shape)?;
    bench.refuses_faults(&Backward(shape, loss), &arguments)?;
    bench.refuses_index(&Backward(shape, loss), arguments.clone(), 2, shape.experts)?;
    let short = RouterLoss { score_grad: &[0.5; 6], z_grad: 0.1 };
    bench.refuses(&Backward(shape, short), &arguments, "a length error", |e| {
        matches!(e, crate::KernelError::Length { .. })
    })
}

fn backward_inputs<B: Backend>(bench: &mut Bench<'_, B>, shape: RouterShape) -> Result<[Argument; 5], Failure> {
    let arguments = inputs(&mut bench.draw, shape, &vec![0.0; shape.experts]);
    let [logits, mut scores, mut ids, _] = bench.on_reference(&Forward(shape), arguments)?;
    (scores.written, ids.written) = (None, None);
    let d_gates = Argument::f32("d_gates", bench.draw.normals(shape.tokens * shape.top_k));
    // The gradient is a difference of sums over the experts: cancellation costs some digits.
    let tolerance = Tolerance::operations(256.0);
    let d_logits = Argument::f32("d_logits", vec![0.0; shape.tokens * shape.experts]).overwritten(tolerance);
    Ok([logits, scores, ids, d_gates, d_logits])
}
