//! What a config is refused for: by name, with its value, all of it at once.

use cambium_spec::{FeedForward, ModelSpec, SpecErrors, TorchDtype};
use serde_json::{Value, json};

/// A small valid config of a family, with `changes` laid over it.
fn config(family: &str, changes: Value) -> Value {
    let mut config = match family {
        "deepseek_v3" => json!({
            "num_attention_heads": 2, "q_lora_rank": null, "kv_lora_rank": 6, "qk_nope_head_dim": 3,
            "qk_rope_head_dim": 4, "v_head_dim": 5, "n_routed_experts": 8, "moe_intermediate_size": 5,
            "intermediate_size": 7, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
        }),
        "qwen2_moe" => json!({
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8, "moe_intermediate_size": 5,
            "shared_expert_intermediate_size": 9,
        }),
        "qwen3_moe" => json!({
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8, "moe_intermediate_size": 5,
        }),
        "mixtral" => json!({
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "intermediate_size": 5,
        }),
        _ => json!({
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8, "intermediate_size": 5,
        }),
    };
    let common = json!({
        "model_type": family, "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_experts_per_tok": 2,
    });
    for more in [common, changes] {
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    config
}

fn read(family: &str, changes: Value) -> Result<ModelSpec, SpecErrors> {
    ModelSpec::from_hf(&config(family, changes))
}

/// The keys of the problems, sorted.
fn refused(family: &str, changes: Value) -> Vec<String> {
    let mut keys: Vec<String> =
        read(family, changes).unwrap_err().problems.into_iter().map(|problem| problem.key).collect();
    keys.sort();
    keys
}

#[test]
fn what_changes_the_mathematics_and_is_not_supported_is_refused_by_name() {
    for (family, key, value) in [
        ("qwen3_moe", "hidden_act", json!("gelu")),
        ("qwen3_moe", "attention_dropout", json!(0.1)),
        ("qwen3_moe", "use_sliding_window", json!(true)),
        ("qwen3_moe", "layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("qwen3_moe", "quantization_config", json!({ "quant_method": "fp8" })),
        ("qwen3_moe", "partial_rotary_factor", json!(0.5)),
        ("qwen3_moe", "mlp_bias", json!(true)),
        ("qwen3_moe", "per_layer_config", json!({ "0": { "hidden_size": 8 } })),
        ("mixtral", "sliding_window", json!(4096)),
        ("mixtral", "router_jitter_noise", json!(0.01)),
        ("mixtral", "attention_bias", json!(true)),
        ("olmoe", "clip_qkv", json!(8.0)),
        ("olmoe", "head_dim", json!(8)),
        ("qwen2_moe", "use_sliding_window", json!(true)),
        ("qwen2_moe", "attention_bias", json!(true)),
        ("deepseek_v3", "scoring_func", json!("softmax")),
        ("deepseek_v3", "topk_method", json!("greedy")),
        ("deepseek_v3", "moe_layer_freq", json!(2)),
        ("deepseek_v3", "pretraining_tp", json!(2)),
        ("deepseek_v3", "num_key_value_heads", json!(1)),
        ("deepseek_v3", "head_dim", json!(64)),
        ("deepseek_v3", "qk_head_dim", json!(64)),
        ("flex_olmo", "norms_of_the_future", json!(true)),
    ] {
        assert_eq!(refused(family, json!({ key: value })), [key], "{family}");
    }
}

#[test]
fn scaled_rotary_embedding_is_refused_in_both_generations() {
    let yarn = json!({ "type": "yarn", "factor": 40, "mscale": 1.0 });
    let keys = ["rope_scaling.factor", "rope_scaling.mscale", "rope_scaling.type"];
    assert_eq!(refused("deepseek_v3", json!({ "rope_scaling": yarn })), keys);
    let linear = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4 });
    assert_eq!(
        refused("olmoe", json!({ "rope_parameters": linear })),
        ["rope_parameters.factor", "rope_parameters.rope_type"]
    );
    let nested = json!({ "full_attention": { "rope_theta": 1e4 } });
    assert_eq!(refused("qwen2_moe", json!({ "rope_parameters": nested })), ["rope_parameters.full_attention"]);
}

