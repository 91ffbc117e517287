//! The executable graph, `NAME.weft`: what a compile leaves behind and a machine without a compiler
//! runs.
//!
//! A [`Graph`] holds *entries* (`train_step`, `prefill`, `decode`), the kernels they launch, the
//! ELF objects those are functions of, and constants. An [`Entry`] has
//! - **dims**: named launch arguments with a bound; every size is a [`DimExpr`] over them;
//! - **buffers**: typed arrays with a role; temps lie at offsets of one arena planned at the
//!   bounds;
//! - **steps**: launches, copies, collectives of several ranks, messages between two, and loops
//!   over them, in order. Loops are never unrolled to be run. A step has a *stream*; a device that
//!   has several runs steps of different streams at once, but for those that wait ([`order`]).
//!
//! The kernel ABI, one function per kernel and CPU variant:
//!
//! ```c
//! void kernel(uint8_t *const *buffers, const int64_t *scalars, int64_t begin, int64_t end,
//!             uint8_t *scratch);
//! ```
//!
//! It does the blocks `begin..end` of the launch's grid. Blocks are independent, and what a block
//! computes does not depend on the thread that runs it: any number of threads gives the same bits.
//! An f32 scalar is passed as its bits in the low half of the `int64_t`.
//!
//! For GPUs a kernel is an entry of a PTX module instead, whose parameters are the buffers and then
//! the scalars, and whose CTAs are the blocks.
//!
//! A graph from a file is checked by [`verify`](Graph::verify) before anything uses it: every id in
//! range, every size finite, every argument inside its buffer with the dims at their bounds.

mod append;
mod buffer;
pub mod collective;
mod dim;
mod dtype;
mod file;
pub mod kept;
mod kernel;
mod message;
pub mod order;
mod step;
mod text;
mod verify;
mod weight;

pub use buffer::{Buffer, BufferId, ConstantId, Role};
pub use collective::{Collective, CollectiveKind, Group, Half, Segments};
pub use dim::{DimDecl, DimExpr, DimId, Factor, Term};
pub use dtype::DType;
pub use file::{FORMAT_VERSION, OpenError, Reason};
pub use kernel::{
    CpuVariant, Kernel, KernelId, KernelVariant, MapElement, ObjectId, PtxCode, TensorMap,
};
pub use message::{End, Message};
pub use order::Order;
pub use step::{Arg, Copy, Launch, Loop, LoopStride, Scalar, Step};
pub use verify::{VerifyError, offset_range};
pub use weight::{Coded, Cut, Init, Part, WeightInfo};

use serde::{Deserialize, Serialize};

/// A compiled program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// The compiler that wrote it, `weft 0.1.0`.
    pub compiler: String,
    /// The file it was compiled from, as the user named it.
    pub source: String,
    /// The command that compiles it again, printed wherever the file is refused.
    pub command: String,
    pub entries: Vec<Entry>,
    pub kernels: Vec<Kernel>,
    /// ELF relocatable objects and PTX modules; several kernels may be functions of one object.
    #[serde(skip)]
    pub objects: Vec<Vec<u8>>,
    /// Bytes of constant buffers; several buffers may read one.
    #[serde(skip)]
    pub constants: Vec<Vec<u8>>,
}

impl Graph {
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    pub fn kernel(&self, id: KernelId) -> &Kernel {
        &self.kernels[id.0 as usize]
    }
}

/// One function of the program, with everything a run of it touches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub name: String,
    pub dims: Vec<DimDecl>,
    pub buffers: Vec<Buffer>,
    pub steps: Vec<Step>,
    /// Size of the arena that temps lie in, with every dim at its bound.
    pub arena_bytes: u64,
    /// What the runtime must know and the steps do not say: config values, training settings.
    #[serde(default)]
    pub meta: serde_json::Map<String, serde_json::Value>,
}

impl Entry {
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    pub fn find_buffer(&self, name: &str) -> Option<BufferId> {
        let position = self.buffers.iter().position(|buffer| buffer.name == name)?;
        Some(BufferId(position as u32))
    }

    pub fn find_dim(&self, name: &str) -> Option<DimId> {
        let position = self.dims.iter().position(|dim| dim.name == name)?;
        Some(DimId(position as u32))
    }

    /// Every dim at its bound, in the order of `dims`.
    pub fn dims_max(&self) -> Vec<i64> {
        self.dims.iter().map(|dim| dim.max).collect()
    }

    /// The buffer whose storage `id` uses: itself, or the state it updates in place.
    pub fn storage_of(&self, id: BufferId) -> BufferId {
        self.buffer(id).alias.unwrap_or(id)
    }
}
