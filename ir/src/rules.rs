//! Type rules: from the types of an op's operands and its attributes to the types of its results,
//! or one sentence saying which rule is broken. The rows of the op table name them.

mod caches;
mod codes;
mod ranks;

pub use caches::cache_append;
pub use codes::{dequantize, encode, quantize, recode};
pub use ranks::{
    all_gather, all_reduce, done, exchange, exchange_offsets, part, recv, reduce_scatter, send,
    spread, started,
};

use crate::attr::Attrs;
use crate::dim::{Dim, product};
use crate::module::{Func, Module};
use crate::op::Op;
use crate::ty::{DType, Type};
use caches::paged_positions;

/// Why an op cannot be typed, in a sentence without the op's place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

pub type Types = Result<Vec<Type>, TypeError>;
pub type Rule = fn(&RuleCx) -> Types;

/// What a rule sees. The counts of operands and the kinds of attributes have been checked against
/// the row.
pub struct RuleCx<'a> {
    pub op: Op,
    pub operands: &'a [&'a Type],
    pub attrs: &'a Attrs,
    /// The function that `call`, `repeat` and `fused` name.
    pub callee: Option<&'a Func>,
    /// Whose mesh axes the attributes name.
    pub module: Option<&'a Module>,
}

impl RuleCx<'_> {
    fn err<T>(&self, why: impl Into<String>) -> Result<T, TypeError> {
        Err(TypeError(format!("{}: {}", self.op.name(), why.into())))
    }

    fn check(&self, ok: bool, why: &str) -> Result<(), TypeError> {
        if ok { Ok(()) } else { self.err(why) }
    }

    /// That a type is of something that can be read now.
    fn there(&self, ty: &Type) -> Result<(), TypeError> {
        self.check(!ty.state, "an operand is a state; `read` it first")?;
        self.check(!ty.flight, "an operand is in flight; its `done` gives it")
    }

    /// Operand `i` as an ordinary value.
    fn value(&self, i: usize) -> Result<&Type, TypeError> {
        let ty = self.operands[i];
        self.there(ty)?;
        self.check(ty.quant.is_none(), "an operand is quantized; `dequantize` it first")?;
        Ok(ty)
    }

    /// A float, perhaps quantized.
    fn factor(&self, i: usize) -> Result<&Type, TypeError> {
        let ty = self.operands[i];
        self.there(ty)?;
        self.check(ty.dtype.is_float(), "needs a floating-point operand")?;
        Ok(ty)
    }

    /// A float, perhaps quantized, whose rows can go different ways.
    fn rows_apart(&self, i: usize) -> Result<&Type, TypeError> {
        let ty = self.factor(i)?;
        let own = ty.quant.as_ref().is_none_or(|q| q.group[0] == 1);
        self.check(own, "rows that share scales cannot be sent apart")?;
        Ok(ty)
    }

    fn float(&self, i: usize) -> Result<&Type, TypeError> {
        let ty = self.value(i)?;
        self.check(ty.dtype.is_float(), "needs a floating-point operand")?;
        Ok(ty)
    }

    fn ids(&self, i: usize) -> Result<&Type, TypeError> {
        let ty = self.value(i)?;
        self.check(ty.dtype == DType::I32, "indices are i32")?;
        Ok(ty)
    }

    fn last(&self, ty: &Type) -> Result<Dim, TypeError> {
        ty.last().ok_or_else(|| TypeError(format!("{}: needs at least one dim", self.op.name())))
    }

    fn last_fixed(&self, ty: &Type) -> Result<u64, TypeError> {
        match self.last(ty)?.as_fixed() {
            Some(n) => Ok(n),
            None => self.err("the last dim must have a fixed size"),
        }
    }

    fn int(&self, name: &str) -> i64 {
        self.attrs.get_int(name).unwrap_or(0)
    }

    /// The attribute `dim`, an index into the dims of `ty`.
    fn dim_attr(&self, ty: &Type) -> Result<usize, TypeError> {
        let d = self.int("dim");
        self.check(d >= 0 && (d as usize) < ty.rank(), "`dim` is outside the operand's dims")?;
        Ok(d as usize)
    }

    fn positive(&self, name: &str) -> Result<u64, TypeError> {
        match self.attrs.get_int(name) {
            Some(n) if n > 0 => Ok(n as u64),
            _ => self.err(format!("`{name}` must be positive")),
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.attrs.get_flag(name)
    }
}

