//! Regions on x86: how a function of pointwise, movement, row and index ops becomes launches.
//!
//! Envelope: a pointwise or row launch reads each operand and writes each result once from memory;
//! its roof is the memory's bandwidth. Blocks hold about 4,096 elements, so that a few threads
//! share even small arrays. Measured (`bench/region.rs`, one thread of a Zen 5 that others use too,
//! f32[2048, 256] in cache and f32[65536, 256] in memory): add 104 and 30 GB/s beside a copy's 91
//! to 120 and 38 to 45, residual + rms_norm 100 and 33, gain gradient 85 and 24, swiglu 45 and 33,
//! softmax 21 and 20: the last two are bound by the exponential, about 15 cycles a vector.

use weft_codegen::region::Unsupported;
use weft_graph::DimExpr;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, Module};
use weft_lower::region::{self, Region};

use crate::Cpu;

/// [`region::compile`] with the schedules and kernels of this crate.
pub fn compile(
    module: &Module,
    func: &Func,
    hint: &str,
    label: &str,
    size: &dyn Fn(Dim) -> DimExpr,
) -> Result<Region, Unsupported> {
    region::compile(&Cpu, module, func, hint, label, size)
}
