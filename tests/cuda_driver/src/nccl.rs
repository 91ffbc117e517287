//! The part of NCCL's interface that the runtime calls, between the GPUs of this process: what is
//! sent lies in a queue until it is received, in the order of the streams.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::result;
use crate::state::{told, with_context};

const SUCCESS: i32 = 0;
const UNHANDLED_CUDA_ERROR: i32 = 1;
const INTERNAL_ERROR: i32 = 3;
const INVALID_ARGUMENT: i32 = 4;
const UINT8: c_int = 1;

/// Longer than any test waits.
const LIMIT: Duration = Duration::from_secs(60);

/// A rank of a run.
struct Comm {
    run: u64,
    rank: c_int,
}

/// By run, sender and receiver.
type Queues = BTreeMap<(u64, c_int, c_int), VecDeque<Vec<u8>>>;

static QUEUES: Mutex<Queues> = Mutex::new(BTreeMap::new());
static CHANGED: Condvar = Condvar::new();
static NEXT: Mutex<u64> = Mutex::new(1);

#[derive(Clone, Copy)]
struct Transfer {
    sends: bool,
    at: u64,
    bytes: usize,
    key: (u64, c_int, c_int),
    stream: usize,
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static GROUP: RefCell<Vec<Transfer>> = const { RefCell::new(vec![]) };
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId([u8; 128]);

/// # Safety
/// `id` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> i32 {
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bytes = [0; 128];
    bytes[..8].copy_from_slice(&next.to_le_bytes());
    *next += 1;
    // SAFETY: the caller's promise.
    unsafe { id.write(UniqueId(bytes)) };
    SUCCESS
}

/// # Safety
/// `comm` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    comm: *mut *mut c_void,
    n: c_int,
    id: UniqueId,
    rank: c_int,
) -> i32 {
    let mut run = [0; 8];
    run.copy_from_slice(&id.0[..8]);
    if !(0..n).contains(&rank) || run == [0; 8] {
        return INVALID_ARGUMENT;
    }
    let made = Box::new(Comm { run: u64::from_le_bytes(run), rank });
    // SAFETY: the caller's promise.
    unsafe { comm.write(Box::into_raw(made).cast()) };
    SUCCESS
}

/// # Safety
/// `comm` is one that was given out, and is not used after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *mut c_void) -> i32 {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(comm.cast::<Comm>()) });
    SUCCESS
}

/// # Safety
/// As `ncclCommDestroy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *mut c_void) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { ncclCommDestroy(comm) }
}

/// # Safety
/// `error` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(_comm: *mut c_void, error: *mut c_int) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { error.write(SUCCESS) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    let text = match code {
        SUCCESS => c"no error",
        UNHANDLED_CUDA_ERROR => c"unhandled cuda error",
        INVALID_ARGUMENT => c"invalid argument",
        _ => c"internal error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> i32 {
    DEPTH.set(DEPTH.get() + 1);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> i32 {
    DEPTH.set(DEPTH.get().saturating_sub(1));
    if DEPTH.get() > 0 {
        return SUCCESS;
    }
    let (sends, recvs): (Vec<_>, Vec<_>) =
        GROUP.take().into_iter().partition(|transfer| transfer.sends);
    let codes = sends.into_iter().map(send).chain(recvs.into_iter().map(recv));
    codes.into_iter().find(|code| *code != SUCCESS).unwrap_or(SUCCESS)
}

/// # Safety
/// `comm` is one that was given out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    at: *const c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    // SAFETY: the caller's promise.
    let Comm { run, rank } = unsafe { &*comm.cast::<Comm>() };
    let (at, key) = (at as usize as u64, (*run, *rank, peer));
    add(kind, Transfer { sends: true, at, bytes: count, key, stream: stream as usize })
}

/// # Safety
/// `comm` is one that was given out.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    at: *mut c_void,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> i32 {
    // SAFETY: the caller's promise.
    let Comm { run, rank } = unsafe { &*comm.cast::<Comm>() };
    let (at, key) = (at as usize as u64, (*run, peer, *rank));
    add(kind, Transfer { sends: false, at, bytes: count, key, stream: stream as usize })
}

/// Only groups are sent: alone, two ranks that send first would wait for each other.
fn add(kind: c_int, transfer: Transfer) -> i32 {
    if kind != UINT8 || DEPTH.get() == 0 {
        return INVALID_ARGUMENT;
    }
    GROUP.with_borrow_mut(|group| group.push(transfer));
    SUCCESS
}

fn send(x: Transfer) -> i32 {
    let mut bytes = vec![];
    let read = with_context(|s| {
        s.at_once(x.stream, |s, on| {
            told(s.device.read_on(on, x.at, x.bytes).map(|read| bytes = read))
        })
    });
    if read != result::SUCCESS {
        return UNHANDLED_CUDA_ERROR;
    }
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    queues.entry(x.key).or_default().push_back(bytes);
    CHANGED.notify_all();
    SUCCESS
}

fn recv(x: Transfer) -> i32 {
    let queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    let empty = |queues: &mut Queues| queues.get(&x.key).is_none_or(VecDeque::is_empty);
    let waited = CHANGED.wait_timeout_while(queues, LIMIT, empty);
    let (mut queues, _) = waited.unwrap_or_else(PoisonError::into_inner);
    let Some(bytes) = queues.get_mut(&x.key).and_then(VecDeque::pop_front) else {
        return INTERNAL_ERROR;
    };
    drop(queues);
    if bytes.len() != x.bytes {
        return INVALID_ARGUMENT;
    }
    let write = |s: &mut crate::state::State| {
        s.at_once(x.stream, |s, on| told(s.device.write_on(on, x.at, &bytes)))
    };
    if with_context(write) == result::SUCCESS { SUCCESS } else { UNHANDLED_CUDA_ERROR }
}
