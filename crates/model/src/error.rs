//! What can go wrong in a model.

use cambium_kernels::KernelError;

/// Why a model operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A kernel refused its arguments or its device failed. Stop: the same call fails again.
    #[error("a kernel failed")]
    Kernel(#[from] KernelError),
    /// Tokens, rows or targets that do not fit together.
    #[error("{0}")]
    Input(String),
    /// A number that must be finite is not. Stop, or roll back to the last checkpoint.
    #[error(
        "{what} is {value} at step {step}; lower the learning rate, check the data of this step, or resume from an earlier checkpoint"
    )]
    NonFinite {
        /// Which number.
        what: String,
        /// Its value.
        value: f64,
        /// The optimizer step, from 1.
        step: u64,
    },
    /// A parameter that takes part in training has no gradient at the end of a step.
    #[error("{name} got no gradient in step {step}; this is a defect of the model code")]
    MissingGradient {
        /// The parameter.
        name: String,
        /// The optimizer step, from 1.
        step: u64,
    },
    /// An operation that needs gradients or moments on a model that was loaded without them.
    #[error("{name} was loaded for evaluation and has no {what}; load the model for training")]
    NotTrainable {
        /// The parameter.
        name: String,
        /// What it lacks.
        what: &'static str,
    },
    /// Files of a checkpoint that cannot be read as this model.
    #[error(transparent)]
    Checkpoint(#[from] crate::files::CheckpointError),
}

/// Results of this crate.
pub type Outcome<T = ()> = Result<T, ModelError>;
