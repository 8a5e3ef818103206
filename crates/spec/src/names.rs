//! The names of a checkpoint's tensors: one grammar per family, written and parsed by the same tables.
//!
//! A name is parsed whole, segment by segment, never searched for a substring, so layer 3 is not expert 3 and
//! `mlp.gate.weight` (the router) is not `mlp.gate_proj.weight` (a dense layer). Within a family names and
//! [`TensorId`]s correspond one to one: every id has exactly one name, and only that name parses to it.
//!
//! These are the names of the files on the Hugging Face hub, with one tensor per expert. transformers 5 fuses experts
//! in memory but writes these names too; its fused in-memory names do not parse.

use crate::Family;

/// Which tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// Token embedding, (V, H).
    Embedding,
    /// A tensor of one layer, layers counted from 0.
    Layer(usize, TensorRole),
    /// RMSNorm before the output projection, (H).
    FinalNorm,
    /// Output projection, (V, H); absent where the embedding serves as one.
    OutputProjection,
}

/// What a tensor does in its layer. Matrices are (out, in), as PyTorch's `Linear` keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorRole {
    /// RMSNorm of the attention branch, (H): before it in pre-norm families, after it in post-norm ones.
    AttentionNorm,
    /// Queries: (N*D, H), or for MLA without a query latent (N*(nope+rope), H).
    QueryWeight,
    /// (N*D).
    QueryBias,
    /// (G*D, H).
    KeyWeight,
    /// (G*D).
    KeyBias,
    /// (G*D, H).
    ValueWeight,
    /// (G*D).
    ValueBias,
    /// Output of attention: (H, N*D), or for MLA (H, N*v).
    AttentionOutputWeight,
    /// (H).
    AttentionOutputBias,
    /// RMSNorm of queries: (D) per head, (N*D) over the whole projection.
    QueryNorm,
    /// RMSNorm of keys: (D) per head, (G*D) over the whole projection.
    KeyNorm,
    /// MLA, into the query latent: (q_lora_rank, H).
    QueryAWeight,
    /// (q_lora_rank).
    QueryABias,
    /// RMSNorm of the query latent, (q_lora_rank).
    QueryANorm,
    /// MLA, out of the query latent: (N*(nope+rope), q_lora_rank).
    QueryBWeight,
    /// MLA, into the key/value latent and the shared rotary key: (kv_lora_rank+rope, H).
    KvAWeight,
    /// (kv_lora_rank+rope).
    KvABias,
    /// RMSNorm of the key/value latent, (kv_lora_rank).
    KvANorm,
    /// MLA, out of the key/value latent, keys then values within each head: (N*(nope+v), kv_lora_rank).
    KvBWeight,
    /// RMSNorm of the feed-forward branch, (H): before it in pre-norm families, after it in post-norm ones.
    FeedForwardNorm,
    /// (E, H).
    RouterWeight,
    /// Added to the router's scores for the selection only, (E); not trained by gradient.
    SelectionBias,
    /// A matrix of a routed expert, by its global id.
    Expert {
        /// Global id, below E.
        expert: usize,
        /// Which of its matrices.
        matrix: Matrix,
    },
    /// A matrix of the expert that every token passes through.
    Shared(Matrix),
    /// Projection whose sigmoid gates the shared expert, (1, H).
    SharedGate,
    /// A matrix of a dense layer.
    Dense(Matrix),
}

/// A matrix of a SwiGLU of size F: `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Matrix {
    /// (F, H), through the SiLU.
    Gate,
    /// (F, H).
    Up,
    /// (H, F).
    Down,
}

impl Matrix {
    /// All three, in the order in which a checkpoint lists them.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];
}

impl TensorId {
    /// The layer that it belongs to; `None` for the embedding, the final norm and the output projection.
    #[must_use]
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Layer(layer, _) => Some(layer),
            Self::Embedding | Self::FinalNorm | Self::OutputProjection => None,
        }
    }

    /// What it does in its layer; `None` outside the layers.
    #[must_use]
    pub fn role(self) -> Option<TensorRole> {
        match self {
            Self::Layer(_, role) => Some(role),
            Self::Embedding | Self::FinalNorm | Self::OutputProjection => None,
        }
    }

    /// It is trained by gradient: everything but the selection bias.
    #[must_use]
    pub fn is_trained(self) -> bool {
        self.role() != Some(TensorRole::SelectionBias)
    }
}

use TensorRole as R;

