//! From a spec to blocks with room for their parameters.

use std::collections::HashMap;
use std::ops::Range;

use cambium_kernels::Backend;
use cambium_spec::{
    Attention as AttentionSpec, FeedForward, Gqa, Matrix, Mla, ModelSpec, QkNorm, TensorId, TensorRole as R, TensorSpec,
};

use crate::attention::Attention;
use crate::attention::gqa::GqaAttention;
use crate::attention::mla::{MlaAttention, QueryLatent};
use crate::context::Precision;
use crate::error::{ModelError, Outcome};
use crate::experts::Experts;
use crate::head::Head;
use crate::layer::{FeedForwardBlock, Layer};
use crate::linear::Linear;
use crate::moe::{MoeBlock, SharedExpert};
use crate::norm::Norm;
use crate::param::{Compute, Param, Use};
use crate::stage::Stage;
use crate::swiglu::SwiGlu;

/// Makes the blocks of a model; parameters are zeros.
struct Builder<'a, B: Backend> {
    backend: &'a B,
    spec: &'a ModelSpec,
    precision: Precision,
    usage: Use,
    tensors: HashMap<TensorId, TensorSpec>,
}

/// A stage of `layers`, with the embedding if it begins the model and the head if it ends it; parameters are zeros.
pub(crate) fn stage<B: Backend>(
    backend: &B,
    spec: &ModelSpec,
    layers: Range<usize>,
    precision: Precision,
    usage: Use,
) -> Outcome<Stage<B>> {
    let tensors = spec.tensors().into_iter().map(|tensor| (tensor.id, tensor)).collect();
    let builder = Builder { backend, spec, precision, usage, tensors };
    let (first, last) = (layers.start == 0, layers.end == spec.layer_count());
    let embedding = if first || (last && spec.tied_embeddings) {
        Some(builder.param([TensorId::Embedding], Compute::Run)?)
    } else {
        None
    };
    let projection = if last && !spec.tied_embeddings {
        Some(builder.param([TensorId::OutputProjection], Compute::Run)?)
    } else {
        None
    };
    let head = if last {
        Some(Head { norm: builder.norm(TensorId::FinalNorm, spec.hidden_size)?, vocab: spec.vocab_size })
    } else {
        None
    };
    let blocks = layers.clone().map(|layer| builder.layer(layer)).collect::<Outcome<Vec<_>>>()?;
    Ok(Stage {
        spec: spec.clone(),
        precision,
        first_layer: layers.start,
        embeds: first,
        embedding,
        layers: blocks,
        head,
        projection,
    })
}

