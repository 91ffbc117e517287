//! Steps: what an entry does, in order.

use crate::order::is_default;
use crate::{BufferId, DimExpr, KernelId, Order};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Launch(Launch),
    Copy(Copy),
    Loop(Loop),
    Collective(crate::Collective),
    Message(crate::Message),
}

/// One kernel over its whole grid. The next step of its stream sees everything it wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    pub kernel: KernelId,
    pub args: Vec<Arg>,
    /// Positions of the arguments that it may write, where that is known; else it may write all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scalars: Vec<Scalar>,
    /// Number of blocks; a launch of none does nothing.
    pub grid: DimExpr,
    /// Blocks at most, of a kernel that stays on its multiprocessors until all is done: so many are
    /// the step's, and the blocks there are do the work of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sms: Option<u32>,
    /// What a person calls this step: the op's value and place, `layers.mlp.up_proj`.
    pub label: String,
    /// Where it comes from, `deepseek_v3.model:41`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    /// Floating-point operations, for profiles; zero where nobody counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flops: DimExpr,
    /// Bytes read and written at least, for profiles; zero where nobody counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: DimExpr,
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
}

/// Moves bytes between buffers that do not overlap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Copy {
    pub from: Arg,
    pub to: Arg,
    pub bytes: DimExpr,
    pub label: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
}

/// Runs `body` once for each index of `0..count`, from the last to the first if `reverse`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loop {
    pub count: DimExpr,
    pub reverse: bool,
    /// An i32 that the host reads before each run: none begins for which it is not above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Arg>,
    pub body: Vec<Step>,
    /// What is repeated, `layers`.
    pub label: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: Order,
}

/// A place in a buffer: `byte_offset + sum of index(loop_depth) * stride`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    pub buffer: BufferId,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub byte_offset: DimExpr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strides: Vec<LoopStride>,
}

/// Bytes that an argument moves by for each index of an enclosing loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoopStride {
    /// 0 is the outermost loop.
    pub loop_depth: u32,
    pub bytes: DimExpr,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scalar {
    Dim(DimExpr),
    /// The bits of an f32.
    F32(u32),
    /// The index of the enclosing loop of this depth.
    LoopIndex(u32),
}

impl Arg {
    /// The start of a buffer.
    pub fn whole(buffer: BufferId) -> Arg {
        Arg { buffer, byte_offset: DimExpr::zero(), strides: Vec::new() }
    }

    /// The slice of a stacked buffer that belongs to the index of the loop at `loop_depth`.
    pub fn sliced(buffer: BufferId, loop_depth: u32, bytes: DimExpr) -> Arg {
        let strides = vec![LoopStride { loop_depth, bytes }];
        Arg { buffer, byte_offset: DimExpr::zero(), strides }
    }
}

impl Launch {
    /// A launch on whole buffers, to be refined with struct update.
    pub fn new(
        kernel: KernelId,
        args: Vec<Arg>,
        grid: DimExpr,
        label: impl Into<String>,
    ) -> Launch {
        Launch {
            kernel,
            args,
            writes: None,
            scalars: Vec::new(),
            grid,
            sms: None,
            label: label.into(),
            source: Vec::new(),
            flops: DimExpr::zero(),
            bytes: DimExpr::zero(),
            order: Order::default(),
        }
    }

    /// Whether it may write the argument at a position.
    pub fn may_write(&self, at: usize) -> bool {
        self.writes.as_ref().is_none_or(|all| all.contains(&(at as u32)))
    }
}

impl Scalar {
    pub fn f32(value: f32) -> Scalar {
        Scalar::F32(value.to_bits())
    }
}

fn is_zero(expr: &DimExpr) -> bool {
    expr.terms().is_empty()
}
