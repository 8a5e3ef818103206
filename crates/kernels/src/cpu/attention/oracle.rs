//! Attention in plain f64 loops over whole rows of scores: what the blockwise kernels are held to.

use crate::ops::AttentionShape;

/// (out, lse) as the kernels lay them out.
pub(super) fn forward(shape: &AttentionShape, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut out = vec![0.0; shape.batch * shape.seq_len * shape.heads * shape.v_dim];
    let mut lse = vec![0.0; shape.batch * shape.heads * shape.seq_len];
    for_each_row(shape, |row| {
        let (probabilities, log_sum) = row.probabilities(shape, q, k);
        lse[row.lse(shape)] = log_sum;
        for (j, p) in probabilities.iter().enumerate() {
            for d in 0..shape.v_dim {
                out[row.query(shape, shape.v_dim) + d] += p * v[row.key(shape, j, shape.v_dim) + d];
            }
        }
    });
    (out, lse)
}

/// (dq, dk, dv) as the kernels lay them out.
pub(super) fn backward(
    shape: &AttentionShape,
    d_out: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for_each_row(shape, |row| {
        let (probabilities, _) = row.probabilities(shape, q, k);
        let d_out = &d_out[row.query(shape, shape.v_dim)..][..shape.v_dim];
        let d_probabilities: Vec<f64> =
            (0..=row.t).map(|j| dot(d_out, &v[row.key(shape, j, shape.v_dim)..][..shape.v_dim])).collect();
        let delta = dot(&probabilities, &d_probabilities);
        let at = row.query(shape, shape.qk_dim);
        for j in 0..=row.t {
            for d in 0..shape.v_dim {
                dv[row.key(shape, j, shape.v_dim) + d] += probabilities[j] * d_out[d];
            }
            let d_score = probabilities[j] * (d_probabilities[j] - delta) * shape.scale;
            for d in 0..shape.qk_dim {
                let key = row.key(shape, j, shape.qk_dim) + d;
                dq[at + d] += d_score * k[key];
                dk[key] += d_score * q[at + d];
            }
        }
    });
    (dq, dk, dv)
}

/// A token of a query head.
struct Row {
    b: usize,
    t: usize,
    n: usize,
}

impl Row {
    fn query(&self, shape: &AttentionShape, width: usize) -> usize {
        ((self.b * shape.seq_len + self.t) * shape.heads + self.n) * width
    }

    fn key(&self, shape: &AttentionShape, j: usize, width: usize) -> usize {
        let kv_head = self.n / (shape.heads / shape.kv_heads);
        ((self.b * shape.seq_len + j) * shape.kv_heads + kv_head) * width
    }

    fn lse(&self, shape: &AttentionShape) -> usize {
        (self.b * shape.heads + self.n) * shape.seq_len + self.t
    }

    /// Softmax of the row's scores against keys 0..=t, and the log of their sum of exponentials.
    fn probabilities(&self, shape: &AttentionShape, q: &[f64], k: &[f64]) -> (Vec<f64>, f64) {
        let query = &q[self.query(shape, shape.qk_dim)..][..shape.qk_dim];
        let scores: Vec<f64> = (0..=self.t)
            .map(|j| shape.scale * dot(query, &k[self.key(shape, j, shape.qk_dim)..][..shape.qk_dim]))
            .collect();
        let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - greatest).exp()).sum();
        (scores.iter().map(|score| (score - greatest).exp() / sum).collect(), greatest + sum.ln())
    }
}

fn for_each_row(shape: &AttentionShape, mut visit: impl FnMut(Row)) {
    for b in 0..shape.batch {
        for n in 0..shape.heads {
            for t in 0..shape.seq_len {
                visit(Row { b, t, n });
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
