//! Several ranks that run one program, each on a device of its own.
//!
//! A [`Communicator`] moves bytes between two ranks; everything else (`collective`) is made of
//! that, in one fixed order, so that a transport can change how fast a run is and not what it
//! computes.
//! A [`Rank`] is what one rank's executor holds: its transport, and the file that says what it did
//! last.
//!
//! No wait is without end: a transport gives up on a peer that is silent for longer than its limit,
//! and at once on one that has ended. The rank that gives up says which op it was in, of which
//! pipeline stage, and whom it waited for.

pub mod collective;
pub mod exchange;
pub mod fault;
pub mod last_action;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod on_device;
pub mod start;
pub mod threads;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use fault::Fault;
use last_action::LastAction;
use on_device::{Link, Staged};

/// Bytes between two ranks. Messages from one rank to another arrive in the order they were sent.
pub trait Communicator: fmt::Debug + Send + Sync {
    fn rank(&self) -> usize;

    fn n_ranks(&self) -> usize;

    /// Hands bytes over, without waiting for the other to ask for them.
    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), Lost>;

    /// Waits for the next message from a rank, which must have the length of `bytes`.
    fn recv(&self, from: usize, bytes: &mut [u8]) -> Result<(), Lost>;

    /// Makes every later call of any rank that involves this one fail: it has lost its transport.
    fn close(&self, why: &str);
}

/// How many processes `mpirun` started, of which this is one.
pub fn n_started() -> Option<usize> {
    let n = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].iter().find_map(|v| std::env::var(v).ok())?;
    n.parse().ok().filter(|n| *n > 1)
}

/// The number of this process among those that `mpirun` started.
pub fn own_number() -> Option<usize> {
    n_started()?;
    let own = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].iter().find_map(|v| std::env::var(v).ok())?;
    own.parse().ok()
}

/// Goes on once every rank is here.
pub fn start_together(comm: &dyn Communicator) -> Result<(), Lost> {
    let (own, n) = (comm.rank(), comm.n_ranks());
    let mut word = [0u8];
    if own > 0 {
        comm.send(0, &word)?;
        return comm.recv(0, &mut word);
    }
    for rank in 1..n {
        comm.recv(rank, &mut word)?;
    }
    (1..n).try_for_each(|rank| comm.send(rank, &word))
}

/// Why nothing comes from a peer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Lost {
    #[error("which has been silent for {:.1} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("which has ended: {0}")]
    Ended(String),
    #[error("which sent {found} bytes where {expected} were expected")]
    Length { expected: usize, found: usize },
    #[error("and the transport fails: {0}")]
    Transport(String),
}

/// A message that a rank will wait for: the n-th of a peer.
#[derive(Debug)]
pub struct Coming(u64);

/// Messages of a peer, in the order in which it sends them. Who waits for one may find that others
/// are before it, of collectives that are not done yet: they are kept.
#[derive(Debug, Default)]
struct Inbox {
    /// Lengths of those that are expected and have not arrived.
    expected: VecDeque<usize>,
    n_arrived: u64,
    kept: BTreeMap<u64, Vec<u8>>,
}

/// What a rank was doing when it could not go on.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("rank {rank}, step {step}: {op} {what} of stage {stage}, with rank {peer}, {lost}")]
pub struct RankError {
    pub rank: usize,
    pub step: u64,
    pub op: String,
    pub what: String,
    pub stage: usize,
    pub peer: usize,
    pub lost: Lost,
}

/// One rank of a run.
#[derive(Debug)]
pub struct Rank {
    comm: Arc<dyn Communicator>,
    /// The pipeline stage that this rank runs.
    stage: usize,
    step: AtomicU64,
    /// Collectives begun.
    n_begun: AtomicU64,
    /// By peer.
    inboxes: Mutex<BTreeMap<usize, Inbox>>,
    log: Option<LastAction>,
    fault: Option<Fault>,
    /// Between its device and others'.
    link: Arc<dyn Link>,
}

impl Rank {
    pub fn new(
        comm: Arc<dyn Communicator>,
        stage: usize,
        log: Option<LastAction>,
        fault: Option<Fault>,
    ) -> Rank {
        let fault = fault.filter(|f| f.rank == comm.rank());
        let (step, n_begun) = (AtomicU64::new(0), AtomicU64::new(0));
        let link = Arc::new(Staged);
        Rank { comm, stage, step, n_begun, inboxes: Mutex::default(), log, fault, link }
    }

    /// Between whose device and others' there is another way than through the host.
    pub fn with_link(self, link: Arc<dyn Link>) -> Rank {
        Rank { link, ..self }
    }

    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    pub fn n_ranks(&self) -> usize {
        self.comm.n_ranks()
    }

