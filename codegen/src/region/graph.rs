//! A region as a graph of values: pointwise scalars, moves, folds and lookups.
//!
//! Composite ops are written out in these terms (`lower.rs`), so that what follows knows no op by
//! name. A few ops stay whole: their algorithm is not "each element from some elements" (sorting,
//! routing, caches).

use weft_ir::dim::Dim;
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::columns::EncodeColumns;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u32);

/// An array in memory that a kernel is given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Buf {
    Operand(u32),
    Result(u32),
    Workspace(u32),
}

/// What a lane computes from lanes. Most are IR ops.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scalar {
    Ir(Op),
    /// `1 - base^x`, exact for bases near one.
    OneMinusPow(f64),
    /// The same value, rounded to the node's type.
    Round,
    /// The value of a narrower type that is nearest.
    Nearest(DType),
}

/// Where a lookup reads along one dim of its operand.
#[derive(Clone, PartialEq, Debug)]
pub enum Coord {
    /// The index of the result along this dim.
    Out(usize),
    /// What `ids` holds at the result's index along these dims. Outside the operand the lookup
    /// gives zero.
    Data(NodeId, Vec<usize>),
}

#[derive(Clone, PartialEq, Debug)]
pub enum Kind {
    Load(Buf),
    Constant(f64),
    /// The index along a dim.
    Iota(usize),
    Extent(Dim),
    Scalar(Scalar, Vec<NodeId>),
    Reshape(NodeId),
    Transpose(NodeId, Vec<usize>),
    Broadcast(NodeId, Vec<usize>),
    /// The element `by` further along `dim`; `fill` outside. Slice, pad and shift.
    Moved {
        x: NodeId,
        dim: usize,
        by: i64,
        fill: f64,
        inside: bool,
    },
    Concat(Vec<NodeId>, usize),
    /// Neighbours 2i and 2i + 1 of the last dim exchanged.
    Swap(NodeId),
    /// Sum or maximum over dims.
    Fold {
        x: NodeId,
        dims: Vec<usize>,
        max: bool,
    },
    Lookup(NodeId, Vec<Coord>),
    /// Result `out` of whole op `op`.
    Whole {
        op: usize,
        out: usize,
    },
}

#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    pub kind: Kind,
    pub dims: Vec<Dim>,
    /// What the value is rounded to.
    pub dtype: DType,
}

/// What is not "each element from some elements": it has a kernel of its own (`whole.rs`).
#[derive(Clone, PartialEq, Debug)]
pub enum Whole {
    /// ids → `offsets[groups + 1]` and, by id, then place, `order` of the places. Ids outside are
    /// left out.
    Sort { groups: Dim },
    /// order → for each place its position.
    Invert,
    /// x `[n, d]`, offsets, order → for each group the sum of its rows, in order.
    SegmentSum,
    /// Indices of the `k` largest of rows of `n`, of `groups` groups only the `kept` of highest
    /// score if any.
    Topk { n: u64, k: u64, groups: Option<Groups> },
    /// x → codes and scales of groups of rows.
    EncodeColumns(EncodeColumns),
    /// An array of bf16 that holds values of e5m6 → their codes in memory.
    Pack12,
    /// Codes of e5m6 in memory → their values as bf16.
    Unpack12,
    /// The cache (a parameter), x, start, pages if any → the cache's value and the cache, in place.
    CacheAppend,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Groups {
    pub count: u64,
    pub kept: u64,
    /// A group's score is the sum of its two largest, not its largest.
    pub pair: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub struct WholeOp {
    pub whole: Whole,
    pub operands: Vec<NodeId>,
    pub outs: Vec<NodeId>,
    /// The first node after it: what it needs stands before.
    pub position: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub wholes: Vec<WholeOp>,
    pub results: Vec<NodeId>,
    /// `(operand, result)` pairs that are one storage.
    pub donated: Vec<(u32, u32)>,
}

impl Graph {
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn push(&mut self, kind: Kind, dims: &[Dim], dtype: DType) -> NodeId {
        self.nodes.push(Node { kind, dims: dims.to_vec(), dtype });
        NodeId(self.nodes.len() as u32 - 1)
    }

    /// Adds a whole op with results of these types.
    pub fn push_whole(
        &mut self,
        whole: Whole,
        operands: Vec<NodeId>,
        outs: &[(Vec<Dim>, DType)],
    ) -> Vec<NodeId> {
        let (op, position) = (self.wholes.len(), self.nodes.len() as u32);
        let node = |s: &mut Self, (out, (dims, dtype)): (usize, &(Vec<Dim>, DType))| {
            s.push(Kind::Whole { op, out }, dims, *dtype)
        };
        let outs: Vec<NodeId> = outs.iter().enumerate().map(|o| node(self, o)).collect();
        self.wholes.push(WholeOp { whole, operands, outs: outs.clone(), position });
        outs
    }

    /// The nodes a node reads.
    pub fn inputs(&self, id: NodeId) -> Vec<NodeId> {
        match &self.node(id).kind {
            Kind::Load(_) | Kind::Constant(_) | Kind::Iota(_) | Kind::Extent(_) => vec![],
            Kind::Scalar(_, xs) | Kind::Concat(xs, _) => xs.clone(),
            Kind::Reshape(x)
            | Kind::Transpose(x, _)
            | Kind::Broadcast(x, _)
            | Kind::Swap(x)
            | Kind::Moved { x, .. }
            | Kind::Fold { x, .. } => vec![*x],
            Kind::Lookup(x, coords) => {
                let data = coords.iter().filter_map(|c| match c {
                    Coord::Data(ids, _) => Some(*ids),
                    Coord::Out(_) => None,
                });
                std::iter::once(*x).chain(data).collect()
            }
            Kind::Whole { op, .. } => self.wholes[*op].operands.clone(),
        }
    }
}
