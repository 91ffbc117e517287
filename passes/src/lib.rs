//! Module to module, one file per pass; `PIPELINE` says which run in which order and why.
//!
//! A pass does no IO. `run_pipeline` tells an observer about every step: its name, time, op counts
//! and whether it changed anything. In debug builds the module is verified and its text form parsed
//! back after every step.

pub mod absorb;
pub mod assign_stages;
pub mod autodiff;
pub mod batch_sums;
pub mod canonicalize;
pub mod copy_experts;
pub mod cse;
pub mod dce;
pub mod divide;
pub mod experts;
pub mod fold;
pub mod fuse;
pub mod hoist;
pub mod inline;
pub mod keep_results;
pub mod overlap;
pub mod page_caches;
pub mod policy;
pub mod quantize;
pub mod rewrite;
pub mod rounds;
pub mod save_codes;
pub mod scatter_sums;
pub mod schedule_pipeline;
pub mod sequence;
pub mod shard;
pub mod split_quantized;
pub mod tensor;
pub mod train_step;
pub mod two_batches;
pub mod watch;
pub mod weigh_early;
pub mod zero;

use std::time::{Duration, Instant};

use policy::Policy;
use weft_ir::module::{Func, Module, OpData, Span};
use weft_ir::op::Op;
use weft_ir::rules::TypeError;
use weft_ir::ty::DType;
use weft_schedule::Table;

/// What holds of a module after a pass, until the pipeline's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fact {
    /// One spelling per expression.
    Canonical,
    /// What `@loss` sums over the global batch is a parameter of it, or its own batch is the whole.
    CountsKnown,
    /// `@grad` exists if anyone asked for gradients or training.
    Differentiated,
}

/// A named step.
pub struct Pass {
    pub name: &'static str,
    pub requires: &'static [Fact],
    pub establishes: &'static [Fact],
    pub run: fn(&mut Module, &PassCx) -> Result<Stats, PassError>,
}

/// What the passes are asked for.
#[derive(Clone, Debug, Default)]
pub struct PassCx {
    /// Make `@grad`: the results of `@loss` and `grad.<weight>` for every weight.
    pub gradients: bool,
    /// Make `@train_step`.
    pub train: Option<Train>,
    /// Sites of the products whose operands the training step measures.
    pub watch: Vec<String>,
    /// The ranks that share the step.
    pub mesh: Option<Mesh>,
    /// What the backward pass finds saved.
    pub save: Save,
    /// The formats that products are computed in, by site.
    pub policy: Policy,
    /// Run the two halves of a repeat's backward in two repeats, so that they can be scheduled
    /// apart; costs memory for what passes between them. Otherwise each run of a body does both.
    pub apart: bool,
    /// The pipeline that the ranks along `pipeline` form.
    pub pipeline: Option<Pipeline>,
    /// Experts that have several copies each.
    pub copies: Option<Copies>,
    /// Entries that serve take two halves of a batch, each with caches of its own.
    pub two_batches: bool,
    /// The second half of a batch is half a layer behind the first, as in decoding.
    pub staggered: bool,
    /// Caches lie in pages.
    pub pages: Option<Pages>,
}

/// The pools that caches become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pages {
    /// Positions of a page.
    pub size: u64,
    /// Pages of a pool.
    pub count: u64,
    /// From so many queries on attention gets its keys in order, not by pages: where a machine's
    /// kernels for many queries take no pages.
    pub in_order_from: Option<u64>,
}

impl PassCx {
    /// Are rows that were sent to experts kept there for the derivative, and not sent again?
    fn keeps_rows(&self) -> bool {
        let at_experts = |m: &Mesh| m.expert_gradients == ExpertGradients::AtExperts;
        self.mesh.as_ref().is_some_and(|m| m.experts > 1 && at_experts(m))
    }
}

/// Copies of experts, beyond one of each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Copies {
    pub redundant: u64,
    /// For each layer with experts, the expert at each place, by rank; none: the experts in order,
    /// and behind them the first ones again.
    pub lines: Vec<Vec<u64>>,
}

