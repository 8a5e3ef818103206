//! `metrics.jsonl`: one object a step, written as the step ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use cambium_model::StepReport;
use serde::Serialize;

/// One line of the file.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    /// From 1.
    pub(super) step: u64,
    /// Mean negative log-likelihood of the step's tokens, in nats.
    pub(super) loss: f64,
    /// Before clipping.
    pub(super) grad_norm: f64,
    pub(super) lr: f64,
    /// Seen since the run began.
    pub(super) tokens: u64,
    pub(super) tokens_per_s: f64,
    /// By MoE layer and expert: assignments of the step.
    pub(super) expert_load: &'a [Vec<u64>],
    /// By MoE layer; 1 is even.
    pub(super) load_balance: &'a [f64],
    /// By MoE layer.
    pub(super) z: &'a [f64],
    /// Held-out losses, in steps that evaluate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) eval: Vec<Held>,
}

/// The loss on one held-out source.
#[derive(Clone, Serialize)]
pub(super) struct Held {
    pub(super) source: PathBuf,
    pub(super) nll: f64,
    pub(super) perplexity: f64,
}

impl<'a> Line<'a> {
    pub(super) fn new(report: &'a StepReport, tokens: u64, tokens_per_s: f64, eval: Vec<Held>) -> Self {
        Self {
            step: report.step,
            loss: report.loss,
            grad_norm: report.grad_norm,
            lr: report.lr,
            tokens,
            tokens_per_s,
            expert_load: &report.expert_load,
            load_balance: &report.load_balance,
            z: &report.z,
            eval,
        }
    }
}

/// The file, if the run asks for one.
pub(super) struct Metrics(Option<(PathBuf, File)>);

impl Metrics {
    /// Begins a new file.
    ///
    /// # Errors
    /// If it cannot be created.
    pub(super) fn create(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = File::create(path)
            .with_context(|| format!("cannot create {}; check train.metrics and its directory", path.display()))?;
        Ok(Self(Some((path.to_owned(), file))))
    }

    /// Adds a line; it is with the system when this returns.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&mut self, line: &Line<'_>) -> anyhow::Result<()> {
        let Some((path, file)) = &mut self.0 else { return Ok(()) };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        file.write_all(&text).with_context(|| format!("cannot write {}", path.display()))
    }
}
