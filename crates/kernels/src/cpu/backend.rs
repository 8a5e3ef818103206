//! The seam over the kernels: element types are checked here, lengths and values by each kernel.

use candle_core::Tensor;

use super::arguments::{Arguments, In, Out};
use super::memory::CpuBuffer;
use super::{
    Cpu, activation, addition, attention, columns, copies, gemm, norm, optimizer, rope, router, routing, tokens,
};
use crate::backend::{Backend, Outcome};
use crate::buffer::{Element, MemoryUse};
use crate::ops::{
    AdamW, AttentionShape, Columns, Gemm, GroupedGemm, NoiseKey, RmsNorm, RopeShape, RouterLoss, RouterShape,
    RouterStats,
};

impl Backend for Cpu {
    type Buffer = CpuBuffer;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    fn alloc(&self, element: Element, len: usize) -> Outcome<CpuBuffer> {
        self.store.buffer(element, len)
    }

    fn fill_zero(&self, target: Out<'_>) -> Outcome {
        self.run(|| copies::fill_zero(target))
    }

    fn copy(&self, source: In<'_>, target: Out<'_>) -> Outcome {
        self.run(|| copies::copy(self.isa, source, target))
    }

    fn write(&self, source: &Tensor, target: Out<'_>) -> Outcome {
        self.run(|| copies::write(self.isa, source, target))
    }

    fn read(&self, source: In<'_>, shape: &[usize]) -> Outcome<Tensor> {
        copies::read(source, shape)
    }

    fn write_u32(&self, source: &[u32], target: Out<'_>) -> Outcome {
        copies::write_u32(source, target)
    }

    fn read_u32(&self, source: In<'_>) -> Outcome<Vec<u32>> {
        copies::read_u32(source)
    }

    fn read_f32(&self, source: In<'_>) -> Outcome<Vec<f32>> {
        self.run(|| copies::read_f32(self.isa, source))
    }

    fn memory(&self) -> MemoryUse {
        self.store.memory()
    }

    fn reset_peak(&self) {
        self.store.reset_peak();
    }

    fn synchronize(&self) -> Outcome {
        Ok(()) // every kernel has ended when its method returns
    }

    fn gemm(&self, shape: Gemm, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
        let at = Arguments("gemm");
        let (a, b, c) = (at.floats("a", a)?, at.floats("b", b)?, at.floats_mut("c", c)?);
        self.run(|| gemm::gemm(self.isa, shape, a, b, c))
    }

    fn grouped_gemm(&self, shape: GroupedGemm<'_>, a: In<'_>, b: In<'_>, c: Out<'_>) -> Outcome {
        let at = Arguments("grouped_gemm");
        let (a, b, c) = (at.floats("a", a)?, at.floats("b", b)?, at.floats_mut("c", c)?);
        self.run(|| gemm::grouped_gemm(self.isa, shape, a, b, c))
    }

    fn rms_norm_forward(&self, shape: RmsNorm, x: In<'_>, weight: In<'_>, y: Out<'_>, inverse_rms: Out<'_>) -> Outcome {
        let at = Arguments("rms_norm_forward");
        let (x, weight) = (at.floats("x", x)?, at.f32s("weight", weight)?);
        let (y, inverse_rms) = (at.floats_mut("y", y)?, at.f32s_mut("inverse_rms", inverse_rms)?);
        self.run(|| norm::rms_norm_forward(self.isa, shape, x, weight, y, inverse_rms))
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
        let at = Arguments("rms_norm_backward");
        let (dy, x) = (at.floats("dy", dy)?, at.floats("x", x)?);
        let (weight, inverse_rms) = (at.f32s("weight", weight)?, at.f32s("inverse_rms", inverse_rms)?);
        let (dx, d_weight) = (at.floats_mut("dx", dx)?, at.f32s_mut("d_weight", d_weight)?);
        self.run(|| norm::rms_norm_backward(self.isa, shape, dy, x, weight, inverse_rms, dx, d_weight))
    }

    fn rope(&self, shape: RopeShape, table: In<'_>, x: Out<'_>) -> Outcome {
        let at = Arguments("rope");
        let (table, x) = (at.f32s("table", table)?, at.floats_mut("x", x)?);
        self.run(|| rope::rope(self.isa, shape, table, x))
    }

    fn swiglu_forward(&self, rows: usize, width: usize, gate_up: In<'_>, out: Out<'_>) -> Outcome {
        let at = Arguments("swiglu_forward");
        let (gate_up, out) = (at.floats("gate_up", gate_up)?, at.floats_mut("out", out)?);
        self.run(|| activation::swiglu_forward(self.isa, rows, width, gate_up, out))
    }

