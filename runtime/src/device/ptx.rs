//! PTX kernels without a GPU: run by the interpreter, a launch after the other.
//!
//! It is there to test what is compiled for GPUs, on small models: a launch that races, waits for
//! nothing or leaves its buffers ends with an error that names the kernel and the line; so does one
//! that touches what a launch of another stream touches, where no event orders the two.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use weft_graph::{Graph, KernelId, MapElement, PtxCode, TensorMap};

use super::tensor_map::Tensor;
use super::{Device, DeviceError, Kernels, Memory, sum};

#[derive(Default)]
pub struct Ptx {
    device: Arc<Mutex<ptx_sim::Device>>,
}

impl Ptx {
    pub fn new() -> Ptx {
        Ptx::default()
    }
}

impl std::fmt::Debug for Ptx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ptx")
    }
}

/// A panic in another launch is told there; memory is whole.
fn lock(device: &Mutex<ptx_sim::Device>) -> MutexGuard<'_, ptx_sim::Device> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(e: ptx_sim::Error) -> DeviceError {
    DeviceError::Failed { device: "ptx", reason: e.to_string() }
}

/// Part of the interpreter's memory.
struct Allocation {
    device: Arc<Mutex<ptx_sim::Device>>,
    address: u64,
    size_bytes: usize,
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x}", self.size_bytes, self.address)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // It is there: nothing else frees it.
        let _ = lock(&self.device).free(self.address);
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

/// Where in the device `bytes` at an offset of `memory` lie. Panics if that leaves it.
fn place(memory: &dyn Memory, offset: usize, n_bytes: usize) -> u64 {
    assert!(offset.checked_add(n_bytes).is_some_and(|end| end <= memory.size_bytes()));
    (memory.address() as usize + offset) as u64
}

impl Device for Ptx {
    fn describe(&self) -> String {
        "the ptx interpreter".into()
    }

