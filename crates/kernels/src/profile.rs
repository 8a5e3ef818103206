//! Where the time goes: a backend around a backend that notes how long each kernel took.
//!
//! It wraps the seam and changes nothing behind it, so what is measured is what runs. The lock per call costs far less
//! than a kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::Tensor;

use crate::backend::{Backend, Outcome};
use crate::buffer::{Element, MemoryUse, View, ViewMut};
use crate::ops::{
    AdamW, AttentionShape, Columns, Gemm, GroupedGemm, NoiseKey, RmsNorm, RopeShape, RouterLoss, RouterShape,
    RouterStats,
};

/// What one kernel did since the last [`Profiled::take`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Calls.
    pub calls: u64,
    /// Time from call to return.
    pub time: Duration,
    /// Floating-point operations of matrix products; 0 for kernels that memory bounds.
    pub flops: u64,
}

/// A backend whose kernels are timed.
#[derive(Clone)]
pub struct Profiled<B> {
    inner: B,
    work: Arc<Mutex<BTreeMap<&'static str, Work>>>,
}

impl<B: Backend> Profiled<B> {
    /// Times the kernels of `inner`.
    pub fn new(inner: B) -> Self {
        Self { inner, work: Arc::default() }
    }

    /// What was done since the last call, by kernel.
    #[must_use]
    pub fn take(&self) -> BTreeMap<&'static str, Work> {
        std::mem::take(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn timed<T>(&self, kernel: &'static str, flops: u64, call: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let start = Instant::now();
        let result = call().and_then(|value| self.inner.synchronize().map(|()| value));
        let time = start.elapsed();
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = work.entry(kernel).or_default();
        *entry = Work { calls: entry.calls + 1, time: entry.time + time, flops: entry.flops + flops };
        result
    }
}

impl<B: Backend> Backend for Profiled<B> {
    type Buffer = B::Buffer;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.inner.run(work)
    }

    fn alloc(&self, element: Element, len: usize) -> Outcome<B::Buffer> {
        self.timed("alloc", 0, || self.inner.alloc(element, len))
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn reset_peak(&self) {
        self.inner.reset_peak();
    }

    fn synchronize(&self) -> Outcome {
        self.inner.synchronize()
    }

    fn fill_zero(&self, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("fill_zero", 0, || self.inner.fill_zero(target))
    }

    fn copy(&self, source: View<'_, B::Buffer>, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("copy", 0, || self.inner.copy(source, target))
    }

    fn write(&self, source: &Tensor, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("write", 0, || self.inner.write(source, target))
    }

    fn read(&self, source: View<'_, B::Buffer>, shape: &[usize]) -> Outcome<Tensor> {
        self.timed("read", 0, || self.inner.read(source, shape))
    }

    fn write_u32(&self, source: &[u32], target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("write_u32", 0, || self.inner.write_u32(source, target))
    }

    fn read_u32(&self, source: View<'_, B::Buffer>) -> Outcome<Vec<u32>> {
        self.timed("read_u32", 0, || self.inner.read_u32(source))
    }

    fn read_f32(&self, source: View<'_, B::Buffer>) -> Outcome<Vec<f32>> {
        self.timed("read_f32", 0, || self.inner.read_f32(source))
    }

    fn gemm(&self, shape: Gemm, a: View<'_, B::Buffer>, b: View<'_, B::Buffer>, c: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("gemm", shape.flops(), || self.inner.gemm(shape, a, b, c))
    }

    fn grouped_gemm(
        &self,
        shape: GroupedGemm<'_>,
        a: View<'_, B::Buffer>,
        b: View<'_, B::Buffer>,
        c: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("grouped_gemm", shape.flops(), || self.inner.grouped_gemm(shape, a, b, c))
    }

    fn rms_norm_forward(
        &self,
        shape: RmsNorm,
        x: View<'_, B::Buffer>,
        weight: View<'_, B::Buffer>,
        y: ViewMut<'_, B::Buffer>,
        inverse_rms: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("rms_norm_forward", 0, || self.inner.rms_norm_forward(shape, x, weight, y, inverse_rms))
    }

    fn rms_norm_backward(
        &self,
        shape: RmsNorm,
        dy: View<'_, B::Buffer>,
        x: View<'_, B::Buffer>,
        weight: View<'_, B::Buffer>,
        inverse_rms: View<'_, B::Buffer>,
        dx: ViewMut<'_, B::Buffer>,
        d_weight: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("rms_norm_backward", 0, || {
            self.inner.rms_norm_backward(shape, dy, x, weight, inverse_rms, dx, d_weight)
        })
    }

    fn rope(&self, shape: RopeShape, table: View<'_, B::Buffer>, x: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("rope", 0, || self.inner.rope(shape, table, x))
    }

    fn swiglu_forward(
        &self,
        rows: usize,
        width: usize,
        gate_up: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("swiglu_forward", 0, || self.inner.swiglu_forward(rows, width, gate_up, out))
    }

    fn swiglu_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: View<'_, B::Buffer>,
        gate_up: View<'_, B::Buffer>,
        d_gate_up: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("swiglu_backward", 0, || self.inner.swiglu_backward(rows, width, d_out, gate_up, d_gate_up))
    }

