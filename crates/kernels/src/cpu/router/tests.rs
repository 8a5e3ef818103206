use super::*;
use crate::cpu::trial::{Stored, draw, on_every_pool};

/// Shapes with and without groups, ties to be had, one expert, all experts chosen, and more than one part.
fn shapes() -> Vec<RouterShape> {
    let mut shapes = Vec::new();
    for (tokens, experts, top_k, groups) in [
        (0, 4, 2, None),
        (1, 1, 1, None),
        (5, 7, 7, None),
        (6, 12, 3, Some((4, 2))),
        (6, 4, 2, Some((4, 3))),
        (5, 65, 8, None),
        (600, 64, 6, Some((8, 3))),
        (70, 512, 10, None),
    ] {
        let groups = groups.map(|(groups, top_groups)| Grouping { groups, top_groups });
        for score in [Score::Softmax, Score::Sigmoid] {
            for (renormalize, scale) in [(false, 1.0), (true, 2.5)] {
                shapes.push(RouterShape { tokens, experts, top_k, score, renormalize, scale, groups });
            }
        }
    }
    shapes
}

/// Scores and the log of the sum of exponentials, in plain f64 loops.
fn exact_scores(kind: Score, logits: &[f32]) -> (Vec<f64>, f64) {
    let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    let score = |logit: &f64| match kind {
        Score::Softmax => (logit - log_sum).exp(),
        Score::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
    };
    (logits.iter().map(score).collect(), log_sum)
}

/// The choice by sorting everything, from the values that the kernel compares.
fn exact_choice(shape: &RouterShape, logits: &[f32], scores: &[f32], bias: Option<&[f32]>) -> Vec<u32> {
    let biased: Vec<f32> = (0..shape.experts).map(|e| scores[e] + bias.map_or(0.0, |bias| bias[e])).collect();
    let mut experts: Vec<usize> = (0..shape.experts).collect();
    if let Some(Grouping { groups, top_groups }) = shape.groups {
        let size = shape.experts / groups;
        let rank = |group: &usize| {
            let mut values = biased[group * size..(group + 1) * size].to_vec();
            values.sort_by(|a, b| b.total_cmp(a));
            values.iter().take(2).sum::<f32>()
        };
        let mut ranked: Vec<usize> = (0..groups).collect();
        ranked.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
        experts.retain(|expert| ranked[..top_groups].contains(&(expert / size)));
    }
    let value = |e: usize| if bias.is_some() { biased[e] } else { logits[e] };
    experts.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
    experts.iter().take(shape.top_k).map(|&e| e as u32).collect()
}

struct Forward {
    scores: Vec<f32>,
    ids: Vec<u32>,
    gates: Vec<f32>,
    stats: RouterStats,
}

fn forward(isa: Isa, shape: &RouterShape, logits: &[f32], bias: Option<&[f32]>) -> Forward {
    let (scores, ids, gates, stats) = on_every_pool(|| {
        let mut scores = vec![9.0; shape.tokens * shape.experts];
        let (mut ids, mut gates) = (vec![9; shape.tokens * shape.top_k], vec![9.0; shape.tokens * shape.top_k]);
        let stats = router_forward(isa, shape, logits, bias, &mut scores, &mut ids, &mut gates).unwrap();
        (scores, ids, gates, stats)
    });
    Forward { scores, ids, gates, stats }
}

/// Logits of a shape, a third of them on a coarse grid so that there are ties.
fn draw_logits(seed: u64, shape: &RouterShape) -> Vec<f32> {
    let mut logits: Vec<f32> = draw(seed, shape.tokens * shape.experts).iter().map(|x| x * 6.0).collect();
    for logits in logits.chunks_exact_mut(shape.experts).step_by(3) {
        logits.iter_mut().for_each(|logit| *logit = logit.round());
    }
    logits
}

