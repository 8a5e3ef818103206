//! The router, and the way to the experts and back.

use cambium_kernels::backend::Backend;
use cambium_kernels::buffer::{Buffer, Element};
use cambium_kernels::reference::{Reference, ReferenceBuffer};
use cambium_kernels::{Grouping, RouterLoss, RouterShape, Score};
use rand::Rng;

use crate::{Outcome, Values, agrees, draw, floats, fresh, indices, values, with_seeds, zeros};

/// Every combination of score, renormalisation and groups.
fn routers() -> impl Iterator<Item = RouterShape> {
    let scores = [Score::Softmax, Score::Sigmoid].into_iter();
    let switches = scores.flat_map(|score| [false, true].map(|renormalize| (score, renormalize)));
    let groups = [None, Some(Grouping { groups: 3, top_groups: 2 })];
    switches.flat_map(move |(score, renormalize)| {
        groups.map(|groups| RouterShape { tokens: 4, experts: 6, top_k: 3, score, renormalize, scale: 1.7, groups })
    })
}

#[test]
fn the_router_has_the_gradient_of_its_gates_and_of_its_losses() {
    with_seeds(|random| {
        for shape in routers() {
            let RouterShape { tokens, experts, top_k, .. } = shape;
            // Logits of a token differ by a tenth at least: no step of a difference changes which experts it chooses.
            let mut logits = Vec::new();
            for _ in 0..tokens {
                let mut levels: Values = (0..experts).map(|e| 0.4 * e as f64 - 1.0).collect();
                while !levels.is_empty() {
                    let level = levels.swap_remove(random.random_range(0..levels.len()));
                    logits.push(level + random.random_range(-0.15..0.15));
                }
            }
            let score_grad = draw(random, experts);
            for (name, score_grad, z_grad) in [
                ("gates", vec![0.0; experts], 0.0),
                ("gates and balance", score_grad.clone(), 0.0),
                ("gates, balance and z", score_grad, 0.3),
            ] {
                // Outputs: the gates, and what the two losses come to, as one number whose weight is drawn too.
                let run = |logits: &[f64]| -> Outcome<([ReferenceBuffer; 3], f64)> {
                    let mut ids = Reference::new().alloc(Element::U32, tokens * top_k)?;
                    let (mut scores, mut gates) = (fresh(tokens * experts)?, fresh(tokens * top_k)?);
                    let (to_scores, to_gates) = (scores.view_mut(), gates.view_mut());
                    let stats = Reference::new().router_forward(
                        shape,
                        floats(logits)?.view(),
                        None,
                        to_scores,
                        ids.view_mut(),
                        to_gates,
                    )?;
                    let balance: f64 = stats.score_sum.iter().zip(&score_grad).map(|(sum, grad)| sum * grad).sum();
                    Ok(([scores, ids, gates], balance + z_grad * stats.z_sum))
                };
                let backward = |d: &[Values]| -> Outcome<Vec<Values>> {
                    let ([scores, ids, _], _) = run(&logits)?;
                    let weight = d[1][0];
                    let score_grad: Values = score_grad.iter().map(|grad| grad * weight).collect();
                    let loss = RouterLoss { score_grad: &score_grad, z_grad: z_grad * weight };
                    let mut d_logits = fresh(tokens * experts)?;
                    Reference::new().router_backward(
                        shape,
                        loss,
                        floats(&logits)?.view(),
                        scores.view(),
                        ids.view(),
                        floats(&d[0])?.view(),
                        d_logits.view_mut(),
                    )?;
                    Ok(vec![values(&d_logits)?])
                };
                let forward = |i: &[Values]| -> Outcome<Vec<Values>> {
                    let ([_, _, gates], loss) = run(&i[0])?;
                    Ok(vec![values(&gates)?, vec![loss]])
                };
                agrees(&format!("{shape:?}, {name}"), random, &[logits.clone()], forward, backward)?;
            }
        }
        Ok(())
    });
}

#[test]
fn dispatch_and_combine_have_the_gradients_of_their_forwards() {
    with_seeds(|random| {
        let (tokens, top_k, width) = (3, 2, 4);
        let ids = [2, 0, 0, 1, 2, 1];
        let (mut assignment, mut position) = (indices(&ids)?, indices(&ids)?);
        let offsets = [0, 2, 4, 6];
        let (to, inverse) = (assignment.view_mut(), position.view_mut());
        Reference::new().sort_by_expert(indices(&ids)?.view(), &offsets, to, inverse)?;

        let inputs = [draw(random, tokens * width)];
        agrees(
            "gather_rows",
            random,
            &inputs,
            |i| {
                let mut rows = fresh(tokens * top_k * width)?;
                let to = rows.view_mut();
                Reference::new().gather_rows(top_k, width, floats(&i[0])?.view(), assignment.view(), to)?;
                Ok(vec![values(&rows)?])
            },
            |d| {
                let mut dx = zeros(tokens * width)?;
                let to = dx.view_mut();
                Reference::new().scatter_rows_add(top_k, width, floats(&d[0])?.view(), position.view(), to)?;
                Ok(vec![values(&dx)?])
            },
        )?;

        let inputs = [draw(random, tokens * top_k * width), draw(random, tokens * top_k), draw(random, tokens * width)];
        agrees(
            "combine",
            random,
            &inputs,
            |i| {
                let (expert_out, gates, mut out) = (floats(&i[0])?, floats(&i[1])?, floats(&i[2])?);
                let (rows, to) = (expert_out.view(), out.view_mut());
                Reference::new().combine_forward(top_k, width, rows, position.view(), gates.view(), to)?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, expert_out, gates) = (floats(&d[0])?, floats(&inputs[0])?, floats(&inputs[1])?);
                let (mut d_expert_out, mut d_gates) = (fresh(tokens * top_k * width)?, fresh(tokens * top_k)?);
                Reference::new().combine_backward(
                    top_k,
                    width,
                    d_out.view(),
                    expert_out.view(),
                    position.view(),
                    gates.view(),
                    d_expert_out.view_mut(),
                    d_gates.view_mut(),
                )?;
                Ok(vec![values(&d_expert_out)?, values(&d_gates)?, d[0].clone()])
            },
        )
    });
}
