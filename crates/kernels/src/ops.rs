//! The arguments of the kernels: shapes and switches, no memory.

pub use cambium_spec::{Grouping, Score};

/// `C = op(A) · op(B)`, or `C += …`: the one matrix product.
///
/// C is (m, n) row-major. `op(A)` is (m, k): A is stored so, or as (k, m) if `a_transposed`. `op(B)` is (k, n): B is
/// stored so, or as (n, k) if `b_transposed` (how Hugging Face stores a linear layer's weight).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of each sum.
    pub k: usize,
    /// A is stored as (k, m).
    pub a_transposed: bool,
    /// B is stored as (n, k).
    pub b_transposed: bool,
    /// Add to what C holds (in f32, rounded once) instead of overwriting it.
    pub accumulate: bool,
}

impl Gemm {
    /// Floating-point operations: a multiplication and an addition per term.
    #[must_use]
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64
    }
}

/// Which of the three products of a linear layer a grouped product is; Y = X · Wᵀ with W stored (n, k) per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupedProduct {
    /// `Y_e (r_e, n) = X_e (r_e, k) · W_eᵀ`: a = X, b = W, c = Y.
    Forward,
    /// `dX_e (r_e, k) = dY_e (r_e, n) · W_e`: a = dY, b = W, c = dX.
    InputGradient,
    /// `dW_e (n, k) = dY_eᵀ · X_e`: a = dY, b = X, c = dW.
    WeightGradient,
}

/// A product per group of rows, the rows of all groups in one matrix, sorted by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupedGemm<'a> {
    /// Which product.
    pub product: GroupedProduct,
    /// Outputs of the linear layer.
    pub n: usize,
    /// Inputs of the linear layer.
    pub k: usize,
    /// Where each group's rows begin, and at the end the number of rows: groups + 1 values, from 0, not decreasing.
    pub offsets: &'a [usize],
    /// Add to what C holds instead of overwriting it. A group without rows then leaves its dW as it is, otherwise zero.
    pub accumulate: bool,
}

impl GroupedGemm<'_> {
    /// Floating-point operations: a multiplication and an addition per term.
    #[must_use]
    pub fn flops(&self) -> u64 {
        2 * self.offsets.last().copied().unwrap_or(0) as u64 * self.n as u64 * self.k as u64
    }
}

/// RMSNorm of `rows` vectors of `width` values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Vectors.
    pub rows: usize,
    /// Values of each.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f64,
    /// Forward: `y += …` (a residual stands in y). Backward: `dx += …`.
    pub accumulate: bool,
}

/// Rotary position embedding, in place, of x (tokens, heads, head_dim); token t stands at position `t % seq_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Tokens: B rows of `seq_len`.
    pub tokens: usize,
    /// Tokens of one sequence.
    pub seq_len: usize,
    /// Heads of x.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// First value of a head that is rotated.
    pub rotary_start: usize,
    /// Values that are rotated, an even number.
    pub rotary_dim: usize,
    /// Pairs are (2i, 2i+1) instead of (i, i + rotary_dim/2).
    pub interleaved: bool,
    /// Rotate back: the backward of the rotation.
    pub inverse: bool,
}

/// Causal attention of B sequences; head n reads key/value head `n / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// B: sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq_len: usize,
    /// N: query heads.
    pub heads: usize,
    /// G: key/value heads.
    pub kv_heads: usize,
    /// Size of a query's and a key's head.
    pub qk_dim: usize,
    /// Size of a value's head.
    pub v_dim: usize,
    /// Multiplies the scores.
    pub scale: f64,
}

impl AttentionShape {
    /// Floating-point operations of scores and weighted values, the causal half only.
    #[must_use]
    pub fn forward_flops(&self) -> u64 {
        let pairs = self.seq_len as u64 * (self.seq_len as u64 + 1) / 2;
        2 * (self.batch * self.heads) as u64 * pairs * (self.qk_dim + self.v_dim) as u64
    }

    /// Floating-point operations of the backward: scores again, and the four products of its gradients.
    #[must_use]
    pub fn backward_flops(&self) -> u64 {
        let pairs = self.seq_len as u64 * (self.seq_len as u64 + 1) / 2;
        2 * (self.batch * self.heads) as u64 * pairs * (3 * self.qk_dim + 2 * self.v_dim) as u64
    }
}

/// How a router chooses and gates; E experts, K per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// T.
    pub tokens: usize,
    /// E.
    pub experts: usize,
    /// K.
    pub top_k: usize,
    /// From logits to scores.
    pub score: Score,
    /// Gates are divided by their sum (sigmoid scores: by their sum + 1e-20, as DeepSeek-V3 does).
    pub renormalize: bool,
    /// Gates are multiplied by this, last.
    pub scale: f64,
    /// Choose inside the best groups only. An expert outside them is never chosen.
    pub groups: Option<Grouping>,
}

/// What a router's forward pass says to the host.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterStats {
    /// (E): assignments of each expert.
    pub counts: Vec<u32>,
    /// (E): sum over tokens of the normalised scores (softmax: the probabilities; sigmoid: scores over their sum).
    pub score_sum: Vec<f64>,
    /// Sum over tokens of `logsumexp(logits)²`.
    pub z_sum: f64,
}

/// Gradients that a router's losses add to those from the gates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterLoss<'a> {
    /// (E) `∂loss/∂(normalised score of e)` of every token: the load-balancing loss has the same for all of them.
    pub score_grad: &'a [f64],
    /// `c` of a loss `c * sum over tokens of logsumexp(logits)²`.
    pub z_grad: f64,
}

/// Rows of a matrix, part of their columns, copied or summed into another matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Rows of the wider side: destination rows of a copy, source rows of a sum.
    pub rows: usize,
    /// Columns moved.
    pub columns: usize,
    /// Row length of the source.
    pub source_width: usize,
    /// First column there.
    pub source_start: usize,
    /// Row length of the destination.
    pub target_width: usize,
    /// First column there.
    pub target_start: usize,
    /// Copy: each source row serves this many destination rows in turn. Sum: this many source rows in turn add up, in
    /// order, to one destination row.
    pub repeat: usize,
}

/// One AdamW step (arXiv 1711.05101, as `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// This step's number, from 1: moments are corrected for their start at zero.
    pub step: u64,
    /// Multiplies the gradient: the clipping coefficient.
    pub grad_scale: f64,
}

/// Names a stream of random numbers: two streams with different keys have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoiseKey {
    /// The run's seed.
    pub seed: u64,
    /// Which tensor.
    pub stream: u64,
}
