//! Held-out losses while training.

use std::path::PathBuf;

use cambium_data::{Dataset, Order, SourceSpec};
use cambium_kernels::Backend;
use cambium_model::Trainer;
use cambium_spec::RunSpec;

use super::metrics::Held;

/// The held-out sources of a run, each measured by itself.
pub(super) struct Evaluation {
    sources: Vec<(PathBuf, Dataset, usize)>,
    every_steps: Option<u64>,
    /// Windows in flight at one time.
    rows: usize,
    seq_len: usize,
}

impl Evaluation {
    /// Opens what `[eval]` names; nothing if there is no such table.
    ///
    /// # Errors
    /// If a source cannot be read or is too short for one window.
    pub(super) fn open(run: &RunSpec, vocab_size: usize) -> anyhow::Result<Self> {
        let seq_len = run.data.seq_len;
        let mut opened = Self { sources: Vec::new(), every_steps: None, rows: run.train.microbatch_rows, seq_len };
        let Some(eval) = &run.eval else { return Ok(opened) };
        opened.every_steps = eval.every_steps;
        for source in &eval.sources {
            let spec = [SourceSpec::new(&source.path)];
            let data = Dataset::open(&spec, seq_len, vocab_size, Order::Sequential, 0)?;
            let windows = usize::try_from(data.window_count())?;
            let rows = eval.rows.unwrap_or(windows).min(windows);
            opened.sources.push((source.path.clone(), data, rows));
        }
        Ok(opened)
    }

    /// Is there one after this step? Always after the last.
    pub(super) fn is_due(&self, step: u64, last: bool) -> bool {
        !self.sources.is_empty() && (last || self.every_steps.is_some_and(|every| step.is_multiple_of(every)))
    }

    /// The loss on every source.
    ///
    /// # Errors
    /// If a window cannot be read or a kernel fails.
    pub(super) fn measure<B: Backend>(&self, trainer: &mut Trainer<B>) -> anyhow::Result<Vec<Held>> {
        self.sources
            .iter()
            .map(|(path, data, rows)| {
                let mut all = Vec::with_capacity(rows * self.seq_len);
                for start in (0..*rows).step_by(self.rows) {
                    let batch = data.batch_rows(0, *rows, start..(start + self.rows).min(*rows))?;
                    all.extend(trainer.nll(&batch.inputs, &batch.targets, self.seq_len)?);
                }
                // One sum in order, so that `cambium eval` with other microbatches comes to the same bits.
                let nll = all.iter().sum::<f64>() / all.len() as f64;
                Ok(Held { source: path.clone(), nll, perplexity: nll.exp() })
            })
            .collect()
    }
}
