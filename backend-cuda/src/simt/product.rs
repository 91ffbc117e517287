//! Matrix products of any shape: a warp does some rows of 32 columns.
//!
//! Each element of C is one chain of fused multiply-adds in the order of k, as on a CPU without
//! dot products, so f32 gives the bits that it gives. Products of codes with group scales are
//! chains within the groups of k, each then added to the sum with its scales.
//!
//! Envelope: 9 loads for 8 multiply-adds a lane, all through the caches: a few per cent of what the
//! multiply-adds alone would take. It is for small and odd shapes.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Ty, Val, WARP};
use weft_codegen::object::KernelSource;
use weft_codegen::region::scalar;
use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_ir::ty;
use weft_lower::describe::product::{
    Form, Gemm, Matrix, Planned, ScaledGemm, Scales, Sum, bytes, flops, groups,
};

use super::{WARPS, Warp, named, warp_kernel};

/// Rows of a warp.
const ROWS: i64 = 8;

/// What a kernel's code depends on: all else comes as scalars.
#[derive(Clone)]
struct Shape {
    a: ty::DType,
    b: ty::DType,
    c: ty::DType,
    grouping: Grouping,
    accumulate: bool,
    rows: i64,
    scales: [Option<Grouped>; 2],
    /// Terms of k whose sum is scaled at once.
    unit: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Grouping {
    /// Also a single product: a batch of one.
    Batch,
    Rows,
    Inner,
}

/// Scales of groups of an operand.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Grouped {
    dtype: ty::DType,
    /// Rows of A or columns of B in a group.
    free: i64,
    /// Terms of k in a group.
    k: i64,
}

/// Plans a product; `dims` are those its sizes speak of, and `label` names its source.
pub fn plan(gemm: &Gemm, dims: &[DimDecl], label: &str) -> Result<Planned, String> {
    if gemm.epilogue.is_some() {
        return Err("not available on cuda yet: what follows a product in its kernel".into());
    }
    let shape = shape(gemm, dims)?;
    Ok(planned(gemm, shape, &[], label))
}

/// The same of codes with scales.
pub fn plan_scaled(gemm: &ScaledGemm, dims: &[DimDecl], label: &str) -> Result<Planned, String> {
    if gemm.sum == Sum::Hopper14 {
        return Err(
            "accumulate = hopper14 is how tensor cores add, and this product is not theirs: \
                    they take e4m3 in groups of 128 terms (1x128, 128x1, 128x128) with \
                    promote = 128; use that, or accumulate = f32"
                .into(),
        );
    }
    let codes = gemm.codes();
    let all = [&gemm.a.scales, &gemm.b.scales];
    let [a, b] = [(all[0], 1), (all[1], 0)]
        .map(|(s, k_dim)| s.as_ref().map(|s| grouped(s, k_dim)).transpose());
    let scales = [a?, b?];
    let intervals: Vec<i64> =
        scales.iter().flatten().map(|s| s.k).chain(gemm.promote).filter(|n| *n > 0).collect();
    let unit = intervals.iter().copied().min();
    if let Some(unit) = unit
        && let Some(odd) = intervals.iter().find(|n| *n % unit != 0)
    {
        return Err(format!("sums of {unit} terms do not fit groups or intervals of {odd} terms"));
    }
    let shape = Shape { scales, unit, ..shape(&codes, dims)? };
    let scales: Vec<&Scales> = all.into_iter().flatten().collect();
    Ok(planned(&codes, shape, &scales, label))
}

fn planned(gemm: &Gemm, shape: Shape, scales: &[&Scales], label: &str) -> Planned {
    let rows = shape.rows;
    let across = gemm.n.clone().ceil_div(WARP.into());
    let down = gemm.m.clone().ceil_div(rows);
    let warps = match &gemm.form {
        // Each segment may have one block more than its share of rows.
        Form::Rows { groups } => (down + groups.clone()) * across,
        form => groups(form) * down * across,
    };
    let name = name(&shape);
    let emitted = name.clone();
    let source = KernelSource::new(name, label, move |cg| emit(cg, &emitted, &shape));
    Planned {
        kernel: source.with_threads(WARPS * WARP),
        scratch_bytes: 0,
        scalars: scalars(gemm, scales).into_iter().map(Scalar::Dim).collect(),
        grid: warps.ceil_div(WARPS.into()),
        flops: flops(gemm),
        bytes: bytes(gemm),
    }
}

