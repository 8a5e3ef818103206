//! [`Cuda`] as a [`Backend`].

use candle_core::Tensor;

use super::arguments::{Arguments, In, Out};
use super::buffer::CudaBuffer;
use super::{Cuda, activation, columns, failure, memory, norm, optimizer, products, rope, routing, tokens};
use crate::backend::{Backend, Outcome};
use crate::buffer::{Element, MemoryUse};
use crate::error::KernelError;
use crate::ops::{
    AdamW, AttentionShape, Columns, Gemm, GroupedGemm, NoiseKey, RmsNorm, RopeShape, RouterLoss, RouterShape,
    RouterStats,
};

impl Cuda {
    fn at(&self, kernel: &'static str) -> Arguments<'_> {
        Arguments(kernel, &self.device)
    }
}

fn missing<T>(kernel: &'static str) -> Outcome<T> {
    Err(KernelError::Missing { backend: "cuda", kernel })
}

impl Backend for Cuda {
    type Buffer = CudaBuffer;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn alloc(&self, element: Element, len: usize) -> Outcome<CudaBuffer> {
        CudaBuffer::new(&self.device, element, len)
    }

    fn fill_zero(&self, target: Out<'_>) -> Outcome {
        memory::fill_zero(self.at("fill_zero"), target)
    }

    fn copy(&self, source: In<'_>, target: Out<'_>) -> Outcome {
        memory::copy(self.at("copy"), source, target)
    }

    fn write(&self, source: &Tensor, target: Out<'_>) -> Outcome {
        memory::write(self.at("write"), source, target)
    }

    fn read(&self, source: In<'_>, shape: &[usize]) -> Outcome<Tensor> {
        memory::read(self.at("read"), source, shape)
    }

    fn write_u32(&self, source: &[u32], target: Out<'_>) -> Outcome {
        memory::write_u32(self.at("write_u32"), source, target)
    }

    fn read_u32(&self, source: In<'_>) -> Outcome<Vec<u32>> {
        memory::read_u32(self.at("read_u32"), source)
    }

    fn read_f32(&self, source: In<'_>) -> Outcome<Vec<f32>> {
        memory::read_f32(self.at("read_f32"), source)
    }

    fn memory(&self) -> MemoryUse {
        self.device.pool().memory()
    }

    fn reset_peak(&self) {
        self.device.pool().reset_peak();
    }

    fn synchronize(&self) -> Outcome {
        self.device.stream().synchronize().map_err(failure::driver("waiting for the device"))
    }

    fn gemm(&self, shape: Gemm, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
        products::gemm(self.at("gemm"), shape, a, b, c)
    }

    fn grouped_gemm(&self, shape: GroupedGemm<'_>, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
        products::grouped_gemm(self.at("grouped_gemm"), shape, a, b, c)
    }

    fn rms_norm_forward(&self, shape: RmsNorm, x: In<'_>, weight: In<'_>, y: Out<'_>, inverse_rms: Out<'_>) -> Outcome {
        norm::forward(self.at("rms_norm_forward"), shape, x, weight, y, inverse_rms)
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
        norm::backward(self.at("rms_norm_backward"), shape, dy, x, weight, inverse_rms, dx, d_weight)
    }

    fn rope(&self, shape: RopeShape, table: In<'_>, x: Out<'_>) -> Outcome {
        rope::rope(self.at("rope"), shape, table, x)
    }

    fn swiglu_forward(&self, rows: usize, width: usize, gate_up: In<'_>, out: Out<'_>) -> Outcome {
        activation::swiglu_forward(self.at("swiglu_forward"), rows, width, gate_up, out)
    }

    fn swiglu_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: In<'_>,
        gate_up: In<'_>,
        d_gate_up: Out<'_>,
    ) -> Outcome {
        activation::swiglu_backward(self.at("swiglu_backward"), rows, width, d_out, gate_up, d_gate_up)
    }

    fn sigmoid_gate_forward(&self, rows: usize, width: usize, logit: In<'_>, x: In<'_>, out: Out<'_>) -> Outcome {
        activation::sigmoid_gate_forward(self.at("sigmoid_gate_forward"), rows, width, logit, x, out)
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
        let at = self.at("sigmoid_gate_backward");
        activation::sigmoid_gate_backward(at, rows, width, d_out, logit, x, dx, d_logit)
    }