fn one(ty: Type) -> Types {
    Ok(vec![ty])
}

pub fn constant(cx: &RuleCx) -> Types {
    let ty = cx.attrs.get_type("type").expect("required by the row");
    cx.check(!ty.state && ty.quant.is_none(), "a constant is a plain value")?;
    one(ty.clone())
}

pub fn iota(cx: &RuleCx) -> Types {
    let ty = cx.attrs.get_type("type").expect("required by the row");
    cx.dim_attr(ty)?;
    cx.check(!ty.state && ty.dtype != DType::Bool, "an iota counts in numbers")?;
    one(ty.clone())
}

pub fn extent(_: &RuleCx) -> Types {
    one(Type::scalar(DType::F32))
}

/// All operands have one type, which is the result's.
pub fn same(cx: &RuleCx) -> Types {
    let first = cx.value(0)?;
    for i in 1..cx.operands.len() {
        let ty = cx.value(i)?;
        cx.check(ty.dtype == first.dtype, "operands have different element types")?;
        cx.check(ty.dims == first.dims, "operands have different dims")?;
    }
    cx.check(first.dtype != DType::Bool || cx.op == Op::StopGradient, "needs numbers")?;
    one(first.clone())
}

/// `same`, for floating-point operands.
pub fn float(cx: &RuleCx) -> Types {
    cx.float(0)?;
    same(cx)
}

pub fn compare(cx: &RuleCx) -> Types {
    Ok(vec![same(cx)?.remove(0).with_dtype(DType::Bool)])
}

pub fn logic(cx: &RuleCx) -> Types {
    let first = cx.value(0)?;
    for i in 0..cx.operands.len() {
        let ty = cx.value(i)?;
        cx.check(ty.dtype == DType::Bool, "operands are bools")?;
        cx.check(ty.dims == first.dims, "operands have different dims")?;
    }
    one(first.clone())
}

pub fn select(cx: &RuleCx) -> Types {
    let (c, a, b) = (cx.value(0)?, cx.value(1)?, cx.value(2)?);
    cx.check(c.dtype == DType::Bool, "the condition is a bool")?;
    cx.check(a.dtype == b.dtype, "the branches have different element types")?;
    cx.check(c.dims == a.dims && a.dims == b.dims, "operands have different dims")?;
    one(a.clone())
}

pub fn convert(cx: &RuleCx) -> Types {
    one(cx.value(0)?.with_dtype(cx.attrs.get_dtype("dtype").expect("required by the row")))
}

pub fn reshape(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let shape = cx.attrs.get_dims("shape").expect("required by the row");
    cx.check(product(shape) == x.elements(), "the dims' products differ")?;
    one(x.with_dims(shape))
}

pub fn transpose(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let perm = cx.attrs.get_ints("perm").expect("required by the row");
    let mut seen: Vec<i64> = perm.to_vec();
    seen.sort();
    let all: Vec<i64> = (0..x.rank() as i64).collect();
    cx.check(seen == all, "`perm` is not a permutation of the dims")?;
    let dims: Vec<Dim> = perm.iter().map(|p| x.dims[*p as usize]).collect();
    one(x.with_dims(dims))
}

pub fn broadcast(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let shape = cx.attrs.get_dims("shape").expect("required by the row");
    let map = cx.attrs.get_ints("dims").expect("required by the row");
    cx.check(map.len() == x.rank(), "`dims` needs one entry for each dim of the operand")?;
    cx.check(map.windows(2).all(|w| w[0] < w[1]), "`dims` must ascend")?;
    for (from, to) in x.dims.iter().zip(map) {
        let target = usize::try_from(*to).ok().and_then(|t| shape.get(t));
        let fits = target.is_some_and(|t| t == from || from.is_one());
        cx.check(fits, "a dim neither equals the one it becomes nor is 1")?;
    }
    one(x.with_dims(shape))
}

pub fn slice(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let d = cx.dim_attr(x)?;
    let (start, len) = (cx.int("start"), cx.int("len"));
    let Some(size) = x.dims[d].as_fixed() else {
        return cx.err("the sliced dim must have a fixed size");
    };
    let inside = start >= 0 && len > 0 && start.checked_add(len).is_some_and(|e| e as u64 <= size);
    cx.check(inside, "the slice lies outside the dim")?;
    let mut dims = x.dims.clone();
    dims[d] = Dim::fixed(len as u64);
    one(x.with_dims(dims))
}