fn shape(gemm: &Gemm, dims: &[DimDecl]) -> Result<Shape, String> {
    let rows_max = gemm.m.range(dims).map_or(ROWS, |(_, max)| max);
    Ok(Shape {
        a: element(&gemm.a)?,
        b: element(&gemm.b)?,
        c: element(&gemm.c)?,
        grouping: match gemm.form {
            Form::Dense | Form::Batch { .. } => Grouping::Batch,
            Form::Rows { .. } => Grouping::Rows,
            Form::Inner { .. } => Grouping::Inner,
        },
        accumulate: gemm.accumulate,
        rows: rows_max.clamp(1, ROWS),
        scales: [None, None],
        unit: None,
    })
}

fn element(matrix: &Matrix) -> Result<ty::DType, String> {
    match matrix.dtype {
        DType::F32 => Ok(ty::DType::F32),
        DType::Bf16 => Ok(ty::DType::Bf16),
        DType::E4m3 => Ok(ty::DType::E4m3),
        DType::E5m2 => Ok(ty::DType::E5m2),
        other => Err(format!("no kernel multiplies matrices of {other}")),
    }
}

fn grouped(s: &Scales, k_dim: usize) -> Result<Grouped, String> {
    let dtype = match s.dtype {
        DType::F32 => ty::DType::F32,
        DType::Ue8m0 => ty::DType::Ue8m0,
        other => return Err(format!("scales are f32 or ue8m0, not {other}")),
    };
    let (free, k) = (s.group[1 - k_dim], s.group[k_dim]);
    if free < 1 || k < 1 {
        return Err(format!("a group has at least one row and column, found {free} x {k}"));
    }
    Ok(Grouped { dtype, free, k })
}

/// `sm90_simt_f32_f32_f32_gemm_rows_4_add`.
fn name(shape: &Shape) -> String {
    let dtypes = [shape.a, shape.b, shape.c].map(|d| d.name());
    let mut parts = vec![dtypes.join("_"), "gemm".into()];
    match shape.grouping {
        Grouping::Batch => {}
        Grouping::Rows => parts.push("rows".into()),
        Grouping::Inner => parts.push("inner".into()),
    }
    parts.push(shape.rows.to_string());
    for (letter, scales) in ["a", "b"].into_iter().zip(shape.scales) {
        if let Some(s) = scales {
            parts.push(format!("{letter}{}x{}_{}", s.free, s.k, s.dtype.name()));
        }
    }
    parts.extend(shape.unit.map(|n| format!("u{n}")));
    if shape.accumulate {
        parts.push("add".into());
    }
    named(&parts.join("_"))
}

fn scalars(gemm: &Gemm, scales: &[&Scales]) -> Vec<DimExpr> {
    let (a, b, c) = (&gemm.a, &gemm.b, &gemm.c);
    let mut all = vec![gemm.m.clone(), gemm.n.clone(), gemm.k.clone(), groups(&gemm.form)];
    for x in [a, b, c] {
        all.extend([x.row_stride.clone(), x.col_stride.clone(), x.group_stride.clone()]);
    }
    for s in scales {
        all.extend([s.row_stride.clone(), s.col_stride.clone(), s.group_stride.clone()]);
    }
    all
}

const N_SCALARS: usize = 13;

/// An operand at work: where its matrix starts and how it lies.
#[derive(Clone, Copy)]
struct Lies<'c> {
    ptr: Val<'c>,
    row: Val<'c>,
    col: Val<'c>,
    group: Val<'c>,
}

/// One product of the batch or of the groups.
struct Part<'c> {
    /// Sizes of the part.
    m: Val<'c>,
    k: Val<'c>,
    /// Row of the whole A, and term of the whole k, that are the part's first.
    row: Val<'c>,
    term: Val<'c>,
    a: Lies<'c>,
    b: Lies<'c>,
    c: Lies<'c>,
    /// The part's number, by which scales of whole operands move.
    index: Val<'c>,
}

struct Work<'s, 'c> {
    cg: &'s Cg<'c>,
    shape: &'s Shape,
    k: &'s Kernel<'c>,
    lane: Val<'c>,
}

fn emit(cg: &Cg, name: &str, shape: &Shape) {
    let n_scales = shape.scales.iter().flatten().count();
    let n_buffers = 3 + n_scales + usize::from(shape.grouping != Grouping::Batch);
    warp_kernel(cg, name, n_buffers, N_SCALARS + 3 * n_scales, |k, warp| {
        Work { cg, shape, k, lane: warp.lane }.run(warp);
    });
}

