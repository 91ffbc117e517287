//! Fold per-head up-projections of a cached value through attention (design: "latent attention
//! falls out").
//!
//! ```text
//! %kv = matmul %c, %W {ty = true}           # [B, T, R] -> [B, T, H, n + v]
//! %k, %v = slices of %kv                    #  q' = q W_k   per head, [B, S, H, R]
//! %o = attention %q, %r, %k, %s, %v    =>   #  %o' = attention %q', %r, %c, %s, %c   (one head of width R)
//!                                           #  o  = o' W_vᵀ per head, [B, S, H, v]
//! ```
//!
//! Why: q·(W c) = (qᵀ W)·c and Σ p (W c) = W Σ p c, so a decode step reads the cache as kept,
//! and never expands T positions for H heads. Where many queries share the expansion (prefill), it
//! is cheaper to expand: the flops of both forms decide. Applies only to linear maps of one cached
//! value: a norm, a rotation or a bias in between stops it, and so keys and values of grouped-query
//! attention, which are cached after their projection, are left alone. Cost: one scan. Requires:
//! `canonicalize`, for one spelling of a projection.

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, product};
use weft_ir::module::{Func, Module, OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::rules::TypeError;

use crate::rewrite::rebuild;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "absorb", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut absorbed = 0;
    for i in 0..module.funcs.len() {
        let size = |d: Dim| module.dim_max(d) as f64;
        let func = rebuild(&module.funcs[i], |b, op| {
            if op.op != Op::Attention {
                return Ok(None);
            }
            let Some(plan) = plan(&b.func, op, &size) else { return Ok(None) };
            absorbed += 1;
            Ok(Some(rewrite(b, op, &plan)?))
        })?;
        module.funcs[i] = func;
    }
    Ok(Stats::one("absorbed", absorbed))
}

/// A per-head linear map of a cached value: head h of the result is rows `start..start + len` of
/// block h of the weight.
#[derive(Clone, Copy, PartialEq)]
struct HeadMap {
    /// `[B, T, R]`.
    source: ValueId,
    weight: ValueId,
    /// The weight is `[heads * width, rank]`; else it is transposed.
    by_rows: bool,
    heads: u64,
    width: u64,
    start: u64,
    len: u64,
    rank: Dim,
}

struct Plan {
    /// For each score part, the map its k is.
    parts: Vec<Option<HeadMap>>,
    value: HeadMap,
}

fn def(f: &Func, v: ValueId) -> Option<&OpData> {
    f.def_op(v).map(|id| f.op(id))
}

fn through_reshapes(f: &Func, mut v: ValueId) -> ValueId {
    while let Some(op) = def(f, v).filter(|op| op.op == Op::Reshape) {
        v = op.operands[0];
    }
    v
}

/// `v`, `[B, T, H, len]`, as a map of a cached value.
fn head_map(f: &Func, v: ValueId) -> Option<HeadMap> {
    let (whole, start) = match def(f, v) {
        Some(op) if op.op == Op::Slice && op.attrs.get_int("dim") == Some(3) => {
            (op.operands[0], op.attrs.get_int("start")? as u64)
        }
        _ => (v, 0),
    };
    let [b, t, heads, width] = f.ty(whole).dims[..] else { return None };
    let product_op = def(f, through_reshapes(f, whole)).filter(|op| op.op == Op::Matmul)?;
    let (x, weight) = (product_op.operands[0], product_op.operands[1]);
    let (heads, width) = (heads.as_fixed()?, width.as_fixed()?);
    let weight_dims = &f.ty(weight).dims;
    if product_op.attrs.get_flag("tx") || weight_dims.len() != 2 {
        return None;
    }
    let by_rows = product_op.attrs.get_flag("ty");
    let (out, rank) =
        if by_rows { (weight_dims[0], weight_dims[1]) } else { (weight_dims[1], weight_dims[0]) };
    let source = through_reshapes(f, x);
    let cached = def(f, source).is_some_and(|op| op.op == Op::CacheAppend);
    let fits = out == Dim::fixed(heads * width) && f.ty(source).dims == [b, t, rank];
    let len = f.ty(v).last()?.as_fixed()?;
    (cached && fits).then_some(HeadMap { source, weight, by_rows, heads, width, start, len, rank })
}

