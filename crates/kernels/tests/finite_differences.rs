//! Every backward pass of the reference backend against central differences of its forward pass, in f64.
//!
//! A kernel is a function from named inputs to outputs; the loss is the sum of its outputs times fixed random weights, so
//! the gradient of an output is its weights. With a step of 1e-5 a central difference is off by about 1e-10 relative
//! (the step squared) and by as much again for rounding (1e-16 / 1e-5); 1e-7 tells a right gradient from a wrong one.

use std::env;

use cambium_kernels::backend::Backend;
use cambium_kernels::buffer::{Buffer, Element};
use cambium_kernels::reference::{Reference, ReferenceBuffer};
use cambium_kernels::{AttentionShape, Columns, Gemm, GroupedGemm, GroupedProduct, KernelError};
use cambium_kernels::{Grouping, RmsNorm, RopeShape, RouterLoss, RouterShape, Score};
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;
const FIXED_SEED: u64 = 17;

type Values = Vec<f64>;
type Outcome<T> = Result<T, KernelError>;

/// Runs `test` with a fixed seed and with a fresh one (`CAMBIUM_TEST_SEED` if it is set), which is printed.
fn with_seeds(test: impl Fn(&mut StdRng) -> Outcome<()>) {
    let fresh = env::var("CAMBIUM_TEST_SEED").map_or_else(|_| rand::random(), |s| s.parse().expect("a decimal seed"));
    for seed in [FIXED_SEED, fresh] {
        println!("seed {seed}; run it again with CAMBIUM_TEST_SEED={seed}");
        test(&mut StdRng::seed_from_u64(seed)).expect("a kernel refused its arguments");
    }
}

fn draw(random: &mut StdRng, len: usize) -> Values {
    (0..len).map(|_| random.random_range(-1.5..1.5)).collect()
}

/// The gradients that `backward` gives for `inputs` are those of `forward`.
///
/// `forward(inputs)` gives the outputs; `backward(d_outputs)` the gradient of each input, from the same point.
fn agrees(
    what: &str,
    random: &mut StdRng,
    inputs: &[Values],
    forward: impl Fn(&[Values]) -> Outcome<Vec<Values>>,
    backward: impl Fn(&[Values]) -> Outcome<Vec<Values>>,
) -> Outcome<()> {
    let d_outputs: Vec<Values> = forward(inputs)?.iter().map(|output| draw(random, output.len())).collect();
    let loss = |inputs: &[Values]| -> Outcome<f64> {
        let outputs = forward(inputs)?;
        Ok(outputs.iter().flatten().zip(d_outputs.iter().flatten()).map(|(output, weight)| output * weight).sum())
    };
    let gradients = backward(&d_outputs)?;
    assert_eq!(gradients.len(), inputs.len(), "{what}: a gradient for each input");
    for (which, gradient) in gradients.iter().enumerate() {
        let mut moved = inputs.to_vec();
        let mut differences = Vec::new();
        for i in 0..moved[which].len() {
            let at = moved[which][i];
            moved[which][i] = at + STEP;
            let above = loss(&moved)?;
            moved[which][i] = at - STEP;
            let below = loss(&moved)?;
            moved[which][i] = at;
            differences.push((above - below) / (2.0 * STEP));
        }
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let distance: Values = gradient.iter().zip(&differences).map(|(g, d)| g - d).collect();
        assert_eq!(gradient.len(), differences.len(), "{what}: length of gradient {which}");
        let relative = norm(&distance) / norm(&differences).max(1e-3);
        assert!(relative < TOLERANCE, "{what}: gradient of input {which} is off by {relative:.2e}");
    }
    Ok(())
}

/// Memory of the reference backend, filled.
fn floats(values: &[f64]) -> Outcome<ReferenceBuffer> {
    let backend = Reference::new();
    let mut buffer = backend.alloc(Element::F32, values.len())?;
    backend.write(&Tensor::from_slice(values, values.len(), &Device::Cpu)?, buffer.view_mut())?;
    Ok(buffer)
}