impl<'c> Work<'_, 'c> {
    fn run(&self, warp: &Warp<'c>) {
        let (cg, s) = (self.cg, &self.k.scalars);
        let [m, n, groups] = [s[0], s[1], s[3]];
        let across = cg.div_ceil(n, i64::from(WARP));
        let col = cg.mul(cg.rem(warp.index, across), i64::from(WARP));
        let slot = cg.div(warp.index, across);
        let (group, block) = match self.shape.grouping {
            Grouping::Rows => self.segment(slot),
            Grouping::Batch | Grouping::Inner => {
                let down = cg.max(cg.div_ceil(m, self.shape.rows), 1);
                (cg.div(slot, down), cg.rem(slot, down))
            }
        };
        cg.when(cg.cmp(Cmp::Lt, group, groups), || {
            let part = self.part(group);
            let row = cg.mul(block, self.shape.rows);
            cg.when(cg.cmp(Cmp::Lt, row, part.m), || self.tile(&part, row, col));
        });
    }

    fn offset(&self, i: Val<'c>) -> Val<'c> {
        let offsets = *self.k.buffers.last().expect("a grouped product has offsets");
        self.cg.cast(self.cg.load(Ty::I32, self.cg.at(offsets, Elem::I32, i)), Elem::I64)
    }

    /// The segment that block of rows `slot` is of, counted over all segments, and its place there.
    /// The number of segments where there is none.
    fn segment(&self, slot: Val<'c>) -> (Val<'c>, Val<'c>) {
        let (cg, groups) = (self.cg, self.k.scalars[3]);
        let start = [cg.i64(0), groups, cg.i64(0)];
        let end = cg.for_(cg.i64(0), groups, 1, &start, |e, carried| {
            let rows = cg.sub(self.offset(cg.add(e, 1)), self.offset(e));
            let after = cg.add(carried[0], cg.div_ceil(rows, self.shape.rows));
            let is_here = cg.and(cg.cmp(Cmp::Ge, slot, carried[0]), cg.cmp(Cmp::Lt, slot, after));
            let block = cg.sub(slot, carried[0]);
            vec![after, cg.select(is_here, e, carried[1]), cg.select(is_here, block, carried[2])]
        });
        (end[1], end[2])
    }

    fn part(&self, group: Val<'c>) -> Part<'c> {
        let (cg, s) = (self.cg, &self.k.scalars);
        let lies = |i: usize| {
            let at = 4 + 3 * i;
            Lies { ptr: self.k.buffers[i], row: s[at], col: s[at + 1], group: s[at + 2] }
        };
        let [a, b, c] = [lies(0), lies(1), lies(2)];
        let moved = |x: Lies<'c>, dtype: ty::DType, by: Val<'c>| Lies {
            ptr: cg.at(x.ptr, scalar::memory(dtype), by),
            ..x
        };
        let of_group = |x: Lies<'c>, dtype| moved(x, dtype, cg.mul(group, x.group));
        let (zero, shape) = (cg.i64(0), self.shape);
        match shape.grouping {
            Grouping::Batch => Part {
                m: s[0],
                k: s[2],
                row: zero,
                term: zero,
                a: of_group(a, shape.a),
                b: of_group(b, shape.b),
                c: of_group(c, shape.c),
                index: group,
            },
            Grouping::Rows => {
                let row = self.offset(group);
                Part {
                    m: cg.sub(self.offset(cg.add(group, 1)), row),
                    k: s[2],
                    row,
                    term: zero,
                    a: moved(a, shape.a, cg.mul(row, a.row)),
                    b: of_group(b, shape.b),
                    c: moved(c, shape.c, cg.mul(row, c.row)),
                    index: group,
                }
            }
            Grouping::Inner => {
                let term = self.offset(group);
                Part {
                    m: s[0],
                    k: cg.sub(self.offset(cg.add(group, 1)), term),
                    row: zero,
                    term,
                    a: moved(a, shape.a, cg.mul(term, a.col)),
                    b: moved(b, shape.b, cg.mul(term, b.row)),
                    c: of_group(c, shape.c),
                    index: group,
                }
            }
        }
    }

    fn load(&self, x: Lies<'c>, dtype: ty::DType, at: Val<'c>) -> Val<'c> {
        let elem = scalar::memory(dtype);
        let v = self.cg.load(elem.x(1), self.cg.at(x.ptr, elem, at));
        scalar::widen(self.cg, v, dtype)
    }

    /// Rows from `row` on, of the columns from `col` on. What lies beyond the edge is computed from
    /// the edge and not stored.
    fn tile(&self, part: &Part<'c>, row: Val<'c>, col: Val<'c>) {
        let (cg, shape) = (self.cg, self.shape);
        let n = self.k.scalars[1];
        let own = cg.add(col, self.lane);
        let near = cg.min(own, cg.sub(n, 1));
        let row_of = |r: i64| cg.min(cg.add(row, r), cg.sub(part.m, 1));
        let rows: Vec<Val> = (0..shape.rows).map(row_of).collect();
        let a_at: Vec<Val> = rows.iter().map(|r| cg.mul(*r, part.a.row)).collect();
        let b_at = cg.mul(near, part.b.col);
        let zeros = vec![cg.f32(0.0); rows.len()];
        let chain = |from: Val<'c>, to: Val<'c>| {
            cg.for_(from, to, 1, &zeros, |k, sums| {
                let b = cg.add(b_at, cg.mul(k, part.b.row));
                let b = self.load(part.b, shape.b, b);
                let along = cg.mul(k, part.a.col);
                let terms = a_at.iter().zip(sums).map(|(at, sum)| {
                    let a = self.load(part.a, shape.a, cg.add(*at, along));
                    cg.fma(a, b, *sum)
                });
                terms.collect()
            })
        };
        let sums = match shape.unit {
            None => chain(cg.i64(0), part.k),
            Some(unit) => self.scaled(part, &rows, near, unit, &zeros, &chain),
        };
        cg.when(cg.cmp(Cmp::Lt, own, n), || {
            for (r, sum) in sums.iter().enumerate() {
                let at = cg.add(row, r as i64);
                cg.when(cg.cmp(Cmp::Lt, at, part.m), || self.store(part, at, own, *sum));
            }
        });
    }

    fn store(&self, part: &Part<'c>, row: Val<'c>, col: Val<'c>, sum: Val<'c>) {
        let (cg, c) = (self.cg, part.c);
        let elem = scalar::memory(self.shape.c);
        let at = cg.add(cg.mul(row, c.row), cg.mul(col, c.col));
        let sum = match self.shape.accumulate {
            true => cg.add(self.load(c, self.shape.c, at), sum),
            false => sum,
        };
        cg.store(scalar::narrow(cg, sum, self.shape.c), cg.at(c.ptr, elem, at));
    }

    /// Chains of up to `unit` terms, cut where groups end, each added with its scales.
    fn scaled(
        &self,
        part: &Part<'c>,
        rows: &[Val<'c>],
        col: Val<'c>,
        unit: i64,
        zeros: &[Val<'c>],
        chain: &dyn Fn(Val<'c>, Val<'c>) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let cg = self.cg;
        let mut start = vec![cg.i64(0)];
        start.extend(zeros);
        let some_left = |carried: &[Val<'c>]| cg.cmp(Cmp::Lt, carried[0], part.k);
        let end = cg.while_(&start, some_left, |carried| {
            let first = carried[0];
            let place = cg.add(part.term, first);
            let to_cut = cg.sub(cg.i64(unit), cg.rem(place, unit));
            let end = cg.min(cg.add(first, to_cut), part.k);
            let partial = chain(first, end);
            let of_b = self.scale(1, part, col, place);
            let mut next = vec![end];
            for ((row, partial), sum) in rows.iter().zip(partial).zip(&carried[1..]) {
                let of_a = self.scale(0, part, cg.add(part.row, *row), place);
                let scale = match (of_a, of_b) {
                    (Some(a), Some(b)) => cg.mul(a, b),
                    (a, b) => a.or(b).unwrap_or_else(|| cg.f32(1.0)),
                };
                next.push(cg.fma(partial, scale, *sum));
            }
            next
        });
        end[1..].to_vec()
    }

    /// The scale of an operand at a row of A or column of B and a term of k.
    fn scale(
        &self,
        operand: usize,
        part: &Part<'c>,
        free: Val<'c>,
        term: Val<'c>,
    ) -> Option<Val<'c>> {
        let cg = self.cg;
        let grouped = self.shape.scales[operand]?;
        let before = self.shape.scales[..operand].iter().flatten().count();
        let strides = &self.k.scalars[N_SCALARS + 3 * before..];
        let k_dim = 1 - operand;
        let (free_stride, k_stride) = (strides[1 - k_dim], strides[k_dim]);
        // Scales of an operand that the form segments are those of the whole array.
        let whole = match self.shape.grouping {
            Grouping::Batch => false,
            Grouping::Rows => operand == 0,
            Grouping::Inner => true,
        };
        let start = if whole { cg.i64(0) } else { cg.mul(part.index, strides[2]) };
        let along = cg.add(
            cg.mul(cg.div(free, grouped.free), free_stride),
            cg.mul(cg.div(term, grouped.k), k_stride),
        );
        let elem = scalar::memory(grouped.dtype);
        let at = cg.at(self.k.buffers[3 + before], elem, cg.add(start, along));
        Some(scalar::widen(cg, cg.load(elem.x(1), at), grouped.dtype))
    }
}
