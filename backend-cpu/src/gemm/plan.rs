//! From a product to kernels and launches: which kernel, which tile, which grid.

use weft_codegen::emit::Elem;
use weft_codegen::object::KernelSource;
use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_lower::describe::product::{bytes, flops, groups};

use super::tile::{COL_STEP, ROW_STEP, SCRATCH_BYTES, TILE_COLS_MAX, TILE_ROWS_MAX};
use super::{Form, Gemm, Grouping, Matrix, Planned, Shape, Unit, gemv, tile};

/// Rows up to which a product reads B once, unpacked.
const GEMV_ROWS_MAX: i64 = 4;
/// The same for rows that are spread over groups, each with its own B.
const GEMV_ROWS_GROUPED_MAX: i64 = 16;

/// Plans a product; `dims` are those its sizes speak of, and `label` names its source.
pub fn plan(gemm: &Gemm, dims: &[DimDecl], label: &str) -> Planned {
    let max = |e: &DimExpr| e.range(dims).map_or(i64::MAX, |(_, max)| max);
    let shape = shape(gemm);
    let (m_max, n_max) = (max(&gemm.m), max(&gemm.n));
    if is_few(m_max, &gemm.form) {
        return plan_gemv(gemm, shape, m_max, label);
    }
    let groups_max = max(&groups(&gemm.form));
    let (rows, cols) = tile_size(m_max, n_max, max(&gemm.k), groups_max, &gemm.form);
    let grid = tiles_grid(gemm, (rows, cols));
    let name = name("gemm", &shape);
    let emitted = name.clone();
    let scalars = scalars(gemm, (rows, cols), &grid);
    Planned {
        kernel: KernelSource::new(name, label, move |cg| tile::emit(cg, &emitted, &shape)),
        scratch_bytes: SCRATCH_BYTES,
        scalars,
        grid,
        flops: flops(gemm),
        bytes: bytes(gemm),
    }
}

/// Are rows so few that B is read once, as it lies?
pub fn is_few(m_max: i64, form: &Form) -> bool {
    match form {
        Form::Inner { .. } => false,
        Form::Rows { .. } => m_max <= GEMV_ROWS_GROUPED_MAX,
        _ => m_max <= GEMV_ROWS_MAX,
    }
}

/// As many blocks as tiles.
pub fn tiles_grid(gemm: &Gemm, (rows, cols): (i64, i64)) -> DimExpr {
    let across = gemm.n.clone().ceil_div(cols);
    match &gemm.form {
        // Each segment may have one tile more than its share of rows.
        Form::Rows { groups } => (gemm.m.clone().ceil_div(rows) + groups.clone()) * across,
        _ => groups(&gemm.form) * gemm.m.clone().ceil_div(rows) * across,
    }
}

fn plan_gemv(gemm: &Gemm, shape: Shape, m_max: i64, label: &str) -> Planned {
    let rows = m_max.clamp(1, 4) as u32;
    let grid = gemm.n.clone().ceil_div(gemv::block_cols(&shape).into());
    let name = name(&format!("gemv{rows}"), &shape);
    let emitted = name.clone();
    let scalars = scalars(gemm, (0, 0), &grid);
    Planned {
        kernel: KernelSource::new(name, label, move |cg| gemv::emit(cg, &emitted, &shape, rows)),
        scratch_bytes: 0,
        scalars,
        grid,
        flops: flops(gemm),
        bytes: bytes(gemm),
    }
}

/// Rows and columns of a tile: the largest that still gives several threads something to do.
pub fn tile_size(m: i64, n: i64, k: i64, groups: i64, form: &Form) -> (i64, i64) {
    let round = |size: i64, to: u32| parts(size, to.into()) * i64::from(to);
    let mut rows = i64::from(TILE_ROWS_MAX).min(round(m, ROW_STEP));
    let mut cols = i64::from(TILE_COLS_MAX).min(round(n, COL_STEP));
    let groups = if matches!(form, Form::Rows { .. }) { 1 } else { groups.max(1) };
    let tiles =
        |rows: i64, cols: i64| groups.saturating_mul(parts(m, rows)).saturating_mul(parts(n, cols));
    let flops = |rows: i64, cols: i64| 2 * rows * cols * k.max(1);
    // A smaller tile costs more packing per sum: below this, more than the balance it buys.
    while tiles(rows, cols) < TILES_WANTED && flops(rows, cols) >= 2 * TILE_FLOPS_MIN {
        if cols >= rows && cols > TILE_COLS_LEAST {
            cols = round(cols / 2, COL_STEP);
        } else if rows > TILE_ROWS_LEAST {
            rows = round(rows / 2, ROW_STEP);
        } else {
            break;
        }
    }
    (rows, cols)
}

