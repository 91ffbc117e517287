//! Composites in primitives. The decomposition of an op with the `Composite` trait is its
//! definition: the interpreter's own code for the op gives the same numbers, and a backend without
//! a kernel for it may use this instead.
//!
//! Everything is computed in f32 and converted once, at the end, to the element type of the result.

use crate::attr::{Attr, Attrs};
use crate::builder::Builder;
use crate::dim::Dim;
use crate::module::ValueId;
use crate::op::{Op, Trait};
use crate::pages;
use crate::rules::TypeError;
use crate::ty::{DType, Type};

type Value = Result<ValueId, TypeError>;
type Values = Result<Vec<ValueId>, TypeError>;

/// Append to `b` the ops that `op` on `xs` stands for; the values are its results.
pub fn decompose(b: &mut Builder, op: Op, xs: &[ValueId], attrs: &Attrs) -> Values {
    if op.has(Trait::Composite) {
        // The rule checks what the decompositions take for granted.
        crate::builder::infer(None, &b.func, op, xs, attrs)?;
    }
    match op {
        Op::GroupedTopk => one(grouped_topk(b, xs[0], attrs)),
        Op::RmsNorm => rms_norm(b, xs, attrs),
        Op::RmsNormGrad => one(rms_norm_grad(b, xs)),
        Op::Softmax => one(softmax(b, xs[0])),
        Op::Rotary => one(rotary(b, xs, attrs)),
        Op::Attention => attention(b, xs, attrs),
        Op::AttentionGrad => attention_grad(b, xs, attrs),
        Op::CrossEntropy => cross_entropy(b, xs),
        Op::CrossEntropyGrad => one(cross_entropy_grad(b, xs)),
        Op::AdamW => adamw(b, xs, attrs),
        #[rustfmt::skip]
        Op::Constant | Op::Iota | Op::Extent | Op::Neg | Op::Abs | Op::Sign | Op::Floor
        | Op::Exp | Op::Log | Op::Sqrt | Op::Rsqrt | Op::Sigmoid | Op::Tanh | Op::Sin | Op::Cos
        | Op::Erf | Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Max | Op::Min | Op::Eq | Op::Lt
        | Op::Le | Op::And | Op::Or | Op::Not | Op::Select | Op::Convert | Op::Quantize
        | Op::Encode | Op::Recode | Op::Dequantize | Op::StopGradient
        | Op::Reshape | Op::Transpose | Op::Broadcast | Op::Slice | Op::Pad | Op::Concat
        | Op::Shift | Op::ReduceSum | Op::ReduceMax | Op::BatchSum | Op::Matmul
        | Op::GroupedMatmul | Op::GroupedOuter | Op::Gather | Op::ScatterAdd | Op::Take | Op::Put
        | Op::OneHot | Op::Topk | Op::Route | Op::Dispatch | Op::Combine | Op::CombineDot
        | Op::Read | Op::Assign | Op::CacheAppend | Op::AllReduce | Op::ReduceScatter
        | Op::AllGather | Op::Spread | Op::Part | Op::ExchangeOffsets | Op::Exchange
        | Op::AllReduceStart | Op::ReduceScatterStart | Op::AllGatherStart | Op::ExchangeStart
        | Op::Done | Op::Send
        | Op::Recv | Op::Call | Op::Repeat | Op::Fused => {
            Err(TypeError(format!("{} is a primitive", op.name())))
        },
    }
}

fn one(v: Value) -> Values {
    Ok(vec![v?])
}

// --- pieces --------------------------------------------------------------------------------------

fn f32(b: &mut Builder, x: ValueId) -> Value {
    b.convert(x, DType::F32)
}

/// `value` everywhere in `dims`, as f32.
fn full(b: &mut Builder, value: f64, dims: &[Dim]) -> Value {
    b.constant(value, Type::f32(dims))
}

/// `x * a` for a number `a`.
fn scaled(b: &mut Builder, x: ValueId, a: f64) -> Value {
    let a = b.constant_like(a, x)?;
    b.binary(Op::Mul, x, a)
}