pub fn pad(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let d = cx.dim_attr(x)?;
    let Some(size) = x.dims[d].as_fixed() else {
        return cx.err("the padded dim must have a fixed size");
    };
    let (low, high) = (cx.int("low"), cx.int("high"));
    cx.check(low >= 0 && high >= 0, "padding is not negative")?;
    let mut dims = x.dims.clone();
    dims[d] = Dim::fixed(size.saturating_add(low as u64).saturating_add(high as u64));
    one(x.with_dims(dims))
}

pub fn concat(cx: &RuleCx) -> Types {
    let first = cx.value(0)?;
    let d = cx.dim_attr(first)?;
    let mut total = Dim::fixed(0);
    for i in 0..cx.operands.len() {
        let ty = cx.value(i)?;
        let mut like = ty.dims.clone();
        cx.check(like.len() == first.rank() && ty.dtype == first.dtype, "operands differ in kind")?;
        let Some(sum) = total.checked_add(like[d]) else {
            return cx.err("the dims' sum is not a dim");
        };
        total = sum;
        like[d] = first.dims[d];
        cx.check(like == first.dims, "operands differ in another dim")?;
    }
    let mut dims = first.dims.clone();
    dims[d] = total;
    one(first.with_dims(dims))
}

pub fn shift(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    cx.dim_attr(x)?;
    one(x.as_value())
}

pub fn reduce(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    cx.check(x.dtype != DType::Bool, "needs numbers")?;
    let dims = cx.attrs.get_ints("dims").expect("required by the row");
    cx.check(dims.windows(2).all(|w| w[0] < w[1]), "`dims` must ascend")?;
    let inside = dims.iter().all(|d| *d >= 0 && (*d as usize) < x.rank());
    cx.check(inside, "`dims` lies outside the operand's dims")?;
    let kept = (0..x.rank()).filter(|i| !dims.contains(&(*i as i64)));
    let kept: Vec<Dim> = kept.map(|i| x.dims[i]).collect();
    one(x.with_dims(kept))
}

/// The two last dims, swapped if `swap`.
fn matrix(cx: &RuleCx, ty: &Type, swap: bool) -> Result<(Dim, Dim), TypeError> {
    match ty.dims[..] {
        [.., m, n] if swap => Ok((n, m)),
        [.., m, n] => Ok((m, n)),
        _ => cx.err("needs at least two dims"),
    }
}

pub fn matmul(cx: &RuleCx) -> Types {
    let (x, y) = factors(cx, 2)?;
    let (m, k) = matrix(cx, x, cx.flag("tx"))?;
    let (k2, n) = matrix(cx, y, cx.flag("ty"))?;
    cx.check(k == k2, "the contracted dims differ")?;
    let batch = &x.dims[..x.rank() - 2];
    cx.check(y.rank() == 2 || &y.dims[..y.rank() - 2] == batch, "the batch dims differ")?;
    let mut dims = batch.to_vec();
    dims.extend([m, n]);
    one(sum(cx, x)?.with_dims(dims))
}

/// The two factors of a contraction with `n` operands before any scales: both plain, both
/// quantized, or both codes with scales behind all other operands.
fn factors<'a>(cx: &'a RuleCx, n: usize) -> Result<(&'a Type, &'a Type), TypeError> {
    let (x, y) = (cx.factor(0)?, cx.factor(1)?);
    let split = cx.operands.len() == n + 2;
    cx.check(split || cx.operands.len() == n, "scales of both operands stand last, or none")?;
    let quantized = x.quant.is_some();
    cx.check(y.quant.is_some() == quantized, "one operand is quantized and the other is not")?;
    if quantized || split {
        cx.check(!(quantized && split), "a quantized operand has its scales in it")?;
        // Codes of 12 bits are multiplied as the bf16 that hold them.
        let wide = if split { DType::Bf16 } else { DType::E5m6 };
        let codes = |ty: &Type| matches!(ty.dtype, DType::E4m3 | DType::E5m2) || ty.dtype == wide;
        let why = format!("codes that are multiplied are e4m3, e5m2 or {}", wide.name());
        cx.check(codes(x) && codes(y), &why)?;
        cx.check(cx.attrs.get_dtype("dtype").is_some(), "a product of codes needs `dtype`")?;
        if let Some(n) = cx.attrs.get_int("promote") {
            cx.check(n > 0, "`promote` must be positive")?;
        }
    } else {
        cx.check(x.dtype == y.dtype, "operands have different element types")?;
        let told =
            cx.attrs.get_int("promote").is_some() || cx.attrs.get_word("accumulate").is_some();
        cx.check(!told, "only sums of codes are promoted or accumulated otherwise")?;
    }
    for (i, name) in [(0, "x_group"), (1, "y_group")] {
        let group = cx.attrs.get_ints(name);
        cx.check(group.is_some() == split, "scales of their own need `x_group` and `y_group`")?;
        if let Some(group) = group {
            scales_fit(cx, &cx.operands[i].dims, group, n + i)?;
        }
    }
    Ok((x, y))
}

