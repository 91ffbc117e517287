//! What a test or a runtime uses: modules, buffers, launches.

use crate::decode::{self, Image};
use crate::error::{Error, ErrorKind, Result};
use crate::isa::PRIMITIVES;
use crate::machine::Machine;
use crate::memory::{Memory, SHARED_MAX_BYTES, SHARED_START};
use crate::parse;
use crate::program::Kernel;
use crate::streams::Streams;
use crate::tensor_map::{TENSOR_MAP_BYTES, TensorMap};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

/// A loaded PTX module: every entry decoded, everything in it known.
pub struct Module {
    kernels: Vec<Kernel>,
    image: Image,
}

impl Module {
    /// Parses and decodes; what the interpreter does not know is refused here, by name.
    pub fn load(text: &str) -> Result<Module> {
        // Each module has its own addresses for its globals.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let ast = parse::parse(text)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed) % (1 << 12);
        let (image, globals) = decode::image(&ast, id);
        let entries = ast.functions.iter().filter(|f| f.is_entry);
        let kernels = entries.map(|entry| decode::kernel(&ast, entry, &globals));
        Ok(Module { kernels: kernels.collect::<Result<_>>()?, image })
    }

    /// Names of the entries, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }

    /// Opcodes that an entry contains, with the number of times, as text: what `--list` prints.
    pub fn opcodes(&self, kernel: &str) -> Result<BTreeMap<String, u64>> {
        let kernel = self.kernel(kernel)?;
        let mut out = BTreeMap::new();
        for inst in &kernel.code {
            *out.entry(kernel.opcodes[inst.opcode as usize].clone()).or_default() += 1;
        }
        Ok(out)
    }

    /// Names and sizes in bytes of an entry's parameters.
    pub fn params(&self, kernel: &str) -> Result<Vec<(String, u64)>> {
        let kernel = self.kernel(kernel)?;
        Ok(kernel.params.iter().map(|p| (p.name.clone(), p.size_bytes)).collect())
    }

    fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels.iter().find(|k| k.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.kernels().collect();
            let message = format!("the module has no entry `{name}`; it has {names:?}");
            Error::new(ErrorKind::Launch, message)
        })
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug)]
pub enum Arg {
    /// A device address.
    Ptr(u64),
    U8(u8),
    U16(u16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    /// Passed by value, 128 bytes.
    TensorMap(TensorMap),
    /// Any other parameter passed by value.
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Result<Vec<u8>> {
        Ok(match self {
            Arg::Ptr(v) | Arg::U64(v) => v.to_le_bytes().to_vec(),
            Arg::U8(v) => vec![*v],
            Arg::U16(v) => v.to_le_bytes().to_vec(),
            Arg::U32(v) => v.to_le_bytes().to_vec(),
            Arg::I32(v) => v.to_le_bytes().to_vec(),
            Arg::I64(v) => v.to_le_bytes().to_vec(),
            Arg::F32(v) => v.to_le_bytes().to_vec(),
            Arg::F64(v) => v.to_le_bytes().to_vec(),
            Arg::TensorMap(map) => map.encode()?.to_vec(),
            Arg::Bytes(bytes) => bytes.clone(),
        })
    }
}

/// When asynchronous work takes effect. Races are found in any mode; the numbers of a kernel that
/// does not wait differ between modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// As soon as it is issued.
    Eager,
    /// As late as the waits allow.
    Lazy,
    /// After a random number of turns; warps get turns of random length.
    Random { seed: u64, delay_max: u32 },
}

/// How fp8 products are summed by wgmma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    F32,
    /// 14 bits below the largest exponent of 32 products and the accumulator.
    Hopper14,
}

/// How a kernel is launched, and what is checked.
#[derive(Clone, Debug)]
pub struct Launch {
    /// In CTAs.
    pub grid: [u32; 3],
    /// In threads.
    pub block: [u32; 3],
    /// In CTAs; divides the grid.
    pub cluster: [u32; 3],
    /// Launches of one stream follow one another.
    pub stream: u32,
    pub dynamic_shared_bytes: u32,
    pub completion: Completion,
    pub accumulate: Accumulate,
    /// Races, missing waits and missing fences. Without, about twice as fast.
    pub check_races: bool,
    /// CTAs that run at once; more of the grid follow as clusters end.
    pub resident_ctas_max: u32,
    /// Warp instructions after which a launch is given up.
    pub instructions_max: u64,
}

impl Launch {
    pub fn new(grid: u32, block: u32) -> Launch {
        Launch {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            cluster: [1; 3],
            stream: 0,
            dynamic_shared_bytes: 0,
            completion: Completion::Eager,
            accumulate: Accumulate::F32,
            check_races: true,
            resident_ctas_max: 132,
            instructions_max: 1 << 32,
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Warp instructions.
    pub n_instructions: u64,
    pub n_by_opcode: BTreeMap<String, u64>,
    /// Times that lanes came to an instruction for the whole warp apart and were gathered first.
    /// The hardware's assembler has to repair that; predicated instructions avoid it.
    pub n_late_convergences: u64,
    /// Bytes that bulk copies into shared memory read, once however many CTAs get them.
    pub copied_in_bytes: u64,
    pub(crate) ran_primitives: BTreeSet<u16>,
}

impl Stats {
    /// Names of the primitives that ran.
    pub fn primitives(&self) -> impl Iterator<Item = &'static str> {
        self.ran_primitives.iter().map(|&row| PRIMITIVES[usize::from(row)].name)
    }
}

/// A device with memory. Launches run to their end, one after the other; those of different streams
/// that could run at once must not touch the same memory.
#[derive(Default)]
pub struct Device {
    memory: Memory,
    streams: Streams,
}

impl Device {
    pub fn new() -> Device {
        Device::default()
    }

