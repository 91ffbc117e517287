//! What an expression of a forward body stands for while it is lowered.

use weft_ir::dim::Dim;
use weft_ir::module::ValueId;

use crate::elaborate::consts::Const;
use crate::source::Span;

#[derive(Clone, Debug)]
pub enum Value {
    Const(Const),
    Tensor(Tensor),
    Tuple(Vec<Value>),
    /// What failed to lower; using it says nothing more.
    Poison,
}

/// A value of the function being built.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub id: ValueId,
    /// Inside `each`: a weight of all experts, whose first dim the text does not see.
    pub batched: bool,
    /// For each dim the text sees, where the author named it.
    pub labels: Vec<Option<Span>>,
}

impl Tensor {
    pub fn new(id: ValueId, rank: usize) -> Tensor {
        Tensor { id, batched: false, labels: vec![None; rank] }
    }
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Const(c) => c.kind(),
            Value::Tensor(_) => "a tensor",
            Value::Tuple(_) => "several values",
            Value::Poison => "a value that failed",
        }
    }
}

/// Rows a `dispatch` made: who they belong to and how to go back.
#[derive(Clone, Debug)]
pub struct Ragged {
    pub offsets: ValueId,
    pub order: ValueId,
    pub tokens: Vec<Dim>,
    pub active: u64,
    pub experts: u64,
}
