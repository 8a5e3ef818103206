//! Both ends of the model.

use cambium_kernels::backend::Backend;
use cambium_kernels::buffer::Buffer;
use cambium_kernels::reference::Reference;

use crate::{Outcome, Values, agrees, draw, floats, fresh, indices, values, with_seeds, zeros};

#[test]
fn an_embedding_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (vocab, width, ids) = (5, 3, [4, 0, 4, 2]);
        let inputs = [draw(random, vocab * width)];
        agrees(
            "embedding",
            random,
            &inputs,
            |i| {
                let mut out = fresh(ids.len() * width)?;
                let table = floats(&i[0])?;
                Reference::new().embedding_forward(width, table.view(), indices(&ids)?.view(), out.view_mut())?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, mut d_table) = (floats(&d[0])?, zeros(vocab * width)?);
                let to = d_table.view_mut();
                Reference::new().embedding_backward(width, d_out.view(), indices(&ids)?.view(), to)?;
                Ok(vec![values(&d_table)?])
            },
        )
    });
}

#[test]
fn cross_entropy_gives_the_gradient_of_its_nll() {
    with_seeds(|random| {
        let (vocab, targets) = (6, [5, 0, 3]);
        let inputs = [draw(random, targets.len() * vocab)];
        // One scale serves all tokens of a call, so each token's gradient comes from a call with its own weight.
        let run = |logits: &[f64], grad_scale: f64| -> Outcome<[Values; 2]> {
            let (mut nll, mut d_logits) = (fresh(targets.len())?, fresh(targets.len() * vocab)?);
            let (logits, to) = (floats(logits)?, Some(d_logits.view_mut()));
            let targets = indices(&targets)?;
            Reference::new().cross_entropy(vocab, grad_scale, logits.view(), targets.view(), nll.view_mut(), to)?;
            Ok([values(&nll)?, values(&d_logits)?])
        };
        agrees(
            "cross_entropy",
            random,
            &inputs,
            |i| Ok(vec![run(&i[0], 1.0)?[0].clone()]),
            |d| {
                let mut gradient = Vec::new();
                for (token, weight) in d[0].iter().enumerate() {
                    let [_, d_logits] = run(&inputs[0], *weight)?;
                    gradient.extend_from_slice(&d_logits[token * vocab..(token + 1) * vocab]);
                }
                Ok(vec![gradient])
            },
        )
    });
}
