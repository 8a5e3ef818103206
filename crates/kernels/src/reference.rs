//! The reference backend: every kernel written to be read, in f64 on the host; the oracle of the other backends.
//!
//! Products and attention are candle-core's tensor operations, the rest plain loops. Floats of either element type are
//! kept and computed as f64 and **never rounded**: a `Bf16` buffer here holds what a bfloat16 stands for, not what it
//! can represent. So results are the exact mathematics (to f64), and what another backend differs by is that backend's
//! own rounding. Fresh memory is NaN (indices: `u32::MAX`), so that a read of what was never written shows.
//!
//! Not here: speed. Attention holds whole (T, T) score matrices, and only matrix products use more than one thread.

mod activation;
mod arguments;
mod attention;
mod buffer;
mod columns;
mod experts;
mod memory;
mod norm;
mod optimizer;
mod products;
mod rope;
mod router;
mod tokens;

use std::sync::Arc;

use candle_core::Tensor;

use self::buffer::Ledger;
pub use self::buffer::ReferenceBuffer;
use crate::backend::{Backend, Outcome};
use crate::buffer::{Element, MemoryUse, View, ViewMut};
use crate::ops::{
    AdamW, AttentionShape, Columns, Gemm, GroupedGemm, NoiseKey, RmsNorm, RopeShape, RouterLoss, RouterShape,
    RouterStats,
};

/// An argument that a kernel reads.
type In<'a> = View<'a, ReferenceBuffer>;
/// An argument that a kernel writes.
type Out<'a> = ViewMut<'a, ReferenceBuffer>;

/// The oracle of the other backends: see the module.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    ledger: Arc<Ledger>,
}

impl Reference {
    /// A reference backend with an account of memory of its own; its clones share it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Backend for Reference {
    type Buffer = ReferenceBuffer;

