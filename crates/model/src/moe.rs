//! A mixture-of-experts block: router, dispatch, experts, combine, shared expert.
//!
//! Nothing is dropped: A = T*K. The router is f32 in every precision. Gates are applied, and their gradients computed,
//! here and not at the experts, so that experts can live elsewhere.

use std::borrow::Cow;

use cambium_kernels::{Backend, Buffer, Element, Gemm, RouterLoss, RouterShape, RouterStats, View, ViewMut};
use cambium_spec::{Balance, Router};

use crate::context::{Context, Precision};
use crate::error::Outcome;
use crate::experts::{Experts, ExpertsSaved};
use crate::param::Param;
use crate::swiglu::{SwiGlu, SwiGluSaved};

/// A mixture-of-experts block.
pub struct MoeBlock<B: Backend> {
    /// How tokens choose.
    pub router: Router,
    /// E.
    pub expert_count: usize,
    /// H.
    pub hidden: usize,
    /// (E, H), always f32.
    pub router_weight: Param<B>,
    /// (E), added to the scores for the choice only; not trained by gradient.
    pub selection_bias: Option<Param<B>>,
    /// The routed experts.
    pub experts: Experts<B>,
    /// The expert that every token passes through.
    pub shared: Option<SharedExpert<B>>,
}

/// The expert that every token passes through, and its gate if it has one.
pub struct SharedExpert<B: Backend> {
    /// The expert.
    pub block: SwiGlu<B>,
    /// (1, H), always f32: `sigmoid(h · wᵀ)` multiplies the block's output (Qwen2-MoE).
    pub gate: Option<Param<B>>,
}

/// What [`MoeBlock`] keeps for its backward, besides its input.
pub struct MoeSaved<B: Backend> {
    logits: B::Buffer,
    scores: B::Buffer,
    ids: B::Buffer,
    gates: B::Buffer,
    assignment: B::Buffer,
    position: B::Buffer,
    offsets: Vec<usize>,
    stats: RouterStats,
    expert_out: B::Buffer,
    experts: ExpertsSaved<B>,
    shared: Option<SharedSaved<B>>,
}

struct SharedSaved<B: Backend> {
    block: SwiGluSaved<B>,
    /// The block's output and the logit of its gate.
    gated: Option<(B::Buffer, B::Buffer)>,
}

/// Where a microbatch went in one layer, and what its router's losses are.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    /// (E): assignments of each expert.
    pub counts: Vec<u32>,
    /// `E * sum_e f_e * P_e`: 1 when the load is even (arXiv 2101.03961, eq. 4, with f over all K choices).
    pub load_balance: f64,
    /// Mean of `logsumexp(logits)²` (arXiv 2202.08906, eq. 5).
    pub z: f64,
}

/// How much the router's own losses count in a backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BalanceWeight {
    /// The coefficients.
    pub balance: Balance,
    /// This microbatch's share of the step's tokens.
    pub share: f64,
}

impl<B: Backend> MoeBlock<B> {
    /// `out += moe(h)`, or `out =` without `accumulate`; h and out (T, H).
    ///
    /// # Errors
    /// If a kernel fails, or the router's logits are not finite.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        h: &B::Buffer,
        mut out: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome<(MoeSaved<B>, Routing)> {
        let (backend, shape) = (cx.backend, self.shape(cx));
        let (tokens, assignments) = (shape.tokens, shape.tokens * shape.top_k);
        let wide = self.widen(cx, h)?;
        let wide_view = wide.as_ref().map_or(h.view(), Buffer::view);

        let mut logits = cx.f32(tokens * self.expert_count)?;
        backend.gemm(
            self.project(tokens, self.expert_count),
            wide_view,
            self.router_weight.master(),
            (&mut logits).into(),
        )?;
        let mut scores = cx.f32(tokens * self.expert_count)?;
        let mut ids = backend.alloc(Element::U32, assignments)?;
        let mut gates = cx.f32(assignments)?;
        let bias = self.selection_bias.as_ref().map(Param::master);
        let stats = backend.router_forward(
            shape,
            (&logits).into(),
            bias,
            (&mut scores).into(),
            (&mut ids).into(),
            (&mut gates).into(),
        )?;
        let offsets = offsets(&stats.counts);
        let mut assignment = backend.alloc(Element::U32, assignments)?;
        let mut position = backend.alloc(Element::U32, assignments)?;
        backend.sort_by_expert((&ids).into(), &offsets, (&mut assignment).into(), (&mut position).into())?;

        let rows = self.dispatch(cx, h, &assignment)?;
        let (expert_out, experts) = self.experts.forward(cx, &rows, &offsets)?;
        drop(rows);
        if !accumulate {
            backend.fill_zero(out.reborrow())?;
        }
        backend.combine_forward(
            shape.top_k,
            self.hidden,
            (&expert_out).into(),
            (&position).into(),
            (&gates).into(),
            out.reborrow(),
        )?;
        let shared = match &self.shared {
            Some(shared) => Some(shared.forward(cx, h.view(), wide_view, out)?),
            None => None,
        };
        let routing = self.routing(&stats, tokens);
        let saved =
            MoeSaved { logits, scores, ids, gates, assignment, position, offsets, stats, expert_out, experts, shared };
        Ok((saved, routing))
    }