fn spread(b: &mut Builder, x: ValueId, dims: &[Dim], map: &[i64]) -> Value {
    b.emit(Op::Broadcast, &[x], Attrs::new().dims("shape", dims).ints("dims", map))
}

/// `x[..]` for each element of the new last dim.
fn along_last(b: &mut Builder, x: ValueId, dims: &[Dim]) -> Value {
    let map: Vec<i64> = (0..b.ty(x).rank() as i64).collect();
    spread(b, x, dims, &map)
}

fn fold_last(b: &mut Builder, op: Op, x: ValueId) -> Value {
    let last = b.ty(x).rank() as i64 - 1;
    b.emit(op, &[x], Attrs::new().ints("dims", [last]))
}

/// Mean over the last dim.
fn mean_last(b: &mut Builder, x: ValueId) -> Value {
    let size = b.ty(x).last().ok_or_else(|| TypeError("needs at least one dim".into()))?;
    let sum = fold_last(b, Op::ReduceSum, x)?;
    let n = b.emit(Op::Extent, &[], Attrs::new().with("of", Attr::Dim(size)))?;
    let n = b.broadcast_to(n, &b.dims(sum))?;
    b.binary(Op::Div, sum, n)
}

/// The index along `dim`, as i32.
fn index(b: &mut Builder, dim: usize, dims: &[Dim]) -> Value {
    let attrs = Attrs::new().int("dim", dim as i64).with("type", Attr::Type(Type::i32(dims)));
    b.emit(Op::Iota, &[], attrs)
}

fn select(b: &mut Builder, c: ValueId, yes: ValueId, no: ValueId) -> Value {
    b.emit(Op::Select, &[c, yes, no], Attrs::new())
}

/// `x` where `c`, else the number `other`.
fn select_or(b: &mut Builder, c: ValueId, x: ValueId, other: f64) -> Value {
    let other = b.constant_like(other, x)?;
    select(b, c, x, other)
}

fn transpose(b: &mut Builder, x: ValueId, perm: &[i64]) -> Value {
    b.emit(Op::Transpose, &[x], Attrs::new().ints("perm", perm))
}

fn slice(b: &mut Builder, x: ValueId, dim: usize, start: i64, len: i64) -> Value {
    let attrs = Attrs::new().int("dim", dim as i64).int("start", start).int("len", len);
    b.emit(Op::Slice, &[x], attrs)
}

fn matmul(b: &mut Builder, x: ValueId, y: ValueId, tx: bool, ty: bool) -> Value {
    b.emit(Op::Matmul, &[x, y], Attrs::new().flag("tx", tx).flag("ty", ty))
}

fn fixed(d: Dim) -> Result<u64, TypeError> {
    d.as_fixed().ok_or_else(|| TypeError("needs a dim of fixed size".into()))
}

fn int(attrs: &Attrs, name: &str) -> i64 {
    attrs.get_int(name).unwrap_or(0)
}

fn float(attrs: &Attrs, name: &str) -> f64 {
    attrs.get_float(name).unwrap_or(0.0)
}

// --- choosing ------------------------------------------------------------------------------------

fn topk(b: &mut Builder, x: ValueId, k: i64) -> Value {
    b.emit(Op::Topk, &[x], Attrs::new().int("k", k))
}

