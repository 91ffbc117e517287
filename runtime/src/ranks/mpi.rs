//! Ranks as processes that `mpirun` starts: MPI moves the bytes (MPI-3.1, chapter 3).
//!
//! A message is sent without waiting (`MPI_Isend`) and kept until it has gone out. A wait polls, so
//! that it ends after a limit, and looks at the same time for word that the peer has ended. MPI
//! counts in 31 bits: what is longer goes in pieces. `MPI_Finalize` waits for all ranks, so it is
//! left out where one has failed; `mpirun` then ends the others.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::environment::{Threading, Universe};
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::traits::{Communicator as _, Equivalence};

use super::threads::message;
use super::{Communicator, Lost};

/// Bytes of one MPI message.
const PIECE_BYTES: usize = 1 << 30;
const DATA: c_int = 1;
/// Says that the sender has ended, and why.
const ENDED: c_int = 2;
/// How long a poll sleeps once it has spun a while: a rank with nothing to do leaves its core.
const NAP: Duration = Duration::from_micros(50);
const SPINS: u32 = 2000;
/// How long a rank that has failed stays for the others to say what they were doing.
const FAREWELL: Duration = Duration::from_secs(2);

/// Joins the processes of this run and does `body` as one of them. No wait of it takes longer than
/// `limit`.
/// `None` where MPI has been begun before: it may be once in a process.
pub fn run<T, E: std::fmt::Display>(
    limit: Duration,
    body: impl FnOnce(Arc<dyn Communicator>) -> Result<T, E>,
) -> Option<Result<T, E>> {
    // Serialized: every call is made under one lock.
    let (universe, _) = mpi::initialize_with_threading(Threading::Serialized)?;
    let rank = Arc::new(MpiRank::new(&universe, limit));
    let ending = catch_unwind(AssertUnwindSafe(|| body(rank.clone())));
    let why = match &ending {
        Ok(Ok(_)) => None,
        Ok(Err(e)) => Some(format!("it failed: {e}")),
        Err(panic) => Some(format!("it panicked: {}", message(&**panic))),
    };
    if let Some(why) = why {
        rank.close(&why);
        rank.flush();
        std::thread::sleep(FAREWELL.min(limit));
        std::mem::forget(universe);
    } else {
        rank.flush();
    }
    match ending {
        Ok(done) => Some(done),
        Err(panic) => resume_unwind(panic),
    }
}

struct MpiRank {
    rank: usize,
    n_ranks: usize,
    limit: Duration,
    state: Mutex<State>,
}

struct State {
    comm: ffi::MPI_Comm,
    byte: ffi::MPI_Datatype,
    /// Messages on their way, with the memory they are sent from.
    sent: Vec<(ffi::MPI_Request, Vec<u8>)>,
    /// Why a rank has ended; itself too.
    ended: BTreeMap<usize, String>,
}

// SAFETY: the handles are those of a communicator and a datatype that live as long as MPI does, and
// they are used under the lock that `State` is in.
unsafe impl Send for State {}

impl std::fmt::Debug for MpiRank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MpiRank({} of {})", self.rank, self.n_ranks)
    }
}