    fn allocate(&self, size_bytes: u64) -> Result<Arc<dyn Memory>, DeviceError> {
        let size = usize::try_from(size_bytes).ok().filter(|n| *n <= BYTES_MAX);
        let Some(size) = size else {
            let error = std::io::ErrorKind::OutOfMemory.into();
            return Err(DeviceError::Memory { size_bytes, error });
        };
        let address = lock(&self.device).alloc(size.max(1));
        let device = Arc::clone(&self.device);
        Ok(Arc::new(Allocation { device, address, size_bytes: size.max(1) }))
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Kernels>, DeviceError> {
        let mut modules = BTreeMap::new();
        let mut kernels = Vec::with_capacity(graph.kernels.len());
        for kernel in &graph.kernels {
            let name = kernel.name.clone();
            let Some(code) = kernel.ptx.clone() else {
                return Err(DeviceError::NoVariant { kernel: name, device: self.describe() });
            };
            let object = code.object.0;
            if let std::collections::btree_map::Entry::Vacant(vacant) = modules.entry(object) {
                let text = String::from_utf8_lossy(&graph.objects[object as usize]);
                let module = ptx_sim::Module::load(&text);
                let reason = |e: ptx_sim::Error| e.to_string();
                vacant.insert(module.map_err(|e| DeviceError::Kernel {
                    kernel: name.clone(),
                    reason: reason(e),
                })?);
            }
            kernels.push((name, code));
        }
        Ok(Box::new(Loaded {
            device: Arc::clone(&self.device),
            modules,
            kernels,
            sums: OnceLock::new(),
        }))
    }

    fn write(&self, to: &dyn Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        lock(&self.device).write(place(to, offset, bytes.len()), bytes).map_err(failed)
    }

    fn read(&self, from: &dyn Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let mut device = lock(&self.device);
        device.synchronize(0);
        bytes.copy_from_slice(
            device.read(place(from, offset, bytes.len()), bytes.len()).map_err(failed)?,
        );
        Ok(())
    }
}

/// What an interpreter can hold: a model that needs more would not end in a day.
const BYTES_MAX: usize = 1 << 32;

struct Loaded {
    device: Arc<Mutex<ptx_sim::Device>>,
    /// By the graph's objects.
    modules: BTreeMap<u32, ptx_sim::Module>,
    /// In the order of the graph's kernels.
    kernels: Vec<(String, PtxCode)>,
    /// The module of sums.
    sums: OnceLock<ptx_sim::Result<ptx_sim::Module>>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.kernels.iter().map(|(name, _)| name)).finish()
    }
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
        let (name, code) = &self.kernels[kernel.0 as usize];
        let wrong = |reason: String| DeviceError::Kernel { kernel: name.clone(), reason };
        let grid = u32::try_from(grid).map_err(|_| wrong(format!("a grid of {grid} CTAs")))?;
        let accumulate = match code.hopper14 {
            true => ptx_sim::Accumulate::Hopper14,
            false => ptx_sim::Accumulate::F32,
        };
        let launch = ptx_sim::Launch {
            accumulate,
            stream,
            cluster: [code.cluster.unwrap_or(1), 1, 1],
            dynamic_shared_bytes: code.dynamic_shared_bytes,
            ..ptx_sim::Launch::new(grid, code.threads)
        };
        let maps = code.maps.iter().map(|map| tensor_map(map, buffers, scalars));
        let maps: Vec<ptx_sim::Arg> = maps.collect::<Result<_, _>>().map_err(&wrong)?;
        let buffers = buffers.iter().map(|b| ptx_sim::Arg::Ptr(*b as usize as u64));
        let scalars = scalars.iter().map(|s| ptx_sim::Arg::I64(*s));
        let args: Vec<ptx_sim::Arg> = maps.into_iter().chain(buffers).chain(scalars).collect();
        let module = &self.modules[&code.object.0];
        let run = lock(&self.device).launch(module, name, &launch, &args);
        run.map(|_| ()).map_err(|e| wrong(e.to_string()))
    }

    unsafe fn copy(
        &self,
        from: *const u8,
        to: *mut u8,
        size_bytes: usize,
        stream: u32,
    ) -> Result<(), DeviceError> {
        let mut device = lock(&self.device);
        let bytes = device.read_on(stream, from as usize as u64, size_bytes).map_err(failed)?;
        device.write_on(stream, to as usize as u64, &bytes).map_err(failed)
    }

    unsafe fn fetch(
        &self,
        from: *const u8,
        bytes: &mut [u8],
        stream: u32,
    ) -> Result<(), DeviceError> {
        let mut device = lock(&self.device);
        let read = device.read_on(stream, from as usize as u64, bytes.len()).map_err(failed)?;
        device.synchronize(stream);
        bytes.copy_from_slice(&read);
        Ok(())
    }

    unsafe fn store(&self, to: *mut u8, bytes: &[u8], stream: u32) -> Result<(), DeviceError> {
        lock(&self.device).write_on(stream, to as usize as u64, bytes).map_err(failed)
    }

    unsafe fn add(
        &self,
        to: *mut u8,
        x: *const u8,
        y: *const u8,
        n: usize,
        stream: u32,
    ) -> Result<(), DeviceError> {
        let Ok(grid @ 1..) = u32::try_from(sum::grid(n)) else { return Ok(()) };
        let launch = ptx_sim::Launch { stream, ..ptx_sim::Launch::new(grid, sum::THREADS) };
        let pointers = [to.cast_const(), x, y].map(|p| ptx_sim::Arg::Ptr(p as usize as u64));
        let args: Vec<_> = pointers.into_iter().chain([ptx_sim::Arg::U64(n as u64)]).collect();
        let module = self.sums.get_or_init(|| ptx_sim::Module::load(sum::TEXT));
        let module = module.as_ref().map_err(|e| failed(e.clone()))?;
        let run = lock(&self.device).launch(module, sum::NAME, &launch, &args);
        run.map(|_| ()).map_err(failed)
    }

    unsafe fn zero(&self, to: *mut u8, size_bytes: usize, stream: u32) -> Result<(), DeviceError> {
        let zeros = vec![0; size_bytes];
        lock(&self.device).write_on(stream, to as usize as u64, &zeros).map_err(failed)
    }

    fn wait(&self) -> Result<(), DeviceError> {
        lock(&self.device).synchronize(0);
        Ok(())
    }

    fn reserve(&self, _n_streams: u32, _n_events: u32) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn record(&self, event: u32, stream: u32) -> Result<(), DeviceError> {
        lock(&self.device).record(event.into(), stream);
        Ok(())
    }

    fn wait_for(&self, event: u32, stream: u32) -> Result<(), DeviceError> {
        lock(&self.device).wait(event.into(), stream).map_err(failed)
    }
}

/// A tensor map of a launch.
fn tensor_map(
    map: &TensorMap,
    buffers: &[*mut u8],
    scalars: &[i64],
) -> Result<ptx_sim::Arg, String> {
    let Tensor { address, dims, strides_bytes } = Tensor::of(map, buffers, scalars)?;
    Ok(ptx_sim::Arg::TensorMap(ptx_sim::TensorMap {
        element: match map.element {
            MapElement::U8 => ptx_sim::Element::U8,
            MapElement::Bf16 => ptx_sim::Element::Bf16,
        },
        address,
        dims,
        strides_bytes,
        box_dims: map.box_dims.clone(),
        swizzle: match map.swizzle_bytes {
            32 => ptx_sim::Swizzle::B32,
            64 => ptx_sim::Swizzle::B64,
            128 => ptx_sim::Swizzle::B128,
            other => return Err(format!("no tensor map permutes within {other} bytes")),
        },
        fills_nan: false,
    }))
}
