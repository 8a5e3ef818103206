//! The router: scores, the choice of experts, gates, and their gradient.
//!
//! Exponentials are f32 vectors. Sums over experts and what follows from them are f64, which costs nothing next to the
//! products around a router; statistics are summed per part of the tokens, and the parts in order.

use std::cmp::Ordering;

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::vectorize::{exp, greatest, part_rows, sum_exp, vectorized};
use crate::backend::Outcome;
use crate::error::KernelError;
use crate::ops::{Grouping, RouterLoss, RouterShape, RouterStats, Score};

/// Keeps the sum of chosen sigmoid scores from zero, as DeepSeek-V3 does.
const SIGMOID_SUM_FLOOR: f64 = 1e-20;
/// Keeps the sum of all sigmoid scores from zero, which it is in f32 where every logit is below -104.
const SIGMOID_TOTAL_FLOOR: f64 = f32::MIN_POSITIVE as f64;

/// Chooses K experts a token; see [`crate::Backend::router_forward`] for shapes and rules.
///
/// Without a bias experts are compared by their logits, which order them as exact scores would, where f32 scores of
/// different logits may be equal.
///
/// # Errors
/// Lengths and shapes that do not fit, logits that are not finite; nothing has been written then.
pub(crate) fn router_forward(
    isa: Isa,
    shape: &RouterShape,
    logits: &[f32],
    bias: Option<&[f32]>,
    scores: &mut [f32],
    ids: &mut [u32],
    gates: &mut [f32],
) -> Result<RouterStats, KernelError> {
    let at = Refusal("router_forward");
    check(at, shape)?;
    let RouterShape { tokens, experts, top_k, .. } = *shape;
    at.length("logits", logits.len(), tokens.saturating_mul(experts))?;
    if let Some(bias) = bias {
        at.length("selection_bias", bias.len(), experts)?;
    }
    at.length("scores", scores.len(), tokens.saturating_mul(experts))?;
    at.length("ids", ids.len(), tokens.saturating_mul(top_k))?;
    at.length("gates", gates.len(), tokens.saturating_mul(top_k))?;

    let part = part_rows(experts);
    let finite = logits.par_chunks(part * experts).all(|logits| all_finite(isa, logits));
    if !finite && let Some(i) = logits.iter().position(|logit| !logit.is_finite()) {
        let (token, expert, logit) = (i / experts, i % experts, logits[i]);
        let what = format!("the logit of expert {expert} for token {token}");
        return Err(KernelError::NonFinite { kernel: "router_forward", what, value: f64::from(logit) });
    }

    let parts = logits
        .par_chunks(part * experts)
        .zip(scores.par_chunks_mut(part * experts))
        .zip(ids.par_chunks_mut(part * top_k))
        .zip(gates.par_chunks_mut(part * top_k));
    let stats: Vec<RouterStats> =
        parts.map(|(((logits, scores), ids), gates)| route(isa, shape, logits, bias, scores, ids, gates)).collect();
    let mut total = RouterStats { counts: vec![0; experts], score_sum: vec![0.0; experts], z_sum: 0.0 };
    for part in stats {
        total.counts.iter_mut().zip(part.counts).for_each(|(total, count)| *total += count);
        total.score_sum.iter_mut().zip(part.score_sum).for_each(|(total, sum)| *total += sum);
        total.z_sum += part.z_sum;
    }
    Ok(total)
}

