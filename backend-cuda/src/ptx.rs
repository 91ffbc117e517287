//! The instructions of Hopper that LLVM has no operation for: one function each, which owns the
//! text and what the compiler must know of it.
//!
//! All are of PTX ISA 8.0, for sm_90a, unless their doc says more. Addresses of shared memory are
//! i32, of global memory i64 or a pointer. docs/ptx-primitives.md says which of them have been run
//! on a GPU. What a `.aligned` instruction demands (a whole warp, or four) is the caller's to see
//! to; branches that only one thread takes around one are not emitted here but written as
//! predicates.

pub mod bulk;
pub mod cluster;
pub mod convert;
pub mod matrix;
pub mod mbarrier;
pub mod memory;
pub mod sync;
pub mod wgmma;
