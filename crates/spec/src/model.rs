//! The model spec: one composable decoder-only MoE transformer, a model family being data.
//!
//! Here are the shapes and switches that decide the mathematics, and the counts that follow from them. How they are
//! read from and written to a Hugging Face `config.json` is in [`crate::hf`], their validation in [`crate::check`].

use serde::{Deserialize, Serialize};

/// The Hugging Face model type whose names and config a model is read from and written to.
///
/// It decides names only: every difference in mathematics is a field of [`ModelSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Qwen3-MoE: pre-norm, query/key norm per head, softmax router.
    Qwen3Moe,
    /// OLMoE: pre-norm, query/key norm over the whole projection, softmax router, not renormalised.
    Olmoe,
    /// Mixtral: pre-norm, no query/key norm, softmax router, renormalised.
    Mixtral,
    /// FlexOlmo: norms after attention and after the experts, inside the residual branch.
    FlexOlmo,
    /// Qwen2-MoE: biased query/key/value projections, a gated shared expert.
    Qwen2Moe,
    /// DeepSeek-V3: multi-head latent attention, sigmoid router with selection bias and groups.
    DeepseekV3,
}

/// A decoder-only MoE transformer: all that decides its mathematics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Whose names the tensors and the config carry.
    pub family: Family,
    /// V: rows of the embedding and of the output projection.
    pub vocab_size: usize,
    /// H: width of the residual stream.
    pub hidden_size: usize,
    /// The attention of every layer.
    pub attention: Attention,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Where the norms stand.
    pub norm: NormPlacement,
    /// Epsilon of every RMSNorm but those of MLA's latents ([`Mla::LATENT_NORM_EPS`]).
    pub norm_eps: f64,
    /// The feed-forward part of each layer, in order; its length is L.
    pub layers: Vec<FeedForward>,
    /// The MoE of the layers that are [`FeedForward::Moe`].
    pub moe: Moe,
    /// Expert size F of the layers that are [`FeedForward::Dense`]; `None` if there is none.
    pub dense_intermediate_size: Option<usize>,
    /// The output projection is the embedding.
    pub tied_embeddings: bool,
    /// The longest sequence that the checkpoint was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly initialised matrices.
    pub initializer_range: f64,
    /// Tokens that end a text, kept for the written config.
    pub eos_token_ids: Vec<u32>,
    /// Token that begins a text, kept for the written config.
    pub bos_token_id: Option<u32>,
    /// Padding token, kept for the written config.
    pub pad_token_id: Option<u32>,
}

/// How a layer attends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Grouped-query attention.
    Gqa(Gqa),
    /// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    Mla(Mla),
}

/// Grouped-query attention: N query heads share G key/value heads of size D.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gqa {
    /// N: query heads.
    pub heads: usize,
    /// G: key/value heads; N is a multiple of it.
    pub kv_heads: usize,
    /// D: size of a head.
    pub head_dim: usize,
    /// Query and key norm.
    pub qk_norm: QkNorm,
    /// Query, key and value projections carry a bias.
    pub qkv_bias: bool,
    /// The output projection carries a bias.
    pub output_bias: bool,
}

/// Multi-head latent attention: queries and keys/values pass through a low-rank latent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mla {
    /// N: heads.
    pub heads: usize,
    /// Rank of the query latent; `None` projects queries directly.
    pub q_lora_rank: Option<usize>,
    /// Rank of the key/value latent.
    pub kv_lora_rank: usize,
    /// Head size of queries and keys without position.
    pub qk_nope_head_dim: usize,
    /// Head size of queries and keys with rotary position; one key of it is shared by all heads.
    pub qk_rope_head_dim: usize,
    /// Head size of values.
    pub v_head_dim: usize,
    /// `q_a_proj`, `kv_a_proj_with_mqa` and `o_proj` carry a bias.
    pub bias: bool,
}

/// RMSNorm of queries and keys before their rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head's D values, one gain for all heads.
    PerHead,
    /// Over the whole projection (N*D for queries, G*D for keys).
    Whole,
}

/// Rotary position embedding (arXiv 2104.09864).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Pairs are neighbours (2i, 2i+1), as in DeepSeek; otherwise (i, i + D/2), as in Llama.
    pub interleaved: bool,
}

/// Where the RMSNorms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// `x + f(norm(x))`.
    Pre,
    /// `x + norm(f(x))`, as OLMo2 and FlexOlmo.
    Post,
}

/// The feed-forward part of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// One SwiGLU of [`ModelSpec::dense_intermediate_size`].
    Dense,
    /// Routed experts as in [`ModelSpec::moe`].
    Moe,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moe {
    /// E: routed experts.
    pub experts: usize,
    /// F: size of one routed expert.
    pub intermediate_size: usize,
    /// How tokens choose their experts.
    pub router: Router,
    /// The expert that every token passes through.
    pub shared: Option<SharedExpert>,
}

/// How a token chooses its experts, and with which gates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// K: experts per token.
    pub top_k: usize,
    /// From logits to scores.
    pub score: Score,
    /// Gates of a token are divided by their sum.
    pub renormalize: bool,
    /// Gates are multiplied by this, after renormalisation.
    pub scale: f64,
    /// Selection inside the best groups of experts only.
    pub groups: Option<Grouping>,
    /// A bias, not trained by gradient, is added to the scores for the selection only (arXiv 2408.15664).
    pub selection_bias: bool,
}

/// From router logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each logit.
    Sigmoid,
}

/// Group-limited selection (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grouping {
    /// Groups that the experts are divided into, in order of their ids.
    pub groups: usize,
    /// Groups that a token may choose experts from; a group's rank is the sum of its two best scores.
    pub top_groups: usize,
}

