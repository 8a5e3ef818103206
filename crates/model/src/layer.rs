//! One transformer layer: attention and a feed-forward block, each in a residual branch with a norm.
//!
//! Pre-norm: `x1 = x + attention(norm(x))`, `x2 = x1 + feed_forward(norm(x1))`.
//! Post-norm: `x1 = x + norm(attention(x))`, `x2 = x1 + norm(feed_forward(x1))`.

use cambium_kernels::{Backend, Buffer};
use cambium_spec::NormPlacement;

use crate::attention::{Attention, AttentionSaved};
use crate::context::Context;
use crate::error::Outcome;
use crate::moe::{BalanceWeight, MoeBlock, MoeSaved, Routing};
use crate::norm::{Norm, NormSaved};
use crate::param::Param;
use crate::swiglu::{SwiGlu, SwiGluSaved};

/// One layer.
pub struct Layer<B: Backend> {
    /// Where the norms stand.
    pub placement: NormPlacement,
    /// Norm of the attention branch.
    pub attention_norm: Norm<B>,
    /// The attention.
    pub attention: Attention<B>,
    /// Norm of the feed-forward branch.
    pub feed_forward_norm: Norm<B>,
    /// The feed-forward block.
    pub feed_forward: FeedForwardBlock<B>,
}

/// The feed-forward block of a layer.
pub enum FeedForwardBlock<B: Backend> {
    /// One SwiGLU for every token.
    Dense(SwiGlu<B>),
    /// Routed experts.
    Moe(Box<MoeBlock<B>>),
}

/// What a layer keeps for its backward.
pub enum LayerSaved<B: Backend> {
    /// All of it.
    Activations(Box<Activations<B>>),
    /// Its input only; the rest is computed again (`recompute`).
    Input(B::Buffer),
}

/// Everything that a layer's backward needs.
pub struct Activations<B: Backend> {
    attention: BranchSaved<B, AttentionSaved<B>>,
    feed_forward: BranchSaved<B, FeedForwardSaved<B>>,
}

/// What one residual branch keeps.
struct BranchSaved<B: Backend, Inner> {
    /// The residual stream as it enters the branch.
    x: B::Buffer,
    /// Pre-norm: `norm(x)`, the block's input. Post-norm: the block's output, the norm's input.
    inside: B::Buffer,
    norm: NormSaved<B>,
    block: Inner,
}

enum FeedForwardSaved<B: Backend> {
    Dense(SwiGluSaved<B>),
    Moe(MoeSaved<B>),
}