impl MpiRank {
    fn new(universe: &Universe, limit: Duration) -> MpiRank {
        let world = universe.world();
        let (comm, byte) = (world.as_raw(), u8::equivalent_datatype().as_raw());
        let state = State { comm, byte, sent: vec![], ended: BTreeMap::new() };
        MpiRank {
            rank: world.rank() as usize,
            n_ranks: world.size() as usize,
            limit,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls until `ready` answers, a rank has ended or the limit is reached.
    fn wait<T>(
        &self,
        from: usize,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, Lost> {
        let start = Instant::now();
        for turn in 0u32.. {
            {
                let mut state = self.lock();
                if let Some(value) = ready(&mut state) {
                    return Ok(value);
                }
                state.sweep();
                // What was sent before the end was answered above.
                if let Some(why) = state.reason(self.rank, from) {
                    return Err(Lost::Ended(why));
                }
            }
            if start.elapsed() > self.limit {
                break;
            }
            if turn > SPINS {
                std::thread::sleep(NAP);
            }
        }
        Err(Lost::Silent(self.limit))
    }

    /// Waits for what was sent to go out, for as long as any wait.
    fn flush(&self) {
        let start = Instant::now();
        loop {
            let mut state = self.lock();
            state.sweep();
            if state.sent.is_empty() || start.elapsed() > self.limit {
                return;
            }
            drop(state);
            std::thread::sleep(NAP);
        }
    }
}

impl Communicator for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), Lost> {
        let mut state = self.lock();
        if let Some(why) = state.reason(self.rank, to) {
            return Err(Lost::Ended(why));
        }
        for piece in pieces(bytes.len()) {
            state.send(to, DATA, bytes[piece].to_vec())?;
        }
        state.sweep();
        Ok(())
    }

    fn recv(&self, from: usize, bytes: &mut [u8]) -> Result<(), Lost> {
        for piece in pieces(bytes.len()) {
            let found = self.wait(from, |state| state.probe(from, DATA))?;
            let into = &mut bytes[piece];
            if found != into.len() {
                return Err(Lost::Length { expected: into.len(), found });
            }
            let mut request = self.lock().receive(from, DATA, into)?;
            let arrived = self.wait(from, |state| state.is_done(&mut request).then_some(()));
            if let Err(lost) = arrived {
                // MPI may still write there: the memory is not given back in its hands.
                self.lock().cancel(&mut request);
                return Err(lost);
            }
        }
        Ok(())
    }

    fn close(&self, why: &str) {
        let mut state = self.lock();
        state.ended.insert(self.rank, why.to_string());
        for to in (0..self.n_ranks).filter(|to| *to != self.rank) {
            // Whoever cannot be told finds out by waiting.
            let _ = state.send(to, ENDED, why.as_bytes().to_vec());
        }
    }
}

/// An empty message is one piece.
fn pieces(size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let n = size.div_ceil(PIECE_BYTES).max(1);
    (0..n).map(move |i| i * PIECE_BYTES..size.min((i + 1) * PIECE_BYTES))
}

fn check(code: c_int, what: &str) -> Result<(), Lost> {
    match code as u32 {
        ffi::MPI_SUCCESS => Ok(()),
        _ => Err(Lost::Transport(format!("{what} answers error {code}"))),
    }
}

impl State {
    fn send(&mut self, to: usize, tag: c_int, bytes: Vec<u8>) -> Result<(), Lost> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: the bytes stay in `sent`, unmoved and unchanged, until the request is done.
        let code = unsafe {
            let (start, n) = (bytes.as_ptr().cast::<c_void>(), bytes.len() as c_int);
            ffi::MPI_Isend(start, n, self.byte, to as c_int, tag, self.comm, request.as_mut_ptr())
        };
        check(code, "MPI_Isend")?;
        // SAFETY: written by a call that succeeded.
        self.sent.push((unsafe { request.assume_init() }, bytes));
        Ok(())
    }

    /// Lets go of what has gone out.
    fn sweep(&mut self) {
        let mut sent = std::mem::take(&mut self.sent);
        sent.retain_mut(|(request, _)| !self.is_done(request));
        self.sent = sent;
    }

    /// The bytes of the next message of `from`, if it is here.
    fn probe(&mut self, from: usize, tag: c_int) -> Option<usize> {
        let (mut here, mut n) = (0, 0);
        let mut status = MaybeUninit::uninit();
        // SAFETY: places for the answers; the status is read only if there is one.
        unsafe {
            let status = status.as_mut_ptr();
            ffi::MPI_Iprobe(from as c_int, tag, self.comm, &mut here, status);
            if here == 0 {
                return None;
            }
            ffi::MPI_Get_count(status, self.byte, &mut n);
        }
        Some(n as usize)
    }

    fn receive(
        &mut self,
        from: usize,
        tag: c_int,
        into: &mut [u8],
    ) -> Result<ffi::MPI_Request, Lost> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: the caller keeps the memory until the request is done or cancelled.
        let code = unsafe {
            let (start, n) = (into.as_mut_ptr().cast::<c_void>(), into.len() as c_int);
            ffi::MPI_Irecv(start, n, self.byte, from as c_int, tag, self.comm, request.as_mut_ptr())
        };
        check(code, "MPI_Irecv")?;
        // SAFETY: written by a call that succeeded.
        Ok(unsafe { request.assume_init() })
    }

    fn is_done(&mut self, request: &mut ffi::MPI_Request) -> bool {
        let mut done = 0;
        let mut status = MaybeUninit::uninit();
        // SAFETY: a request of this communicator; the status is not read.
        unsafe { ffi::MPI_Test(request, &mut done, status.as_mut_ptr()) };
        done != 0
    }

    fn cancel(&mut self, request: &mut ffi::MPI_Request) {
        let mut status = MaybeUninit::uninit();
        // SAFETY: an active request; it is waited for only as long as MPI takes to cancel it.
        unsafe {
            ffi::MPI_Cancel(request);
            ffi::MPI_Wait(request, status.as_mut_ptr());
        }
    }

    /// Why nothing more can pass between this rank and a peer.
    fn reason(&mut self, own: usize, peer: usize) -> Option<String> {
        if let (false, Some(n)) = (self.ended.contains_key(&peer), self.probe(peer, ENDED)) {
            let mut why = vec![0; n];
            if let Ok(mut request) = self.receive(peer, ENDED, &mut why) {
                while !self.is_done(&mut request) {
                    std::thread::yield_now();
                }
            }
            self.ended.insert(peer, String::from_utf8_lossy(&why).into_owned());
        }
        let of = |rank| self.ended.get(&rank).cloned();
        of(peer).or_else(|| of(own).map(|why| format!("this one has: {why}")))
    }
}
