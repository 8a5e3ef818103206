//! What differs between the families' config classes: the names of keys, and the defaults of absent ones.

use crate::Family;

/// The names of a family's keys, where families differ.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    /// E.
    pub(crate) experts: &'static str,
    /// F of a routed expert.
    pub(crate) expert_size: &'static str,
    /// What decides the size of the shared expert.
    pub(crate) shared: &'static str,
    /// What decides which layers are dense.
    pub(crate) layout: &'static [&'static str],
}

/// The defaults of a family's config class in transformers (the same in 4 and 5).
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    /// `num_key_value_heads` when absent; `None` is one for each head.
    pub(super) kv_heads: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) norm_topk_prob: bool,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
    pub(super) pad_token_id: Option<u32>,
}

impl Keys {
    pub(crate) fn of(family: Family) -> Self {
        let qwen = &["num_hidden_layers", "mlp_only_layers", "decoder_sparse_step"];
        let keys = Self { experts: "num_experts", expert_size: "intermediate_size", shared: "shared", layout: &[] };
        match family {
            Family::Qwen3Moe => Self { expert_size: "moe_intermediate_size", layout: qwen, ..keys },
            Family::Olmoe | Family::FlexOlmo => keys,
            Family::Mixtral => Self { experts: "num_local_experts", ..keys },
            Family::Qwen2Moe => Self {
                expert_size: "moe_intermediate_size",
                shared: "shared_expert_intermediate_size",
                layout: qwen,
                ..keys
            },
            Family::DeepseekV3 => Self {
                experts: "n_routed_experts",
                expert_size: "moe_intermediate_size",
                shared: "n_shared_experts",
                layout: &["num_hidden_layers", "first_k_dense_replace"],
            },
        }
    }
}

impl Defaults {
    pub(super) fn of(family: Family) -> Self {
        let base = Self {
            kv_heads: None,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            norm_topk_prob: false,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        };
        match family {
            Family::Qwen3Moe => Self { kv_heads: Some(4), max_position_embeddings: 32_768, ..base },
            Family::Olmoe => Self { rms_norm_eps: 1e-5, eos_token_id: Some(50_279), pad_token_id: Some(1), ..base },
            Family::Mixtral => Self {
                kv_heads: Some(8),
                max_position_embeddings: 131_072,
                rms_norm_eps: 1e-5,
                rope_theta: 1e6,
                norm_topk_prob: true,
                bos_token_id: Some(1),
                eos_token_id: Some(2),
                ..base
            },
            Family::FlexOlmo => {
                Self { rope_theta: 500_000.0, eos_token_id: Some(100_257), pad_token_id: Some(100_277), ..base }
            }
            Family::Qwen2Moe => Self { kv_heads: Some(16), max_position_embeddings: 32_768, ..base },
            Family::DeepseekV3 => Self { norm_topk_prob: true, bos_token_id: Some(0), eos_token_id: Some(1), ..base },
        }
    }
}