#[test]
fn both_generations_of_rope_are_read() {
    for (changes, theta) in [
        (json!({}), 1e6),
        (json!({ "rope_theta": 5e5 }), 5e5),
        (json!({ "rope_theta": 500_000 }), 5e5),
        (json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "default" } }), 5e5),
        (json!({ "rope_theta": 5e5, "rope_scaling": { "type": "default" } }), 5e5),
        (json!({ "rope_theta": 5e5, "rope_parameters": { "rope_theta": 5e5 }, "rope_scaling": null }), 5e5),
    ] {
        assert_eq!(read("mixtral", changes).unwrap().rope.theta, theta);
    }
    let contradicting = json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 1e6 } });
    assert_eq!(refused("mixtral", contradicting), ["rope_parameters.rope_theta"]);
}

#[test]
fn both_generations_of_the_expert_count_are_read() {
    for changes in [json!({}), json!({ "num_local_experts": 8 })] {
        assert_eq!(read("qwen3_moe", changes).unwrap().moe.experts, 8);
    }
    let mut five = config("qwen3_moe", json!({ "num_local_experts": 6 }));
    five.as_object_mut().unwrap().remove("num_experts");
    assert_eq!(ModelSpec::from_hf(&five).unwrap().moe.experts, 6);
    assert_eq!(refused("qwen3_moe", json!({ "num_local_experts": 6 })), ["num_local_experts"]);
}

