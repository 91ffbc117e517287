//! What a backend decides.

use weft_codegen::region::graph::NodeId;
use weft_codegen::region::trace::Nest;
use weft_codegen::region::whole::WholeKernel;
use weft_graph::DimDecl;
use weft_ir::dim::Dim;

use crate::describe::{attention, product};
use crate::region::schedule::Scheduled;
use crate::streams::Streams;

/// Kernels for a kind of machine. A description that it has no kernel for is refused with a reason,
/// which is shown with the op and its place.
pub trait Backend {
    /// What the machine does at once; nothing where steps run one after the other whatever they do.
    fn streams(&self) -> Option<Streams> {
        None
    }

    /// The same machine while so many multiprocessors carry what ranks send each other; nothing
    /// where that changes nothing.
    fn beside(&self, _sms: u32) -> Option<Box<dyn Backend>> {
        None
    }

    /// How the loops of a region are cut into blocks, or the node of a fold that has to be stored
    /// by a launch before. `max` is the greatest a dim may be.
    fn schedule(&self, nest: &Nest, max: &dyn Fn(Dim) -> u64) -> Result<Scheduled, NodeId>;

    /// Elements of a row up to which several workers have it together, so that its folds need no
    /// launch of their own.
    fn shared_row_max(&self) -> u64;

    /// The blocks of an op with a kernel of its own.
    fn whole_grid(&self, kernel: &WholeKernel) -> WholeGrid;

    /// `dims` are those that sizes speak of, and `label` names the source.
    fn product(
        &self,
        gemm: &product::Gemm,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<product::Planned, String>;

    fn scaled_product(
        &self,
        gemm: &product::ScaledGemm,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<product::Planned, String>;

    /// Copies of the operands' codes, for an operand that its product cannot read fast as it lies;
    /// the product is then asked for with the copies. One copy serves all products of a value.
    fn turned(
        &self,
        gemm: &product::ScaledGemm,
        dims: &[DimDecl],
        label: &str,
    ) -> [Option<product::Turned>; 2];

    /// One kernel for products and the region that goes on with their rows, if there is one and it
    /// pays. Its buffers are A, the products' B, C of each that is kept, the scales of A and of
    /// each B, the offsets of a grouped product, the region's.
    fn ended_product(
        &self,
        ended: &product::Ended,
        dims: &[DimDecl],
        label: &str,
    ) -> Option<product::Planned>;

    /// Can the kernel that attends encode its rows, as `attention.codes` says? Else it is asked
    /// for without them, and a region encodes what it made.
    fn attends_into_codes(&self, attention: &attention::Attention, dims: &[DimDecl]) -> bool;

    fn attention(
        &self,
        attention: &attention::Attention,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<attention::Planned, String>;

    fn attention_gradient(
        &self,
        attention: &attention::Attention,
        gradients: &attention::Gradients,
        dims: &[DimDecl],
        label: &str,
    ) -> Result<attention::Planned, String>;
}

/// Units of work, and who does them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WholeGrid {
    pub units: Dim,
    /// Units of a block.
    pub per_block: i64,
    /// Threads of a block; 1 on a CPU.
    pub threads: u32,
}