/// A pipeline, as one of its ranks sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pipeline {
    /// What each rank does; proved by `weft_schedule::check`.
    pub table: Table,
    /// The place along `pipeline` of the rank that is compiled for.
    pub place: usize,
    /// How many layers each stage has, where that is not left to `assign_stages`.
    pub layers: Option<Vec<usize>>,
}

/// What `f.fwd` returns for the backward functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Save {
    /// Everything they read, but what moving elements gives back.
    Everything,
    /// Not what pointwise ops and norms give back from what is saved anyway.
    #[default]
    NoCheap,
    /// Nor what up-projections give back: products at least four times as wide as what they read
    /// (DeepSeek-V3 report, section 3.2.3).
    NoWide,
    /// Of a body that runs again and again only what each run was handed: the run is done again,
    /// whole, before its derivatives. Elsewhere as `NoCheap`.
    Handed,
}

/// How many ranks lie along each axis. A rank's number counts its places with `pipeline` slowest,
/// then `data`, then `tensor`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mesh {
    /// With stages of their own.
    pub pipeline: u64,
    /// With micro-batches of their own.
    pub data: u64,
    /// That share each product.
    pub tensor: u64,
    /// Those along `tensor` divide the tokens of what none has a part of.
    pub sequence: bool,
    /// Neighbours along `data` that have the experts of a layer between them; divides `data`.
    pub experts: u64,
    /// Where gradients of these experts' weights are contracted.
    pub expert_gradients: ExpertGradients,
    /// Ranks along `data` each keep a part of the weights and of the optimizer's states.
    pub zero: bool,
    /// Room for rows that come to a rank's experts at once, as a multiple of those that it sends;
    /// for all where nothing is said.
    pub exchange_capacity: Option<f64>,
    /// Each rank adds its micro-batches one after the other, not in halves: what `Train::sums` is
    /// made of.
    pub sums_in_order: bool,
    /// Multiprocessors that carry what ranks send each other; 0 where nothing is said.
    pub communication_sms: u64,
}

/// Where the rows are from which gradients of experts' weights are contracted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ExpertGradients {
    /// Where they come from, as one rank has them: its bits, and on each rank the gradients of all
    /// experts until the end of a step.
    #[default]
    AtSource,
    /// With the experts: a rank has the gradients of its own. Rows of a micro-batch come from all
    /// sources at once, which is another order of sums than that of one rank.
    AtExperts,
}

impl Default for Mesh {
    fn default() -> Mesh {
        Mesh::ONE
    }
}

impl Mesh {
    /// The mesh of one rank.
    pub const ONE: Mesh = Mesh {
        pipeline: 1,
        data: 1,
        tensor: 1,
        sequence: false,
        experts: 1,
        expert_gradients: ExpertGradients::AtSource,
        zero: false,
        exchange_capacity: None,
        sums_in_order: false,
        communication_sms: 0,
    };

    pub fn n_ranks(&self) -> u64 {
        self.pipeline * self.data * self.tensor
    }
}

/// The optimizer and the batch.
#[derive(Clone, PartialEq, Debug)]
pub struct Train {
    /// Micro-batches of an optimizer step.
    pub micro_batches: u64,
    /// How their gradients are added.
    pub sums: Sums,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Weight decay; only of weights that are at least matrices.
    pub decay: f64,
    /// The largest norm of all gradients together.
    pub clip: Option<f64>,
    /// What the optimizer's moments are stored as.
    pub moments: DType,
}

/// The order in which micro-batches are added.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sums {
    /// Halves, halves of halves and so on: ranks that hold parts of the batch add the same pairs,
    /// whatever their number. A sum for each level is in memory.
    #[default]
    Tree,
    /// One after the other in each of `2^halvings` parts, whose sums are added in halves. Where the
    /// number of micro-batches changes from step to step there is one part.
    InOrder { halvings: u32 },
}

/// What a pass did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Named counts for the one-line report.
    pub counts: Vec<(&'static str, usize)>,
}

