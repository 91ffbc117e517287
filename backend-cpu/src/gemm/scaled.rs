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
//! A few rows take a kernel that packs nothing (`gemv.rs`), with the same chains.
//!
//! Envelope: the micro-kernels of the plain product, whose partial sums are folded into sums in the
//! second-level cache once a block: about 4 vector operations for 128 steps. Decoding a code while
//! it is packed is about 10 operations a vector.

mod emit;
mod gemv;
mod hopper;
mod plan;

use weft_codegen::emit::Elem;
use weft_ir::formats::Format;

use super::Shape;

pub use plan::plan;
pub use weft_lower::describe::product::{Operand, ScaledGemm, Scales, Sum};

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
