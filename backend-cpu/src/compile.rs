//! From a module after the passes to an executable graph.
//!
//! Entries are lowered one after the other into one table of kernels; the kernels are then compiled
//! for every variant in parallel. The bytes of the graph depend on the module and the options
//! alone, not on threads.

pub mod cache;
pub mod listing;
mod objects;

use weft_codegen::object::ObjectError;
use weft_graph::{CpuVariant, Graph, VerifyError};
use weft_ir::module::Module;
use weft_lower::{Kernels, LowerError};

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

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("the module has no function @{0}")]
    NoEntry(String),
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("the compiled graph is wrong: {0}")]
    Verify(#[from] VerifyError),
}

/// Compiles functions of a verified module into entries of one graph.
pub fn compile(
    module: &Module,
    entries: &[&str],
    options: &Options,
) -> Result<Graph, CompileError> {
    let mut kernels = Kernels::default();
    let mut lowered = vec![];
    for name in entries {
        let func = module.find(name).ok_or_else(|| CompileError::NoEntry(name.to_string()))?;
        lowered.push(weft_lower::lower(&Cpu, module, func, &mut kernels)?);
    }
    let (kernels, objects) = objects::compile(&kernels, &options.variants, options.threads)?;
    let graph = Graph {
        compiler: COMPILER.into(),
        source: options.source.clone(),
        command: options.command.clone(),
        entries: lowered,
        kernels,
        objects,
        constants: vec![],
    };
    graph.verify()?;
    Ok(graph)
}

const COMPILER: &str = concat!("weft ", env!("CARGO_PKG_VERSION"));
