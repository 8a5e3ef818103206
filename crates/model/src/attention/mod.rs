//! Attention of a layer: grouped-query ([`gqa`]) or multi-head latent ([`mla`]).

pub mod gqa;
pub mod mla;

use cambium_kernels::{AttentionShape, Backend, ViewMut};

use crate::context::Context;
use crate::error::Outcome;
use crate::param::Param;

/// A layer's attention.
pub enum Attention<B: Backend> {
    /// Grouped-query attention.
    Gqa(gqa::GqaAttention<B>),
    /// Multi-head latent attention.
    Mla(mla::MlaAttention<B>),
}

/// What an attention keeps for its backward, besides its input.
pub enum AttentionSaved<B: Backend> {
    /// Of grouped-query attention.
    Gqa(gqa::GqaSaved<B>),
    /// Of multi-head latent attention.
    Mla(mla::MlaSaved<B>),
}

impl<B: Backend> Attention<B> {
    /// `out = attention(h)`, or `out +=` with `accumulate`; h and out (T, H).
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        h: &B::Buffer,
        out: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome<AttentionSaved<B>> {
        Ok(match self {
            Self::Gqa(attention) => AttentionSaved::Gqa(attention.forward(cx, h, out, accumulate)?),
            Self::Mla(attention) => AttentionSaved::Mla(attention.forward(cx, h, out, accumulate)?),
        })
    }

    /// The gradient of h (T, H) from that of the output, and the parameters' gradients.
    ///
    /// # Errors
    /// If a kernel fails, or `saved` is of another kind of attention.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: &B::Buffer,
        h: &B::Buffer,
        saved: AttentionSaved<B>,
    ) -> Outcome<B::Buffer> {
        match (self, saved) {
            (Self::Gqa(attention), AttentionSaved::Gqa(saved)) => attention.backward(cx, d_out, h, saved),
            (Self::Mla(attention), AttentionSaved::Mla(saved)) => attention.backward(cx, d_out, h, saved),
            _ => Err(crate::ModelError::Input("saved activations of another kind of attention".into())),
        }
    }

    /// Its parameters.
    pub fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        match self {
            Self::Gqa(attention) => attention.params_mut(out),
            Self::Mla(attention) => attention.params_mut(out),
        }
    }

    /// Its parameters.
    pub fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        match self {
            Self::Gqa(attention) => attention.params(out),
            Self::Mla(attention) => attention.params(out),
        }
    }
}

/// Softmax attention between projections that already stand by head: what both kinds share.
pub(crate) struct Core<B: Backend> {
    pub(crate) q: B::Buffer,
    pub(crate) k: B::Buffer,
    pub(crate) v: B::Buffer,
    pub(crate) out: B::Buffer,
    lse: B::Buffer,
}

impl<B: Backend> Core<B> {
    pub(crate) fn forward(
        cx: &Context<'_, B>,
        shape: AttentionShape,
        q: B::Buffer,
        k: B::Buffer,
        v: B::Buffer,
    ) -> Outcome<Self> {
        let mut out = cx.activation(shape.heads * shape.v_dim)?;
        let mut lse = cx.f32(shape.batch * shape.heads * shape.seq_len)?;
        cx.backend.attention_forward(
            shape,
            (&q).into(),
            (&k).into(),
            (&v).into(),
            (&mut out).into(),
            (&mut lse).into(),
        )?;
        Ok(Self { q, k, v, out, lse })
    }

    /// (dq, dk, dv).
    pub(crate) fn backward(
        &self,
        cx: &Context<'_, B>,
        shape: AttentionShape,
        d_out: &B::Buffer,
    ) -> Outcome<(B::Buffer, B::Buffer, B::Buffer)> {
        let mut dq = cx.activation(shape.heads * shape.qk_dim)?;
        let mut dk = cx.activation(shape.kv_heads * shape.qk_dim)?;
        let mut dv = cx.activation(shape.kv_heads * shape.v_dim)?;
        cx.backend.attention_backward(
            shape,
            d_out.into(),
            (&self.q).into(),
            (&self.k).into(),
            (&self.v).into(),
            (&self.out).into(),
            (&self.lse).into(),
            (&mut dq).into(),
            (&mut dk).into(),
            (&mut dv).into(),
        )?;
        Ok((dq, dk, dv))
    }
}