    fn sigmoid_gate_forward(
        &self,
        rows: usize,
        width: usize,
        logit: View<'_, B::Buffer>,
        x: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("sigmoid_gate_forward", 0, || self.inner.sigmoid_gate_forward(rows, width, logit, x, out))
    }

    fn sigmoid_gate_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: View<'_, B::Buffer>,
        logit: View<'_, B::Buffer>,
        x: View<'_, B::Buffer>,
        dx: ViewMut<'_, B::Buffer>,
        d_logit: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("sigmoid_gate_backward", 0, || {
            self.inner.sigmoid_gate_backward(rows, width, d_out, logit, x, dx, d_logit)
        })
    }

    fn bias_forward(&self, rows: usize, width: usize, bias: View<'_, B::Buffer>, x: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("bias_forward", 0, || self.inner.bias_forward(rows, width, bias, x))
    }

    fn bias_backward(
        &self,
        rows: usize,
        width: usize,
        dx: View<'_, B::Buffer>,
        d_bias: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("bias_backward", 0, || self.inner.bias_backward(rows, width, dx, d_bias))
    }

    fn add(&self, source: View<'_, B::Buffer>, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("add", 0, || self.inner.add(source, target))
    }

    fn copy_columns(&self, shape: Columns, source: View<'_, B::Buffer>, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("copy_columns", 0, || self.inner.copy_columns(shape, source, target))
    }

    fn sum_columns(&self, shape: Columns, source: View<'_, B::Buffer>, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("sum_columns", 0, || self.inner.sum_columns(shape, source, target))
    }

    fn attention_forward(
        &self,
        shape: AttentionShape,
        q: View<'_, B::Buffer>,
        k: View<'_, B::Buffer>,
        v: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
        lse: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("attention_forward", shape.forward_flops(), || {
            self.inner.attention_forward(shape, q, k, v, out, lse)
        })
    }

    fn attention_backward(
        &self,
        shape: AttentionShape,
        d_out: View<'_, B::Buffer>,
        q: View<'_, B::Buffer>,
        k: View<'_, B::Buffer>,
        v: View<'_, B::Buffer>,
        out: View<'_, B::Buffer>,
        lse: View<'_, B::Buffer>,
        dq: ViewMut<'_, B::Buffer>,
        dk: ViewMut<'_, B::Buffer>,
        dv: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("attention_backward", shape.backward_flops(), || {
            self.inner.attention_backward(shape, d_out, q, k, v, out, lse, dq, dk, dv)
        })
    }

    fn router_forward(
        &self,
        shape: RouterShape,
        logits: View<'_, B::Buffer>,
        selection_bias: Option<View<'_, B::Buffer>>,
        scores: ViewMut<'_, B::Buffer>,
        ids: ViewMut<'_, B::Buffer>,
        gates: ViewMut<'_, B::Buffer>,
    ) -> Outcome<RouterStats> {
        self.timed("router_forward", 0, || self.inner.router_forward(shape, logits, selection_bias, scores, ids, gates))
    }

    fn router_backward(
        &self,
        shape: RouterShape,
        loss: RouterLoss<'_>,
        logits: View<'_, B::Buffer>,
        scores: View<'_, B::Buffer>,
        ids: View<'_, B::Buffer>,
        d_gates: View<'_, B::Buffer>,
        d_logits: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("router_backward", 0, || {
            self.inner.router_backward(shape, loss, logits, scores, ids, d_gates, d_logits)
        })
    }

    fn sort_by_expert(
        &self,
        ids: View<'_, B::Buffer>,
        offsets: &[usize],
        assignment: ViewMut<'_, B::Buffer>,
        position: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("sort_by_expert", 0, || self.inner.sort_by_expert(ids, offsets, assignment, position))
    }

    fn gather_rows(
        &self,
        top_k: usize,
        width: usize,
        x: View<'_, B::Buffer>,
        assignment: View<'_, B::Buffer>,
        rows: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("gather_rows", 0, || self.inner.gather_rows(top_k, width, x, assignment, rows))
    }

    fn scatter_rows_add(
        &self,
        top_k: usize,
        width: usize,
        d_rows: View<'_, B::Buffer>,
        position: View<'_, B::Buffer>,
        dx: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("scatter_rows_add", 0, || self.inner.scatter_rows_add(top_k, width, d_rows, position, dx))
    }

    fn combine_forward(
        &self,
        top_k: usize,
        width: usize,
        expert_out: View<'_, B::Buffer>,
        position: View<'_, B::Buffer>,
        gates: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("combine_forward", 0, || self.inner.combine_forward(top_k, width, expert_out, position, gates, out))
    }

    fn combine_backward(
        &self,
        top_k: usize,
        width: usize,
        d_out: View<'_, B::Buffer>,
        expert_out: View<'_, B::Buffer>,
        position: View<'_, B::Buffer>,
        gates: View<'_, B::Buffer>,
        d_expert_out: ViewMut<'_, B::Buffer>,
        d_gates: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("combine_backward", 0, || {
            self.inner.combine_backward(top_k, width, d_out, expert_out, position, gates, d_expert_out, d_gates)
        })
    }

    fn embedding_forward(
        &self,
        width: usize,
        table: View<'_, B::Buffer>,
        ids: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("embedding_forward", 0, || self.inner.embedding_forward(width, table, ids, out))
    }

    fn embedding_backward(
        &self,
        width: usize,
        d_out: View<'_, B::Buffer>,
        ids: View<'_, B::Buffer>,
        d_table: ViewMut<'_, B::Buffer>,
    ) -> Outcome {
        self.timed("embedding_backward", 0, || self.inner.embedding_backward(width, d_out, ids, d_table))
    }

    fn cross_entropy(
        &self,
        vocab: usize,
        grad_scale: f64,
        logits: View<'_, B::Buffer>,
        targets: View<'_, B::Buffer>,
        nll: ViewMut<'_, B::Buffer>,
        d_logits: Option<ViewMut<'_, B::Buffer>>,
    ) -> Outcome {
        self.timed("cross_entropy", 0, || self.inner.cross_entropy(vocab, grad_scale, logits, targets, nll, d_logits))
    }

    fn adamw(
        &self,
        step: AdamW,
        grad: View<'_, B::Buffer>,
        master: ViewMut<'_, B::Buffer>,
        moment1: ViewMut<'_, B::Buffer>,
        moment2: ViewMut<'_, B::Buffer>,
        compute: Option<ViewMut<'_, B::Buffer>>,
    ) -> Outcome {
        self.timed("adamw", 0, || self.inner.adamw(step, grad, master, moment1, moment2, compute))
    }

    fn sum_squares(&self, x: View<'_, B::Buffer>) -> Outcome<f64> {
        self.timed("sum_squares", 0, || self.inner.sum_squares(x))
    }

    fn fill_normal(&self, key: NoiseKey, first: u64, deviation: f64, target: ViewMut<'_, B::Buffer>) -> Outcome {
        self.timed("fill_normal", 0, || self.inner.fill_normal(key, first, deviation, target))
    }
}
