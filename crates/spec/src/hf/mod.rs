//! Hugging Face `config.json`: read from transformers 4 and 5, written for both.
//!
//! **Invariant:** nothing that changes the mathematics is ignored. Every field is either read, or known to be harmless
//! (`known`), or refused by name with its value and the reason; a field that was never heard of is refused too.
//!
//! Where the two generations differ: 4 writes `rope_theta` and `rope_scaling` at the top, 5 `rope_parameters`; for
//! Qwen3-MoE 4 writes `num_experts`, 5 `num_local_experts`; 4 writes `torch_dtype`, 5 `dtype`.
//!
//! A key that is absent has the default of its family's config class, as in transformers. The sizes that make the
//! shape of a model are required, though: a file without them is a broken file, not a wish for the class's defaults.

mod experts;
mod keys;
mod known;
mod read;
mod refuse;
mod rope;
mod write;

pub(crate) use keys::Keys;
pub use read::prediction_layers;
pub use write::TorchDtype;
