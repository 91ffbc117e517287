//! From a product as lowering describes it to a launch on tensor cores, where they can do it.
//!
//! They take bf16, and e4m3 with scales of 128 terms, from operands that TMA can read: contiguous
//! along one dim, of codes that of k, all else in steps of 16 bytes. Codes that lie otherwise are
//! copied first (`turn`). Other products are `None`, for plain threads.

use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_lower::describe::product::{self, Form, Matrix, Planned, ScaledGemm, Sum};

use super::select::{Budget, Sizes, select, sharing};
use super::{
    Argument, BLOCK_K, Blocks, Gemm, Grouping, Kind, Output, ScaleType, Scales, Store, TILE_ROWS,
};
use crate::tiles::shared::Major;

/// What TMA reads in steps of.
pub const STEP_BYTES: i64 = 16;

/// Plans a product of bf16.
pub fn plan(
    gemm: &product::Gemm,
    budget: Budget,
    dims: &[DimDecl],
    label: &str,
) -> Option<Planned> {
    if gemm.epilogue.is_some() {
        return None;
    }
    let template = of_bf16(gemm, dims)?;
    Some(template.planned(&template.chosen(budget), budget, label))
}

/// Plans a product of codes.
pub fn plan_scaled(
    gemm: &ScaledGemm,
    budget: Budget,
    dims: &[DimDecl],
    label: &str,
) -> Option<Planned> {
    let template = of_codes(gemm, dims)?;
    Some(template.planned(&template.chosen(budget), budget, label))
}

pub(super) fn of_bf16(gemm: &product::Gemm, dims: &[DimDecl]) -> Option<Template> {
    let is_bf16 = |m: &Matrix| m.dtype == DType::Bf16;
    if !is_bf16(&gemm.a) || !is_bf16(&gemm.b) {
        return None;
    }
    template(Kind::Bf16, gemm, None, dims)
}

pub(super) fn of_codes(gemm: &ScaledGemm, dims: &[DimDecl]) -> Option<Template> {
    let codes = gemm.codes();
    let (Some(a), Some(b)) = (&gemm.a.scales, &gemm.b.scales) else { return None };
    let is_e4m3 = |m: &Matrix| m.dtype == DType::E4m3;
    let block = i64::from(BLOCK_K);
    let hopper14 = (gemm.sum == Sum::Hopper14).then(|| blocks(gemm));
    // With scales that differ from block to block no tensor core goes on over all of k.
    let promotes = gemm.promote.map_or(hopper14.is_none(), |n| n == block);
    if !promotes || !is_e4m3(&codes.a) || !is_e4m3(&codes.b) {
        return None;
    }
    // Groups of A are rows by k, of B k by columns.
    let fits = |of_k: i64, other: i64| of_k == block && [1, block].contains(&other);
    if !fits(a.group[1], a.group[0]) || !fits(b.group[0], b.group[1]) {
        return None;
    }
    let scales = |s: &product::Scales, rows: i64| {
        let dtype = match s.dtype {
            DType::F32 => ScaleType::F32,
            DType::Ue8m0 => ScaleType::Ue8m0,
            _ => return None,
        };
        Some(Scales { dtype, rows: rows as u32 })
    };
    let of = [scales(a, a.group[0])?, scales(b, b.group[1])?];
    let strides = [
        [&a.row_stride, &a.col_stride, &a.group_stride],
        [&b.col_stride, &b.row_stride, &b.group_stride],
    ]
    .map(|side| side.map(DimExpr::clone));
    let scales = ScaledBy { of, strides, hopper14 };
    template(Kind::E4m3, &codes, Some(scales), dims)
}

fn blocks(gemm: &ScaledGemm) -> Blocks {
    let whole = gemm.k.as_constant().is_some_and(|k| k % i64::from(BLOCK_K) == 0);
    match whole && !matches!(gemm.form, Form::Inner { .. }) {
        true => Blocks::Whole,
        false => Blocks::Partial,
    }
}