/// Whether operand `i` holds a scale for each group of a value of `dims`.
fn scales_fit(cx: &RuleCx, dims: &[Dim], group: &[i64], i: usize) -> Result<(), TypeError> {
    let scales = cx.value(i)?;
    let kind = matches!(scales.dtype, DType::F32 | DType::Ue8m0);
    cx.check(kind, "scales are f32 or ue8m0")?;
    let sides = group.len() == 2 && group.iter().all(|g| *g > 0);
    cx.check(sides && dims.len() >= 2, "a group has rows and columns")?;
    let grid = grid(dims, [group[0] as u64, group[1] as u64]);
    cx.check(grid.as_deref() == Some(&scales.dims[..]), "there is a scale for each group")
}

/// How many groups there are along each dim; `None` if a dim that is cut has no fixed size.
pub fn grid(dims: &[Dim], group: [u64; 2]) -> Option<Vec<Dim>> {
    let lead = dims.len().checked_sub(2)?;
    let mut all = dims[..lead].to_vec();
    for (dim, side) in dims[lead..].iter().zip(group) {
        all.push(match side {
            1 => *dim,
            _ => Dim::fixed(dim.as_fixed()?.div_ceil(side)),
        });
    }
    Some(all)
}

/// The type of a contraction's sums: the attribute `dtype`, else the operands'.
fn sum(cx: &RuleCx, x: &Type) -> Result<Type, TypeError> {
    let dtype = cx.attrs.get_dtype("dtype").unwrap_or(x.dtype);
    let wide = dtype == x.dtype || matches!(dtype, DType::F32 | DType::Bf16);
    cx.check(wide, "sums are f32 or bf16, or of the operands' type")?;
    Ok(x.with_dtype(dtype))
}

/// Checks `offsets: i32[segments + 1]`; returns the segments.
fn segments(cx: &RuleCx, i: usize) -> Result<u64, TypeError> {
    match cx.ids(i)?.dims[..] {
        [n] if n.as_fixed().is_some_and(|n| n >= 2) => Ok(n.coeff() - 1),
        _ => cx.err("`offsets` is i32[segments + 1]"),
    }
}

pub fn grouped_matmul(cx: &RuleCx) -> Types {
    let (x, w) = factors(cx, 3)?;
    let e = segments(cx, 2)?;
    cx.check(x.rank() == 2 && w.rank() == 3, "x is [rows, k] and w is [segments, k, n]")?;
    cx.check(w.dims[0] == Dim::fixed(e), "w and offsets differ in the number of segments")?;
    let (k, n) = matrix(cx, w, cx.flag("ty"))?;
    cx.check(x.dims[1] == k, "the contracted dims differ")?;
    one(sum(cx, x)?.with_dims([x.dims[0], n]))
}

pub fn grouped_outer(cx: &RuleCx) -> Types {
    let (x, y) = factors(cx, 3)?;
    let e = segments(cx, 2)?;
    cx.check(x.rank() == 2 && y.rank() == 2, "x is [rows, m] and y is [rows, n]")?;
    cx.check(x.dims[0] == y.dims[0], "x and y differ in their rows")?;
    one(sum(cx, x)?.with_dims([Dim::fixed(e), x.dims[1], y.dims[1]]))
}

pub fn gather(cx: &RuleCx) -> Types {
    let (table, ids) = (cx.value(0)?, cx.ids(1)?);
    cx.check(table.rank() == 2, "the table is [rows, d]")?;
    let mut dims = ids.dims.clone();
    dims.push(table.dims[1]);
    one(table.with_dims(dims))
}

