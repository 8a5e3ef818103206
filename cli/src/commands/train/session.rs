//! A run in progress: model, data, metrics, and the loop over its steps.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use cambium_data::{Dataset, Order, SourceSpec};
use cambium_kernels::cpu::Cpu;
use cambium_model::files::{SaveAs, load_model, load_spec, save};
use cambium_model::init::initialize;
use cambium_model::optimizer::OptimizerSettings;
use cambium_model::param::Use;
use cambium_model::{Precision, StepReport, TrainSettings, Trainer};
use cambium_spec::{ComputeDtype, ModelSource, ModelSpec, RunSpec};
use indicatif::ProgressBar;

use super::evaluate::Evaluation;
use super::metrics::{Held, Line, Metrics};
use crate::progress;

/// Everything that a run needs, opened and checked before its first step.
pub(super) struct Session {
    run: RunSpec,
    data: Dataset,
    evaluation: Evaluation,
    metrics: Metrics,
    trainer: Trainer<Cpu>,
    quiet: bool,
}

/// What a run came to.
#[derive(serde::Serialize)]
pub(super) struct Summary {
    steps: u64,
    tokens: u64,
    final_loss: f64,
    tokens_per_s: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    eval: Vec<Held>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<PathBuf>,
}

impl Session {
    pub(super) fn open(run: RunSpec, quiet: bool) -> anyhow::Result<Self> {
        let spec = match &run.model {
            ModelSource::From(directory) => load_spec(directory)?,
            ModelSource::Inline(spec) => (**spec).clone(),
        };
        run.check_model(&spec)?;
        for warning in run.warnings(&spec) {
            eprintln!("warning: {warning}");
        }
        let sources: Vec<_> =
            run.data.sources.iter().map(|source| SourceSpec::new(&source.path).with_weight(source.weight)).collect();
        let order = match run.data.order {
            cambium_spec::Order::Sequential => Order::Sequential,
            cambium_spec::Order::Shuffled => Order::Shuffled,
        };
        let data = Dataset::open(&sources, run.data.seq_len, spec.vocab_size, order, run.train.seed)?;
        let evaluation = Evaluation::open(&run, spec.vocab_size)?;
        // What cannot be written at the end is better known at the beginning.
        if let Some(output) = &run.train.output {
            std::fs::create_dir_all(output)
                .with_context(|| format!("cannot create {}; check train.output", output.display()))?;
        }
        let trainer = trainer(&run, &spec)?;
        let metrics = Metrics::create(run.train.metrics.as_deref())?;
        Ok(Self { run, data, evaluation, metrics, trainer, quiet })
    }

    pub(super) fn train(&mut self) -> anyhow::Result<Summary> {
        let (steps, rows) = (self.run.train.steps, self.run.train.rows_per_step);
        let bar = if self.quiet { ProgressBar::hidden() } else { progress::bar(steps, "steps") };
        let begun = Instant::now();
        let mut last = (0.0, Vec::new());
        for index in 0..steps {
            let started = Instant::now();
            let lr = self.run.schedule.lr(index, steps, self.run.optimizer.lr);
            let batch = self.data.batch(index, rows)?;
            let report = self.trainer.train_step(&batch.inputs, &batch.targets, self.run.data.seq_len, lr)?;
            let tokens_per_s = report.tokens as f64 / started.elapsed().as_secs_f64();
            let held = if self.evaluation.is_due(index + 1, index + 1 == steps) {
                self.evaluation.measure(&mut self.trainer)?
            } else {
                Vec::new()
            };
            self.say(&bar, &report, tokens_per_s, &held);
            let tokens = (index + 1) * self.run.tokens_per_step();
            self.metrics.write(&Line::new(&report, tokens, tokens_per_s, held.clone()))?;
            last = (report.loss, held);
        }
        bar.finish_and_clear();
        if let Some(output) = &self.run.train.output {
            save(self.trainer.backend(), self.trainer.stage(), output, SaveAs::default())?;
            if !self.quiet {
                println!("wrote {}", output.display());
            }
        }
        let tokens = steps * self.run.tokens_per_step();
        let (final_loss, eval) = last;
        let tokens_per_s = tokens as f64 / begun.elapsed().as_secs_f64();
        Ok(Summary { steps, tokens, final_loss, tokens_per_s, eval, output: self.run.train.output.clone() })
    }

    fn say(&self, bar: &ProgressBar, report: &StepReport, tokens_per_s: f64, held: &[Held]) {
        let StepReport { step, loss, grad_norm, lr, .. } = report;
        let steps = self.run.train.steps;
        let measured: String =
            held.iter().map(|held| format!(", {} NLL {:.4}", held.source.display(), held.nll)).collect();
        let line = format!("loss {loss:.4}, grad norm {grad_norm:.3}, lr {lr:.3e}, {tokens_per_s:.0} tokens/s");
        bar.set_message(line.clone());
        bar.inc(1);
        if self.quiet {
            return;
        }
        if bar.is_hidden() {
            println!("step {step}/{steps}: {line}{measured}");
        } else if !held.is_empty() {
            bar.println(format!("step {step}/{steps}: loss {loss:.4}{measured}"));
        }
    }
}

fn trainer(run: &RunSpec, spec: &ModelSpec) -> anyhow::Result<Trainer<Cpu>> {
    let optimizer = &run.optimizer;
    let settings = TrainSettings {
        optimizer: OptimizerSettings {
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            eps: optimizer.eps,
            weight_decay: optimizer.weight_decay,
            grad_clip: optimizer.grad_clip,
        },
        balance: run.losses,
        microbatch_rows: run.train.microbatch_rows,
        recompute: run.train.recompute,
    };
    let precision = match run.train.dtype {
        ComputeDtype::F32 => Precision::F32,
        ComputeDtype::Bf16 => Precision::Bf16,
    };
    let backend = Cpu::new(run.train.threads)?;
    let mut trainer = Trainer::new(backend.clone(), spec, precision, Use::Train, settings)?;
    match &run.model {
        ModelSource::From(directory) => load_model(&backend, trainer.stage_mut(), directory)?,
        ModelSource::Inline(_) => initialize(&backend, trainer.stage_mut(), run.train.seed)?,
    }
    Ok(trainer)
}
