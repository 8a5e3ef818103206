//! The router: scores, the choice of experts, gates, and their gradient.

use std::cmp::Ordering;

use super::activation::sigmoid;
use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::error::KernelError;
use crate::ops::{Grouping, RouterLoss, RouterShape, RouterStats, Score};

/// Keeps the sum of sigmoid scores from zero, as DeepSeek-V3 does.
const SIGMOID_SUM_FLOOR: f64 = 1e-20;

pub(super) fn forward(
    shape: RouterShape,
    logits: In<'_>,
    selection_bias: Option<In<'_>>,
    scores: Out<'_>,
    ids: Out<'_>,
    gates: Out<'_>,
) -> Outcome<RouterStats> {
    let at = Arguments("router_forward");
    check(at, shape)?;
    let RouterShape { tokens, experts, top_k, .. } = shape;
    let logits = at.f32s("logits", logits, elements([tokens, experts]))?;
    let bias = selection_bias.map(|bias| at.f32s("selection_bias", bias, experts)).transpose()?;
    let scores = at.f32s_mut("scores", scores, elements([tokens, experts]))?;
    let ids = at.indices_mut("ids", ids, elements([tokens, top_k]))?;
    let gates = at.f32s_mut("gates", gates, elements([tokens, top_k]))?;
    if let Some(i) = logits.iter().position(|logit| !logit.is_finite()) {
        let (token, expert, logit) = (i / experts, i % experts, logits[i]);
        let what = format!("the logit of expert {expert} for token {token}");
        return Err(KernelError::NonFinite { kernel: "router_forward", what, value: logit });
    }

    let mut stats = RouterStats { counts: vec![0; experts], score_sum: vec![0.0; experts], z_sum: 0.0 };
    for token in 0..tokens {
        let logits = &logits[token * experts..(token + 1) * experts];
        let scores = &mut scores[token * experts..(token + 1) * experts];
        let log_sum = log_sum_exp(logits);
        for (score, logit) in scores.iter_mut().zip(logits) {
            *score = match shape.score {
                Score::Softmax => (logit - log_sum).exp(),
                Score::Sigmoid => sigmoid(*logit),
            };
        }

        let choice: Vec<f64> = (0..experts).map(|e| scores[e] + bias.map_or(0.0, |bias| bias[e])).collect();
        let chosen = choose(shape, &choice);
        let denominator = denominator(shape, chosen.iter().map(|&e| scores[e]));
        for (k, &expert) in chosen.iter().enumerate() {
            ids[token * top_k + k] = u32::try_from(expert).expect("experts fit u32, checked above");
            gates[token * top_k + k] = scores[expert] / denominator * shape.scale;
            stats.counts[expert] += 1;
        }

        let total = normalizer(shape, scores);
        stats.score_sum.iter_mut().zip(&*scores).for_each(|(sum, score)| *sum += score / total);
        stats.z_sum += log_sum * log_sum;
    }
    Ok(stats)
}

pub(super) fn backward(
    shape: RouterShape,
    loss: RouterLoss<'_>,
    logits: In<'_>,
    scores: In<'_>,
    ids: In<'_>,
    d_gates: In<'_>,
    d_logits: Out<'_>,
) -> Outcome {
    let at = Arguments("router_backward");
    check(at, shape)?;
    let RouterShape { tokens, experts, top_k, .. } = shape;
    at.length("score_grad", loss.score_grad.len(), experts)?;
    let logits = at.f32s("logits", logits, elements([tokens, experts]))?;
    let scores = at.f32s("scores", scores, elements([tokens, experts]))?;
    let ids = at.indices("ids", ids, elements([tokens, top_k]))?;
    let d_gates = at.f32s("d_gates", d_gates, elements([tokens, top_k]))?;
    let d_logits = at.f32s_mut("d_logits", d_logits, elements([tokens, experts]))?;
    at.below("expert", ids, experts)?;

    for token in 0..tokens {
        let wide = token * experts..(token + 1) * experts;
        let narrow = token * top_k..(token + 1) * top_k;
        let (logits, scores, d_logits) = (&logits[wide.clone()], &scores[wide.clone()], &mut d_logits[wide]);
        let (ids, d_gates) = (&ids[narrow.clone()], &d_gates[narrow]);
        let mut d_scores = vec![0.0; experts];

        // gate_k = scale * score_k / denominator, and if renormalised d(denominator)/d(score_k) = 1
        let chosen = ids.iter().map(|&id| scores[id as usize]);
        let denominator = denominator(shape, chosen.clone());
        let dot: f64 = chosen.zip(d_gates).map(|(score, d_gate)| score * d_gate).sum();
        let shrink = if shape.renormalize { dot / denominator } else { 0.0 };
        for (&id, d_gate) in ids.iter().zip(d_gates) {
            d_scores[id as usize] += shape.scale * (d_gate - shrink) / denominator;
        }

        // normalised_e = score_e / total
        let total = normalizer(shape, scores);
        let dot: f64 = scores.iter().zip(loss.score_grad).map(|(score, grad)| score * grad).sum();
        let shrink = match shape.score {
            Score::Softmax => 0.0, // the scores are normalised already; their own total is no function of them
            Score::Sigmoid => dot / total,
        };
        d_scores.iter_mut().zip(loss.score_grad).for_each(|(d_score, grad)| *d_score += (grad - shrink) / total);

        // softmax: d_logit = p * (d_p - sum(p * d_p)); sigmoid: d_logit = d_s * s * (1 - s)
        let dot: f64 = scores.iter().zip(&d_scores).map(|(score, d_score)| score * d_score).sum();
        let log_sum = log_sum_exp(logits);
        for e in 0..experts {
            let from_score = match shape.score {
                Score::Softmax => scores[e] * (d_scores[e] - dot),
                Score::Sigmoid => d_scores[e] * scores[e] * (1.0 - scores[e]),
            };
            // z = z_grad * log_sum², d(log_sum)/d(logit) = softmax(logits)
            d_logits[e] = from_score + 2.0 * loss.z_grad * log_sum * (logits[e] - log_sum).exp();
        }
    }
    Ok(())
}