/// Roles whose name is the same in every family.
const SHARED_NAMES: &[(TensorRole, &str)] = &[
    (R::QueryWeight, "self_attn.q_proj.weight"),
    (R::QueryBias, "self_attn.q_proj.bias"),
    (R::KeyWeight, "self_attn.k_proj.weight"),
    (R::KeyBias, "self_attn.k_proj.bias"),
    (R::ValueWeight, "self_attn.v_proj.weight"),
    (R::ValueBias, "self_attn.v_proj.bias"),
    (R::AttentionOutputWeight, "self_attn.o_proj.weight"),
    (R::AttentionOutputBias, "self_attn.o_proj.bias"),
    (R::QueryNorm, "self_attn.q_norm.weight"),
    (R::KeyNorm, "self_attn.k_norm.weight"),
    (R::QueryAWeight, "self_attn.q_a_proj.weight"),
    (R::QueryABias, "self_attn.q_a_proj.bias"),
    (R::QueryANorm, "self_attn.q_a_layernorm.weight"),
    (R::QueryBWeight, "self_attn.q_b_proj.weight"),
    (R::KvAWeight, "self_attn.kv_a_proj_with_mqa.weight"),
    (R::KvABias, "self_attn.kv_a_proj_with_mqa.bias"),
    (R::KvANorm, "self_attn.kv_a_layernorm.weight"),
    (R::KvBWeight, "self_attn.kv_b_proj.weight"),
    (R::SharedGate, "mlp.shared_expert_gate.weight"),
    (R::Dense(Matrix::Gate), "mlp.gate_proj.weight"),
    (R::Dense(Matrix::Up), "mlp.up_proj.weight"),
    (R::Dense(Matrix::Down), "mlp.down_proj.weight"),
];

const PRE_NORM_NAMES: &[(TensorRole, &str)] =
    &[(R::AttentionNorm, "input_layernorm.weight"), (R::FeedForwardNorm, "post_attention_layernorm.weight")];

const POST_NORM_NAMES: &[(TensorRole, &str)] =
    &[(R::AttentionNorm, "post_attention_layernorm.weight"), (R::FeedForwardNorm, "post_feedforward_layernorm.weight")];

const ROUTER_NAMES: &[(TensorRole, &str)] =
    &[(R::RouterWeight, "mlp.gate.weight"), (R::SelectionBias, "mlp.gate.e_score_correction_bias")];

const MIXTRAL_ROUTER_NAMES: &[(TensorRole, &str)] = &[
    (R::RouterWeight, "block_sparse_moe.gate.weight"),
    (R::SelectionBias, "block_sparse_moe.gate.e_score_correction_bias"),
];

const SHARED_EXPERT_NAMES: &[(TensorRole, &str)] = &[
    (R::Shared(Matrix::Gate), "mlp.shared_expert.gate_proj.weight"),
    (R::Shared(Matrix::Up), "mlp.shared_expert.up_proj.weight"),
    (R::Shared(Matrix::Down), "mlp.shared_expert.down_proj.weight"),
];

const SHARED_EXPERTS_NAMES: &[(TensorRole, &str)] = &[
    (R::Shared(Matrix::Gate), "mlp.shared_experts.gate_proj.weight"),
    (R::Shared(Matrix::Up), "mlp.shared_experts.up_proj.weight"),
    (R::Shared(Matrix::Down), "mlp.shared_experts.down_proj.weight"),
];

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const OUTPUT_PROJECTION: &str = "lm_head.weight";

impl Family {
    /// The name of a tensor in a checkpoint of this family.
    ///
    /// Total, so that a spec which mixes families can be saved: a role that the family's own models do not have gets
    /// the name that the other families give it.
    #[must_use]
    pub fn tensor_name(self, id: TensorId) -> String {
        match id {
            TensorId::Embedding => EMBEDDING.to_owned(),
            TensorId::FinalNorm => FINAL_NORM.to_owned(),
            TensorId::OutputProjection => OUTPUT_PROJECTION.to_owned(),
            TensorId::Layer(layer, R::Expert { expert, matrix }) => {
                format!("model.layers.{layer}.{}.experts.{expert}.{}.weight", self.block(), self.matrix(matrix))
            }
            TensorId::Layer(layer, role) => {
                let suffix = self.tables().into_iter().flatten().find(|(known, _)| *known == role);
                let suffix = suffix.expect("every role but the experts' stands in the tables of every family").1;
                format!("model.layers.{layer}.{suffix}")
            }
        }
    }

    /// Reads the name of a tensor, the inverse of [`Self::tensor_name`]; `None` if it is not in the grammar.
    ///
    /// Whether a model has that layer and that expert is not asked here: see [`crate::ModelSpec::tensors`].
    #[must_use]
    pub fn parse_tensor_name(self, name: &str) -> Option<TensorId> {
        match name {
            EMBEDDING => return Some(TensorId::Embedding),
            FINAL_NORM => return Some(TensorId::FinalNorm),
            OUTPUT_PROJECTION => return Some(TensorId::OutputProjection),
            _ => {}
        }
        let (layer, suffix) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let role = self.parse_expert(suffix).or_else(|| {
            self.tables().into_iter().flatten().find(|(_, known)| *known == suffix).map(|(role, _)| *role)
        })?;
        Some(TensorId::Layer(parse_index(layer)?, role))
    }

