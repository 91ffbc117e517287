//! Runs an entry of a graph.
//!
//! A [`Program`] is a graph made ready on a device. A [`Store`] owns what lasts: weights and
//! states, by name, shared by all sessions made with it. A [`Session`] is one entry with its
//! inputs, outputs and arena; `run` carries out its steps at the dims that are set.
//!
//! Dim expressions are evaluated when dims change, not in every run: into a flat list of launches
//! with their addresses, in which only what moves with a loop is left to compute.

use crate::device::{Device, DeviceError, Kernels, Memory};
use crate::ranks::RankError;
use std::sync::Arc;
use thiserror::Error;
use weft_graph::{Graph, VerifyError};

mod flat;
mod profile;
mod session;
mod store;

pub use profile::{Profile, ProfileRow};
pub use session::Session;
pub use store::{Kept, Store};

#[derive(Debug, Error)]
pub enum ExecError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("step {label}: {error}")]
    Step { label: String, error: DeviceError },
    #[error("the graph is wrong: {0}")]
    Graph(#[from] VerifyError),
    #[error("the graph has no entry {name}; it has {}", known.join(", "))]
    NoEntry { name: String, known: Vec<String> },
    #[error("entry {entry} has no dim {name}")]
    NoDim { entry: String, name: String },
    #[error("{name} = {value} is outside 0..={max}")]
    DimRange { name: String, value: i64, max: i64 },
    #[error("{owner} has no buffer {name}")]
    NoBuffer { owner: String, name: String },
    #[error("{name} is {found}, not {expected}")]
    WrongType { name: String, found: String, expected: String },
    #[error("{name} has {expected} elements, not {found}")]
    WrongLength { name: String, found: usize, expected: usize },
    #[error("{name} has {expected} bytes, not {found}")]
    WrongSize { name: String, found: u64, expected: u64 },
    #[error(transparent)]
    Rank(#[from] Box<RankError>),
    #[error("step {label} is for several ranks, and this run has one; give --ranks")]
    NoRanks { label: String },
    #[error(
        "step {label}: {rows} rows come to the experts of rank {rank}, which has room for {room}; \
         give a larger exchange capacity, or none, which is room for all"
    )]
    NoRoom { label: String, rank: usize, rows: usize, room: usize },
    #[error("step {label}: bytes {least}..{greatest} of {buffer}, which has {size_bytes}")]
    OutOfBuffer { label: String, buffer: String, least: i64, greatest: i64, size_bytes: i64 },
}

/// A graph with its kernels loaded.
#[derive(Debug)]
pub struct Program {
    graph: Graph,
    device: Arc<dyn Device>,
    kernels: Box<dyn Kernels>,
    /// In the order of the graph's constants.
    constants: Vec<Arc<dyn Memory>>,
}

impl Program {
    /// Verifies the graph, whether it comes from a file or from a compiler, and loads its kernels.
    pub fn load(graph: Graph, device: Arc<dyn Device>) -> Result<Arc<Program>, ExecError> {
        graph.verify()?;
        let kernels = device.load(&graph)?;
        let mut constants = Vec::with_capacity(graph.constants.len());
        for bytes in &graph.constants {
            let memory = device.allocate(bytes.len() as u64)?;
            device.write(&*memory, 0, bytes)?;
            constants.push(memory);
        }
        Ok(Arc::new(Program { graph, device, kernels, constants }))
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}
