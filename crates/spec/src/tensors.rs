//! The tensors of a model: which there are, in which order, of which shape.
//!
//! The order is fixed: embedding, layers from first to last, final norm, output projection; within a layer attention,
//! then router, then experts by id. Anything that walks all tensors (initialisation, files, sums) can rely on it.

use crate::names::{Matrix, TensorId, TensorRole as R};
use crate::{Attention, FeedForward, ModelSpec, QkNorm};

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Which tensor.
    pub id: TensorId,
    /// Its name in a checkpoint of the model's family.
    pub name: String,
    /// Its dimensions, rows first; matrices are (out, in).
    pub shape: Vec<usize>,
}

impl ModelSpec {
    /// Every tensor of a checkpoint of this model, in a fixed order; tied models have no output projection.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = vec![self.tensor(TensorId::Embedding, vec![self.vocab_size, self.hidden_size])];
        for layer in 0..self.layer_count() {
            tensors.extend(self.layer_tensors(layer));
        }
        tensors.push(self.tensor(TensorId::FinalNorm, vec![self.hidden_size]));
        if !self.tied_embeddings {
            tensors.push(self.tensor(TensorId::OutputProjection, vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }

    /// The tensors of one layer, in the order of [`Self::tensors`]; none if the model has no such layer.
    #[must_use]
    pub fn layer_tensors(&self, layer: usize) -> Vec<TensorSpec> {
        let Some(kind) = self.layers.get(layer) else { return Vec::new() };
        let mut roles = vec![(R::AttentionNorm, vec![self.hidden_size])];
        self.attention_tensors(&mut roles);
        roles.push((R::FeedForwardNorm, vec![self.hidden_size]));
        match kind {
            FeedForward::Dense => self.swiglu(self.dense_intermediate_size.unwrap_or(0), R::Dense, &mut roles),
            FeedForward::Moe => self.moe_tensors(&mut roles),
        }
        roles.into_iter().map(|(role, shape)| self.tensor(TensorId::Layer(layer, role), shape)).collect()
    }

    fn tensor(&self, id: TensorId, shape: Vec<usize>) -> TensorSpec {
        TensorSpec { id, name: self.family.tensor_name(id), shape }
    }

    fn attention_tensors(&self, roles: &mut Vec<(R, Vec<usize>)>) {
        let h = self.hidden_size;
        match &self.attention {
            Attention::Gqa(a) => {
                let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                for (weight, bias, rows) in [
                    (R::QueryWeight, R::QueryBias, q),
                    (R::KeyWeight, R::KeyBias, kv),
                    (R::ValueWeight, R::ValueBias, kv),
                ] {
                    roles.push((weight, vec![rows, h]));
                    if a.qkv_bias {
                        roles.push((bias, vec![rows]));
                    }
                }
                let norms = match a.qk_norm {
                    QkNorm::None => None,
                    QkNorm::PerHead => Some((a.head_dim, a.head_dim)),
                    QkNorm::Whole => Some((q, kv)),
                };
                if let Some((query, key)) = norms {
                    roles.extend([(R::QueryNorm, vec![query]), (R::KeyNorm, vec![key])]);
                }
                roles.push((R::AttentionOutputWeight, vec![h, q]));
                if a.output_bias {
                    roles.push((R::AttentionOutputBias, vec![h]));
                }
            }
            Attention::Mla(a) => {
                let q = a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
                let kv_a = a.kv_lora_rank + a.qk_rope_head_dim;
                if let Some(rank) = a.q_lora_rank {
                    roles.push((R::QueryAWeight, vec![rank, h]));
                    if a.bias {
                        roles.push((R::QueryABias, vec![rank]));
                    }
                    roles.extend([(R::QueryANorm, vec![rank]), (R::QueryBWeight, vec![q, rank])]);
                } else {
                    roles.push((R::QueryWeight, vec![q, h]));
                }
                roles.push((R::KvAWeight, vec![kv_a, h]));
                if a.bias {
                    roles.push((R::KvABias, vec![kv_a]));
                }
                roles.push((R::KvANorm, vec![a.kv_lora_rank]));
                let kv_b = a.heads * (a.qk_nope_head_dim + a.v_head_dim);
                roles.push((R::KvBWeight, vec![kv_b, a.kv_lora_rank]));
                roles.push((R::AttentionOutputWeight, vec![h, a.heads * a.v_head_dim]));
                if a.bias {
                    roles.push((R::AttentionOutputBias, vec![h]));
                }
            }
        }
    }

    fn moe_tensors(&self, roles: &mut Vec<(R, Vec<usize>)>) {
        let moe = &self.moe;
        roles.push((R::RouterWeight, vec![moe.experts, self.hidden_size]));
        if moe.router.selection_bias {
            roles.push((R::SelectionBias, vec![moe.experts]));
        }
        for expert in 0..moe.experts {
            self.swiglu(moe.intermediate_size, |matrix| R::Expert { expert, matrix }, roles);
        }
        if let Some(shared) = moe.shared {
            self.swiglu(shared.intermediate_size, R::Shared, roles);
            if shared.gated {
                roles.push((R::SharedGate, vec![1, self.hidden_size]));
            }
        }
    }

    fn swiglu(&self, size: usize, role: impl Fn(Matrix) -> R, roles: &mut Vec<(R, Vec<usize>)>) {
        roles.extend(Matrix::ALL.map(|matrix| match matrix {
            Matrix::Gate | Matrix::Up => (role(matrix), vec![size, self.hidden_size]),
            Matrix::Down => (role(matrix), vec![self.hidden_size, size]),
        }));
    }
}
