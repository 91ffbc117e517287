//! x86-64 kernels, and the way from planned IR to an executable graph of them.

pub mod attention;
pub mod compile;
pub mod gemm;
pub mod region;
mod schedule;
pub mod target;

use weft_codegen::region::graph::NodeId;
use weft_codegen::region::trace::Nest;
use weft_codegen::region::whole::WholeKernel;
use weft_graph::DimDecl;
use weft_ir::dim::Dim;
use weft_lower::describe::attention::{Attention, Gradients};
use weft_lower::describe::product::{Gemm, ScaledGemm};
use weft_lower::describe::{attention as attend, product};
use weft_lower::region::schedule::Scheduled;
use weft_lower::{Backend, WholeGrid};

/// The kernels of this crate, for lowering.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Backend for Cpu {
    fn schedule(&self, nest: &Nest, max: &dyn Fn(Dim) -> u64) -> Result<Scheduled, NodeId> {
        schedule::schedule(nest, max)
    }

    fn shared_row_max(&self) -> u64 {
        0
    }

    fn whole_grid(&self, kernel: &WholeKernel) -> WholeGrid {
        let (units, per_block) = kernel.grid();
        WholeGrid { units, per_block, threads: 1 }
    }

    fn product(
        &self,
        gemm: &Gemm,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<product::Planned, String> {
        Ok(gemm::plan(gemm, dims, label))
    }

    fn scaled_product(
        &self,
        gemm: &ScaledGemm,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<product::Planned, String> {
        gemm::scaled::plan(gemm, dims, label)
    }

    /// Operands are packed as they are read, from any strides.
    fn turned(&self, _: &ScaledGemm, _: &[DimDecl], _: &str) -> [Option<product::Turned>; 2] {
        [None, None]
    }

    /// What a product has stored is near still when its region reads it.
    fn ended_product(
        &self,
        _: &product::Ended,
        _: &[DimDecl],
        _: &str,
    ) -> Option<product::Planned> {
        None
    }

    fn attends_into_codes(&self, attention: &Attention, dims: &[DimDecl]) -> bool {
        attention::takes_codes(attention, dims)
    }

    fn attention(
        &self,
        attention: &Attention,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<attend::Planned, String> {
        Ok(attention::forward(attention, dims, label))
    }

    fn attention_gradient(
        &self,
        attention: &Attention,
        gradients: &Gradients,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<attend::Planned, String> {
        Ok(attention::backward(attention, gradients, dims, label))
    }
}
