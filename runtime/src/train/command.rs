//! `train` on a graph, for `weft` and `weft-run` alike.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use weft_graph::Graph;

use super::TrainError;
use super::run::{self, Options, Outcome, STEP};
use super::settings::MODEL;
use crate::checkpoint::run_folder;
use crate::device::Cpu;
use crate::exec::{ExecError, Program};

/// Data, folder and length of a run.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// Files or folders of UTF-8 text
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Folder of the run: metrics, checkpoints, pictures [default: runs/MODEL]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Optimizer steps, in place of what the train block says
    #[arg(long)]
    pub steps: Option<u64>,
    /// What weights, data order and everything else random follow from [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Continue the run in --out from its newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Start from these weights: a Hugging Face folder
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub weights: Option<PathBuf>,
    /// A Hugging Face tokenizer.json, or its folder; bytes without
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Threads to compute on; the numbers do not depend on it [default: all]
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Trains `graph` and says how it went.
pub fn train(graph: Graph, args: &RunArgs) -> Result<Outcome, TrainError> {
    let model = graph.entry(STEP).and_then(|e| e.meta.get(MODEL)?.as_str());
    let name = model.unwrap_or("model").to_lowercase();
    let out = match &args.out {
        Some(out) => out.clone(),
        None => default_out(Path::new("runs"), &name, args.resume)?,
    };
    let options = Options {
        data: args.data.clone(),
        out,
        steps: args.steps,
        seed: args.seed,
        resume: args.resume,
        weights: args.weights.clone(),
        tokenizer: args.tokenizer.clone(),
    };
    let threads = args.threads.unwrap_or_else(Cpu::threads_here).max(1);
    let device = Arc::new(Cpu::new(threads).map_err(ExecError::from)?);
    let program = Program::load(graph, device)?;
    let outcome = run::run(&program, &options, stop_on_signal())?;
    report(&outcome, &options.out);
    Ok(outcome)
}

fn report(outcome: &Outcome, out: &Path) {
    if let Some((first, last)) = outcome.losses {
        println!(
            "loss {first:.3} -> {last:.3} in {} steps, {} tokens",
            outcome.step, outcome.tokens
        );
    }
    println!("metrics: {}", out.join(run::METRICS).display());
    for picture in &outcome.pictures {
        println!("picture: {}", picture.display());
    }
    println!("checkpoint: {}", outcome.checkpoint.display());
    if outcome.interrupted {
        println!("stopped by request; --resume --out {} continues", out.display());
    }
}

/// `runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3` .. without a run; to resume, the last
/// that has one.
fn default_out(runs: &Path, name: &str, resume: bool) -> Result<PathBuf, TrainError> {
    let mut last = None;
    for n in 1.. {
        let folder = match n {
            1 => runs.join(name),
            n => runs.join(format!("{name}-{n}")),
        };
        if !run_folder::has_checkpoint(&folder)? {
            return Ok(if resume { last.unwrap_or(folder) } else { folder });
        }
        last = Some(folder);
    }
    unreachable!("some number is free")
}

/// Becomes true when the user or the system asks the program to end; asked again, it ends at once.
fn stop_on_signal() -> &'static AtomicBool {
    static STOP: AtomicBool = AtomicBool::new(false);
    let ask = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("finishing this step and writing a checkpoint; once more ends at once");
    };
    // Where no handler can be set, signals end the program as ever: its last checkpoint is whole.
    let _ = ctrlc::set_handler(ask);
    &STOP
}
