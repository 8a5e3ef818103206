//! The model: layers forward and backward, router, loss, optimizer, generic over a [`Backend`].
//!
//! Explicit forward and backward, no tape: every block has `forward -> (out, Saved)` and `backward(grad, Saved)`, so a
//! block can live in one process and the next in another, and what is kept between the two passes is a value that can
//! be counted, dropped or made again.
//!
//! Shape alphabet: B batch rows, T tokens of a microbatch (B times the sequence length), H hidden, N heads, G key/value
//! heads, D head size, E experts, K top-k, F expert hidden, V vocabulary, L layers, A assignments (= T*K).
//!
//! Accumulation rule: parameter gradients `+=` (the first write of a step overwrites), activation gradients `=`.
//!
//! **Invariant:** no sum depends on where a parameter lives: gradients add up microbatch by microbatch, norms are
//! reduced in f64 by parameter name, and an expert's rows of a microbatch are one product.
//!
//! [`Backend`]: cambium_kernels::Backend
#![forbid(unsafe_code)]

pub mod attention;
mod build;
pub mod context;
pub mod error;
pub mod experts;
pub mod files;
pub mod head;
pub mod init;
pub mod layer;
pub mod linear;
pub mod moe;
pub mod norm;
pub mod optimizer;
pub mod param;
pub mod stage;
pub mod swiglu;
pub mod trainer;

pub use context::{Context, Precision};
pub use error::ModelError;
pub use stage::Stage;
pub use trainer::{StepReport, TrainSettings, Trainer};
