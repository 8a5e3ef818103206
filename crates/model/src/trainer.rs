//! A whole model trained in one process: microbatches forward and backward, then one optimizer step.

use cambium_kernels::{Backend, Buffer, KernelError};
use cambium_spec::{Balance, ModelSpec};

use crate::context::{Context, Precision, rope_table};
use crate::error::{ModelError, Outcome};
use crate::moe::{BalanceWeight, Routing};
use crate::optimizer::{OptimizerSettings, clip_scale, grad_norm, grad_squares, update, update_selection_biases};
use crate::param::Use;
use crate::stage::{Pass, Stage, StageInput, StageOutput};

/// How a run trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainSettings {
    /// AdamW and clipping.
    pub optimizer: OptimizerSettings,
    /// The router's losses.
    pub balance: Balance,
    /// Rows of a microbatch; the last of a step may be smaller.
    pub microbatch_rows: usize,
    /// Compute activations again in the backward instead of keeping them.
    pub recompute: bool,
}

/// A model with all its layers here, ready to train or to evaluate.
pub struct Trainer<B: Backend> {
    backend: B,
    stage: Stage<B>,
    settings: TrainSettings,
    step: u64,
    rope: Option<(usize, B::Buffer)>,
}

/// What a training step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// Mean negative log-likelihood of the step's tokens, in nats, without the router's losses.
    pub loss: f64,
    /// Global gradient norm before clipping, the router's losses included.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// By MoE layer and expert: assignments in the step.
    pub expert_load: Vec<Vec<u64>>,
    /// By MoE layer: the load-balancing loss, without its coefficient, averaged over the step's tokens.
    pub load_balance: Vec<f64>,
    /// By MoE layer: the z-loss, without its coefficient, averaged over the step's tokens.
    pub z: Vec<f64>,
}

/// The sums of a step over its microbatches.
#[derive(Default)]
struct Sums {
    nll: f64,
    load: Vec<Vec<u64>>,
    load_balance: Vec<f64>,
    z: Vec<f64>,
}

impl Sums {
    fn add(&mut self, nll: &[f64], routings: &[Routing], share: f64) {
        self.nll += nll.iter().sum::<f64>();
        if self.load.is_empty() {
            self.load = routings.iter().map(|routing| vec![0; routing.counts.len()]).collect();
            self.load_balance = vec![0.0; routings.len()];
            self.z = vec![0.0; routings.len()];
        }
        for (index, routing) in routings.iter().enumerate() {
            for (sum, count) in self.load[index].iter_mut().zip(&routing.counts) {
                *sum += u64::from(*count);
            }
            self.load_balance[index] += share * routing.load_balance;
            self.z[index] += share * routing.z;
        }
    }
}

impl<B: Backend> Trainer<B> {
    /// Room for a model; all its parameters are zero until they are loaded or initialised.
    ///
    /// # Errors
    /// If the backend has no memory left.
    pub fn new(
        backend: B,
        spec: &ModelSpec,
        precision: Precision,
        usage: Use,
        settings: TrainSettings,
    ) -> Outcome<Self> {
        let stage = Stage::zeros(&backend, spec, 0..spec.layer_count(), precision, usage)?;
        Ok(Self { backend, stage, settings, step: 0, rope: None })
    }

    /// The model.
    pub fn stage(&self) -> &Stage<B> {
        &self.stage
    }