impl Stats {
    pub fn one(name: &'static str, n: usize) -> Stats {
        Stats { counts: vec![(name, n)] }
    }

    /// Whether anything changed.
    pub fn changed(&self) -> bool {
        self.counts.iter().any(|(_, n)| *n > 0)
    }
}

/// A step that has run.
#[derive(Clone, Debug)]
pub struct Step {
    /// Place in the pipeline, from 1.
    pub idx: usize,
    pub name: &'static str,
    pub time: Duration,
    pub n_ops_before: usize,
    pub n_ops_after: usize,
    pub stats: Stats,
}

/// `fuse: 112 -> 37 ops, 12 fused, 0.8 ms`
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {} ops", self.name, self.n_ops_before, self.n_ops_after)?;
        for (name, n) in self.stats.counts.iter().filter(|(_, n)| *n > 0) {
            write!(f, ", {n} {name}")?;
        }
        write!(f, ", {:.1} ms", self.time.as_secs_f64() * 1e3)
    }
}

/// Why a pass refuses a module.
#[derive(Clone, PartialEq, Debug)]
pub struct PassError {
    pub pass: &'static str,
    pub func: Option<String>,
    pub op: Option<Op>,
    pub span: Option<Span>,
    /// `file:line:column` of `span`.
    pub place: Option<String>,
    pub why: String,
}

impl PassError {
    pub fn new(why: impl Into<String>) -> PassError {
        let why = why.into();
        PassError { pass: "", func: None, op: None, span: None, place: None, why }
    }

    /// The error at `op` of `func`, unless it already has a place.
    pub fn at(mut self, func: &Func, op: &OpData) -> PassError {
        if self.func.is_none() {
            self.func = Some(func.name.clone());
            self.op = Some(op.op);
            self.span = op.spans.first().copied();
        }
        self
    }

    /// The error in `func`, unless it already has a place.
    pub fn within(mut self, func: &Func) -> PassError {
        self.func.get_or_insert_with(|| func.name.clone());
        self
    }
}

impl From<TypeError> for PassError {
    fn from(e: TypeError) -> PassError {
        PassError::new(e.0)
    }
}

impl std::error::Error for PassError {}

impl std::fmt::Display for PassError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.pass, self.why)?;
        match (&self.func, self.op) {
            (Some(func), Some(op)) => write!(f, " (`{}` in @{func})", op.name()),
            (Some(func), None) => write!(f, " (in @{func})"),
            (None, _) => Ok(()),
        }
    }
}

/// The order of the passes.
pub const PIPELINE: &[Pass] = &[
    canonicalize::PASS,      // so that constants meet constants
    fold::PASS,              // before `autodiff`: what is constant has no derivative
    cse::PASS,               // before `autodiff`: a value computed twice would be saved twice
    dce::PASS,               // leaves what the entries need
    weigh_early::PASS,       // before `autodiff`: what gates weigh is what their derivative keeps
    batch_sums::PASS,        // before `autodiff`: the counts of a batch are parameters of its loss
    tensor::PASS,            // before `autodiff`: the derivatives of parts are parts of derivatives
    sequence::PASS,          // after `tensor`: what it leaves alike is divided by tokens
    assign_stages::PASS,     // after `tensor`: weights are divided as without stages
    autodiff::PASS, // on whole ops: their derivatives are simpler than those of their parts
    train_step::PASS, // around `@grad`: accumulate, clip, update
    copy_experts::PASS, // before `shard`: ranks divide places as they would experts
    shard::PASS,    // before `inline`: the sums over micro-batches are loops that it cuts
    schedule_pipeline::PASS, // after `shard`: what it left of the loops is this rank's
    zero::PASS,     // after `shard`: it scatters the sums over ranks
    absorb::PASS,   // before `fuse`: the products it makes are there to be fused
    page_caches::PASS, // after `absorb`: what is left of caches is read in order or by attention
    save_codes::PASS, // before `inline`: what is saved is what functions return
    quantize::PASS, // on the differentiated graph: all three products of a map are there
    watch::PASS,    // before `hoist` and `inline`: operands stand beside their products
    dce::PASS,      // the rounding of weights whose masters are quantized now
    hoist::PASS,    // before `inline`: what is done to weights is done once a step
    two_batches::PASS, // after `hoist`: both halves of a batch read what weights become
    inline::PASS,   // both halves of a run in one body: what they share is computed once
    canonicalize::PASS, // what the derivatives left: transposes into matmuls, reshapes of reshapes
    fold::PASS,     // zeros and ones of cotangents
    canonicalize::PASS, // sums with the zeros that are constants now
    cse::PASS,      // what both halves of a backward compute again
    dce::PASS,      // saved values that no one reads, functions that no one calls
    scatter_sums::PASS, // after `cse`: a sum that is read in parts alone has one reader
    experts::PASS,  // before `split_quantized`: a row's codes and scales are sent as one value
    rounds::PASS,   // after `experts`, whose exchanges it bounds
    split_quantized::PASS, // after all that looks at products; what makes codes can be fused
    cse::PASS,      // what several quantizations of one value share
    dce::PASS,      // what only a quantized value was read for
    fuse::PASS,     // after all that matches whole ops
    overlap::PASS,  // last: its order is the order of what runs
];