impl<B: Backend> Layer<B> {
    /// (T, H) out of x (T, H), and where a MoE's tokens went.
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        x: B::Buffer,
        recompute: bool,
    ) -> Outcome<(B::Buffer, LayerSaved<B>, Option<Routing>)> {
        let kept = if recompute { Some(copy_of(cx, &x)?) } else { None };
        let (out, activations, routing) = self.compute(cx, x)?;
        let saved = match kept {
            Some(x) => LayerSaved::Input(x),
            None => LayerSaved::Activations(Box::new(activations)),
        };
        Ok((out, saved, routing))
    }

    fn compute(&self, cx: &Context<'_, B>, x: B::Buffer) -> Outcome<(B::Buffer, Activations<B>, Option<Routing>)> {
        let (x, attention) = self.branch(cx, &self.attention_norm, x, |h, out, accumulate| {
            self.attention.forward(cx, h, out.into(), accumulate)
        })?;
        let mut routing = None;
        let (x, feed_forward) = self.branch(cx, &self.feed_forward_norm, x, |h, out, accumulate| {
            Ok(match &self.feed_forward {
                FeedForwardBlock::Dense(block) => {
                    FeedForwardSaved::Dense(block.forward(cx, h.into(), out.into(), accumulate)?)
                }
                FeedForwardBlock::Moe(block) => {
                    let (saved, routed) = block.forward(cx, h, out.into(), accumulate)?;
                    routing = Some(routed);
                    FeedForwardSaved::Moe(saved)
                }
            })
        })?;
        Ok((x, Activations { attention, feed_forward }, routing))
    }

    /// One residual branch around `block(input, out, accumulate)`.
    fn branch<Inner>(
        &self,
        cx: &Context<'_, B>,
        norm: &Norm<B>,
        x: B::Buffer,
        block: impl FnOnce(&B::Buffer, &mut B::Buffer, bool) -> Outcome<Inner>,
    ) -> Outcome<(B::Buffer, BranchSaved<B, Inner>)> {
        let mut out = copy_of(cx, &x)?;
        let mut inside = cx.activation_rows(1, x.len())?;
        let (norm, block) = match self.placement {
            NormPlacement::Pre => {
                let saved = norm.forward(cx, (&x).into(), (&mut inside).into(), false)?;
                (saved, block(&inside, &mut out, true)?)
            }
            NormPlacement::Post => {
                let block = block(&x, &mut inside, false)?;
                (norm.forward(cx, (&inside).into(), (&mut out).into(), true)?, block)
            }
        };
        Ok((out, BranchSaved { x, inside, norm, block }))
    }

    /// The gradient of x (T, H) from that of the output, and the parameters' gradients.
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: B::Buffer,
        saved: LayerSaved<B>,
        weight: BalanceWeight,
    ) -> Outcome<B::Buffer> {
        let activations = match saved {
            LayerSaved::Activations(activations) => *activations,
            LayerSaved::Input(x) => self.compute(cx, x)?.1,
        };
        let Self { placement, attention_norm, attention, feed_forward_norm, feed_forward } = self;
        let d_x =
            branch_backward(cx, *placement, feed_forward_norm, d_out, activations.feed_forward, |d, h, saved| match (
                feed_forward,
                saved,
            ) {
                (FeedForwardBlock::Dense(block), FeedForwardSaved::Dense(saved)) => {
                    let mut dh = cx.activation_rows(1, h.len())?;
                    block.backward(cx, d.into(), h.into(), saved, (&mut dh).into(), false)?;
                    Ok(dh)
                }
                (FeedForwardBlock::Moe(block), FeedForwardSaved::Moe(saved)) => block.backward(cx, d, h, saved, weight),
                _ => Err(crate::ModelError::Input("saved activations of another kind of layer".into())),
            })?;
        branch_backward(cx, *placement, attention_norm, d_x, activations.attention, |d, h, saved| {
            attention.backward(cx, d, h, saved)
        })
    }

    /// Its parameters.
    pub fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        out.push(&mut self.attention_norm.gain);
        self.attention.params_mut(out);
        out.push(&mut self.feed_forward_norm.gain);
        match &mut self.feed_forward {
            FeedForwardBlock::Dense(block) => block.params_mut(out),
            FeedForwardBlock::Moe(block) => block.params_mut(out),
        }
    }

    /// Its parameters.
    pub fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        out.push(&self.attention_norm.gain);
        self.attention.params(out);
        out.push(&self.feed_forward_norm.gain);
        match &self.feed_forward {
            FeedForwardBlock::Dense(block) => block.params(out),
            FeedForwardBlock::Moe(block) => block.params(out),
        }
    }
}

/// The gradient of x through one residual branch; `block(d_block_out, block_input, saved)` gives that of its input.
fn branch_backward<B: Backend, Inner>(
    cx: &Context<'_, B>,
    placement: NormPlacement,
    norm: &mut Norm<B>,
    mut d_out: B::Buffer,
    saved: BranchSaved<B, Inner>,
    block: impl FnOnce(&B::Buffer, &B::Buffer, Inner) -> Outcome<B::Buffer>,
) -> Outcome<B::Buffer> {
    match placement {
        // out = x + block(norm(x))
        NormPlacement::Pre => {
            let d_inside = block(&d_out, &saved.inside, saved.block)?;
            norm.backward(cx, (&d_inside).into(), (&saved.x).into(), &saved.norm, (&mut d_out).into(), true)?;
        }
        // out = x + norm(block(x))
        NormPlacement::Post => {
            let mut d_inside = cx.activation_rows(1, d_out.len())?;
            norm.backward(cx, (&d_out).into(), (&saved.inside).into(), &saved.norm, (&mut d_inside).into(), false)?;
            let d_x = block(&d_inside, &saved.x, saved.block)?;
            cx.backend.add((&d_x).into(), (&mut d_out).into())?;
        }
    }
    Ok(d_out)
}

fn copy_of<B: Backend>(cx: &Context<'_, B>, x: &B::Buffer) -> Outcome<B::Buffer> {
    let mut copy = cx.activation_rows(1, x.len())?;
    cx.backend.copy(x.into(), (&mut copy).into())?;
    Ok(copy)
}
