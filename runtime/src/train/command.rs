//! `train` on a graph, for `weft` and `weft-run` alike.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use weft_graph::Graph;

use super::TrainError;
use super::run::{self, Options, Outcome, STEP};
use super::settings::{MODEL, Mesh, PIPELINE};
use crate::checkpoint::run_folder;
use crate::device::{Cpu, Device, DeviceKind};
use crate::exec::{ExecError, Program};
use crate::ranks::fault::Fault;
use crate::ranks::last_action::{self, LastAction};
use crate::ranks::start::{self, RankArgs, StartError, Transport};
use crate::ranks::{self, Communicator, Rank};

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
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceKind,
    /// Threads to compute on; the numbers do not depend on it [default: all]
    #[arg(long)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub ranks: RankArgs,
}

/// Trains a model and says how it went. There is one graph, or one for each place along `pipeline`.
pub fn train(graphs: Vec<Graph>, args: &RunArgs) -> Result<Outcome, TrainError> {
    let first = graphs.first().ok_or(TrainError::NoSteps)?;
    let model = first.entry(STEP).and_then(|e| e.meta.get(MODEL)?.as_str());
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
    let n = args.ranks.n_ranks()?;
    let fault = Fault::from_env().map_err(TrainError::Fault)?;
    args.ranks.check_transport(n, args.device)?;
    let job = Job {
        graphs: Arc::new(graphs),
        device: args.device,
        transport: args.ranks.transport,
        limit: args.ranks.limit()?,
        threads: (threads / n).max(1),
        options,
        fault,
    };
    let outcome = match n {
        1 => {
            last_action::warn(&job.options.out);
            job.run(job.device(0)?, None)?
        }
        _ => several(&job, n)?,
    };
    // Only the first of several processes reports.
    if start::reports() {
        report(&outcome, &job.options.out);
    }
    Ok(outcome)
}

/// What each rank does.
#[derive(Clone)]
struct Job {
    graphs: Arc<Vec<Graph>>,
    device: DeviceKind,
    transport: Transport,
    /// Of a wait for another rank.
    limit: Duration,
    /// Of each rank.
    threads: usize,
    options: Options,
    fault: Option<Fault>,
}

impl Job {
    fn device(&self, rank: usize) -> Result<Arc<dyn Device>, TrainError> {
        Ok(self.device.open_for(self.threads, rank).map_err(ExecError::from)?)
    }

    fn run(&self, device: Arc<dyn Device>, rank: Option<Arc<Rank>>) -> Result<Outcome, TrainError> {
        let own = match self.graphs.len() {
            1 => 0,
            _ => self.stage(rank.as_ref().map_or(0, |r| r.rank()))?,
        };
        let mut graph = self.graphs.get(own).cloned().ok_or(TrainError::NoSteps)?;
        let step = graph.entries.iter_mut().find(|e| e.name == STEP);
        if let (Some(fault), Some(step), Some(rank)) = (&self.fault, step, &rank) {
            fault.seed(rank.rank(), step);
        }
        let program = Program::load(graph, device)?;
        run::run(&program, &self.options, stop_on_signal(), rank)
    }

    /// The place of a rank along `pipeline`, which is its first stage.
    fn stage(&self, rank: usize) -> Result<usize, TrainError> {
        let step = self.graphs.first().and_then(|g| g.entry(STEP));
        let mesh = step.map(Mesh::of).transpose()?.unwrap_or_default();
        Ok(mesh.place(PIPELINE, rank).1)
    }

    fn rank(&self, comm: Arc<dyn Communicator>) -> Result<Outcome, TrainError> {
        let out = &self.options.out;
        let log = LastAction::create(out, comm.rank())
            .map_err(TrainError::io("make", &out.join(last_action::FOLDER)))?;
        let stage = self.stage(comm.rank())?;
        let device = self.device(comm.rank())?;
        let link = self.transport.link(&*comm, self.limit)?;
        let rank = Rank::new(comm, stage, Some(log), self.fault.clone());
        let rank = match link {
            Some(link) => rank.with_link(link),
            None => rank,
        };
        self.run(device, Some(Arc::new(rank)))
    }
}

/// Ranks with equal parts of the cores; what the first of this process comes to.
fn several(job: &Job, n: usize) -> Result<Outcome, TrainError> {
    // A handler is set once, before there are threads that would race for it.
    stop_on_signal();
    let each = job.clone();
    let outcomes = start::run(n, job.limit, move |comm| {
        // The last run's files are looked at before this one's are there.
        if comm.rank() == 0 {
            last_action::warn(&each.options.out);
        }
        ranks::start_together(&*comm).map_err(StartError::Apart)?;
        each.rank(comm)
    })?;
    Ok(outcomes.into_iter().next().expect("a process has a rank"))
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
    static SET: Once = Once::new();
    let ask = || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("finishing this step and writing a checkpoint; once more ends at once");
    };
    // Where no handler can be set, signals end the program as ever: its last checkpoint is whole.
    SET.call_once(|| drop(ctrlc::set_handler(ask)));
    &STOP
}