/// [`router_forward`] of a part of the tokens.
fn route(
    isa: Isa,
    shape: &RouterShape,
    logits: &[f32],
    bias: Option<&[f32]>,
    scores: &mut [f32],
    ids: &mut [u32],
    gates: &mut [f32],
) -> RouterStats {
    let RouterShape { experts, top_k, .. } = *shape;
    let mut stats = RouterStats { counts: vec![0; experts], score_sum: vec![0.0; experts], z_sum: 0.0 };
    let mut choice = Choice::new(shape);
    let tokens = logits.chunks_exact(experts).zip(scores.chunks_exact_mut(experts));
    let chosen = ids.chunks_exact_mut(top_k).zip(gates.chunks_exact_mut(top_k));
    for ((logits, scores), (ids, gates)) in tokens.zip(chosen) {
        let log_sum = score(isa, shape.score, logits, scores, &mut stats.score_sum);
        stats.z_sum += log_sum * log_sum;

        choice.choose(shape, logits, scores, bias, ids);
        let denominator = denominator(shape, scores, ids);
        for (&id, gate) in ids.iter().zip(gates) {
            *gate = (f64::from(scores[id as usize]) / denominator * shape.scale) as f32;
            stats.counts[id as usize] += 1;
        }
    }
    stats
}

vectorized! {
    fn all_finite<const FMA: bool>(isa: Isa, values: &[f32]) -> bool {
        values.iter().fold(true, |finite, value| finite & value.is_finite())
    }
}

vectorized! {
    /// Scores of a token, added normalised to `sums`; the log of the sum of the logits' exponentials.
    fn score<const FMA: bool>(isa: Isa, kind: Score, logits: &[f32], scores: &mut [f32], sums: &mut [f64]) -> f64 {
        let max = greatest(logits);
        let sum = sum_exp::<FMA>(logits, max);
        let total = match kind {
            Score::Softmax => {
                let inverse = (1.0 / sum) as f32;
                for (score, logit) in scores.iter_mut().zip(logits) {
                    *score = exp::<FMA>(*logit - max) * inverse;
                }
                1.0
            }
            Score::Sigmoid => {
                for (score, logit) in scores.iter_mut().zip(logits) {
                    // exp of nothing positive, so that no score is lost to an infinite denominator
                    let small = exp::<FMA>(-logit.abs());
                    *score = if *logit >= 0.0 { 1.0 } else { small } / (1.0 + small);
                }
                sigmoid_total(scores)
            }
        };
        let inverse = 1.0 / total;
        for (sum, score) in sums.iter_mut().zip(&*scores) {
            *sum += f64::from(*score) * inverse;
        }
        f64::from(max) + sum.ln()
    }
}

/// `d_logits =` from `d_gates` and the router's own losses; see [`crate::Backend::router_backward`].
///
/// # Errors
/// Lengths and shapes that do not fit, ids not below E.
pub(crate) fn router_backward(
    isa: Isa,
    shape: &RouterShape,
    loss: &RouterLoss<'_>,
    logits: &[f32],
    scores: &[f32],
    ids: &[u32],
    d_gates: &[f32],
    d_logits: &mut [f32],
) -> Result<(), KernelError> {
    let at = Refusal("router_backward");
    check(at, shape)?;
    let RouterShape { tokens, experts, top_k, .. } = *shape;
    at.length("score_grad", loss.score_grad.len(), experts)?;
    at.length("logits", logits.len(), tokens.saturating_mul(experts))?;
    at.length("scores", scores.len(), tokens.saturating_mul(experts))?;
    at.length("ids", ids.len(), tokens.saturating_mul(top_k))?;
    at.length("d_gates", d_gates.len(), tokens.saturating_mul(top_k))?;
    at.length("d_logits", d_logits.len(), tokens.saturating_mul(experts))?;
    at.below("expert", ids, experts)?;

    let part = part_rows(experts);
    let parts = logits
        .par_chunks(part * experts)
        .zip(scores.par_chunks(part * experts))
        .zip(ids.par_chunks(part * top_k))
        .zip(d_gates.par_chunks(part * top_k))
        .zip(d_logits.par_chunks_mut(part * experts));
    parts.for_each(|((((logits, scores), ids), d_gates), d_logits)| {
        let mut d_scores = vec![0.0; experts];
        let wide = logits.chunks_exact(experts).zip(scores.chunks_exact(experts));
        let narrow = ids.chunks_exact(top_k).zip(d_gates.chunks_exact(top_k));
        for (((logits, scores), (ids, d_gates)), d_logits) in wide.zip(narrow).zip(d_logits.chunks_exact_mut(experts)) {
            score_gradient(isa, shape, loss, scores, &mut d_scores);
            add_gate_gradient(shape, scores, ids, d_gates, &mut d_scores);
            logit_gradient(isa, shape.score, loss.z_grad, logits, scores, &d_scores, d_logits);
        }
    });
    Ok(())
}

