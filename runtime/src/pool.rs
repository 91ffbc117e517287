//! Persistent threads that do the blocks of a grid.
//!
//! Launches come every few microseconds, so a thread without work spins before it sleeps, and the
//! caller works too. Chunks of blocks are taken from a shared counter, several at once while many
//! are left: threads that are late, slow or asleep take fewer. A launch ends when its chunks are
//! done, not when all threads have looked: one that has not woken up yet is not waited for.
//!
//! The counter holds the number of the launch and the count of chunks left. A thread reads what to
//! do, then takes chunks by compare-and-swap; as the number only ever grows, success means that
//! what it read belongs to this very launch. A launch is published after its description is in
//! place, and the next description is written only after all chunks are done.
//!
//! Cost, with 2 threads on 2 free cores of an AMD EPYC (`pool_launch` in `tests/`): 0.01 us for a
//! launch of one chunk, which the caller does itself; 1 us for one of a few chunks.

use crate::memory::Pages;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins without giving its core away, spins giving it away, and then sleeps.
const SPIN: Duration = Duration::from_micros(30);
const YIELD: Duration = Duration::from_micros(1000);

/// Chunks a grid is cut into per thread where the caller does not say. The last ones are done one
/// by one, so a thread waits at most about an eighth of its own time for the others.
const CHUNKS_PER_THREAD: i64 = 8;

#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Threads to wake, in the order of `Shared::asleep`.
    handles: Vec<Thread>,
    /// Held for the length of a launch; guards the scratch memory.
    scratch: Mutex<Vec<Option<Pages>>>,
    scratch_addresses: Vec<AtomicPtr<u8>>,
}

type Call = unsafe fn(*const (), i64, i64, usize);

#[derive(Debug)]
struct Shared {
    ticket: Ticket,
    /// Chunks finished of the launch in progress.
    done: CacheLine<AtomicI64>,
    call: AtomicUsize,
    closure: AtomicPtr<()>,
    grid: AtomicI64,
    chunk: AtomicI64,
    stop: AtomicBool,
    /// One per worker: it sleeps, or is about to.
    asleep: Vec<CacheLine<AtomicBool>>,
    /// The first panic of a worker in the launch in progress.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct CacheLine<T>(T);

/// Launch number in the high half, chunks left in the low half.
#[derive(Debug, Default)]
struct Ticket(CacheLine<AtomicU64>);

const LEFT_MASK: u64 = u32::MAX as u64;

impl Pool {
    /// A pool of `threads`, one of which is whoever calls `run`.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            ticket: Ticket::default(),
            done: CacheLine::default(),
            call: AtomicUsize::new(0),
            closure: AtomicPtr::new(std::ptr::null_mut()),
            grid: AtomicI64::new(0),
            chunk: AtomicI64::new(0),
            stop: AtomicBool::new(false),
            asleep: (1..threads).map(|_| CacheLine::default()).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Pool {
            shared,
            workers: Vec::new(),
            handles: Vec::new(),
            scratch: Mutex::new((0..threads).map(|_| None).collect()),
            scratch_addresses: (0..threads).map(|_| AtomicPtr::default()).collect(),
        };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new()
                .name(format!("weft-worker-{worker}"))
                .spawn(move || shared.work(worker))?;
            pool.handles.push(handle.thread().clone());
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Blocks per chunk for a grid that says nothing of its own.
    pub fn chunk_for(&self, grid: i64) -> i64 {
        (grid / (self.threads() as i64 * CHUNKS_PER_THREAD)).max(1)
    }

