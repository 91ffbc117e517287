//! Matrix products as a backend is asked for them, and its answer.
//!
//! Operands are arrays with any row and column stride. What is summed and how it repeats is said
//! here; tiles, layouts and which kernel are the backend's.

use std::sync::Arc;

use weft_codegen::emit::{Cg, Val};
use weft_codegen::object::KernelSource;
use weft_codegen::region::emit::held::Held;
use weft_graph::{DType, DimExpr, Scalar};

use crate::region::RegionLaunch;

/// One operand: its element and, in elements, its strides.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub dtype: DType,
    pub row_stride: DimExpr,
    pub col_stride: DimExpr,
    /// From one group to the next; unused by the operand a form segments.
    pub group_stride: DimExpr,
    /// It begins at a multiple of 16 bytes.
    pub aligned: bool,
}

/// How a product repeats.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// One product.
    Dense,
    /// A leading dim: operands move by their group stride.
    Batch { count: DimExpr },
    /// Rows `offsets[e]..offsets[e + 1]` of A and C belong to B of group `e`; `m` is all rows.
    Rows { groups: DimExpr },
    /// Terms `offsets[e]..offsets[e + 1]` of the sum belong to C of group `e`; `k` is all terms.
    Inner { groups: DimExpr },
}

/// A matrix product to be planned.
#[derive(Clone)]
pub struct Gemm {
    pub m: DimExpr,
    pub n: DimExpr,
    pub k: DimExpr,
    pub a: Matrix,
    pub b: Matrix,
    pub c: Matrix,
    pub form: Form,
    /// Adds to C instead of overwriting it.
    pub accumulate: bool,
    pub epilogue: Option<Arc<dyn Epilogue>>,
}

/// What happens to the sums before they are stored: bias, activation, residual.
pub trait Epilogue: Send + Sync {
    /// Part of the kernel's name: equal names promise equal code.
    fn name(&self) -> String;

    /// Buffers it reads, appended to the product's own.
    fn n_buffers(&self) -> usize;

    /// Scalars it reads, appended to the product's own.
    fn n_scalars(&self) -> usize;

    /// The f32 lanes to store for the f32 sums `acc` (C's old value already added, where the
    /// product accumulates). Memory beyond the mask may not be touched.
    fn apply<'c>(&self, cg: &Cg<'c>, at: &Position<'c>, acc: Val<'c>) -> Val<'c>;
}

/// Where in C a vector of sums belongs: consecutive columns of one row.
pub struct Position<'c> {
    /// Row of C; of the whole ragged C in [`Form::Rows`], of the group's C elsewhere.
    pub row: Val<'c>,
    /// Column of the first lane.
    pub col: Val<'c>,
    /// Batch index or group.
    pub group: Val<'c>,
    /// Lanes inside C; `None` is all.
    pub mask: Option<Val<'c>>,
    /// The epilogue's own buffers and scalars.
    pub buffers: Vec<Val<'c>>,
    pub scalars: Vec<Val<'c>>,
}

/// One scale for each group of elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// f32 or ue8m0.
    pub dtype: DType,
    /// Rows and columns of a group, of the matrix as the product sees it.
    pub group: [i64; 2],
    /// In scales, from one group to the next.
    pub row_stride: DimExpr,
    pub col_stride: DimExpr,
    /// From one matrix of a batch (or of the operand that a form does not segment) to the next.
    pub group_stride: DimExpr,
}

/// An operand: codes, or plain numbers without scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Of e4m3, e5m2, bf16 or f32.
    pub codes: Matrix,
    pub scales: Option<Scales>,
}

/// How the products of a block are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    F32,
    /// 32 products and the accumulator aligned to the largest, 14 bits kept, the rest cut off.
    Hopper14,
}

/// A product to be planned.
#[derive(Clone, Debug)]
pub struct ScaledGemm {
    pub m: DimExpr,
    pub n: DimExpr,
    pub k: DimExpr,
    pub a: Operand,
    pub b: Operand,
    pub c: Matrix,
    pub form: Form,
    /// Adds to C instead of overwriting it.
    pub accumulate: bool,
    /// Terms after which a partial sum is scaled and added in f32.
    pub promote: Option<i64>,
    pub sum: Sum,
}