/// What to fold, if it can be and saves flops.
fn plan(f: &Func, op: &OpData, size: &dyn Fn(Dim) -> f64) -> Option<Plan> {
    let n = op.attrs.get_int("parts")? as usize;
    let [b, s, heads, _] = f.ty(op.operands[0]).dims[..] else { return None };
    let value = head_map(f, op.operands[2 * n]).filter(|m| Dim::fixed(m.heads) == heads)?;
    let parts: Vec<Option<HeadMap>> = op.operands[n..2 * n]
        .iter()
        .map(|k| head_map(f, *k).filter(|m| m.source == value.source && m.heads == value.heads))
        .collect();
    if parts.iter().all(Option::is_none) {
        return None;
    }
    let t = f.ty(value.source).dims[1];
    let (b, s, t, r) = (size(b), size(s), size(t), size(value.rank));
    let h = value.heads as f64;
    let widths: Vec<f64> = parts.iter().flatten().chain([&value]).map(|m| m.len as f64).collect();
    let width: f64 = widths.iter().sum();
    let expand = b * t * r * h * width + b * s * t * h * width;
    let fold = b * s * r * h * width + b * s * t * h * r * widths.len() as f64;
    (fold < expand).then_some(Plan { parts, value })
}

/// `[heads, len, rank]`: the map's rows of the weight, by head.
fn head_weight(b: &mut Builder, m: &HeadMap) -> Result<ValueId, TypeError> {
    let rows = match m.by_rows {
        true => m.weight,
        false => b.emit(Op::Transpose, &[m.weight], Attrs::new().ints("perm", [1, 0]))?,
    };
    let blocks = b.reshape(rows, &[Dim::fixed(m.heads), Dim::fixed(m.width), m.rank])?;
    if m.len == m.width {
        return Ok(blocks);
    }
    let attrs = Attrs::new().int("dim", 1).int("start", m.start as i64).int("len", m.len as i64);
    b.emit(Op::Slice, &[blocks], attrs)
}

/// Head h of `x[B, S, H, D]` times matrix h of `w[H, D, E]` (or its transpose): `[B, S, H, E]`.
fn per_head(b: &mut Builder, x: ValueId, w: ValueId, ty: bool) -> Result<ValueId, TypeError> {
    let [batch, s, h, d] = b.dims(x)[..] else {
        return Err(TypeError("absorb: a query is [B, S, H, D]".into()));
    };
    let rows = product(&[batch, s]).ok_or_else(|| TypeError("absorb: too many rows".into()))?;
    let by_head = b.emit(Op::Transpose, &[x], Attrs::new().ints("perm", [2, 0, 1, 3]))?;
    let flat = b.reshape(by_head, &[h, rows, d])?;
    let mut attrs = Attrs::new();
    if ty {
        attrs = attrs.flag("ty", true);
    }
    let y = b.emit(Op::Matmul, &[flat, w], attrs)?;
    let e = b.dims(y)[2];
    let y = b.reshape(y, &[h, batch, s, e])?;
    b.emit(Op::Transpose, &[y], Attrs::new().ints("perm", [1, 2, 0, 3]))
}

fn rewrite(b: &mut Builder, op: &OpData, plan: &Plan) -> Result<Vec<ValueId>, TypeError> {
    let n = plan.parts.len();
    let [batch, t, rank] = b.dims(plan.value.source)[..] else {
        return Err(TypeError("absorb: a cached value is [B, T, R]".into()));
    };
    let shared = b.reshape(plan.value.source, &[batch, t, Dim::fixed(1), rank])?;
    let mut operands = op.operands.clone();
    for (i, map) in plan.parts.iter().enumerate() {
        if let Some(map) = map {
            let weight = head_weight(b, map)?;
            operands[i] = per_head(b, op.operands[i], weight, false)?;
            operands[n + i] = shared;
        }
    }
    operands[2 * n] = shared;
    let made = b.emit_all(Op::Attention, &operands, op.attrs.clone())?;
    let weight = head_weight(b, &plan.value)?;
    let o = per_head(b, made[0], weight, true)?;
    Ok(vec![o, made[1]])
}
