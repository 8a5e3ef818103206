//! `cambium bench step`: whole training steps of a model on random tokens.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use cambium_kernels::cpu::Cpu;
use cambium_kernels::profile::{Profiled, Work};
use cambium_kernels::{Backend, Element};
use cambium_model::files::load_spec;
use cambium_model::init::initialize;
use cambium_model::optimizer::OptimizerSettings;
use cambium_model::param::Use;
use cambium_model::{TrainSettings, Trainer};
use cambium_spec::{Balance, ModelSpec};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::ceiling::Ceiling;
use crate::commands::Dtype;
use crate::output::{self, Table};
use crate::progress;

/// Train a model for a few steps on random tokens and say where the time goes.
///
/// Weights are fresh. FLOPs are those of the matrix products and of the causal half of attention, forward and backward;
/// what recomputation adds does not count. Time by kind of work is taken in separate steps, with each kernel timed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cambium bench step --model tests/peers/reference.json --seq-len 256 --rows 8
  cambium bench step --model ./olmoe/config.json --dtype bf16 --rows 8 --microbatch-rows 4 --json")]
pub(crate) struct Args {
    /// A Hugging Face config.json, or a directory with one
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// T: tokens of a row
    #[arg(long, value_name = "T", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    seq_len: u32,
    /// Rows of a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Rows of a microbatch [default: all rows of the step]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    microbatch_rows: Option<u32>,
    /// Compute in this type
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Timed steps
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Steps before those
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u32,
    /// Threads; 0 takes all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Compute activations again in the backward instead of keeping them
    #[arg(long)]
    recompute: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report {
    parameters: u64,
    active_parameters: u64,
    tokens_per_step: usize,
    step_ms: f64,
    tokens_per_s: f64,
    gflops_per_s: f64,
    ceiling: Ceiling,
    ceiling_fraction: f64,
    memory: Memory,
    kernels: Vec<Kernel>,
}

/// Bytes; see docs/benchmarks.md for what each holds.
#[derive(serde::Serialize)]
struct Memory {
    parameters: usize,
    moments: usize,
    gradients: usize,
    compute_copies: usize,
    /// The most that was alive in a step, less the four above: activations and scratch.
    activations_peak: usize,
    peak: usize,
    held: usize,
}

#[derive(serde::Serialize)]
struct Kernel {
    kernel: &'static str,
    calls: u64,
    ms: f64,
    fraction: f64,
    gflops_per_s: Option<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let spec = read_spec(&args.model)?;
    let bench = Bench { args, spec: &spec, tokens: (args.rows * args.seq_len) as usize };
    let cpu = Cpu::new(args.threads)?;
    let element = args.dtype.precision().element();
    let ceiling = cpu.run(|| Ceiling::measure(&cpu))?;

    let bar = progress::bar(u64::from(2 * (args.warmup + args.steps)), "steps");
    let (step_ms, memory) = {
        let mut trainer = bench.trainer(cpu.clone())?;
        let times = bench.time_steps(&mut trainer, &bar)?;
        (median(times), memory(&cpu, &trainer, element))
    };
    let (profiled_ms, work) = {
        let profiled = Profiled::new(cpu.clone());
        let mut trainer = bench.trainer(profiled.clone())?;
        bench.steps(&mut trainer, args.warmup, &bar)?;
        let _warmed_up = profiled.take();
        let start = Instant::now();
        bench.steps(&mut trainer, args.steps, &bar)?;
        (start.elapsed().as_secs_f64() * 1e3 / f64::from(args.steps), profiled.take())
    };
    bar.finish_and_clear();

