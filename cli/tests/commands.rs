//! The commands as a person runs them: a corpus, a run, its metrics, its checkpoint, its evaluation, and wrong input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cambium_data::{FlatWriter, MegatronWriter, TokenDtype};
use serde_json::Value;

const RUN: &str = r#"
[model]
family = "qwen3_moe"
vocab_size = 61
hidden_size = 24
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
num_experts = 5
num_experts_per_tok = 2
moe_intermediate_size = 12
intermediate_size = 32
[data]
seq_len = 16
order = "shuffled"
sources = [{ path = "corpus" }, { path = "more.u16", weight = 0.5 }]
[optimizer]
lr = 1e-2
[schedule]
kind = "cosine"
warmup_steps = 2
[losses]
load_balance = 0.01
[train]
steps = 12
rows_per_step = 4
microbatch_rows = 2
metrics = "metrics.jsonl"
output = "out"
[eval]
every_steps = 5
sources = [{ path = "held-out.u16" }]
"#;

/// Text-like ids: each follows from the one before, with some noise.
fn tokens(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .scan(seed % 61, |last, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *last = (*last * 3 + 1 + (state >> 30)) % 61;
            Some(*last)
        })
        .collect()
}

/// A directory with a corpus and a run spec.
fn workplace() -> tempfile::TempDir {
    let place = tempfile::tempdir().expect("a directory");
    let mut corpus = MegatronWriter::create(place.path().join("corpus"), TokenDtype::U16).expect("a corpus");
    for document in tokens(3000, 1).chunks(250) {
        corpus.append_document(document).expect("a document");
    }
    corpus.finish().expect("a corpus");
    flat(&place.path().join("more.u16"), &tokens(1500, 2));
    flat(&place.path().join("held-out.u16"), &tokens(400, 3));
    std::fs::write(place.path().join("run.toml"), RUN).expect("a run spec");
    place
}

fn flat(path: &Path, tokens: &[u32]) {
    let mut file = FlatWriter::create(path).expect("a token file");
    file.append(tokens).expect("tokens");
    file.finish().expect("a token file");
}

fn cambium(place: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cambium")).args(arguments).current_dir(place).output().expect("the command runs")
}