/// Every pass by its name.
pub fn by_name(name: &str) -> Option<&'static Pass> {
    PIPELINE.iter().find(|p| p.name == name)
}

/// Whether each pass finds what it requires; `Err` names the first that does not.
pub fn check_order(passes: &[Pass]) -> Result<(), PassError> {
    let mut known: Vec<Fact> = vec![];
    for pass in passes {
        if let Some(fact) = pass.requires.iter().find(|f| !known.contains(f)) {
            let why = format!("needs {fact:?}, which no pass before it establishes");
            return Err(PassError { pass: pass.name, ..PassError::new(why) });
        }
        known.extend(pass.establishes);
    }
    Ok(())
}

/// All of `PIPELINE`, in order.
pub fn run_pipeline(
    module: &mut Module,
    cx: &PassCx,
    observer: &mut dyn FnMut(&Step, &Module),
) -> Result<(), PassError> {
    check_order(PIPELINE)?;
    for (i, pass) in PIPELINE.iter().enumerate() {
        let step = run_pass(i + 1, pass, module, cx)?;
        observer(&step, module);
    }
    Ok(())
}

/// One pass, timed and checked.
pub fn run_pass(
    idx: usize,
    pass: &Pass,
    module: &mut Module,
    cx: &PassCx,
) -> Result<Step, PassError> {
    let n_ops_before = rewrite::n_ops(module);
    let start = Instant::now();
    let stats = (pass.run)(module, cx).map_err(|e| placed(e, pass, module))?;
    let time = start.elapsed();
    if cfg!(debug_assertions) {
        check(pass, module)?;
    }
    let n_ops_after = rewrite::n_ops(module);
    Ok(Step { idx, name: pass.name, time, n_ops_before, n_ops_after, stats })
}

/// What every pass leaves behind: a module that verifies and whose text form reads back.
fn check(pass: &Pass, module: &Module) -> Result<(), PassError> {
    let broken = |why: String| Err(PassError { pass: pass.name, ..PassError::new(why) });
    if let Err(errors) = weft_ir::verify::verify(module) {
        return broken(format!("left a module that does not verify: {}", errors[0]));
    }
    let text = weft_ir::text::print(module);
    match weft_ir::text::parse(&text) {
        Ok(back) if weft_ir::text::print(&back) == text => Ok(()),
        Ok(_) => broken("left a module whose text form reads back as another".into()),
        Err(errors) => {
            broken(format!("left a module whose text form does not parse: {}", errors[0]))
        }
    }
}

fn placed(mut e: PassError, pass: &Pass, module: &Module) -> PassError {
    e.pass = pass.name;
    if let Some(Span { file, line, col }) = e.span {
        let name = module.files.get(file as usize).map_or("?", String::as_str);
        e.place = Some(format!("{name}:{line}:{col}"));
    }
    e
}
