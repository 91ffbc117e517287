//! The interpreter against values worked out by hand, composites against their decompositions, and
//! costs.

mod attention;
mod contract;
mod control;
mod cost;
mod decompose;
mod errors;
mod index;
mod moe;
mod movement;
mod one_op;
mod pointwise;
mod quantized;
mod reduce;
mod row;
mod sizes;
mod state;
