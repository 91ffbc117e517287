//! What compiling has in common for all machines: entries lowered one after the other into one
//! table of kernels.

use std::fmt;
use std::time::{Duration, Instant};

use weft_codegen::object::ObjectError;
use weft_graph::{Entry, Graph, Kernel, Step, VerifyError};
use weft_ir::module::Module;

use crate::{Backend, Kernels, LowerError, select_kernels};

pub const COMPILER: &str = concat!("weft ", env!("CARGO_PKG_VERSION"));

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

/// Told of every stage.
pub type Observe<'a> = &'a mut dyn FnMut(Stage);

impl Stage {
    /// What came of a table of kernels; `more` is what a backend has to add.
    pub fn emit_kernels(
        time: Duration,
        (kernels, objects): &(Vec<Kernel>, Vec<Vec<u8>>),
        more: Option<(&'static str, u64)>,
    ) -> Stage {
        let mut counts = vec![("kernels", kernels.len() as u64)];
        counts.extend(more);
        counts.push(("bytes of code", objects.iter().map(|o| o.len() as u64).sum()));
        Stage { name: "emit_kernels", entry: None, time, counts }
    }
}

/// Functions of a verified module as entries, and the kernels that they launch.
pub fn entries(
    backend: &dyn Backend,
    module: &Module,
    names: &[&str],
    observe: Observe,
) -> Result<(Vec<Entry>, Kernels), CompileError> {
    let mut kernels = Kernels::default();
    let mut lowered = vec![];
    for name in names {
        let func = module.find(name).ok_or_else(|| CompileError::NoEntry(name.to_string()))?;
        let mut stage = |stage, start: Instant, counts| {
            let entry = Some(name.to_string());
            observe(Stage { name: stage, entry, time: start.elapsed(), counts });
        };
        let start = Instant::now();
        let before = kernels.len() as u64;
        let unplaced = select_kernels(backend, module, func, &mut kernels)?;
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
    Ok((lowered, kernels))
}

/// Launches and loops, each loop's body counted once.
fn count(steps: &[Step]) -> [u64; 2] {
    steps.iter().fold([0, 0], |[launches, loops], step| match step {
        Step::Loop(l) => {
            let [inner_launches, inner_loops] = count(&l.body);
            [launches + inner_launches, loops + 1 + inner_loops]
        }
        Step::Launch(_) => [launches + 1, loops],
        Step::Copy(_) | Step::Collective(_) | Step::Message(_) => [launches, loops],
    })
}

/// The graph of these parts, verified. `source` is the file compiled, as the user named it, and
/// `command` compiles it again.
pub fn graph(
    entries: Vec<Entry>,
    (kernels, objects): (Vec<Kernel>, Vec<Vec<u8>>),
    (source, command): (&str, &str),
) -> Result<Graph, CompileError> {
    let graph = Graph {
        compiler: COMPILER.into(),
        source: source.into(),
        command: command.into(),
        entries,
        kernels,
        objects,
        constants: vec![],
    };
    graph.verify()?;
    Ok(graph)
}