fn check(at: Arguments, shape: RouterShape) -> Outcome {
    let RouterShape { experts, top_k, groups, .. } = shape;
    at.shape(u32::try_from(experts).is_ok(), || format!("experts = {experts} exceeds 32-bit ids"))?;
    at.shape(top_k > 0 && top_k <= experts, || format!("top_k = {top_k} is not in 1..={experts}, the experts"))?;
    let Some(Grouping { groups, top_groups }) = groups else { return Ok(()) };
    at.shape(groups > 0 && experts.is_multiple_of(groups), || {
        format!("experts = {experts} is not a multiple of groups = {groups}")
    })?;
    at.shape(top_groups > 0 && top_groups <= groups, || {
        format!("top_groups = {top_groups} is not in 1..={groups}, the groups")
    })?;
    at.shape(top_k <= top_groups * (experts / groups), || {
        format!("top_k = {top_k} exceeds the experts of {top_groups} groups; raise top_groups")
    })
}

/// The K experts of best choice value inside the best groups, best first; ties go to the lowest id.
fn choose(shape: RouterShape, choice: &[f64]) -> Vec<usize> {
    let mut candidates: Vec<usize> = (0..shape.experts).collect();
    if let Some(Grouping { groups, top_groups }) = shape.groups {
        let size = shape.experts / groups;
        let ranks: Vec<f64> = choice.chunks_exact(size).map(group_rank).collect();
        let best_groups = &best_first((0..groups).collect(), &ranks)[..top_groups];
        candidates.retain(|expert| best_groups.contains(&(expert / size)));
    }
    let mut chosen = best_first(candidates, choice);
    chosen.truncate(shape.top_k);
    chosen
}

/// The sum of a group's two best choice values, or its only one.
fn group_rank(choice: &[f64]) -> f64 {
    best_first((0..choice.len()).collect(), choice).iter().take(2).map(|&expert| choice[expert]).sum()
}

/// `ids` (ascending) by descending `value`; the sort is stable, so that ties stay in order of id.
fn best_first(mut ids: Vec<usize>, value: &[f64]) -> Vec<usize> {
    ids.sort_by(|&a, &b| value[b].partial_cmp(&value[a]).unwrap_or(Ordering::Equal));
    ids
}

/// What the chosen scores are divided by.
fn denominator(shape: RouterShape, chosen: impl Iterator<Item = f64>) -> f64 {
    match (shape.renormalize, shape.score) {
        (false, _) => 1.0,
        (true, Score::Softmax) => chosen.sum(),
        (true, Score::Sigmoid) => chosen.sum::<f64>() + SIGMOID_SUM_FLOOR,
    }
}

/// What all scores of a token are divided by to be normalised.
fn normalizer(shape: RouterShape, scores: &[f64]) -> f64 {
    match shape.score {
        Score::Softmax => 1.0,
        Score::Sigmoid => scores.iter().sum(),
    }
}

pub(super) fn log_sum_exp(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln()
}