impl ScaledGemm {
    /// The product of the codes alone.
    pub fn codes(&self) -> Gemm {
        Gemm {
            m: self.m.clone(),
            n: self.n.clone(),
            k: self.k.clone(),
            a: self.a.codes.clone(),
            b: self.b.codes.clone(),
            c: self.c.clone(),
            form: self.form.clone(),
            accumulate: self.accumulate,
            epilogue: None,
        }
    }
}

/// Products of one left operand, alike but for where their right operands lie, and a region that
/// goes on with their rows.
pub struct Ended<'a> {
    pub product: Multiplied,
    /// For each, whether its rows are stored, too.
    pub keeps: Vec<bool>,
    pub region: Held,
    /// The region's scalars.
    pub scalars: Vec<Scalar>,
    /// What the region would be by itself.
    pub apart: &'a RegionLaunch,
}

/// Of plain numbers or of codes.
#[derive(Clone)]
pub enum Multiplied {
    Plain(Gemm),
    Scaled(ScaledGemm),
}

impl Multiplied {
    /// The product of the codes alone, if they are codes.
    pub fn plain(&self) -> Gemm {
        match self {
            Multiplied::Plain(gemm) => gemm.clone(),
            Multiplied::Scaled(scaled) => scaled.codes(),
        }
    }

    pub fn c_mut(&mut self) -> &mut Matrix {
        match self {
            Multiplied::Plain(gemm) => &mut gemm.c,
            Multiplied::Scaled(scaled) => &mut scaled.c,
        }
    }
}

/// One launch. Its buffers are A, B, C, the offsets of a grouped product, the epilogue's.
#[derive(Clone)]
pub struct Planned {
    /// Independent of the CPU variant; equal names mean equal code.
    pub kernel: KernelSource,
    pub scratch_bytes: u64,
    /// To be followed by the epilogue's.
    pub scalars: Vec<Scalar>,
    pub grid: DimExpr,
    pub flops: DimExpr,
    pub bytes: DimExpr,
}

/// A launch that copies an operand's codes, and what it makes: `matrices` matrices, one behind the
/// other, of a line for each row of A or column of B, whose codes follow one another along k.
/// Its buffers are the operand and the copy.
#[derive(Clone)]
pub struct Turned {
    pub kernel: KernelSource,
    pub scalars: Vec<Scalar>,
    pub grid: DimExpr,
    /// Bytes that are read and written.
    pub bytes: DimExpr,
    pub matrices: DimExpr,
    pub lines: DimExpr,
    /// From one line to the next, in codes.
    pub line_stride: DimExpr,
}

impl Turned {
    /// How operand `side` lies in the copy.
    pub fn matrix(&self, side: usize) -> Matrix {
        let (lines, k) = (self.line_stride.clone(), DimExpr::constant(1));
        let (row_stride, col_stride) = if side == 0 { (lines, k) } else { (k, lines) };
        Matrix {
            dtype: DType::E4m3,
            row_stride,
            col_stride,
            group_stride: self.lines.clone() * self.line_stride.clone(),
            aligned: true,
        }
    }
}

pub fn groups(form: &Form) -> DimExpr {
    match form {
        Form::Dense => 1.into(),
        Form::Batch { count } => count.clone(),
        Form::Rows { groups } | Form::Inner { groups } => groups.clone(),
    }
}

/// How often the `m * n * k` of the description is done.
fn repeats(form: &Form) -> DimExpr {
    match form {
        Form::Batch { count } => count.clone(),
        Form::Dense | Form::Rows { .. } | Form::Inner { .. } => 1.into(),
    }
}

pub fn flops(gemm: &Gemm) -> DimExpr {
    repeats(&gemm.form) * gemm.m.clone() * gemm.n.clone() * gemm.k.clone() * 2
}

pub fn bytes(gemm: &Gemm) -> DimExpr {
    let (m, n, k) = (gemm.m.clone(), gemm.n.clone(), gemm.k.clone());
    let size = |x: &Matrix| i64::from(x.dtype.bits() / 8);
    let times = |yes: bool| if yes { groups(&gemm.form) } else { repeats(&gemm.form) };
    let b = times(matches!(gemm.form, Form::Rows { .. })) * k.clone() * n.clone() * size(&gemm.b);
    let c = times(matches!(gemm.form, Form::Inner { .. })) * m.clone() * n * size(&gemm.c);
    repeats(&gemm.form) * m * k * size(&gemm.a) + b + c
}
