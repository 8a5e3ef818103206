//! Fixtures made by PyTorch and transformers, and what tests share to hold models against them.
//!
//! A fixture is a Hugging Face directory with an oracle beside it: what transformers computes on it in f64, and how far
//! PyTorch's own f32 and bf16 are from that. The programs that made them lie with them.
#![forbid(unsafe_code)]

pub mod fixture;
pub mod gradients;

pub use fixture::{Fixture, relative_error};
pub use gradients::gradients;
