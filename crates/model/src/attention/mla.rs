//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
//!
//! Queries: `q = norm(h Wqaᵀ) Wqbᵀ`, or `h Wqᵀ`. Keys and values: `[c | k_pe] = h Wkvaᵀ`, `[k_nope | v] = norm(c) Wkvbᵀ`
//! by head. A head's query and key are `[nope | rope(pe)]`; all heads share one `k_pe`.

use cambium_kernels::{AttentionShape, Backend, Columns, RopeShape, ViewMut};
use cambium_spec::Mla;

use super::Core;
use crate::context::Context;
use crate::error::Outcome;
use crate::linear::Linear;
use crate::norm::{Norm, NormSaved};
use crate::param::Param;

/// Multi-head latent attention.
pub struct MlaAttention<B: Backend> {
    /// Ranks and head sizes.
    pub spec: Mla,
    /// Pairs of the rotation are neighbours.
    pub interleaved: bool,
    /// The low-rank part of the queries, if there is one.
    pub query_latent: Option<QueryLatent<B>>,
    /// (N*(nope + rope), query rank or H).
    pub query: Linear<B>,
    /// (kv rank + rope, H).
    pub kv_latent: Linear<B>,
    /// Over the kv rank.
    pub kv_norm: Norm<B>,
    /// (N*(nope + v), kv rank).
    pub kv: Linear<B>,
    /// (H, N*v).
    pub output: Linear<B>,
}

/// `norm(h Wqaᵀ)`.
pub struct QueryLatent<B: Backend> {
    /// (query rank, H).
    pub linear: Linear<B>,
    /// Over the query rank.
    pub norm: Norm<B>,
}

/// What [`MlaAttention`] keeps for its backward, besides its input.
pub struct MlaSaved<B: Backend> {
    query: Option<Latent<B>>,
    kv: Latent<B>,
    core: Core<B>,
}

/// A latent before and after its norm.
struct Latent<B: Backend> {
    raw: B::Buffer,
    normed: B::Buffer,
    saved: NormSaved<B>,
}