fn grouped_topk(b: &mut Builder, x: ValueId, attrs: &Attrs) -> Value {
    let (groups, kept) = (int(attrs, "groups"), int(attrs, "kept"));
    let k = int(attrs, "k");
    if kept == groups {
        return topk(b, x, k);
    }
    let dims = b.dims(x);
    let (lead, last) = dims.split_at(dims.len() - 1);
    let width = fixed(last[0])? / groups as u64;
    let of_groups = [lead, &[Dim::fixed(groups as u64)]].concat();
    let in_groups = [&of_groups[..], &[Dim::fixed(width)]].concat();
    let grouped = b.reshape(x, &in_groups)?;
    let score = if attrs.get_word("group_score") == Some("top2") {
        let best = topk(b, grouped, 2)?;
        let best = b.emit(Op::Take, &[grouped, best], Attrs::new())?;
        fold_last(b, Op::ReduceSum, best)?
    } else {
        fold_last(b, Op::ReduceMax, grouped)?
    };
    let winners = topk(b, score, kept)?;
    let chosen = b.emit(Op::OneHot, &[winners], Attrs::new().int("size", groups))?;
    let chosen = b.reduce_sum(chosen, &[lead.len() as i64])?;
    let zero = b.constant_like(0.0, chosen)?;
    let chosen = b.binary(Op::Lt, zero, chosen)?;
    let seen = along_last(b, chosen, &in_groups)?;
    let masked = select_or(b, seen, grouped, f64::NEG_INFINITY)?;
    let masked = b.reshape(masked, &dims)?;
    topk(b, masked, k)
}

// --- rows ----------------------------------------------------------------------------------------

fn rms_norm(b: &mut Builder, xs: &[ValueId], attrs: &Attrs) -> Values {
    let (dims, dtype) = (b.dims(xs[0]), b.ty(xs[0]).dtype);
    let (x, g) = (f32(b, xs[0])?, f32(b, xs[1])?);
    let squares = b.binary(Op::Mul, x, x)?;
    let mean = mean_last(b, squares)?;
    let eps = b.constant_like(float(attrs, "eps"), mean)?;
    let shifted = b.binary(Op::Add, mean, eps)?;
    let r = b.unary(Op::Rsqrt, shifted)?;
    let (g, r_all) = (b.broadcast_to(g, &dims)?, along_last(b, r, &dims)?);
    let y = b.binary(Op::Mul, g, x)?;
    let y = b.binary(Op::Mul, y, r_all)?;
    Ok(vec![b.convert(y, dtype)?, r])
}

fn rms_norm_grad(b: &mut Builder, xs: &[ValueId]) -> Value {
    let (dims, dtype) = (b.dims(xs[0]), b.ty(xs[0]).dtype);
    let (x, g, r, dy) = (f32(b, xs[0])?, f32(b, xs[1])?, f32(b, xs[2])?, f32(b, xs[3])?);
    let g = b.broadcast_to(g, &dims)?;
    let gdy = b.binary(Op::Mul, g, dy)?;
    let products = b.binary(Op::Mul, gdy, x)?;
    let mean = mean_last(b, products)?;
    let r2 = b.binary(Op::Mul, r, r)?;
    let share = b.binary(Op::Mul, r2, mean)?;
    let share = along_last(b, share, &dims)?;
    let along_x = b.binary(Op::Mul, x, share)?;
    let across = b.binary(Op::Sub, gdy, along_x)?;
    let r = along_last(b, r, &dims)?;
    let dx = b.binary(Op::Mul, r, across)?;
    b.convert(dx, dtype)
}

/// `e^(x - max)`, its sum over the last dim, and the max.
fn exp_sum(b: &mut Builder, x: ValueId) -> Result<(ValueId, ValueId, ValueId), TypeError> {
    let dims = b.dims(x);
    let max = fold_last(b, Op::ReduceMax, x)?;
    let max_all = along_last(b, max, &dims)?;
    let below = b.binary(Op::Sub, x, max_all)?;
    let exp = b.unary(Op::Exp, below)?;
    let sum = fold_last(b, Op::ReduceSum, exp)?;
    Ok((exp, sum, max))
}

fn softmax(b: &mut Builder, x: ValueId) -> Value {
    let (dims, dtype) = (b.dims(x), b.ty(x).dtype);
    let x = f32(b, x)?;
    let (exp, sum, _) = exp_sum(b, x)?;
    let sum = along_last(b, sum, &dims)?;
    let p = b.binary(Op::Div, exp, sum)?;
    b.convert(p, dtype)
}

