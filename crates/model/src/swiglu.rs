//! A SwiGLU feed-forward block, `out = (silu(x Wgᵀ) * (x Wuᵀ)) Wdᵀ`: dense layers and shared experts.

use cambium_kernels::{Backend, View, ViewMut};

use crate::context::Context;
use crate::error::Outcome;
use crate::linear::Linear;
use crate::param::Param;

/// A SwiGLU block.
pub struct SwiGlu<B: Backend> {
    /// (2F, H): the rows of the gate projection, then those of the up projection.
    pub gate_up: Linear<B>,
    /// (H, F).
    pub down: Linear<B>,
}

/// What [`SwiGlu`] keeps for its backward, besides its input.
pub struct SwiGluSaved<B: Backend> {
    gate_up: B::Buffer,
    activated: B::Buffer,
}

impl<B: Backend> SwiGlu<B> {
    /// `out = block(x)`, or `out +=` with `accumulate`; x and out (T, H).
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        x: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome<SwiGluSaved<B>> {
        let (tokens, width) = (cx.tokens(), self.down.inputs);
        let mut gate_up = cx.activation(2 * width)?;
        self.gate_up.forward(cx, tokens, x, (&mut gate_up).into(), false)?;
        let mut activated = cx.activation(width)?;
        cx.backend.swiglu_forward(tokens, width, (&gate_up).into(), (&mut activated).into())?;
        self.down.forward(cx, tokens, (&activated).into(), out, accumulate)?;
        Ok(SwiGluSaved { gate_up, activated })
    }

    /// `dx =` (or `+=` with `accumulate`) and the parameters' gradients.
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: View<'_, B::Buffer>,
        x: View<'_, B::Buffer>,
        saved: SwiGluSaved<B>,
        dx: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome {
        let (tokens, width) = (cx.tokens(), self.down.inputs);
        // out = activated · Wdᵀ
        let mut d_activated = cx.activation(width)?;
        self.down.backward_input(cx, tokens, d_out, (&mut d_activated).into(), false)?;
        self.down.backward_weight(cx, tokens, d_out, (&saved.activated).into())?;
        drop(saved.activated);
        // activated = silu(gate) * up
        let mut d_gate_up = cx.activation(2 * width)?;
        cx.backend.swiglu_backward(
            tokens,
            width,
            (&d_activated).into(),
            (&saved.gate_up).into(),
            (&mut d_gate_up).into(),
        )?;
        // gate_up = x · [Wg; Wu]ᵀ
        self.gate_up.backward_input(cx, tokens, (&d_gate_up).into(), dx, accumulate)?;
        self.gate_up.backward_weight(cx, tokens, (&d_gate_up).into(), x)
    }

    /// Its parameters.
    pub fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        self.gate_up.params_mut(out);
        self.down.params_mut(out);
    }

    /// Its parameters.
    pub fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        self.gate_up.params(out);
        self.down.params(out);
    }
}
