//! Cases of both ends of the model: embedding and cross-entropy.

use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::tolerance::Tolerance;
use super::{FLOATS, type_pairs};
use crate::backend::{Backend, Outcome};

/// Tokens, vocabulary, width.
const SIZES: [[usize; 3]; 5] = [[0, 3, 5], [1, 1, 3], [17, 11, 33], [6, 100, 64], [70, 9, 20]];

#[derive(Debug)]
struct EmbeddingForward(usize);

impl Kernel<3> for EmbeddingForward {
    fn call<B: Backend>(&self, on: &B, [table, ids, out]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.embedding_forward(self.0, table.get(), ids.get(), out.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct EmbeddingBackward(usize);

impl Kernel<3> for EmbeddingBackward {
    fn call<B: Backend>(&self, on: &B, [d_out, ids, d_table]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.embedding_backward(self.0, d_out.get(), ids.get(), d_table.get_mut()).map(Reply::from)
    }
}

pub(super) fn embedding_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for [tokens, vocab, width] in SIZES {
        for (table, out) in type_pairs() {
            let tolerance = if table == out { Tolerance::Exact } else { Tolerance::operations(1.0) };
            let arguments = [
                Argument::floats("table", table, bench.draw.normals(vocab * width)),
                Argument::indices("ids", &bench.draw.indices(tokens, vocab)),
                Argument::floats("out", out, vec![0.0; tokens * width]).overwritten(tolerance),
            ];
            bench.agree(&EmbeddingForward(width), arguments.clone())?;
            if tokens == 17 {
                bench.refuses_faults(&EmbeddingForward(width), &arguments)?;
                bench.refuses_index(&EmbeddingForward(width), arguments.clone(), 1, vocab)?;
                bench.refuses_index(&EmbeddingForward(width), arguments, 1, u32::MAX as usize - vocab).or_else(
                    // The bound that the error names is the vocabulary's, whatever the index: only that it is refused
                    // as an index counts here.
                    |failure| if failure.to_string().contains("is not below") { Ok(()) } else { Err(failure) },
                )?;
            }
        }
    }
    Ok(())
}

pub(super) fn embedding_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for [tokens, vocab, width] in SIZES {
        for element in FLOATS {
            let d_table = Argument::f32("d_table", bench.draw.normals(vocab * width));
            let arguments = [
                Argument::floats("d_out", element, bench.draw.normals(tokens * width)),
                Argument::indices("ids", &bench.draw.indices(tokens, vocab)),
                d_table.updated(Tolerance::sum(tokens)),
            ];
            bench.agree(&EmbeddingBackward(width), arguments.clone())?;
            if tokens == 17 {
                bench.refuses_faults(&EmbeddingBackward(width), &arguments)?;
                bench.refuses_index(&EmbeddingBackward(width), arguments, 1, vocab)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct CrossEntropy {
    vocab: usize,
    grad_scale: f64,
}

/// Without a gradient.
impl Kernel<3> for CrossEntropy {
    fn call<B: Backend>(&self, on: &B, [logits, targets, nll]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.cross_entropy(self.vocab, self.grad_scale, logits.get(), targets.get(), nll.get_mut(), None).map(Reply::from)
    }
}

/// With a gradient.
impl Kernel<4> for CrossEntropy {
    fn call<B: Backend>(&self, on: &B, [logits, targets, nll, d_logits]: &mut [Placed<B>; 4]) -> Outcome<Reply> {
        let d_logits = Some(d_logits.get_mut());
        on.cross_entropy(self.vocab, self.grad_scale, logits.get(), targets.get(), nll.get_mut(), d_logits)
            .map(Reply::from)
    }
}

pub(super) fn cross_entropy<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for (tokens, vocab) in [(0, 5), (1, 2), (3, 17), (9, 64), (5, 1000), (2, 5003)] {
        for element in FLOATS {
            let kernel = CrossEntropy { vocab, grad_scale: 0.37 };
            // The nll is a difference of a logit and a sum that are each below 16: a few digits cancel. Of a few logits
            // one could be almost certain and leave no digit at all, so those are held close together.
            let spread = if vocab < 10 { 0.3 } else { 3.0 };
            let logits = bench.draw.normals(tokens * vocab).into_iter().map(|x| spread * x).collect();
            let nll = Argument::f32("nll", vec![0.0; tokens]).overwritten(Tolerance::operations(256.0));
            let d_logits = Argument::floats("d_logits", element, vec![0.0; tokens * vocab]);
            let arguments = [
                Argument::f32("logits", logits),
                Argument::indices("targets", &bench.draw.indices(tokens, vocab)),
                nll,
                d_logits.overwritten(Tolerance::operations(256.0)),
            ];
            bench.agree(&kernel, arguments.clone())?;
            if tokens == 3 {
                bench.refuses_faults(&kernel, &arguments)?;
                bench.refuses_index(&kernel, arguments.clone(), 1, vocab)?;
            }
            let [logits, targets, nll, _] = arguments;
            bench.agree(&kernel, [logits, targets, nll])?;
        }
    }
    // Logits far from zero: their exponentials overflow or vanish unless the greatest is subtracted.
    for offset in [-500.0, 500.0] {
        let logits = (0..20).map(|i| offset + f64::from(i % 7)).collect();
        let arguments = [
            Argument::f32("logits", logits),
            Argument::indices("targets", &[3, 0]),
            Argument::f32("nll", vec![0.0; 2]).overwritten(Tolerance::operations(2048.0)),
            Argument::f32("d_logits", vec![0.0; 20]).overwritten(Tolerance::operations(2048.0)),
        ];
        bench.agree(&CrossEntropy { vocab: 10, grad_scale: 1.0 }, arguments)?;
    }
    Ok(())
}