fn indices(values: &[u32]) -> Outcome<ReferenceBuffer> {
    let backend = Reference::new();
    let mut buffer = backend.alloc(Element::U32, values.len())?;
    backend.write_u32(values, buffer.view_mut())?;
    Ok(buffer)
}

/// Memory to write to, not written yet.
fn fresh(len: usize) -> Outcome<ReferenceBuffer> {
    Reference::new().alloc(Element::F32, len)
}

fn zeros(len: usize) -> Outcome<ReferenceBuffer> {
    Reference::new().zeros(Element::F32, len)
}

fn values(buffer: &ReferenceBuffer) -> Outcome<Values> {
    Ok(Reference::new().read(buffer.view(), &[buffer.len()])?.to_vec1()?)
}

#[test]
fn the_products_of_a_linear_layer_are_each_others_gradients() {
    with_seeds(|random| {
        let (m, n, k) = (3, 4, 5);
        let inputs = [draw(random, m * k), draw(random, n * k)];
        let product = |shape: Gemm, a: &[f64], b: &[f64]| -> Outcome<Values> {
            let mut c = fresh(shape.m * shape.n)?;
            Reference::new().gemm(shape, floats(a)?.view(), floats(b)?.view(), c.view_mut())?;
            values(&c)
        };
        let shape =
            |m, n, k, a_transposed, b_transposed| Gemm { m, n, k, a_transposed, b_transposed, accumulate: false };
        agrees(
            "gemm",
            random,
            &inputs,
            |i| Ok(vec![product(shape(m, n, k, false, true), &i[0], &i[1])?]),
            |d| {
                let dx = product(shape(m, k, n, false, false), &d[0], &inputs[1])?;
                Ok(vec![dx, product(shape(n, k, m, true, false), &d[0], &inputs[0])?])
            },
        )?;

        let offsets = [0, 2, 2, 3, 7];
        let inputs = [draw(random, 7 * k), draw(random, 4 * n * k)];
        let product = |product, a: &[f64], b: &[f64], len| -> Outcome<Values> {
            let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate: false };
            let mut c = fresh(len)?;
            Reference::new().grouped_gemm(shape, floats(a)?.view(), floats(b)?.view(), c.view_mut())?;
            values(&c)
        };
        agrees(
            "grouped_gemm",
            random,
            &inputs,
            |i| Ok(vec![product(GroupedProduct::Forward, &i[0], &i[1], 7 * n)?]),
            |d| {
                let dx = product(GroupedProduct::InputGradient, &d[0], &inputs[1], 7 * k)?;
                Ok(vec![dx, product(GroupedProduct::WeightGradient, &d[0], &inputs[0], 4 * n * k)?])
            },
        )
    });
}

#[test]
fn rms_norm_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        for (rows, width, eps) in [(3, 5, 1e-6), (2, 1, 0.3), (1, 8, 0.01)] {
            let shape = RmsNorm { rows, width, eps, accumulate: false };
            let inputs = [draw(random, rows * width), draw(random, width)];
            let run = |i: &[Values]| -> Outcome<[ReferenceBuffer; 2]> {
                let (mut y, mut inverse_rms) = (fresh(rows * width)?, fresh(rows)?);
                let (x, weight) = (floats(&i[0])?, floats(&i[1])?);
                let (to, saved) = (y.view_mut(), inverse_rms.view_mut());
                Reference::new().rms_norm_forward(shape, x.view(), weight.view(), to, saved)?;
                Ok([y, inverse_rms])
            };
            agrees(
                "rms_norm",
                random,
                &inputs,
                |i| Ok(vec![values(&run(i)?[0])?]),
                |d| {
                    let (x, weight, [_, inverse_rms]) = (floats(&inputs[0])?, floats(&inputs[1])?, run(&inputs)?);
                    let (mut dx, mut d_weight) = (fresh(rows * width)?, zeros(width)?);
                    Reference::new().rms_norm_backward(
                        shape,
                        floats(&d[0])?.view(),
                        x.view(),
                        weight.view(),
                        inverse_rms.view(),
                        dx.view_mut(),
                        d_weight.view_mut(),
                    )?;
                    Ok(vec![values(&dx)?, values(&d_weight)?])
                },
            )?;
        }
        Ok(())
    });
}

