//! Launches, and steps recorded as a CUDA graph.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{
    self, CUfunction, CUgraph, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUresult, CUtensorMap,
};
use weft_graph::{Graph, KernelId, MapElement, PtxCode, TensorMap};

use super::Version;
use super::context::{Context, check};
use super::events::{Event, Events};
use super::modules::Module;
use super::staging::Staging;
use crate::device::tensor_map::Tensor;
use crate::device::{Clock, DeviceError, Kernels, Recording, sum};

/// The CUDA version whose driver has `cuEventElapsedTime_v2`.
const CLOCK_VERSION_MIN: Version = Version { major: 12, minor: 8 };

/// The kernels of a graph.
#[derive(Debug)]
pub struct Loaded {
    context: Arc<Context>,
    /// In the order of the graph's kernels.
    kernels: Vec<Kernel>,
    /// By number.
    events: Mutex<Vec<Event>>,
    staging: Arc<Staging>,
    sums: Mutex<Option<(Arc<Kernel>, Module)>>,
    _modules: Vec<Module>,
}

#[derive(Debug)]
struct Kernel {
    name: String,
    function: CUfunction,
    code: PtxCode,
}

// SAFETY: the driver's handles may be used by any thread that has entered the context.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Loaded {
    pub(super) fn new(
        context: &Arc<Context>,
        staging: &Arc<Staging>,
        graph: &Graph,
        device: &str,
    ) -> Result<Loaded, DeviceError> {
        let mut places: BTreeMap<u32, usize> = BTreeMap::new();
        let mut modules: Vec<Module> = vec![];
        let mut kernels = Vec::with_capacity(graph.kernels.len());
        for kernel in &graph.kernels {
            let name = kernel.name.clone();
            let Some(code) = kernel.ptx.clone() else {
                return Err(DeviceError::NoVariant { kernel: name, device: device.into() });
            };
            let object = code.object.0;
            let place = match places.get(&object) {
                Some(place) => *place,
                None => {
                    modules.push(Module::load(context, &name, &graph.objects[object as usize])?);
                    places.insert(object, modules.len() - 1);
                    modules.len() - 1
                }
            };
            let function = modules[place].function(&name, &code)?;
            kernels.push(Kernel { name, function, code });
        }
        Ok(Loaded {
            context: Arc::clone(context),
            kernels,
            events: Mutex::default(),
            staging: Arc::clone(staging),
            sums: Mutex::default(),
            _modules: modules,
        })
    }

    /// The kernel of sums, whose module is loaded when it is first needed.
    fn sums(&self) -> Result<Arc<Kernel>, DeviceError> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, _)) = &*sums {
            return Ok(Arc::clone(known));
        }
        let module = Module::load(&self.context, sum::NAME, sum::TEXT.as_bytes())?;
        let code = sum::code();
        let function = module.function(sum::NAME, &code)?;
        let kernel = Arc::new(Kernel { name: sum::NAME.into(), function, code });
        *sums = Some((Arc::clone(&kernel), module));
        Ok(kernel)
    }

    /// Puts a launch into a stream.
    ///
    /// # Safety
    /// As `launch`.
    unsafe fn put(
        &self,
        kernel: &Kernel,
        buffers: &[*mut u8],
        scalars: &[i64],
        grid: i64,
        stream: u32,
    ) -> Result<(), DeviceError> {
        let Kernel { name, function, code } = kernel;
        let wrong = |reason: String| DeviceError::Kernel { kernel: name.clone(), reason };
        // The most CTAs that a grid has along x (CUDA C++ guide, technical specifications).
        let grid = i32::try_from(grid).map_err(|_| wrong(format!("a grid of {grid} CTAs")))? as u32;
        self.context.enter()?;
        let maps = code.maps.iter().map(|map| tensor_map(map, buffers, scalars));
        let mut maps: Vec<CUtensorMap> = maps.collect::<Result<_, _>>().map_err(&wrong)?;
        let mut values = params(buffers, scalars);
        let maps = maps.iter_mut().map(|map| std::ptr::from_mut(map).cast());
        let values = values.iter_mut().map(|v| std::ptr::from_mut(v).cast());
        let mut pointers: Vec<*mut c_void> = maps.chain(values).collect();
        let mut attributes = attributes(code);
        let config = sys::CUlaunchConfig {
            gridDimX: grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: code.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: code.dynamic_shared_bytes,
            hStream: self.context.stream(stream)?,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let none = std::ptr::null_mut();
        // SAFETY: the caller's promise; the driver copies parameters and attributes before it
        // returns.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&config, *function, pointers.as_mut_ptr(), none) };
        match launched {
            CUresult::CUDA_SUCCESS => Ok(()),
            other => Err(wrong(format!("cuLaunchKernelEx: {other:?}"))),
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parameters of an entry behind its tensor maps, eight bytes each: addresses, then scalars.
fn params(buffers: &[*mut u8], scalars: &[i64]) -> Vec<u64> {
    let addresses = buffers.iter().map(|b| *b as usize as u64);
    addresses.chain(scalars.iter().map(|s| *s as u64)).collect()
}

/// A tensor map as the driver encodes it for the hardware.
fn tensor_map(
    map: &TensorMap,
    buffers: &[*mut u8],
    scalars: &[i64],
) -> Result<CUtensorMap, String> {
    let Tensor { address, dims, strides_bytes } = Tensor::of(map, buffers, scalars)?;
    let element = match map.element {
        MapElement::U8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        MapElement::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let swizzle = match map.swizzle_bytes {
        32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        other => return Err(format!("no tensor map permutes within {other} bytes")),
    };
    let rank = dims.len();
    if strides_bytes.len() + 1 != rank || map.box_dims.len() != rank {
        return Err(format!("a tensor map of {rank} dims that its strides or box do not fit"));
    }
    let element_strides = vec![1u32; rank];
    let mut out = CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have as many members as the rank says, one fewer of strides; writes one
    // map. The address is not followed.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut out,
            element,
            rank as u32,
            address as usize as *mut c_void,
            dims.as_ptr(),
            strides_bytes.as_ptr(),
            map.box_dims.as_ptr(),
            element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match encoded {
        CUresult::CUDA_SUCCESS => Ok(out),
        other => Err(format!(
            "cuTensorMapEncodeTiled: {other:?}: dims {dims:?}, strides {strides_bytes:?} bytes, \
             box {:?}, address {address:#x}",
            map.box_dims
        )),
    }
}

/// What a launch asks for beside its grid.
fn attributes(code: &PtxCode) -> Vec<CUlaunchAttribute> {
    let mut all = vec![];
    let mut add = |id, set: &dyn Fn(&mut CUlaunchAttributeValue)| {
        let mut value = CUlaunchAttributeValue { pad: [0; 64] };
        set(&mut value);
        all.push(CUlaunchAttribute { id, pad: [0; 4], value });
    };
    if let Some(n) = code.cluster {
        add(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, &|value| {
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: n, y: 1, z: 1 };
        });
    }
    if code.begins_early {
        let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        add(id, &|value| value.programmaticStreamSerializationAllowed = 1);
    }
    all
}

impl Kernels for Loaded {
    unsafe fn launch(
        &self,
        kernel: KernelId,
        buffers: &[*mut u8],
        scalars: &[i64],
        grid: i64,
        stream: u32,
    ) -> Result<(), DeviceError> {
        // SAFETY: the caller's promise.
        unsafe { self.put(&self.kernels[kernel.0 as usize], buffers, scalars, grid, stream) }
    }

    unsafe fn copy(
        &self,
        from: *const u8,
        to: *mut u8,
        size_bytes: usize,
        stream: u32,
    ) -> Result<(), DeviceError> {
        self.context.enter()?;
        let (to, from) = (to as usize as u64, from as usize as u64);
        let stream = self.context.stream(stream)?;
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, from, size_bytes, stream)
        })
    }

    unsafe fn fetch(
        &self,
        from: *const u8,
        bytes: &mut [u8],
        stream: u32,
    ) -> Result<(), DeviceError> {
        let stream = self.context.stream(stream)?;
        self.staging.read(&self.context, stream, from as usize as u64, bytes)
    }

    unsafe fn store(&self, to: *mut u8, bytes: &[u8], stream: u32) -> Result<(), DeviceError> {
        let stream = self.context.stream(stream)?;
        self.staging.write(&self.context, stream, to as usize as u64, bytes)
    }

    unsafe fn add(
        &self,
        to: *mut u8,
        x: *const u8,
        y: *const u8,
        n: usize,
        stream: u32,
    ) -> Result<(), DeviceError> {
        if n == 0 {
            return Ok(());
        }
        let kernel = self.sums()?;
        let buffers = [to, x.cast_mut(), y.cast_mut()];
        // SAFETY: the caller's promise; these are the kernel's parameters.
        unsafe { self.put(&kernel, &buffers, &[n as i64], sum::grid(n), stream) }
    }

    unsafe fn zero(&self, to: *mut u8, size_bytes: usize, stream: u32) -> Result<(), DeviceError> {
        if size_bytes == 0 {
            return Ok(());
        }
        self.context.enter()?;
        let (to, stream) = (to as usize as u64, self.context.stream(stream)?);
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to, 0, size_bytes, stream) })
    }

    fn reserve(&self, n_streams: u32, n_events: u32) -> Result<bool, DeviceError> {
        self.context.reserve(n_streams)?;
        let mut events = self.events();
        while events.len() < n_events as usize {
            events.push(Event::new(&self.context)?);
        }
        Ok(true)
    }

    fn driver_stream(&self, stream: u32) -> Result<*mut c_void, DeviceError> {
        self.context.enter()?;
        Ok(self.context.stream(stream)?.cast())
    }

    fn is_done(&self, stream: u32) -> Result<bool, DeviceError> {
        self.context.enter()?;
        // SAFETY: the stream lives as long as the context.
        match unsafe { sys::cuStreamQuery(self.context.stream(stream)?) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuStreamQuery", code).map(|()| true),
        }
    }

    fn record(&self, event: u32, stream: u32) -> Result<(), DeviceError> {
        self.events()[event as usize].record(self.context.stream(stream)?)
    }

    fn wait_for(&self, event: u32, stream: u32) -> Result<(), DeviceError> {
        self.events()[event as usize].hold_up(self.context.stream(stream)?)
    }

    fn wait(&self) -> Result<(), DeviceError> {
        self.context.wait()
    }

    fn clock(&self) -> Result<Option<Box<dyn Clock>>, DeviceError> {
        // The driver's call that reads it is younger than what kernels ask for.
        let found = self.context.driver;
        if found < CLOCK_VERSION_MIN {
            let reason = format!("times need a driver of CUDA {CLOCK_VERSION_MIN}; it is {found}");
            return Err(DeviceError::Failed { device: "cuda", reason });
        }
        Ok(Some(Box::new(Events::new(&self.context)?)))
    }

    fn start_recording(&self) -> Result<bool, DeviceError> {
        self.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the context.
        check("cuStreamBeginCapture", unsafe {
            sys::cuStreamBeginCapture_v2(self.context.main(), mode)
        })?;
        Ok(true)
    }

    fn end_recording(&self) -> Result<Box<dyn Recording>, DeviceError> {
        self.context.enter()?;
        let mut graph = Steps(std::ptr::null_mut());
        // SAFETY: `start_recording` began it; writes one handle.
        check("cuStreamEndCapture", unsafe {
            sys::cuStreamEndCapture(self.context.main(), &mut graph.0)
        })?;
        let mut recorded =
            Recorded { context: Arc::clone(&self.context), exec: std::ptr::null_mut() };
        // SAFETY: the graph was just captured; writes one handle.
        check("cuGraphInstantiate", unsafe {
            sys::cuGraphInstantiateWithFlags(&mut recorded.exec, graph.0, 0)
        })?;
        Ok(Box::new(recorded))
    }
}

/// A captured graph, needed until it is instantiated.
struct Steps(CUgraph);

impl Drop for Steps {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: captured by `end_recording`, used by nothing after.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// Steps that the driver puts into the stream at once.
#[derive(Debug)]
struct Recorded {
    context: Arc<Context>,
    exec: CUgraphExec,
}

// SAFETY: as for `Loaded`.
unsafe impl Send for Recorded {}
// SAFETY: as above.
unsafe impl Sync for Recorded {}

impl Recording for Recorded {
    unsafe fn replay(&self) -> Result<(), DeviceError> {
        self.context.enter()?;
        // SAFETY: the caller's promise, for all that was recorded.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.exec, self.context.main()) })
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.exec.is_null() && self.context.enter().is_ok() {
            // SAFETY: instantiated in `end_recording`, used by nothing after.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}
