//! Causal attention with whole score matrices: what the blockwise kernels must equal.

use candle_core::{D, Device, Tensor};

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::buffer::{Buffer, Element};
use crate::ops::AttentionShape;

pub(super) fn forward(shape: AttentionShape, q: In<'_>, k: In<'_>, v: In<'_>, out: Out<'_>, lse: Out<'_>) -> Outcome {
    let at = Arguments("attention_forward");
    let lengths = Lengths::new(at, shape)?;
    let element = q.buffer.element();
    at.is("k", k.buffer, element)?;
    at.is("v", v.buffer, element)?;
    at.is("out", out.buffer, element)?;
    let q = at.floats("q", q, lengths.q)?;
    let k = at.floats("k", k, lengths.k)?;
    let v = at.floats("v", v, lengths.v)?;
    let out = at.floats_mut("out", out, lengths.out)?;
    let lse = at.f32s_mut("lse", lse, lengths.lse)?;
    if lengths.lse == 0 {
        return Ok(());
    }

    let scores = scores(shape, &heads_first(shape, shape.heads, q)?, &heads_first(shape, shape.kv_heads, k)?)?;
    let max = scores.max_keepdim(D::Minus1)?;
    let exponentials = scores.broadcast_sub(&max)?.exp()?;
    let sum = exponentials.sum_keepdim(D::Minus1)?;
    let probabilities = exponentials.broadcast_div(&sum)?;
    let values = for_each_query_head(shape, &heads_first(shape, shape.kv_heads, v)?)?;
    put(&tokens_first(&probabilities.matmul(&values)?)?, out)?;
    put(&(max + sum.log()?)?, lse)
}

pub(super) fn backward(
    shape: AttentionShape,
    d_out: In<'_>,
    q: In<'_>,
    k: In<'_>,
    v: In<'_>,
    out: In<'_>,
    lse: In<'_>,
    dq: Out<'_>,
    dk: Out<'_>,
    dv: Out<'_>,
) -> Outcome {
    let at = Arguments("attention_backward");
    let lengths = Lengths::new(at, shape)?;
    let element = q.buffer.element();
    for (argument, buffer) in [("d_out", d_out.buffer), ("k", k.buffer), ("v", v.buffer), ("out", out.buffer)] {
        at.is(argument, buffer, element)?;
    }
    for (argument, buffer) in [("dq", &*dq.buffer), ("dk", &*dk.buffer), ("dv", &*dv.buffer)] {
        at.is(argument, buffer, element)?;
    }
    at.is("lse", lse.buffer, Element::F32)?;
    let d_out = at.floats("d_out", d_out, lengths.out)?;
    let q = at.floats("q", q, lengths.q)?;
    let k = at.floats("k", k, lengths.k)?;
    let v = at.floats("v", v, lengths.v)?;
    let out = at.floats("out", out, lengths.out)?;
    let lse = at.floats("lse", lse, lengths.lse)?;
    let dq = at.floats_mut("dq", dq, lengths.q)?;
    let dk = at.floats_mut("dk", dk, lengths.k)?;
    let dv = at.floats_mut("dv", dv, lengths.v)?;
    if lengths.lse == 0 {
        return Ok(());
    }

    let AttentionShape { batch, seq_len, heads, kv_heads, scale, .. } = shape;
    let q = heads_first(shape, heads, q)?;
    let k = heads_first(shape, kv_heads, k)?;
    let v = for_each_query_head(shape, &heads_first(shape, kv_heads, v)?)?;
    let out = heads_first(shape, heads, out)?;
    let d_out = heads_first(shape, heads, d_out)?;
    let lse = Tensor::from_slice(lse, (batch, heads, seq_len, 1), &Device::Cpu)?;

    // probabilities = exp(scores - lse), out = probabilities · v
    let probabilities = scores(shape, &q, &k)?.broadcast_sub(&lse)?.exp()?;
    let d_v = transposed(&probabilities)?.matmul(&d_out)?;
    let d_probabilities = d_out.matmul(&transposed(&v)?)?;
    // softmax: d_score = p * (d_p - sum(p * d_p)), and sum(p * d_p) = sum(out * d_out)
    let dot = (&out * &d_out)?.sum_keepdim(D::Minus1)?;
    let d_scores = ((probabilities * d_probabilities.broadcast_sub(&dot)?)? * scale)?;
    // scores = scale * q · kᵀ
    put(&tokens_first(&d_scores.matmul(&for_each_query_head(shape, &k)?)?)?, dq)?;
    put(&tokens_first(&over_query_heads(shape, &transposed(&d_scores)?.matmul(&q)?)?)?, dk)?;
    put(&tokens_first(&over_query_heads(shape, &d_v)?)?, dv)
}