#[test]
fn rope_has_its_inverse_as_gradient() {
    with_seeds(|random| {
        for interleaved in [false, true] {
            let shape = RopeShape {
                tokens: 6,
                seq_len: 3,
                heads: 2,
                head_dim: 7,
                rotary_start: 2,
                rotary_dim: 4,
                interleaved,
                inverse: false,
            };
            let table: Values = draw(random, 6).iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
            let rotate = |shape: RopeShape, x: &[f64]| -> Outcome<Vec<Values>> {
                let mut x = floats(x)?;
                Reference::new().rope(shape, floats(&table)?.view(), x.view_mut())?;
                Ok(vec![values(&x)?])
            };
            let inputs = [draw(random, 6 * 2 * 7)];
            let inverse = RopeShape { inverse: true, ..shape };
            agrees("rope", random, &inputs, |i| rotate(shape, &i[0]), |d| rotate(inverse, &d[0]))?;
        }
        Ok(())
    });
}

#[test]
fn swiglu_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (rows, width) = (3, 4);
        let inputs = [draw(random, 2 * rows * width)];
        agrees(
            "swiglu",
            random,
            &inputs,
            |i| {
                let mut out = fresh(rows * width)?;
                Reference::new().swiglu_forward(rows, width, floats(&i[0])?.view(), out.view_mut())?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, gate_up) = (floats(&d[0])?, floats(&inputs[0])?);
                let mut d_gate_up = fresh(2 * rows * width)?;
                let to = d_gate_up.view_mut();
                Reference::new().swiglu_backward(rows, width, d_out.view(), gate_up.view(), to)?;
                Ok(vec![values(&d_gate_up)?])
            },
        )
    });
}

#[test]
fn the_sigmoid_gate_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (rows, width) = (3, 4);
        // The output that the gated values are added to is an input too: its gradient passes through.
        let inputs = [draw(random, rows), draw(random, rows * width), draw(random, rows * width)];
        agrees(
            "sigmoid_gate",
            random,
            &inputs,
            |i| {
                let (logit, x, mut out) = (floats(&i[0])?, floats(&i[1])?, floats(&i[2])?);
                Reference::new().sigmoid_gate_forward(rows, width, logit.view(), x.view(), out.view_mut())?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, logit, x) = (floats(&d[0])?, floats(&inputs[0])?, floats(&inputs[1])?);
                let (mut dx, mut d_logit) = (fresh(rows * width)?, fresh(rows)?);
                Reference::new().sigmoid_gate_backward(
                    rows,
                    width,
                    d_out.view(),
                    logit.view(),
                    x.view(),
                    dx.view_mut(),
                    d_logit.view_mut(),
                )?;
                Ok(vec![values(&d_logit)?, values(&dx)?, d[0].clone()])
            },
        )
    });
}

#[test]
fn a_bias_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (rows, width) = (4, 3);
        let inputs = [draw(random, width), draw(random, rows * width)];
        agrees(
            "bias",
            random,
            &inputs,
            |i| {
                let mut x = floats(&i[1])?;
                Reference::new().bias_forward(rows, width, floats(&i[0])?.view(), x.view_mut())?;
                Ok(vec![values(&x)?])
            },
            |d| {
                let mut d_bias = zeros(width)?;
                Reference::new().bias_backward(rows, width, floats(&d[0])?.view(), d_bias.view_mut())?;
                Ok(vec![values(&d_bias)?, d[0].clone()])
            },
        )
    });
}

#[test]
fn summing_columns_is_the_gradient_of_copying_them() {
    with_seeds(|random| {
        for repeat in [1, 3] {
            let copy = Columns {
                rows: 6,
                columns: 4,
                source_width: 7,
                source_start: 2,
                target_width: 5,
                target_start: 1,
                repeat,
            };
            let sum = Columns { source_width: 5, source_start: 1, target_width: 7, target_start: 2, ..copy };
            let inputs = [draw(random, 6 / repeat * 7)];
            agrees(
                "columns",
                random,
                &inputs,
                |i| {
                    let mut target = zeros(6 * 5)?;
                    Reference::new().copy_columns(copy, floats(&i[0])?.view(), target.view_mut())?;
                    Ok(vec![values(&target)?])
                },
                |d| {
                    let mut d_source = zeros(6 / repeat * 7)?;
                    Reference::new().sum_columns(sum, floats(&d[0])?.view(), d_source.view_mut())?;
                    Ok(vec![values(&d_source)?])
                },
            )?;
        }
        Ok(())
    });
}

