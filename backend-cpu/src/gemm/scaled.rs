//! Products of codes with group scales: `C[m, n] (+)= Σ_k A[m, k] · B[k, n]`, where an operand's
//! value is its code times the scale of its group.
//!
//! k is cut in *blocks*, at multiples of the promotion interval or the smallest group along k,
//! counted from the start of the array (a segment of [`Form::Inner`] cuts too). Products of codes
//! are exact, and are summed in a chain of fused multiply-adds in the order of k; then
//!
//! ```text
//! s = round(scale of A · scale of B)        sum = fma(partial, s, sum)        C = round(sum)
//! ```
//!
//! With `bf16_dot` codes are multiplied as pairs of bf16, the second of a pair added first. Each
//! element is thus a fixed sequence of roundings, on any tile and thread.
//!
//! [`Sum::Hopper14`] does what a Hopper tensor core does instead (`hopper.rs`). Without promotion
//! its accumulator runs over all of k, so that scales enter the products.
//!
//! Envelope: the micro-kernels of the plain product, whose partial sums are folded into sums in the
//! second-level cache once a block: about 4 vector operations for 128 steps. Decoding a code while
//! it is packed is about 10 operations a vector.

mod emit;
mod hopper;
mod plan;

use weft_codegen::emit::Elem;
use weft_graph::{DType, DimExpr};
use weft_ir::formats::Format;

use super::{Form, Matrix, Shape};

pub use plan::plan;

/// One scale for each group of elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// f32 or ue8m0.
    pub dtype: DType,
    /// Rows and columns of a group, of the matrix as the product sees it.
    pub group: [i64; 2],
    /// In scales, from one group to the next.
    pub row_stride: DimExpr,
    pub col_stride: DimExpr,
    /// From one matrix of a batch (or of the operand that a form does not segment) to the next.
    pub group_stride: DimExpr,
}

/// An operand: codes, or plain numbers without scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Of e4m3, e5m2, bf16 or f32.
    pub codes: Matrix,
    pub scales: Option<Scales>,
}

/// How the products of a block are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    F32,
    /// 32 products and the accumulator aligned to the largest, 14 bits kept, the rest cut off.
    Hopper14,
}

/// A product to be planned.
#[derive(Clone, Debug)]
pub struct ScaledGemm {
    pub m: DimExpr,
    pub n: DimExpr,
    pub k: DimExpr,
    pub a: Operand,
    pub b: Operand,
    pub c: Matrix,
    pub form: Form,
    /// Adds to C instead of overwriting it.
    pub accumulate: bool,
    /// Terms after which a partial sum is scaled and added in f32.
    pub promote: Option<i64>,
    pub sum: Sum,
}

/// What a kernel knows of an operand when it is compiled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Coded {
    pub format: Option<Format>,
    pub scales: Option<Grouped>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grouped {
    /// f32, or bytes of ue8m0.
    pub elem: Elem,
    /// Rows of A or columns of B in a group.
    pub free: i64,
    /// Terms of k in a group.
    pub k: i64,
}

/// What a kernel's code depends on.
#[derive(Clone)]
pub(crate) struct ScaledShape {
    pub shape: Shape,
    pub a: Coded,
    pub b: Coded,
    /// Where k is cut; `None` nowhere.
    pub unit: Option<i64>,
    pub sum: Sum,
    /// Products are scaled, one by one; a sum then runs over all of k.
    pub scaled_products: bool,
}

impl ScaledShape {
    /// Can both operands be pairs of bf16?
    pub fn is_narrow(&self) -> bool {
        let narrow = |elem: Elem| elem != Elem::F32;
        narrow(self.shape.a) && narrow(self.shape.b)
    }

    pub fn operands(&self) -> [&Coded; 2] {
        [&self.a, &self.b]
    }
}
