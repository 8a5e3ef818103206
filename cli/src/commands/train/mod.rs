//! `cambium train`: a run spec from its first step to its Hugging Face directory, in one process.

mod evaluate;
mod metrics;
mod session;

use std::path::PathBuf;

/// Train a model as a run spec says.
///
/// Prints one line a step, or a progress bar on a terminal. The spec's tables are model, data, optimizer,
/// schedule, losses, train and eval; docs/run-spec.md lists every key and its default.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cambium train run.toml
  cambium train run.toml --set train.steps=10 --set train.dtype=bf16 --set optimizer.lr=1e-3
  cambium train run.toml --json | jq .final_loss")]
pub(crate) struct Args {
    /// Run spec in TOML; paths in it are relative to its directory
    #[arg(value_name = "RUN.toml")]
    spec: PathBuf,
    /// Change one key of the spec
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object at the end, and no lines before it
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let run = cambium_spec::RunSpec::load(&args.spec, &args.set)?;
    let mut session = session::Session::open(run, args.json)?;
    let summary = session.train()?;
    if args.json {
        return crate::output::json(&summary);
    }
    Ok(())
}
