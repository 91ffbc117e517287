//! What the executor asks of a device: memory, and kernels to launch.
//!
//! Launches of a stream are in order: each sees what the ones before it wrote. Between streams
//! there are events. Addresses are the device's own; only the device reads or writes what is there.
//! Memory is allocated, written and read in the order of stream 0.

use crate::elf::ElfError;
use std::ffi::c_void;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use weft_graph::{Graph, KernelId};

mod cpu;
pub mod cuda;
pub mod list;
mod ptx;
mod sum;
mod tensor_map;

pub use cpu::Cpu;
pub use ptx::Ptx;

/// The devices that a command can be told to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// This machine's cores
    #[default]
    Cpu,
    /// The kernels for GPUs, run by an interpreter on one core: slow, and looks for races
    Ptx,
    /// The first GPU that runs them (Hopper); each of several ranks takes the next
    Cuda,
}

impl DeviceKind {
    /// The device, of so many threads if it is of this machine.
    pub fn open(self, threads: usize) -> Result<Arc<dyn Device>, DeviceError> {
        self.open_for(threads, 0)
    }

    /// That of a rank: GPUs are taken in turn.
    pub fn open_for(self, threads: usize, rank: usize) -> Result<Arc<dyn Device>, DeviceError> {
        Ok(match self {
            DeviceKind::Cpu => Arc::new(Cpu::new(threads)?),
            DeviceKind::Ptx => Arc::new(Ptx::new()),
            DeviceKind::Cuda => Arc::new(cuda::Cuda::for_rank(rank)?),
        })
    }
}

