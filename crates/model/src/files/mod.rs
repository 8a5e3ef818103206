//! Hugging Face directories: `config.json` and safetensors, one file or sharded with an index.
//!
//! Headers are read first and judged whole: everything missing, extra, misshapen or of an unknown type is reported at
//! once, by name, before any tensor is read. Tensors are then read one by one, by their byte range.

mod read;
mod write;

use std::path::{Path, PathBuf};

pub use read::{HfDirectory, load_model, load_spec};
pub use write::{SaveAs, save};

/// Why a checkpoint on disk cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file that is not what its name says.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with values.
        reason: String,
    },
    /// A config that does not describe a model that can be trained exactly.
    #[error("{path} does not describe a supported model")]
    Config {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        #[source]
        source: cambium_spec::SpecErrors,
    },
    /// Tensors that do not make up the model.
    #[error("{path} does not hold this model:\n  {}", problems.join("\n  "))]
    Tensors {
        /// The directory.
        path: PathBuf,
        /// Every problem, with the tensor's name.
        problems: Vec<String>,
    },
}

impl CheckpointError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.into() }
    }
}