vectorized! {
    /// `d_scores =` of a token from the loss on normalised scores.
    fn score_gradient<const FMA: bool>(
        isa: Isa,
        shape: &RouterShape,
        loss: &RouterLoss<'_>,
        scores: &[f32],
        d_scores: &mut [f64],
    ) {
        match shape.score {
            // the scores are normalised already; their own total is no function of them
            Score::Softmax => d_scores.copy_from_slice(loss.score_grad),
            // normalised_e = score_e / total
            Score::Sigmoid => {
                let inverse = 1.0 / sigmoid_total(scores);
                let shrink = dot(scores, loss.score_grad) * inverse;
                for (d_score, grad) in d_scores.iter_mut().zip(loss.score_grad) {
                    *d_score = (grad - shrink) * inverse;
                }
            }
        }
    }
}

/// `d_scores +=` of a token from its gates.
fn add_gate_gradient(shape: &RouterShape, scores: &[f32], ids: &[u32], d_gates: &[f32], d_scores: &mut [f64]) {
    // gate_k = scale * score_k / denominator, and if renormalised d(denominator)/d(score_k) = 1
    let denominator = denominator(shape, scores, ids);
    let shrink = if shape.renormalize {
        let chosen = ids.iter().zip(d_gates);
        chosen.map(|(&id, d_gate)| f64::from(scores[id as usize]) * f64::from(*d_gate)).sum::<f64>() / denominator
    } else {
        0.0
    };
    for (&id, d_gate) in ids.iter().zip(d_gates) {
        d_scores[id as usize] += shape.scale * (f64::from(*d_gate) - shrink) / denominator;
    }
}

vectorized! {
    /// `d_logits =` of a token from `d_scores` and the loss on its logsumexp.
    fn logit_gradient<const FMA: bool>(
        isa: Isa,
        kind: Score,
        z_grad: f64,
        logits: &[f32],
        scores: &[f32],
        d_scores: &[f64],
        d_logits: &mut [f32],
    ) {
        // z = z_grad * log_sum², d(log_sum)/d(logit) = softmax(logits)
        let (max, sum) =
            if z_grad == 0.0 { (0.0, 1.0) } else { let max = greatest(logits); (max, sum_exp::<FMA>(logits, max)) };
        let from_log_sum = 2.0 * z_grad * (f64::from(max) + sum.ln());
        let values = scores.iter().zip(d_scores);
        match kind {
            // d_logit = p * (d_p - sum(p * d_p))
            Score::Softmax => {
                let shift = from_log_sum - dot(scores, d_scores);
                for (d_logit, (score, d_score)) in d_logits.iter_mut().zip(values) {
                    *d_logit = (f64::from(*score) * (d_score + shift)) as f32;
                }
            }
            // d_logit = d_s * s * (1 - s)
            Score::Sigmoid => {
                for (d_logit, (score, d_score)) in d_logits.iter_mut().zip(values) {
                    let score = f64::from(*score);
                    *d_logit = (d_score * score * (1.0 - score)) as f32;
                }
                if z_grad != 0.0 {
                    let factor = (from_log_sum / sum) as f32;
                    for (d_logit, logit) in d_logits.iter_mut().zip(logits) {
                        *d_logit += factor * exp::<FMA>(*logit - max);
                    }
                }
            }
        }
    }
}

