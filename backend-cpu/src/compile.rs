//! From a module after the passes to an executable graph.
//!
//! Entries are lowered one after the other into one table of kernels; the kernels are then compiled
//! for every variant in parallel. The bytes of the graph depend on the module and the options
//! alone, not on threads.

pub mod cache;
pub mod listing;
mod objects;

use std::fmt;
use std::time::{Duration, Instant};

use weft_codegen::object::ObjectError;
use weft_graph::{CpuVariant, Entry, Graph, Step, VerifyError};
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

/// A stage of a compile that has run: the passes' continuation below the IR.
#[derive(Clone, Debug)]
pub struct Stage {
    /// `select_kernels` and `plan_memory`, for each entry; `emit_kernels`.
    pub name: &'static str,
    /// Of the stages of one entry.
    pub entry: Option<String>,
    pub time: Duration,
    pub counts: Vec<(&'static str, u64)>,
}

/// `select_kernels: @train_step, 310 launches, 12 loops, 177 kernels, 8.3 ms`
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        let entry = self.entry.iter().map(|e| format!("@{e}"));
        let all = entry.chain(self.counts.iter().map(|(name, n)| format!("{n} {name}")));
        write!(f, " {}", all.collect::<Vec<_>>().join(", "))?;
        write!(f, ", {:.1} ms", self.time.as_secs_f64() * 1e3)
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
    observe: &mut dyn FnMut(Stage),
) -> Result<Graph, CompileError> {
    let mut kernels = Kernels::default();
    let mut lowered = vec![];
    for name in entries {
        let func = module.find(name).ok_or_else(|| CompileError::NoEntry(name.to_string()))?;
        let mut stage = |stage, start: Instant, counts| {
            let entry = Some(name.to_string());
            observe(Stage { name: stage, entry, time: start.elapsed(), counts });
        };
        let start = Instant::now();
        let before = kernels.len() as u64;
        let unplaced = weft_lower::select_kernels(&Cpu, module, func, &mut kernels)?;
        let [launches, loops] = count(&unplaced.entry().steps);
        let new = kernels.len() as u64 - before;
        let counts = vec![("launches", launches), ("loops", loops), ("kernels", new)];
        stage("select_kernels", start, counts);
        let start = Instant::now();
        let (temps, apart) = (unplaced.n_temps() as u64, unplaced.temps_bytes());
        let entry: Entry = unplaced.plan_memory();
        let arena = ("bytes of arena", entry.arena_bytes);
        stage("plan_memory", start, vec![("temps", temps), ("bytes of them", apart), arena]);
        lowered.push(entry);
    }
    let start = Instant::now();
    let n_kernels = kernels.len() as u64;
    let (kernels, objects) = objects::compile(&kernels, &options.variants, options.threads)?;
    let counts = vec![
        ("kernels", n_kernels),
        ("CPU variants", options.variants.len() as u64),
        ("bytes of code", objects.iter().map(|o| o.len() as u64).sum()),
    ];
    observe(Stage { name: "emit_kernels", entry: None, time: start.elapsed(), counts });
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

/// Launches and loops, each loop's body counted once.
fn count(steps: &[Step]) -> [u64; 2] {
    steps.iter().fold([0, 0], |[launches, loops], step| match step {
        Step::Loop(l) => {
            let [inner_launches, inner_loops] = count(&l.body);
            [launches + inner_launches, loops + 1 + inner_loops]
        }
        Step::Launch(_) => [launches + 1, loops],
        Step::Copy(_) | Step::Collective(_) => [launches, loops],
    })
}

const COMPILER: &str = concat!("weft ", env!("CARGO_PKG_VERSION"));
