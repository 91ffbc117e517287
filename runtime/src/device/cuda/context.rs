//! A GPU with its streams: memory is allocated, copied and zeroed in the order of the first.

use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUresult, CUstream};
use weft_graph::Graph;

use super::kernels::Loaded;
use super::staging::Staging;
use super::{Driver, Gpu, NoCuda, Version, probe};
use crate::device::{Device, DeviceError, Kernels, Memory};

/// What a call of the driver says, as an error of the device.
pub(super) fn check(call: &'static str, code: CUresult) -> Result<(), DeviceError> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(DeviceError::Failed { device: "cuda", reason: format!("{call}: {code:?}") }),
    }
}

/// A GPU's primary context and the streams in it.
#[derive(Debug)]
pub(super) struct Context {
    device: CUdevice,
    context: CUcontext,
    /// The CUDA version that the driver supports.
    pub driver: Version,
    /// The first is always there.
    streams: RwLock<Vec<CUstream>>,
}

// SAFETY: the driver's handles may be used by any thread; each call below makes the context the
// thread's own first.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new(ordinal: u32, driver: Version) -> Result<Context, DeviceError> {
        let mut device: CUdevice = 0;
        // SAFETY: `probe` has initialised the driver; writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let mut context = std::ptr::null_mut();
        // SAFETY: as above.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, device)
        })?;
        let made = Context { device, context, driver, streams: RwLock::default() };
        made.reserve(1)?;
        Ok(made)
    }

    /// Makes so many streams, those that are there among them.
    pub fn reserve(&self, n_streams: u32) -> Result<(), DeviceError> {
        self.enter()?;
        let mut streams = self.streams.write().unwrap_or_else(PoisonError::into_inner);
        while streams.len() < n_streams as usize {
            let mut stream = std::ptr::null_mut();
            let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the context is this thread's; writes one handle.
            check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
            streams.push(stream);
        }
        Ok(())
    }

    /// A stream by its number.
    pub fn stream(&self, number: u32) -> Result<CUstream, DeviceError> {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        streams.get(number as usize).copied().ok_or_else(|| DeviceError::Failed {
            device: "cuda",
            reason: format!("stream {number} of {}", streams.len()),
        })
    }

    /// The stream that memory belongs to.
    pub fn main(&self) -> CUstream {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        streams.first().copied().unwrap_or(std::ptr::null_mut())
    }

    /// Makes the context this thread's.
    pub fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained until `self` is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// Waits for all that was put into the first stream; what went wrong there is told here.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.main()) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about what fails here, and nothing follows it.
        let _ = self.enter();
        for stream in self.streams.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: made in `reserve`, used by nothing after.
            let _ = unsafe { sys::cuStreamDestroy_v2(stream) };
        }
        // SAFETY: retained in `new`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A GPU that runs the kernels.
#[derive(Debug)]
pub struct Cuda {
    context: Arc<Context>,
    staging: Arc<Staging>,
    name: String,
    multiprocessors: u32,
}

impl Cuda {
    /// The GPU of a rank, of those that fit.
    pub fn for_rank(rank: usize) -> Result<Cuda, DeviceError> {
        let Driver { version, gpus } = probe()?;
        let fit: Vec<&Gpu> = gpus.iter().filter(|gpu| gpu.unfit().is_none()).collect();
        let Some(gpu) = fit.get(rank % fit.len().max(1)) else {
            let why =
                gpus.iter().filter_map(|gpu| Some(format!("{} has {}", gpu.name, gpu.unfit()?)));
            return Err(NoCuda::Unfit { why: why.collect::<Vec<_>>().join(", ") }.into());
        };
        let name = format!("cuda:{}, {}", gpu.ordinal, gpu.name);
        let context = Arc::new(Context::new(gpu.ordinal, version)?);
        let staging = Arc::default();
        Ok(Cuda { context, staging, name, multiprocessors: gpu.multiprocessors })
    }
}

#[derive(Debug)]
struct Allocation {
    context: Arc<Context>,
    address: CUdeviceptr,
    size_bytes: usize,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated in this stream; what still uses it was put there before.
            let _ = unsafe { sys::cuMemFreeAsync(self.address, self.context.main()) };
        }
    }
}

impl Memory for Allocation {
    fn address(&self) -> *mut u8 {
        self.address as usize as *mut u8
    }

    fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

/// Where `n_bytes` at an offset of `memory` lie. Panics if that leaves it.
fn place(memory: &dyn Memory, offset: usize, n_bytes: usize) -> CUdeviceptr {
    assert!(offset.checked_add(n_bytes).is_some_and(|end| end <= memory.size_bytes()));
    (memory.address() as usize + offset) as CUdeviceptr
}

impl Device for Cuda {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn multiprocessors(&self) -> Option<u32> {
        Some(self.multiprocessors)
    }

    fn allocate(&self, size_bytes: u64) -> Result<Arc<dyn Memory>, DeviceError> {
        let context = &self.context;
        context.enter()?;
        let size = usize::try_from(size_bytes).unwrap_or(usize::MAX).max(1);
        let mut address: CUdeviceptr = 0;
        // SAFETY: the context is this thread's; writes one address.
        match unsafe { sys::cuMemAllocAsync(&mut address, size, context.main()) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let error = std::io::ErrorKind::OutOfMemory.into();
                return Err(DeviceError::Memory { size_bytes, error });
            }
            code => check("cuMemAllocAsync", code)?,
        }
        let allocation = Allocation { context: Arc::clone(context), address, size_bytes: size };
        // SAFETY: the bytes were just allocated in this stream.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(address, 0, size, context.main())
        })?;
        Ok(Arc::new(allocation))
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Kernels>, DeviceError> {
        Ok(Box::new(Loaded::new(&self.context, &self.staging, graph, &self.name)?))
    }

    fn write(&self, to: &dyn Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = place(to, offset, bytes.len());
        self.staging.write(&self.context, self.context.main(), to, bytes)
    }

    fn read(&self, from: &dyn Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let from = place(from, offset, bytes.len());
        self.staging.read(&self.context, self.context.main(), from, bytes)
    }
}
