use super::*;
use crate::cpu::trial::{ELEMENTS, Stored, draw, draw_indices, on_every_pool};

#[test]
fn embedding_rows_are_looked_up_and_their_gradients_added_in_token_order() {
    // The last one is large enough for several parts.
    for (tokens, vocab, width) in [(0, 3, 2), (1, 1, 1), (7, 5, 3), (33, 101, 67), (700, 300, 130)] {
        let seed = (tokens * 1000 + width) as u64;
        let ids = draw_indices(seed, tokens, vocab as u32);
        for isa in Isa::available() {
            for (from, to) in ELEMENTS.into_iter().flat_map(|from| ELEMENTS.map(|to| (from, to))) {
                let what = format!("{isa:?}, {tokens} tokens of {width}, {from:?} to {to:?}, seed {seed}");
                let table = Stored::new(from, &draw(seed + 1, vocab * width));
                let exact = table.exact();
                let rows = ids.iter().flat_map(|&id| exact[id as usize * width..][..width].to_vec());
                let out = on_every_pool(|| {
                    let mut out = Stored::new(to, &vec![9.0; tokens * width]);
                    embedding_forward(isa, width, table.floats(), &ids, out.floats_mut()).unwrap();
                    out
                });
                out.assert_near(&rows.collect::<Vec<_>>(), 0.0, &what);

                let d_out = Stored::new(from, &draw(seed + 2, tokens * width));
                let before = draw(seed + 3, vocab * width);
                let mut expected = before.clone();
                for (d_out, &id) in d_out.exact().chunks_exact(width).zip(&ids) {
                    let row = &mut expected[id as usize * width..][..width];
                    row.iter_mut().zip(d_out).for_each(|(row, d_out)| *row += *d_out as f32);
                }
                let d_table = on_every_pool(|| {
                    let mut d_table = before.clone();
                    embedding_backward(isa, width, d_out.floats(), &ids, &mut d_table).unwrap();
                    d_table
                });
                assert_eq!(d_table, expected, "{what}");
            }
        }
    }
}

/// (nll, gradient) in plain f64 loops.
fn oracle(vocab: usize, grad_scale: f64, logits: &[f32], targets: &[u32]) -> (Vec<f64>, Vec<f64>) {
    let (mut nll, mut d_logits) = (Vec::new(), Vec::new());
    for (logits, &target) in logits.chunks_exact(vocab).zip(targets) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) - f64::from(max)).exp()).collect();
        let sum: f64 = exps.iter().sum();
        nll.push(sum.ln() + f64::from(max) - f64::from(logits[target as usize]));
        let onehot = |v: usize| f64::from(u8::from(v == target as usize));
        d_logits.extend(exps.iter().enumerate().map(|(v, exp)| (exp / sum - onehot(v)) * grad_scale));
    }
    (nll, d_logits)
}

#[test]
fn cross_entropy_and_its_gradient_agree_with_plain_loops() {
    for (tokens, vocab) in [(0, 5), (1, 1), (3, 2), (5, 63), (4, 64), (3, 65), (9, 1000), (37, 2049)] {
        let seed = (tokens * 10_000 + vocab) as u64;
        let targets = draw_indices(seed, tokens, vocab as u32);
        // Narrow ones, and ones so wide apart that most probabilities are denormal or zero.
        for spread in [1.0, 12.0, 300.0] {
            let logits: Vec<f32> = draw(seed + 1, tokens * vocab).iter().map(|x| x * spread).collect();
            let grad_scale = 0.37;
            let (exact_nll, exact_grad) = oracle(vocab, grad_scale, &logits, &targets);
            for (isa, element) in Isa::available().into_iter().flat_map(|isa| ELEMENTS.map(|element| (isa, element))) {
                let what =
                    format!("{isa:?}, {tokens} tokens of {vocab} logits up to {spread}, {element:?}, seed {seed}");
                let (nll, d_logits) = on_every_pool(|| {
                    let mut nll = vec![0.0; tokens];
                    let mut d = Stored::new(element, &vec![9.0; tokens * vocab]);
                    cross_entropy(isa, vocab, grad_scale, &logits, &targets, &mut nll, Some(d.floats_mut())).unwrap();
                    (nll, d)
                });
                // 2 ulp of an exponential and a rounding of its argument, which is spread * 2 at the most.
                d_logits.assert_near(&exact_grad, 1e-6, &what);
                for (t, (nll, exact)) in nll.iter().zip(&exact_nll).enumerate() {
                    let allowed = 1e-6 + 2e-7 * exact;
                    assert!((f64::from(*nll) - exact).abs() <= allowed, "{what}: token {t}: {nll}, not {exact}");
                }
                let mut without = vec![0.0; tokens];
                cross_entropy(isa, vocab, grad_scale, &logits, &targets, &mut without, None).unwrap();
                assert_eq!(without, nll, "{what}: the gradient changes the loss");
            }
        }
    }
}

#[test]
fn a_logit_that_is_not_a_number_shows_in_its_own_loss_only() {
    for isa in Isa::available() {
        let mut logits = draw(1, 3 * 70);
        logits[70 + 68] = f32::NAN;
        let mut nll = [0.0; 3];
        let mut d_logits = vec![0.0; 3 * 70];
        let d = FloatsMut::F32(&mut d_logits);
        cross_entropy(isa, 70, 1.0, &logits, &[0, 1, 2], &mut nll, Some(d)).unwrap();
        assert_eq!(nll.map(f32::is_nan), [false, true, false], "{isa:?}");
        assert!(d_logits[70..140].iter().all(|d| d.is_nan()), "{isa:?}");
        assert!(d_logits[..70].iter().chain(&d_logits[140..]).all(|d| d.is_finite()), "{isa:?}");
    }
}

#[test]
fn indices_outside_a_table_and_lengths_that_do_not_fit_are_refused() {
    let isa = Isa::detect();
    let (table, mut out, mut nll) = ([0.0; 6], [0.0; 4], [0.0; 2]);
    let error = embedding_forward(isa, 2, Floats::F32(&table), &[2, 3], FloatsMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.to_string(), "embedding_forward: token 3 at position 1 is not below 3");
    let error = embedding_backward(isa, 2, Floats::F32(&[0.0; 4]), &[5, 1], &mut [0.0; 6]).unwrap_err();
    assert_eq!(error.to_string(), "embedding_backward: token 5 at position 0 is not below 3");
    let error = cross_entropy(isa, 3, 1.0, &table, &[0, 3], &mut nll, None).unwrap_err();
    assert_eq!(error.to_string(), "cross_entropy: target 3 at position 1 is not below 3");
    let error = cross_entropy(isa, 4, 1.0, &table, &[0, 3], &mut nll, None).unwrap_err();
    assert_eq!(error.to_string(), "cross_entropy: logits has 6 elements but the shapes need 8");
    let error = embedding_forward(isa, 0, Floats::F32(&table), &[], FloatsMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.to_string(), "embedding_forward: rows have no width; give them at least one column");
}