    /// The optimizer step that what follows belongs to.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Whoever has finished leaves no last action.
    pub fn finish(&self) {
        if let Some(log) = &self.log {
            log.remove();
        }
    }

    /// Begins `op` on `what`, among `ranks`.
    pub fn begin<'a>(&'a self, op: &'a str, what: &'a str, ranks: Vec<usize>) -> Meeting<'a> {
        let n = self.n_begun.fetch_add(1, Ordering::Relaxed);
        if let Some(fault) = self.fault.as_ref().filter(|f| f.at == n) {
            self.note(op, what, None);
            fault.happen(&*self.comm);
        }
        self.resume(op, what, ranks)
    }

    /// Goes on with what has begun.
    pub fn resume<'a>(&'a self, op: &'a str, what: &'a str, ranks: Vec<usize>) -> Meeting<'a> {
        Meeting { rank: self, op, what, ranks }
    }

    fn inboxes(&self) -> MutexGuard<'_, BTreeMap<usize, Inbox>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, from: usize, bytes: usize) -> Coming {
        let mut inboxes = self.inboxes();
        let inbox = inboxes.entry(from).or_default();
        inbox.expected.push_back(bytes);
        Coming(inbox.n_arrived + inbox.expected.len() as u64 - 1)
    }

    /// Waits for a message, and so for all that the peer sent before it.
    fn take(&self, from: usize, Coming(n): Coming, bytes: &mut [u8]) -> Result<(), Lost> {
        let mut inboxes = self.inboxes();
        let inbox = inboxes.entry(from).or_default();
        if let Some(kept) = inbox.kept.remove(&n) {
            bytes.copy_from_slice(&kept);
            return Ok(());
        }
        while let Some(size) = inbox.expected.pop_front() {
            let arrived = inbox.n_arrived;
            inbox.n_arrived += 1;
            if arrived == n {
                return self.comm.recv(from, bytes);
            }
            let mut other = vec![0; size];
            self.comm.recv(from, &mut other)?;
            inbox.kept.insert(arrived, other);
        }
        unreachable!("a message is expected before it is waited for, and waited for once")
    }

    fn note(&self, op: &str, what: &str, peer: Option<usize>) {
        if let Some(log) = &self.log {
            let step = self.step.load(Ordering::Relaxed);
            log.write(step, op, what, self.stage, peer);
        }
    }
}

/// One collective in progress: names whatever goes wrong in it.
pub struct Meeting<'a> {
    rank: &'a Rank,
    op: &'a str,
    what: &'a str,
    /// Who takes part, in the order of places.
    ranks: Vec<usize>,
}

impl Meeting<'_> {
    pub fn n(&self) -> usize {
        self.ranks.len()
    }

    /// Between devices of those who take part.
    pub fn link(&self) -> &dyn Link {
        &*self.rank.link
    }

    /// The number of the rank at a place.
    pub fn rank_at(&self, place: usize) -> usize {
        self.ranks[place]
    }

    /// The place of this rank.
    pub fn place(&self) -> usize {
        let own = self.rank.rank();
        self.ranks.iter().position(|r| *r == own).expect("a rank takes part in its own collectives")
    }

    pub fn send(&self, place: usize, bytes: &[u8]) -> Result<(), RankError> {
        let to = self.ranks[place];
        self.rank.comm.send(to, bytes).map_err(|lost| self.error(to, lost))
    }

    pub fn recv(&self, place: usize, bytes: &mut [u8]) -> Result<(), RankError> {
        let coming = self.expect(place, bytes.len());
        self.take(place, coming, bytes)
    }

    /// Says that a message is to come from a place, behind those that it was said of before.
    pub fn expect(&self, place: usize, bytes: usize) -> Coming {
        self.rank.expect(self.ranks[place], bytes)
    }

    /// Waits for a message that is to come.
    pub fn take(&self, place: usize, coming: Coming, bytes: &mut [u8]) -> Result<(), RankError> {
        let from = self.ranks[place];
        self.rank.note(self.op, self.what, Some(from));
        self.rank.take(from, coming, bytes).map_err(|lost| self.error(from, lost))
    }

    /// Says of a place why nothing comes from it.
    fn lost(&self, place: usize, lost: Lost) -> RankError {
        self.error(self.ranks[place], lost)
    }

    /// Notes that this rank waits for a place.
    fn waits_for(&self, place: usize) {
        self.rank.note(self.op, self.what, Some(self.ranks[place]));
    }

    fn error(&self, peer: usize, lost: Lost) -> RankError {
        RankError {
            rank: self.rank.rank(),
            step: self.rank.step.load(Ordering::Relaxed),
            op: self.op.into(),
            what: self.what.into(),
            stage: self.rank.stage,
            peer,
            lost,
        }
    }
}
