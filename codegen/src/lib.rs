//! What both backends share: LLVM emission, mathematics on vectors, object files.
//!
//! `emit` is the builder every kernel is written with, `math` the functions LLVM has no vector code
//! for, `narrow` the 8- and 12-bit floats, `row_codes` how rows become them, `object` what turns
//! kernels into position-independent objects. Nothing here knows a CPU microarchitecture: lanes and
//! features come in a [`emit::Target`].

pub mod emit;
pub mod math;
pub mod narrow;
pub mod object;
pub mod region;
pub mod row_codes;
