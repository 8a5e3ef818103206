//! Every block's backward against central differences of its own forward, in f64.
//!
//! The scalar is `sum(out * weights)` with random weights (for a MoE plus its router's losses), so every output counts.

use cambium_kernels::reference::Reference;
use cambium_kernels::{Backend, Buffer, Element, NoiseKey, View};
use cambium_model::context::rope_table;
use cambium_model::layer::FeedForwardBlock;
use cambium_model::moe::{BalanceWeight, Routing};
use cambium_model::param::Use;
use cambium_model::stage::{Pass, StageInput, StageOutput};
use cambium_model::{Context, Precision, Stage};
use cambium_spec::{
    Attention, Balance, Family, FeedForward, Gqa, Grouping, Mla, ModelSpec, Moe, NormPlacement, QkNorm, Rope, Router,
    Score, SharedExpert,
};
use candle_core::{Device, Tensor};

type Buf = <Reference as Backend>::Buffer;

const BATCH: usize = 2;
const SEQ_LEN: usize = 5;
const HIDDEN: usize = 6;
const WEIGHT: BalanceWeight =
    BalanceWeight { balance: Balance { load_balance: 0.3, z: 0.05, bias_update: 0.0 }, share: 1.0 };

fn gqa(qk_norm: QkNorm, bias: bool) -> Attention {
    Attention::Gqa(Gqa { heads: 4, kv_heads: 2, head_dim: 4, qk_norm, qkv_bias: bias, output_bias: bias })
}

fn mla(q_lora_rank: Option<usize>, bias: bool) -> Attention {
    Attention::Mla(Mla {
        heads: 3,
        q_lora_rank,
        kv_lora_rank: 5,
        qk_nope_head_dim: 3,
        qk_rope_head_dim: 4,
        v_head_dim: 2,
        bias,
    })
}

fn router(score: Score, renormalize: bool, groups: Option<Grouping>) -> Router {
    Router { top_k: 3, score, renormalize, scale: 1.7, groups, selection_bias: score == Score::Sigmoid }
}

fn spec(
    attention: Attention,
    norm: NormPlacement,
    kind: FeedForward,
    router: Router,
    shared: Option<bool>,
) -> ModelSpec {
    ModelSpec {
        family: Family::DeepseekV3,
        vocab_size: 11,
        hidden_size: HIDDEN,
        attention,
        rope: Rope { theta: 100.0, interleaved: shared.is_some() },
        norm,
        norm_eps: 1e-5,
        layers: vec![kind],
        moe: Moe {
            experts: 6,
            intermediate_size: 3,
            router,
            shared: shared.map(|gated| SharedExpert { intermediate_size: 4, gated }),
        },
        dense_intermediate_size: Some(5),
        tied_embeddings: false,
        max_position_embeddings: 64,
        initializer_range: 0.5,
        eos_token_ids: Vec::new(),
        bos_token_id: None,
        pad_token_id: None,
    }
}

