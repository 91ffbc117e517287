//! This machine: kernels from ELF objects, grids on a thread pool.

use super::{Device, DeviceError, Kernels, Memory};
use crate::elf::{Code, KernelFn};
use crate::memory::Pages;
use crate::pool::Pool;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use weft_graph::{CpuVariant, Graph, KernelId};

#[derive(Debug)]
pub struct Cpu {
    pool: Arc<Pool>,
    /// Kernels of variants above are not used.
    variant: Option<CpuVariant>,
}

/// Copies smaller than this are not worth a second thread.
const COPY_CHUNK_BYTES: usize = 1 << 18;

impl Cpu {
    /// All the CPU can do, on this many threads.
    pub fn new(threads: usize) -> Result<Cpu, DeviceError> {
        let pool = Arc::new(Pool::new(threads).map_err(DeviceError::Threads)?);
        Ok(Cpu { pool, variant: CpuVariant::best_here() })
    }

    /// As `new`, without kernels above a variant: to compare them.
    pub fn with_variant(threads: usize, limit: CpuVariant) -> Result<Cpu, DeviceError> {
        let cpu = Cpu::new(threads)?;
        Ok(Cpu { variant: cpu.variant.map(|best| best.min(limit)), ..cpu })
    }

    /// As many threads as the machine runs at once.
    pub fn threads_here() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Memory for Pages {
    fn address(&self) -> *mut u8 {
        Pages::address(self)
    }

    fn size_bytes(&self) -> usize {
        Pages::size_bytes(self)
    }
}

impl Device for Cpu {
    fn describe(&self) -> String {
        let variant = self.variant.map_or("without avx2", CpuVariant::name);
        format!("cpu {variant}, {} threads", self.pool.threads())
    }

    fn allocate(&self, size_bytes: u64) -> Result<Arc<dyn Memory>, DeviceError> {
        let pages = usize::try_from(size_bytes)
            .map_err(|_| std::io::ErrorKind::OutOfMemory.into())
            .and_then(Pages::zeroed)
            .map_err(|error| DeviceError::Memory { size_bytes, error })?;
        Ok(Arc::new(pages))
    }

    fn load(&self, graph: &Graph) -> Result<Box<dyn Kernels>, DeviceError> {
        let mut objects: BTreeMap<u32, Code> = BTreeMap::new();
        let mut functions = Vec::with_capacity(graph.kernels.len());
        for kernel in &graph.kernels {
            let variant = self.variant.and_then(|limit| kernel.variant_for(limit));
            let Some(variant) = variant else {
                let kernel = kernel.name.clone();
                return Err(DeviceError::NoVariant { kernel, device: self.describe() });
            };
            let id = variant.object.0;
            let object = match objects.entry(id) {
                Entry::Occupied(loaded) => loaded.into_mut(),
                Entry::Vacant(vacant) => {
                    let name = format!("{id} ({})", variant.cpu.name());
                    vacant.insert(Code::load(&name, &graph.objects[id as usize])?)
                }
            };
            functions.push(object.kernel(&kernel.name)?);
        }
        let size_bytes = graph.kernels.iter().map(|kernel| kernel.scratch_bytes).max().unwrap_or(0);
        self.pool
            .reserve_scratch(size_bytes as usize)
            .map_err(|error| DeviceError::Memory { size_bytes, error })?;
        Ok(Box::new(CpuKernels { pool: Arc::clone(&self.pool), functions, _objects: objects }))
    }

    fn write(&self, to: &dyn Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= to.size_bytes()));
        // SAFETY: inside the memory, which is live; `bytes` is a borrow and so elsewhere.
        unsafe { to.address().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        Ok(())
    }

    fn read(&self, from: &dyn Memory, offset: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= from.size_bytes()));
        // SAFETY: as in `write`.
        unsafe {
            from.address().add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        }
        Ok(())
    }
}

#[derive(Debug)]
struct CpuKernels {
    pool: Arc<Pool>,
    /// In the order of the graph's kernels.
    functions: Vec<KernelFn>,
    /// The memory that `functions` points into.
    _objects: BTreeMap<u32, Code>,
}

/// A pointer that may be used by any thread: the launch it belongs to says it is safe.
#[derive(Clone, Copy)]
struct Shared<T>(T);

// SAFETY: see above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn get(&self) -> T {
        self.0
    }
}

impl Kernels for CpuKernels {
    fn is_host(&self) -> bool {
        true
    }

    unsafe fn launch(
        &self,
        kernel: KernelId,
        buffers: &[*mut u8],
        scalars: &[i64],
        grid: i64,
        _stream: u32,
    ) -> Result<(), DeviceError> {
        let function = self.functions[kernel.0 as usize];
        let args = Shared((buffers.as_ptr(), scalars.as_ptr()));
        self.pool.run(grid, self.pool.chunk_for(grid), &|begin, end, worker| {
            let (buffers, scalars) = args.get();
            // SAFETY: the caller's promise; blocks are independent, and the scratch is this
            // thread's.
            unsafe { function(buffers, scalars, begin, end, self.pool.scratch(worker)) }
        });
        Ok(())
    }

    unsafe fn copy(
        &self,
        from: *const u8,
        to: *mut u8,
        size_bytes: usize,
        _stream: u32,
    ) -> Result<(), DeviceError> {
        let places = Shared((from, to));
        let chunk_count = size_bytes.div_ceil(COPY_CHUNK_BYTES) as i64;
        self.pool.run(chunk_count, 1, &|begin, end, _| {
            let (from, to) = places.get();
            let start = begin as usize * COPY_CHUNK_BYTES;
            let stop = size_bytes.min(end as usize * COPY_CHUNK_BYTES);
            // SAFETY: the caller's promise, for a part of the bytes.
            unsafe { to.add(start).copy_from_nonoverlapping(from.add(start), stop - start) }
        });
        Ok(())
    }
}
