//! One module per subcommand, and the arguments that several of them take.

pub(crate) mod bench;
pub(crate) mod eval;
pub(crate) mod train;

use cambium_model::Precision;
use clap::ValueEnum;

/// In which type weights and activations are while computing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// All in f32.
    F32,
    /// Matrices and activations in bf16; products accumulate in f32, masters and the router stay f32.
    Bf16,
}

impl Dtype {
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}
