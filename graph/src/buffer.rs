//! Buffers: the typed arrays that steps read and write.

use crate::{DType, DimExpr, WeightInfo};
use serde::{Deserialize, Serialize};

/// Position of a buffer in its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BufferId(pub u32);

/// Position of a constant's bytes in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConstantId(pub u32);

/// A row-major array. All storage starts at a multiple of 64 bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    pub name: String,
    pub dtype: DType,
    pub dims: Vec<DimExpr>,
    pub role: Role,
    /// For an output: the state it is the new value of. They share storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<BufferId>,
    /// For a weight, or a state kept per weight: the tensors it is stored as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<WeightInfo>,
}

/// Who owns a buffer, and for how long it holds its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Written by the caller before a run.
    Input,
    /// Read by the caller after a run.
    Output,
    /// Kept between runs and shared by name between entries; stored in checkpoints.
    Weight,
    /// Kept between runs and shared by name between entries: moments, caches, counters.
    State,
    /// Holds a value within a run, at this byte offset of the arena.
    Temp { offset: u64 },
    /// Never written.
    Constant(ConstantId),
}

impl Buffer {
    pub fn new(name: impl Into<String>, dtype: DType, dims: Vec<DimExpr>, role: Role) -> Buffer {
        Buffer { name: name.into(), dtype, dims, role, alias: None, weight: None }
    }

    /// Number of elements.
    pub fn len(&self) -> DimExpr {
        DimExpr::product(self.dims.iter().cloned())
    }

    /// True where a dim is the constant 0.
    pub fn is_empty(&self) -> bool {
        self.len() == DimExpr::zero()
    }

    /// Size in bytes, rounded up to whole ones.
    pub fn size_bytes(&self) -> DimExpr {
        (self.len() * i64::from(self.dtype.bits())).ceil_div(8)
    }
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::Input => "input",
            Role::Output => "output",
            Role::Weight => "weight",
            Role::State => "state",
            Role::Temp { .. } => "temp",
            Role::Constant(_) => "constant",
        }
    }
}
