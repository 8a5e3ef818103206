//! `cambium eval`: negative log-likelihood of a Hugging Face checkpoint on token files.

use std::path::PathBuf;

use anyhow::Context as _;
use cambium_data::{Dataset, Order, SourceSpec};
use cambium_kernels::cpu::Cpu;
use cambium_model::files::{load_model, load_spec};
use cambium_model::optimizer::OptimizerSettings;
use cambium_model::param::Use;
use cambium_model::{TrainSettings, Trainer};
use cambium_spec::Balance;

use super::Dtype;
use crate::{output, progress};

/// Measure the loss of a Hugging Face checkpoint on held-out tokens.
///
/// Takes the first N windows of the token file in order: window i holds tokens i*T to i*T + T, each predicting the next.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cambium eval --model ./olmoe --tokens corpus/held-out --seq-len 1024 --rows 64
  cambium eval --model ./olmoe --tokens held-out.u16 --seq-len 256 --rows 8 --dtype bf16 --json")]
pub(crate) struct Args {
    /// Hugging Face directory: config.json and safetensors
    #[arg(long, value_name = "HF_DIR")]
    model: PathBuf,
    /// Token file: a Megatron prefix (PREFIX.bin and PREFIX.idx) or a flat .u16 or .u32 file
    #[arg(long, value_name = "PREFIX")]
    tokens: PathBuf,
    /// T: tokens of a window
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..))]
    seq_len: u32,
    /// N: windows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Compute in this type
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Windows in flight at one time; bounds memory
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    microbatch_rows: u32,
    /// Threads; 0 takes all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Print one JSON object with "nll" by window and position
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Report {
    rows: usize,
    tokens: usize,
    mean_nll: f64,
    perplexity: f64,
    nll: Vec<Vec<f64>>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (seq_len, rows) = (args.seq_len as usize, args.rows as usize);
    let spec = load_spec(&args.model)?;
    let sources = [SourceSpec::new(&args.tokens)];
    let data = Dataset::open(&sources, seq_len, spec.vocab_size, Order::Sequential, 0)?;
    let windows = data.window_count();
    anyhow::ensure!(
        rows as u64 <= windows,
        "--rows {rows} exceeds the {windows} windows of {seq_len} + 1 tokens in {}; lower --rows or --seq-len",
        args.tokens.display()
    );
    let settings = TrainSettings {
        optimizer: OptimizerSettings { beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, grad_clip: 0.0 },
        balance: Balance::default(),
        microbatch_rows: args.microbatch_rows as usize,
        recompute: false,
    };
    let backend = Cpu::new(args.threads)?;
    let mut trainer = Trainer::new(backend.clone(), &spec, args.dtype.precision(), Use::Eval, settings)?;
    load_model(&backend, trainer.stage_mut(), &args.model)?;

    let bar = progress::bar(rows as u64, "windows");
    let mut nll = Vec::with_capacity(rows);
    for start in (0..rows).step_by(settings.microbatch_rows) {
        let end = (start + settings.microbatch_rows).min(rows);
        let batch = data.batch_rows(0, rows, start..end)?;
        let values = trainer.nll(&batch.inputs, &batch.targets, seq_len).context("evaluation failed")?;
        nll.extend(values.chunks(seq_len).map(<[f64]>::to_vec));
        bar.set_position(end as u64);
    }
    bar.finish_and_clear();

    let tokens = rows * seq_len;
    let mean_nll = nll.iter().flatten().sum::<f64>() / tokens as f64;
    anyhow::ensure!(mean_nll.is_finite(), "the mean NLL is {mean_nll}: the checkpoint does not compute finite losses");
    let report = Report { rows, tokens, mean_nll, perplexity: mean_nll.exp(), nll };
    if args.json {
        return output::json(&report);
    }
    println!("{tokens} tokens: NLL {mean_nll:.6}, perplexity {:.4}", report.perplexity);
    Ok(())
}
