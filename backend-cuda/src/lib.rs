//! PTX kernels for Hopper.
//!
//! Kernels are emitted through the builder that the CPU's are emitted through (`weft_codegen`), as
//! text of PTX ISA 8.3 for sm_90a, which the driver assembles when a graph is loaded.

pub mod compile;
pub mod flash;
pub mod gemm;
pub mod ptx;
mod schedule;
mod simt;
pub mod target;
pub mod tiles;
mod turn;

use gemm::select::Budget;
use weft_codegen::region::graph::NodeId;
use weft_codegen::region::trace::Nest;
use weft_codegen::region::whole::WholeKernel;
use weft_graph::DimDecl;
use weft_ir::dim::Dim;
use weft_lower::describe::attention::{Attention, Gradients};
use weft_lower::describe::product::{Gemm, ScaledGemm};
use weft_lower::describe::{attention, product};
use weft_lower::region::schedule::Scheduled;
use weft_lower::streams::Streams;
use weft_lower::{Backend, WholeGrid};

/// The kernels of this crate, for lowering: those that stay on their multiprocessors until all
/// tiles are done take as many as the budget has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuda {
    pub budget: Budget,
    /// Streams that kernels too narrow for the machine are spread over.
    pub streams: u32,
}

impl Cuda {
    /// All of an H100 or H800, one launch after the other.
    pub const WHOLE: Cuda = Cuda { budget: Budget::WHOLE, streams: 1 };
}

impl Backend for Cuda {
    fn streams(&self) -> Option<Streams> {
        Some(Streams { n: self.streams, narrow_max: i64::from(self.budget.sms / 2) })
    }

    fn beside(&self, sms: u32) -> Option<Box<dyn Backend>> {
        let sms = self.budget.sms.saturating_sub(sms).max(1);
        Some(Box::new(Cuda { budget: Budget { sms }, ..*self }))
    }

    fn schedule(&self, nest: &Nest, max: &dyn Fn(Dim) -> u64) -> Result<Scheduled, NodeId> {
        schedule::schedule(nest, max)
    }

    fn shared_row_max(&self) -> u64 {
        schedule::SHARED_ROW_MAX
    }

    fn whole_grid(&self, kernel: &WholeKernel) -> WholeGrid {
        let (units, per_block, threads) = kernel.cta_grid();
        WholeGrid { units, per_block, threads }
    }

    fn product(
        &self,
        gemm: &Gemm,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<product::Planned, String> {
        match gemm::plan::plan(gemm, self.budget, dims, label) {
            Some(planned) => Ok(planned),
            None => simt::product::plan(gemm, dims, label),
        }
    }

    fn scaled_product(
        &self,
        gemm: &ScaledGemm,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<product::Planned, String> {
        match gemm::plan::plan_scaled(gemm, self.budget, dims, label) {
            Some(planned) => Ok(planned),
            None => simt::product::plan_scaled(gemm, dims, label),
        }
    }

    fn turned(
        &self,
        gemm: &ScaledGemm,
        dims: &[DimDecl],
        label: &str,
    ) -> [Option<product::Turned>; 2] {
        turn::turned(gemm, self.budget, dims, label)
    }

    fn ended_product(
        &self,
        ended: &product::Ended,
        dims: &[DimDecl],
        label: &str,
    ) -> Option<product::Planned> {
        gemm::ended::plan(ended, self.budget, dims, label)
    }

    /// A CTA has the rows of one head in fragments: rows are encoded by a region, from memory.
    fn attends_into_codes(&self, _: &Attention, _: &[DimDecl]) -> bool {
        false
    }

    fn attention(
        &self,
        attention: &Attention,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<attention::Planned, String> {
        let planned = flash::plan::plan(attention, self.budget, dims, label)
            .or_else(|| flash::decode::plan::plan(attention, self.budget, dims, label));
        Ok(planned.unwrap_or_else(|| simt::attention::forward(attention, label)))
    }

    fn attention_gradient(
        &self,
        attention: &Attention,
        gradients: &Gradients,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<attention::Planned, String> {
        let planned = flash::backward::plan::plan(attention, gradients, self.budget, dims, label);
        Ok(planned.unwrap_or_else(|| simt::attention::backward(attention, gradients, label)))
    }
}
