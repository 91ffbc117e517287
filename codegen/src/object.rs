//! From kernels to position-independent ELF objects, or to PTX modules.
//!
//! A kernel is a name and a closure that emits it; each becomes an object of its own, so that it
//! can be found again, objects in parallel, one LLVM context per thread. Any number of threads
//! gives the same bytes. An object may ask for no symbol but `memcpy`, `memset` and `memmove`, a
//! PTX module for none.

mod elf;

use std::cell::RefCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target as LlvmTarget, TargetMachine,
    TargetTriple,
};

use crate::emit::{Cg, Model, Target};

/// Emits one kernel into the module.
pub type Emit = Arc<dyn for<'c> Fn(&Cg<'c>) + Send + Sync>;

/// A kernel to be compiled.
#[derive(Clone)]
pub struct KernelSource {
    /// The entry point: `<target>_<dtype>_<op>[_<variant>]`.
    pub name: String,
    /// Where it comes from, `mla.model:12`; printed if LLVM gives up on it.
    pub label: String,
    /// Of a block, on targets with threads.
    pub cta: Cta,
    pub emit: Emit,
}

/// What a CTA of a kernel has, and how it is launched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cta {
    pub threads: u32,
    /// Shared memory beyond what the kernel declares itself.
    pub dynamic_shared_bytes: u32,
    /// CTAs of a launch at most: those there are do the work of all.
    pub grid_max: Option<u32>,
    /// CTAs of a cluster, where a kernel has any.
    pub cluster: Option<u32>,
    /// It waits itself for what the launch before it leaves.
    pub begins_early: bool,
    /// Sums of codes are meant to be as tensor cores make them, where others could make better.
    pub hopper14: bool,
    /// The entry's first parameters.
    pub maps: Vec<TensorMap>,
}

/// A tensor that a kernel copies in boxes. Sizes are positions among the launch's scalars; dims are
/// innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Position among the launch's buffers.
    pub buffer: u32,
    /// Of e4m3 codes, else of bf16.
    pub is_bytes: bool,
    pub dims: Vec<u32>,
    pub strides_bytes: Vec<u32>,
    pub box_dims: Vec<u32>,
    pub swizzle_bytes: u32,
}

impl KernelSource {
    pub fn new(
        name: impl Into<String>,
        label: impl Into<String>,
        emit: impl for<'c> Fn(&Cg<'c>) + Send + Sync + 'static,
    ) -> KernelSource {
        let cta = Cta { threads: 1, ..Cta::default() };
        KernelSource { name: name.into(), label: label.into(), cta, emit: Arc::new(emit) }
    }

    /// The same for blocks of so many threads.
    pub fn with_threads(mut self, threads: u32) -> KernelSource {
        self.cta.threads = threads;
        self
    }
}

/// A relocatable ELF object, or the text of a PTX module, and the kernels it defines.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub bytes: Vec<u8>,
    pub kernels: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("LLVM has no target {0}")]
    Target(String),
    #[error("{kernels}: the emitted module is malformed: {reason}")]
    Malformed { kernels: String, reason: String },
    #[error("{kernels}: {reason}")]
    Codegen { kernels: String, reason: String },
    #[error("{kernels}: needs the symbols {symbols}, which no loader gives")]
    Undefined { kernels: String, symbols: String },
}

/// What a kernel may leave for the loader to bind.
pub const ALLOWED_SYMBOLS: [&str; 3] = ["memcpy", "memmove", "memset"];

/// Kernels are written with explicit vectors and loops, so the pipeline only cleans up. It takes a
/// third of the time of `default<O2>` and does not undo the loops it is given.
const PIPELINE: &str = "function(sroa,early-cse<memssa>,\
    instcombine<no-verify-fixpoint>,simplifycfg),\
    always-inline,function(loop-mssa(licm),gvn,instcombine<no-verify-fixpoint>,simplifycfg,adce)";

/// Objects that were made before. Equal kernel names mean equal code, on one target.
pub trait Made: Sync {
    fn find(&self, target: &Target, kernel: &str) -> Option<Vec<u8>>;

    fn keep(&self, target: &Target, kernel: &str, object: &[u8]);
}

/// Compiles all kernels that were not `made` before on up to `threads` threads: an object for each.
pub fn compile_all(
    target: &Target,
    sources: &[KernelSource],
    threads: usize,
    made: Option<&dyn Made>,
) -> Result<Vec<Object>, ObjectError> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let object = |source: &KernelSource| {
        if let Some(bytes) = made.and_then(|made| made.find(target, &source.name)) {
            return Ok(Object { bytes, kernels: vec![source.name.clone()] });
        }
        let object = compile(target, std::slice::from_ref(source))?;
        if let Some(made) = made {
            made.keep(target, &source.name, &object.bytes);
        }
        Ok(object)
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(source) = sources.get(at) else { break };
                    let object = object(source);
                    done.lock().unwrap_or_else(|e| e.into_inner()).push((at, object));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, object)| object).collect()
}