    /// Calls `f(begin, end, worker)` for ranges of whole chunks of `chunk` blocks that cover
    /// `0..grid` once, and returns when all are done. A pool of one thread makes a single call of
    /// them all. `worker` is below `threads()`; no two calls with the same one run at the same
    /// time. Calls from inside `f` never return.
    pub fn run<F: Fn(i64, i64, usize) + Sync>(&self, grid: i64, chunk: i64, f: &F) {
        if grid <= 0 {
            return;
        }
        let lock = self.lock();
        // The count of chunks has 32 bits.
        let chunk = chunk.max(1).max(grid / i64::from(i32::MAX) + 1);
        let chunks = (grid - 1) / chunk + 1;
        if chunks == 1 || self.handles.is_empty() {
            f(0, grid, 0);
            return;
        }
        self.shared.publish(f, grid, chunk, chunks as u32);
        self.wake(chunks);
        while self.shared.take_chunks(0) {}
        // Chunks that workers hold borrow `f`: nothing leaves before they are done.
        self.shared.wait_for(chunks);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lock);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives every thread at least this much scratch memory, 64-byte aligned. Contents are lost.
    pub fn reserve_scratch(&self, size_bytes: usize) -> std::io::Result<()> {
        let mut scratch = self.lock();
        for (pages, address) in scratch.iter_mut().zip(&self.scratch_addresses) {
            if pages.as_ref().map_or(0, Pages::size_bytes) < size_bytes {
                let grown = Pages::zeroed(size_bytes)?;
                address.store(grown.address(), Ordering::Relaxed);
                *pages = Some(grown);
            }
        }
        Ok(())
    }

    /// Scratch memory of a thread; only for a call in `run` that was given this `worker`.
    pub fn scratch(&self, worker: usize) -> *mut u8 {
        self.scratch_addresses[worker].load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Pages>>> {
        // A panic in a launch leaves nothing half done.
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, chunks: i64) {
        // Pairs with the fence in `Shared::sleep`: either we see that a worker sleeps, or it sees
        // this launch before it does.
        fence(Ordering::SeqCst);
        let helpers = usize::try_from(chunks - 1).unwrap_or(usize::MAX);
        for (asleep, thread) in self.shared.asleep.iter().zip(&self.handles).take(helpers) {
            if asleep.0.load(Ordering::Relaxed) {
                asleep.0.store(false, Ordering::Relaxed);
                thread.unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in &self.handles {
            thread.unpark();
        }
        for worker in self.workers.drain(..) {
            // Workers catch what they run; there is nothing to report here.
            let _ = worker.join();
        }
    }
}

/// Calls the closure behind a type-erased pointer.
///
/// # Safety
/// `closure` points to a live `F`.
unsafe fn call_closure<F: Fn(i64, i64, usize) + Sync>(
    closure: *const (),
    begin: i64,
    end: i64,
    worker: usize,
) {
    // SAFETY: by the caller's promise.
    unsafe { (*closure.cast::<F>())(begin, end, worker) }
}

impl Shared {
    fn publish<F: Fn(i64, i64, usize) + Sync>(&self, f: &F, grid: i64, chunk: i64, chunks: u32) {
        self.done.0.store(0, Ordering::Relaxed);
        self.call.store(call_closure::<F> as Call as usize, Ordering::Relaxed);
        self.closure.store(std::ptr::from_ref(f).cast_mut().cast(), Ordering::Relaxed);
        self.grid.store(grid, Ordering::Relaxed);
        self.chunk.store(chunk, Ordering::Relaxed);
        self.ticket.publish(chunks);
    }

    /// Does some chunks of the launch in progress; false if there are none left to take.
    fn take_chunks(&self, worker: usize) -> bool {
        // Half of a thread's share of what is left: few takes, and small ones at the end.
        let share = 2 * (self.asleep.len() as i64 + 1);
        let mut seen = self.ticket.load();
        let (call, closure, begin, end, taken) = loop {
            let left = (seen & LEFT_MASK) as i64;
            if left == 0 {
                return false;
            }
            let call = self.call.load(Ordering::Relaxed);
            let closure = self.closure.load(Ordering::Relaxed);
            let (grid, chunk) =
                (self.grid.load(Ordering::Relaxed), self.chunk.load(Ordering::Relaxed));
            let taken = (left / share).max(1);
            match self.ticket.take(seen, taken) {
                Ok(()) => {
                    let chunks = (grid - 1) / chunk + 1;
                    let begin = (chunks - left) * chunk;
                    break (call, closure, begin, grid.min(begin + taken * chunk), taken);
                }
                Err(now) => seen = now,
            }
        };
        // SAFETY: `publish` stored a `Call`; the chunks are ours, so the launch is in progress, and
        // its closure lives until all chunks are done.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe {
            std::mem::transmute::<usize, Call>(call)(closure, begin, end, worker);
        }));
        if let Err(panic) = outcome {
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
        }
        self.done.0.fetch_add(taken, Ordering::Release);
        true
    }