impl<B: Backend> MlaAttention<B> {
    pub(super) fn forward(
        &self,
        cx: &Context<'_, B>,
        h: &B::Buffer,
        out: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome<MlaSaved<B>> {
        let tokens = cx.tokens();
        let widths = Widths::of(&self.spec);

        let query = match &self.query_latent {
            None => None,
            Some(latent) => {
                let mut raw = cx.activation(latent.linear.outputs)?;
                latent.linear.forward(cx, tokens, h.into(), (&mut raw).into(), false)?;
                Some(Latent::forward(cx, &latent.norm, raw)?)
            }
        };
        let mut q = cx.activation(self.query.outputs)?;
        let query_input = query.as_ref().map_or(h, |latent| &latent.normed);
        self.query.forward(cx, tokens, query_input.into(), (&mut q).into(), false)?;
        cx.backend.rope(self.query_rope(cx, false), cx.rope.into(), (&mut q).into())?;

        let mut joint = cx.activation(widths.joint)?;
        self.kv_latent.forward(cx, tokens, h.into(), (&mut joint).into(), false)?;
        cx.backend.rope(self.key_rope(cx, false), cx.rope.into(), (&mut joint).into())?;
        let mut raw = cx.activation(widths.latent)?;
        cx.backend.copy_columns(widths.latent_of_joint(tokens), (&joint).into(), (&mut raw).into())?;
        let kv = Latent::forward(cx, &self.kv_norm, raw)?;
        let mut expanded = cx.activation(self.kv.outputs)?;
        self.kv.forward(cx, tokens, (&kv.normed).into(), (&mut expanded).into(), false)?;

        let mut k = cx.activation(widths.heads * widths.qk)?;
        let mut v = cx.activation(widths.heads * widths.v)?;
        cx.backend.copy_columns(widths.key_of_expanded(tokens), (&expanded).into(), (&mut k).into())?;
        cx.backend.copy_columns(widths.position_of_joint(tokens), (&joint).into(), (&mut k).into())?;
        cx.backend.copy_columns(widths.value_of_expanded(tokens), (&expanded).into(), (&mut v).into())?;
        drop((joint, expanded));

        let core = Core::forward(cx, self.shape(cx), q, k, v)?;
        self.output.forward(cx, tokens, (&core.out).into(), out, accumulate)?;
        Ok(MlaSaved { query, kv, core })
    }

    pub(super) fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: &B::Buffer,
        h: &B::Buffer,
        saved: MlaSaved<B>,
    ) -> Outcome<B::Buffer> {
        let tokens = cx.tokens();
        let widths = Widths::of(&self.spec);
        // out = attended · Woᵀ
        let mut d_attended = cx.activation(self.output.inputs)?;
        self.output.backward_input(cx, tokens, d_out.into(), (&mut d_attended).into(), false)?;
        self.output.backward_weight(cx, tokens, d_out.into(), (&saved.core.out).into())?;
        let (mut dq, dk, dv) = saved.core.backward(cx, self.shape(cx), &d_attended)?;
        drop((d_attended, saved.core));

        // [k_nope | v] = norm(c) Wkvbᵀ, k = [k_nope | k_pe of every head]
        let mut d_expanded = cx.activation(self.kv.outputs)?;
        let mut d_joint = cx.activation(widths.joint)?;
        let back = cx.backend;
        back.copy_columns(reversed(widths.key_of_expanded(tokens)), (&dk).into(), (&mut d_expanded).into())?;
        back.copy_columns(reversed(widths.value_of_expanded(tokens)), (&dv).into(), (&mut d_expanded).into())?;
        back.sum_columns(reversed(widths.position_of_joint(tokens)), (&dk).into(), (&mut d_joint).into())?;
        drop((dk, dv));
        let mut d_normed = cx.activation(widths.latent)?;
        self.kv.backward_input(cx, tokens, (&d_expanded).into(), (&mut d_normed).into(), false)?;
        self.kv.backward_weight(cx, tokens, (&d_expanded).into(), (&saved.kv.normed).into())?;
        drop(d_expanded);
        let d_latent = saved.kv.backward(cx, &mut self.kv_norm, &d_normed)?;
        // [c | k_pe] = h Wkvaᵀ, k_pe rotated
        back.copy_columns(reversed(widths.latent_of_joint(tokens)), (&d_latent).into(), (&mut d_joint).into())?;
        back.rope(self.key_rope(cx, true), cx.rope.into(), (&mut d_joint).into())?;
        let mut dh = cx.activation(self.kv_latent.inputs)?;
        self.kv_latent.backward_input(cx, tokens, (&d_joint).into(), (&mut dh).into(), false)?;
        self.kv_latent.backward_weight(cx, tokens, (&d_joint).into(), h.into())?;

        // q = rope(norm(h Wqaᵀ) Wqbᵀ), or rope(h Wqᵀ)
        back.rope(self.query_rope(cx, true), cx.rope.into(), (&mut dq).into())?;
        match (&mut self.query_latent, saved.query) {
            (Some(latent), Some(query)) => {
                let mut d_normed = cx.activation(self.query.inputs)?;
                self.query.backward_input(cx, tokens, (&dq).into(), (&mut d_normed).into(), false)?;
                self.query.backward_weight(cx, tokens, (&dq).into(), (&query.normed).into())?;
                let d_raw = query.backward(cx, &mut latent.norm, &d_normed)?;
                latent.linear.backward_input(cx, tokens, (&d_raw).into(), (&mut dh).into(), true)?;
                latent.linear.backward_weight(cx, tokens, (&d_raw).into(), h.into())?;
            }
            _ => {
                self.query.backward_input(cx, tokens, (&dq).into(), (&mut dh).into(), true)?;
                self.query.backward_weight(cx, tokens, (&dq).into(), h.into())?;
            }
        }
        Ok(dh)
    }

    fn shape(&self, cx: &Context<'_, B>) -> AttentionShape {
        let qk_dim = self.spec.qk_nope_head_dim + self.spec.qk_rope_head_dim;
        AttentionShape {
            batch: cx.batch,
            seq_len: cx.seq_len,
            heads: self.spec.heads,
            kv_heads: self.spec.heads,
            qk_dim,
            v_dim: self.spec.v_head_dim,
            scale: (qk_dim as f64).powf(-0.5),
        }
    }

    fn query_rope(&self, cx: &Context<'_, B>, inverse: bool) -> RopeShape {
        let head_dim = self.spec.qk_nope_head_dim + self.spec.qk_rope_head_dim;
        self.rope(cx, self.spec.heads, head_dim, self.spec.qk_nope_head_dim, inverse)
    }

