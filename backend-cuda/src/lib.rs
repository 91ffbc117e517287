//! PTX kernels for Hopper.
//!
//! Kernels are emitted through the builder that the CPU's are emitted through (`weft_codegen`), as
//! text of PTX ISA 8.3 for sm_90a, which the driver assembles when a graph is loaded.

pub mod target;
