//! Grouped-query attention with rotary positions and optional query/key norm.
//!
//! `q = h Wqᵀ (+ b)`, `k`, `v` alike; `q = rope(norm(q))`, `k = rope(norm(k))`; `out = softmax(q kᵀ / sqrt(D)) v · Woᵀ`.

use cambium_kernels::{AttentionShape, Backend, RopeShape, ViewMut};
use cambium_spec::Gqa;

use super::Core;
use crate::context::Context;
use crate::error::Outcome;
use crate::linear::Linear;
use crate::norm::{Norm, NormSaved};
use crate::param::Param;

/// Grouped-query attention.
pub struct GqaAttention<B: Backend> {
    /// N, G, D and the switches.
    pub spec: Gqa,
    /// Pairs of the rotation are neighbours.
    pub interleaved: bool,
    /// (N*D, H).
    pub query: Linear<B>,
    /// (G*D, H).
    pub key: Linear<B>,
    /// (G*D, H).
    pub value: Linear<B>,
    /// (H, N*D).
    pub output: Linear<B>,
    /// Query norm: over D or N*D.
    pub query_norm: Option<Norm<B>>,
    /// Key norm: over D or G*D.
    pub key_norm: Option<Norm<B>>,
}

/// What a query or key norm keeps: its input, and its own.
type Normed<B> = (<B as Backend>::Buffer, NormSaved<B>);

/// What [`GqaAttention`] keeps for its backward, besides its input.
pub struct GqaSaved<B: Backend> {
    query_norm: Option<Normed<B>>,
    key_norm: Option<Normed<B>>,
    core: Core<B>,
}

impl<B: Backend> GqaAttention<B> {
    pub(super) fn forward(
        &self,
        cx: &Context<'_, B>,
        h: &B::Buffer,
        out: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome<GqaSaved<B>> {
        let (q, query_norm) = self.project(cx, &self.query, self.query_norm.as_ref(), self.spec.heads, h)?;
        let (k, key_norm) = self.project(cx, &self.key, self.key_norm.as_ref(), self.spec.kv_heads, h)?;
        let mut v = cx.activation(self.value.outputs)?;
        self.value.forward(cx, cx.tokens(), h.into(), (&mut v).into(), false)?;
        let core = Core::forward(cx, self.shape(cx), q, k, v)?;
        self.output.forward(cx, cx.tokens(), (&core.out).into(), out, accumulate)?;
        Ok(GqaSaved { query_norm, key_norm, core })
    }

    /// Queries or keys: projected, normed, rotated.
    fn project(
        &self,
        cx: &Context<'_, B>,
        linear: &Linear<B>,
        norm: Option<&Norm<B>>,
        heads: usize,
        h: &B::Buffer,
    ) -> Outcome<(B::Buffer, Option<Normed<B>>)> {
        let mut projected = cx.activation(linear.outputs)?;
        linear.forward(cx, cx.tokens(), h.into(), (&mut projected).into(), false)?;
        let (mut rotated, saved) = match norm {
            None => (projected, None),
            Some(norm) => {
                let mut normed = cx.activation(linear.outputs)?;
                let saved = norm.forward(cx, (&projected).into(), (&mut normed).into(), false)?;
                (normed, Some((projected, saved)))
            }
        };
        cx.backend.rope(self.rope(cx, heads, false), cx.rope.into(), (&mut rotated).into())?;
        Ok((rotated, saved))
    }

    pub(super) fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: &B::Buffer,
        h: &B::Buffer,
        saved: GqaSaved<B>,
    ) -> Outcome<B::Buffer> {
        let tokens = cx.tokens();
        // out = attended · Woᵀ
        let mut d_attended = cx.activation(self.output.inputs)?;
        self.output.backward_input(cx, tokens, d_out.into(), (&mut d_attended).into(), false)?;
        self.output.backward_weight(cx, tokens, d_out.into(), (&saved.core.out).into())?;
        // attended = softmax(q kᵀ / sqrt(D)) v
        let shape = self.shape(cx);
        let (mut dq, mut dk, dv) = saved.core.backward(cx, shape, &d_attended)?;
        drop((d_attended, saved.core));
        // q = rope(norm(h Wqᵀ + b)), k alike
        let (query_rope, key_rope) = (self.rope(cx, self.spec.heads, true), self.rope(cx, self.spec.kv_heads, true));
        cx.backend.rope(query_rope, cx.rope.into(), (&mut dq).into())?;
        cx.backend.rope(key_rope, cx.rope.into(), (&mut dk).into())?;
        let dq = norm_backward(cx, self.query_norm.as_mut(), saved.query_norm, dq)?;
        let dk = norm_backward(cx, self.key_norm.as_mut(), saved.key_norm, dk)?;
        let mut dh = cx.activation(self.query.inputs)?;
        for (index, (linear, d)) in
            [(&mut self.query, &dq), (&mut self.key, &dk), (&mut self.value, &dv)].into_iter().enumerate()
        {
            linear.backward_input(cx, tokens, d.into(), (&mut dh).into(), index > 0)?;
            linear.backward_weight(cx, tokens, d.into(), h.into())?;
        }
        Ok(dh)
    }

    fn shape(&self, cx: &Context<'_, B>) -> AttentionShape {
        let dim = self.spec.head_dim;
        AttentionShape {
            batch: cx.batch,
            seq_len: cx.seq_len,
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            qk_dim: dim,
            v_dim: dim,
            scale: (dim as f64).powf(-0.5),
        }
    }

    fn rope(&self, cx: &Context<'_, B>, heads: usize, inverse: bool) -> RopeShape {
        RopeShape {
            tokens: cx.tokens(),
            seq_len: cx.seq_len,
            heads,
            head_dim: self.spec.head_dim,
            rotary_start: 0,
            rotary_dim: self.spec.head_dim,
            interleaved: self.interleaved,
            inverse,
        }
    }

    pub(super) fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        for linear in [&mut self.query, &mut self.key, &mut self.value, &mut self.output] {
            linear.params_mut(out);
        }
        out.extend(self.query_norm.as_mut().map(|norm| &mut norm.gain));
        out.extend(self.key_norm.as_mut().map(|norm| &mut norm.gain));
    }

    pub(super) fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        for linear in [&self.query, &self.key, &self.value, &self.output] {
            linear.params(out);
        }
        out.extend(self.query_norm.as_ref().map(|norm| &norm.gain));
        out.extend(self.key_norm.as_ref().map(|norm| &norm.gain));
    }
}

fn norm_backward<B: Backend>(
    cx: &Context<'_, B>,
    norm: Option<&mut Norm<B>>,
    saved: Option<Normed<B>>,
    d_normed: B::Buffer,
) -> Outcome<B::Buffer> {
    let (Some(norm), Some((projected, saved))) = (norm, saved) else { return Ok(d_normed) };
    let mut d_projected = cx.activation_rows(1, cambium_kernels::Buffer::len(&d_normed))?;
    norm.backward(cx, (&d_normed).into(), (&projected).into(), &saved, (&mut d_projected).into(), false)?;
    Ok(d_projected)
}
