//! Specs from files: the only IO of this crate.

use std::path::{Path, PathBuf};

use crate::ModelSpec;
use crate::problem::SpecErrors;

/// Why a spec could not be loaded from a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read {}; check the path", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("{} is not JSON; fetch it again or correct it", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where not.
        #[source]
        source: serde_json::Error,
    },
    /// What it says is wrong.
    #[error(transparent)]
    Spec(#[from] SpecErrors),
}

impl ModelSpec {
    /// Reads the `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    /// [`LoadError::Read`] and [`LoadError::Json`] if the file is not there or not JSON, [`LoadError::Spec`] with
    /// everything that is wrong with it: see [`Self::from_hf`].
    pub fn load_hf(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join("config.json");
        let text = read(&path)?;
        let config = serde_json::from_str(&text).map_err(|source| LoadError::Json { path: path.clone(), source })?;
        let origin = path.display().to_string();
        Ok(Self::from_hf(&config).map_err(|errors| SpecErrors { origin, ..errors })?)
    }
}

pub(crate) fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_path_buf(), source })
}