/// Parts of at most `part` that cover `size`, one at least.
fn parts(size: i64, part: i64) -> i64 {
    (size.max(1) - 1) / part + 1
}

const TILES_WANTED: i64 = 8;
const TILE_ROWS_LEAST: i64 = 96;
const TILE_COLS_LEAST: i64 = 128;
/// About 10 us of a core.
const TILE_FLOPS_MIN: i64 = 2_000_000;

pub fn scalars(gemm: &Gemm, (rows, cols): (i64, i64), grid: &DimExpr) -> Vec<Scalar> {
    let (a, b, c) = (&gemm.a, &gemm.b, &gemm.c);
    let exprs = [
        gemm.m.clone(),
        gemm.n.clone(),
        gemm.k.clone(),
        a.row_stride.clone(),
        a.col_stride.clone(),
        b.row_stride.clone(),
        b.col_stride.clone(),
        c.row_stride.clone(),
        c.col_stride.clone(),
        groups(&gemm.form),
        a.group_stride.clone(),
        b.group_stride.clone(),
        c.group_stride.clone(),
        rows.into(),
        cols.into(),
        grid.clone(),
    ];
    exprs.into_iter().map(Scalar::Dim).collect()
}

fn shape(gemm: &Gemm) -> Shape {
    Shape {
        a: elem(gemm.a.dtype),
        b: elem(gemm.b.dtype),
        c: elem(gemm.c.dtype),
        a_unit: unit(&gemm.a),
        b_unit: unit(&gemm.b),
        c_unit: unit(&gemm.c),
        grouping: grouping(&gemm.form),
        accumulate: gemm.accumulate,
        epilogue: gemm.epilogue.clone(),
    }
}

pub fn grouping(form: &Form) -> Grouping {
    match form {
        Form::Dense | Form::Batch { .. } => Grouping::Batch,
        Form::Rows { .. } => Grouping::Rows,
        Form::Inner { .. } => Grouping::Inner,
    }
}

fn elem(dtype: DType) -> Elem {
    match dtype {
        DType::F32 => Elem::F32,
        DType::Bf16 => Elem::BF16,
        other => panic!("a product of {other:?}"),
    }
}

pub fn unit(matrix: &Matrix) -> Unit {
    if matrix.col_stride.as_constant() == Some(1) {
        Unit::Col
    } else if matrix.row_stride.as_constant() == Some(1) {
        Unit::Row
    } else {
        Unit::Neither
    }
}

/// `f32_gemm_nt`, `bf16_f32_gemm_rows_nn_add_bias`: dtypes, op, form, layouts, what follows.
fn name(op: &str, shape: &Shape) -> String {
    let dtype = |e: Elem| if e == Elem::BF16 { "bf16" } else { "f32" };
    let mut dtypes = vec![dtype(shape.a)];
    if shape.b != shape.a || shape.c != shape.a {
        dtypes.extend([dtype(shape.b), dtype(shape.c)]);
    }
    format!("{}_{}", dtypes.join("_"), name_of_form(op, shape))
}

/// The name without dtypes.
pub fn name_of_form(op: &str, shape: &Shape) -> String {
    let layout = |unit: Unit| match unit {
        Unit::Col => "n",
        Unit::Row => "t",
        Unit::Neither => "s",
    };
    let mut parts = vec![op.to_string()];
    match shape.grouping {
        Grouping::Batch => {}
        Grouping::Rows => parts.push("rows".into()),
        Grouping::Inner => parts.push("inner".into()),
    }
    parts.push(format!("{}{}", layout(shape.a_unit), layout(shape.b_unit)));
    if shape.c_unit != Unit::Col {
        parts.push("strided".into());
    }
    if shape.accumulate {
        parts.push("add".into());
    }
    parts.extend(shape.epilogue.as_ref().map(|e| e.name()));
    parts.join("_")
}