    fn swiglu_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: In<'_>,
        gate_up: In<'_>,
        d_gate_up: Out<'_>,
    ) -> Outcome {
        let at = Arguments("swiglu_backward");
        let (d_out, gate_up) = (at.floats("d_out", d_out)?, at.floats("gate_up", gate_up)?);
        let d_gate_up = at.floats_mut("d_gate_up", d_gate_up)?;
        self.run(|| activation::swiglu_backward(self.isa, rows, width, d_out, gate_up, d_gate_up))
    }

    fn sigmoid_gate_forward(&self, rows: usize, width: usize, logit: In<'_>, x: In<'_>, out: Out<'_>) -> Outcome {
        let at = Arguments("sigmoid_gate_forward");
        let (logit, x, out) = (at.f32s("logit", logit)?, at.floats("x", x)?, at.floats_mut("out", out)?);
        self.run(|| activation::sigmoid_gate_forward(self.isa, rows, width, logit, x, out))
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
        let at = Arguments("sigmoid_gate_backward");
        let (d_out, logit, x) = (at.floats("d_out", d_out)?, at.f32s("logit", logit)?, at.floats("x", x)?);
        let (dx, d_logit) = (at.floats_mut("dx", dx)?, at.f32s_mut("d_logit", d_logit)?);
        self.run(|| activation::sigmoid_gate_backward(self.isa, rows, width, d_out, logit, x, dx, d_logit))
    }

    fn bias_forward(&self, rows: usize, width: usize, bias: In<'_>, x: Out<'_>) -> Outcome {
        let at = Arguments("bias_forward");
        let (bias, x) = (at.f32s("bias", bias)?, at.floats_mut("x", x)?);
        self.run(|| addition::bias_forward(self.isa, rows, width, bias, x))
    }

    fn bias_backward(&self, rows: usize, width: usize, dx: In<'_>, d_bias: Out<'_>) -> Outcome {
        let at = Arguments("bias_backward");
        let (dx, d_bias) = (at.floats("dx", dx)?, at.f32s_mut("d_bias", d_bias)?);
        self.run(|| addition::bias_backward(self.isa, rows, width, dx, d_bias))
    }

    fn add(&self, source: In<'_>, target: Out<'_>) -> Outcome {
        let at = Arguments("add");
        let (source, target) = (at.floats("source", source)?, at.floats_mut("target", target)?);
        self.run(|| addition::add(self.isa, source, target))
    }

    fn copy_columns(&self, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
        let at = Arguments("copy_columns");
        let (source, target) = (at.floats("source", source)?, at.floats_mut("target", target)?);
        self.run(|| columns::copy_columns(shape, source, target))
    }

    fn sum_columns(&self, shape: Columns, source: In<'_>, target: Out<'_>) -> Outcome {
        let at = Arguments("sum_columns");
        let (source, target) = (at.floats("source", source)?, at.floats_mut("target", target)?);
        self.run(|| columns::sum_columns(self.isa, shape, source, target))
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
        let at = Arguments("attention_forward");
        let (q, k, v) = (at.floats("q", q)?, at.floats("k", k)?, at.floats("v", v)?);
        let (out, lse) = (at.floats_mut("out", out)?, at.f32s_mut("lse", lse)?);
        self.run(|| attention::attention_forward(self.isa, shape, q, k, v, out, lse))
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
        let at = Arguments("attention_backward");
        let (q, k, v) = (at.floats("q", q)?, at.floats("k", k)?, at.floats("v", v)?);
        let (d_out, out, lse) = (at.floats("d_out", d_out)?, at.floats("out", out)?, at.f32s("lse", lse)?);
        let (dq, dk, dv) = (at.floats_mut("dq", dq)?, at.floats_mut("dk", dk)?, at.floats_mut("dv", dv)?);
        self.run(|| attention::attention_backward(self.isa, shape, d_out, q, k, v, out, lse, dq, dk, dv))
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
        let at = Arguments("router_forward");
        let logits = at.f32s("logits", logits)?;
        let bias = selection_bias.map(|bias| at.f32s("selection_bias", bias)).transpose()?;
        let (scores, ids) = (at.f32s_mut("scores", scores)?, at.indices_mut("ids", ids)?);
        let gates = at.f32s_mut("gates", gates)?;
        self.run(|| router::router_forward(self.isa, &shape, logits, bias, scores, ids, gates))
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
        let at = Arguments("router_backward");
        let (logits, scores, ids) = (at.f32s("logits", logits)?, at.f32s("scores", scores)?, at.indices("ids", ids)?);
        let (d_gates, d_logits) = (at.f32s("d_gates", d_gates)?, at.f32s_mut("d_logits", d_logits)?);
        self.run(|| router::router_backward(self.isa, &shape, &loss, logits, scores, ids, d_gates, d_logits))
    }

    fn sort_by_expert(&self, ids: In<'_>, offsets: &[usize], assignment: Out<'_>, position: Out<'_>) -> Outcome {
        let at = Arguments("sort_by_expert");
        let ids = at.indices("ids", ids)?;
        let (assignment, position) = (at.indices_mut("assignment", assignment)?, at.indices_mut("position", position)?);
        self.run(|| routing::sort_by_expert(ids, offsets, assignment, position))
    }

    fn gather_rows(&self, top_k: usize, width: usize, x: In<'_>, assignment: In<'_>, rows: Out<'_>) -> Outcome {
        let at = Arguments("gather_rows");
        let (x, assignment) = (at.floats("x", x)?, at.indices("assignment", assignment)?);
        let rows = at.floats_mut("rows", rows)?;
        self.run(|| routing::gather_rows(self.isa, top_k, width, x, assignment, rows))
    }

    fn scatter_rows_add(&self, top_k: usize, width: usize, d_rows: In<'_>, position: In<'_>, dx: Out<'_>) -> Outcome {
        let at = Arguments("scatter_rows_add");
        let (d_rows, position) = (at.floats("d_rows", d_rows)?, at.indices("position", position)?);
        let dx = at.floats_mut("dx", dx)?;
        self.run(|| routing::scatter_rows_add(self.isa, top_k, width, d_rows, position, dx))
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
        let at = Arguments("combine_forward");
        let (expert_out, position) = (at.floats("expert_out", expert_out)?, at.indices("position", position)?);
        let (gates, out) = (at.f32s("gates", gates)?, at.floats_mut("out", out)?);
        self.run(|| routing::combine_forward(self.isa, top_k, width, expert_out, position, gates, out))
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
        let at = Arguments("combine_backward");
        let (d_out, expert_out) = (at.floats("d_out", d_out)?, at.floats("expert_out", expert_out)?);
        let (position, gates) = (at.indices("position", position)?, at.f32s("gates", gates)?);
        let d_expert_out = at.floats_mut("d_expert_out", d_expert_out)?;
        let d_gates = at.f32s_mut("d_gates", d_gates)?;
        self.run(|| {
            let isa = self.isa;
            routing::combine_backward(isa, top_k, width, d_out, expert_out, position, gates, d_expert_out, d_gates)
        })
    }

    fn embedding_forward(&self, width: usize, table: In<'_>, ids: In<'_>, out: Out<'_>) -> Outcome {
        let at = Arguments("embedding_forward");
        let (table, ids, out) = (at.floats("table", table)?, at.indices("ids", ids)?, at.floats_mut("out", out)?);
        self.run(|| tokens::embedding_forward(self.isa, width, table, ids, out))
    }

    fn embedding_backward(&self, width: usize, d_out: In<'_>, ids: In<'_>, d_table: Out<'_>) -> Outcome {
        let at = Arguments("embedding_backward");
        let (d_out, ids) = (at.floats("d_out", d_out)?, at.indices("ids", ids)?);
        let d_table = at.f32s_mut("d_table", d_table)?;
        self.run(|| tokens::embedding_backward(self.isa, width, d_out, ids, d_table))
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
        let at = Arguments("cross_entropy");
        let (logits, targets) = (at.f32s("logits", logits)?, at.indices("targets", targets)?);
        let nll = at.f32s_mut("nll", nll)?;
        let d_logits = d_logits.map(|d_logits| at.floats_mut("d_logits", d_logits)).transpose()?;
        self.run(|| tokens::cross_entropy(self.isa, vocab, grad_scale, logits, targets, nll, d_logits))
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
        let at = Arguments("adamw");
        let (grad, master) = (at.f32s("grad", grad)?, at.f32s_mut("master", master)?);
        let (moment1, moment2) = (at.f32s_mut("moment1", moment1)?, at.f32s_mut("moment2", moment2)?);
        let compute = compute.map(|compute| at.floats_mut("compute", compute)).transpose()?;
        self.run(|| optimizer::adamw(self.isa, step, grad, master, moment1, moment2, compute))
    }

    fn sum_squares(&self, x: In<'_>) -> Outcome<f64> {
        let x = Arguments("sum_squares").floats("x", x)?;
        Ok(self.run(|| optimizer::sum_squares(self.isa, x)))
    }

    fn fill_normal(&self, key: NoiseKey, first: u64, deviation: f64, target: Out<'_>) -> Outcome {
        let target = Arguments("fill_normal").floats_mut("target", target)?;
        self.run(|| optimizer::fill_normal(key, first, deviation, target));
        Ok(())
    }
}
