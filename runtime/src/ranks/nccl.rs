//! From GPU to GPU through NCCL, without the host.
//!
//! NCCL only sends and receives here: a group of what a collective begins with, on the stream of
//! the collective. Sums stay ours, in their order, so numbers are those of any other transport.
//! Ranks find each other through the transport they have, which also carries messages of pipelines,
//! where rows of exchanges begin, and all that the host has to say. NCCL's library is opened at run
//! time.
//!
//! A rank waits at the end of a transfer until it is there, so that no wait is without end: NCCL
//! knows of no limit, and what hangs is aborted after one. What is begun early is on its way
//! meanwhile, beside whatever was given to the other streams.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{self, ncclComm_t, ncclDataType_t, ncclResult_t, ncclUniqueId};

use super::on_device::{Fault, Link, Pending, Piece, Stream};
use super::{Communicator, Lost, Meeting};

/// Between two looks whether a transfer is done.
const NAP: Duration = Duration::from_micros(20);

/// Why ranks cannot be joined by NCCL.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoNccl {
    #[error(
        "there is no libnccl.so on this machine; install NCCL 2, or leave --transport out \
             (beside a libnccl.so.2 a link of that name will do)"
    )]
    NoLibrary,
    #[error("NCCL's {call} fails: {why}")]
    Call { call: &'static str, why: String },
    #[error("rank {rank} does not get NCCL's address of the run: rank 0, {lost}")]
    Lost { rank: usize, lost: Lost },
}

/// This rank's end of a run.
#[derive(Debug)]
struct Nccl {
    /// Null once it was aborted.
    comm: Mutex<Handle>,
    limit: Duration,
}

#[derive(Debug)]
struct Handle(ncclComm_t);

// SAFETY: NCCL's handles may be used by any thread, one at a time; the mutex sees to that.
unsafe impl Send for Handle {}

/// What a call of NCCL says.
fn check(call: &'static str, code: ncclResult_t) -> Result<(), NoNccl> {
    if code == ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: NCCL has a text that lasts for every result.
    let text = unsafe { sys::ncclGetErrorString(code) };
    // SAFETY: it ends with a zero.
    let why = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    Err(NoNccl::Call { call, why })
}

/// Joins this rank to the others of `comm`. All call it, each in the thread that has opened its
/// GPU. No transfer takes longer than `limit`.
pub fn connect(comm: &dyn Communicator, limit: Duration) -> Result<Arc<dyn Link>, NoNccl> {
    // SAFETY: opens a library by the names that NCCL's has, and closes it.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoNccl::NoLibrary);
    }
    let (rank, n) = (comm.rank(), comm.n_ranks());
    let mut id = ncclUniqueId { internal: [0; 128] };
    let lost = |lost| NoNccl::Lost { rank, lost };
    if rank == 0 {
        // SAFETY: writes one id.
        check("ncclGetUniqueId", unsafe { sys::ncclGetUniqueId(&mut id) })?;
        let bytes = id.internal.map(|c| c as u8);
        (1..n).try_for_each(|to| comm.send(to, &bytes)).map_err(lost)?;
    } else {
        let mut bytes = [0; 128];
        comm.recv(0, &mut bytes).map_err(lost)?;
        id.internal = bytes.map(|b| b as c_char);
    }
    let mut handle: ncclComm_t = std::ptr::null_mut();
    // SAFETY: writes one handle; all ranks are here, with one id.
    check("ncclCommInitRank", unsafe {
        sys::ncclCommInitRank(&mut handle, n as c_int, id, rank as c_int)
    })?;
    Ok(Arc::new(Nccl { comm: Mutex::new(Handle(handle)), limit }))
}

impl Nccl {
    fn lock(&self) -> MutexGuard<'_, Handle> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends and receives as one: no end waits for the other.
    ///
    /// # Safety
    /// As `begin`.
    unsafe fn group(
        &self,
        meeting: &Meeting<'_>,
        stream: *mut c_void,
        sends: &[Piece],
        recvs: &[Piece],
    ) -> Result<(), NoNccl> {
        let comm = self.lock().0;
        if comm.is_null() {
            let why = "it was aborted".into();
            return Err(NoNccl::Call { call: "ncclGroupStart", why });
        }
        let (kind, stream) = (ncclDataType_t::ncclUint8, stream.cast());
        let peer = |piece: &Piece| meeting.rank_at(piece.place) as c_int;
        // SAFETY: the caller's promise; a group is of this thread.
        unsafe {
            check("ncclGroupStart", sys::ncclGroupStart())?;
            for piece in sends {
                let at = piece.at.cast_const().cast();
                let put = sys::ncclSend(at, piece.bytes, kind, peer(piece), comm, stream);
                check("ncclSend", put)?;
            }
            for piece in recvs {
                let at = piece.at.cast();
                let put = sys::ncclRecv(at, piece.bytes, kind, peer(piece), comm, stream);
                check("ncclRecv", put)?;
            }
            check("ncclGroupEnd", sys::ncclGroupEnd())
        }
    }

    /// What NCCL found wrong meanwhile.
    fn trouble(&self) -> Option<NoNccl> {
        let comm = self.lock().0;
        let mut code = ncclResult_t::ncclSuccess;
        // SAFETY: writes one result.
        let asked = unsafe { sys::ncclCommGetAsyncError(comm, &mut code) };
        let wrong = |code| check("a transfer", code).err();
        wrong(asked).or_else(|| wrong(code).filter(|_| code != ncclResult_t::ncclInProgress))
    }

    /// Ends what hangs.
    fn abort(&self) {
        let handle = std::mem::replace(&mut self.lock().0, std::ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: it was made in `connect`, and is used by nothing after.
            let _ = unsafe { sys::ncclCommAbort(handle) };
        }
    }
}

impl Link for Nccl {
    unsafe fn begin(
        &self,
        meeting: &Meeting<'_>,
        on: &Stream<'_>,
        sends: &[Piece],
        recvs: &[Piece],
    ) -> Result<Pending, Fault> {
        let stream = on.kernels.driver_stream(on.stream)?;
        // SAFETY: the caller's promise.
        let done = unsafe { self.group(meeting, stream, sends, recvs) };
        let peer = sends.iter().chain(recvs).next().map_or(0, |piece| piece.place);
        let lost = |e: NoNccl| meeting.lost(peer, Lost::Transport(e.to_string()));
        done.map_err(|e| Fault::Rank(lost(e)))?;
        Ok(Pending::of(sends.iter().chain(recvs).map(|piece| piece.place)))
    }

    unsafe fn end(
        &self,
        meeting: &Meeting<'_>,
        on: &Stream<'_>,
        pending: Pending,
    ) -> Result<(), Fault> {
        let Some(peer) = pending.peer() else { return Ok(()) };
        meeting.waits_for(peer);
        let begun = Instant::now();
        while !on.kernels.is_done(on.stream)? {
            let lost = match self.trouble() {
                Some(e) => Lost::Transport(e.to_string()),
                None if begun.elapsed() > self.limit => Lost::Silent(self.limit),
                None => {
                    std::thread::sleep(NAP);
                    continue;
                }
            };
            self.abort();
            return Err(Fault::Rank(meeting.lost(peer, lost)));
        }
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let handle = std::mem::replace(&mut self.lock().0, std::ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: it was made in `connect`, and is used by nothing after.
            let _ = unsafe { sys::ncclCommDestroy(handle) };
        }
    }
}
