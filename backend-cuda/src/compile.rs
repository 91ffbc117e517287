//! From a module after the passes to an executable graph whose kernels are PTX.
//!
//! Kernels are compiled a handful to a PTX module, modules in parallel; the bytes of the graph
//! depend on the module and the options alone, not on threads.

use std::time::Instant;

use weft_codegen::object::{self, KernelSource, ObjectError, compile_all};
use weft_graph::{Graph, Kernel, MapElement, ObjectId, PtxCode, TensorMap};
use weft_ir::module::Module;
use weft_lower::Kernels;
use weft_lower::cache::{self, Cache, Cached};
use weft_lower::compile::{CompileError, Observe, Stage};

use crate::Cuda;
use crate::target::hopper;

/// What a graph is compiled with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that compile; the graph does not depend on them.
    pub threads: usize,
    /// What kernels may use.
    pub machine: Cuda,
    /// The file compiled, as the user named it.
    pub source: String,
    /// The command that compiles it again.
    pub command: String,
}

/// Compiles functions of a verified module into entries of one graph, telling `observe` of every
/// stage.
pub fn compile(
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: Observe,
) -> Result<Graph, CompileError> {
    let (entries, kernels) =
        weft_lower::compile::entries(&options.machine, module, entries, observe)?;
    let start = Instant::now();
    let code = code(&kernels, options.threads)?;
    observe(Stage::emit_kernels(start.elapsed(), &code, None));
    weft_lower::compile::graph(entries, code, (&options.source, &options.command))
}

/// As [`compile`], but a graph compiled before from the same module and options is read from the
/// cache on disk, where there is one.
pub fn compile_cached(
    cache: Option<&Cache>,
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: Observe,
) -> Result<Cached, CompileError> {
    let machine = format!("{:?}", options.machine);
    let asked = [hopper().name, &machine, &options.source, &options.command];
    let key = cache::key(module, entries, &asked);
    cache::find_or(cache, &key, || compile(module, entries, options, observe))
}

fn code(kernels: &Kernels, threads: usize) -> Result<(Vec<Kernel>, Vec<Vec<u8>>), ObjectError> {
    let sources: Vec<KernelSource> = kernels.sources().cloned().collect();
    let mut made = vec![];
    let mut objects = vec![];
    for object in compile_all(&hopper(), &sources, threads, None)? {
        let id = ObjectId(objects.len() as u32);
        // Objects hold the kernels in order.
        for source in &sources[made.len()..made.len() + object.kernels.len()] {
            let ptx = PtxCode {
                object: id,
                threads: source.cta.threads,
                dynamic_shared_bytes: source.cta.dynamic_shared_bytes,
                cluster: source.cta.cluster,
                begins_early: source.cta.begins_early,
                hopper14: source.cta.hopper14,
                maps: source.cta.maps.iter().map(tensor_map).collect(),
            };
            made.push(Kernel {
                name: source.name.clone(),
                scratch_bytes: 0,
                variants: vec![],
                ptx: Some(ptx),
            });
        }
        objects.push(object.bytes);
    }
    Ok((made, objects))
}

fn tensor_map(map: &object::TensorMap) -> TensorMap {
    TensorMap {
        buffer: map.buffer,
        element: if map.is_bytes { MapElement::U8 } else { MapElement::Bf16 },
        dims: map.dims.clone(),
        strides_bytes: map.strides_bytes.clone(),
        box_dims: map.box_dims.clone(),
        swizzle_bytes: map.swizzle_bytes,
    }
}