#[test]
fn scores_choice_gates_and_statistics_agree_with_plain_loops() {
    for (seed, shape) in (0..).zip(shapes()) {
        let logits = draw_logits(seed, &shape);
        let drawn = draw(seed + 1000, shape.experts);
        for (isa, bias) in Isa::available().into_iter().flat_map(|isa| [(isa, None), (isa, Some(&*drawn))]) {
            let what = format!("{isa:?}, {shape:?}, bias {}, seed {seed}", bias.is_some());
            let found = forward(isa, &shape, &logits, bias);
            let (mut scores, mut gates) = (Vec::new(), Vec::new());
            let (mut score_sum, mut counts, mut z_sum) = (vec![0.0; shape.experts], vec![0; shape.experts], 0.0);
            for (t, logits) in logits.chunks_exact(shape.experts).enumerate() {
                let (exact, log_sum) = exact_scores(shape.score, logits);
                let ids = &found.ids[t * shape.top_k..(t + 1) * shape.top_k];
                let own = &found.scores[t * shape.experts..(t + 1) * shape.experts];
                assert_eq!(ids, exact_choice(&shape, logits, own, bias), "{what}: token {t}");

                let chosen: f64 = ids.iter().map(|&id| exact[id as usize]).sum();
                let denominator = if shape.renormalize { chosen } else { 1.0 };
                gates.extend(ids.iter().map(|&id| exact[id as usize] / denominator * shape.scale));
                ids.iter().for_each(|&id| counts[id as usize] += 1);
                let total: f64 = exact.iter().sum();
                score_sum.iter_mut().zip(&exact).for_each(|(sum, score)| *sum += score / total);
                z_sum += log_sum * log_sum;
                scores.extend(exact);
            }
            // Scores and gates carry a few roundings of values up to 2.5.
            Stored::F32(found.scores).assert_near(&scores, 5e-7, &what);
            Stored::F32(found.gates).assert_near(&gates, 1e-6, &what);
            assert_eq!(found.stats.counts, counts, "{what}");
            let near = |found: f64, exact: f64| (found - exact).abs() <= 1e-6 * (1.0 + exact.abs());
            assert!(near(found.stats.z_sum, z_sum), "{what}: {} is not {z_sum}", found.stats.z_sum);
            for (found, exact) in found.stats.score_sum.iter().zip(&score_sum) {
                assert!(near(*found, *exact), "{what}: {found} is not {exact}");
            }
        }
    }
}

/// The loss of a token's router in f64, for a fixed choice: what `d_logits` is the gradient of.
fn exact_loss(shape: &RouterShape, loss: &RouterLoss<'_>, logits: &[f64], ids: &[u32], d_gates: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    let score = |logit: &f64| match shape.score {
        Score::Softmax => (logit - log_sum).exp(),
        Score::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
    };
    let scores: Vec<f64> = logits.iter().map(score).collect();
    let chosen: f64 = ids.iter().map(|&id| scores[id as usize]).sum();
    let denominator = if shape.renormalize { chosen } else { 1.0 };
    let gated = ids.iter().zip(d_gates);
    let gates: f64 = gated.map(|(&id, d)| shape.scale * scores[id as usize] / denominator * f64::from(*d)).sum();
    let total: f64 = scores.iter().sum();
    let balance: f64 = scores.iter().zip(loss.score_grad).map(|(score, grad)| score / total * grad).sum();
    gates + balance + loss.z_grad * log_sum * log_sum
}

#[test]
fn the_gradient_agrees_with_finite_differences_in_f64() {
    for (seed, mut shape) in (0..).zip(shapes()) {
        shape.tokens = shape.tokens.min(4); // a difference takes a forward pass for each logit
        let logits = draw_logits(seed, &shape);
        let d_gates = draw(seed + 1, shape.tokens * shape.top_k);
        let score_grad: Vec<f64> = draw(seed + 2, shape.experts).iter().copied().map(f64::from).collect();
        for (isa, z_grad) in Isa::available().into_iter().flat_map(|isa| [(isa, 0.0), (isa, 0.03)]) {
            let what = format!("{isa:?}, {shape:?}, z_grad {z_grad}, seed {seed}");
            let loss = RouterLoss { score_grad: &score_grad, z_grad };
            let Forward { scores, ids, .. } = forward(isa, &shape, &logits, None);
            let d_logits = on_every_pool(|| {
                let mut d = vec![9.0; logits.len()];
                router_backward(isa, &shape, &loss, &logits, &scores, &ids, &d_gates, &mut d).unwrap();
                d
            });
            let mut expected = Vec::new();
            for (t, logits) in logits.chunks_exact(shape.experts).enumerate() {
                let narrow = t * shape.top_k..(t + 1) * shape.top_k;
                let mut moved: Vec<f64> = logits.iter().copied().map(f64::from).collect();
                for e in 0..shape.experts {
                    let step = 1e-5;
                    let mut at = |logit: f64| {
                        moved[e] = logit;
                        exact_loss(&shape, &loss, &moved, &ids[narrow.clone()], &d_gates[narrow.clone()])
                    };
                    let logit = f64::from(logits[e]);
                    expected.push((at(logit + step) - at(logit - step)) / (2.0 * step));
                    at(logit);
                }
            }
            // The f32 scores carry 1e-7 of values that gates multiply by up to 2.5; differences carry 1e-9.
            Stored::F32(d_logits).assert_near(&expected, 3e-6, &what);
        }
    }
}