    fn name(&self) -> &'static str {
        "reference"
    }

    fn alloc(&self, element: Element, len: usize) -> Outcome<ReferenceBuffer> {
        Ok(ReferenceBuffer::unwritten(element, len, &self.ledger))
    }

    fn fill_zero(&self, target: Out<'_>) -> Outcome {
        memory::fill_zero(target);
        Ok(())
    }

    fn memory(&self) -> MemoryUse {
        self.ledger.memory()
    }

    fn reset_peak(&self) {
        self.ledger.reset_peak();
    }

    fn synchronize(&self) -> Outcome {
        Ok(())
    }

    fn copy(&self, source: In<'_>, target: Out<'_>) -> Outcome {
        memory::copy(source, target)
    }

    fn write(&self, source: &Tensor, target: Out<'_>) -> Outcome {
        memory::write(source, target)
    }

    fn read(&self, source: In<'_>, shape: &[usize]) -> Outcome<Tensor> {
        memory::read(source, shape)
    }

    fn write_u32(&self, source: &[u32], target: Out<'_>) -> Outcome {
        memory::write_u32(source, target)
    }

    fn read_u32(&self, source: In<'_>) -> Outcome<Vec<u32>> {
        memory::read_u32(source)
    }

    fn read_f32(&self, source: In<'_>) -> Outcome<Vec<f32>> {
        memory::read_f32(source)
    }

    fn gemm(&self, shape: Gemm, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
        products::gemm(shape, a, b, c)
    }

    fn grouped_gemm(&self, shape: GroupedGemm<'_>, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
        products::grouped_gemm(shape, a, b, c)
    }

    fn rms_norm_forward(&self, shape: RmsNorm, x: In<'_>, weight: In<'_>, y: Out<'_>, inverse_rms: Out<'_>) -> Outcome {
        norm::forward(shape, x, weight, y, inverse_rms)
    }

    fn rms_norm_backward(
        &self,
        shape: RmsNorm,
        dy: In<'_>,
        x: In<'_>,
        weight: In<'_>,
        inverse_rms: In<'_>,
        dx: Out<'_>,
        d_weight: Out<'_>,
    ) -> Outcome {
        norm::backward(shape, dy, x, weight, inverse_rms, dx, d_weight)
    }

    fn rope(&self, shape: RopeShape, table: In<'_>, x: Out<'_>) -> Outcome {
        rope::rope(shape, table, x)
    }

    fn swiglu_forward(&self, rows: usize, width: usize, gate_up: In<'_>, out: Out<'_>) -> Outcome {
        activation::swiglu_forward(rows, width, gate_up, out)
    }

    fn swiglu_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: In<'_>,
        gate_up: In<'_>,
        d_gate_up: Out<'_>,
    ) -> Outcome {
        activation::swiglu_backward(rows, width, d_out, gate_up, d_gate_up)
    }

    fn sigmoid_gate_forward(&self, rows: usize, width: usize, logit: In<'_>, x: In<'_>, out: Out<'_>) -> Outcome {
        activation::sigmoid_gate_forward(rows, width, logit, x, out)
    }

    fn sigmoid_gate_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: In<'_>,
        logit: In<'_>,
        x: In<'_>,
        dx: Out<'_>,
        d_logit: Out<'_>,
    ) -> Outcome {
        activation::sigmoid_gate_backward(rows, width, d_out, logit, x, dx, d_logit)
    }

    fn bias_forward(&self, rows: usize, width: usize, bias: In<'_>, x: Out<'_>) -> Outcome {
        activation::bias_forward(rows, width, bias, x)
    }

    fn bias_backward(&self, rows: usize, width: usize, dx: In<'_>, d_bias: Out<'_>) -> Outcome {
        activation::bias_backward(rows, width, dx, d_bias)
    }

    fn add(&self, source: In<'_>, target: Out<'_>) -> Outcome {
        activation::add(source, target)
    }

    fn copy_columns(&self, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
        columns::copy(shape, source, target)
    }

    fn sum_columns(&self, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
        columns::sum(shape, source, target)
    }

    fn attention_forward(
        &self,
        shape: AttentionShape,
        q: In<'_>,
        k: In<'_>,
        v: In<'_>,
        out: Out<'_>,
        lse: Out<'_>,
    ) -> Outcome {
        attention::forward(shape, q, k, v, out, lse)
    }

    fn attention_backward(
        &self,
        shape: AttentionShape,
        d_out: In<'_>,
        q: In<'_>,
        k: In<'_>,
        v: In<'_>,
        out: In<'_>,
        lse: In<'_>,
        dq: Out<'_>,
        dk: Out<'_>,
        dv: Out<'_>,
    ) -> Outcome {
        attention::backward(shape, d_out, q, k, v, out, lse, dq, dk, dv)
    }

    fn router_forward(
        &self,
        shape: RouterShape,
        logits: In<'_>,
        selection_bias: Option<In<'_>>,
        scores: Out<'_>,
        ids: Out<'_>,
        gates: Out<'_>,
    ) -> Outcome<RouterStats> {
        router::forward(shape, logits, selection_bias, scores, ids, gates)
    }

    fn router_backward(
        &self,
        shape: RouterShape,
        loss: RouterLoss<'_>,
        logits: In<'_>,
        scores: In<'_>,
        ids: In<'_>,
        d_gates: In<'_>,
        d_logits: Out<'_>,
    ) -> Outcome {
        router::backward(shape, loss, logits, scores, ids, d_gates, d_logits)
    }

    fn sort_by_expert(&self, ids: In<'_>, offsets: &[usize], assignment: Out<'_>, position: Out<'_>) -> Outcome {
        experts::sort_by_expert(ids, offsets, assignment, position)
    }

    fn gather_rows(&self, top_k: usize, width: usize, x: In<'_>, assignment: In<'_>, rows: Out<'_>) -> Outcome {
        experts::gather_rows(top_k, width, x, assignment, rows)
    }

    fn scatter_rows_add(&self, top_k: usize, width: usize, d_rows: In<'_>, position: In<'_>, dx: Out<'_>) -> Outcome {
        experts::scatter_rows_add(top_k, width, d_rows, position, dx)
    }

    fn combine_forward(
        &self,
        top_k: usize,
        width: usize,
        expert_out: In<'_>,
        position: In<'_>,
        gates: In<'_>,
        out: Out<'_>,
    ) -> Outcome {
        experts::combine_forward(top_k, width, expert_out, position, gates, out)
    }

    fn combine_backward(
        &self,
        top_k: usize,
        width: usize,
        d_out: In<'_>,
        expert_out: In<'_>,
        position: In<'_>,
        gates: In<'_>,
        d_expert_out: Out<'_>,
        d_gates: Out<'_>,
    ) -> Outcome {
        experts::combine_backward(top_k, width, d_out, expert_out, position, gates, d_expert_out, d_gates)
    }

    fn embedding_forward(&self, width: usize, table: In<'_>, ids: In<'_>, out: Out<'_>) -> Outcome {
        tokens::embedding_forward(width, table, ids, out)
    }

    fn embedding_backward(&self, width: usize, d_out: In<'_>, ids: In<'_>, d_table: Out<'_>) -> Outcome {
        tokens::embedding_backward(width, d_out, ids, d_table)
    }

    fn cross_entropy(
        &self,
        vocab: usize,
        grad_scale: f64,
        logits: In<'_>,
        targets: In<'_>,
        nll: Out<'_>,
        d_logits: Option<Out<'_>>,
    ) -> Outcome {
        tokens::cross_entropy(vocab, grad_scale, logits, targets, nll, d_logits)
    }

    fn adamw(
        &self,
        step: AdamW,
        grad: In<'_>,
        master: Out<'_>,
        moment1: Out<'_>,
        moment2: Out<'_>,
        compute: Option<Out<'_>>,
    ) -> Outcome {
        optimizer::adamw(step, grad, master, moment1, moment2, compute)
    }

    fn sum_squares(&self, x: In<'_>) -> Outcome<f64> {
        optimizer::sum_squares(x)
    }

    fn fill_normal(&self, key: NoiseKey, first: u64, deviation: f64, target: Out<'_>) -> Outcome {
        optimizer::fill_normal(key, first, deviation, target)
    }
}
