//! PTX kernels for Hopper.
//!
//! Kernels are emitted through the builder that the CPU's are emitted through (`weft_codegen`), as
//! text of PTX ISA 8.3 for sm_90a, which the driver assembles when a graph is loaded.

pub mod flash;
pub mod gemm;
pub mod ptx;
mod schedule;
pub mod target;
pub mod tiles;

use weft_codegen::region::graph::NodeId;
use weft_codegen::region::trace::Nest;
use weft_codegen::region::whole::WholeKernel;
use weft_graph::DimDecl;
use weft_ir::dim::Dim;
use weft_lower::describe::attention::{Attention, Gradients};
use weft_lower::describe::product::{Gemm, ScaledGemm};
use weft_lower::describe::{attention, product};
use weft_lower::region::schedule::Scheduled;
use weft_lower::{Backend, WholeGrid};

/// The kernels of this crate, for lowering.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

impl Backend for Cuda {
    fn schedule(&self, nest: &Nest, max: &dyn Fn(Dim) -> u64) -> Result<Scheduled, NodeId> {
        schedule::schedule(nest, max)
    }

    fn whole_grid(&self, kernel: &WholeKernel) -> WholeGrid {
        let (units, per_block, threads) = kernel.cta_grid();
        WholeGrid { units, per_block, threads }
    }

    fn product(&self, _: &Gemm, _: &[DimDecl], _: &str) -> Result<product::Planned, String> {
        Err("not available on cuda yet: matmul".into())
    }

    fn scaled_product(
        &self,
        _: &ScaledGemm,
        _: &[DimDecl],
        _: &str,
    ) -> Result<product::Planned, String> {
        Err("not available on cuda yet: matmul of codes with scales".into())
    }

    fn attention(
        &self,
        _: &Attention,
        _: &[DimDecl],
        _: &str,
    ) -> Result<attention::Planned, String> {
        Err("not available on cuda yet: attention".into())
    }

    fn attention_gradient(
        &self,
        _: &Attention,
        _: &Gradients,
        _: &[DimDecl],
        _: &str,
    ) -> Result<attention::Planned, String> {
        Err("not available on cuda yet: attention_grad".into())
    }
}
