//! Statistics of the operands of chosen products, as results of the training step.
//!
//! ```text
//! func @f(%x: f32[8, 256], ..) -> (..) {         func @f(%x: f32[8, 256], ..) -> (.., f32[], f32[]) {
//!   %c = quantize %x {..}                          ..
//!   %y = matmul %c, .. {site = o_proj}     =>      %a = abs %x; %amax = reduce_max %a
//!   return ..                                      %d = dequantize %c {dtype = f32}; ..
//! }                                                return .., %amax, %error
//!                                                }
//! ```
//!
//! Why: to look at numbers where they are made, with the kernels that make them. Of an operand that
//! is rounded or quantized: amax; the shares that became 0 and that were cut off (a scale fits the
//! largest finite value of its group, so those are infinities); the error in the root of the sum of
//! squares, relative; and where codes are made of other codes (a group turned from a row's to a
//! column's), the share that moved. Results are handed up through calls, stacked by repeats, and
//! are called `watch.SITE|ROLE.OPERAND|STATISTIC`. Cost: a few reductions for each operand.
//! Requires: `quantize`, and that bodies are not put into their callers yet.

use std::collections::BTreeSet;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::product;
use weft_ir::module::{Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::rules::TypeError;
use weft_ir::ty::{DType, Type};

use crate::rewrite::{Copier, callee};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "watch", requires: &[], establishes: &[], run };

/// What the names of the results begin with.
pub const WATCH: &str = "watch.";

/// The entry that returns them.
const STEP: &str = "train_step";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    if cx.watch.is_empty() || module.find(STEP).is_none() {
        return Ok(Stats::default());
    }
    // By function, the names of the results that it has more.
    let mut more: Vec<Vec<String>> = vec![];
    for i in 0..module.funcs.len() {
        let (func, names) = watched(module, FuncId(i as u32), &more, cx)?;
        module.funcs[i] = func;
        more.push(names);
    }
    let step = module.find(STEP).map_or(0, |id| more[id.0 as usize].len());
    Ok(Stats::one("statistics", step))
}

type Named = Vec<(String, ValueId)>;

/// The function with the statistics of its own products and of those it calls.
fn watched(
    module: &Module,
    id: FuncId,
    more: &[Vec<String>],
    cx: &PassCx,
) -> Result<(Func, Vec<String>), PassError> {
    let func = module.func(id);
    let is_entry = !func.result_names.is_empty();
    let takes = func.name == STEP || !is_entry;
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    let mut found: Named = vec![];
    for (op_id, op) in func.body_ops() {
        copy.to.at(&op.spans);
        let of_callee = callee(op).map_or(&[][..], |f| &more[f.0 as usize]);
        if of_callee.is_empty() {
            copy.op(op_id);
        } else {
            let seen = copy.mapped(op_id);
            let made = copy.to.emit_calling(module, op.op, &seen.operands, seen.attrs);
            let made = made.map_err(|e| PassError::from(e).at(func, op))?;
            let (own, others) = made.split_at(op.results.len());
            op.results.iter().zip(own).for_each(|(from, to)| copy.bind(*from, *to));
            found.extend(of_callee.iter().cloned().zip(others.iter().copied()));
        }
        let site = op.attrs.get_word("site").filter(|s| cx.watch.iter().any(|w| w == s));
        if let (Some(site), true) = (site, takes) {
            let seen = copy.mapped(op_id);
            let own = of_product(&mut copy.to, &seen, site);
            found.extend(own.map_err(|e| PassError::from(e).at(func, op))?);
        }
    }
    if !takes {
        return Ok((copy.finish(), vec![]));
    }
    let mut names = BTreeSet::new();
    for (name, _) in &mut found {
        // A module that is called twice has one site: `lm_head`, `lm_head#2`.
        let (site, rest) = name.split_once('|').unwrap_or((name, ""));
        let again = (2..).map(|n| format!("{site}#{n}|{rest}"));
        let free = std::iter::once(name.clone()).chain(again).find(|n| !names.contains(n));
        name.clone_from(&free.unwrap_or_default());
        names.insert(name.clone());
    }
    let mut func = copy.finish();
    let named = !func.result_names.is_empty();
    for (name, value) in &found {
        func.results.push(*value);
        if named {
            func.result_names.push(name.clone());
        }
    }
    Ok((func, found.into_iter().map(|(name, _)| name).collect()))
}

/// The statistics of both operands of a product.
fn of_product(b: &mut Builder, op: &OpData, site: &str) -> Result<Named, TypeError> {
    let role = op.attrs.get_word("role").unwrap_or("forward");
    let names = match role {
        "input_grad" => ["dy", "w"],
        "weight_grad" => ["dy", "x"],
        _ => ["x", "w"],
    };
    let mut all = vec![];
    for (i, name) in names.into_iter().enumerate() {
        let of = format!("{WATCH}{site}|{role}.{name}|");
        // Of codes made elsewhere the source is not here: they tell nothing.
        if let Some(rounding) = rounding(b, op.operands[i]) {
            all.extend(statistics(b, &of, &rounding)?);
        }
    }
    Ok(all)
}