#[test]
fn attention_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        // batch, tokens, heads, key/value heads, size of keys, size of values
        for [batch, seq_len, heads, kv_heads, qk_dim, v_dim] in
            [[1, 1, 1, 1, 2, 2], [2, 4, 4, 2, 3, 3], [1, 5, 3, 1, 4, 2], [1, 3, 2, 2, 2, 5]]
        {
            let shape = AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, scale: 0.7 };
            let tokens = batch * seq_len;
            let inputs = [tokens * heads * qk_dim, tokens * kv_heads * qk_dim, tokens * kv_heads * v_dim]
                .map(|len| draw(random, len));
            let run = |i: &[Values]| -> Outcome<[ReferenceBuffer; 2]> {
                let (q, k, v) = (floats(&i[0])?, floats(&i[1])?, floats(&i[2])?);
                let (mut out, mut lse) = (fresh(tokens * heads * v_dim)?, fresh(tokens * heads)?);
                let (to, saved) = (out.view_mut(), lse.view_mut());
                Reference::new().attention_forward(shape, q.view(), k.view(), v.view(), to, saved)?;
                Ok([out, lse])
            };
            agrees(
                "attention",
                random,
                &inputs,
                |i| Ok(vec![values(&run(i)?[0])?]),
                |d| {
                    let (q, k, v) = (floats(&inputs[0])?, floats(&inputs[1])?, floats(&inputs[2])?);
                    let [out, lse] = run(&inputs)?;
                    let (mut dq, mut dk, mut dv) = (fresh(q.len())?, fresh(k.len())?, fresh(v.len())?);
                    Reference::new().attention_backward(
                        shape,
                        floats(&d[0])?.view(),
                        q.view(),
                        k.view(),
                        v.view(),
                        out.view(),
                        lse.view(),
                        dq.view_mut(),
                        dk.view_mut(),
                        dv.view_mut(),
                    )?;
                    Ok(vec![values(&dq)?, values(&dk)?, values(&dv)?])
                },
            )?;
        }
        Ok(())
    });
}

/// Every combination of score, renormalisation and groups.
fn routers() -> impl Iterator<Item = RouterShape> {
    let scores = [Score::Softmax, Score::Sigmoid].into_iter();
    let switches = scores.flat_map(|score| [false, true].map(|renormalize| (score, renormalize)));
    let groups = [None, Some(Grouping { groups: 3, top_groups: 2 })];
    switches.flat_map(move |(score, renormalize)| {
        groups.map(|groups| RouterShape { tokens: 4, experts: 6, top_k: 3, score, renormalize, scale: 1.7, groups })
    })
}