pub fn scatter_add(cx: &RuleCx) -> Types {
    let (x, ids) = (cx.float(0)?, cx.ids(1)?);
    let d = cx.last(x)?;
    cx.check(x.dims[..x.rank() - 1] == ids.dims, "x is the indices' dims and one more")?;
    one(x.with_dims([cx.attrs.get_dim("rows").expect("required by the row"), d]))
}

pub fn take(cx: &RuleCx) -> Types {
    let (x, ids) = (cx.value(0)?, cx.ids(1)?);
    cx.last(x)?;
    cx.last(ids)?;
    let lead = x.rank() == ids.rank() && x.dims[..x.rank() - 1] == ids.dims[..ids.rank() - 1];
    cx.check(lead, "the leading dims differ")?;
    one(x.with_dims(ids.dims.clone()))
}

pub fn put(cx: &RuleCx) -> Types {
    let (x, ids) = (cx.float(0)?, cx.ids(1)?);
    cx.last(x)?;
    cx.check(x.dims == ids.dims, "x and the indices have different dims")?;
    let mut dims = x.dims.clone();
    *dims.last_mut().expect("checked above") = Dim::fixed(cx.positive("size")?);
    one(x.with_dims(dims))
}

pub fn one_hot(cx: &RuleCx) -> Types {
    let mut dims = cx.ids(0)?.dims.clone();
    dims.push(Dim::fixed(cx.positive("size")?));
    one(Type::f32(dims))
}

/// `topk` and `grouped_topk`.
pub fn topk(cx: &RuleCx) -> Types {
    let x = cx.float(0)?;
    let (n, k) = (cx.last_fixed(x)?, cx.positive("k")?);
    let mut among = n;
    if cx.op == Op::GroupedTopk {
        let (groups, kept) = (cx.positive("groups")?, cx.positive("kept")?);
        cx.check(n.is_multiple_of(groups), "`groups` does not divide the last dim")?;
        cx.check(kept <= groups, "`kept` is more than `groups`")?;
        let pair = cx.attrs.get_word("group_score") == Some("top2");
        cx.check(!pair || groups == kept || n / groups >= 2, "top2 needs two in a group")?;
        among = n / groups * kept;
    }
    cx.check(k <= among, "`k` is more than there is to choose from")?;
    let mut dims = x.dims.clone();
    *dims.last_mut().expect("checked above") = Dim::fixed(k);
    one(x.with_dims(dims).with_dtype(DType::I32))
}

pub fn route(cx: &RuleCx) -> Types {
    let ids = cx.ids(0)?;
    cx.last_fixed(ids)?;
    let experts = cx.positive("experts")?;
    let rows = cx.attrs.get_dim("rows").expect("required by the row");
    Ok(vec![Type::i32([Dim::fixed(experts + 1)]), Type::i32([rows])])
}

/// Checks the optional weights `[.., active]` at operand `i` against the token dims.
fn slot_weights(cx: &RuleCx, i: usize, tokens: &[Dim], active: u64) -> Result<(), TypeError> {
    match cx.operands.len() - i {
        0 => Ok(()),
        1 => {
            let (lead, slots) = match &cx.float(i)?.dims[..] {
                [lead @ .., slots] => (lead, *slots),
                [] => return cx.err("weights are [tokens, active]"),
            };
            cx.check(lead == tokens && slots == Dim::fixed(active), "weights are [tokens, active]")
        }
        _ => cx.err("too many operands"),
    }
}

fn order_rows(cx: &RuleCx, i: usize) -> Result<Dim, TypeError> {
    match cx.ids(i)?.dims[..] {
        [r] => Ok(r),
        _ => cx.err("`order` is i32[rows]"),
    }
}

pub fn dispatch(cx: &RuleCx) -> Types {
    let x = cx.rows_apart(0)?;
    let plain = x.quant.is_none() || cx.operands.len() == 2;
    cx.check(plain, "codes take no weights; `dequantize` them first")?;
    let rows = order_rows(cx, 1)?;
    let d = cx.last(x)?;
    slot_weights(cx, 2, &x.dims[..x.rank() - 1], cx.positive("active")?)?;
    one(x.with_dims([rows, d]))
}