fn check(at: Refusal, shape: &RouterShape) -> Outcome {
    let RouterShape { experts, top_k, groups, .. } = *shape;
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

/// The memory in which the experts of one token after another are chosen.
struct Choice {
    values: Vec<f32>,
    group_values: Vec<f32>,
    top_groups: Vec<u32>,
}

impl Choice {
    fn new(shape: &RouterShape) -> Self {
        let (groups, top_groups) = shape.groups.map_or((0, 0), |grouping| (grouping.groups, grouping.top_groups));
        Self { values: vec![0.0; shape.experts], group_values: vec![0.0; groups], top_groups: vec![0; top_groups] }
    }

    /// The experts of best choice value inside the best groups, best first; ties go to the lowest id.
    fn choose(&mut self, shape: &RouterShape, logits: &[f32], scores: &[f32], bias: Option<&[f32]>, ids: &mut [u32]) {
        if let Some(bias) = bias {
            let sums = scores.iter().zip(bias).map(|(score, bias)| score + bias);
            self.values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum);
        }
        let values = if bias.is_some() { &*self.values } else { logits };
        let Some(Grouping { groups, .. }) = shape.groups else {
            return best_first(values, 0..shape.experts, ids);
        };
        let size = shape.experts / groups;
        let ranked = if bias.is_some() { &*self.values } else { scores };
        for (rank, values) in self.group_values.iter_mut().zip(ranked.chunks_exact(size)) {
            *rank = group_rank(values);
        }
        best_first(&self.group_values, 0..groups, &mut self.top_groups);
        self.top_groups.sort_unstable(); // so that ties among experts of different groups go to the lowest id
        let experts = self.top_groups.iter().flat_map(|&group| group as usize * size..(group as usize + 1) * size);
        best_first(values, experts, ids);
    }
}

/// The sum of a group's two best choice values, or its only one.
fn group_rank(values: &[f32]) -> f32 {
    let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &value in values {
        if value > best {
            (best, second) = (value, best);
        } else if value > second {
            second = value;
        }
    }
    if values.len() == 1 { best } else { best + second }
}

/// Fills `ids` with those of the ascending `candidates` that have the greatest values, greatest first, by insertion:
/// most candidates of a token take one comparison.
fn best_first(values: &[f32], candidates: impl Iterator<Item = usize>, ids: &mut [u32]) {
    let mut filled = 0;
    for candidate in candidates {
        let value = values[candidate];
        let beats = |id: u32| value.partial_cmp(&values[id as usize]) == Some(Ordering::Greater);
        if filled == ids.len() && !beats(ids[filled - 1]) {
            continue;
        }
        filled = ids.len().min(filled + 1);
        let mut place = filled - 1;
        while place > 0 && beats(ids[place - 1]) {
            ids[place] = ids[place - 1];
            place -= 1;
        }
        ids[place] = candidate as u32;
    }
}

/// What the chosen scores are divided by.
fn denominator(shape: &RouterShape, scores: &[f32], ids: &[u32]) -> f64 {
    if !shape.renormalize {
        return 1.0;
    }
    let sum: f64 = ids.iter().map(|&id| f64::from(scores[id as usize])).sum();
    match shape.score {
        Score::Softmax => sum,
        Score::Sigmoid => sum + SIGMOID_SUM_FLOOR,
    }
}

/// The sum of all scores of a token, which normalises sigmoid scores.
#[inline(always)]
fn sigmoid_total(scores: &[f32]) -> f64 {
    let mut lanes = [0.0; 16];
    for block in scores.chunks(16) {
        lanes.iter_mut().zip(block).for_each(|(lane, score)| *lane += f64::from(*score));
    }
    lanes.iter().sum::<f64>().max(SIGMOID_TOTAL_FLOOR)
}

#[inline(always)]
fn dot(scores: &[f32], values: &[f64]) -> f64 {
    let mut lanes = [0.0; 16];
    for (scores, values) in scores.chunks(16).zip(values.chunks(16)) {
        let products = scores.iter().zip(values).map(|(score, value)| f64::from(*score) * value);
        lanes.iter_mut().zip(products).for_each(|(lane, product)| *lane += product);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests;