#[test]
fn gradients_from_several_parts_are_those_of_each_token_alone() {
    let shapes = shapes();
    let shape = shapes.iter().find(|shape| shape.tokens == 600 && shape.renormalize).unwrap();
    let logits = draw_logits(1, shape);
    let d_gates = draw(2, shape.tokens * shape.top_k);
    let loss = RouterLoss { score_grad: &vec![0.25; shape.experts], z_grad: 0.01 };
    for isa in Isa::available() {
        let Forward { scores, ids, .. } = forward(isa, shape, &logits, None);
        let together = on_every_pool(|| {
            let mut d = vec![9.0; logits.len()];
            router_backward(isa, shape, &loss, &logits, &scores, &ids, &d_gates, &mut d).unwrap();
            d
        });
        let alone = RouterShape { tokens: 1, ..*shape };
        for t in [0, 255, 256, 599] {
            let (wide, narrow) = (t * 64..(t + 1) * 64, t * 6..(t + 1) * 6);
            let mut d = vec![9.0; 64];
            let (logits, scores) = (&logits[wide.clone()], &scores[wide.clone()]);
            router_backward(isa, &alone, &loss, logits, scores, &ids[narrow.clone()], &d_gates[narrow], &mut d)
                .unwrap();
            assert_eq!(d, together[wide], "{isa:?}, token {t}");
        }
    }
}

#[test]
fn saturated_sigmoids_keep_everything_finite() {
    let shape = RouterShape {
        tokens: 2,
        experts: 3,
        top_k: 2,
        score: Score::Sigmoid,
        renormalize: true,
        scale: 1.0,
        groups: None,
    };
    let logits = [-200.0, -300.0, -250.0, 200.0, 100.0, 300.0];
    let loss = RouterLoss { score_grad: &[1.0, -1.0, 0.5], z_grad: 0.1 };
    for isa in Isa::available() {
        let found = forward(isa, &shape, &logits, None);
        assert_eq!(found.ids, [0, 2, 2, 0], "{isa:?}: logits order experts whose scores are equal in f32");
        assert_eq!(found.gates, [0.0, 0.0, 0.5, 0.5], "{isa:?}");
        assert!(found.stats.score_sum.iter().all(|sum| sum.is_finite()), "{isa:?}");
        let mut d_logits = [f32::NAN; 6];
        router_backward(isa, &shape, &loss, &logits, &found.scores, &found.ids, &[1.0; 4], &mut d_logits).unwrap();
        assert!(d_logits.iter().all(|d| d.is_finite()), "{isa:?}: {d_logits:?}");
    }
}

#[test]
fn logits_that_are_not_finite_and_experts_that_do_not_exist_are_refused() {
    let shape = RouterShape {
        tokens: 2,
        experts: 3,
        top_k: 1,
        score: Score::Softmax,
        renormalize: false,
        scale: 1.0,
        groups: None,
    };
    let (mut scores, mut ids, mut gates) = ([9.0; 6], [9; 2], [9.0; 2]);
    for isa in Isa::available() {
        let logits = [0.0, 1.0, 2.0, 3.0, f32::NAN, f32::INFINITY];
        let error = router_forward(isa, &shape, &logits, None, &mut scores, &mut ids, &mut gates).unwrap_err();
        let expected = "router_forward: the logit of expert 1 for token 1 is NaN; look for what diverged before the router_forward kernel";
        assert_eq!(error.to_string(), expected);
        assert_eq!((scores, ids, gates), ([9.0; 6], [9; 2], [9.0; 2]), "{isa:?}: a refused call writes nothing");
    }
    let isa = Isa::detect();
    let loss = RouterLoss { score_grad: &[0.0; 3], z_grad: 0.0 };
    let values = [0.0; 6];
    let error = router_backward(isa, &shape, &loss, &values, &values, &[2, 3], &[0.0; 2], &mut scores).unwrap_err();
    assert_eq!(error.to_string(), "router_backward: expert 3 at position 1 is not below 3");
    let shape = RouterShape { top_k: 4, ..shape };
    let error = router_forward(isa, &shape, &values, None, &mut scores, &mut [0; 8], &mut [0.0; 8]).unwrap_err();
    assert_eq!(error.to_string(), "router_forward: top_k = 4 is not in 1..=3, the experts");
}