/// The expert that every token passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpert {
    /// Its size F.
    pub intermediate_size: usize,
    /// Its output is multiplied by the sigmoid of a learned projection of the token (Qwen2-MoE).
    pub gated: bool,
}

/// Coefficients of what keeps experts evenly loaded; all 0 unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// Of the load-balancing loss `E * sum_e f_e * P_e`, summed over the MoE layers.
    pub load_balance: f64,
    /// Of the router z-loss, the mean of `logsumexp(logits)^2`, summed over the MoE layers.
    pub z: f64,
    /// Step of the selection bias towards even load, once per optimizer step.
    pub bias_update: f64,
}

impl ModelSpec {
    /// L: the number of layers.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The number of MoE layers.
    #[must_use]
    pub fn moe_layer_count(&self) -> usize {
        self.layers.iter().filter(|kind| **kind == FeedForward::Moe).count()
    }

    /// All parameters; a tied embedding counts once, selection biases (not trained by gradient) do not count.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        self.count(self.moe.experts as u64)
    }

    /// Parameters that take part in a token's forward pass: as [`Self::parameter_count`], with K routed experts of E.
    #[must_use]
    pub fn active_parameter_count(&self) -> u64 {
        self.count(self.moe.router.top_k as u64)
    }

    fn count(&self, experts: u64) -> u64 {
        let h = self.hidden_size as u64;
        let swiglu = |f: usize| 3 * h * f as u64;
        let moe = h * self.moe.experts as u64
            + experts * swiglu(self.moe.intermediate_size)
            + self.moe.shared.map_or(0, |s| swiglu(s.intermediate_size) + if s.gated { h } else { 0 });
        let per_layer = self.attention.parameter_count(h) + 2 * h;
        let layers: u64 = self
            .layers
            .iter()
            .map(|kind| {
                per_layer
                    + match kind {
                        FeedForward::Dense => self.dense_intermediate_size.map_or(0, swiglu),
                        FeedForward::Moe => moe,
                    }
            })
            .sum();
        let vocab = self.vocab_size as u64 * h;
        layers + vocab * if self.tied_embeddings { 1 } else { 2 } + h
    }

    /// Floating-point operations of one token's forward pass in matrix products, attention over a causal window of
    /// `seq_len` included; forward and backward together are three times this.
    #[must_use]
    pub fn forward_flops_per_token(&self, seq_len: usize) -> u64 {
        let h = self.hidden_size as u64;
        let swiglu = |f: usize| 3 * h * f as u64;
        let attention = self.attention.matrix_parameter_count(h);
        let (heads, qk, v) = match &self.attention {
            Attention::Gqa(a) => (a.heads, a.head_dim, a.head_dim),
            Attention::Mla(a) => (a.heads, a.qk_nope_head_dim + a.qk_rope_head_dim, a.v_head_dim),
        };
        // A causal window of T attends to (T+1)/2 positions on average.
        let scores = (heads * (qk + v)) as u64 * (seq_len as u64 + 1);
        let layers: u64 = self
            .layers
            .iter()
            .map(|kind| {
                let feed_forward = match kind {
                    FeedForward::Dense => self.dense_intermediate_size.map_or(0, swiglu),
                    FeedForward::Moe => {
                        h * self.moe.experts as u64
                            + self.moe.router.top_k as u64 * swiglu(self.moe.intermediate_size)
                            + self.moe.shared.map_or(0, |s| swiglu(s.intermediate_size) + if s.gated { h } else { 0 })
                    }
                };
                2 * (attention + feed_forward) + scores
            })
            .sum();
        layers + 2 * self.vocab_size as u64 * h
    }
}

impl Mla {
    /// Epsilon of the RMSNorms of the query and key/value latents: transformers' `DeepseekV3Attention` does not hand
    /// `rms_norm_eps` to them.
    pub const LATENT_NORM_EPS: f64 = 1e-6;
}

impl Attention {
    /// Size of the part of a head that is rotated.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        match self {
            Self::Gqa(a) => a.head_dim,
            Self::Mla(a) => a.qk_rope_head_dim,
        }
    }

    fn matrix_parameter_count(&self, h: u64) -> u64 {
        match self {
            Self::Gqa(a) => {
                let (n, g, d) = (a.heads as u64, a.kv_heads as u64, a.head_dim as u64);
                (n + 2 * g) * d * h + n * d * h
            }
            Self::Mla(a) => {
                let n = a.heads as u64;
                let (nope, rope, v) = (a.qk_nope_head_dim as u64, a.qk_rope_head_dim as u64, a.v_head_dim as u64);
                let kv = a.kv_lora_rank as u64;
                let q = n * (nope + rope);
                let queries = a.q_lora_rank.map_or(q * h, |r| r as u64 * h + q * r as u64);
                queries + (kv + rope) * h + n * (nope + v) * kv + h * n * v
            }
        }
    }

    fn parameter_count(&self, h: u64) -> u64 {
        let vectors = match self {
            Self::Gqa(a) => {
                let (n, g, d) = (a.heads as u64, a.kv_heads as u64, a.head_dim as u64);
                let norms = match a.qk_norm {
                    QkNorm::None => 0,
                    QkNorm::PerHead => 2 * d,
                    QkNorm::Whole => (n + g) * d,
                };
                norms + if a.qkv_bias { (n + 2 * g) * d } else { 0 } + if a.output_bias { h } else { 0 }
            }
            Self::Mla(a) => {
                let q = a.q_lora_rank.map_or(0, |r| r as u64 + if a.bias { r as u64 } else { 0 });
                let kv = a.kv_lora_rank as u64;
                q + kv + if a.bias { kv + a.qk_rope_head_dim as u64 + h } else { 0 }
            }
        };
        self.matrix_parameter_count(h) + vectors
    }
}
