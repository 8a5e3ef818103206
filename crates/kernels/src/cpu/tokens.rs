//! Both ends of the model: embedding and cross-entropy.

use rayon::prelude::*;

use super::isa::Isa;
use super::refusal::Refusal;
use super::slices::{Floats, FloatsMut};
use super::vectorize::{Value, exp, greatest, part_rows, sum_exp, vectorized};
use crate::error::KernelError;

/// `out[t] = table[ids[t]]`; table (V, width), out (T, width).
///
/// # Errors
/// Lengths that do not fit, ids not below V.
pub(crate) fn embedding_forward(
    isa: Isa,
    width: usize,
    table: Floats<'_>,
    ids: &[u32],
    out: FloatsMut<'_>,
) -> Result<(), KernelError> {
    let at = Refusal("embedding_forward");
    let vocab = at.rows("table", table.len(), width)?;
    at.length("out", out.len(), ids.len().saturating_mul(width))?;
    at.below("token", ids, vocab)?;
    match (table, out) {
        (Floats::F32(table), FloatsMut::F32(out)) => look_up(isa, width, table, ids, out),
        (Floats::F32(table), FloatsMut::Bf16(out)) => look_up(isa, width, table, ids, out),
        (Floats::Bf16(table), FloatsMut::F32(out)) => look_up(isa, width, table, ids, out),
        (Floats::Bf16(table), FloatsMut::Bf16(out)) => look_up(isa, width, table, ids, out),
    }
    Ok(())
}

fn look_up<S: Value, D: Value>(isa: Isa, width: usize, table: &[S], ids: &[u32], out: &mut [D]) {
    let part = part_rows(width);
    out.par_chunks_mut(part * width).zip(ids.par_chunks(part)).for_each(|(out, ids)| {
        for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
            convert(isa, &table[id as usize * width..][..width], out);
        }
    });
}

/// `d_table[ids[t]] += d_out[t]`, in the order of the tokens; `d_table` (V, width), `d_out` (T, width).
///
/// # Errors
/// Lengths that do not fit, ids not below V.
pub(crate) fn embedding_backward(
    isa: Isa,
    width: usize,
    d_out: Floats<'_>,
    ids: &[u32],
    d_table: &mut [f32],
) -> Result<(), KernelError> {
    let at = Refusal("embedding_backward");
    let vocab = at.rows("d_table", d_table.len(), width)?;
    at.length("d_out", d_out.len(), ids.len().saturating_mul(width))?;
    at.below("token", ids, vocab)?;
    match d_out {
        Floats::F32(d_out) => add_to_rows(isa, width, vocab, d_out, ids, d_table),
        Floats::Bf16(d_out) => add_to_rows(isa, width, vocab, d_out, ids, d_table),
    }
    Ok(())
}

/// Ranges of ids that the gradient of a table is cut into. Each of them reads all ids, which is little next to a row;
/// there are many, because frequent tokens tend to be neighbours.
const ID_RANGES: usize = 64;

fn add_to_rows<S: Value>(isa: Isa, width: usize, vocab: usize, d_out: &[S], ids: &[u32], d_table: &mut [f32]) {
    let range = if ids.len() <= part_rows(width) { vocab.max(1) } else { vocab.div_ceil(ID_RANGES).max(1) };
    d_table.par_chunks_mut(range * width).enumerate().for_each(|(part, d_table)| {
        let first = part * range;
        for (&id, d_out) in ids.iter().zip(d_out.chunks_exact(width)) {
            let row = (id as usize).wrapping_sub(first);
            if row < range {
                add(isa, d_out, &mut d_table[row * width..][..width]);
            }
        }
    });
}

vectorized! {
    /// `to = from`, rounded.
    fn convert<const FMA: bool, S: Value, D: Value>(isa: Isa, from: &[S], to: &mut [D]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = D::round(from.widen());
        }
    }
}

vectorized! {
    /// `to += from`.
    fn add<const FMA: bool, S: Value>(isa: Isa, from: &[S], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from.widen();
        }
    }
}

