//! The seam: what a device must be able to do for Cambium to train on it.
//!
//! Accumulation rule of every backward: parameter gradients `+=`, activation gradients `=` (or `+=` where the shape has
//! an `accumulate` that is set). Products accumulate in f32 whatever the element type and are rounded once.
//! "Floats" below are `F32` or `Bf16`; where nothing is said, all floats of one call may differ in type.

use candle_core::Tensor;

use crate::buffer::{Buffer, Element, MemoryUse, View, ViewMut};
use crate::error::KernelError;
use crate::ops::{
    AdamW, AttentionShape, Columns, Gemm, GroupedGemm, NoiseKey, RmsNorm, RopeShape, RouterLoss, RouterShape,
    RouterStats,
};

/// Shorthand of this trait's results.
pub type Outcome<T = ()> = Result<T, KernelError>;

/// A device and its kernels. Cheap to clone: clones share the device and its memory.
///
/// Every method checks element types and lengths, and that index buffers stay inside their range, before it touches
/// memory. A view given for writing never overlaps one given for reading (the borrow checker sees to it).
pub trait Backend: Clone + Send + Sync + 'static {
    /// Memory of this device.
    type Buffer: Buffer + 'static;

    /// Its name in messages: `cpu`, `reference`, `cuda`.
    fn name(&self) -> &'static str;

    /// Runs `work` where this backend's kernels run, so that calls in a row need no hand-over between threads. A whole
    /// training step goes in here; calling kernels outside of it is right too, only slower.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    // ---- memory -------------------------------------------------------------------------------------------------

    /// `len` elements whose values are unspecified (never uninitialised). Reuses dropped buffers.
    fn alloc(&self, element: Element, len: usize) -> Outcome<Self::Buffer>;

    /// `len` zeros.
    fn zeros(&self, element: Element, len: usize) -> Outcome<Self::Buffer> {
        let mut buffer = self.alloc(element, len)?;
        self.fill_zero(buffer.view_mut())?;
        Ok(buffer)
    }

    /// Sets every element to zero.
    fn fill_zero(&self, target: ViewMut<'_, Self::Buffer>) -> Outcome;

    /// Copies between views of one length; between `F32` and `Bf16` it converts (to nearest, ties to even).
    fn copy(&self, source: View<'_, Self::Buffer>, target: ViewMut<'_, Self::Buffer>) -> Outcome;

    /// Writes a host tensor (F64, F32, BF16, F16, or U32 into `U32`; its shape is not looked at), converting.
    fn write(&self, source: &Tensor, target: ViewMut<'_, Self::Buffer>) -> Outcome;

    /// Reads into a host tensor of `shape`: U32, BF16, F32 as stored; the reference backend gives F64 for floats.
    fn read(&self, source: View<'_, Self::Buffer>, shape: &[usize]) -> Outcome<Tensor>;

    /// Writes indices into a `U32` view.
    fn write_u32(&self, source: &[u32], target: ViewMut<'_, Self::Buffer>) -> Outcome;

    /// Reads a `U32` view.
    fn read_u32(&self, source: View<'_, Self::Buffer>) -> Outcome<Vec<u32>>;

    /// Reads floats as f32 (rounded where they are stored wider).
    fn read_f32(&self, source: View<'_, Self::Buffer>) -> Outcome<Vec<f32>>;

    /// What is held now.
    fn memory(&self) -> MemoryUse;

    /// Begins a new measurement of [`MemoryUse::peak_bytes`].
    fn reset_peak(&self);

    /// Waits until everything asked for is done.
    fn synchronize(&self) -> Outcome;

    // ---- products -----------------------------------------------------------------------------------------------

    /// See [`Gemm`]. `a` and `b` have one float type; `c` is `F32` or that type.
    fn gemm(
        &self,
        shape: Gemm,
        a: View<'_, Self::Buffer>,
        b: View<'_, Self::Buffer>,
        c: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// See [`GroupedGemm`]. Types as for [`Backend::gemm`]. What a group's rows become depends on that group only.
    fn grouped_gemm(
        &self,
        shape: GroupedGemm<'_>,
        a: View<'_, Self::Buffer>,
        b: View<'_, Self::Buffer>,
        c: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    // ---- norms, positions, activations ----------------------------------------------------------------------------

    /// `y = x / sqrt(mean(x²) + eps) * weight` per row. x, y (rows, width) floats; weight (width) `F32`;
    /// `inverse_rms` (rows) `F32` is kept for the backward.
    fn rms_norm_forward(
        &self,
        shape: RmsNorm,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        y: ViewMut<'_, Self::Buffer>,
        inverse_rms: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `dx` (= or +=) and `d_weight +=` of [`Backend::rms_norm_forward`].
    fn rms_norm_backward(
        &self,
        shape: RmsNorm,
        dy: View<'_, Self::Buffer>,
        x: View<'_, Self::Buffer>,
        weight: View<'_, Self::Buffer>,
        inverse_rms: View<'_, Self::Buffer>,
        dx: ViewMut<'_, Self::Buffer>,
        d_weight: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Rotates x in place. `table` (seq_len, rotary_dim/2, 2) `F32` holds cos and sin of each position and pair.
    fn rope(&self, shape: RopeShape, table: View<'_, Self::Buffer>, x: ViewMut<'_, Self::Buffer>) -> Outcome;

    /// `out = silu(gate) * up`; `gate_up` (rows, 2F) holds a row's gate, then its up; out (rows, F). Floats.
    fn swiglu_forward(
        &self,
        rows: usize,
        width: usize,
        gate_up: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `d_gate_up =` of [`Backend::swiglu_forward`].
    fn swiglu_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: View<'_, Self::Buffer>,
        gate_up: View<'_, Self::Buffer>,
        d_gate_up: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `out += sigmoid(logit) * x` per row: logit (rows) `F32`, x and out (rows, width).
    fn sigmoid_gate_forward(
        &self,
        rows: usize,
        width: usize,
        logit: View<'_, Self::Buffer>,
        x: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `dx =` and `d_logit =` of [`Backend::sigmoid_gate_forward`].
    fn sigmoid_gate_backward(
        &self,
        rows: usize,
        width: usize,
        d_out: View<'_, Self::Buffer>,
        logit: View<'_, Self::Buffer>,
        x: View<'_, Self::Buffer>,
        dx: ViewMut<'_, Self::Buffer>,
        d_logit: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `x += bias` per row: x (rows, width), bias (width) `F32`.
    fn bias_forward(
        &self,
        rows: usize,
        width: usize,
        bias: View<'_, Self::Buffer>,
        x: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `d_bias += sum over rows of dx`; `d_bias` is `F32`.
    fn bias_backward(
        &self,
        rows: usize,
        width: usize,
        dx: View<'_, Self::Buffer>,
        d_bias: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `target += source`, floats of one length.
    fn add(&self, source: View<'_, Self::Buffer>, target: ViewMut<'_, Self::Buffer>) -> Outcome;

    /// Copies columns between matrices of one float type, see [`Columns`].
    fn copy_columns(
        &self,
        shape: Columns,
        source: View<'_, Self::Buffer>,
        target: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Sums columns of `repeat` source rows into one target row (`=`): the backward of a repeating copy. One float type;
    /// sums in f32, rounded once.
    fn sum_columns(&self, shape: Columns, source: View<'_, Self::Buffer>, target: ViewMut<'_, Self::Buffer>)
    -> Outcome;

    // ---- attention ------------------------------------------------------------------------------------------------

    /// Causal attention, blockwise: no (T, T) matrix exists. q (B*T, N, qk), k (B*T, G, qk), v (B*T, G, v),
    /// out (B*T, N, v), one float type; `lse` (B, N, T) `F32`: log of the sum of exponentials of the scaled scores.
    fn attention_forward(
        &self,
        shape: AttentionShape,
        q: View<'_, Self::Buffer>,
        k: View<'_, Self::Buffer>,
        v: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
        lse: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `dq =`, `dk =`, `dv =` of [`Backend::attention_forward`], in the shapes and the one float type of its arguments.
    fn attention_backward(
        &self,
        shape: AttentionShape,
        d_out: View<'_, Self::Buffer>,
        q: View<'_, Self::Buffer>,
        k: View<'_, Self::Buffer>,
        v: View<'_, Self::Buffer>,
        out: View<'_, Self::Buffer>,
        lse: View<'_, Self::Buffer>,
        dq: ViewMut<'_, Self::Buffer>,
        dk: ViewMut<'_, Self::Buffer>,
        dv: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    // ---- router and experts ---------------------------------------------------------------------------------------

    /// Chooses K experts a token and gates them. logits (T, E) `F32`; `selection_bias` (E) `F32` is added to the scores
    /// for the choice only. Out: `scores` (T, E) `F32`: softmax or sigmoid of the logits; `ids` (T, K) `U32` by
    /// descending choice value, ties to the lowest id; `gates` (T, K) `F32`. Logits that are not finite are refused
    /// ([`KernelError::NonFinite`]). With groups, a group's rank is the sum of its two best choice values (of its only one),
    /// ties again to the lowest id.
    fn router_forward(
        &self,
        shape: RouterShape,
        logits: View<'_, Self::Buffer>,
        selection_bias: Option<View<'_, Self::Buffer>>,
        scores: ViewMut<'_, Self::Buffer>,
        ids: ViewMut<'_, Self::Buffer>,
        gates: ViewMut<'_, Self::Buffer>,
    ) -> Outcome<RouterStats>;

    /// `d_logits (T, E) =` from `d_gates` (T, K) `F32` and the router's own losses.
    fn router_backward(
        &self,
        shape: RouterShape,
        loss: RouterLoss<'_>,
        logits: View<'_, Self::Buffer>,
        scores: View<'_, Self::Buffer>,
        ids: View<'_, Self::Buffer>,
        d_gates: View<'_, Self::Buffer>,
        d_logits: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Sorts assignments by expert, stably. `ids` (A) `U32`; `offsets` (E+1) as counted by the router; refused
    /// ([`KernelError::Shape`]) if they do not count `ids`. Out, both (A)
    /// `U32`: `assignment[row]` is the assignment (t*K + k) that sorted row `row` serves, `position` its inverse.
    fn sort_by_expert(
        &self,
        ids: View<'_, Self::Buffer>,
        offsets: &[usize],
        assignment: ViewMut<'_, Self::Buffer>,
        position: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Dispatch: `rows[i] = x[assignment[i] / K]`; x (T, width), rows (A, width), one float type. `assignment` (A) may be
    /// a part of all assignments: each of its values is below T*K, A is its length.
    fn gather_rows(
        &self,
        top_k: usize,
        width: usize,
        x: View<'_, Self::Buffer>,
        assignment: View<'_, Self::Buffer>,
        rows: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Backward of the dispatch: `dx[t] +=` the sum over k, in order, of `d_rows[position[t*K + k]]`, in f32, rounded once.
    fn scatter_rows_add(
        &self,
        top_k: usize,
        width: usize,
        d_rows: View<'_, Self::Buffer>,
        position: View<'_, Self::Buffer>,
        dx: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Combine: `out[t] +=` the sum over k, in order, of `gates[t, k] * expert_out[position[t*K + k]]`. expert_out
    /// (T*K, width) and out (T, width) floats, gates (T, K) `F32`, position (T*K) `U32`, each row named once.
    fn combine_forward(
        &self,
        top_k: usize,
        width: usize,
        expert_out: View<'_, Self::Buffer>,
        position: View<'_, Self::Buffer>,
        gates: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `d_expert_out =` (A, width) and `d_gates =` (T, K) `F32` of [`Backend::combine_forward`].
    fn combine_backward(
        &self,
        top_k: usize,
        width: usize,
        d_out: View<'_, Self::Buffer>,
        expert_out: View<'_, Self::Buffer>,
        position: View<'_, Self::Buffer>,
        gates: View<'_, Self::Buffer>,
        d_expert_out: ViewMut<'_, Self::Buffer>,
        d_gates: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    // ---- embedding and loss -----------------------------------------------------------------------------------------

    /// `out[t] = table[ids[t]]`; table (V, width) and out (T, width) floats.
    fn embedding_forward(
        &self,
        width: usize,
        table: View<'_, Self::Buffer>,
        ids: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// `d_table[ids[t]] += d_out[t]` in order of t; `d_table` (V, width) `F32`.
    fn embedding_backward(
        &self,
        width: usize,
        d_out: View<'_, Self::Buffer>,
        ids: View<'_, Self::Buffer>,
        d_table: ViewMut<'_, Self::Buffer>,
    ) -> Outcome;

    /// Negative log-likelihood of a chunk of tokens: logits (T, V) `F32`, targets (T) `U32`, nll (T) `F32`. With
    /// `d_logits` (T, V), floats, also `d_logits = (softmax(logits) - onehot(target)) * grad_scale`.
    fn cross_entropy(
        &self,
        vocab: usize,
        grad_scale: f64,
        logits: View<'_, Self::Buffer>,
        targets: View<'_, Self::Buffer>,
        nll: ViewMut<'_, Self::Buffer>,
        d_logits: Option<ViewMut<'_, Self::Buffer>>,
    ) -> Outcome;

    // ---- optimizer and noise ------------------------------------------------------------------------------------------

    /// One AdamW step over one tensor; all `F32`. `compute`, if there, gets the new master in its own type.
    fn adamw(
        &self,
        step: AdamW,
        grad: View<'_, Self::Buffer>,
        master: ViewMut<'_, Self::Buffer>,
        moment1: ViewMut<'_, Self::Buffer>,
        moment2: ViewMut<'_, Self::Buffer>,
        compute: Option<ViewMut<'_, Self::Buffer>>,
    ) -> Outcome;

    /// Sum of squares of floats in f64, in a fixed order; not finite if any element is not.
    fn sum_squares(&self, x: View<'_, Self::Buffer>) -> Outcome<f64>;

    /// `target[i] = deviation * z(key, first + i)`, z standard normal from Philox 4x32-10: any range of a tensor can be
    /// made alone, to the same bits.
    fn fill_normal(&self, key: NoiseKey, first: u64, deviation: f64, target: ViewMut<'_, Self::Buffer>) -> Outcome;
}