impl<B: Backend> Builder<'_, B> {
    fn param(&self, ids: impl IntoIterator<Item = TensorId>, compute: Compute) -> Outcome<Param<B>> {
        self.param_for(ids, compute, self.usage)
    }

    fn param_for(&self, ids: impl IntoIterator<Item = TensorId>, compute: Compute, usage: Use) -> Outcome<Param<B>> {
        let tensors = ids
            .into_iter()
            .map(|id| {
                self.tensors.get(&id).cloned().ok_or_else(|| {
                    let name = self.spec.family.tensor_name(id);
                    ModelError::Input(format!("the model spec has no tensor {name}, which its own switches ask for"))
                })
            })
            .collect::<Outcome<Vec<_>>>()?;
        Param::new(self.backend, tensors, compute, self.precision, usage)
    }

    fn norm(&self, id: TensorId, width: usize) -> Outcome<Norm<B>> {
        Ok(Norm { gain: self.param([id], Compute::F32)?, width, eps: self.spec.norm_eps })
    }

    /// A norm of an MLA latent: its epsilon is fixed, whatever the config says of the others.
    fn latent_norm(&self, id: TensorId, width: usize) -> Outcome<Norm<B>> {
        Ok(Norm { eps: Mla::LATENT_NORM_EPS, ..self.norm(id, width)? })
    }

    fn linear(&self, layer: usize, weight: R, bias: Option<R>, inputs: usize, outputs: usize) -> Outcome<Linear<B>> {
        let bias = match bias {
            Some(role) => Some(self.param([TensorId::Layer(layer, role)], Compute::F32)?),
            None => None,
        };
        Ok(Linear { weight: self.param([TensorId::Layer(layer, weight)], Compute::Run)?, bias, inputs, outputs })
    }

    fn layer(&self, layer: usize) -> Outcome<Layer<B>> {
        let hidden = self.spec.hidden_size;
        let id = |role| TensorId::Layer(layer, role);
        Ok(Layer {
            placement: self.spec.norm,
            attention_norm: self.norm(id(R::AttentionNorm), hidden)?,
            attention: match &self.spec.attention {
                AttentionSpec::Gqa(spec) => Attention::Gqa(self.gqa(layer, spec)?),
                AttentionSpec::Mla(spec) => Attention::Mla(self.mla(layer, spec)?),
            },
            feed_forward_norm: self.norm(id(R::FeedForwardNorm), hidden)?,
            feed_forward: match self.spec.layers[layer] {
                FeedForward::Dense => {
                    let size = self.spec.dense_intermediate_size.unwrap_or(0);
                    FeedForwardBlock::Dense(self.swiglu(layer, R::Dense, size)?)
                }
                FeedForward::Moe => FeedForwardBlock::Moe(Box::new(self.moe(layer)?)),
            },
        })
    }

    fn gqa(&self, layer: usize, spec: &Gqa) -> Outcome<GqaAttention<B>> {
        let hidden = self.spec.hidden_size;
        let (query, key) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let bias = |role| spec.qkv_bias.then_some(role);
        let norm = |role, whole| {
            let width = match spec.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::PerHead => spec.head_dim,
                QkNorm::Whole => whole,
            };
            self.norm(TensorId::Layer(layer, role), width).map(Some)
        };
        let output_bias = spec.output_bias.then_some(R::AttentionOutputBias);
        Ok(GqaAttention {
            interleaved: self.spec.rope.interleaved,
            query: self.linear(layer, R::QueryWeight, bias(R::QueryBias), hidden, query)?,
            key: self.linear(layer, R::KeyWeight, bias(R::KeyBias), hidden, key)?,
            value: self.linear(layer, R::ValueWeight, bias(R::ValueBias), hidden, key)?,
            output: self.linear(layer, R::AttentionOutputWeight, output_bias, query, hidden)?,
            query_norm: norm(R::QueryNorm, query)?,
            key_norm: norm(R::KeyNorm, key)?,
            spec: spec.clone(),
        })
    }

    fn mla(&self, layer: usize, spec: &Mla) -> Outcome<MlaAttention<B>> {
        let (hidden, kv_rank) = (self.spec.hidden_size, spec.kv_lora_rank);
        let query = spec.heads * (spec.qk_nope_head_dim + spec.qk_rope_head_dim);
        let id = |role| TensorId::Layer(layer, role);
        let bias = |role| spec.bias.then_some(role);
        let (query_latent, query) = match spec.q_lora_rank {
            None => (None, self.linear(layer, R::QueryWeight, None, hidden, query)?),
            Some(rank) => {
                let linear = self.linear(layer, R::QueryAWeight, bias(R::QueryABias), hidden, rank)?;
                let norm = self.latent_norm(id(R::QueryANorm), rank)?;
                (Some(QueryLatent { linear, norm }), self.linear(layer, R::QueryBWeight, None, rank, query)?)
            }
        };
        let joint = kv_rank + spec.qk_rope_head_dim;
        let expanded = spec.heads * (spec.qk_nope_head_dim + spec.v_head_dim);
        let value = spec.heads * spec.v_head_dim;
        Ok(MlaAttention {
            interleaved: self.spec.rope.interleaved,
            query_latent,
            query,
            kv_latent: self.linear(layer, R::KvAWeight, bias(R::KvABias), hidden, joint)?,
            kv_norm: self.latent_norm(id(R::KvANorm), kv_rank)?,
            kv: self.linear(layer, R::KvBWeight, None, kv_rank, expanded)?,
            output: self.linear(layer, R::AttentionOutputWeight, bias(R::AttentionOutputBias), value, hidden)?,
            spec: spec.clone(),
        })
    }

    fn swiglu(&self, layer: usize, role: impl Fn(Matrix) -> R, size: usize) -> Outcome<SwiGlu<B>> {
        let hidden = self.spec.hidden_size;
        let id = |matrix| TensorId::Layer(layer, role(matrix));
        let gate_up = self.param([id(Matrix::Gate), id(Matrix::Up)], Compute::Run)?;
        Ok(SwiGlu {
            gate_up: Linear { weight: gate_up, bias: None, inputs: hidden, outputs: 2 * size },
            down: self.linear(layer, role(Matrix::Down), None, size, hidden)?,
        })
    }

    fn moe(&self, layer: usize) -> Outcome<MoeBlock<B>> {
        let (moe, hidden) = (&self.spec.moe, self.spec.hidden_size);
        let id = |role| TensorId::Layer(layer, role);
        let expert = |expert, matrix| id(R::Expert { expert, matrix });
        let gate_up = (0..moe.experts).flat_map(|e| [expert(e, Matrix::Gate), expert(e, Matrix::Up)]);
        let down = (0..moe.experts).map(|e| expert(e, Matrix::Down));
        let shared = match moe.shared {
            None => None,
            Some(shared) => Some(SharedExpert {
                block: self.swiglu(layer, R::Shared, shared.intermediate_size)?,
                gate: if shared.gated { Some(self.param([id(R::SharedGate)], Compute::F32)?) } else { None },
            }),
        };
        let selection_bias = if moe.router.selection_bias {
            Some(self.param_for([id(R::SelectionBias)], Compute::F32, Use::Eval)?)
        } else {
            None
        };
        Ok(MoeBlock {
            router: moe.router.clone(),
            expert_count: moe.experts,
            hidden,
            router_weight: self.param([id(R::RouterWeight)], Compute::F32)?,
            selection_bias,
            experts: Experts {
                gate_up: self.param(gate_up, Compute::Run)?,
                down: self.param(down, Compute::Run)?,
                hidden,
                width: moe.intermediate_size,
            },
            shared,
        })
    }
}
