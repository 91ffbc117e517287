//! The `weft` command: one file a subcommand, no compiler logic.

mod bench_gpu;
mod check;
mod compare;
mod compile;
mod cut_table;
mod devices;
mod eplb;
mod eval;
mod exchange;
mod explain;
mod export;
mod fmt;
mod frontend;
mod generate;
mod gpu;
mod graphs;
mod kernel_dump;
mod mesh;
mod opt;
mod pipeline;
mod placement;
mod plan;
mod plot;
mod policy;
mod precision_table;
mod published;
mod schedule;
mod serve;
mod stages;
mod train;
mod verify_passes;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Weft compiles model descriptions to executable graphs.
#[derive(Parser)]
#[command(name = "weft", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    BenchGpu(bench_gpu::Args),
    Check(check::Args),
    Fmt(fmt::Args),
    Explain(explain::Args),
    Compare(compare::Args),
    Compile(compile::Args),
    Eplb(eplb::Args),
    Eval(eval::Args),
    Export(export::Args),
    Opt(opt::Args),
    Plan(plan::Args),
    Plot(plot::Args),
    Schedule(schedule::Args),
    Train(train::Args),
    Generate(generate::Args),
    Devices(devices::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::BenchGpu(args) => bench_gpu::run(args),
        Command::Check(args) => check::run(args),
        Command::Fmt(args) => fmt::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Compile(args) => compile::run(args),
        Command::Eplb(args) => eplb::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Export(args) => export::run(args),
        Command::Opt(args) => opt::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Schedule(args) => schedule::run(args),
        Command::Train(args) => train::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Devices(args) => devices::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Diagnostics have been shown where they were found; an empty error adds nothing.
            let text = format!("{e:#}");
            if !text.is_empty() {
                eprintln!("weft: {text}");
            }
            ExitCode::FAILURE
        }
    }
}