    /// The gradient of h (T, H), and the parameters' gradients; `weight` adds the gradient of the router's losses.
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: &B::Buffer,
        h: &B::Buffer,
        saved: MoeSaved<B>,
        weight: BalanceWeight,
    ) -> Outcome<B::Buffer> {
        let (backend, shape) = (cx.backend, self.shape(cx));
        // out += sum_k gate_k * expert_out_k
        let mut d_expert_out = cx.activation_rows(shape.tokens * shape.top_k, self.hidden)?;
        let mut d_gates = cx.f32(shape.tokens * shape.top_k)?;
        backend.combine_backward(
            shape.top_k,
            self.hidden,
            d_out.into(),
            (&saved.expert_out).into(),
            (&saved.position).into(),
            (&saved.gates).into(),
            (&mut d_expert_out).into(),
            (&mut d_gates).into(),
        )?;
        drop(saved.expert_out);
        let rows = self.dispatch(cx, h, &saved.assignment)?;
        let d_rows = self.experts.backward(cx, &d_expert_out, &rows, &saved.offsets, saved.experts)?;
        drop((d_expert_out, rows));

        // gates, ids = router(h · Wrᵀ)
        let mut d_logits = cx.f32(shape.tokens * self.expert_count)?;
        let score_grad = self.load_balance_gradient(&saved.stats, shape.tokens, weight);
        let z_grad = weight.balance.z * weight.share / shape.tokens as f64;
        backend.router_backward(
            shape,
            RouterLoss { score_grad: &score_grad, z_grad },
            (&saved.logits).into(),
            (&saved.scores).into(),
            (&saved.ids).into(),
            (&d_gates).into(),
            (&mut d_logits).into(),
        )?;
        let wide = self.widen(cx, h)?;
        let wide_view = wide.as_ref().map_or(h.view(), Buffer::view);
        let mut d_wide = cx.f32(shape.tokens * self.hidden)?;
        project_backward(cx, &mut self.router_weight, &d_logits, self.hidden, wide_view, &mut d_wide, false)?;

        let mut dh = match (&mut self.shared, saved.shared) {
            (Some(shared), Some(saved)) => shared.backward(cx, d_out, h.view(), wide_view, saved, &mut d_wide)?,
            _ => None,
        };
        // The router's part is f32; what came from the shared expert joins it, and the rows of the experts last.
        let mut dh = match (dh.take(), cx.precision) {
            (None, Precision::F32) => d_wide,
            (None, Precision::Bf16) => {
                let mut narrow = cx.activation(self.hidden)?;
                backend.copy((&d_wide).into(), (&mut narrow).into())?;
                narrow
            }
            (Some(mut dh), _) => {
                backend.add((&d_wide).into(), (&mut dh).into())?;
                dh
            }
        };
        backend.scatter_rows_add(
            shape.top_k,
            self.hidden,
            (&d_rows).into(),
            (&saved.position).into(),
            (&mut dh).into(),
        )?;
        Ok(dh)
    }

    fn shape(&self, cx: &Context<'_, B>) -> RouterShape {
        RouterShape {
            tokens: cx.tokens(),
            experts: self.expert_count,
            top_k: self.router.top_k,
            score: self.router.score,
            renormalize: self.router.renormalize,
            scale: self.router.scale,
            groups: self.router.groups,
        }
    }

    fn project(&self, tokens: usize, outputs: usize) -> Gemm {
        Gemm { m: tokens, n: outputs, k: self.hidden, a_transposed: false, b_transposed: true, accumulate: false }
    }

    /// h in f32, if it is not already.
    fn widen(&self, cx: &Context<'_, B>, h: &B::Buffer) -> Outcome<Option<B::Buffer>> {
        if h.element() == Element::F32 {
            return Ok(None);
        }
        let mut wide = cx.f32(h.len())?;
        cx.backend.copy(h.into(), (&mut wide).into())?;
        Ok(Some(wide))
    }

    /// Rows of h, one per assignment, sorted by expert. Made again in the backward: a copy costs less than its memory.
    fn dispatch(&self, cx: &Context<'_, B>, h: &B::Buffer, assignment: &B::Buffer) -> Outcome<B::Buffer> {
        let mut rows = cx.activation_rows(assignment.len(), self.hidden)?;
        cx.backend.gather_rows(self.router.top_k, self.hidden, h.into(), assignment.into(), (&mut rows).into())?;
        Ok(rows)
    }

    fn routing(&self, stats: &RouterStats, tokens: usize) -> Routing {
        let assignments = (tokens * self.router.top_k) as f64;
        let dot: f64 = stats.counts.iter().zip(&stats.score_sum).map(|(count, sum)| f64::from(*count) * sum).sum();
        Routing {
            counts: stats.counts.clone(),
            load_balance: self.expert_count as f64 * dot / (assignments * tokens as f64),
            z: stats.z_sum / tokens as f64,
        }
    }

    /// `∂/∂P_te` of `c * E * sum_e f_e * P_e`, P_e the mean of P_te over tokens: the same for every token.
    fn load_balance_gradient(&self, stats: &RouterStats, tokens: usize, weight: BalanceWeight) -> Cow<'static, [f64]> {
        let scale = weight.balance.load_balance * weight.share * self.expert_count as f64
            / ((tokens * self.router.top_k) as f64 * tokens as f64);
        stats.counts.iter().map(|count| scale * f64::from(*count)).collect()
    }
}

