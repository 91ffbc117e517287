//! Regions of pointwise, movement, row and index ops: from an IR function to launches.
//!
//! [`compile`] takes any function whose ops [`supports`] accepts, a single op or a fused region,
//! and gives launches to run in order. Most are one launch. Values that all blocks must have before
//! the next may start (sums over rows, sorted ids) go through workspace and take one launch more.
//! Nothing depends on the number of threads.

mod plan;
pub mod schedule;

use std::sync::Arc;

use weft_codegen::object::KernelSource;
use weft_graph::{DimExpr, Scalar};
use weft_ir::dim::Dim;
use weft_ir::module::{Func, Module, OpId};

use weft_codegen::region::Unsupported;
use weft_codegen::region::graph::Buf;
use weft_codegen::region::trace::Nest;

use crate::Backend;
pub use plan::{fingerprint, scalars};

/// A compiled region: its launches in order, and the memory they hand values on in.
#[derive(Clone)]
pub struct Region {
    pub launches: Vec<RegionLaunch>,
    /// Bytes of each [`Buf::Workspace`]; needed from the first launch to the last.
    pub workspaces: Vec<DimExpr>,
    /// `(result, operand)` pairs that must be one storage: states, and what `cache_append` returns.
    pub aliases: Vec<(u32, u32)>,
}

/// One launch of a kernel.
#[derive(Clone)]
pub struct RegionLaunch {
    /// Independent of the variant of the machine; equal names mean equal code.
    pub kernel: KernelSource,
    /// What each buffer argument is.
    pub args: Vec<Buf>,
    pub scalars: Vec<Scalar>,
    pub grid: DimExpr,
    pub scratch_bytes: u64,
    pub flops: DimExpr,
    pub bytes: DimExpr,
    /// What it computes, where that is a nest of loops.
    pub nest: Option<Arc<Nest>>,
}

/// As [`compile_at`], of buffers that all begin at multiples of 16 bytes.
pub fn compile(
    backend: &dyn Backend,
    module: &Module,
    func: &Func,
    hint: &str,
    label: &str,
    size: &dyn Fn(Dim) -> DimExpr,
) -> Result<Region, Unsupported> {
    compile_at(backend, module, func, (hint, label), size, &|_| true)
}

/// Compiles `func`, whose operands are its parameters. Kernels are called `hint` and a number that
/// tells their code; `label` is their source. `size` turns a dim of the module into one of the
/// entry, and `aligned` says which buffers begin at multiples of 16 bytes.
pub fn compile_at(
    backend: &dyn Backend,
    module: &Module,
    func: &Func,
    (hint, label): (&str, &str),
    size: &dyn Fn(Dim) -> DimExpr,
    aligned: &dyn Fn(Buf) -> bool,
) -> Result<Region, Unsupported> {
    plan::plan(backend, module, func, (hint, label), size, aligned)
}

/// A function of one op, to be compiled by itself: its parameters are the op's operands, each once.
pub fn wrap(func: &Func, op: OpId) -> Func {
    let data = func.op(op);
    let mut alone = Func::new(data.op.name());
    let mut operands = vec![];
    let mut params: Vec<weft_ir::module::ValueId> = vec![];
    for v in &data.operands {
        let known = params.iter().position(|p| p == v);
        let at = known.unwrap_or_else(|| {
            alone.add_param(&format!("x{}", params.len()), func.ty(*v).clone());
            params.push(*v);
            params.len() - 1
        });
        operands.push(alone.params[at]);
    }
    let types = data.results.iter().map(|r| func.ty(*r).clone()).collect();
    let spans = data.spans.clone();
    let id = alone.push_op(data.op, operands.clone(), data.attrs.clone(), types, spans);
    alone.results = alone.op(id).results.clone();
    let states = operands.iter().enumerate().filter(|(_, v)| alone.ty(**v).state);
    let states: Vec<u32> = states.map(|(i, _)| i as u32).collect();
    let results = alone.results.iter().enumerate().filter(|(_, r)| alone.ty(**r).state);
    let results: Vec<u32> = results.map(|(i, _)| i as u32).collect();
    alone.donated = states.into_iter().zip(results).collect();
    alone
}