    /// The model, to load or change parameters.
    pub fn stage_mut(&mut self) -> &mut Stage<B> {
        &mut self.stage
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// One optimizer step over `inputs` and `targets`, rows of `seq_len` one after the other.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] if the loss or the gradient norm is not finite; the parameters are then as before the
    /// step. Otherwise if tokens do not fit or a kernel fails.
    pub fn train_step(&mut self, inputs: &[u32], targets: &[u32], seq_len: usize, lr: f64) -> Outcome<StepReport> {
        let backend = self.backend.clone();
        let report = backend.run(|| self.step_inside(inputs, targets, seq_len, lr));
        report.map_err(|error| {
            self.stage.params_mut().into_iter().for_each(crate::param::Param::discard_grad);
            match error {
                ModelError::Kernel(KernelError::NonFinite { what, value, .. }) => {
                    ModelError::NonFinite { what, value, step: self.step + 1 }
                }
                other => other,
            }
        })
    }

    fn step_inside(&mut self, inputs: &[u32], targets: &[u32], seq_len: usize, lr: f64) -> Outcome<StepReport> {
        check_rows(inputs, targets, seq_len)?;
        let step = self.step + 1;
        let sums = self.accumulate(inputs, targets, seq_len)?;
        let loss = finite("the loss", sums.nll / inputs.len() as f64, step)?;
        let squares = grad_squares(&self.backend, &self.stage, step)?;
        if let Some((name, square)) = squares.iter().find(|(_, square)| !square.is_finite()) {
            finite(&format!("the squared gradient of {name}"), *square, step)?;
        }
        let norm = finite("the gradient norm", grad_norm(squares), step)?;
        let settings = &self.settings.optimizer;
        let scale = clip_scale(norm, settings.grad_clip);
        update(&self.backend, &mut self.stage, settings, lr, step, scale)?;
        let rate = self.settings.balance.bias_update;
        update_selection_biases(&self.backend, &mut self.stage, &sums.load, rate)?;
        self.step = step;
        Ok(StepReport {
            step,
            loss,
            grad_norm: norm,
            lr,
            tokens: inputs.len(),
            expert_load: sums.load,
            load_balance: sums.load_balance,
            z: sums.z,
        })
    }

    /// Gradients of a step, without the optimizer: what [`Self::train_step`] does first. Gives the mean loss.
    ///
    /// # Errors
    /// If tokens do not fit or a kernel fails.
    pub fn gradients(&mut self, inputs: &[u32], targets: &[u32], seq_len: usize) -> Outcome<f64> {
        check_rows(inputs, targets, seq_len)?;
        self.stage.params_mut().into_iter().for_each(crate::param::Param::discard_grad);
        let backend = self.backend.clone();
        Ok(backend.run(|| self.accumulate(inputs, targets, seq_len))?.nll / inputs.len() as f64)
    }

    fn accumulate(&mut self, inputs: &[u32], targets: &[u32], seq_len: usize) -> Outcome<Sums> {
        self.prepare(seq_len)?;
        let total = inputs.len();
        let mut sums = Sums::default();
        let microbatch = self.settings.microbatch_rows.max(1) * seq_len;
        for (inputs, targets) in inputs.chunks(microbatch).zip(targets.chunks(microbatch)) {
            let share = inputs.len() as f64 / total as f64;
            let pass = Pass { grad_scale: 1.0 / total as f64, recompute: self.settings.recompute };
            let cx = context(&self.backend, &self.stage, self.rope.as_ref(), inputs.len(), seq_len)?;
            let (out, saved, routings) = self.stage.forward(&cx, StageInput::Tokens(inputs), Some(targets), pass)?;
            let StageOutput::Nll(nll) = out else { return Err(not_whole()) };
            sums.add(&nll, &routings, share);
            self.stage.backward(&cx, None, saved, BalanceWeight { balance: self.settings.balance, share })?;
        }
        Ok(sums)
    }

    /// Negative log-likelihood of every target, in nats; at most `microbatch_rows` rows are in flight.
    ///
    /// # Errors
    /// If tokens do not fit or a kernel fails.
    pub fn nll(&mut self, inputs: &[u32], targets: &[u32], seq_len: usize) -> Outcome<Vec<f64>> {
        check_rows(inputs, targets, seq_len)?;
        self.prepare(seq_len)?;
        let microbatch = self.settings.microbatch_rows.max(1) * seq_len;
        let this = &*self;
        this.backend.run(|| {
            let mut all = Vec::with_capacity(inputs.len());
            for (inputs, targets) in inputs.chunks(microbatch).zip(targets.chunks(microbatch)) {
                let cx = context(&this.backend, &this.stage, this.rope.as_ref(), inputs.len(), seq_len)?;
                match this.stage.evaluate(&cx, StageInput::Tokens(inputs), Some(targets))? {
                    StageOutput::Nll(nll) => all.extend(nll),
                    StageOutput::Hidden(_) => return Err(not_whole()),
                }
            }
            Ok(all)
        })
    }

    /// Logits (T, V) of rows of tokens.
    ///
    /// # Errors
    /// If tokens do not fit or a kernel fails.
    pub fn logits(&mut self, inputs: &[u32], seq_len: usize) -> Outcome<candle_core::Tensor> {
        check_rows(inputs, inputs, seq_len)?;
        self.prepare(seq_len)?;
        let this = &*self;
        this.backend.run(|| {
            let cx = context(&this.backend, &this.stage, this.rope.as_ref(), inputs.len(), seq_len)?;
            let logits = this.stage.logits(&cx, StageInput::Tokens(inputs))?;
            let shape = [inputs.len(), logits.len() / inputs.len()];
            Ok(this.backend.read((&logits).into(), &shape)?)
        })
    }

    fn prepare(&mut self, seq_len: usize) -> Outcome {
        if self.rope.as_ref().is_none_or(|(length, _)| *length != seq_len) {
            self.rope = Some((seq_len, rope_table(&self.backend, &self.stage.spec, seq_len)?));
        }
        Ok(())
    }
}

fn context<'a, B: Backend>(
    backend: &'a B,
    stage: &Stage<B>,
    rope: Option<&'a (usize, B::Buffer)>,
    tokens: usize,
    seq_len: usize,
) -> Outcome<Context<'a, B>> {
    let (_, rope) = rope.ok_or_else(|| ModelError::Input("no positions were prepared for this pass".into()))?;
    Ok(Context { backend, precision: stage.precision, batch: tokens / seq_len, seq_len, rope })
}

fn not_whole() -> ModelError {
    ModelError::Input("a trainer needs the whole model, its head included".into())
}

fn check_rows(inputs: &[u32], targets: &[u32], seq_len: usize) -> Outcome {
    if seq_len == 0 || inputs.is_empty() || !inputs.len().is_multiple_of(seq_len) || inputs.len() != targets.len() {
        let (inputs, targets) = (inputs.len(), targets.len());
        return Err(ModelError::Input(format!(
            "{inputs} inputs and {targets} targets are no rows of {seq_len} tokens"
        )));
    }
    Ok(())
}

fn finite(what: &str, value: f64, step: u64) -> Outcome<f64> {
    if value.is_finite() { Ok(value) } else { Err(ModelError::NonFinite { what: what.into(), value, step }) }
}
