//! Run specs: what is read, what is refused, and that a resolved spec reads back as itself.

use std::path::{Path, PathBuf};

use cambium_spec::{
    Balance, ComputeDtype, Family, LoadError, ModelSource, Optimizer, Order, RunSpec, Schedule, ScheduleKind, Source,
    SpecErrors, Warning,
};

const FULL: &str = r#"
[model]
from = "model"
[data]
seq_len = 256
order = "shuffled"
sources = [{ path = "corpus/train", weight = 1.0 }, { path = "/corpus/more", weight = 3 }]
[optimizer]
lr = 3e-4
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
grad_clip = 1.0
[schedule]
kind = "wsd"
warmup_steps = 10
decay_steps = 20
[losses]
load_balance = 0.01
z = 0.001
bias_update = 0.0
[train]
steps = 100
rows_per_step = 8
microbatch_rows = 4
dtype = "bf16"
seed = 7
recompute = true
threads = 2
metrics = "metrics.jsonl"
output = "out"
[eval]
every_steps = 50
sources = [{ path = "corpus/held-out" }]
rows = 32
"#;

const SHORT: &str = "
[model]
family = 'qwen3_moe'
vocab_size = 64
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 6
num_experts = 5
num_experts_per_tok = 3
moe_intermediate_size = 7
[data]
seq_len = 32
[[data.sources]]
path = 'a'
[[data.sources]]
path = 'b'
weight = 0.5
[train]
steps = 3
";