    fn parse_expert(self, suffix: &str) -> Option<TensorRole> {
        let [block, "experts", expert, matrix, "weight"] = suffix.split('.').collect::<Vec<_>>()[..] else {
            return None;
        };
        let matrix = Matrix::ALL.into_iter().find(|known| self.matrix(*known) == matrix)?;
        (block == self.block()).then_some(R::Expert { expert: parse_index(expert)?, matrix })
    }

    fn tables(self) -> [&'static [(TensorRole, &'static str)]; 4] {
        [
            SHARED_NAMES,
            if self == Self::FlexOlmo { POST_NORM_NAMES } else { PRE_NORM_NAMES },
            if self == Self::Mixtral { MIXTRAL_ROUTER_NAMES } else { ROUTER_NAMES },
            if self == Self::DeepseekV3 { SHARED_EXPERTS_NAMES } else { SHARED_EXPERT_NAMES },
        ]
    }

    /// The module that holds router and experts.
    fn block(self) -> &'static str {
        if self == Self::Mixtral { "block_sparse_moe" } else { "mlp" }
    }

    /// An expert's matrix.
    fn matrix(self, matrix: Matrix) -> &'static str {
        match (self, matrix) {
            (Self::Mixtral, Matrix::Gate) => "w1",
            (Self::Mixtral, Matrix::Down) => "w2",
            (Self::Mixtral, Matrix::Up) => "w3",
            (_, Matrix::Gate) => "gate_proj",
            (_, Matrix::Up) => "up_proj",
            (_, Matrix::Down) => "down_proj",
        }
    }
}

/// A decimal index as it is written: no sign, no leading zero.
fn parse_index(text: &str) -> Option<usize> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    if canonical { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: [Family; 6] =
        [Family::Qwen3Moe, Family::Olmoe, Family::Mixtral, Family::FlexOlmo, Family::Qwen2Moe, Family::DeepseekV3];

    #[test]
    fn every_name_parses_to_the_tensor_that_it_names() {
        for family in FAMILIES {
            let mut ids = vec![TensorId::Embedding, TensorId::FinalNorm, TensorId::OutputProjection];
            for (role, _) in family.tables().into_iter().flatten() {
                ids.extend([TensorId::Layer(0, *role), TensorId::Layer(31, *role)]);
            }
            for matrix in Matrix::ALL {
                ids.extend([0, 3, 127].map(|expert| TensorId::Layer(3, R::Expert { expert, matrix })));
            }
            for id in ids {
                let name = family.tensor_name(id);
                assert_eq!(family.parse_tensor_name(&name), Some(id), "{family:?}: {name}");
            }
        }
    }

    #[test]
    fn layer_3_is_not_expert_3() {
        let parse = |name| Family::Qwen3Moe.parse_tensor_name(name);
        let expert = R::Expert { expert: 3, matrix: Matrix::Up };
        assert_eq!(parse("model.layers.1.mlp.experts.3.up_proj.weight"), Some(TensorId::Layer(1, expert)));
        assert_eq!(parse("model.layers.3.mlp.gate.weight"), Some(TensorId::Layer(3, R::RouterWeight)));
        assert_eq!(parse("model.layers.3.mlp.gate_proj.weight"), Some(TensorId::Layer(3, R::Dense(Matrix::Gate))));
    }

    #[test]
    fn what_is_not_in_the_grammar_does_not_parse() {
        for name in [
            "",
            "model",
            "model.layers.",
            "model.layers.0",
            "model.layers.00.mlp.gate.weight",
            "model.layers.+1.mlp.gate.weight",
            "model.layers.-1.mlp.gate.weight",
            "model.layers.x.mlp.gate.weight",
            "model.layers..mlp.gate.weight",
            "model.layers.99999999999999999999999.mlp.gate.weight",
            "model.layers.0.mlp.gate.weight.weight",
            "x.model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.gate.bias",
            "model.layers.0.mlp.experts.01.up_proj.weight",
            "model.layers.0.mlp.experts.1.up_proj.bias",
            "model.layers.0.mlp.experts.1.w1.weight",
            "model.layers.0.block_sparse_moe.experts.1.w1.weight",
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "lm_head.bias",
        ] {
            assert_eq!(Family::Qwen3Moe.parse_tensor_name(name), None, "{name}");
        }
    }

    #[test]
    fn the_same_norm_name_means_another_norm_in_a_post_norm_family() {
        let name = "model.layers.0.post_attention_layernorm.weight";
        assert_eq!(Family::Olmoe.parse_tensor_name(name), Some(TensorId::Layer(0, R::FeedForwardNorm)));
        assert_eq!(Family::FlexOlmo.parse_tensor_name(name), Some(TensorId::Layer(0, R::AttentionNorm)));
    }
}
