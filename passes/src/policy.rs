//! What a precision block makes of each product: rules resolved to plain data.

use indexmap::IndexMap;
use weft_ir::ty::DType;

/// Recipes by site.
pub type Policy = IndexMap<String, Recipe>;

/// A quantized format: codes, and a scale for each group of the two last dims.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Format {
    pub dtype: DType,
    /// Rows and columns of a group.
    pub group: [u32; 2],
    /// f32, or ue8m0 for powers of two.
    pub scale: DType,
    /// The least amax that a scale is made of; 0 where there is none.
    pub floor: f64,
}

/// One of the three products of a linear map.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Product {
    /// The activation or gradient, then the weight; of a weight gradient dy, then x. Both or none.
    pub operands: Option<[Format; 2]>,
    /// Sums as a Hopper tensor core makes them.
    pub hopper14: bool,
    /// Terms after which a partial sum is scaled and added in f32.
    pub promote: Option<u32>,
}

/// What is done at one site.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recipe {
    pub forward: Product,
    pub input_grad: Product,
    pub weight_grad: Product,
    /// What the backward finds of the product's input, and of its output; `None` is as it is.
    pub saved_input: Option<Format>,
    pub saved_output: Option<Format>,
    /// What rows that `dispatch` hands to the product are on their way.
    pub dispatched: Option<Format>,
    /// They travel in their own type and are encoded where they arrive, each copy by itself.
    pub dispatched_plain: bool,
}

impl Recipe {
    /// The product that an op's `role` says; the forward one without it.
    pub fn product(&self, role: Option<&str>) -> &Product {
        match role {
            Some("input_grad") => &self.input_grad,
            Some("weight_grad") => &self.weight_grad,
            _ => &self.forward,
        }
    }
}
