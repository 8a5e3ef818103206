//! One suite for every backend: each kernel against [`Reference`](crate::reference::Reference), with random inputs.
//!
//! Every case draws its inputs from a seed: shapes with empty sides, single rows, widths that fill no vector, views at
//! odd offsets, every element type. It holds that outputs agree within their tolerance (and inputs and neighbours of a view
//! are left alone), that a repeated call gives the same bits wherever its buffers lie (and with as many threads as the caller likes), and that wrong lengths, wrong
//! element types, contradictory shapes and indices out of range are refused by the right [`KernelError`] before anything is
//! written. Outputs that a kernel overwrites hold NaN before the call.
//!
//! Not here: whether the reference is right; its backward passes are held to finite differences of its forward passes
//! in `tests/finite_differences`.

mod argument;
mod attention;
mod bench;
mod compare;
mod draw;
mod experts;
mod memory;
mod optimizer;
mod positions;
mod products;
mod router;
mod rows;
mod tokens;
mod tolerance;

use self::bench::{Bench, Checked};
use crate::backend::Backend;
use crate::buffer::Element;
use crate::error::KernelError;

/// One case of the suite: everything that is asked of one kernel.
#[derive(Debug)]
pub struct Case<B: Backend> {
    /// The method of [`Backend`] that it is about (`host_copies`: those to and from host tensors; `account`: memory).
    pub name: &'static str,
    check: fn(&mut Bench<'_, B>) -> Checked,
}

/// What a case found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel does what it should.
    Agrees,
    /// The backend says that it has no such kernel, and it was allowed to.
    Missing,
}

/// Why a backend does not conform.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A result, an error or a side effect that is not as it should be.
    #[error("{0}")]
    Wrong(String),
    /// A kernel that the backend has to have but has not, or an error where none belongs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The host tensor library failed.
    #[error(transparent)]
    Host(#[from] candle_core::Error),
    /// There is no case of this name.
    #[error("the conformance suite has no case {0}; take a name of conformance::cases")]
    UnknownCase(String),
}

impl Failure {
    fn wrong(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl<B: Backend> Case<B> {
    /// Runs this case on `backend` with inputs drawn from `seed`. Every call is repeated on `twin`, which has to give the
    /// same bits: `backend` itself, or one that differs in what must not show, such as the number of threads. If the
    /// case's name is in `may_be_missing`, the backend may answer with [`KernelError::Missing`].
    ///
    /// # Errors
    /// The first difference from what the suite asks.
    pub fn run(&self, backend: &B, twin: &B, seed: u64, may_be_missing: &[&str]) -> Result<Verdict, Failure> {
        match (self.check)(&mut Bench::new(backend, twin, seed)) {
            Ok(()) => Ok(Verdict::Agrees),
            Err(Failure::Kernel(KernelError::Missing { .. })) if may_be_missing.contains(&self.name) => {
                Ok(Verdict::Missing)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Every case, in the order of the [`Backend`] trait.
#[must_use]
pub fn cases<B: Backend>() -> Vec<Case<B>> {
    let case = |name, check| Case { name, check };
    vec![
        case("fill_zero", memory::fill_zero),
        case("copy", memory::copy),
        case("host_copies", memory::host_copies),
        case("account", memory::account),
        case("gemm", products::gemm),
        case("grouped_gemm", products::grouped_gemm),
        case("rms_norm_forward", rows::rms_norm_forward),
        case("rms_norm_backward", rows::rms_norm_backward),
        case("rope", positions::rope),
        case("swiglu_forward", rows::swiglu_forward),
        case("swiglu_backward", rows::swiglu_backward),
        case("sigmoid_gate_forward", rows::sigmoid_gate_forward),
        case("sigmoid_gate_backward", rows::sigmoid_gate_backward),
        case("bias_forward", rows::bias_forward),
        case("bias_backward", rows::bias_backward),
        case("add", rows::add),
        case("copy_columns", positions::copy_columns),
        case("sum_columns", positions::sum_columns),
        case("attention_forward", attention::attention_forward),
        case("attention_backward", attention::attention_backward),
        case("router_forward", router::router_forward),
        case("router_backward", router::router_backward),
        case("sort_by_expert", experts::sort_by_expert),
        case("gather_rows", experts::gather_rows),
        case("scatter_rows_add", experts::scatter_rows_add),
        case("combine_forward", experts::combine_forward),
        case("combine_backward", experts::combine_backward),
        case("embedding_forward", tokens::embedding_forward),
        case("embedding_backward", tokens::embedding_backward),
        case("cross_entropy", tokens::cross_entropy),
        case("adamw", optimizer::adamw),
        case("sum_squares", optimizer::sum_squares),
        case("fill_normal", optimizer::fill_normal),
    ]
}

/// Runs the case called `name`: see [`Case::run`].
///
/// # Errors
/// [`Failure::UnknownCase`], or as [`Case::run`].
pub fn run<B: Backend>(
    name: &str,
    backend: &B,
    twin: &B,
    seed: u64,
    may_be_missing: &[&str],
) -> Result<Verdict, Failure> {
    let case = cases::<B>().into_iter().find(|case| case.name == name);
    case.ok_or_else(|| Failure::UnknownCase(name.to_owned()))?.run(backend, twin, seed, may_be_missing)
}

/// The float types.
const FLOATS: [Element; 2] = [Element::F32, Element::Bf16];

/// Every pair of float types, for kernels whose floats may differ in type.
fn type_pairs() -> impl Iterator<Item = (Element, Element)> {
    FLOATS.into_iter().flat_map(|a| FLOATS.map(|b| (a, b)))
}