/// Whether a tensor core's product reads operand `side` as it lies: codes must be contiguous along
/// k.
pub fn reads(codes: &Matrix, side: usize) -> bool {
    let (rows, k) = match side {
        0 => (&codes.row_stride, &codes.col_stride),
        _ => (&codes.col_stride, &codes.row_stride),
    };
    tensor(codes, rows, k, 1).is_some_and(|t| t.major == Major::K)
}

/// An operand as TMA sees it.
struct Tensor {
    major: Major,
    /// In elements.
    line_stride: DimExpr,
}

/// `rows` is the stride of m or n, `k` that of k.
fn tensor(matrix: &Matrix, rows: &DimExpr, k: &DimExpr, element_bytes: i64) -> Option<Tensor> {
    let one = |stride: &DimExpr| stride.as_constant() == Some(1);
    let (major, line_stride) = match (one(k), one(rows)) {
        (true, _) => (Major::K, rows.clone()),
        (_, true) => (Major::Rows, k.clone()),
        _ => return None,
    };
    let step = STEP_BYTES / element_bytes;
    let strides = [&line_stride, &matrix.group_stride];
    let fits = matrix.aligned && strides.iter().all(|s| s.is_multiple_of(step));
    fits.then_some(Tensor { major, line_stride })
}

type ScaleStrides = [[DimExpr; 3]; 2];

/// What is said of the scales of A and B, and of the sums between them.
struct ScaledBy {
    of: [Scales; 2],
    strides: ScaleStrides,
    hopper14: Option<Blocks>,
}

/// A product for which there is a kernel, whose tiles are yet to be chosen.
pub(super) struct Template {
    pub gemm: product::Gemm,
    pub shape: Gemm,
    pub sizes: Sizes,
    tensors: [Tensor; 2],
    groups: DimExpr,
    strides: Option<ScaleStrides>,
}

fn template(
    kind: Kind,
    gemm: &product::Gemm,
    scales: Option<ScaledBy>,
    dims: &[DimDecl],
) -> Option<Template> {
    let element_bytes = i64::from(kind.element_bytes());
    let a = tensor(&gemm.a, &gemm.a.row_stride, &gemm.a.col_stride, element_bytes)?;
    let b = tensor(&gemm.b, &gemm.b.col_stride, &gemm.b.row_stride, element_bytes)?;
    if gemm.c.col_stride.as_constant() != Some(1) {
        return None;
    }
    let output = match gemm.c.dtype {
        DType::F32 => Output::F32,
        DType::Bf16 => Output::Bf16,
        _ => return None,
    };
    let grouping = match gemm.form {
        Form::Dense | Form::Batch { .. } => Grouping::Batch,
        Form::Rows { .. } => Grouping::Rows,
        Form::Inner { .. } => Grouping::Inner,
    };
    let c_step = |n: i64| {
        let strides = [&gemm.c.row_stride, &gemm.c.group_stride];
        gemm.c.aligned && strides.iter().all(|s| s.is_multiple_of(n))
    };
    let whole = grouping == Grouping::Batch && output == Output::Bf16 && !gemm.accumulate;
    let store = match () {
        () if whole && c_step(8) => Store::Tensor,
        () if c_step(2) => Store::Paired,
        () => Store::Single,
    };
    let shape = Gemm {
        kind,
        a_major: a.major,
        b_major: b.major,
        scales: scales.as_ref().map(|s| s.of),
        hopper14: scales.as_ref().and_then(|s| s.hopper14),
        output,
        grouping,
        accumulate: gemm.accumulate,
        tile_cols: if kind == Kind::Bf16 { 64 } else { 32 },
        store,
        epilogue: None,
        shares: None,
    };
    shape.check().ok()?;
    let groups = product::groups(&gemm.form);
    let bound = |e: &DimExpr| e.range(dims).map_or(1, |(_, most)| most.max(1) as u64);
    let sizes =
        Sizes { m: bound(&gemm.m), n: bound(&gemm.n), k: bound(&gemm.k), groups: bound(&groups) };
    let strides = scales.map(|s| s.strides);
    Some(Template { gemm: gemm.clone(), shape, sizes, tensors: [a, b], groups, strides })
}