/// Elements of each argument.
struct Lengths {
    q: usize,
    k: usize,
    v: usize,
    out: usize,
    lse: usize,
}

impl Lengths {
    fn new(at: Arguments, shape: AttentionShape) -> Outcome<Self> {
        let AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, .. } = shape;
        at.shape(kv_heads > 0 && heads.is_multiple_of(kv_heads), || {
            format!("heads = {heads} is not a multiple of kv_heads = {kv_heads}")
        })?;
        at.shape(qk_dim > 0 && v_dim > 0, || format!("qk_dim = {qk_dim} and v_dim = {v_dim} must be positive"))?;
        Ok(Self {
            q: elements([batch, seq_len, heads, qk_dim]),
            k: elements([batch, seq_len, kv_heads, qk_dim]),
            v: elements([batch, seq_len, kv_heads, v_dim]),
            out: elements([batch, seq_len, heads, v_dim]),
            lse: elements([batch, heads, seq_len]),
        })
    }
}

/// (B*T, heads, size) to (B, heads, T, size).
fn heads_first(shape: AttentionShape, heads: usize, values: &[f64]) -> Outcome<Tensor> {
    let size = values.len() / (shape.batch * shape.seq_len * heads);
    let tensor = Tensor::from_slice(values, (shape.batch, shape.seq_len, heads, size), &Device::Cpu)?;
    Ok(tensor.transpose(1, 2)?.contiguous()?)
}

/// (B, heads, T, size) to (B, T, heads, size).
fn tokens_first(tensor: &Tensor) -> Outcome<Tensor> {
    Ok(tensor.transpose(1, 2)?)
}

fn transposed(tensor: &Tensor) -> Outcome<Tensor> {
    Ok(tensor.transpose(2, 3)?.contiguous()?)
}

/// (B, G, T, size) to (B, N, T, size): each key/value head once for every query head that reads it.
fn for_each_query_head(shape: AttentionShape, tensor: &Tensor) -> Outcome<Tensor> {
    let (batch, kv_heads, seq_len, size) = tensor.dims4()?;
    let repeated = tensor.unsqueeze(2)?.expand((batch, kv_heads, shape.heads / kv_heads, seq_len, size))?;
    Ok(repeated.reshape((batch, shape.heads, seq_len, size))?)
}

/// (B, N, T, size) to (B, G, T, size): the backward of [`for_each_query_head`].
fn over_query_heads(shape: AttentionShape, tensor: &Tensor) -> Outcome<Tensor> {
    let (batch, heads, seq_len, size) = tensor.dims4()?;
    let grouped = tensor.reshape((batch, shape.kv_heads, heads / shape.kv_heads, seq_len, size))?;
    Ok(grouped.sum(2)?)
}

/// `scale * q · kᵀ`, minus infinity where the key stands after the query: (B, N, T, T).
fn scores(shape: AttentionShape, q: &Tensor, k: &Tensor) -> Outcome<Tensor> {
    let seq_len = shape.seq_len;
    let mask = (0..seq_len * seq_len)
        .map(|i| if i % seq_len > i / seq_len { f64::NEG_INFINITY } else { 0.0 })
        .collect::<Vec<_>>();
    let mask = Tensor::from_vec(mask, (seq_len, seq_len), &Device::Cpu)?;
    let products = q.matmul(&transposed(&for_each_query_head(shape, k)?)?)?;
    Ok((products * shape.scale)?.broadcast_add(&mask)?)
}

fn put(tensor: &Tensor, target: &mut [f64]) -> Outcome {
    target.copy_from_slice(&tensor.flatten_all()?.to_vec1::<f64>()?);
    Ok(())
}
