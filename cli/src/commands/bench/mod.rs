//! `cambium bench`: how fast this machine runs Cambium, against its own limits.

mod ceiling;
mod kernels;
mod step;

/// Measure speed against this machine's own limits.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    Kernels(kernels::Args),
    Step(step::Args),
}

pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Kernels(args) => kernels::run(args),
        Command::Step(args) => step::run(args),
    }
}
