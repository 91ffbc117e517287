//! x86-64 kernels, and the way from planned IR to an executable graph of them.

pub mod attention;
pub mod compile;
pub mod gemm;
pub mod lower;
pub mod region;
pub mod target;