#[test]
fn the_router_has_the_gradient_of_its_gates_and_of_its_losses() {
    with_seeds(|random| {
        for shape in routers() {
            let RouterShape { tokens, experts, top_k, .. } = shape;
            // Logits of a token differ by a tenth at least: no step of a difference changes which experts it chooses.
            let mut logits = Vec::new();
            for _ in 0..tokens {
                let mut levels: Values = (0..experts).map(|e| 0.4 * e as f64 - 1.0).collect();
                while !levels.is_empty() {
                    let level = levels.swap_remove(random.random_range(0..levels.len()));
                    logits.push(level + random.random_range(-0.15..0.15));
                }
            }
            let score_grad = draw(random, experts);
            for (name, score_grad, z_grad) in [
                ("gates", vec![0.0; experts], 0.0),
                ("gates and balance", score_grad.clone(), 0.0),
                ("gates, balance and z", score_grad, 0.3),
            ] {
                // Outputs: the gates, and what the two losses come to, as one number whose weight is drawn too.
                let run = |logits: &[f64]| -> Outcome<([ReferenceBuffer; 3], f64)> {
                    let mut ids = Reference::new().alloc(Element::U32, tokens * top_k)?;
                    let (mut scores, mut gates) = (fresh(tokens * experts)?, fresh(tokens * top_k)?);
                    let (to_scores, to_gates) = (scores.view_mut(), gates.view_mut());
                    let stats = Reference::new().router_forward(
                        shape,
                        floats(logits)?.view(),
                        None,
                        to_scores,
                        ids.view_mut(),
                        to_gates,
                    )?;
                    let balance: f64 = stats.score_sum.iter().zip(&score_grad).map(|(sum, grad)| sum * grad).sum();
                    Ok(([scores, ids, gates], balance + z_grad * stats.z_sum))
                };
                let backward = |d: &[Values]| -> Outcome<Vec<Values>> {
                    let ([scores, ids, _], _) = run(&logits)?;
                    let weight = d[1][0];
                    let score_grad: Values = score_grad.iter().map(|grad| grad * weight).collect();
                    let loss = RouterLoss { score_grad: &score_grad, z_grad: z_grad * weight };
                    let mut d_logits = fresh(tokens * experts)?;
                    Reference::new().router_backward(
                        shape,
                        loss,
                        floats(&logits)?.view(),
                        scores.view(),
                        ids.view(),
                        floats(&d[0])?.view(),
                        d_logits.view_mut(),
                    )?;
                    Ok(vec![values(&d_logits)?])
                };
                let forward = |i: &[Values]| -> Outcome<Vec<Values>> {
                    let ([_, _, gates], loss) = run(&i[0])?;
                    Ok(vec![values(&gates)?, vec![loss]])
                };
                agrees(&format!("{shape:?}, {name}"), random, &[logits.clone()], forward, backward)?;
            }
        }
        Ok(())
    });
}

#[test]
fn dispatch_and_combine_have_the_gradients_of_their_forwards() {
    with_seeds(|random| {
        let (tokens, top_k, width) = (3, 2, 4);
        let ids = [2, 0, 0, 1, 2, 1];
        let (mut assignment, mut position) = (indices(&ids)?, indices(&ids)?);
        let offsets = [0, 2, 4, 6];
        let (to, inverse) = (assignment.view_mut(), position.view_mut());
        Reference::new().sort_by_expert(indices(&ids)?.view(), &offsets, to, inverse)?;

        let inputs = [draw(random, tokens * width)];
        agrees(
            "gather_rows",
            random,
            &inputs,
            |i| {
                let mut rows = fresh(tokens * top_k * width)?;
                let to = rows.view_mut();
                Reference::new().gather_rows(top_k, width, floats(&i[0])?.view(), assignment.view(), to)?;
                Ok(vec![values(&rows)?])
            },
            |d| {
                let mut dx = zeros(tokens * width)?;
                let to = dx.view_mut();
                Reference::new().scatter_rows_add(top_k, width, floats(&d[0])?.view(), position.view(), to)?;
                Ok(vec![values(&dx)?])
            },
        )?;

        let inputs = [draw(random, tokens * top_k * width), draw(random, tokens * top_k), draw(random, tokens * width)];
        agrees(
            "combine",
            random,
            &inputs,
            |i| {
                let (expert_out, gates, mut out) = (floats(&i[0])?, floats(&i[1])?, floats(&i[2])?);
                let (rows, to) = (expert_out.view(), out.view_mut());
                Reference::new().combine_forward(top_k, width, rows, position.view(), gates.view(), to)?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, expert_out, gates) = (floats(&d[0])?, floats(&inputs[0])?, floats(&inputs[1])?);
                let (mut d_expert_out, mut d_gates) = (fresh(tokens * top_k * width)?, fresh(tokens * top_k)?);
                Reference::new().combine_backward(
                    top_k,
                    width,
                    d_out.view(),
                    expert_out.view(),
                    position.view(),
                    gates.view(),
                    d_expert_out.view_mut(),
                    d_gates.view_mut(),
                )?;
                Ok(vec![values(&d_expert_out)?, values(&d_gates)?, d[0].clone()])
            },
        )
    });
}

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