    /// Zeroed memory, at a multiple of 256.
    pub fn alloc(&mut self, n_bytes: usize) -> u64 {
        self.memory.alloc(n_bytes as u64)
    }

    /// Memory that holds `bytes`.
    pub fn alloc_from(&mut self, bytes: &[u8]) -> u64 {
        let address = self.memory.alloc(bytes.len() as u64);
        if let Ok(to) = self.memory.bytes_mut(address, bytes.len() as u64) {
            to.copy_from_slice(bytes);
        }
        address
    }

    pub fn free(&mut self, address: u64) -> Result<()> {
        self.memory.free(address)
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.bytes_mut(address, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    pub fn read(&self, address: u64, n_bytes: usize) -> Result<&[u8]> {
        self.memory.bytes(address, n_bytes as u64)
    }

    /// The host waits for a stream: what it asks for next follows all that the stream knows of.
    pub fn synchronize(&mut self, stream: u32) {
        self.streams.synchronize(stream);
    }

    /// As `write`, in the order of a stream.
    pub fn write_on(&mut self, stream: u32, address: u64, bytes: &[u8]) -> Result<()> {
        self.write(address, bytes)?;
        self.streams.moved(stream, address, bytes.len() as u64, true)
    }

    /// As `read`, in the order of a stream.
    pub fn read_on(&mut self, stream: u32, address: u64, n_bytes: usize) -> Result<Vec<u8>> {
        self.streams.moved(stream, address, n_bytes as u64, false)?;
        Ok(self.read(address, n_bytes)?.to_vec())
    }

    /// What the stream does next follows what others did before they recorded the event.
    pub fn wait(&mut self, event: u64, stream: u32) -> Result<()> {
        self.streams.wait(event, stream)
    }

    /// An event of what the stream has done so far; one of this number before is forgotten.
    pub fn record(&mut self, event: u64, stream: u32) {
        self.streams.record(event, stream);
    }

    /// Runs an entry over a grid.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        launch: &Launch,
        args: &[Arg],
    ) -> Result<Stats> {
        let name = kernel;
        let kernel = module.kernel(name)?;
        check_launch(kernel, launch)?;
        let params = params(kernel, args)?;
        if !module.image.bytes.is_empty() && !self.memory.is_mapped(module.image.address) {
            self.memory.map(module.image.address, module.image.bytes.clone());
        }
        self.memory.start_launch();
        let stats = Machine::new(kernel, &mut self.memory, launch, &params).run()?;
        self.streams.launched(launch.stream, name, &self.memory)?;
        Ok(stats)
    }
}

fn params(kernel: &Kernel, args: &[Arg]) -> Result<Vec<u8>> {
    let bad = |what: String| Error::new(ErrorKind::Launch, format!("{}: {what}", kernel.name));
    if args.len() != kernel.params.len() {
        let n = kernel.params.len();
        return Err(bad(format!("{n} arguments expected, {} given", args.len())));
    }
    let mut out = vec![0; kernel.params_bytes as usize];
    for (param, arg) in kernel.params.iter().zip(args) {
        let bytes = arg.bytes()?;
        if bytes.len() as u64 != param.size_bytes {
            let (name, n) = (&param.name, param.size_bytes);
            return Err(bad(format!("{name} takes {n} bytes, the argument has {}", bytes.len())));
        }
        if matches!(arg, Arg::TensorMap(_)) {
            debug_assert_eq!(bytes.len(), TENSOR_MAP_BYTES);
        }
        out[param.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    Ok(out)
}

/// `None` beyond 32 bits.
fn product(dims: [u32; 3]) -> Option<u32> {
    dims.iter().try_fold(1u32, |n, d| n.checked_mul(*d))
}

fn check_launch(kernel: &Kernel, launch: &Launch) -> Result<()> {
    let bad = |what: String| Err(Error::new(ErrorKind::Launch, format!("{}: {what}", kernel.name)));
    let n_threads = product(launch.block).unwrap_or(0);
    if !(1..=1024).contains(&n_threads) {
        return bad(format!("a block of {:?} threads, not 1 to 1024 in all", launch.block));
    }
    if let Some(required) = kernel.required_block
        && required != launch.block
    {
        return bad(format!("a block of {:?}, the kernel requires {required:?}", launch.block));
    }
    if let Some(most) = kernel.max_threads
        && n_threads > most
    {
        return bad(format!("{n_threads} threads, the kernel allows {most}"));
    }
    if let Some(required) = kernel.required_cluster
        && required != launch.cluster
    {
        return bad(format!("clusters of {:?}, the kernel requires {required:?}", launch.cluster));
    }
    let n_cluster = product(launch.cluster).unwrap_or(0);
    if !(1..=16).contains(&n_cluster) {
        return bad(format!("clusters of {:?} CTAs, not 1 to 16 in all", launch.cluster));
    }
    let divides = |i: usize| launch.grid[i].is_multiple_of(launch.cluster[i]);
    if launch.grid.contains(&0) || !(0..3).all(divides) {
        let (grid, cluster) = (launch.grid, launch.cluster);
        return bad(format!("a grid of {grid:?} CTAs in clusters of {cluster:?}"));
    }
    if product(launch.grid).is_none_or(|n| n > 1 << 24) {
        return bad(format!("a grid of {:?} CTAs, over 2^24", launch.grid));
    }
    let shared = kernel.static_shared_end - SHARED_START;
    let shared = u64::from(shared) + u64::from(launch.dynamic_shared_bytes);
    if shared > u64::from(SHARED_MAX_BYTES) {
        return bad(format!("{shared} bytes of shared memory, a CTA has {SHARED_MAX_BYTES}"));
    }
    Ok(())
}