/// `nll[t] = logsumexp(logits[t]) - logits[t, targets[t]]` and, if asked for,
/// `d_logits[t] = (softmax(logits[t]) - onehot(targets[t])) * grad_scale`; logits and `d_logits` (T, vocab).
///
/// A row is read from memory once: its three sub-passes find it in the cache.
///
/// # Errors
/// Lengths that do not fit, targets not below `vocab`.
pub(crate) fn cross_entropy(
    isa: Isa,
    vocab: usize,
    grad_scale: f64,
    logits: &[f32],
    targets: &[u32],
    nll: &mut [f32],
    d_logits: Option<FloatsMut<'_>>,
) -> Result<(), KernelError> {
    let at = Refusal("cross_entropy");
    let elements = targets.len().saturating_mul(vocab);
    at.length("logits", logits.len(), elements)?;
    at.length("nll", nll.len(), targets.len())?;
    if let Some(d_logits) = &d_logits {
        at.length("d_logits", d_logits.len(), elements)?;
    }
    at.below("target", targets, vocab)?;
    if targets.is_empty() {
        return Ok(());
    }

    let part = part_rows(vocab);
    let rows = logits.par_chunks(part * vocab).zip(targets.par_chunks(part)).zip(nll.par_chunks_mut(part));
    match d_logits {
        None => rows.for_each(|((logits, targets), nll)| {
            for ((logits, &target), nll) in logits.chunks_exact(vocab).zip(targets).zip(nll) {
                *nll = row_loss(isa, logits, target).nll();
            }
        }),
        Some(FloatsMut::F32(d_logits)) => {
            let parts = rows.zip(d_logits.par_chunks_mut(part * vocab));
            parts.for_each(|(part, d_logits)| part_gradient(isa, vocab, grad_scale, part, d_logits));
        }
        Some(FloatsMut::Bf16(d_logits)) => {
            let parts = rows.zip(d_logits.par_chunks_mut(part * vocab));
            parts.for_each(|(part, d_logits)| part_gradient(isa, vocab, grad_scale, part, d_logits));
        }
    }
    Ok(())
}

type LossPart<'a> = ((&'a [f32], &'a [u32]), &'a mut [f32]);

fn part_gradient<D: Value>(isa: Isa, vocab: usize, grad_scale: f64, part: LossPart<'_>, d_logits: &mut [D]) {
    let ((logits, targets), nll) = part;
    let d_rows = d_logits.chunks_exact_mut(vocab);
    for (((logits, &target), nll), d_logits) in logits.chunks_exact(vocab).zip(targets).zip(nll).zip(d_rows) {
        let loss = row_loss(isa, logits, target);
        *nll = loss.nll();
        row_gradient(isa, logits, loss.max, (grad_scale / loss.sum) as f32, d_logits);
        // The one element in which two near values may cancel is made in f64.
        let p = (f64::from(loss.target) - f64::from(loss.max)).exp() / loss.sum;
        d_logits[target as usize] = D::round(((p - 1.0) * grad_scale) as f32);
    }
}

/// What the loss of a token needs of its logits.
struct RowLoss {
    max: f32,
    /// Of the exponentials of `logit - max`.
    sum: f64,
    target: f32,
}

impl RowLoss {
    fn nll(&self) -> f32 {
        (self.sum.ln() + (f64::from(self.max) - f64::from(self.target))) as f32
    }
}

vectorized! {
    fn row_loss<const FMA: bool>(isa: Isa, logits: &[f32], target: u32) -> RowLoss {
        let max = greatest(logits);
        RowLoss { max, sum: sum_exp::<FMA>(logits, max), target: logits[target as usize] }
    }
}

vectorized! {
    /// `to = exp(logit - max) * factor`.
    fn row_gradient<const FMA: bool, D: Value>(isa: Isa, logits: &[f32], max: f32, factor: f32, to: &mut [D]) {
        // In pieces that stay in the first cache: one loop with `exp` and a narrower type is badly vectorised.
        let mut piece = [0.0_f32; 512];
        for (logits, to) in logits.chunks(piece.len()).zip(to.chunks_mut(piece.len())) {
            for (value, logit) in piece.iter_mut().zip(logits) {
                *value = exp::<FMA>(*logit - max) * factor;
            }
            for (to, value) in to.iter_mut().zip(&piece) {
                *to = D::round(*value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