fn rotary(b: &mut Builder, xs: &[ValueId], attrs: &Attrs) -> Value {
    let (dims, dtype) = (b.dims(xs[0]), b.ty(xs[0]).dtype);
    let pairs = fixed(dims[3])? / 2;
    // Pairs in a dim of their own: the last if interleaved, else the one before.
    let interleaved = attrs.get_flag("interleaved");
    let (two, half) = (Dim::fixed(2), Dim::fixed(pairs));
    let (pair_dim, tail) = if interleaved { (4, [half, two]) } else { (3, [two, half]) };
    let paired = [&dims[..3], &tail].concat();
    let each = [&dims[..3], &[half]].concat();

    let positions = f32(b, xs[1])?;
    let positions = spread(b, positions, &each, &[0, 1])?;
    let freq = f32(b, xs[2])?;
    let freq = b.broadcast_to(freq, &each)?;
    let angle = b.binary(Op::Mul, positions, freq)?;
    let angle = if attrs.get_flag("inverse") { b.unary(Op::Neg, angle)? } else { angle };
    let (sin, cos) = (b.unary(Op::Sin, angle)?, b.unary(Op::Cos, angle)?);

    let x = f32(b, xs[0])?;
    let x = b.reshape(x, &paired)?;
    let (first, second) = (slice(b, x, pair_dim, 0, 1)?, slice(b, x, pair_dim, 1, 1)?);
    let (first, second) = (b.reshape(first, &each)?, b.reshape(second, &each)?);
    let mut products = |x, y| b.binary(Op::Mul, x, y);
    let (x_cos, y_sin) = (products(first, cos)?, products(second, sin)?);
    let (x_sin, y_cos) = (products(first, sin)?, products(second, cos)?);
    let (turned, other) = (b.binary(Op::Sub, x_cos, y_sin)?, b.binary(Op::Add, x_sin, y_cos)?);
    let mut single = paired.clone();
    single[pair_dim] = Dim::fixed(1);
    let both = [b.reshape(turned, &single)?, b.reshape(other, &single)?];
    let y = b.emit(Op::Concat, &both, Attrs::new().int("dim", pair_dim as i64))?;
    let y = b.reshape(y, &dims)?;
    b.convert(y, dtype)
}

/// Is the target negative?
fn untargeted(b: &mut Builder, targets: ValueId) -> Value {
    let zero = b.constant_like(0.0, targets)?;
    b.binary(Op::Lt, targets, zero)
}

fn cross_entropy(b: &mut Builder, xs: &[ValueId]) -> Values {
    let x = f32(b, xs[0])?;
    let (_, sum, max) = exp_sum(b, x)?;
    let log = b.unary(Op::Log, sum)?;
    let lse = b.binary(Op::Add, max, log)?;
    let rows = b.dims(lse);
    // A negative target reads the first logit, which is then not used.
    let zero = b.constant_like(0.0, xs[1])?;
    let targets = b.binary(Op::Max, xs[1], zero)?;
    let targets = b.reshape(targets, &[&rows[..], &[Dim::fixed(1)]].concat())?;
    let hit = b.emit(Op::Take, &[x, targets], Attrs::new())?;
    let hit = b.reshape(hit, &rows)?;
    let loss = b.binary(Op::Sub, lse, hit)?;
    let skipped = untargeted(b, xs[1])?;
    let none = b.constant_like(0.0, loss)?;
    Ok(vec![select(b, skipped, none, loss)?, lse])
}

