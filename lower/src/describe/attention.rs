//! Attention and its derivative as a backend is asked for them, and its answer.
//!
//! `o = softmax(scale Σ_j q_j · k_j + mask) v`; masks as in the IR's `attention`.

use weft_codegen::object::KernelSource;
use weft_codegen::row_codes::RowCodes;
use weft_graph::{DType, DimExpr, Scalar};

/// An operand `[B, rows, heads, width]`; the elements of a head are consecutive.
#[derive(Clone, Debug, PartialEq)]
pub struct Heads {
    pub heads: i64,
    pub width: i64,
    /// In elements, from one batch, row and head to the next.
    pub strides: [DimExpr; 3],
}

impl Heads {
    /// The whole of an array.
    pub fn row_major(rows: impl Into<DimExpr>, heads: i64, width: i64) -> Heads {
        let row = heads * width;
        Heads { heads, width, strides: [rows.into() * row, row.into(), width.into()] }
    }
}

/// A term of the score. The heads of `k` divide those of `q`.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub q: Heads,
    pub k: Heads,
}

/// Attention to be planned; masks as in the IR's `attention`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Of all operands and results but the statistics: f32 or bf16.
    pub dtype: DType,
    pub batch: DimExpr,
    pub queries: DimExpr,
    pub keys: DimExpr,
    /// At least one; all q have the same heads.
    pub parts: Vec<Part>,
    pub v: Heads,
    /// v is the first k: the same numbers in the same place.
    pub v_is_k: bool,
    /// Rows of o, `[H Dv]` elements, are wanted as these codes.
    pub codes: Vec<RowCodes>,
    /// Is o itself wanted? Else there is no [`Buffer::O`].
    pub keeps_o: bool,
    pub o: Heads,
    pub scale: f64,
    pub causal: bool,
    pub offset: bool,
    pub segments: bool,
    /// Keys and values lie in pages of a pool: their strides from one batch to the next are 0, and
    /// the pool's rows, pages one after the other, are a row's stride apart.
    pub pages: Option<Pages>,
    /// Every q, k and v, and o of the forward pass, begins at a multiple of 16 bytes; of the
    /// derivative all operands and results but the statistics.
    pub aligned: bool,
}

/// Pages of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Pages {
    /// Positions of a page.
    pub size: i64,
    /// Pages that a request has at most.
    pub of_request: DimExpr,
    pub pool: DimExpr,
}

/// Where the derivatives lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    pub d_o: Heads,
    pub dq: Vec<Heads>,
    pub dk: Vec<Heads>,
    pub dv: Heads,
}

/// What a launch's buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Buffer {
    Q(usize),
    K(usize),
    V,
    O,
    /// f32 `[B, H, S]`, contiguous; forward writes it.
    Lse,
    /// i32 `[B]`.
    Start,
    /// i32 `[B, S]`, contiguous.
    QuerySegments,
    /// i32 `[B, T]`, contiguous.
    KeySegments,
    /// i32 `[B, pages of a request]`, contiguous.
    Pages,
    DO,
    DQ(usize),
    DK(usize),
    DV,
    /// Codes `[B, S, H Dv]` of o, contiguous, and their scales `[B, S, groups]`.
    Codes(usize),
    Scales(usize),
    /// Lives through the launches of one [`Planned`].
    Workspace(usize),
}

impl Buffer {
    /// Is it what the op makes, or workspace? Of the op itself, or of its derivative.
    pub fn is_made(self, forward: bool) -> bool {
        match self {
            Buffer::Q(_) | Buffer::K(_) | Buffer::V | Buffer::DO => false,
            Buffer::Start | Buffer::QuerySegments | Buffer::KeySegments | Buffer::Pages => false,
            Buffer::O | Buffer::Lse => forward,
            Buffer::DQ(_) | Buffer::DK(_) | Buffer::DV => true,
            Buffer::Codes(_) | Buffer::Scales(_) | Buffer::Workspace(_) => true,
        }
    }
}

/// One launch. Its kernel is independent of the CPU variant; equal names mean equal code.
#[derive(Clone)]
pub struct Launch {
    pub kernel: KernelSource,
    pub scratch_bytes: u64,
    pub buffers: Vec<Buffer>,
    pub scalars: Vec<Scalar>,
    pub grid: DimExpr,
    pub flops: DimExpr,
    pub bytes: DimExpr,
}

/// Launches in order.
#[derive(Clone)]
pub struct Planned {
    pub launches: Vec<Launch>,
    /// Bytes of each workspace.
    pub workspaces: Vec<DimExpr>,
}