#[derive(Debug, Error)]
pub enum DeviceError {
    #[error("no memory for {size_bytes} bytes: {error}")]
    Memory { size_bytes: u64, error: std::io::Error },
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    Object(#[from] ElfError),
    #[error(
        "kernel {kernel} has no code for {device}; \
             compile the model again with the --device that is to run it"
    )]
    NoVariant { kernel: String, device: String },
    #[error("kernel {kernel}: {reason}")]
    Kernel { kernel: String, reason: String },
    #[error(transparent)]
    NoCuda(#[from] cuda::NoCuda),
    #[error("this device's memory is the host's own")]
    NotApart,
    #[error("{device}: {reason}")]
    Failed { device: &'static str, reason: String },
}

/// Memory of a device; released with its last owner.
pub trait Memory: fmt::Debug + Send + Sync {
    /// A multiple of 64.
    fn address(&self) -> *mut u8;

    fn size_bytes(&self) -> usize;
}

pub trait Device: fmt::Debug + Send + Sync {
    /// What it is, for people: `cpu avx512bf16, 2 threads`.
    fn describe(&self) -> String;

    /// Of a GPU, how many it has.
    fn multiprocessors(&self) -> Option<u32> {
        None
    }

    /// Zeroed memory.
    fn allocate(&self, size_bytes: u64) -> Result<Arc<dyn Memory>, DeviceError>;

    /// Makes the kernels of a verified graph ready to be launched.
    fn load(&self, graph: &Graph) -> Result<Box<dyn Kernels>, DeviceError>;

    /// Writes at an offset. Panics if that leaves the memory.
    fn write(&self, to: &dyn Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Reads at an offset. Panics if that leaves the memory.
    fn read(&self, from: &dyn Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError>;
}

/// The loaded kernels of a graph.
pub trait Kernels: fmt::Debug + Send + Sync {
    /// Runs a kernel over its whole grid.
    ///
    /// # Safety
    /// The arguments are those the kernel was compiled for, the buffers live, and no one else
    /// touches them meanwhile.
    unsafe fn launch(
        &self,
        kernel: KernelId,
        buffers: &[*mut u8],
        scalars: &[i64],
        grid: i64,
        stream: u32,
    ) -> Result<(), DeviceError>;

    /// Moves bytes between places that do not overlap.
    ///
    /// # Safety
    /// As `launch`, for the bytes at `from` and `to`.
    unsafe fn copy(
        &self,
        from: *const u8,
        to: *mut u8,
        size_bytes: usize,
        stream: u32,
    ) -> Result<(), DeviceError>;

    /// Reads bytes for the host, in the order of a stream, and waits for that.
    ///
    /// # Safety
    /// As `copy`.
    unsafe fn fetch(
        &self,
        _from: *const u8,
        _bytes: &mut [u8],
        _stream: u32,
    ) -> Result<(), DeviceError> {
        Err(HOST)
    }

    /// Writes bytes of the host, in the order of a stream.
    ///
    /// # Safety
    /// As `copy`.
    unsafe fn store(&self, _to: *mut u8, _bytes: &[u8], _stream: u32) -> Result<(), DeviceError> {
        Err(HOST)
    }

    /// Sums of f32: `to[i] = x[i] + y[i]` for `i < n`, or `x[i] + 0` where y is null; x may be `to`
    /// itself.
    ///
    /// # Safety
    /// As `copy`.
    unsafe fn add(
        &self,
        _to: *mut u8,
        _x: *const u8,
        _y: *const u8,
        _n: usize,
        _stream: u32,
    ) -> Result<(), DeviceError> {
        Err(HOST)
    }

    /// Zeros.
    ///
    /// # Safety
    /// As `copy`.
    unsafe fn zero(
        &self,
        _to: *mut u8,
        _size_bytes: usize,
        _stream: u32,
    ) -> Result<(), DeviceError> {
        Err(HOST)
    }

    /// Makes so many streams and events ready. False where there is one stream, whatever number is
    /// asked for, and nothing to order.
    fn reserve(&self, _n_streams: u32, _n_events: u32) -> Result<bool, DeviceError> {
        Ok(false)
    }

    /// The event says from here on that what the stream has been given is done.
    fn record(&self, _event: u32, _stream: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What the stream is given from here on begins when the event is there.
    fn wait_for(&self, _event: u32, _stream: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The driver's handle of a stream, for libraries that take one.
    fn driver_stream(&self, _stream: u32) -> Result<*mut c_void, DeviceError> {
        Err(DeviceError::Failed { device: "device", reason: "its streams have no handles".into() })
    }

    /// Whether all that a stream was given is done.
    fn is_done(&self, _stream: u32) -> Result<bool, DeviceError> {
        Ok(true)
    }

    /// Waits for the launches of stream 0 so far. What went wrong in one may be told here, or when
    /// memory is read.
    fn wait(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// From here on launches and copies are recorded instead of done, if the device records; until
    /// `end_recording`, which this thread must reach before it does anything else with the device.
    fn start_recording(&self) -> Result<bool, DeviceError> {
        Ok(false)
    }

    /// What was recorded. An error where nothing was begun.
    fn end_recording(&self) -> Result<Box<dyn Recording>, DeviceError> {
        Err(DeviceError::Failed { device: "device", reason: "it records nothing".into() })
    }

    /// A clock in the device's own order of work, if it has one: else the host's, with a wait, is
    /// as good.
    fn clock(&self) -> Result<Option<Box<dyn Clock>>, DeviceError> {
        Ok(None)
    }

    /// Whether addresses are the host's own: ranks exchange what lies there without `fetch` and
    /// what follows it.
    fn is_host(&self) -> bool {
        false
    }
}

/// What only memory of a device needs.
const HOST: DeviceError = DeviceError::NotApart;

/// Times work on a device between two moments.
pub trait Clock {
    fn start(&mut self) -> Result<(), DeviceError>;

    /// Waits for what was done since `start`, and says how long it took.
    fn stop(&mut self) -> Result<Duration, DeviceError>;
}

/// Launches and copies with their arguments, to be done as often as one likes.
pub trait Recording: fmt::Debug + Send + Sync {
    /// Does them, in order.
    ///
    /// # Safety
    /// As when each was recorded: the buffers live, and no one else touches them meanwhile.
    unsafe fn replay(&self) -> Result<(), DeviceError>;
}