    /// The shared key position stands behind the latent in one row: one head with the latent as its fixed part.
    fn key_rope(&self, cx: &Context<'_, B>, inverse: bool) -> RopeShape {
        self.rope(cx, 1, self.spec.kv_lora_rank + self.spec.qk_rope_head_dim, self.spec.kv_lora_rank, inverse)
    }

    fn rope(&self, cx: &Context<'_, B>, heads: usize, head_dim: usize, start: usize, inverse: bool) -> RopeShape {
        RopeShape {
            tokens: cx.tokens(),
            seq_len: cx.seq_len,
            heads,
            head_dim,
            rotary_start: start,
            rotary_dim: self.spec.qk_rope_head_dim,
            interleaved: self.interleaved,
            inverse,
        }
    }

    pub(super) fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        if let Some(latent) = &mut self.query_latent {
            latent.linear.params_mut(out);
            out.push(&mut latent.norm.gain);
        }
        self.query.params_mut(out);
        self.kv_latent.params_mut(out);
        out.push(&mut self.kv_norm.gain);
        self.kv.params_mut(out);
        self.output.params_mut(out);
    }

    pub(super) fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        if let Some(latent) = &self.query_latent {
            latent.linear.params(out);
            out.push(&latent.norm.gain);
        }
        self.query.params(out);
        self.kv_latent.params(out);
        out.push(&self.kv_norm.gain);
        self.kv.params(out);
        self.output.params(out);
    }
}

impl<B: Backend> Latent<B> {
    fn forward(cx: &Context<'_, B>, norm: &Norm<B>, raw: B::Buffer) -> Outcome<Self> {
        let mut normed = cx.activation(norm.width)?;
        let saved = norm.forward(cx, (&raw).into(), (&mut normed).into(), false)?;
        Ok(Self { raw, normed, saved })
    }

    fn backward(&self, cx: &Context<'_, B>, norm: &mut Norm<B>, d_normed: &B::Buffer) -> Outcome<B::Buffer> {
        let mut d_raw = cx.activation(norm.width)?;
        norm.backward(cx, d_normed.into(), (&self.raw).into(), &self.saved, (&mut d_raw).into(), false)?;
        Ok(d_raw)
    }
}

/// Where the parts of a row or of a head stand.
struct Widths {
    heads: usize,
    nope: usize,
    rope: usize,
    qk: usize,
    v: usize,
    latent: usize,
    joint: usize,
}

impl Widths {
    fn of(spec: &Mla) -> Self {
        let (nope, rope, latent) = (spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.kv_lora_rank);
        Self { heads: spec.heads, nope, rope, qk: nope + rope, v: spec.v_head_dim, latent, joint: latent + rope }
    }

    fn latent_of_joint(&self, tokens: usize) -> Columns {
        Columns {
            rows: tokens,
            columns: self.latent,
            source_width: self.joint,
            source_start: 0,
            target_width: self.latent,
            target_start: 0,
            repeat: 1,
        }
    }

    fn position_of_joint(&self, tokens: usize) -> Columns {
        Columns {
            rows: tokens * self.heads,
            columns: self.rope,
            source_width: self.joint,
            source_start: self.latent,
            target_width: self.qk,
            target_start: self.nope,
            repeat: self.heads,
        }
    }

    fn key_of_expanded(&self, tokens: usize) -> Columns {
        Columns {
            rows: tokens * self.heads,
            columns: self.nope,
            source_width: self.nope + self.v,
            source_start: 0,
            target_width: self.qk,
            target_start: 0,
            repeat: 1,
        }
    }

    fn value_of_expanded(&self, tokens: usize) -> Columns {
        Columns {
            rows: tokens * self.heads,
            columns: self.v,
            source_width: self.nope + self.v,
            source_start: self.nope,
            target_width: self.v,
            target_start: 0,
            repeat: 1,
        }
    }
}

/// The way back of a copy of columns.
fn reversed(columns: Columns) -> Columns {
    Columns {
        source_width: columns.target_width,
        source_start: columns.target_start,
        target_width: columns.source_width,
        target_start: columns.source_start,
        ..columns
    }
}