    fn bias_forward(&self, rows: usize, width: usize, bias: In<'_>, x: Out<'_>) -> Outcome {
        columns::bias_forward(self.at("bias_forward"), rows, width, bias, x)
    }

    fn bias_backward(&self, rows: usize, width: usize, dx: In<'_>, d_bias: Out<'_>) -> Outcome {
        columns::bias_backward(self.at("bias_backward"), rows, width, dx, d_bias)
    }

    fn add(&self, source: In<'_>, target: Out<'_>) -> Outcome {
        columns::add(self.at("add"), source, target)
    }

    fn copy_columns(&self, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
        columns::copy_columns(self.at("copy_columns"), shape, source, target)
    }

    fn sum_columns(&self, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
        columns::sum_columns(self.at("sum_columns"), shape, source, target)
    }

    fn attention_forward(
        &self,
        _shape: AttentionShape,
        _q: In<'_>,
        _k: In<'_>,
        _v: In<'_>,
        _out: Out<'_>,
        _lse: Out<'_>,
    ) -> Outcome {
        missing("attention_forward")
    }

    fn attention_backward(
        &self,
        _shape: AttentionShape,
        _d_out: In<'_>,
        _q: In<'_>,
        _k: In<'_>,
        _v: In<'_>,
        _out: In<'_>,
        _lse: In<'_>,
        _dq: Out<'_>,
        _dk: Out<'_>,
        _dv: Out<'_>,
    ) -> Outcome {
        missing("attention_backward")
    }

    fn router_forward(
        &self,
        _shape: RouterShape,
        _logits: In<'_>,
        _selection_bias: Option<In<'_>>,
        _scores: Out<'_>,
        _ids: Out<'_>,
        _gates: Out<'_>,
    ) -> Outcome<RouterStats> {
        missing("router_forward")
    }

    fn router_backward(
        &self,
        _shape: RouterShape,
        _loss: RouterLoss<'_>,
        _logits: In<'_>,
        _scores: In<'_>,
        _ids: In<'_>,
        _d_gates: In<'_>,
        _d_logits: Out<'_>,
    ) -> Outcome {
        missing("router_backward")
    }

    fn sort_by_expert(&self, ids: In<'_>, offsets: &[usize], assignment: Out<'_>, position: Out<'_>) -> Outcome {
        routing::sort_by_expert(self.at("sort_by_expert"), ids, offsets, assignment, position)
    }

    fn gather_rows(&self, top_k: usize, width: usize, x: In<'_>, assignment: In<'_>, rows: Out<'_>) -> Outcome {
        routing::gather_rows(self.at("gather_rows"), top_k, width, x, assignment, rows)
    }

    fn scatter_rows_add(&self, top_k: usize, width: usize, d_rows: In<'_>, position: In<'_>, dx: Out<'_>) -> Outcome {
        routing::scatter_rows_add(self.at("scatter_rows_add"), top_k, width, d_rows, position, dx)
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
        routing::combine_forward(self.at("combine_forward"), top_k, width, expert_out, position, gates, out)
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
        let at = self.at("combine_backward");
        routing::combine_backward(at, top_k, width, d_out, expert_out, position, gates, d_expert_out, d_gates)
    }

    fn embedding_forward(&self, width: usize, table: In<'_>, ids: In<'_>, out: Out<'_>) -> Outcome {
        tokens::embedding_forward(self.at("embedding_forward"), width, table, ids, out)
    }

    fn embedding_backward(&self, width: usize, d_out: In<'_>, ids: In<'_>, d_table: Out<'_>) -> Outcome {
        tokens::embedding_backward(self.at("embedding_backward"), width, d_out, ids, d_table)
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
        tokens::cross_entropy(self.at("cross_entropy"), vocab, grad_scale, logits, targets, nll, d_logits)
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
        optimizer::adamw(self.at("adamw"), step, grad, master, moment1, moment2, compute)
    }

    fn sum_squares(&self, x: In<'_>) -> Outcome<f64> {
        optimizer::sum_squares(self.at("sum_squares"), x)
    }

    fn fill_normal(&self, key: NoiseKey, first: u64, deviation: f64, target: Out<'_>) -> Outcome {
        optimizer::fill_normal(self.at("fill_normal"), key, first, deviation, target)
    }
}