fn cross_entropy_grad(b: &mut Builder, xs: &[ValueId]) -> Value {
    let (dims, dtype) = (b.dims(xs[0]), b.ty(xs[0]).dtype);
    let (x, lse, dloss) = (f32(b, xs[0])?, f32(b, xs[2])?, f32(b, xs[3])?);
    let lse = along_last(b, lse, &dims)?;
    let below = b.binary(Op::Sub, x, lse)?;
    let p = b.unary(Op::Exp, below)?;
    let column = index(b, dims.len() - 1, &dims)?;
    let targets = along_last(b, xs[1], &dims)?;
    let hit = b.binary(Op::Eq, column, targets)?;
    let hit = f32(b, hit)?;
    let rest = b.binary(Op::Sub, p, hit)?;
    let dloss = along_last(b, dloss, &dims)?;
    let dx = b.binary(Op::Mul, dloss, rest)?;
    let skipped = untargeted(b, xs[1])?;
    let skipped = along_last(b, skipped, &dims)?;
    let none = b.constant_like(0.0, dx)?;
    let dx = select(b, skipped, none, dx)?;
    b.convert(dx, dtype)
}

// --- attention -----------------------------------------------------------------------------------

/// Operands of attention as `[B, H, rows, width]` in f32, keys and values once for each query head.
struct Attention {
    q: Vec<ValueId>,
    k: Vec<ValueId>,
    v: ValueId,
    /// `scale Σ q·k`, `[B, H, S, T]`.
    scores: ValueId,
    /// The visible pairs, `[B, H, S, T]`; `None`: all.
    visible: Option<ValueId>,
}

/// `[B, rows, heads, width]` as `[B, H, rows, width]`.
fn by_head(b: &mut Builder, x: ValueId, heads: Dim) -> Value {
    let x = f32(b, x)?;
    let x = transpose(b, x, &[0, 2, 1, 3])?;
    let dims = b.dims(x);
    let shared = Dim::fixed(fixed(heads)? / fixed(dims[1])?);
    let grouped = [dims[0], dims[1], shared, dims[2], dims[3]];
    let x = spread(b, x, &grouped, &[0, 1, 3, 4])?;
    b.reshape(x, &[dims[0], heads, dims[2], dims[3]])
}

/// The derivative of `by_head`: sums over the query heads that share a head, and goes back to the
/// type of `like`.
fn by_row(b: &mut Builder, dx: ValueId, like: ValueId) -> Value {
    let (dims, of_like) = (b.dims(dx), b.dims(like));
    let own = of_like[2];
    let shared = Dim::fixed(fixed(dims[1])? / fixed(own)?);
    let dx = b.reshape(dx, &[dims[0], own, shared, dims[2], dims[3]])?;
    let dx = b.reduce_sum(dx, &[2])?;
    let dx = transpose(b, dx, &[0, 2, 1, 3])?;
    b.convert(dx, b.ty(like).dtype)
}

/// `masks`: start and segments, as the attributes say.
fn prepare(
    b: &mut Builder,
    xs: &[ValueId],
    masks: &[ValueId],
    attrs: &Attrs,
) -> Result<Attention, TypeError> {
    let n = int(attrs, "parts") as usize;
    let heads = b.dims(xs[0])[2];
    let mut all = |xs: &[ValueId]| xs.iter().map(|x| by_head(b, *x, heads)).collect::<Values>();
    let (q, k) = (all(&xs[..n])?, all(&xs[n..2 * n])?);
    let v = by_head(b, xs[2 * n], heads)?;
    let mut sum = matmul(b, q[0], k[0], false, true)?;
    for (q, k) in q.iter().zip(&k).skip(1) {
        let part = matmul(b, *q, *k, false, true)?;
        sum = b.binary(Op::Add, sum, part)?;
    }
    let scores = scaled(b, sum, float(attrs, "scale"))?;
    let visible = visible(b, &b.dims(scores), masks, attrs)?;
    Ok(Attention { q, k, v, scores, visible })
}

