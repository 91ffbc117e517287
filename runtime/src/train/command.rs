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
use crate::device::{Cpu, Device, DeviceError, DeviceKind, cuda};
use crate::exec::{ExecError, Program};
use crate::ranks::fault::Fault;
use crate::ranks::last_action::{self, LastAction};
use crate::ranks::nccl::{self, NoNccl};
use crate::ranks::threads::Ending;
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
    /// Ranks that share the work, each a thread of this process with its part of the threads; under
    /// mpirun its processes are the ranks
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub ranks: usize,
    /// How ranks' values get from one device to another
    #[arg(long, value_enum, default_value = "host")]
    pub transport: Transport,
    /// After how many seconds of silence a rank is given up on
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    pub rank_timeout: f64,
}

/// What moves values between ranks' devices. Numbers do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// The host: threads, or MPI under mpirun
    #[default]
    Host,
    /// NCCL, between GPUs that each have one rank; messages of a pipeline go through the host
    Nccl,
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
    let n = args.n_ranks()?;
    let fault = Fault::from_env().map_err(TrainError::Fault)?;
    args.check_transport(n)?;
    let job = Job {
        graphs: Arc::new(graphs),
        device: args.device,
        transport: args.transport,
        limit: args.limit()?,
        threads: (threads / n).max(1),
        options,
        fault,
    };
    let outcome = match (n, ranks::n_started()) {
        (1, _) => {
            last_action::warn(&job.options.out);
            job.run(job.device(0)?, None)?
        }
        (_, None) => {
            last_action::warn(&job.options.out);
            several(&job, n, args.limit()?)?
        }
        (_, Some(_)) => match processes(&job, args.limit()?)? {
            (outcome, true) => outcome,
            // Only the first of several processes reports.
            (outcome, false) => return Ok(outcome),
        },
    };
    report(&outcome, &job.options.out);
    Ok(outcome)
}

impl RunArgs {
    /// The ranks of the run: what `mpirun` started, or threads of this process.
    pub fn n_ranks(&self) -> Result<usize, TrainError> {
        let threads = self.ranks.max(1);
        match ranks::n_started() {
            None => Ok(threads),
            Some(n) if !cfg!(feature = "mpi") => Err(TrainError::NoMpi { n }),
            Some(n) if threads != 1 && threads != n => Err(TrainError::Started { n, threads }),
            Some(n) => Ok(n),
        }
    }

    /// Whether there is what NCCL moves bytes between, where it is asked for.
    fn check_transport(&self, n: usize) -> Result<(), TrainError> {
        let refuse = |why: String| Err(TrainError::Transport(why));
        match (self.transport, self.device) {
            (Transport::Host, _) => return Ok(()),
            (Transport::Nccl, DeviceKind::Cuda) if n > 1 => {}
            (Transport::Nccl, DeviceKind::Cuda) => {
                return refuse("it is between ranks: give --ranks".into());
            }
            (Transport::Nccl, _) => {
                return refuse("it is between GPUs: give --device cuda".into());
            }
        }
        let gpus = cuda::probe().map_err(DeviceError::from).map_err(ExecError::from)?.gpus;
        let fit = gpus.iter().filter(|gpu| gpu.unfit().is_none()).count();
        // Processes may be on several machines.
        match ranks::n_started() {
            None if fit < n => refuse(format!("{n} ranks need a GPU each, and {fit} fit here")),
            _ => Ok(()),
        }
    }

    fn limit(&self) -> Result<Duration, TrainError> {
        let seconds = self.rank_timeout;
        Duration::try_from_secs_f64(seconds)
            .map_err(|_| TrainError::Fault(format!("--rank-timeout {seconds} is no time")))
    }
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
        let link = match self.transport {
            Transport::Host => None,
            Transport::Nccl => Some(nccl::connect(&*comm, self.limit).map_err(transport)?),
        };
        let rank = Rank::new(comm, stage, Some(log), self.fault.clone());
        let rank = match link {
            Some(link) => rank.with_link(link),
            None => rank,
        };
        self.run(device, Some(Arc::new(rank)))
    }
}

fn transport(e: NoNccl) -> TrainError {
    TrainError::Transport(e.to_string())
}

/// One of several processes; whether it is the first.
#[cfg(feature = "mpi")]
fn processes(job: &Job, limit: Duration) -> Result<(Outcome, bool), TrainError> {
    let done = ranks::mpi::run(limit, |comm| {
        let first = comm.rank() == 0;
        // The last run's files are looked at before this one's are there.
        if first {
            last_action::warn(&job.options.out);
        }
        ranks::start_together(&*comm).map_err(|lost| TrainError::Fault(lost.to_string()))?;
        Ok((job.rank(comm)?, first))
    });
    done.unwrap_or_else(|| Err(TrainError::Fault("MPI has been begun before".into())))
}

#[cfg(not(feature = "mpi"))]
fn processes(_: &Job, _: Duration) -> Result<(Outcome, bool), TrainError> {
    Err(TrainError::NoMpi { n: ranks::n_started().unwrap_or(1) })
}

/// Ranks as threads, with equal parts of the cores.
fn several(job: &Job, n: usize, limit: Duration) -> Result<Outcome, TrainError> {
    // A handler is set once, before there are threads that would race for it.
    stop_on_signal();
    let each = job.clone();
    let endings = ranks::threads::run(n, limit, move |comm| each.rank(comm));
    let endings = endings.map_err(TrainError::io("start threads for", &job.options.out))?;
    let mut outcomes = vec![];
    let mut failures = vec![];
    for (rank, ending) in endings.into_iter().enumerate() {
        match ending {
            Ending::Done(outcome) => outcomes.push(outcome),
            Ending::Failed(e) => failures.push((e.to_string(), Some(e))),
            Ending::Panicked(why) => failures.push((format!("rank {rank} panicked: {why}"), None)),
            Ending::Hung => failures.push((format!("rank {rank} hangs"), None)),
        }
    }
    // What all ranks refuse alike is told once.
    if let Some((first, _)) = failures.first()
        && failures.iter().all(|(why, e)| why == first && e.is_some())
        && let Some(e) = failures.swap_remove(0).1
    {
        return Err(e);
    }
    match outcomes.into_iter().next() {
        Some(outcome) if failures.is_empty() => Ok(outcome),
        _ => Err(TrainError::RankFailures(failures.into_iter().map(|f| f.0).collect())),
    }
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