    let flops = 3 * spec.forward_flops_per_token(args.seq_len as usize) * bench.tokens as u64;
    let gflops_per_s = flops as f64 / step_ms / 1e6;
    let report = Report {
        parameters: spec.parameter_count(),
        active_parameters: spec.active_parameter_count(),
        tokens_per_step: bench.tokens,
        step_ms,
        tokens_per_s: bench.tokens as f64 / step_ms * 1e3,
        gflops_per_s,
        ceiling,
        ceiling_fraction: gflops_per_s / ceiling.gemm_gflops(element),
        memory,
        kernels: kernels(&work, args.steps, profiled_ms),
    };
    if args.json { output::json(&report) } else { print(&report) }
}

/// The model of a config.json or of a directory that has one.
fn read_spec(path: &Path) -> anyhow::Result<ModelSpec> {
    if path.is_dir() {
        return Ok(load_spec(path)?);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    ModelSpec::from_hf(&json).with_context(|| format!("{} does not describe a supported model", path.display()))
}

struct Bench<'a> {
    args: &'a Args,
    spec: &'a ModelSpec,
    tokens: usize,
}

impl Bench<'_> {
    fn trainer<B: Backend>(&self, backend: B) -> anyhow::Result<Trainer<B>> {
        let settings = TrainSettings {
            optimizer: OptimizerSettings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 },
            balance: Balance::default(),
            microbatch_rows: self.args.microbatch_rows.unwrap_or(self.args.rows) as usize,
            recompute: self.args.recompute,
        };
        let precision = self.args.dtype.precision();
        let mut trainer = Trainer::new(backend.clone(), self.spec, precision, Use::Train, settings)?;
        initialize(&backend, trainer.stage_mut(), 1)?;
        Ok(trainer)
    }

    /// Milliseconds of each timed step.
    fn time_steps<B: Backend>(
        &self,
        trainer: &mut Trainer<B>,
        bar: &indicatif::ProgressBar,
    ) -> anyhow::Result<Vec<f64>> {
        self.steps(trainer, self.args.warmup, bar)?;
        trainer.backend().reset_peak();
        (0..self.args.steps)
            .map(|_| {
                let start = Instant::now();
                self.steps(trainer, 1, bar)?;
                Ok(start.elapsed().as_secs_f64() * 1e3)
            })
            .collect()
    }

    fn steps<B: Backend>(
        &self,
        trainer: &mut Trainer<B>,
        count: u32,
        bar: &indicatif::ProgressBar,
    ) -> anyhow::Result<()> {
        for _ in 0..count {
            let mut random = StdRng::seed_from_u64(trainer.steps_done());
            let vocab = self.spec.vocab_size as u32;
            let ids: Vec<u32> = (0..=self.tokens).map(|_| random.random_range(0..vocab)).collect();
            trainer.train_step(&ids[..self.tokens], &ids[1..], self.args.seq_len as usize, 1e-4)?;
            bar.inc(1);
        }
        Ok(())
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn memory<B: Backend>(backend: &B, trainer: &Trainer<B>, element: Element) -> Memory {
    let values: usize = trainer.stage().params().iter().map(|param| param.master().len).sum();
    let trained: usize =
        trainer.stage().params().iter().filter(|param| param.trained().is_some()).map(|param| param.master().len).sum();
    let copied: usize = trainer
        .stage()
        .params()
        .iter()
        .map(|param| param.weight())
        .filter(|weight| element == Element::Bf16 && cambium_kernels::Buffer::element(weight.buffer) == Element::Bf16)
        .map(|weight| weight.len)
        .sum();
    let used = backend.memory();
    let (parameters, moments, gradients, compute_copies) = (4 * values, 8 * trained, 4 * trained, 2 * copied);
    let fixed = parameters + moments + gradients + compute_copies;
    Memory {
        parameters,
        moments,
        gradients,
        compute_copies,
        activations_peak: used.peak_bytes.saturating_sub(fixed),
        peak: used.peak_bytes,
        held: used.held_bytes,
    }
}

/// Kernels by their share of the time, and what lies between them.
fn kernels(work: &std::collections::BTreeMap<&'static str, Work>, steps: u32, step_ms: f64) -> Vec<Kernel> {
    let steps = f64::from(steps);
    let mut kernels: Vec<Kernel> = work
        .iter()
        .map(|(kernel, work)| {
            let ms = work.time.as_secs_f64() * 1e3 / steps;
            let gflops = work.flops as f64 / work.time.as_secs_f64() / 1e9;
            Kernel {
                kernel,
                calls: (work.calls as f64 / steps).round() as u64,
                ms,
                fraction: ms / step_ms,
                gflops_per_s: (work.flops > 0).then_some(gflops),
            }
        })
        .collect();
    let between = step_ms - kernels.iter().map(|kernel| kernel.ms).sum::<f64>();
    kernels.push(Kernel {
        kernel: "(between kernels)",
        calls: 0,
        ms: between,
        fraction: between / step_ms,
        gflops_per_s: None,
    });
    kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    kernels
}

fn print(report: &Report) -> anyhow::Result<()> {
    let Report { parameters, active_parameters, tokens_per_step, step_ms, tokens_per_s, gflops_per_s, .. } = report;
    println!("parameters {parameters}, active {active_parameters}, {tokens_per_step} tokens a step");
    println!("step {step_ms:.1} ms, {tokens_per_s:.0} tokens/s, {gflops_per_s:.1} GFLOP/s");
    println!(
        "ceiling: f32 product {:.0} GFLOP/s, bf16 product {:.0} GFLOP/s, memory {:.1} GB/s; the step reaches {:.1} %",
        report.ceiling.gemm_f32_gflops,
        report.ceiling.gemm_bf16_gflops,
        report.ceiling.memory_gb_s,
        100.0 * report.ceiling_fraction
    );
    let memory = &report.memory;
    println!(
        "memory: peak {} = parameters {} + moments {} + gradients {} + compute copies {} + activations {}; held {}",
        output::bytes(memory.peak),
        output::bytes(memory.parameters),
        output::bytes(memory.moments),
        output::bytes(memory.gradients),
        output::bytes(memory.compute_copies),
        output::bytes(memory.activations_peak),
        output::bytes(memory.held)
    );
    println!();
    let mut table = Table::new(&["kernel", "calls", "ms", "% of step", "GFLOP/s"]);
    for kernel in &report.kernels {
        table.row(vec![
            kernel.kernel.to_owned(),
            kernel.calls.to_string(),
            format!("{:.2}", kernel.ms),
            format!("{:.1}", 100.0 * kernel.fraction),
            kernel.gflops_per_s.map_or_else(String::new, |rate| format!("{rate:.0}")),
        ]);
    }
    table.print()
}
