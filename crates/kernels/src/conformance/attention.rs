//! Cases of attention.

use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::tolerance::{BF16, F32, Tolerance};
use super::{FLOATS, Failure};
use crate::backend::{Backend, Outcome};
use crate::buffer::Element;
use crate::ops::AttentionShape;

#[derive(Debug)]
struct Forward(AttentionShape);

impl Kernel<5> for Forward {
    fn call<B: Backend>(&self, on: &B, [q, k, v, out, lse]: &mut [Placed<B>; 5]) -> Outcome<Reply> {
        on.attention_forward(self.0, q.get(), k.get(), v.get(), out.get_mut(), lse.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct Backward(AttentionShape);

impl Kernel<9> for Backward {
    fn call<B: Backend>(&self, on: &B, arguments: &mut [Placed<B>; 9]) -> Outcome<Reply> {
        let [d_out, q, k, v, out, lse, dq, dk, dv] = arguments;
        let (read, saved) = ((d_out.get(), q.get(), k.get(), v.get()), (out.get(), lse.get()));
        let (d_out, q, k, v) = read;
        let (out, lse) = saved;
        on.attention_backward(self.0, d_out, q, k, v, out, lse, dq.get_mut(), dk.get_mut(), dv.get_mut())
            .map(Reply::from)
    }
}

/// Single tokens, lengths around block sizes, grouped heads, heads whose values are narrower or wider than their keys.
fn shapes() -> impl Iterator<Item = AttentionShape> {
    [
        [0, 4, 2, 1, 8, 8],
        [1, 0, 2, 1, 8, 8],
        [1, 1, 1, 1, 1, 1],
        [2, 17, 4, 2, 8, 8],
        [1, 64, 6, 2, 64, 64],
        [2, 33, 4, 4, 40, 24],
        [1, 70, 3, 1, 96, 64],
        [1, 130, 2, 1, 20, 36],
        [1, 257, 1, 1, 16, 16],
    ]
    .into_iter()
    .map(|[batch, seq_len, heads, kv_heads, qk_dim, v_dim]| {
        let scale = 1.0 / (qk_dim as f64).sqrt();
        AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, scale }
    })
}

/// A probability that is multiplied as bf16 loses one unit roundoff more; everything else is f32. The exponential of a
/// score of size s loses s units.
fn tolerance(element: Element, terms: usize, score: f64) -> Tolerance {
    let probability = if element == Element::Bf16 { BF16 } else { 0.0 };
    Tolerance::relative(probability + computed(terms, score))
}

/// Two sums in f32, and the exponentials.
fn computed(terms: usize, score: f64) -> f64 {
    F32 * (8.0 * (terms as f64 + 16.0).sqrt() + 8.0 * score)
}

fn inputs<B: Backend>(bench: &mut Bench<'_, B>, shape: AttentionShape, element: Element, size: f64) -> [Argument; 5] {
    let AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, .. } = shape;
    let tokens = batch * seq_len;
    let score = 4.0 * size;
    let mut floats = |name, len| Argument::floats(name, element, bench.draw.normals(len)).matched();
    let mut q = floats("q", tokens * heads * qk_dim);
    q.values.iter_mut().for_each(|q| *q = super::argument::round(element, *q * size));
    [
        q,
        floats("k", tokens * kv_heads * qk_dim),
        floats("v", tokens * kv_heads * v_dim),
        floats("out", tokens * heads * v_dim).overwritten(tolerance(element, qk_dim + seq_len, score)),
        Argument::f32("lse", vec![0.0; tokens * heads]).overwritten(tolerance(Element::F32, qk_dim + seq_len, score)),
    ]
}

pub(super) fn attention_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for shape in shapes() {
        for element in FLOATS {
            let arguments = inputs(bench, shape, element, 1.0);
            bench.agree(&Forward(shape), arguments)?;
        }
    }
    // Scores of a hundred: without the subtraction of the greatest one their exponentials overflow.
    let shape = AttentionShape { batch: 1, seq_len: 90, heads: 2, kv_heads: 1, qk_dim: 16, v_dim: 16, scale: 0.25 };
    for element in FLOATS {
        let arguments = inputs(bench, shape, element, 40.0);
        bench.agree(&Forward(shape), arguments)?;
        let shape = AttentionShape { seq_len: 3, ..shape };
        let arguments = inputs(bench, shape, element, 1.0);
        bench.refuses_faults(&Forward(shape), &arguments)?;
        bench.refuses_shape(&Forward(AttentionShape { heads: 2, kv_heads: 4, ..shape }), &arguments)?;
        bench.refuses_shape(&Forward(AttentionShape { kv_heads: 0, ..shape }), &arguments)?;
    }
    Ok(())
}

pub(super) fn attention_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for shape in shapes() {
        for element in FLOATS {
            let arguments = backward_inputs(bench, shape, element)?;
            bench.agree(&Backward(shape), arguments)?;
        }
    }
    let shape = AttentionShape { batch: 1, seq_len: 3, heads: 2, kv_heads: 1, qk_dim: 5, v_dim: 4, scale: 0.5 };
    for element in FLOATS {
        let arguments = backward_inputs(bench, shape, element)?;
        bench.refuses_faults(&Backward(shape), &arguments)?;
        bench.refuses_shape(&Backward(AttentionShape { kv_heads: 0, ..shape }), &arguments)?;
    }
    Ok(())
}

fn backward_inputs<B: Backend>(
    bench: &mut Bench<'_, B>,
    shape: AttentionShape,
    element: Element,
) -> Result<[Argument; 9], Failure> {
    let arguments = inputs(bench, shape, element, 1.0);
    let [q, k, v, mut out, mut lse] = bench.on_reference(&Forward(shape), arguments)?;
    (out.written, lse.written) = (None, None);
    // The gradient of a score is p * (dp - out·d_out): a difference, of numbers four times its size, of which in bf16
    // p and the result are rounded once more before they are multiplied.
    let probability = if element == Element::Bf16 { 2.0 * BF16 } else { 0.0 };
    let sums = computed(shape.qk_dim + shape.v_dim + shape.seq_len, 4.0);
    let tolerance = Tolerance::relative(probability + 4.0 * sums);
    let gradient = |name, of: &Argument| {
        Argument::floats(name, element, vec![0.0; of.values.len()]).matched().overwritten(tolerance)
    };
    let (dq, dk, dv) = (gradient("dq", &q), gradient("dk", &k), gradient("dv", &v));
    let d_out = Argument::floats("d_out", element, bench.draw.normals(out.values.len())).matched();
    Ok([d_out, q, k, v, out, lse, dq, dk, dv])
}