/// `dims`: `[B, H, S, T]`.
fn visible(
    b: &mut Builder,
    dims: &[Dim],
    mut masks: &[ValueId],
    attrs: &Attrs,
) -> Result<Option<ValueId>, TypeError> {
    let mut start = None;
    if attrs.get_flag("offset") {
        start = Some(masks[0]);
        masks = &masks[1..];
    }
    let mut seen = None;
    if attrs.get_flag("causal") {
        let (key, mut query) = (index(b, 3, dims)?, index(b, 2, dims)?);
        if let Some(start) = start {
            let start = spread(b, start, dims, &[0])?;
            query = b.binary(Op::Add, query, start)?;
        }
        seen = Some(b.binary(Op::Le, key, query)?);
    }
    if attrs.get_flag("segments") {
        let of_q = spread(b, masks[0], dims, &[0, 2])?;
        let of_k = spread(b, masks[1], dims, &[0, 3])?;
        let together = b.binary(Op::Eq, of_q, of_k)?;
        seen = Some(match seen {
            Some(before) => b.binary(Op::And, before, together)?,
            None => together,
        });
    }
    Ok(seen)
}

/// The operands of attention over keys and values in order; masks begin at `end`.
fn in_order(b: &mut Builder, xs: &[ValueId], end: usize) -> Values {
    let (q, pools) = xs[..end].split_at(end / 2);
    let [masks @ .., pages] = &xs[end..] else {
        return Err(TypeError("attention: has no pages".into()));
    };
    let rows = pools.iter().map(|pool| pages::in_order(b, *pool, *pages));
    let rows: Vec<ValueId> = rows.collect::<Values>()?;
    Ok([q, &rows, masks].concat())
}

fn attention(b: &mut Builder, xs: &[ValueId], attrs: &Attrs) -> Values {
    let dtype = b.ty(xs[0]).dtype;
    let masks = 2 * int(attrs, "parts") as usize + 1;
    let xs = &match attrs.get_flag("pages") {
        true => in_order(b, xs, masks)?,
        false => xs.to_vec(),
    };
    let at = prepare(b, xs, &xs[masks..], attrs)?;
    let dims = b.dims(at.scores);
    let scores = match at.visible {
        Some(visible) => select_or(b, visible, at.scores, f64::NEG_INFINITY)?,
        None => at.scores,
    };
    // In a row that sees nothing every score is -inf. Its maximum counts as 0, so that e^(score -
    // max) is 0, not NaN, and its sum as 1.
    let max = fold_last(b, Op::ReduceMax, scores)?;
    let nothing = b.constant_like(f64::NEG_INFINITY, max)?;
    let blind = b.binary(Op::Eq, max, nothing)?;
    let (zero, unit) = (b.constant_like(0.0, max)?, b.constant_like(1.0, max)?);
    let max = select(b, blind, zero, max)?;
    let max_all = along_last(b, max, &dims)?;
    let below = b.binary(Op::Sub, scores, max_all)?;
    let exp = b.unary(Op::Exp, below)?;
    let sum = fold_last(b, Op::ReduceSum, exp)?;
    let log = b.unary(Op::Log, sum)?;
    let lse = b.binary(Op::Add, max, log)?;
    let sum = select(b, blind, unit, sum)?;
    let sum = along_last(b, sum, &dims)?;
    let p = b.binary(Op::Div, exp, sum)?;
    let o = matmul(b, p, at.v, false, false)?;
    let o = transpose(b, o, &[0, 2, 1, 3])?;
    Ok(vec![b.convert(o, dtype)?, lse])
}