pub fn combine(cx: &RuleCx) -> Types {
    let rows = cx.float(0)?;
    cx.check(rows.rank() == 2, "rows are [rows, d]")?;
    cx.check(order_rows(cx, 1)? == rows.dims[0], "rows and order differ")?;
    let tokens = cx.attrs.get_dims("tokens").expect("required by the row");
    slot_weights(cx, 2, tokens, cx.positive("active")?)?;
    let mut dims = tokens.to_vec();
    dims.push(rows.dims[1]);
    one(rows.with_dims(dims))
}

pub fn combine_dot(cx: &RuleCx) -> Types {
    let (rows, dy) = (cx.float(0)?, cx.float(2)?);
    cx.check(rows.rank() == 2 && order_rows(cx, 1)? == rows.dims[0], "rows and order differ")?;
    cx.check(cx.last(dy)? == rows.dims[1], "rows and dy differ in their last dim")?;
    let mut dims = dy.dims.clone();
    *dims.last_mut().expect("checked above") = Dim::fixed(cx.positive("active")?);
    one(Type::f32(dims))
}

pub fn rms_norm(cx: &RuleCx) -> Types {
    let (x, g) = (cx.float(0)?, cx.float(1)?);
    let d = cx.last(x)?;
    cx.check(g.dims == [d], "the gain is [last dim]")?;
    let r = Type::f32(&x.dims[..x.rank() - 1]);
    Ok(vec![x.as_value(), r])
}

pub fn rms_norm_grad(cx: &RuleCx) -> Types {
    let (x, g, r, dy) = (cx.float(0)?, cx.float(1)?, cx.float(2)?, cx.float(3)?);
    let d = cx.last(x)?;
    cx.check(g.dims == [d], "the gain is [last dim]")?;
    cx.check(r.dims == x.dims[..x.rank() - 1], "r has the dims of x but the last")?;
    cx.check(dy.dims == x.dims, "x and dy have different dims")?;
    one(x.as_value())
}

pub fn rotary(cx: &RuleCx) -> Types {
    let (x, positions, freq) = (cx.float(0)?, cx.ids(1)?, cx.float(2)?);
    cx.check(x.rank() == 4, "x is [B, S, H, D]")?;
    cx.check(positions.dims == x.dims[..2], "positions are [B, S]")?;
    let pairs = cx.last_fixed(x)?;
    cx.check(pairs.is_multiple_of(2), "the last dim must be even")?;
    cx.check(freq.dims == [Dim::fixed(pairs / 2)], "freq is [D / 2]")?;
    one(x.as_value())
}

/// Dims of an attention's operands, checked: `(B, S, T, H, Dv)`.
fn attention_dims(cx: &RuleCx) -> Result<(Dim, Dim, Dim, u64, Dim), TypeError> {
    let n = cx.positive("parts")? as usize;
    cx.check(cx.operands.len() > 2 * n, "needs q and k for each part, and v")?;
    let [b, s, h, _] = cx.float(0)?.dims[..] else { return cx.err("q is [B, S, H, D]") };
    let v = cx.float(2 * n)?;
    let [vb, t, hv, dv] = v.dims[..] else { return cx.err("v is [B, T, H, D]") };
    let Some(heads) = h.as_fixed() else { return cx.err("the number of heads is fixed") };
    let divides = |d: Dim| d.as_fixed().is_some_and(|d| d > 0 && heads.is_multiple_of(d));
    let paged = cx.flag("pages");
    cx.check((vb == b || paged) && divides(hv), "v's heads divide q's, and the batch is one")?;
    for i in 0..n {
        let (q, k) = (cx.float(i)?, cx.float(n + i)?);
        let [qb, qs, qh, qd] = q.dims[..] else { return cx.err("q is [B, S, H, D]") };
        let [kb, kt, kh, kd] = k.dims[..] else { return cx.err("k is [B, T, H, D]") };
        cx.check(qb == b && qs == s && qh == h, "the parts of q differ in [B, S, H]")?;
        cx.check(
            kb == vb && kt == t && divides(kh),
            "the parts of k differ, or heads do not divide",
        )?;
        cx.check(qd == kd, "q and k have different widths")?;
        cx.check(
            q.dtype == v.dtype && k.dtype == v.dtype,
            "operands have different element types",
        )?;
    }
    let t = if paged { paged_positions(cx, cx.operands.len() - 1, b, t)? } else { t };
    Ok((b, s, t, heads, dv))
}

