//! A shard of experts: rows sorted by expert in, rows out. Knows nothing of tokens, gates or the router.
//!
//! The seam of expert parallelism: the same value computes beside the stage that routes to it or on a worker of its own.
//! Each expert's rows of a microbatch are one product, so an expert's numbers do not depend on which others live here.

use cambium_kernels::{Backend, GroupedGemm, GroupedProduct};

use crate::context::Context;
use crate::error::Outcome;
use crate::param::Param;

/// Experts of one layer, in order of their global ids.
pub struct Experts<B: Backend> {
    /// Per expert (2F, H): gate rows, then up rows.
    pub gate_up: Param<B>,
    /// Per expert (H, F).
    pub down: Param<B>,
    /// H.
    pub hidden: usize,
    /// F.
    pub width: usize,
}

/// What [`Experts`] keep for their backward, besides their input rows.
pub struct ExpertsSaved<B: Backend> {
    gate_up: B::Buffer,
    activated: B::Buffer,
}

impl<B: Backend> Experts<B> {
    /// (A, H) out of `rows` (A, H); `offsets` (experts + 1) says where each expert's rows begin.
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        rows: &B::Buffer,
        offsets: &[usize],
    ) -> Outcome<(B::Buffer, ExpertsSaved<B>)> {
        let (count, width) = (offsets[offsets.len() - 1], self.width);
        let mut gate_up = cx.activation_rows(count, 2 * width)?;
        let product = GroupedProduct::Forward;
        let first = GroupedGemm { product, n: 2 * width, k: self.hidden, offsets, accumulate: false };
        cx.backend.grouped_gemm(first, rows.into(), self.gate_up.weight(), (&mut gate_up).into())?;
        let mut activated = cx.activation_rows(count, width)?;
        cx.backend.swiglu_forward(count, width, (&gate_up).into(), (&mut activated).into())?;
        let mut out = cx.activation_rows(count, self.hidden)?;
        let second = GroupedGemm { product, n: self.hidden, k: width, offsets, accumulate: false };
        cx.backend.grouped_gemm(second, (&activated).into(), self.down.weight(), (&mut out).into())?;
        Ok((out, ExpertsSaved { gate_up, activated }))
    }

    /// The gradient of the rows (A, H), and the parameters' gradients.
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: &B::Buffer,
        rows: &B::Buffer,
        offsets: &[usize],
        saved: ExpertsSaved<B>,
    ) -> Outcome<B::Buffer> {
        let (count, width, hidden) = (offsets[offsets.len() - 1], self.width, self.hidden);
        let input = |n, k| GroupedGemm { product: GroupedProduct::InputGradient, n, k, offsets, accumulate: false };
        let weight =
            |n, k, accumulate| GroupedGemm { product: GroupedProduct::WeightGradient, n, k, offsets, accumulate };
        // out = activated · Wdᵀ
        let mut d_activated = cx.activation_rows(count, width)?;
        cx.backend.grouped_gemm(input(hidden, width), d_out.into(), self.down.weight(), (&mut d_activated).into())?;
        let (grad, accumulate) = self.down.grad()?;
        cx.backend.grouped_gemm(weight(hidden, width, accumulate), d_out.into(), (&saved.activated).into(), grad)?;
        drop(saved.activated);
        // activated = silu(gate) * up
        let mut d_gate_up = cx.activation_rows(count, 2 * width)?;
        cx.backend.swiglu_backward(
            count,
            width,
            (&d_activated).into(),
            (&saved.gate_up).into(),
            (&mut d_gate_up).into(),
        )?;
        drop((d_activated, saved.gate_up));
        // gate_up = rows · [Wg; Wu]ᵀ
        let (grad, accumulate) = self.gate_up.grad()?;
        cx.backend.grouped_gemm(weight(2 * width, hidden, accumulate), (&d_gate_up).into(), rows.into(), grad)?;
        let mut d_rows = cx.activation_rows(count, hidden)?;
        cx.backend.grouped_gemm(
            input(2 * width, hidden),
            (&d_gate_up).into(),
            self.gate_up.weight(),
            (&mut d_rows).into(),
        )?;
        Ok(d_rows)
    }
}
