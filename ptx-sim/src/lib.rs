//! Runs PTX on the CPU, numerically, to test kernels where there is no GPU.
//!
//! It takes what LLVM's NVPTX backend prints (ISA 8.3, sm_90a), inline assembly included, and runs
//! it warp instruction by warp instruction: grids, clusters, shared memory, mbarriers, TMA, wgmma.
//! While it runs it looks for what hardware would forgive until it does not: data races, missing
//! waits and fences, wrong counts, deadlocks, accesses out of bounds. An [`Error`] names the line.
//!
//! ```
//! use ptx_sim::{Arg, Device, Launch, Module};
//!
//! let module = Module::load(
//!     ".version 8.3 .target sm_90a .address_size 64
//!      .visible .entry twice(.param .u64 p) {
//!          .reg .b32 %r<3>; .reg .b64 %d<4>;
//!          ld.param.b64 %d1, [p];
//!          mov.u32 %r1, %tid.x;
//!          mul.wide.u32 %d2, %r1, 4;
//!          add.s64 %d3, %d1, %d2;
//!          ld.global.b32 %r2, [%d3];
//!          add.s32 %r2, %r2, %r2;
//!          st.global.b32 [%d3], %r2;
//!          ret;
//!      }",
//! )?;
//! let mut device = Device::new();
//! let p = device.alloc_from(&[1, 0, 0, 0, 5, 0, 0, 0]);
//! device.launch(&module, "twice", &Launch::new(1, 2), &[Arg::Ptr(p)])?;
//! assert_eq!(device.read(p, 8)?, [2, 0, 0, 0, 10, 0, 0, 0]);
//! # Ok::<(), ptx_sim::Error>(())
//! ```
//!
//! The order of the parts is that of the data: `parse` (text to tree), `decode` with the table
//! [`isa`] (tree to kernels), `machine` and `exec` (kernels run). Semantics of asynchronous work
//! stand in `mbarrier`, `tma` and `wgmma`; who may touch what, in `race`, and which launches, in
//! `streams`.

mod decode;
mod device;
mod error;
mod exec;
pub mod isa;
mod machine;
mod matrix;
mod mbarrier;
mod memory;
mod numeric;
mod parse;
mod program;
mod race;
mod scalar;
mod streams;
mod swizzle;
mod tensor_map;
mod tma;
mod warp;
mod wgmma;

pub use device::{Accumulate, Arg, Completion, Device, Launch, Module, Stats};
pub use error::{Error, ErrorKind, Result, SourceLine};
pub use swizzle::Swizzle;
pub use tensor_map::{Element, TENSOR_MAP_BYTES, TensorMap};