/// The operands after v (or after do): start, segments and pages.
fn attention_masks(cx: &RuleCx, mut i: usize, b: Dim, s: Dim, t: Dim) -> Result<(), TypeError> {
    if cx.flag("offset") {
        cx.check(i < cx.operands.len() && cx.ids(i)?.dims == [b], "start is i32[B]")?;
        i += 1;
    }
    if cx.flag("segments") {
        let both =
            i + 1 < cx.operands.len() && cx.ids(i)?.dims == [b, s] && cx.ids(i + 1)?.dims == [b, t];
        cx.check(both, "segments are i32[B, S] and i32[B, T]")?;
        i += 2;
    }
    // Looked at for their positions.
    i += usize::from(cx.flag("pages"));
    cx.check(i == cx.operands.len(), "too many operands for the attributes")
}

pub fn attention(cx: &RuleCx) -> Types {
    let n = cx.positive("parts")? as usize;
    let (b, s, t, h, dv) = attention_dims(cx)?;
    attention_masks(cx, 2 * n + 1, b, s, t)?;
    let o = cx.operands[0].with_dims([b, s, Dim::fixed(h), dv]);
    Ok(vec![o, Type::f32([b, Dim::fixed(h), s])])
}

pub fn attention_grad(cx: &RuleCx) -> Types {
    let n = cx.positive("parts")? as usize;
    let (b, s, t, h, dv) = attention_dims(cx)?;
    cx.check(cx.operands.len() >= 2 * n + 4, "needs o, lse and do after v")?;
    let o = [b, s, Dim::fixed(h), dv];
    let (oo, lse, go) = (cx.float(2 * n + 1)?, cx.float(2 * n + 2)?, cx.float(2 * n + 3)?);
    cx.check(oo.dims == o && go.dims == o, "o and do are [B, S, H, Dv]")?;
    cx.check(lse.dims == [b, Dim::fixed(h), s], "lse is [B, H, S]")?;
    attention_masks(cx, 2 * n + 4, b, s, t)?;
    Ok(cx.operands[..2 * n + 1].iter().map(|ty| ty.as_value()).collect())
}

pub fn cross_entropy(cx: &RuleCx) -> Types {
    let (x, ids) = (cx.float(0)?, cx.ids(1)?);
    cx.last(x)?;
    cx.check(
        x.dims[..x.rank() - 1] == ids.dims,
        "targets have the dims of the logits but the last",
    )?;
    let rows = Type::f32(ids.dims.clone());
    Ok(vec![rows.clone(), rows])
}

pub fn cross_entropy_grad(cx: &RuleCx) -> Types {
    let (x, ids) = (cx.float(0)?, cx.ids(1)?);
    cx.last(x)?;
    cx.check(
        x.dims[..x.rank() - 1] == ids.dims,
        "targets have the dims of the logits but the last",
    )?;
    let rows = cx.float(2)?.dims == ids.dims && cx.float(3)?.dims == ids.dims;
    cx.check(rows, "lse and dloss have the dims of the targets")?;
    one(x.as_value())
}

/// Operand 0 as a state.
fn state<'a>(cx: &'a RuleCx, i: usize) -> Result<&'a Type, TypeError> {
    let ty = cx.operands[i];
    cx.check(ty.state, "the first operand is a state")?;
    Ok(ty)
}

pub fn read(cx: &RuleCx) -> Types {
    one(state(cx, 0)?.as_value())
}

pub fn assign(cx: &RuleCx) -> Types {
    let (s, x) = (state(cx, 0)?, cx.value(1)?);
    cx.check(s.dtype == x.dtype && s.dims == x.dims, "the state and the value differ in type")?;
    one(s.clone())
}

pub fn adamw(cx: &RuleCx) -> Types {
    let (w, m, v) = (state(cx, 0)?, state(cx, 1)?, state(cx, 2)?);
    let g = cx.float(3)?;
    let one_shape = w.dims == m.dims && w.dims == v.dims && w.dims == g.dims;
    cx.check(one_shape, "w, m, v and g have one shape")?;
    let scalars = cx.float(4)?.rank() == 0 && cx.float(5)?.rank() == 0;
    cx.check(scalars, "lr and t are scalars")?;
    Ok(vec![w.clone(), m.clone(), v.clone()])
}