/// Compiles kernels into one object.
pub fn compile(target: &Target, sources: &[KernelSource]) -> Result<Object, ObjectError> {
    let (kind, allowed) = match target.model {
        Model::Cpu => (FileType::Object, &ALLOWED_SYMBOLS[..]),
        Model::Simt => (FileType::Assembly, &[][..]),
    };
    let bytes = emit_file(target, sources, kind)?;
    let undefined = match target.model {
        Model::Cpu => elf::undefined_symbols(&bytes),
        Model::Simt => undefined_functions(&bytes),
    };
    let foreign: Vec<String> =
        undefined.into_iter().filter(|s| !allowed.contains(&s.as_str())).collect();
    if !foreign.is_empty() {
        let symbols = foreign.join(", ");
        return Err(ObjectError::Undefined { kernels: names(sources), symbols });
    }
    Ok(Object { bytes, kernels: sources.iter().map(|s| s.name.clone()).collect() })
}

/// What a PTX module declares and does not define.
fn undefined_functions(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix(".extern .func"));
    lines.map(|line| line.trim().to_string()).collect()
}

/// The assembly of kernels, for dumps.
pub fn assembly(target: &Target, sources: &[KernelSource]) -> Result<String, ObjectError> {
    let bytes = emit_file(target, sources, FileType::Assembly)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The optimised LLVM IR of kernels, for dumps.
pub fn llvm_ir(target: &Target, sources: &[KernelSource]) -> Result<String, ObjectError> {
    let machine = machine(target)?;
    let ctx = Context::create();
    let cg = optimised(&ctx, target, &machine, sources)?;
    Ok(cg.module.print_to_string().to_string())
}

fn emit_file(
    target: &Target,
    sources: &[KernelSource],
    kind: FileType,
) -> Result<Vec<u8>, ObjectError> {
    let machine = machine(target)?;
    let ctx = Context::create();
    let cg = optimised(&ctx, target, &machine, sources)?;
    let file = while_compiling(sources, || machine.write_to_memory_buffer(&cg.module, kind));
    let file =
        file.map_err(|e| ObjectError::Codegen { kernels: names(sources), reason: e.to_string() })?;
    // inkwell's slice counts the terminating zero that LLVM keeps behind a buffer.
    let size = file.get_size();
    Ok(file.as_slice()[..size.min(file.as_slice().len())].to_vec())
}

fn optimised<'c>(
    ctx: &'c Context,
    target: &Target,
    machine: &TargetMachine,
    sources: &[KernelSource],
) -> Result<Cg<'c>, ObjectError> {
    let cg = Cg::new(ctx, "kernels", target);
    cg.module.set_triple(&machine.get_triple());
    cg.module.set_data_layout(&machine.get_target_data().get_data_layout());
    for source in sources {
        (source.emit)(&cg);
    }
    let kernels = || names(sources);
    let malformed = |reason| ObjectError::Malformed { kernels: names(sources), reason };
    cg.module.verify().map_err(|e| malformed(e.to_string()))?;
    let defined =
        |name: &str| cg.module.get_function(name).is_some_and(|f| f.count_basic_blocks() > 0);
    if let Some(absent) = sources.iter().find(|s| !defined(&s.name)) {
        return Err(malformed(format!("no function {}", absent.name)));
    }
    while_compiling(sources, || {
        cg.module.run_passes(PIPELINE, machine, PassBuilderOptions::create())
    })
    .map_err(|e| ObjectError::Codegen { kernels: kernels(), reason: e.to_string() })?;
    Ok(cg)
}

fn machine(target: &Target) -> Result<TargetMachine, ObjectError> {
    static INITIALISE: Once = Once::new();
    INITIALISE.call_once(|| {
        LlvmTarget::initialize_x86(&InitializationConfig::default());
        LlvmTarget::initialize_nvptx(&InitializationConfig::default());
        // SAFETY: the handler is a plain function that lives as long as the program.
        unsafe { inkwell::support::error_handling::install_fatal_error_handler(on_fatal_error) };
    });
    let unknown = || ObjectError::Target(target.triple.to_string());
    let triple = TargetTriple::create(target.triple);
    LlvmTarget::from_triple(&triple)
        .map_err(|_| unknown())?
        .create_target_machine(
            &triple,
            target.cpu,
            target.features,
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Default,
        )
        .ok_or_else(unknown)
}

thread_local! {
    /// The kernels this thread is compiling, for the fatal-error handler.
    static COMPILING: RefCell<String> = const { RefCell::new(String::new()) };
}

fn while_compiling<T>(sources: &[KernelSource], f: impl FnOnce() -> T) -> T {
    COMPILING.set(names(sources));
    let result = f();
    COMPILING.set(String::new());
    result
}

fn names(sources: &[KernelSource]) -> String {
    let name = |s: &KernelSource| format!("{} ({})", s.name, s.label);
    sources.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// LLVM ends the process after this returns: what can be done is to say on what it stumbled.
extern "C" fn on_fatal_error(reason: *const std::ffi::c_char) {
    // SAFETY: LLVM passes a zero-terminated string that outlives the call.
    let reason = unsafe { CStr::from_ptr(reason) }.to_string_lossy();
    COMPILING.with_borrow(|kernels| {
        eprintln!("error: LLVM cannot compile {kernels}: {reason}");
        eprintln!("  = note: this is a bug of Weft, not of the model");
    });
}

#[cfg(test)]
mod tests;