#[test]
fn all_problems_of_a_file_are_reported_at_once() {
    let changes = json!({
        "hidden_size": "wide", "num_experts_per_tok": 9, "hidden_act": "relu", "rope_theta": -1.0,
        "num_expert_per_tok": 2, "tie_word_embeddings": null, "rope_scaling": { "type": "yarn" }, "vocab_size": 0,
    });
    let mut file = config("qwen3_moe", changes);
    file.as_object_mut().unwrap().remove("moe_intermediate_size");
    let text = ModelSpec::from_hf(&file).unwrap_err().to_string();
    for line in [
        "config: 9 problems:",
        "hidden_size = \"wide\" is not a whole number, 0 or more; correct it",
        "moe_intermediate_size is missing; add it",
        "num_experts_per_tok = 9 exceeds num_experts = 8; lower it or add experts",
        "hidden_act = \"relu\" is not supported: experts are SwiGLU; only silu is supported",
        "rope_theta = -1 is not a positive finite number; give one above 0",
        "num_expert_per_tok = 2 is not known to be harmless in qwen3_moe; did you mean num_experts_per_tok?",
        "tie_word_embeddings = null is not true or false; correct it",
        "rope_scaling.type = \"yarn\" is not supported",
        "vocab_size = 0 is not positive; give a number of at least 1",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

#[test]
fn what_follows_from_a_wrong_number_is_not_reported_as_well() {
    for (family, key) in [
        ("qwen3_moe", "num_attention_heads"),
        ("qwen3_moe", "hidden_size"),
        ("olmoe", "hidden_size"),
        ("deepseek_v3", "num_attention_heads"),
        ("deepseek_v3", "moe_intermediate_size"),
        ("deepseek_v3", "q_lora_rank"),
        ("qwen2_moe", "shared_expert_intermediate_size"),
        ("mixtral", "num_local_experts"),
    ] {
        let mut removed = config(family, json!({}));
        removed.as_object_mut().unwrap().remove(key);
        let problems = ModelSpec::from_hf(&removed).unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{family}: {problems:?}");
        assert_eq!((problems[0].key.as_str(), problems[0].rule.as_str()), (key, "is missing"));
        assert_eq!(refused(family, json!({ key: "many" })), [key], "{family}");
        if key != "q_lora_rank" {
            assert_eq!(refused(family, json!({ key: 0 })).len(), 1, "{family}: {key} = 0");
        }
    }
}

#[test]
fn contradictions_are_refused() {
    for (family, changes, keys) in [
        ("qwen3_moe", json!({ "num_key_value_heads": 3 }), vec!["num_attention_heads"]),
        ("qwen3_moe", json!({ "head_dim": 5 }), vec!["head_dim"]),
        ("qwen3_moe", json!({ "mlp_only_layers": [3], "intermediate_size": 7 }), vec!["mlp_only_layers"]),
        ("qwen3_moe", json!({ "mlp_only_layers": [1] }), vec!["intermediate_size"]),
        ("qwen3_moe", json!({ "decoder_sparse_step": 0, "intermediate_size": 7 }), vec!["decoder_sparse_step"]),
        ("qwen3_moe", json!({ "layer_types": ["full_attention"] }), vec!["layer_types"]),
        ("qwen3_moe", json!({ "num_hidden_layers": 1_000_000_000_000_u64 }), vec!["num_hidden_layers"]),
        (
            "qwen3_moe",
            json!({ "hidden_size": 16_777_216, "vocab_size": 16_777_216, "head_dim": 16_777_216,
            "num_hidden_layers": 65_536, "num_experts": 16_777_216 }),
            vec!["hidden_size", "num_experts"],
        ),
        ("deepseek_v3", json!({ "n_group": 3 }), vec!["n_group"]),
        ("deepseek_v3", json!({ "n_group": 8 }), vec!["n_group"]),
        ("deepseek_v3", json!({ "topk_group": 5 }), vec!["topk_group"]),
        ("deepseek_v3", json!({ "num_experts_per_tok": 5 }), vec!["num_experts_per_tok"]),
        ("deepseek_v3", json!({ "n_group": 1 }), vec!["topk_group"]),
        ("deepseek_v3", json!({ "qk_rope_head_dim": 3 }), vec!["qk_rope_head_dim"]),
    ] {
        assert_eq!(refused(family, changes.clone()), keys, "{family}: {changes}");
    }
}

#[test]
fn dense_layers_are_those_of_the_config() {
    use FeedForward::{Dense, Moe};
    let layers = |family, changes| read(family, changes).unwrap().layers;
    assert_eq!(layers("qwen3_moe", json!({})), [Moe, Moe, Moe]);
    let step = json!({ "decoder_sparse_step": 2, "intermediate_size": 7 });
    assert_eq!(layers("qwen2_moe", step), [Dense, Moe, Dense]);
    let listed = json!({ "mlp_only_layers": [0, 2], "intermediate_size": 7 });
    assert_eq!(layers("qwen3_moe", listed), [Dense, Moe, Dense]);
    assert_eq!(layers("deepseek_v3", json!({ "first_k_dense_replace": 2 })), [Dense, Dense, Moe]);
    assert_eq!(layers("deepseek_v3", json!({ "first_k_dense_replace": 0 })), [Moe, Moe, Moe]);
}

#[test]
fn a_spec_that_its_family_cannot_express_is_not_written() {
    let mut spec = read("qwen3_moe", json!({})).unwrap();
    spec.moe.router.selection_bias = true;
    spec.moe.router.scale = 2.5;
    spec.rope.interleaved = true;
    let problems = spec.to_hf(TorchDtype::Bfloat16).unwrap_err().problems;
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["rope_interleave", "routed_scaling_factor", "selection_bias"]);
}

#[test]
fn a_directory_without_a_readable_config_says_which_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let load = || ModelSpec::load_hf(folder.path());
    assert!(load().unwrap_err().to_string().starts_with(&format!("cannot read {}", file.display())));
    std::fs::write(&file, "{").unwrap();
    assert!(load().unwrap_err().to_string().starts_with(&format!("{} is not JSON", file.display())));
    std::fs::write(&file, "{}").unwrap();
    assert!(load().unwrap_err().to_string().starts_with(&format!("{}: model_type is missing", file.display())));
    std::fs::write(&file, config("olmoe", json!({})).to_string()).unwrap();
    assert_eq!(load().unwrap(), read("olmoe", json!({})).unwrap());
}

#[test]
fn what_is_no_config_is_refused() {
    for (file, key) in [
        (json!([]), "config"),
        (json!({}), "model_type"),
        (json!({ "model_type": "llama" }), "model_type"),
        (json!({ "model_type": 3 }), "model_type"),
    ] {
        assert_eq!(ModelSpec::from_hf(&file).unwrap_err().problems[0].key, key);
    }
}