fn attention_grad(b: &mut Builder, xs: &[ValueId], attrs: &Attrs) -> Values {
    let n = int(attrs, "parts") as usize;
    let at = prepare(b, xs, &xs[2 * n + 4..], attrs)?;
    let dims = b.dims(at.scores);
    let heads = dims[1];
    let (o, d_o) = (by_head(b, xs[2 * n + 1], heads)?, by_head(b, xs[2 * n + 3], heads)?);
    let lse = f32(b, xs[2 * n + 2])?;
    let lse = along_last(b, lse, &dims)?;
    let below = b.binary(Op::Sub, at.scores, lse)?;
    let exp = b.unary(Op::Exp, below)?;
    let p = match at.visible {
        Some(visible) => select_or(b, visible, exp, 0.0)?,
        None => exp,
    };
    let dp = matmul(b, d_o, at.v, false, true)?;
    let products = b.binary(Op::Mul, d_o, o)?;
    let delta = fold_last(b, Op::ReduceSum, products)?;
    let delta = along_last(b, delta, &dims)?;
    let centred = b.binary(Op::Sub, dp, delta)?;
    let d_scores = b.binary(Op::Mul, p, centred)?;
    let d_scores = scaled(b, d_scores, float(attrs, "scale"))?;
    let mut grads = vec![];
    for (i, k) in at.k.iter().enumerate() {
        let dq = matmul(b, d_scores, *k, false, false)?;
        grads.push(by_row(b, dq, xs[i])?);
    }
    for (i, q) in at.q.iter().enumerate() {
        let dk = matmul(b, d_scores, *q, true, false)?;
        grads.push(by_row(b, dk, xs[n + i])?);
    }
    let dv = matmul(b, p, d_o, true, false)?;
    grads.push(by_row(b, dv, xs[2 * n])?);
    Ok(grads)
}

// --- the optimizer -------------------------------------------------------------------------------

/// `1 - βᵗ` as `2u / (1 + u)`, `u = tanh(-t ln β / 2)`: exact to rounding where βᵗ is near 1.
fn bias_correction(b: &mut Builder, t: ValueId, beta: f64) -> Value {
    let half = scaled(b, t, -beta.ln() / 2.0)?;
    let u = b.unary(Op::Tanh, half)?;
    let twice = b.binary(Op::Add, u, u)?;
    let unit = b.constant_like(1.0, u)?;
    let whole = b.binary(Op::Add, unit, u)?;
    b.binary(Op::Div, twice, whole)
}

/// `β x + (1 - β) y`.
fn decayed(b: &mut Builder, x: ValueId, y: ValueId, beta: f64) -> Value {
    let (x, y) = (scaled(b, x, beta)?, scaled(b, y, 1.0 - beta)?);
    b.binary(Op::Add, x, y)
}

fn adamw(b: &mut Builder, xs: &[ValueId], attrs: &Attrs) -> Values {
    let (beta1, beta2) = (float(attrs, "beta1"), float(attrs, "beta2"));
    let dims = b.dims(xs[0]);
    let mut held = |state: ValueId| {
        let value = b.unary(Op::Read, state)?;
        f32(b, value)
    };
    let (w, m, v) = (held(xs[0])?, held(xs[1])?, held(xs[2])?);
    let g = f32(b, xs[3])?;
    let (lr, t) = (f32(b, xs[4])?, f32(b, xs[5])?);
    let m = decayed(b, m, g, beta1)?;
    let squares = b.binary(Op::Mul, g, g)?;
    let v = decayed(b, v, squares, beta2)?;
    let (m_share, v_share) = (bias_correction(b, t, beta1)?, bias_correction(b, t, beta2)?);
    let (m_share, v_share) = (b.broadcast_to(m_share, &dims)?, b.broadcast_to(v_share, &dims)?);
    let (m_hat, v_hat) = (b.binary(Op::Div, m, m_share)?, b.binary(Op::Div, v, v_share)?);
    let root = b.unary(Op::Sqrt, v_hat)?;
    let eps = full(b, float(attrs, "eps"), &dims)?;
    let root = b.binary(Op::Add, root, eps)?;
    let step = b.binary(Op::Div, m_hat, root)?;
    let decay = scaled(b, w, float(attrs, "decay"))?;
    let step = b.binary(Op::Add, step, decay)?;
    let lr = b.broadcast_to(lr, &dims)?;
    let step = b.binary(Op::Mul, lr, step)?;
    let w = b.binary(Op::Sub, w, step)?;
    let mut states = vec![];
    for (state, value) in [(xs[0], w), (xs[1], m), (xs[2], v)] {
        let value = b.convert(value, b.ty(state).dtype)?;
        states.push(b.binary(Op::Assign, state, value)?);
    }
    Ok(states)
}
