//! What is trained and how: the model spec and the run spec, validated before anything runs.
//!
//! No tensors, no IO beyond reading a spec: every other crate depends on this one, and it on none of them.
//!
//! **Invariant:** a value of these types has been checked. Whatever changes the mathematics and is not supported
//! was refused by name when it was read, so no later code has to ask.
#![forbid(unsafe_code)]

pub mod check;
mod family;
mod fields;
pub mod hf;
mod load;
pub mod model;
pub mod names;
pub mod problem;
pub mod run;
pub mod tensors;

pub use hf::TorchDtype;
pub use load::LoadError;
pub use model::{
    Attention, Balance, Family, FeedForward, Gqa, Grouping, Mla, ModelSpec, Moe, NormPlacement, QkNorm, Rope, Router,
    Score, SharedExpert,
};
pub use names::{Matrix, TensorId, TensorRole};
pub use problem::{Problem, SpecErrors};
pub use run::{
    ComputeDtype, Data, DecayShape, Eval, ModelSource, Optimizer, Order, RunSpec, Schedule, ScheduleKind, Source,
    Train, Warning,
};
pub use tensors::TensorSpec;