/// A value and what is computed with instead, of the same dims; none where it is as it is.
struct Rounding {
    source: ValueId,
    rounded: Option<ValueId>,
}

/// Where an operand was rounded last.
fn rounding(b: &Builder, mut v: ValueId) -> Option<Rounding> {
    let func = &b.func;
    loop {
        let is_plain = func.ty(v).quant.is_none();
        let as_it_is = is_plain.then_some(Rounding { source: v, rounded: None });
        let Some(op) = func.def_op(v).map(|id| func.op(id)) else { return as_it_is };
        let Some(from) = op.operands.first().copied() else { return as_it_is };
        let narrower = func.ty(v).dtype.bits() < func.ty(from).dtype.bits();
        match op.op {
            Op::Quantize => return Some(Rounding { source: from, rounded: Some(v) }),
            // Rows that came as codes were rounded before they were sent.
            Op::Dispatch if !is_plain => v = from,
            Op::Convert if narrower => return Some(Rounding { source: from, rounded: Some(v) }),
            moved if moved.has(Trait::Movement) && op.operands.len() == 1 => v = from,
            _ => return as_it_is,
        }
    }
}

fn statistics(b: &mut Builder, of: &str, r: &Rounding) -> Result<Named, TypeError> {
    let x = b.convert(r.source, DType::F32)?;
    let size = b.unary(Op::Abs, x)?;
    let all: Vec<i64> = (0..b.ty(x).rank() as i64).collect();
    let amax = b.emit(Op::ReduceMax, &[size], Attrs::new().ints("dims", all.clone()))?;
    let mut found = vec![(format!("{of}amax"), amax)];
    let Some(rounded) = r.rounded else { return Ok(found) };
    let to_f32 = Attrs::new().with("dtype", Attr::DType(DType::F32));
    let y = match b.ty(rounded).quant.is_some() {
        true => b.emit(Op::Dequantize, &[rounded], to_f32)?,
        false => b.convert(rounded, DType::F32)?,
    };
    let zero = b.constant_like(0.0, x)?;
    let is_zero = b.binary(Op::Eq, x, zero)?;
    let is_something = b.unary(Op::Not, is_zero)?;
    let became_zero = b.binary(Op::Eq, y, zero)?;
    let lost = b.binary(Op::And, is_something, became_zero)?;
    found.push((format!("{of}underflow"), share(b, lost)?));
    if b.ty(rounded).quant.is_some() {
        let most = b.constant_like(f64::from(f32::MAX), size)?;
        let cut = b.binary(Op::Lt, most, size)?;
        found.push((format!("{of}saturation"), share(b, cut)?));
    }
    let d = b.binary(Op::Sub, y, x)?;
    let (moved, norm) = (b.binary(Op::Mul, d, d)?, b.binary(Op::Mul, x, x)?);
    let (moved, norm) = (b.reduce_sum(moved, &all)?, b.reduce_sum(norm, &all)?);
    // Of nothing but zeros nothing moves.
    let least = b.constant(f64::from(f32::MIN_POSITIVE), Type::f32([]))?;
    let norm = b.binary(Op::Max, norm, least)?;
    let ratio = b.binary(Op::Div, moved, norm)?;
    found.push((format!("{of}error"), b.unary(Op::Sqrt, ratio)?));
    if is_decoded(b, r.source) {
        let same = b.binary(Op::Eq, y, x)?;
        let other = b.unary(Op::Not, same)?;
        found.push((format!("{of}rounded_shifts"), share(b, other)?));
    }
    Ok(found)
}

/// Whether a value holds nothing but codes times their scales.
fn is_decoded(b: &Builder, mut v: ValueId) -> bool {
    while let Some(op) = b.func.def_op(v).map(|id| b.func.op(id)) {
        match op.op {
            Op::Dequantize => return true,
            Op::Convert | Op::Reshape | Op::Transpose => v = op.operands[0],
            // Rows without a factor are copies.
            Op::Dispatch if op.operands.len() == 2 => v = op.operands[0],
            _ => return false,
        }
    }
    false
}

/// The share of a bool's elements that are true.
fn share(b: &mut Builder, p: ValueId) -> Result<ValueId, TypeError> {
    let dims = b.dims(p);
    let ones = b.convert(p, DType::F32)?;
    let all: Vec<i64> = (0..dims.len() as i64).collect();
    let sum = b.reduce_sum(ones, &all)?;
    let of = product(&dims).ok_or_else(|| TypeError("too many elements to count".into()))?;
    let n = b.emit(Op::Extent, &[], Attrs::new().with("of", Attr::Dim(of)))?;
    b.binary(Op::Div, sum, n)
}
