//! Save for the backward pass codes and scales, in the formats that recipes say.
//!
//! ```text
//! func @f.fwd(..) {                                func @f.fwd(..) {
//!   %y = matmul %x, %w {site = o_proj}               %y = matmul %x, %w {site = o_proj}
//!   return %y, %x                             =>     %1 = quantize %x {dtype = e5m6, ..}
//! }                                                  return %y, %1
//!                                                  }
//! ```
//!
//! Why: a recipe says in which formats inputs and outputs of products are kept between the passes;
//! what the backward pass computes from them has their rounding, and what lies in memory their
//! size: bf16 takes 2 bytes, e4m3 with an f32 for 128 1.03, e5m6 with a power of two 1.51.
//! Backward functions begin with `dequantize`. Where a product reads codes of the same format,
//! `cse` makes both one. Rows that experts keep (`ExpertGradients::AtExperts`) are kept as sent:
//! what `bwd_input` hands on of them is the codes that its product reads. Cost: three walks over
//! the functions of derivatives and their callers. Requires: derivatives; before `inline`, while
//! what is saved is what functions return.

mod across;

use std::collections::BTreeMap;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, Module, OpId, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::DType;

use crate::policy::{Format, Policy};
use crate::quantize::{encode, quantize, rounded_rows};
use crate::rewrite::Copier;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "save_codes", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let mut saved = 0;
    for i in 0..module.funcs.len() {
        let func = &module.funcs[i];
        let (n_own, formats) = match own_results(module, func) {
            Some(n_own) => (n_own, saved_values(&cx.policy, func, n_own)),
            None if cx.keeps_rows() => (0, kept_rows(&cx.policy, func)),
            None => continue,
        };
        if formats.is_empty() {
            continue;
        }
        saved += formats.len();
        let rounded = with_rounded(func, n_own, &formats).map_err(|e| e.within(func))?;
        module.funcs[i] = rounded;
    }
    if saved > 0 {
        across::hand_codes(module)?;
    }
    Ok(Stats::one("values saved as codes", saved))
}

/// For `f.fwd` the number of results that are those of `f`: what follows them is saved.
fn own_results(module: &Module, func: &Func) -> Option<usize> {
    let of = func.name.strip_suffix(".fwd")?;
    module.find(of).map(|f| module.func(f).results.len())
}

/// How a value is saved.
#[derive(Clone, Debug)]
struct Saved {
    format: Format,
    /// What rows are on their way to their experts.
    sent: Option<Format>,
    /// Rows travel as they are, and are encoded where they arrive.
    plain: bool,
    /// The product that asks for it.
    product: OpId,
    /// The dims in which the product reads or makes it: groups run over the last two.
    dims: Vec<Dim>,
}

/// An input or output of a product that the backward pass finds in memory in its recipe's format.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    pub site: String,
    pub output: bool,
    /// The first site that keeps the same value.
    pub first: String,
}

/// What this pass will save, of a differentiated module. What a recipe gives a format and is not
/// here is computed again from what is, or is of a product that no function of layers holds.
pub fn kept(module: &Module, policy: &Policy) -> Vec<Kept> {
    let mut all = vec![];
    for func in &module.funcs {
        let Some(n_own) = own_results(module, func) else { continue };
        let mut first: BTreeMap<ValueId, String> = BTreeMap::new();
        for Asked { site, value, output, .. } in asked(policy, func) {
            let same = reshapes(func, value).into_iter().find(|v| is_saved(func, n_own, *v));
            let Some(value) = same else { continue };
            let first = first.entry(value).or_insert_with(|| site.to_string()).clone();
            all.push(Kept { site: site.to_string(), output, first });
        }
    }
    all
}

fn with_rounded(
    func: &Func,
    n_own: usize,
    formats: &BTreeMap<ValueId, Saved>,
) -> Result<Func, PassError> {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    func.body.iter().for_each(|op| copy.op(*op));
    let mut rounded = BTreeMap::new();
    for (v, saved) in formats {
        copy.to.at(&func.op(saved.product).spans);
        let x = copy.get(*v);
        rounded.insert(*v, through_codes(&mut copy.to, x, saved)?);
    }
    let result = |(i, r): (usize, &ValueId)| match rounded.get(r) {
        Some(value) if i >= n_own => *value,
        _ => copy.get(*r),
    };
    let results: Vec<ValueId> = func.results.iter().enumerate().map(result).collect();
    Ok(copy.to.finish(results))
}

