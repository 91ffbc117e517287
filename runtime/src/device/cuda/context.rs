//! A GPU with a stream: memory is allocated, copied and zeroed in the stream's order, and a copy to
//! or from the host waits for what was before it.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUresult, CUstream};
use weft_graph::Graph;

use super::kernels::Loaded;
use super::{NoCuda, probe};
use crate::device::{Clock, Device, DeviceError, Kernels, Memory};

/// What a call of the driver says, as an error of the device.
pub(super) fn check(call: &'static str, code: CUresult) -> Result<(), DeviceError> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(DeviceError::Failed { device: "cuda", reason: format!("{call}: {code:?}") }),
    }
}

/// A GPU's primary context and a stream in it.
#[derive(Debug)]
pub(super) struct Context {
    device: CUdevice,
    context: CUcontext,
    pub stream: CUstream,
}

// SAFETY: the driver's handles may be used by any thread; each call below makes the context the
// thread's own first.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new(ordinal: u32) -> Result<Context, DeviceError> {
        let mut device: CUdevice = 0;
        // SAFETY: `probe` has initialised the driver; writes one handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let mut context = std::ptr::null_mut();
        // SAFETY: as above.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, device)
        })?;
        let mut made = Context { device, context, stream: std::ptr::null_mut() };
        made.enter()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is this thread's; writes one handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut made.stream, flags) })?;
        Ok(made)
    }

    /// Makes the context this thread's.
    pub fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained until `self` is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// Waits for all that was put into the stream; what went wrong there is told here.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

/// Two events of a stream.
pub(super) struct Events {
    context: Arc<Context>,
    start: CUevent,
    stop: CUevent,
}

impl Events {
    pub fn new(context: &Arc<Context>) -> Result<Events, DeviceError> {
        context.enter()?;
        let null = std::ptr::null_mut();
        let mut made = Events { context: Arc::clone(context), start: null, stop: null };
        for event in [&mut made.start, &mut made.stop] {
            // SAFETY: the context is this thread's; writes one handle.
            check("cuEventCreate", unsafe { sys::cuEventCreate(event, 0) })?;
        }
        Ok(made)
    }

    fn record(&self, event: CUevent) -> Result<(), DeviceError> {
        self.context.enter()?;
        // SAFETY: event and stream live as long as `self`.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event, self.context.stream) })
    }
}

impl Clock for Events {
    fn start(&mut self) -> Result<(), DeviceError> {
        self.record(self.start)
    }

    fn stop(&mut self) -> Result<Duration, DeviceError> {
        self.record(self.stop)?;
        // SAFETY: the event lives as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.stop) })?;
        let mut milliseconds = 0f32;
        // SAFETY: both were recorded; writes one number.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&mut milliseconds, self.start, self.stop)
        })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        for event in [self.start, self.stop].into_iter().filter(|event| !event.is_null()) {
            // SAFETY: made in `new`, used by nothing after.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about what fails here, and nothing follows it.
        let _ = self.enter();
        if !self.stream.is_null() {
            // SAFETY: made in `new`, used by nothing after.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
        // SAFETY: retained in `new`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A GPU that runs the kernels.
#[derive(Debug)]
pub struct Cuda {
    context: Arc<Context>,
    name: String,
}

impl Cuda {
    /// The first GPU that fits.
    pub fn first() -> Result<Cuda, DeviceError> {
        let gpus = probe()?.gpus;
        let Some(gpu) = gpus.iter().find(|gpu| gpu.unfit().is_none()) else {
            let why =
                gpus.iter().filter_map(|gpu| Some(format!("{} has {}", gpu.name, gpu.unfit()?)));
            return Err(NoCuda::Unfit { why: why.collect::<Vec<_>>().join(", ") }.into());
        };
        let name = format!("cuda:{}, {}", gpu.ordinal, gpu.name);
        Ok(Cuda { context: Arc::new(Context::new(gpu.ordinal)?), name })
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
            let _ = unsafe { sys::cuMemFreeAsync(self.address, self.context.stream) };
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

    fn allocate(&self, size_bytes: u64) -> Result<Arc<dyn Memory>, DeviceError> {
        let context = &self.context;
        context.enter()?;
        let size = usize::try_from(size_bytes).unwrap_or(usize::MAX).max(1);
        let mut address: CUdeviceptr = 0;
        // SAFETY: the context is this thread's; writes one address.
        match unsafe { sys::cuMemAllocAsync(&mut address, size, context.stream) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let error = std::io::ErrorKind::OutOfMemory.into();
                return Err(DeviceError::Memory { size_bytes, error });
            }
            code => check("cuMemAllocAsync", code)?,
        }
        let allocation = Allocation { context: Arc::clone(context), address, size_bytes: size };
        // SAFETY: the bytes were just allocated in this stream.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(address, 0, size, context.stream)
        })?;
        Ok(Arc::new(allocation))
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Kernels>, DeviceError> {
        Ok(Box::new(Loaded::new(&self.context, graph, &self.name)?))
    }

    fn write(&self, to: &dyn Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = place(to, offset, bytes.len());
        self.context.enter()?;
        let from: *const c_void = bytes.as_ptr().cast();
        // SAFETY: both places hold the bytes, and `wait` keeps the host's until they are read.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from, bytes.len(), self.context.stream)
        })?;
        self.context.wait()
    }

    fn read(&self, from: &dyn Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let from = place(from, offset, bytes.len());
        self.context.enter()?;
        let to: *mut c_void = bytes.as_mut_ptr().cast();
        // SAFETY: as in `write`.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to, from, bytes.len(), self.context.stream)
        })?;
        self.context.wait()
    }
}
