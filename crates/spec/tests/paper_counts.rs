//! Parameter counts: the models of orthogonal growth (arXiv 2510.08008), and published models by their configs.

use cambium_spec::{Attention, Family, FeedForward, Gqa, ModelSpec, Moe, NormPlacement, QkNorm, Rope, Router, Score};
use serde_json::{Value, json};

/// The paper's shape: sigmoid router with selection bias, per-head query/key norm, every layer MoE, untied.
fn paper(layers: usize, experts: usize, top_k: usize, hidden_size: usize, expert_size: usize) -> ModelSpec {
    ModelSpec {
        family: Family::Qwen3Moe,
        vocab_size: 200_064,
        hidden_size,
        attention: Attention::Gqa(Gqa {
            heads: 16,
            kv_heads: 4,
            head_dim: 128,
            qk_norm: QkNorm::PerHead,
            qkv_bias: false,
            output_bias: false,
        }),
        rope: Rope { theta: 10_000.0, interleaved: false },
        norm: NormPlacement::Pre,
        norm_eps: 1e-6,
        layers: vec![FeedForward::Moe; layers],
        moe: Moe {
            experts,
            intermediate_size: expert_size,
            router: Router {
                top_k,
                score: Score::Sigmoid,
                renormalize: true,
                scale: 1.0,
                groups: None,
                selection_bias: true,
            },
            shared: None,
        },
        dense_intermediate_size: None,
        tied_embeddings: false,
        max_position_embeddings: 4096,
        initializer_range: 0.02,
        eos_token_ids: vec![],
        bos_token_id: None,
        pad_token_id: None,
    }
}

#[test]
fn the_paper_s_models_have_the_paper_s_counts() {
    for (spec, total, active_millions) in [
        (paper(20, 64, 4, 1024, 768), 3_535_845_376_u64, Some(705)),
        (paper(20, 128, 8, 1024, 768), 6_557_054_976, None),
        (paper(28, 96, 6, 2048, 1024), 18_030_126_080, Some(2176)),
        (paper(56, 96, 6, 2048, 1024), 35_240_787_968, Some(3532)),
        (paper(56, 192, 12, 2048, 1024), 69_074_665_472, Some(5657)),
    ] {
        assert_eq!(spec.parameter_count(), total);
        if let Some(millions) = active_millions {
            assert_eq!((spec.active_parameter_count() + 500_000) / 1_000_000, millions);
        }
    }
}

fn count(config: Value) -> u64 {
    ModelSpec::from_hf(&config).unwrap_or_else(|error| panic!("{error}")).parameter_count()
}

/// Configs as transformers 4 wrote them for the published models; counts by transformers on its meta device.
#[test]
fn published_models_have_their_published_counts() {
    let qwen3_30b = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
        "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936,
    });
    assert_eq!(count(qwen3_30b), 30_532_122_624);
    let mixtral_8x7b = json!({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "output_router_logits": false, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0", "use_cache": true, "vocab_size": 32000,
    });
    assert_eq!(count(mixtral_8x7b), 46_702_792_704);
    let qwen15_moe = json!({
        "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151643,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
        "max_position_embeddings": 8192, "max_window_layers": 21, "model_type": "qwen2_moe",
        "moe_intermediate_size": 1408, "norm_topk_prob": false, "num_attention_heads": 16, "num_experts": 60,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16, "output_router_logits": false,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.39.0.dev0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936,
    });
    assert_eq!(count(qwen15_moe), 14_315_784_192);
    // DeepSeek-V3 without its yarn scaling and its 8-bit weights, both refused.
    let deepseek_v3 = json!({
        "attention_bias": false, "attention_dropout": 0.0, "auto_map": {}, "bos_token_id": 0, "eos_token_id": 1,
        "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
        "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
        "max_position_embeddings": 4096, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
        "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
        "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1", "use_cache": true, "v_head_dim": 128, "vocab_size": 129280,
    });
    assert_eq!(cambium_spec::hf::prediction_layers(&deepseek_v3), 1);
    assert_eq!(count(deepseek_v3), 671_026_404_352);
}