/// What a block computes from x: its output, further loss, and for a gradient of the output that of x.
type Run = fn(&mut Stage<Reference>, &Context<'_, Reference>, &Buf, Option<&Buf>) -> (Buf, f64, Option<Buf>);

fn like(cx: &Context<'_, Reference>, x: &Buf) -> Buf {
    cx.activation_rows(1, x.len()).expect("room")
}

fn copy(cx: &Context<'_, Reference>, x: &Buf) -> Buf {
    let mut copy = like(cx, x);
    cx.backend.copy(x.into(), (&mut copy).into()).expect("a copy");
    copy
}

fn router_loss(routing: &Routing) -> f64 {
    WEIGHT.balance.load_balance * routing.load_balance + WEIGHT.balance.z * routing.z
}

fn run_attention(
    stage: &mut Stage<Reference>,
    cx: &Context<'_, Reference>,
    x: &Buf,
    d_out: Option<&Buf>,
) -> (Buf, f64, Option<Buf>) {
    let attention = &mut stage.layers[0].attention;
    let mut out = like(cx, x);
    let saved = attention.forward(cx, x, (&mut out).into(), false).expect("forward");
    let dx = d_out.map(|d_out| attention.backward(cx, d_out, x, saved).expect("backward"));
    (out, 0.0, dx)
}

fn run_feed_forward(
    stage: &mut Stage<Reference>,
    cx: &Context<'_, Reference>,
    x: &Buf,
    d_out: Option<&Buf>,
) -> (Buf, f64, Option<Buf>) {
    let mut out = like(cx, x);
    match &mut stage.layers[0].feed_forward {
        FeedForwardBlock::Dense(block) => {
            let saved = block.forward(cx, x.into(), (&mut out).into(), false).expect("forward");
            let dx = d_out.map(|d_out| {
                let mut dx = like(cx, x);
                block.backward(cx, d_out.into(), x.into(), saved, (&mut dx).into(), false).expect("backward");
                dx
            });
            (out, 0.0, dx)
        }
        FeedForwardBlock::Moe(block) => {
            let (saved, routing) = block.forward(cx, x, (&mut out).into(), false).expect("forward");
            let dx = d_out.map(|d_out| block.backward(cx, d_out, x, saved, WEIGHT).expect("backward"));
            (out, router_loss(&routing), dx)
        }
    }
}

fn run_layer(
    stage: &mut Stage<Reference>,
    cx: &Context<'_, Reference>,
    x: &Buf,
    d_out: Option<&Buf>,
) -> (Buf, f64, Option<Buf>) {
    run_layer_with(stage, cx, x, d_out, false)
}

fn run_layer_recomputed(
    stage: &mut Stage<Reference>,
    cx: &Context<'_, Reference>,
    x: &Buf,
    d_out: Option<&Buf>,
) -> (Buf, f64, Option<Buf>) {
    run_layer_with(stage, cx, x, d_out, true)
}

fn run_layer_with(
    stage: &mut Stage<Reference>,
    cx: &Context<'_, Reference>,
    x: &Buf,
    d_out: Option<&Buf>,
    recompute: bool,
) -> (Buf, f64, Option<Buf>) {
    let layer = &mut stage.layers[0];
    let (out, saved, routing) = layer.forward(cx, copy(cx, x), recompute).expect("forward");
    let dx = d_out.map(|d_out| layer.backward(cx, copy(cx, d_out), saved, WEIGHT).expect("backward"));
    (out, routing.as_ref().map_or(0.0, router_loss), dx)
}

fn run_head(
    stage: &mut Stage<Reference>,
    cx: &Context<'_, Reference>,
    x: &Buf,
    d_out: Option<&Buf>,
) -> (Buf, f64, Option<Buf>) {
    // The head's scalar is its own: the sum of the tokens' losses. Its "output" is x times zero.
    let targets: Vec<u32> = (0..cx.tokens() as u32).map(|token| token % 11).collect();
    let mut ids = cx.backend.alloc(Element::U32, targets.len()).expect("room");
    cx.backend.write_u32(&targets, (&mut ids).into()).expect("written");
    let head = stage.head.as_mut().expect("a head");
    let projection = stage.projection.as_mut().expect("a projection");
    let (nll, saved) = head.forward(cx, projection, copy(cx, x), &ids, 1.0).expect("forward");
    let dx = d_out.map(|_| head.backward(cx, &saved).expect("backward"));
    (cx.backend.zeros(Element::F32, x.len()).expect("room"), nll.iter().sum(), dx)
}

fn read(backend: &Reference, view: View<'_, Buf>) -> Vec<f64> {
    backend.read(view, &[view.len]).and_then(|host| Ok(host.to_vec1()?)).expect("values")
}

fn write(backend: &Reference, values: &[f64], buffer: &mut Buf) {
    let host = Tensor::from_slice(values, values.len(), &Device::Cpu).expect("a host tensor");
    backend.write(&host, buffer.into()).expect("written");
}

fn normal(backend: &Reference, stream: u64, len: usize) -> Buf {
    let mut buffer = backend.alloc(Element::F32, len).expect("room");
    backend.fill_normal(NoiseKey { seed: 7, stream }, 0, 1.0, (&mut buffer).into()).expect("noise");
    buffer
}

/// Central differences in every value of x and in a few of every parameter.
fn check(spec: &ModelSpec, run: Run) {
    let backend = Reference::new();
    let mut stage = Stage::zeros(&backend, spec, 0..1, Precision::F32, Use::Train).expect("room");
    for (index, param) in stage.params_mut().into_iter().enumerate() {
        let len = param.master().len;
        let values = read(&backend, normal(&backend, 100 + index as u64, len).view());
        // Gains near 1, biases of a usual size, matrices of unit rows.
        let vector = param.pieces().iter().all(|piece| piece.tensor.shape.len() == 1);
        let values: Vec<f64> = values.iter().map(|z| if vector { 1.0 + 0.2 * z } else { 0.5 * z }).collect();
        write(&backend, &values, param.master_mut());
        param.refresh(&backend).expect("refreshed");
    }
    let rope = rope_table(&backend, spec, SEQ_LEN).expect("room");
    let cx = Context { backend: &backend, precision: Precision::F32, batch: BATCH, seq_len: SEQ_LEN, rope: &rope };
    let size = BATCH * SEQ_LEN * HIDDEN;
    let (mut x, weights) = (normal(&backend, 1, size), normal(&backend, 2, size));
    let weight_values = read(&backend, weights.view());

    let (_, _, dx) = run(&mut stage, &cx, &x, Some(&weights));
    let dx = read(&backend, dx.expect("a gradient").view());
    let grads: Vec<Option<Vec<f64>>> = stage
        .params()
        .iter()
        .map(|param| param.trained().and_then(|trained| trained.grad).map(|grad| read(&backend, grad)))
        .collect();

    let scalar = |stage: &mut Stage<Reference>, x: &Buf| {
        let (out, further, _) = run(stage, &cx, x, None);
        let dot: f64 = read(&backend, out.view()).iter().zip(&weight_values).map(|(a, b)| a * b).sum();
        stage.params_mut().into_iter().for_each(cambium_model::param::Param::discard_grad);
        dot + further
    };
    let close = |what: &str, found: f64, expected: f64| {
        let scale = expected.abs().max(1.0);
        assert!((found - expected).abs() < 2e-7 * scale, "{what}: backward says {found}, differences {expected}");
    };
    let step = 1e-5;
    let values = read(&backend, x.view());
    for index in 0..size {
        let mut at = |delta: f64| {
            let mut moved = values.clone();
            moved[index] += delta;
            write(&backend, &moved, &mut x);
            scalar(&mut stage, &x)
        };
        let difference = (at(step) - at(-step)) / (2.0 * step);
        close(&format!("x[{index}]"), dx[index], difference);
    }
    write(&backend, &values, &mut x);
    let mut checked = 0;
    for (param, grad) in grads.iter().enumerate() {
        let Some(grad) = grad else { continue };
        for index in (0..grad.len()).step_by(grad.len().div_ceil(7)) {
            let mut at = |delta: f64| {
                let target = stage.params_mut().swap_remove(param);
                let name = target.pieces()[0].tensor.name.clone();
                let original = read(&backend, target.master());
                let mut moved = original.clone();
                moved[index] += delta;
                write(&backend, &moved, target.master_mut());
                let value = scalar(&mut stage, &x);
                write(&backend, &original, stage.params_mut().swap_remove(param).master_mut());
                (value, name)
            };
            let ((above, name), (below, _)) = (at(step), at(-step));
            close(&format!("{name}[{index}]"), grad[index], (above - below) / (2.0 * step));
            checked += 1;
        }
    }
    assert!(checked > 0, "no parameter got a gradient");
}

const ROUTER: Router =
    Router { top_k: 3, score: Score::Softmax, renormalize: true, scale: 1.0, groups: None, selection_bias: false };

#[test]
fn grouped_query_attention_differentiates_its_forward() {
    for norm in [QkNorm::None, QkNorm::PerHead, QkNorm::Whole] {
        for bias in [false, true] {
            check(&spec(gqa(norm, bias), NormPlacement::Pre, FeedForward::Dense, ROUTER, None), run_attention);
        }
    }
}

#[test]
fn latent_attention_differentiates_its_forward() {
    for rank in [None, Some(5)] {
        for (bias, shared) in [(false, None), (true, Some(false))] {
            check(&spec(mla(rank, bias), NormPlacement::Pre, FeedForward::Dense, ROUTER, shared), run_attention);
        }
    }
}

#[test]
fn a_dense_block_differentiates_its_forward() {
    check(&spec(gqa(QkNorm::None, false), NormPlacement::Pre, FeedForward::Dense, ROUTER, None), run_feed_forward);
}

#[test]
fn a_moe_block_differentiates_its_forward_and_its_router_losses() {
    let groups = Some(Grouping { groups: 3, top_groups: 2 });
    for score in [Score::Softmax, Score::Sigmoid] {
        for renormalize in [false, true] {
            for groups in [None, groups] {
                for shared in [None, Some(false), Some(true)] {
                    let router = router(score, renormalize, groups);
                    let attention = gqa(QkNorm::None, false);
                    check(&spec(attention, NormPlacement::Pre, FeedForward::Moe, router, shared), run_feed_forward);
                }
            }
        }
    }
}

#[test]
fn a_whole_layer_differentiates_its_forward_in_both_norm_placements() {
    for norm in [NormPlacement::Pre, NormPlacement::Post] {
        for kind in [FeedForward::Dense, FeedForward::Moe] {
            check(&spec(gqa(QkNorm::Whole, false), norm, kind, ROUTER, None), run_layer);
            check(&spec(mla(Some(4), false), norm, kind, ROUTER, None), run_layer);
        }
    }
}

#[test]
fn a_recomputed_layer_differentiates_its_forward() {
    check(&spec(gqa(QkNorm::PerHead, false), NormPlacement::Pre, FeedForward::Moe, ROUTER, None), run_layer_recomputed);
}

#[test]
fn the_head_differentiates_its_loss() {
    check(&spec(gqa(QkNorm::None, false), NormPlacement::Pre, FeedForward::Dense, ROUTER, None), run_head);
}

#[test]
fn the_embedding_receives_the_gradient_of_its_tokens() {
    let backend = Reference::new();
    let spec = spec(gqa(QkNorm::None, false), NormPlacement::Pre, FeedForward::Moe, ROUTER, None);
    let mut stage = Stage::zeros(&backend, &spec, 0..1, Precision::F32, Use::Train).expect("room");
    cambium_model::init::initialize(&backend, &mut stage, 3).expect("values");
    let rope = rope_table(&backend, &spec, SEQ_LEN).expect("room");
    let cx = Context { backend: &backend, precision: Precision::F32, batch: BATCH, seq_len: SEQ_LEN, rope: &rope };
    let tokens: Vec<u32> = vec![1, 4, 1, 9, 0, 3, 3, 1, 7, 4];
    let targets: Vec<u32> = vec![4, 1, 9, 0, 2, 3, 1, 7, 4, 10];
    let pass = Pass { grad_scale: 1.0, recompute: false };
    let loss = |stage: &mut Stage<Reference>| {
        let (out, saved, _) = stage.forward(&cx, StageInput::Tokens(&tokens), Some(&targets), pass).expect("forward");
        let StageOutput::Nll(nll) = out else { panic!("a whole model ends in its loss") };
        (nll.iter().sum::<f64>(), saved)
    };
    let (_, saved) = loss(&mut stage);
    stage.backward(&cx, None, saved, BalanceWeight::default()).expect("backward");
    let table = stage.embedding.as_ref().expect("an embedding");
    let grad = read(&backend, table.trained().and_then(|trained| trained.grad).expect("a gradient"));
    let original = read(&backend, table.master());
    assert!(grad[5 * HIDDEN..6 * HIDDEN].iter().all(|value| *value == 0.0), "token 5 does not occur");
    for index in [HIDDEN, 4 * HIDDEN + 2, 3 * HIDDEN + 5, 9 * HIDDEN] {
        let mut at = |delta: f64| {
            let mut moved = original.clone();
            moved[index] += delta;
            write(&backend, &moved, stage.embedding.as_mut().expect("an embedding").master_mut());
            loss(&mut stage).0
        };
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((difference - grad[index]).abs() < 2e-7 * difference.abs().max(1.0), "{difference} {}", grad[index]);
    }
}
