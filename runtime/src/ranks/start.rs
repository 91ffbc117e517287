//! Ranks of a command: how many, over what, and started: threads of this process, or this process
//! as one of those that `mpirun` started.

use std::sync::Arc;
use std::time::Duration;

use super::nccl::{self, NoNccl};
use super::on_device::Link;
use super::threads::{self, Ending};
use super::{Communicator, Lost, n_started, own_number};
use crate::device::{DeviceError, DeviceKind, cuda};

/// Ranks, and what they meet over.
#[derive(clap::Args, Clone, Debug)]
pub struct RankArgs {
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

/// Why ranks do not start, or end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "mpirun started {n} processes, and this program was built without MPI; \
             build it with --features mpi, or give --ranks {n} without mpirun"
    )]
    NoMpi { n: usize },
    #[error("mpirun started {n} processes, and --ranks is {threads}; leave --ranks out")]
    Started { n: usize, threads: usize },
    #[error("--rank-timeout: expected a time in seconds, found {0}")]
    Timeout(f64),
    #[error("--transport nccl: {0}")]
    Transport(String),
    #[error("--transport nccl: {0}")]
    Nccl(#[from] NoNccl),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("MPI has been begun before in this process")]
    Begun,
    #[error("before the first step: a rank is waited for, {0}")]
    Apart(Lost),
    #[error("cannot start threads for ranks: {0}")]
    Threads(std::io::Error),
    #[error("the run ended: {}", .0.join("\n  "))]
    Failures(Vec<String>),
}

impl RankArgs {
    /// The ranks of the run: what `mpirun` started, or threads of this process.
    pub fn n_ranks(&self) -> Result<usize, StartError> {
        let threads = self.ranks.max(1);
        match n_started() {
            None => Ok(threads),
            Some(n) if !cfg!(feature = "mpi") => Err(StartError::NoMpi { n }),
            Some(n) if threads != 1 && threads != n => Err(StartError::Started { n, threads }),
            Some(n) => Ok(n),
        }
    }

    /// After how much silence a rank is given up on.
    pub fn limit(&self) -> Result<Duration, StartError> {
        let seconds = self.rank_timeout;
        Duration::try_from_secs_f64(seconds).map_err(|_| StartError::Timeout(seconds))
    }

    /// Whether there is what NCCL moves bytes between, where it is asked for.
    pub fn check_transport(&self, n: usize, device: DeviceKind) -> Result<(), StartError> {
        let refuse = |why: String| Err(StartError::Transport(why));
        match (self.transport, device) {
            (Transport::Host, _) => return Ok(()),
            (Transport::Nccl, DeviceKind::Cuda) if n > 1 => {}
            (Transport::Nccl, DeviceKind::Cuda) => {
                return refuse("it is between ranks: give --ranks".into());
            }
            (Transport::Nccl, _) => {
                return refuse("it is between GPUs: give --device cuda".into());
            }
        }
        let gpus = cuda::probe().map_err(DeviceError::from)?.gpus;
        let fit = gpus.iter().filter(|gpu| gpu.unfit().is_none()).count();
        // Processes may be on several machines.
        match n_started() {
            None if fit < n => refuse(format!("{n} ranks need a GPU each, and {fit} fit here")),
            _ => Ok(()),
        }
    }
}

impl Transport {
    /// The way between the device that this thread has opened and those of other ranks, where it is
    /// not the host's. All ranks call it.
    pub fn link(
        self,
        comm: &dyn Communicator,
        limit: Duration,
    ) -> Result<Option<Arc<dyn Link>>, StartError> {
        match self {
            Transport::Host => Ok(None),
            Transport::Nccl => Ok(Some(nccl::connect(comm, limit)?)),
        }
    }
}

/// That there are other ranks than it takes, and what to do: behind `.. has {wanted} ranks, and`.
pub fn other(wanted: usize, given: usize) -> String {
    match n_started() {
        Some(n) => format!("mpirun started {n} processes; start {wanted}"),
        None => format!("--ranks is {given}; give --ranks {wanted}"),
    }
}

/// Whether this process reports: the only one, or the first of those that `mpirun` started.
pub fn reports() -> bool {
    own_number().is_none_or(|n| n == 0)
}

/// Does `body` as each rank of this process; what they make, by rank. No wait for another rank is
/// longer than `limit`.
///
/// Fails with what a rank fails with, if all fail alike; else with a line for each that does.
pub fn run<T, E>(
    n: usize,
    limit: Duration,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T, E> + Send + Sync + 'static,
) -> Result<Vec<T>, E>
where
    T: Send + 'static,
    E: std::fmt::Display + From<StartError> + Send + 'static,
{
    match n_started() {
        Some(_) => Ok(vec![process(limit, body)?]),
        None => ended(threads::run(n, limit, body).map_err(StartError::Threads)?),
    }
}

#[cfg(feature = "mpi")]
fn process<T, E: std::fmt::Display + From<StartError>>(
    limit: Duration,
    body: impl FnOnce(Arc<dyn Communicator>) -> Result<T, E>,
) -> Result<T, E> {
    super::mpi::run(limit, body).unwrap_or_else(|| Err(StartError::Begun.into()))
}

#[cfg(not(feature = "mpi"))]
fn process<T, E: From<StartError>>(
    _: Duration,
    _: impl FnOnce(Arc<dyn Communicator>) -> Result<T, E>,
) -> Result<T, E> {
    Err(StartError::NoMpi { n: n_started().unwrap_or(1) }.into())
}

fn ended<T, E: std::fmt::Display + From<StartError>>(
    endings: Vec<Ending<T, E>>,
) -> Result<Vec<T>, E> {
    let (mut all, mut failures) = (vec![], vec![]);
    for (rank, ending) in endings.into_iter().enumerate() {
        match ending {
            Ending::Done(made) => all.push(made),
            Ending::Failed(e) => failures.push((e.to_string(), Some(e))),
            Ending::Panicked(why) => failures.push((format!("rank {rank} panicked: {why}"), None)),
            Ending::Hung => failures.push((format!("rank {rank} hangs"), None)),
        }
    }
    if failures.is_empty() {
        return Ok(all);
    }
    // What all ranks refuse alike is told once.
    let alike = failures.iter().all(|(why, e)| *why == failures[0].0 && e.is_some());
    match failures.remove(0) {
        (_, Some(e)) if alike => Err(e),
        (why, _) => {
            let others = failures.into_iter().map(|(why, _)| why);
            Err(StartError::Failures(std::iter::once(why).chain(others).collect()).into())
        }
    }
}
