//! The run spec: everything that decides a training run, from TOML, checked before anything starts.
//!
//! Unknown keys, mistyped and impossible values and contradictions are reported all at once. What a field says when it
//! is absent stands at the field. A spec that was read is resolved: its defaults are filled in, its length is in
//! steps, and it is written back ([`RunSpec::to_toml`], [`RunSpec::to_json`]) so that it reads as itself.

mod overrides;
mod read;
mod schedule;
mod training;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use schedule::{DecayShape, Schedule, ScheduleKind};

use crate::load::LoadError;
use crate::problem::{Problem, SpecErrors};
use crate::{Balance, ModelSpec};

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value", into = "serde_json::Value")]
pub struct RunSpec {
    /// `[model]`: required; either `from`, or `family` with the keys of that family's `config.json`.
    pub model: ModelSource,
    /// `[data]`: required.
    pub data: Data,
    /// `[optimizer]`: AdamW.
    pub optimizer: Optimizer,
    /// `[schedule]`: the learning rate over the run.
    pub schedule: Schedule,
    /// `[losses]`: `load_balance`, `z`, `bias_update`; each 0, off, unless asked for.
    pub losses: Balance,
    /// `[train]`: required.
    pub train: Train,
    /// `[eval]`: no evaluation if absent.
    pub eval: Option<Eval>,
}

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    /// `from`: a local Hugging Face directory, weights and all.
    From(PathBuf),
    /// `family = "qwen3_moe"` with the keys of its `config.json`: a freshly initialised model.
    Inline(Box<ModelSpec>),
}

/// Token files and how windows are drawn from them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// T: tokens that a row of the batch predicts; a window holds one more. Required.
    pub seq_len: usize,
    /// Order of the windows. Default: `sequential`.
    pub order: Order,
    /// What is read, blended by weight; at least one. Required.
    pub sources: Vec<Source>,
}

/// The order in which windows are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they stand in the corpus: row r of step s is window `s * rows_per_step + r`.
    Sequential,
    /// Permuted by `train.seed`.
    Shuffled,
}

/// A corpus.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// A Megatron prefix (`PREFIX.bin` and `PREFIX.idx`) or a flat token file. Required.
    pub path: PathBuf,
    /// Its share of the rows, relative to the other sources'. Default: 1.
    pub weight: f64,
}

/// AdamW (arXiv 1711.05101); decay applies to tensors of two or more dimensions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    /// The learning rate that the schedule scales. Default: 3e-4.
    pub lr: f64,
    /// Decay of the first moment, in [0, 1). Default: 0.9.
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1). Default: 0.95.
    pub beta2: f64,
    /// Added to the root of the second moment. Default: 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default: 0.1.
    pub weight_decay: f64,
    /// The norm that the gradient of all parameters together is clipped to; 0 turns clipping off. Default: 1.
    pub grad_clip: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
    }
}

/// Length, batch, numerics and outputs of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    /// Optimizer steps. Either this or `tokens` is required; `tokens` is turned into the fewest steps that see at
    /// least so many, a step being `rows_per_step * data.seq_len` tokens.
    pub steps: u64,
    /// Rows (windows) of one optimizer step. Default: 8.
    pub rows_per_step: usize,
    /// Rows of one microbatch, a divisor of `rows_per_step`; gradients are accumulated. Default: `rows_per_step`.
    pub microbatch_rows: usize,
    /// Data type of the computation; master weights are f32 always. Default: `f32`.
    pub dtype: ComputeDtype,
    /// Of fresh weights and of the shuffled order, at most 2^63-1. Default: 0.
    pub seed: u64,
    /// Activations are computed again in the backward instead of being kept. Default: false.
    pub recompute: bool,
    /// Compute threads; 0 is one for each core. The numbers do not depend on it. Default: 0.
    pub threads: usize,
    /// JSON lines, one a step. Default: none are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<PathBuf>,
    /// The Hugging Face directory that is written at the end. Default: none is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
}

/// Data type of a computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    /// f32 throughout.
    F32,
    /// bf16 weights and activations, products accumulated in f32; router, norms' statistics and loss in f32.
    Bf16,
}

/// Evaluation on held-out data while training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Eval {
    /// Steps from one evaluation to the next; there is always one after the last step. Default: only that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Held-out corpora, as in `[data]`. Required.
    pub sources: Vec<Source>,
    /// Windows of each source that are evaluated, from its beginning. Default: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
}

/// Something that is allowed and probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// No loss and no bias keeps the experts evenly loaded.
    Unbalanced,
    /// Windows are longer than the model was made for.
    LongSequences {
        /// `data.seq_len`.
        seq_len: usize,
        /// `max_position_embeddings` of the model.
        max_position_embeddings: usize,
    },
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unbalanced => f.write_str(
                "nothing balances the load of the experts, a few may take all tokens; \
                 set losses.load_balance (0.01 is usual) or losses.bias_update",
            ),
            Self::LongSequences { seq_len, max_position_embeddings } => write!(
                f,
                "data.seq_len = {seq_len} is longer than max_position_embeddings = {max_position_embeddings}; \
                 shorten it or raise the model's limit"
            ),
        }
    }
}

impl RunSpec {
    /// Reads a run spec file, then `overrides` (`key=value`, see [`Self::from_toml`]). Relative paths in it, and in the
    /// overrides, are taken from the file's directory.
    ///
    /// # Errors
    /// [`LoadError::Read`] if the file cannot be read, [`LoadError::Spec`] with everything that is wrong with it.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, LoadError> {
        let text = crate::load::read(path)?;
        let origin = path.display().to_string();
        if path.to_str().is_none() {
            // The paths of a spec are text, also in the manifest of what it makes.
            let problem = Problem::new("path", &origin, "is not UTF-8", "rename it");
            return Err(SpecErrors { origin, problems: vec![problem] }.into());
        }
        let mut spec = Self::from_toml(&text, overrides).map_err(|errors| SpecErrors { origin, ..errors })?;
        spec.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(spec)
    }

    /// Takes every relative path from `base`.
    fn resolve_paths(&mut self, base: &Path) {
        let sources = self.data.sources.iter_mut().chain(self.eval.iter_mut().flat_map(|eval| &mut eval.sources));
        let paths = sources.map(|source| &mut source.path).chain(&mut self.train.metrics).chain(&mut self.train.output);
        let model = match &mut self.model {
            ModelSource::From(path) => Some(path),
            ModelSource::Inline(_) => None,
        };
        for path in paths.chain(model) {
            // `join` keeps an absolute path as it is.
            *path = base.join(&*path);
        }
    }

    /// Tokens that one optimizer step trains on.
    #[must_use]
    pub fn tokens_per_step(&self) -> u64 {
        self.train.rows_per_step as u64 * self.data.seq_len as u64
    }

    /// What is allowed and probably not meant, for the model that is trained.
    #[must_use]
    pub fn warnings(&self, model: &ModelSpec) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if model.moe_layer_count() > 0 && self.losses == Balance::default() {
            warnings.push(Warning::Unbalanced);
        }
        let (seq_len, max_position_embeddings) = (self.data.seq_len, model.max_position_embeddings);
        if seq_len > max_position_embeddings {
            warnings.push(Warning::LongSequences { seq_len, max_position_embeddings });
        }
        warnings
    }

    /// Checks the run against the model that is trained; done on reading where the model is written inline.
    ///
    /// # Errors
    /// Every contradiction between the two.
    pub fn check_model(&self, model: &ModelSpec) -> Result<(), SpecErrors> {
        SpecErrors::unless_empty("run spec", read::model_problems(&self.losses, model))
    }
}