/// The callee's signature.
fn signature<'a>(cx: &RuleCx<'a>) -> Result<(Vec<&'a Type>, Vec<&'a Type>), TypeError> {
    let Some(f) = cx.callee else { return cx.err("needs a function") };
    let of = |ids: &'a [crate::module::ValueId]| ids.iter().map(|v| f.ty(*v)).collect();
    Ok((of(&f.params), of(&f.results)))
}

pub fn call(cx: &RuleCx) -> Types {
    let (params, results) = signature(cx)?;
    cx.check(params.len() == cx.operands.len(), "the function takes another number of operands")?;
    let fits = params.iter().zip(cx.operands).all(|(p, x)| equal(p, x));
    cx.check(fits, "an operand's type is not its parameter's")?;
    Ok(results.into_iter().cloned().collect())
}

pub fn repeat(cx: &RuleCx) -> Types {
    let (params, results) = signature(cx)?;
    let count = Dim::fixed(cx.positive("count")?);
    let (carry, xs) = (cx.int("carry"), cx.int("xs"));
    cx.check(carry >= 0 && xs >= 0, "`carry` and `xs` are counts")?;
    let (carry, xs) = (carry as usize, xs as usize);
    cx.check(params.len() == cx.operands.len(), "the function takes another number of operands")?;
    cx.check(carry + xs <= params.len(), "`carry` and `xs` are more than the operands")?;
    cx.check(carry <= results.len(), "the function returns fewer than `carry` results")?;
    let back = |name: &str, all: usize| (0..=all as i64).contains(&cx.int(name));
    let fits = back("back_xs", xs) && back("back_ys", results.len() - carry);
    cx.check(fits, "`back_xs` and `back_ys` are of the stacks")?;
    let left = params.first().is_some_and(|p| **p == Type::i32([Dim::fixed(1)]));
    let ends = !cx.flag("early") || (carry > 0 && left && xs == 0 && results.len() == carry);
    cx.check(ends, "what ends early carries i32[1] first, and no stacks")?;
    let skip = cx.attrs.get_ints("skip");
    let each = skip.is_none_or(|s| s.len() == xs && s.iter().all(|n| *n >= 0));
    cx.check(each, "`skip` is a number of slices for each stack")?;
    for (i, (p, x)) in params.iter().zip(cx.operands).enumerate() {
        let stacked = (carry..carry + xs).contains(&i);
        let fits = match skip.filter(|_| stacked) {
            Some(skip) => reaches(x, p, count, skip[i - carry] as u64),
            None if stacked => equal(x, &stack(p, count)),
            None => equal(p, x),
        };
        cx.check(
            fits,
            "an operand's type is not its parameter's (stacked ones have the count first)",
        )?;
    }
    let handed = params[..carry].iter().zip(&results).all(|(p, r)| p == r);
    cx.check(handed, "a carried value returns with another type")?;
    // A stack of states stays as long as it is.
    let donated = cx.callee.map_or(&[][..], |f| &f.donated);
    let whole = |j: usize| donated.iter().find(|(_, r)| *r as usize == j).map(|(p, _)| *p as usize);
    let made = |(j, r): (usize, &&Type)| match whole(j).and_then(|p| cx.operands.get(p)) {
        _ if j < carry => (*r).clone(),
        Some(state) if skip.is_some() => (*state).clone(),
        _ => stack(r, count),
    };
    Ok(results.iter().enumerate().map(made).collect())
}

/// Has a stack of `ty` as many slices as `count` turns read behind `skip`?
fn reaches(x: &Type, ty: &Type, count: Dim, skip: u64) -> bool {
    let (Some(n), Some(turns)) = (x.dims.first().and_then(|d| d.as_fixed()), count.as_fixed())
    else {
        return false;
    };
    n >= turns.saturating_add(skip) && equal(x, &stack(ty, Dim::fixed(n)))
}

/// Equal for whoever holds the values: along which axis of the mesh a dim was cut is not compared.
fn equal(x: &Type, y: &Type) -> bool {
    let whole = |ty: &Type| Type { axes: vec![], ..ty.clone() };
    x == y || whole(x) == whole(y)
}

/// `count` of `ty`, one after the other.
fn stack(ty: &Type, count: Dim) -> Type {
    let mut dims = vec![count];
    dims.extend(&ty.dims);
    Type { dims, axes: vec![], ..ty.clone() }
}
