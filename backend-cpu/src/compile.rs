//! From a module after the passes to an executable graph.
//!
//! Entries are lowered one after the other into one table of kernels; the kernels are then compiled
//! for every variant in parallel. The bytes of the graph depend on the module and the options
//! alone, not on threads.

mod objects;

use std::time::Instant;

use weft_codegen::object::Made;
use weft_graph::{CpuVariant, Graph};
use weft_ir::module::Module;
use weft_lower::cache::{self, Cache, Cached};
use weft_lower::compile::{CompileError, Observe, Stage};

use crate::Cpu;

/// What a graph is compiled for.
#[derive(Clone, Debug)]
pub struct Options {
    /// CPU variants to emit code for; a machine uses the best it can run.
    pub variants: Vec<CpuVariant>,
    /// Threads that compile; the graph does not depend on them.
    pub threads: usize,
    /// The file compiled, as the user named it.
    pub source: String,
    /// The command that compiles it again.
    pub command: String,
}

impl Options {
    /// For this machine alone, or for the least machine where it has no variant.
    pub fn native(threads: usize) -> Options {
        let best = CpuVariant::best_here().unwrap_or(CpuVariant::Avx2);
        Options { variants: vec![best], threads, source: String::new(), command: String::new() }
    }
}

/// Compiles functions of a verified module into entries of one graph.
pub fn compile(
    module: &Module,
    entries: &[&str],
    options: &Options,
) -> Result<Graph, CompileError> {
    compile_observed(module, entries, options, &mut |_| {})
}

/// As [`compile`], telling `observe` of every stage.
pub fn compile_observed(
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: Observe,
) -> Result<Graph, CompileError> {
    with_made(None, module, entries, options, observe)
}

fn with_made(
    made: Option<&dyn Made>,
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: Observe,
) -> Result<Graph, CompileError> {
    let (entries, kernels) = weft_lower::compile::entries(&Cpu, module, entries, observe)?;
    let start = Instant::now();
    let code = objects::compile(&kernels, &options.variants, options.threads, made)?;
    let variants = ("CPU variants", options.variants.len() as u64);
    observe(Stage::emit_kernels(start.elapsed(), &code, Some(variants)));
    weft_lower::compile::graph(entries, code, (&options.source, &options.command))
}

/// As [`compile`], but a graph compiled before from the same module and options is read from the
/// cache on disk, and so are kernels that other graphs have.
pub fn compile_cached(
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: Observe,
) -> Result<Cached, CompileError> {
    compile_cached_in(Cache::of_user().as_ref(), module, entries, options, observe)
}

/// As [`compile_cached`], in a cache of the caller's choice.
pub fn compile_cached_in(
    cache: Option<&Cache>,
    module: &Module,
    entries: &[&str],
    options: &Options,
    observe: Observe,
) -> Result<Cached, CompileError> {
    let key = key(module, entries, options);
    let made = cache.map(|cache| cache as &dyn Made);
    cache::find_or(cache, &key, || with_made(made, module, entries, options, observe))
}

/// The name of a graph in the cache.
pub fn key(module: &Module, entries: &[&str], options: &Options) -> String {
    let mut asked = vec![&options.source[..], &options.command];
    asked.extend(options.variants.iter().map(|v| v.name()));
    cache::key(module, entries, &asked)
}
