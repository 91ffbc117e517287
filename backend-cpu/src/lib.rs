//! x86-64 kernels.

pub mod gemm;
pub mod target;