fn succeed(place: &Path, arguments: &[&str]) -> String {
    let output = cambium(place, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cambium {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fail(place: &Path, arguments: &[&str]) -> String {
    let output = cambium(place, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "cambium {arguments:?}: {errors}");
    assert!(errors.starts_with("error: "), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Metrics without what the clock decides.
fn timeless(path: &Path) -> Vec<Value> {
    let mut lines = lines(path);
    for line in &mut lines {
        line.as_object_mut().expect("an object").remove("tokens_per_s");
    }
    lines
}

#[test]
fn a_run_learns_writes_its_metrics_and_a_checkpoint_that_evaluates_to_its_last_loss() {
    let place = workplace();
    let place = place.path();
    let output = succeed(place, &["train", "run.toml"]);
    assert_eq!(output.lines().filter(|line| line.starts_with("step ")).count(), 12, "{output}");

    let metrics = lines(&place.join("metrics.jsonl"));
    assert_eq!(metrics.len(), 12);
    for (index, line) in metrics.iter().enumerate() {
        assert_eq!(line["step"], index as u64 + 1);
        assert_eq!(line["tokens"], (index as u64 + 1) * 64);
        let load = line["expert_load"].as_array().expect("by layer");
        assert_eq!(load.len(), 2);
        for layer in load {
            let assignments: u64 = layer.as_array().expect("by expert").iter().filter_map(Value::as_u64).sum();
            assert_eq!(assignments, 64 * 2, "nothing is dropped");
        }
        assert_eq!(line.get("eval").is_some(), [5, 10, 12].contains(&(index + 1)));
    }
    let loss = |index: usize| metrics[index]["loss"].as_f64().expect("a loss");
    assert!((loss(0) - 61f64.ln()).abs() < 0.1, "a fresh model knows nothing: {}", loss(0));
    assert!(loss(11) < loss(0) - 0.3, "{} to {}", loss(0), loss(11));

    // 400 tokens are 24 windows of 17 with stride 16.
    let arguments = ["eval", "--model", "out", "--tokens", "held-out.u16", "--seq-len", "16", "--rows", "24", "--json"];
    let eval: Value = serde_json::from_str(&succeed(place, &arguments)).expect("JSON");
    let (measured, logged) = (&eval["mean_nll"], &metrics[11]["eval"][0]["nll"]);
    assert_eq!(measured, logged, "the written checkpoint is the trained model, bit for bit");
    let nll = eval["nll"].as_array().expect("by window");
    assert_eq!((nll.len(), nll[0].as_array().map(Vec::len)), (24, Some(16)));
}

#[test]
fn the_same_seed_gives_the_same_bits_whatever_the_threads_and_microbatches_keep() {
    for dtype in ["f32", "bf16"] {
        let place = workplace();
        let place = place.path();
        let dtype = format!("train.dtype={dtype}");
        let run = |extra: &str| {
            succeed(place, &["train", "run.toml", "--set", &dtype, "--set", extra]);
            (
                timeless(&place.join("metrics.jsonl")),
                std::fs::read(place.join("out/model.safetensors")).expect("weights"),
            )
        };
        let first = run("train.threads=1");
        for extra in ["train.threads=1", "train.threads=2", "train.threads=3", "train.recompute=true"] {
            let again = run(extra);
            assert!(first.0 == again.0, "{dtype} {extra}: metrics differ");
            assert!(first.1 == again.1, "{dtype} {extra}: parameters differ");
        }
        assert!(first.1 != run("train.seed=1").1, "another seed is another run");
    }
}

#[test]
fn training_goes_on_from_a_checkpoint() {
    let place = workplace();
    let place = place.path();
    succeed(place, &["train", "run.toml"]);
    let spec = RUN.split("[data]").nth(1).expect("tables after the model");
    std::fs::write(place.join("next.toml"), format!("[model]\nfrom = \"out\"\n[data]{spec}")).expect("a run spec");
    let arguments = ["train", "next.toml", "--set", "train.output=next", "--json"];
    let summary: Value = serde_json::from_str(&succeed(place, &arguments)).expect("JSON");
    let first = lines(&place.join("metrics.jsonl"))[0]["loss"].as_f64().expect("a loss");
    assert!(first < 61f64.ln() - 0.3, "the checkpoint has learned: {first}");
    assert_eq!(summary["steps"], 12);
    assert!(place.join("next/config.json").exists());
}

#[test]
fn evaluation_agrees_with_transformers() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let place = tempfile::tempdir().expect("a directory");
    let place = place.path();
    for case in ["qwen3_moe", "deepseek_v3"] {
        let model = fixtures.join(case);
        let bytes = std::fs::read(model.join("oracle.safetensors")).expect("an oracle");
        let oracle = safetensors::SafeTensors::deserialize(&bytes).expect("an oracle");
        let values = |name: &str| {
            let tensor = oracle.tensor(name).expect("a tensor");
            let width = *tensor.shape().last().expect("rows");
            (
                tensor
                    .data()
                    .chunks_exact(8)
                    .map(|bytes| <[u8; 8]>::try_from(bytes).expect("8 bytes"))
                    .collect::<Vec<_>>(),
                width,
            )
        };
        let (ids, seq_len) = values("input_ids");
        let (targets, _) = values("targets");
        let (nll, _) = values("nll");
        for row in 0..ids.len() / seq_len {
            let range = row * seq_len..(row + 1) * seq_len;
            let id = |bytes: &[u8; 8]| u32::try_from(i64::from_le_bytes(*bytes)).expect("an id");
            let mut tokens: Vec<u32> = ids[range.clone()].iter().map(id).collect();
            tokens.push(id(&targets[range.end - 1]));
            let file = format!("{case}-{row}.u16");
            flat(&place.join(&file), &tokens);
            let length = seq_len.to_string();
            let model = model.to_str().expect("UTF-8");
            let arguments =
                ["eval", "--model", model, "--tokens", &file, "--seq-len", &length, "--rows", "1", "--json"];
            let found: Value = serde_json::from_str(&succeed(place, &arguments)).expect("JSON");
            for (position, expected) in nll[range].iter().enumerate() {
                let expected = f64::from_le_bytes(*expected);
                let found = found["nll"][0][position].as_f64().expect("a number");
                assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{case} {row} {position}");
            }
        }
    }
}

#[test]
fn every_problem_of_a_run_spec_is_reported_at_once() {
    let place = workplace();
    let arguments = [
        "train",
        "run.toml",
        "--set",
        "model.num_experts_per_tok=9",
        "--set",
        "train.microbatch_rows=3",
        "--set",
        "train.stpes=4",
        "--set",
        "optimizer.beta1=1.5",
    ];
    let errors = fail(place.path(), &arguments);
    for part in ["num_experts_per_tok = 9", "microbatch_rows = 3", "train.stpes", "steps", "optimizer.beta1 = 1.5"] {
        assert!(errors.contains(part), "{part} is not in: {errors}");
    }
}

#[test]
fn wrong_input_is_a_clear_error_that_names_it() {
    let place = workplace();
    let place = place.path();
    succeed(place, &["train", "run.toml", "--set", "train.steps=1", "--set", "schedule.warmup_steps=0"]);
    assert!(fail(place, &["train", "missing.toml"]).contains("missing.toml"));
    assert!(fail(place, &["train", "run.toml", "--set", "data.sources.0.path=nowhere"]).contains("nowhere"));
    let eval = |model: &str, tokens: &str, rows: &str| {
        fail(place, &["eval", "--model", model, "--tokens", tokens, "--seq-len", "16", "--rows", rows])
    };
    assert!(eval("nowhere", "held-out.u16", "1").contains("nowhere/config.json"));
    assert!(eval("out", "nowhere", "1").contains("nowhere"));
    assert!(eval("out", "held-out.u16", "1000").contains("24 windows"));

    flat(&place.join("foreign.u16"), &[1, 2, 61, 3].repeat(9));
    let errors = eval("out", "foreign.u16", "1");
    assert!(errors.contains("foreign.u16") && errors.contains("61"), "{errors}");

    // A checkpoint whose file is cut short, and one whose tensors do not match its config.
    let weights = place.join("out/model.safetensors");
    let whole = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &whole[..whole.len() - 10]).expect("written");
    assert!(eval("out", "held-out.u16", "1").contains("model.safetensors"));
    std::fs::write(&weights, &whole).expect("written");
    let config = place.join("out/config.json");
    let text = std::fs::read_to_string(&config).expect("a config");
    let mut json: Value = serde_json::from_str(&text).expect("JSON");
    json["moe_intermediate_size"] = 13.into();
    std::fs::write(&config, json.to_string()).expect("written");
    let errors = eval("out", "held-out.u16", "1");
    let misshapen = errors.matches("has shape").count();
    assert_eq!(misshapen, 2 * 5 * 3, "every matrix of every expert is named: {errors}");
    json["moe_intermediate_size"] = 12.into();
    json["sliding_window"] = 8.into();
    json["use_sliding_window"] = true.into();
    std::fs::write(&config, json.to_string()).expect("written");
    assert!(eval("out", "held-out.u16", "1").contains("sliding_window"));
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    let place = workplace();
    let place = place.path();
    succeed(place, &["train", "run.toml", "--set", "train.steps=1", "--set", "schedule.warmup_steps=0"]);
    let weights = place.join("out/model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).expect("written");
    let arguments = ["eval", "--model", "out", "--tokens", "held-out.u16", "--seq-len", "16", "--rows", "1"];
    let errors = fail(place, &arguments);
    assert!(errors.contains("model.norm.weight") && errors.contains("NaN"), "{errors}");
}

#[test]
fn a_run_that_diverges_stops_and_says_what_to_do() {
    let place = workplace();
    let arguments = ["train", "run.toml", "--set", "optimizer.lr=1e30", "--set", "schedule.warmup_steps=0"];
    let errors = fail(place.path(), &arguments);
    assert!(errors.contains("at step") && errors.contains("lower the learning rate"), "{errors}");
}

#[test]
fn every_command_has_help_with_examples() {
    let place = tempfile::tempdir().expect("a directory");
    for command in [&["train"][..], &["eval"], &["bench", "kernels"], &["bench", "step"]] {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let help = succeed(place.path(), &arguments);
        assert!(help.contains("Examples:"), "{command:?}: {help}");
        assert!(help.contains("--json"), "{command:?}: {help}");
    }
}
