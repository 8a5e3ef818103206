//! Both ends of the model: embedding and cross-entropy.

use super::arguments::{Arguments, elements};
use super::router::log_sum_exp;
use super::{In, Out};
use crate::backend::Outcome;

pub(super) fn embedding_forward(width: usize, table: In<'_>, ids: In<'_>, out: Out<'_>) -> Outcome {
    let at = Arguments("embedding_forward");
    let vocab = at.rows("table", table.len, width)?;
    let table = at.floats("table", table, vocab * width)?;
    let ids = at.indices("ids", ids, ids.len)?;
    let out = at.floats_mut("out", out, elements([ids.len(), width]))?;
    at.below("token", ids, vocab)?;
    for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
        out.copy_from_slice(&table[id as usize * width..(id as usize + 1) * width]);
    }
    Ok(())
}

pub(super) fn embedding_backward(width: usize, d_out: In<'_>, ids: In<'_>, d_table: Out<'_>) -> Outcome {
    let at = Arguments("embedding_backward");
    let vocab = at.rows("d_table", d_table.len, width)?;
    let d_table = at.f32s_mut("d_table", d_table, vocab * width)?;
    let ids = at.indices("ids", ids, ids.len)?;
    let d_out = at.floats("d_out", d_out, elements([ids.len(), width]))?;
    at.below("token", ids, vocab)?;
    for (d_out, &id) in d_out.chunks_exact(width).zip(ids) {
        let row = &mut d_table[id as usize * width..(id as usize + 1) * width];
        row.iter_mut().zip(d_out).for_each(|(row, d_out)| *row += d_out);
    }
    Ok(())
}

pub(super) fn cross_entropy(
    vocab: usize,
    grad_scale: f64,
    logits: In<'_>,
    targets: In<'_>,
    nll: Out<'_>,
    d_logits: Option<Out<'_>>,
) -> Outcome {
    let at = Arguments("cross_entropy");
    let targets = at.indices("targets", targets, targets.len)?;
    let tokens = targets.len();
    let logits = at.f32s("logits", logits, elements([tokens, vocab]))?;
    let nll = at.f32s_mut("nll", nll, tokens)?;
    let mut d_logits = d_logits.map(|d| at.floats_mut("d_logits", d, elements([tokens, vocab]))).transpose()?;
    at.below("target", targets, vocab)?;
    for (token, &target) in targets.iter().enumerate() {
        let row = token * vocab..(token + 1) * vocab;
        let logits = &logits[row.clone()];
        let log_sum = log_sum_exp(logits);
        nll[token] = log_sum - logits[target as usize];
        if let Some(d_logits) = &mut d_logits {
            let d_logits = &mut d_logits[row];
            d_logits.iter_mut().zip(logits).for_each(|(d, logit)| *d = (logit - log_sum).exp() * grad_scale);
            d_logits[target as usize] -= grad_scale;
        }
    }
    Ok(())
}