impl<B: Backend> SharedExpert<B> {
    /// `out += shared(h)`.
    fn forward(
        &self,
        cx: &Context<'_, B>,
        h: View<'_, B::Buffer>,
        wide: View<'_, B::Buffer>,
        out: ViewMut<'_, B::Buffer>,
    ) -> Outcome<SharedSaved<B>> {
        let Some(gate) = &self.gate else {
            return Ok(SharedSaved { block: self.block.forward(cx, h, out, true)?, gated: None });
        };
        let (tokens, hidden) = (cx.tokens(), self.block.down.outputs);
        let mut block_out = cx.activation(hidden)?;
        let block = self.block.forward(cx, h, (&mut block_out).into(), false)?;
        let mut logit = cx.f32(tokens)?;
        let shape = Gemm { m: tokens, n: 1, k: hidden, a_transposed: false, b_transposed: true, accumulate: false };
        cx.backend.gemm(shape, wide, gate.master(), (&mut logit).into())?;
        cx.backend.sigmoid_gate_forward(tokens, hidden, (&logit).into(), (&block_out).into(), out)?;
        Ok(SharedSaved { block, gated: Some((block_out, logit)) })
    }

    /// The gradient of h through the block; what comes through the gate is added to `d_wide`.
    fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: &B::Buffer,
        h: View<'_, B::Buffer>,
        wide: View<'_, B::Buffer>,
        saved: SharedSaved<B>,
        d_wide: &mut B::Buffer,
    ) -> Outcome<Option<B::Buffer>> {
        let (tokens, hidden) = (cx.tokens(), self.block.down.outputs);
        let mut dh = cx.activation(hidden)?;
        let (Some(gate), Some((block_out, logit))) = (&mut self.gate, saved.gated) else {
            self.block.backward(cx, d_out.into(), h, saved.block, (&mut dh).into(), false)?;
            return Ok(Some(dh));
        };
        // out += sigmoid(h · wᵀ) * block(h)
        let mut d_block = cx.activation(hidden)?;
        let mut d_logit = cx.f32(tokens)?;
        cx.backend.sigmoid_gate_backward(
            tokens,
            hidden,
            d_out.into(),
            (&logit).into(),
            (&block_out).into(),
            (&mut d_block).into(),
            (&mut d_logit).into(),
        )?;
        project_backward(cx, gate, &d_logit, hidden, wide, d_wide, true)?;
        self.block.backward(cx, (&d_block).into(), h, saved.block, (&mut dh).into(), false)?;
        Ok(Some(dh))
    }
}

/// Backward of an f32 projection `logits = wide · Wᵀ`: the weight's gradient, and `d_wide =` (or `+=`).
fn project_backward<B: Backend>(
    cx: &Context<'_, B>,
    weight: &mut Param<B>,
    d_logits: &B::Buffer,
    hidden: usize,
    wide: View<'_, B::Buffer>,
    d_wide: &mut B::Buffer,
    accumulate: bool,
) -> Outcome {
    let (tokens, outputs) = (cx.tokens(), d_logits.len() / cx.tokens().max(1));
    let input = Gemm { m: tokens, n: hidden, k: outputs, a_transposed: false, b_transposed: false, accumulate };
    cx.backend.gemm(input, d_logits.into(), weight.master(), d_wide.into())?;
    let (grad, accumulate) = weight.grad()?;
    let shape = Gemm { m: outputs, n: hidden, k: tokens, a_transposed: true, b_transposed: false, accumulate };
    Ok(cx.backend.gemm(shape, d_logits.into(), wide, grad)?)
}

/// Where each expert's rows begin: running sums of the counts, and the total.
fn offsets(counts: &[u32]) -> Vec<usize> {
    let mut end = 0;
    std::iter::once(0)
        .chain(counts.iter().map(|count| {
            end += *count as usize;
            end
        }))
        .collect()
}

impl<B: Backend> MoeBlock<B> {
    /// Its parameters, the selection bias included.
    pub fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        out.push(&mut self.router_weight);
        out.extend(&mut self.selection_bias);
        out.extend([&mut self.experts.gate_up, &mut self.experts.down]);
        if let Some(shared) = &mut self.shared {
            shared.block.params_mut(out);
            out.extend(&mut shared.gate);
        }
    }

    /// Its parameters, the selection bias included.
    pub fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        out.push(&self.router_weight);
        out.extend(&self.selection_bias);
        out.extend([&self.experts.gate_up, &self.experts.down]);
        if let Some(shared) = &self.shared {
            shared.block.params(out);
            out.extend(&shared.gate);
        }
    }
}