    fn wait_for(&self, chunks: i64) {
        let mut idle = Idle::new();
        while self.done.0.load(Ordering::Acquire) < chunks {
            idle.pause();
        }
    }

    fn work(&self, worker: usize) {
        let mut idle = Idle::new();
        while !self.stop.load(Ordering::Relaxed) {
            if self.take_chunks(worker) {
                idle = Idle::new();
            } else if !idle.pause() {
                self.sleep(worker);
                idle = Idle::new();
            }
        }
    }

    fn sleep(&self, worker: usize) {
        let asleep = &self.asleep[worker - 1].0;
        asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while asleep.load(Ordering::Relaxed)
            && self.ticket.load() & LEFT_MASK == 0
            && !self.stop.load(Ordering::SeqCst)
        {
            thread::park();
        }
        asleep.store(false, Ordering::Relaxed);
    }
}

impl Ticket {
    fn load(&self) -> u64 {
        self.0.0.load(Ordering::Acquire)
    }

    fn publish(&self, chunks: u32) {
        let number = self.0.0.load(Ordering::Relaxed) >> 32;
        self.0.0.store((number + 1) << 32 | u64::from(chunks), Ordering::Release);
    }

    /// Takes `count` chunks of the ticket seen, which has as many left, or returns what it is now.
    fn take(&self, seen: u64, count: i64) -> Result<(), u64> {
        let taken = self.0.0.compare_exchange_weak(
            seen,
            seen - count as u64,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        taken.map(|_| ())
    }
}

/// Waits longer the longer nothing happens.
struct Idle {
    rounds: u32,
    since: Option<Instant>,
}

impl Idle {
    fn new() -> Idle {
        Idle { rounds: 0, since: None }
    }

    /// A short wait; false once it has been long enough to sleep.
    fn pause(&mut self) -> bool {
        std::hint::spin_loop();
        self.rounds = self.rounds.wrapping_add(1);
        // The clock costs as much as many rounds.
        if !self.rounds.is_multiple_of(64) {
            return true;
        }
        let idle = self.since.get_or_insert_with(Instant::now).elapsed();
        if idle > SPIN {
            thread::yield_now();
        }
        idle < YIELD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(threads: usize, grid: i64, chunk: i64) {
        let pool = Pool::new(threads).unwrap();
        let blocks: Vec<AtomicI64> = (0..grid).map(|_| AtomicI64::new(0)).collect();
        for _ in 0..50 {
            pool.run(grid, chunk, &|begin, end, worker| {
                assert!(worker < threads);
                assert!(begin % chunk == 0 && (end % chunk == 0 || end == grid));
                for block in begin..end {
                    blocks[block as usize].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        assert!(blocks.iter().all(|count| count.load(Ordering::Relaxed) == 50));
    }

    #[test]
    fn every_block_is_done_once() {
        for threads in [1, 2, 3, 8] {
            for (grid, chunk) in [(0, 1), (1, 1), (7, 2), (100, 1), (1000, 33)] {
                check(threads, grid, chunk);
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = Pool::new(2).unwrap();
        let workers = Mutex::new(Vec::new());
        thread::sleep(YIELD * 20);
        // The caller's chunk does not end before the worker's has begun.
        let both = std::sync::Barrier::new(2);
        pool.run(2, 1, &|_, _, worker| {
            both.wait();
            workers.lock().unwrap().push(worker);
        });
        workers.lock().unwrap().sort();
        assert_eq!(*workers.lock().unwrap(), [0, 1]);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // Without the message that `panic!` prints.
            pool.run(100, 1, &|begin, _, _| {
                if begin == 41 {
                    resume_unwind(Box::new(begin));
                }
            });
        }));
        assert_eq!(outcome.unwrap_err().downcast_ref::<i64>(), Some(&41));
        let sum = AtomicI64::new(0);
        pool.run(10, 1, &|begin, _, _| {
            sum.fetch_add(begin, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn scratch_is_aligned_and_its_own() {
        let pool = Pool::new(2).unwrap();
        pool.reserve_scratch(100).unwrap();
        pool.reserve_scratch(5000).unwrap();
        let (first, second) = (pool.scratch(0) as usize, pool.scratch(1) as usize);
        assert!(first.is_multiple_of(64) && second.is_multiple_of(64));
        assert!(first.abs_diff(second) >= 5000);
    }
}