/// `x` as its codes have it.
fn through_codes(b: &mut Builder, x: ValueId, saved: &Saved) -> Result<ValueId, PassError> {
    let (dtype, dims) = (b.ty(x).dtype, b.dims(x));
    let x = match &saved.sent {
        Some(sent) => rounded_rows(b, x, sent)?,
        None => x,
    };
    let rows = b.reshape(x, &saved.dims)?;
    let codes = if saved.plain { encode } else { quantize }(b, rows, &saved.format)?;
    let attrs = Attrs::new().with("dtype", Attr::DType(dtype));
    let value = b.emit(Op::Dequantize, &[codes], attrs)?;
    Ok(b.reshape(value, &dims)?)
}

/// An end of a forward product that a recipe has a format for.
struct Asked<'a> {
    site: &'a str,
    product: OpId,
    value: ValueId,
    format: Format,
    sent: Option<Format>,
    plain: bool,
    output: bool,
}

fn asked<'a>(policy: &Policy, func: &'a Func) -> Vec<Asked<'a>> {
    let mut all = vec![];
    for (product, op) in func.body_ops().filter(|(_, op)| op.op.has(Trait::Contraction)) {
        let forward = op.attrs.get_word("role").is_none();
        let Some(site) = op.attrs.get_word("site").filter(|_| forward) else { continue };
        let Some(recipe) = policy.get(site) else { continue };
        let ends = [(op.operands[0], recipe.saved_input), (op.results[0], recipe.saved_output)];
        for (output, (value, format)) in [false, true].into_iter().zip(ends) {
            let sent = recipe.dispatched.filter(|_| !output);
            let plain = recipe.dispatched_plain;
            let asked = |format| Asked { site, product, value, format, sent, plain, output };
            all.extend(format.map(asked));
        }
    }
    all
}

fn is_saved(func: &Func, n_own: usize, v: ValueId) -> bool {
    let narrow = matches!(func.ty(v).dtype, DType::Bf16 | DType::F32);
    narrow && !func.ty(v).state && func.results[n_own..].contains(&v)
}

/// The values that are saved. A product's operand or result may be a reshape of what is saved.
fn saved_values(policy: &Policy, func: &Func, n_own: usize) -> BTreeMap<ValueId, Saved> {
    let mut formats: BTreeMap<ValueId, Saved> = BTreeMap::new();
    for Asked { product, value, format, sent, plain, .. } in asked(policy, func) {
        for same in reshapes(func, value).into_iter().filter(|v| is_saved(func, n_own, *v)) {
            // A value that keeps its rows keeps its dims: nothing is moved to save it.
            let own = func.ty(same).last() == func.ty(value).last() && func.ty(same).rank() >= 2;
            let dims = func.ty(if own { same } else { value }).dims.clone();
            formats.entry(same).or_insert(Saved { format, sent, plain, product, dims });
        }
    }
    formats
}

/// The rows that `func` sends to their experts for an input gradient, and hands on: as the product
/// reads them.
fn kept_rows(policy: &Policy, func: &Func) -> BTreeMap<ValueId, Saved> {
    let mut formats = BTreeMap::new();
    for (product, op) in func.body_ops().filter(|(_, op)| op.op == Op::GroupedMatmul) {
        let rows = op.operands[0];
        let sent = func.def_op(rows).is_some_and(|id| func.op(id).op == Op::Dispatch);
        let site = op.attrs.get_word("site").filter(|_| sent && func.results.contains(&rows));
        let Some(recipe) = site.and_then(|site| policy.get(site)) else { continue };
        let operands = recipe.product(op.attrs.get_word("role")).operands;
        if let Some([format, _]) = operands.filter(|[rows, _]| rows.group[0] == 1) {
            let dims = func.ty(rows).dims.clone();
            let (sent, plain) = (recipe.dispatched, recipe.dispatched_plain);
            let saved = Saved { format, sent, plain, product, dims };
            formats.insert(rows, saved);
        }
    }
    formats
}

/// `v`, what it is a reshape of and reshapes of those.
fn reshapes(func: &Func, v: ValueId) -> Vec<ValueId> {
    let mut all = vec![v];
    let mut from = v;
    while let Some(op) = func.def_op(from).map(|id| func.op(id)).filter(|o| o.op == Op::Reshape) {
        from = op.operands[0];
        all.push(from);
    }
    for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::Reshape) {
        if all.contains(&op.operands[0]) {
            all.push(op.results[0]);
        }
    }
    all
}
