//! From a product of codes to a kernel and a launch, or why there is none.

use weft_codegen::emit::Elem;
use weft_codegen::object::KernelSource;
use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_ir::formats::{E4M3, E5M2, Format};
use weft_lower::describe::product::{bytes, flops, groups};

use super::super::plan as plain;
use super::super::{Planned, Shape};
use super::{Coded, Grouped, Operand, ScaledGemm, ScaledShape, Scales, Sum, emit, gemv};

/// Plans a product; `dims` are those its sizes speak of, and `label` names its source. Buffers: A,
/// B, C, the scales of A, of B, the offsets of a grouped product, as far as there are any.
pub fn plan(gemm: &ScaledGemm, dims: &[DimDecl], label: &str) -> Result<Planned, String> {
    let shape = shape(gemm)?;
    let max = |e: &DimExpr| e.range(dims).map_or(i64::MAX, |(_, max)| max);
    let codes = gemm.codes();
    let (m_max, k_max) = (max(&gemm.m), max(&gemm.k));
    let rows = m_max.clamp(1, ROWS_MAX);
    if plain::is_few(m_max, &gemm.form) && gemv::takes(&shape, k_max, rows) {
        return Ok(plan_gemv(gemm, shape, (rows as u32, k_max), label));
    }
    let groups_max = max(&groups(&gemm.form));
    let tile = plain::tile_size(m_max, max(&gemm.n), k_max, groups_max, &gemm.form);
    let grid = plain::tiles_grid(&codes, tile);
    let scalars = all_scalars(gemm, tile, &grid);
    let name = name(gemm, &shape, "gemm_scaled");
    let emitted = name.clone();
    Ok(Planned {
        kernel: KernelSource::new(name, label, move |cg| emit::emit(cg, &emitted, &shape)),
        scratch_bytes: emit::SCRATCH_BYTES,
        scalars,
        grid,
        flops: flops(&codes),
        bytes: bytes(&codes),
    })
}

/// Rows that share what is decoded of B.
const ROWS_MAX: i64 = 4;

fn plan_gemv(
    gemm: &ScaledGemm,
    shape: ScaledShape,
    (rows, k_max): (u32, i64),
    label: &str,
) -> Planned {
    let codes = gemm.codes();
    let grid = gemm.n.clone().ceil_div(gemv::BLOCK_COLS);
    let name = format!("{}_k{k_max}", name(gemm, &shape, &format!("gemv{rows}_scaled")));
    let emitted = name.clone();
    Planned {
        scalars: all_scalars(gemm, (0, 0), &grid),
        kernel: KernelSource::new(name, label, move |cg| {
            gemv::emit(cg, &emitted, &shape, k_max, rows);
        }),
        scratch_bytes: gemv::scratch_bytes(k_max, rows),
        grid,
        flops: flops(&codes),
        bytes: bytes(&codes),
    }
}

/// Those of the plain product, then the strides of the scales.
fn all_scalars(gemm: &ScaledGemm, tile: (i64, i64), grid: &DimExpr) -> Vec<Scalar> {
    let mut scalars = plain::scalars(&gemm.codes(), tile, grid);
    for scales in [&gemm.a.scales, &gemm.b.scales].into_iter().flatten() {
        let strides = [&scales.row_stride, &scales.col_stride, &scales.group_stride];
        scalars.extend(strides.map(|s| Scalar::Dim(s.clone())));
    }
    scalars
}

fn shape(gemm: &ScaledGemm) -> Result<ScaledShape, String> {
    let (a, b) = (coded(&gemm.a, 1)?, coded(&gemm.b, 0)?);
    let scales = [&a, &b].into_iter().filter_map(|x| x.scales);
    let groups: Vec<i64> = scales.map(|s| s.k).collect();
    let scaled_products = gemm.sum == Sum::Hopper14 && gemm.promote.is_none();
    let intervals: Vec<i64> = groups.iter().copied().chain(gemm.promote).collect();
    if let Some(odd) = intervals.iter().find(|i| **i < 1) {
        return Err(format!("groups and `promote` are positive, found {odd}"));
    }
    let unit = intervals.iter().copied().min();
    if let Some(unit) = unit
        && let Some(odd) = intervals.iter().find(|i| *i % unit != 0)
    {
        return Err(format!("sums of {unit} terms do not fit groups or intervals of {odd} terms"));
    }
    let shape = Shape {
        a: elem(gemm.a.codes.dtype)?,
        b: elem(gemm.b.codes.dtype)?,
        c: elem(gemm.c.dtype).ok().filter(|e| *e != Elem::I8).ok_or_else(|| {
            format!("the result of a product of codes is f32 or bf16, not {}", gemm.c.dtype)
        })?,
        a_unit: plain::unit(&gemm.a.codes),
        b_unit: plain::unit(&gemm.b.codes),
        c_unit: plain::unit(&gemm.c),
        grouping: plain::grouping(&gemm.form),
        accumulate: gemm.accumulate,
        epilogue: None,
    };
    Ok(ScaledShape { shape, a, b, unit, sum: gemm.sum, scaled_products })
}

fn elem(dtype: DType) -> Result<Elem, String> {
    match dtype {
        DType::F32 => Ok(Elem::F32),
        DType::Bf16 => Ok(Elem::BF16),
        DType::E4m3 | DType::E5m2 => Ok(Elem::I8),
        other => Err(format!("no kernel multiplies matrices of {other}")),
    }
}

/// What is known of an operand whose k runs along `k_dim`.
fn coded(x: &Operand, k_dim: usize) -> Result<Coded, String> {
    let format: Option<Format> = match x.codes.dtype {
        DType::E4m3 => Some(E4M3),
        DType::E5m2 => Some(E5M2),
        _ => None,
    };
    let grouped = |s: &Scales| {
        let elem = match s.dtype {
            DType::F32 => Elem::F32,
            DType::Ue8m0 => Elem::I8,
            other => return Err(format!("scales are f32 or ue8m0, not {other}")),
        };
        let (free, k) = (s.group[1 - k_dim], s.group[k_dim]);
        if free < 1 {
            return Err(format!("a group has at least one row and column, found {free}"));
        }
        Ok(Grouped { elem, free, k })
    };
    Ok(Coded { format, scales: x.scales.as_ref().map(grouped).transpose()? })
}

/// `e4m3_e4m3_f32_gemm_scaled_nt_a1x128_b128x128e_p128_hopper14_add`: groups as free dim by k, `e`
/// for scales of ue8m0.
fn name(gemm: &ScaledGemm, s: &ScaledShape, op: &str) -> String {
    let dtypes = [&gemm.a.codes, &gemm.b.codes, &gemm.c].map(|x| x.dtype.name());
    let mut parts = vec![dtypes.join("_"), plain::name_of_form(op, &s.shape)];
    for (letter, x) in ["a", "b"].into_iter().zip(s.operands()) {
        if let Some(g) = x.scales {
            let power = if g.elem == Elem::I8 { "e" } else { "" };
            parts.push(format!("{letter}{}x{}{power}", g.free, g.k));
        }
    }
    parts.extend(gemm.promote.map(|p| format!("p{p}")));
    if gemm.sum == Sum::Hopper14 {
        parts.push("hopper14".into());
    }
    parts.join("_")
}
