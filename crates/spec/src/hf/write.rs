//! From a [`ModelSpec`] to a `config.json` that transformers 4 and 5, and vLLM, read.
//!
//! Both generations' names are written where they differ: neither minds the other's. Every key that bears on the
//! mathematics is written, so that no class default is relied upon, and what a model does not have is written as
//! absent (`sliding_window: null`).

use serde_json::{Map, Value, json};

use crate::problem::SpecErrors;
use crate::{Attention, Family, FeedForward, Gqa, Mla, ModelSpec};

/// Data type of a checkpoint's weights, as a config names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorchDtype {
    /// `float32`
    Float32,
    /// `bfloat16`
    Bfloat16,
}

impl ModelSpec {
    /// The `config.json` of this model, with weights of that type.
    ///
    /// [`Self::from_hf`] reads the same spec from it.
    ///
    /// # Errors
    /// As [`Self::check`]: a spec that its family cannot express has no config.
    pub fn to_hf(&self, dtype: TorchDtype) -> Result<Value, SpecErrors> {
        self.check()?;
        Ok(Value::Object(self.config(dtype)))
    }

    /// The config, unchecked: of a spec that the family cannot express it says only what it can.
    pub(crate) fn config(&self, dtype: TorchDtype) -> Map<String, Value> {
        let mut config = self.common(dtype);
        match &self.attention {
            Attention::Gqa(gqa) => self.write_gqa(gqa, &mut config),
            Attention::Mla(mla) => write_mla(mla, self.rope.interleaved, &mut config),
        }
        self.write_moe(&mut config);
        self.write_layers(&mut config);
        if let Some(size) = self.dense_intermediate_size {
            config.insert("intermediate_size".to_owned(), json!(size));
        }
        config
    }

    fn common(&self, dtype: TorchDtype) -> Map<String, Value> {
        let dtype = match dtype {
            TorchDtype::Float32 => "float32",
            TorchDtype::Bfloat16 => "bfloat16",
        };
        let eos = match &self.eos_token_ids[..] {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut config = Map::new();
        extend(
            &mut config,
            json!({
                "architectures": [self.family.architecture()],
                "model_type": self.family.model_type(),
                "dtype": dtype,
                "torch_dtype": dtype,
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "hidden_act": "silu",
                "num_hidden_layers": self.layer_count(),
                "max_position_embeddings": self.max_position_embeddings,
                "rms_norm_eps": self.norm_eps,
                "initializer_range": self.initializer_range,
                "rope_theta": self.rope.theta,
                "rope_scaling": null,
                "rope_parameters": { "rope_theta": self.rope.theta, "rope_type": "default" },
                "attention_dropout": 0.0,
                "tie_word_embeddings": self.tied_embeddings,
                "use_cache": true,
                "eos_token_id": eos,
                "bos_token_id": self.bos_token_id,
                "pad_token_id": self.pad_token_id,
            }),
        );
        config
    }

    fn write_gqa(&self, gqa: &Gqa, config: &mut Map<String, Value>) {
        extend(
            config,
            json!({
                "num_attention_heads": gqa.heads,
                "num_key_value_heads": gqa.kv_heads,
                "head_dim": gqa.head_dim,
            }),
        );
        extend(
            config,
            match self.family {
                Family::Qwen2Moe => json!({
                    "qkv_bias": gqa.qkv_bias, "use_sliding_window": false, "sliding_window": null,
                }),
                Family::Qwen3Moe => json!({
                    "attention_bias": gqa.qkv_bias, "use_sliding_window": false, "sliding_window": null,
                }),
                Family::Olmoe => json!({ "attention_bias": gqa.qkv_bias, "clip_qkv": null }),
                Family::FlexOlmo => json!({ "attention_bias": gqa.qkv_bias }),
                Family::Mixtral => json!({ "sliding_window": null, "router_jitter_noise": 0.0 }),
                Family::DeepseekV3 => json!({}),
            },
        );
    }

    fn write_moe(&self, config: &mut Map<String, Value>) {
        let (moe, router) = (&self.moe, &self.moe.router);
        let (experts, size) = (moe.experts, moe.intermediate_size);
        let shared = moe.shared.map_or(0, |shared| shared.intermediate_size);
        extend(config, json!({ "num_experts_per_tok": router.top_k, "output_router_logits": false }));
        extend(
            config,
            match self.family {
                Family::Qwen3Moe => json!({
                    "num_experts": experts,
                    "num_local_experts": experts,
                    "moe_intermediate_size": size,
                    "norm_topk_prob": router.renormalize,
                }),
                Family::Olmoe | Family::FlexOlmo => json!({
                    "num_experts": experts,
                    "intermediate_size": size,
                    "norm_topk_prob": router.renormalize,
                }),
                Family::Mixtral => json!({ "num_local_experts": experts, "intermediate_size": size }),
                Family::Qwen2Moe => json!({
                    "num_experts": experts,
                    "moe_intermediate_size": size,
                    "shared_expert_intermediate_size": shared,
                    "norm_topk_prob": router.renormalize,
                }),
                Family::DeepseekV3 => json!({
                    "n_routed_experts": experts,
                    "moe_intermediate_size": size,
                    "n_shared_experts": shared.checked_div(size).unwrap_or(0),
                    "norm_topk_prob": router.renormalize,
                    "routed_scaling_factor": router.scale,
                    "scoring_func": "sigmoid",
                    "topk_method": "noaux_tc",
                    "n_group": router.groups.map_or(1, |groups| groups.groups),
                    "topk_group": router.groups.map_or(1, |groups| groups.top_groups),
                    "num_nextn_predict_layers": 0,
                }),
            },
        );
    }

    fn write_layers(&self, config: &mut Map<String, Value>) {
        let dense: Vec<usize> =
            (0..self.layer_count()).filter(|layer| self.layers[*layer] == FeedForward::Dense).collect();
        extend(
            config,
            match self.family {
                Family::Qwen3Moe => json!({ "mlp_only_layers": dense, "decoder_sparse_step": 1 }),
                Family::Qwen2Moe => json!({
                    "mlp_only_layers": dense,
                    "decoder_sparse_step": 1,
                    "layer_types": vec!["full_attention"; self.layer_count()],
                }),
                Family::DeepseekV3 => json!({ "first_k_dense_replace": dense.len(), "moe_layer_freq": 1 }),
                Family::Olmoe | Family::Mixtral | Family::FlexOlmo => json!({}),
            },
        );
    }
}

fn write_mla(mla: &Mla, interleaved: bool, config: &mut Map<String, Value>) {
    extend(
        config,
        json!({
            "num_attention_heads": mla.heads,
            "num_key_value_heads": mla.heads,
            "q_lora_rank": mla.q_lora_rank,
            "kv_lora_rank": mla.kv_lora_rank,
            "qk_nope_head_dim": mla.qk_nope_head_dim,
            "qk_rope_head_dim": mla.qk_rope_head_dim,
            "v_head_dim": mla.v_head_dim,
            "attention_bias": mla.bias,
            "rope_interleave": interleaved,
        }),
    );
}

fn extend(config: &mut Map<String, Value>, fields: Value) {
    if let Value::Object(fields) = fields {
        config.extend(fields);
    }
}
