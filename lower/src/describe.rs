//! What lowering asks a backend for: plain descriptions in, kernels and launches out.

pub mod attention;
pub mod product;