fn read(text: &str, overrides: &[&str]) -> Result<RunSpec, SpecErrors> {
    RunSpec::from_toml(text, &overrides.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn parsed(text: &str, overrides: &[&str]) -> RunSpec {
    read(text, overrides).unwrap_or_else(|error| panic!("{error}"))
}

/// The problems' keys, sorted, of a spec with those overrides.
fn refused(text: &str, overrides: &[&str]) -> Vec<String> {
    let mut keys: Vec<String> = read(text, overrides).unwrap_err().problems.into_iter().map(|p| p.key).collect();
    keys.sort();
    keys
}

#[test]
fn every_field_is_read() {
    let spec = parsed(FULL, &[]);
    assert_eq!(spec.model, ModelSource::From("model".into()));
    assert_eq!((spec.data.seq_len, spec.data.order), (256, Order::Shuffled));
    let weights: Vec<(&Path, f64)> = spec.data.sources.iter().map(|s| (s.path.as_path(), s.weight)).collect();
    assert_eq!(weights, [(Path::new("corpus/train"), 1.0), (Path::new("/corpus/more"), 3.0)]);
    assert_eq!((spec.schedule.kind, spec.schedule.warmup_steps), (ScheduleKind::Wsd, 10));
    assert_eq!(spec.schedule.decay_steps, Some(20));
    assert_eq!(spec.losses, Balance { load_balance: 0.01, z: 0.001, bias_update: 0.0 });
    let train = &spec.train;
    assert_eq!((train.steps, train.rows_per_step, train.microbatch_rows), (100, 8, 4));
    assert_eq!((train.dtype, train.seed, train.recompute, train.threads), (ComputeDtype::Bf16, 7, true, 2));
    assert_eq!((&train.metrics, &train.output), (&Some("metrics.jsonl".into()), &Some("out".into())));
    let eval = spec.eval.unwrap();
    assert_eq!((eval.every_steps, eval.rows), (Some(50), Some(32)));
    assert_eq!(eval.sources, [Source { path: "corpus/held-out".into(), weight: 1.0 }]);
}

#[test]
fn defaults_are_the_documented_ones() {
    let spec = parsed(SHORT, &[]);
    let ModelSource::Inline(model) = &spec.model else { panic!("not inline") };
    assert_eq!((model.family, model.moe.experts, model.layer_count()), (Family::Qwen3Moe, 5, 2));
    assert_eq!(spec.data.order, Order::Sequential);
    let weights: Vec<f64> = spec.data.sources.iter().map(|source| source.weight).collect();
    assert_eq!(weights, [1.0, 0.5]);
    let optimizer = Optimizer { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };
    assert_eq!(spec.optimizer, optimizer);
    assert_eq!(spec.schedule, Schedule::default());
    assert_eq!(spec.losses, Balance::default());
    let train = &spec.train;
    assert_eq!((train.rows_per_step, train.microbatch_rows, train.dtype), (8, 8, ComputeDtype::F32));
    assert_eq!((train.seed, train.recompute, train.threads), (0, false, 0));
    assert_eq!((&train.metrics, &train.output, &spec.eval), (&None, &None, &None));
}

#[test]
fn a_resolved_spec_reads_back_as_itself() {
    let inline = |model: &str| {
        let (_, rest) = SHORT.split_once("[data]").unwrap();
        format!("[model]\n{model}\nvocab_size = 64\nhidden_size = 16\nnum_hidden_layers = 2\n[data]{rest}")
    };
    let gqa = "num_attention_heads = 4\nnum_key_value_heads = 2\nnum_experts_per_tok = 2\n";
    let mla = "num_attention_heads = 4\nkv_lora_rank = 6\nqk_nope_head_dim = 3\nqk_rope_head_dim = 4\nv_head_dim = 5\n\
               n_routed_experts = 6\nnum_experts_per_tok = 2\nmoe_intermediate_size = 5\nintermediate_size = 7\n\
               first_k_dense_replace = 1\n";
    for text in [
        FULL.to_owned(),
        SHORT.to_owned(),
        inline(&format!("family = 'olmoe'\n{gqa}num_experts = 5\nintermediate_size = 7")),
        inline(&format!("family = 'flex_olmo'\n{gqa}num_experts = 5\nintermediate_size = 7\nrope_theta = 5e4")),
        inline(&format!("family = 'mixtral'\n{gqa}num_local_experts = 5\nintermediate_size = 7")),
        inline(&format!(
            "family = 'qwen2_moe'\n{gqa}num_experts = 5\nmoe_intermediate_size = 7\nintermediate_size = 9\n\
             shared_expert_intermediate_size = 9\nmlp_only_layers = [0]\neos_token_id = [3, 4]\nbos_token_id = 2"
        )),
        inline(&format!("family = 'deepseek_v3'\n{mla}q_lora_rank = 0\nn_group = 1")),
        inline(&format!("family = 'deepseek_v3'\n{mla}q_lora_rank = 8\nn_group = 3\ntopk_group = 2")),
    ] {
        let spec = parsed(&text, &["train.seed=9007199254740993"]);
        let toml = spec.to_toml();
        assert_eq!(parsed(&toml, &[]), spec, "{toml}");
        assert_eq!(RunSpec::from_json(&spec.to_json()).unwrap(), spec);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<RunSpec>(&json).unwrap(), spec, "{json}");
    }
}

#[test]
fn tokens_are_turned_into_the_fewest_steps_that_see_them() {
    let text = SHORT.replace("steps = 3", "tokens = 1000");
    assert_eq!(parsed(&text, &[]).train.steps, 4, "8 rows of 32 are 256 tokens a step");
    assert_eq!(parsed(&text, &["train.tokens=1024"]).train.steps, 4);
    assert_eq!(parsed(&text, &["train.tokens=1025"]).train.steps, 5);
    assert_eq!(parsed(&text, &[]).tokens_per_step(), 256);
}

#[test]
fn overrides_are_laid_over_the_file() {
    let spec = parsed(
        SHORT,
        &["train.dtype=bf16", "optimizer.lr=0.5", "model.num_experts = 6", "data.sources.1.path=c", "train.output=o"],
    );
    assert_eq!((spec.train.dtype, spec.optimizer.lr), (ComputeDtype::Bf16, 0.5));
    assert_eq!(spec.data.sources[1].path, PathBuf::from("c"));
    assert_eq!(spec.train.output, Some("o".into()));
    assert_eq!(refused(SHORT, &["train.step=4"]), ["train.step"]);
    assert_eq!(refused(SHORT, &["trian.steps=4", "train.steps"]), ["--set", "trian"]);
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = "
        [model]
        from = 'model'
        hidden_size = 5
        [data]
        seq_len = 0
        order = 'random'
        sources = [{ path = 's3://bucket/x', wieght = 2 }, { weight = -1 }]
        [optimiser]
        lr = 1
        [optimizer]
        lr = -1.0
        beta2 = 1.0
        eps = nan
        [schedule]
        kind = 'constant'
        decay_steps = 4
        [train]
        steps = 10
        tokens = 10
        rows_per_step = 8
        microbatch_rows = 3
        dtype = 'f16'
        [eval]
        every_steps = 0
        sources = []
    ";
    let shown = read(text, &[]).unwrap_err().to_string();
    for line in [
        "run spec: 17 problems:",
        "optimiser = {\"lr\":1} is not a table of a run spec; did you mean optimizer? otherwise remove it",
        "model.hidden_size = 5 stands beside model.from; a model that is read has its own config: remove it",
        "data.seq_len = 0 is not from 1 to 16777216; correct it",
        "data.order = \"random\" is not one of sequential, shuffled; choose one of them",
        "data.sources.0.path = \"s3://bucket/x\" is a URL, and this build reads and writes local paths only; copy it",
        "data.sources.0.wieght = 2 is not a key of [data.sources]; did you mean weight?",
        "data.sources.1.path is missing; name a Megatron prefix or a token file",
        "data.sources.1.weight = -1 is not a positive finite number; give its share relative to the other sources",
        "optimizer.lr = -1 is negative; give 0 or more",
        "optimizer.beta2 = 1 is outside of [0, 1); give the decay of a moment, such as 0.9",
        "optimizer.eps = \"NaN\" is not a number; correct it",
        "schedule.decay_steps = 4 has no effect: a constant rate does not decay; remove it or change schedule.kind",
        "train.tokens = 10 stands beside train.steps = 10; a run has one length: remove one of the two",
        "train.microbatch_rows = 3 does not divide train.rows_per_step = 8; choose a divisor of it",
        "train.dtype = \"f16\" is not one of f32, bf16; choose one of them",
        "eval.every_steps = 0 is not positive; give at least 1, or remove it",
        "eval.sources = [] is empty; name at least one corpus",
    ] {
        assert!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (text, overrides, keys) in [
        (FULL, &["model.family=olmoe"][..], &["model.family"][..]),
        (FULL, &["model.from=s3://bucket/model"], &["model.from"]),
        (FULL, &["schedule.warmup_steps=90"], &["schedule.decay_steps"]),
        (FULL, &["schedule.warmup_steps=101"], &["schedule.warmup_steps"]),
        (FULL, &["schedule.kind=linear", "schedule.decay_shape=sqrt"], &["schedule.decay_shape"]),
        (FULL, &["schedule.min_lr_ratio=1.5"], &["schedule.min_lr_ratio"]),
        (FULL, &["train.output=gs://x/y", "train.metrics="], &["train.metrics", "train.output"]),
        (FULL, &["train.steps=0"], &["train.steps"]),
        (FULL, &["train.seed=-1"], &["train.seed"]),
        (FULL, &["train.steps=1.5"], &["train.steps"]),
        (FULL, &["losses.z=-0.1"], &["losses.z"]),
        (FULL, &["optimizer.eps=0"], &["optimizer.eps"]),
        (FULL, &["data.sources=corpus"], &["data.sources"]),
        (FULL, &["eval=true"], &["eval"]),
        (SHORT, &["losses.bias_update=0.001"], &["losses.bias_update"]),
        (SHORT, &["model.num_experts_per_tok=6"], &["model.num_experts_per_tok"]),
        (SHORT, &["model.hidden_act=gelu", "model.moe_size=3"], &["model.hidden_act", "model.moe_size"]),
        (SHORT, &["model.family=llama"], &["model.family"]),
        ("", &[], &["data", "model", "train"]),
        ("[model]\n[data]\n[train]", &[], &["data.seq_len", "data.sources", "model.from", "train.steps"]),
    ] {
        assert_eq!(refused(text, overrides), keys, "{overrides:?}");
    }
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let error = read("[model]\nfrom = \n", &[]).unwrap_err();
    assert_eq!((error.problems[0].key.as_str(), error.problems[0].value.as_deref()), ("line", Some("2")));
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    std::fs::write(&file, FULL).unwrap();
    let spec = RunSpec::load(&file, &["train.output=other".to_owned()]).unwrap();
    assert_eq!(spec.model, ModelSource::From(folder.path().join("model")));
    assert_eq!(spec.data.sources[0].path, folder.path().join("corpus/train"));
    assert_eq!(spec.data.sources[1].path, Path::new("/corpus/more"));
    assert_eq!(spec.eval.unwrap().sources[0].path, folder.path().join("corpus/held-out"));
    assert_eq!(spec.train.metrics, Some(folder.path().join("metrics.jsonl")));
    assert_eq!(spec.train.output, Some(folder.path().join("other")));

    let error = RunSpec::load(&file, &["train.stps=1".to_owned()]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: train.stps = 1", file.display())), "{error}");
    let missing = RunSpec::load(&folder.path().join("none.toml"), &[]).unwrap_err();
    assert!(matches!(missing, LoadError::Read { .. }), "{missing}");
}

#[test]
fn training_experts_without_any_balance_warns() {
    let model = |spec: &RunSpec| match &spec.model {
        ModelSource::Inline(model) => (**model).clone(),
        ModelSource::From(_) => panic!("not inline"),
    };
    let spec = parsed(SHORT, &[]);
    assert_eq!(spec.warnings(&model(&spec)), [Warning::Unbalanced]);
    let spec = parsed(SHORT, &["losses.load_balance=0.01"]);
    assert_eq!(spec.warnings(&model(&spec)), []);
    let spec = parsed(SHORT, &["losses.load_balance=0.01", "model.max_position_embeddings=16"]);
    let long = Warning::LongSequences { seq_len: 32, max_position_embeddings: 16 };
    assert_eq!(spec.warnings(&model(&spec)), [long]);
}
