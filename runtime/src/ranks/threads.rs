//! Ranks as threads of one process: a queue from each rank to each other.
//!
//! A rank that ends, with an error or a panic or without, closes its queues, and whoever waits for
//! it learns that at once. One that hangs is given up on after a limit; its thread ends with the
//! process.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Communicator, Lost};

/// All queues of a run.
#[derive(Debug)]
struct Hub {
    n: usize,
    limit: Duration,
    /// From rank i to rank j at `i * n + j`.
    queues: Vec<Queue>,
    /// Why a rank has ended, by rank.
    ended: Mutex<Vec<Option<String>>>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: Mutex<VecDeque<Vec<u8>>>,
    changed: Condvar,
}

#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    hub: Arc<Hub>,
}

/// How a rank ended.
#[derive(Debug)]
pub enum Ending<T, E> {
    Done(T),
    Failed(E),
    Panicked(String),
    /// It did not answer within the limit after another had ended.
    Hung,
}

/// `n` communicators that know each other. A wait ends after `limit`.
pub fn communicators(n: usize, limit: Duration) -> Vec<Arc<ThreadRank>> {
    let queues = (0..n * n).map(|_| Queue::default()).collect();
    let ended = Mutex::new(vec![None; n]);
    let hub = Arc::new(Hub { n, limit, queues, ended });
    (0..n).map(|rank| Arc::new(ThreadRank { rank, hub: Arc::clone(&hub) })).collect()
}

/// Runs `body` once for each of `n` ranks, in a thread of its own; their endings by rank. Once one
/// has failed, the others have `limit` and a little to notice.
pub fn run<T, E>(
    n: usize,
    limit: Duration,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T, E> + Send + Sync + 'static,
) -> std::io::Result<Vec<Ending<T, E>>>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let body = Arc::new(body);
    let (tell, told) = mpsc::channel();
    for comm in communicators(n, limit) {
        let (body, tell) = (Arc::clone(&body), tell.clone());
        let name = format!("weft-rank-{}", comm.rank);
        thread::Builder::new().name(name).spawn(move || {
            let given: Arc<dyn Communicator> = comm.clone();
            let ending = match catch_unwind(AssertUnwindSafe(|| body(given))) {
                Ok(Ok(done)) => Ending::Done(done),
                Ok(Err(e)) => Ending::Failed(e),
                Err(panic) => Ending::Panicked(message(&*panic)),
            };
            comm.close(&match &ending {
                Ending::Done(_) => "its run is over".into(),
                Ending::Failed(e) => format!("{e}"),
                Ending::Panicked(why) => format!("it panicked: {why}"),
                Ending::Hung => String::new(),
            });
            // Nobody listens only if the run was given up.
            let _ = tell.send((comm.rank, ending));
        })?;
    }
    drop(tell);
    Ok(collect(n, limit, &told))
}

fn collect<T, E>(
    n: usize,
    limit: Duration,
    told: &mpsc::Receiver<(usize, Ending<T, E>)>,
) -> Vec<Ending<T, E>> {
    let mut all: Vec<Ending<T, E>> = (0..n).map(|_| Ending::Hung).collect();
    let mut deadline: Option<Instant> = None;
    for _ in 0..n {
        let next = match deadline {
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => told.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let Ok((rank, ending)) = next else { break };
        if !matches!(ending, Ending::Done(_)) {
            deadline.get_or_insert_with(|| Instant::now() + limit + Duration::from_secs(1));
        }
        all[rank] = ending;
    }
    all
}

pub(super) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

impl ThreadRank {
    fn ended(&self, rank: usize) -> Option<String> {
        self.hub.ended.lock().unwrap_or_else(PoisonError::into_inner)[rank].clone()
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.hub.n
    }

    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), Lost> {
        if let Some(why) = self.ended(self.rank) {
            return Err(Lost::Transport(why));
        }
        let queue = &self.hub.queues[self.rank * self.hub.n + to];
        queue.messages.lock().unwrap_or_else(PoisonError::into_inner).push_back(bytes.to_vec());
        queue.changed.notify_one();
        Ok(())
    }

    fn recv(&self, from: usize, bytes: &mut [u8]) -> Result<(), Lost> {
        let queue = &self.hub.queues[from * self.hub.n + self.rank];
        let deadline = Instant::now() + self.hub.limit;
        let mut messages = queue.messages.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(why) = self.ended(self.rank) {
                return Err(Lost::Transport(why));
            }
            // What was sent before the end still counts.
            if let Some(message) = messages.pop_front() {
                let (expected, found) = (bytes.len(), message.len());
                if expected != found {
                    return Err(Lost::Length { expected, found });
                }
                bytes.copy_from_slice(&message);
                return Ok(());
            }
            if let Some(why) = self.ended(from) {
                return Err(Lost::Ended(why));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Lost::Silent(self.hub.limit));
            }
            let woken = queue.changed.wait_timeout(messages, left);
            messages = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn close(&self, why: &str) {
        self.hub.ended.lock().unwrap_or_else(PoisonError::into_inner)[self.rank]
            .get_or_insert_with(|| why.to_owned());
        for to in 0..self.hub.n {
            let queue = &self.hub.queues[self.rank * self.hub.n + to];
            // With the lock, so that no one is between looking and waiting.
            let _messages = queue.messages.lock().unwrap_or_else(PoisonError::into_inner);
            queue.changed.notify_all();
        }
    }
}