impl Template {
    /// The kernel that is fastest.
    fn chosen(&self, budget: Budget) -> Gemm {
        sharing(&select(&self.shape, self.sizes, budget), self.sizes, budget)
    }

    /// The launch of a kernel that was chosen.
    pub fn planned(&self, chosen: &Gemm, budget: Budget, label: &str) -> Planned {
        let mut kernel = chosen.source(label);
        kernel.cta.grid_max = Some(budget.ctas(chosen));
        let arguments = chosen.launch().arguments;
        Planned {
            kernel,
            scratch_bytes: 0,
            scalars: arguments.iter().filter_map(|a| self.scalar(a)).map(Scalar::Dim).collect(),
            grid: self.tiles(chosen),
            flops: product::flops(&self.gemm),
            bytes: product::bytes(&self.gemm),
        }
    }

    /// Tiles of the launch, at least one where there are none; those of whole clusters.
    fn tiles(&self, chosen: &Gemm) -> DimExpr {
        let [of_m, of_n] = chosen.cluster_tiles().map(i64::from);
        let rows = self.gemm.m.clone().ceil_div(i64::from(TILE_ROWS) * of_m) * of_m;
        let rows = match chosen.grouping {
            // Every group may end inside a tile.
            Grouping::Rows => rows + self.groups.clone(),
            _ => rows * self.groups.clone(),
        };
        rows * (self.gemm.n.clone().ceil_div(i64::from(chosen.tile_cols) * of_n) * of_n)
    }

    fn scalar(&self, argument: &Argument) -> Option<DimExpr> {
        let gemm = &self.gemm;
        Some(match argument {
            Argument::M => gemm.m.clone(),
            Argument::N => gemm.n.clone(),
            Argument::K => gemm.k.clone(),
            Argument::Groups => self.groups.clone(),
            Argument::CRowStride => gemm.c.row_stride.clone(),
            Argument::CGroupStride => match gemm.form {
                // Rows are counted over all groups.
                Form::Rows { .. } => 0.into(),
                _ => gemm.c.group_stride.clone(),
            },
            Argument::ScaleStride(side, which) => {
                let moves = match gemm.form {
                    Form::Dense | Form::Batch { .. } => true,
                    Form::Rows { .. } => *side == 1,
                    Form::Inner { .. } => false,
                };
                match (&self.strides, which) {
                    (Some(_), 2) if !moves => 0.into(),
                    (Some(strides), which) => strides[*side][*which].clone(),
                    (None, _) => return None,
                }
            }
            Argument::MapDim(2, dim) => [&gemm.n, &gemm.m, &self.groups][*dim].clone(),
            Argument::MapStride(2, dim) => {
                // Of a single product there is no second one: any step will do.
                let group = self.group_stride(&gemm.c.group_stride, 2);
                [gemm.c.row_stride.clone() * 2, group][*dim].clone()
            }
            Argument::MapDim(side, dim) => {
                let rows = [&gemm.m, &gemm.n][*side];
                let inner = match self.tensors[*side].major {
                    Major::K => [&gemm.k, rows],
                    Major::Rows => [rows, &gemm.k],
                };
                [inner[0], inner[1], &self.groups][*dim].clone()
            }
            Argument::MapStride(side, dim) => {
                let bytes = i64::from(self.shape.kind.element_bytes());
                let line = self.tensors[*side].line_stride.clone() * bytes;
                let matrix = [&gemm.a, &gemm.b][*side];
                [line, self.group_stride(&matrix.group_stride, bytes)][*dim].clone()
            }
            _ => return None,
        })
    }

    fn group_stride(&self, stride: &DimExpr, element_bytes: i64) -> DimExpr {
        match self.gemm.form {
            Form::Dense => STEP_BYTES.into(),
            _ => stride.clone() * element_bytes,
        }
    }
}
