//! The kernels of training behind one seam: [`Backend`].
//!
//! - [`cpu`]: SIMD on the host, what Cambium trains with where there is no card.
//! - [`mod@reference`]: candle-core in f64, written for clarity; the oracle of the others.
//! - `cuda` (feature): cudarc, cuBLASLt and NVRTC.
//!
//! The only crate with `unsafe`. Every kernel is a safe method that checks element types and lengths before it runs,
//! and [`conformance`] holds every backend to the same suite.
//!
//! Shape alphabet (here and in `crates/model`): B batch rows, T tokens (of a microbatch, all rows) or sequence where
//! said, H hidden, N heads, G key/value heads, D head size, E experts, K top-k, F expert hidden, V vocabulary,
//! A assignments (= T*K, nothing is dropped).
//!
//! **Invariant:** for one build on one kind of machine a kernel's result is a function of its inputs only: not of the
//! number of threads, not of what ran before. Every sum has a fixed order.

pub mod backend;
pub mod buffer;
pub mod conformance;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod noise;
pub mod ops;
pub mod profile;
pub mod reference;

pub use backend::Backend;
pub use buffer::{Buffer, Element, MemoryUse, View, ViewMut};
pub use error::KernelError;
pub use ops::*;
