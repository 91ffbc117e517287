//! Round what is saved for the backward pass to the formats that recipes save it in.
//!
//! ```text
//! func @f.fwd(..) {                                func @f.fwd(..) {
//!   %y = matmul %x, %w {site = o_proj}               %y = matmul %x, %w {site = o_proj}
//!   return %y, %x                             =>     %1 = quantize %x {dtype = e5m6, ..}
//! }                                                  %2 = dequantize %1 {dtype = bf16}
//!                                                    return %y, %2
//! ```
//!
//! Why: a recipe says in which formats inputs and outputs of products are kept between the passes;
//! what the backward pass computes from them has their rounding. Where a product reads codes of the
//! same format, `cse` makes both one. Cost: one walk over the functions that `autodiff` made.
//! Requires: derivatives; before `inline`, while what is saved is what functions return.

use std::collections::BTreeMap;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::module::{Func, Module, OpId, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::DType;

use crate::policy::{Format, Policy};
use crate::quantize::quantize;
use crate::rewrite::Copier;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "save_codes", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let mut saved = 0;
    for i in 0..module.funcs.len() {
        let Some(n_own) = own_results(module, &module.funcs[i]) else { continue };
        let func = &module.funcs[i];
        let formats = saved_values(&cx.policy, func, n_own);
        if formats.is_empty() {
            continue;
        }
        saved += formats.len();
        let rounded = with_rounded(func, n_own, &formats).map_err(|e| e.within(func))?;
        module.funcs[i] = rounded;
    }
    Ok(Stats::one("values saved as codes", saved))
}

/// For `f.fwd` the number of results that are those of `f`: what follows them is saved.
fn own_results(module: &Module, func: &Func) -> Option<usize> {
    let of = func.name.strip_suffix(".fwd")?;
    module.find(of).map(|f| module.func(f).results.len())
}

fn with_rounded(
    func: &Func,
    n_own: usize,
    formats: &BTreeMap<ValueId, (Format, OpId)>,
) -> Result<Func, PassError> {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    func.body.iter().for_each(|op| copy.op(*op));
    let mut rounded = BTreeMap::new();
    for (v, (format, product)) in formats {
        copy.to.at(&func.op(*product).spans);
        let x = copy.get(*v);
        rounded.insert(*v, through_codes(&mut copy.to, x, format)?);
    }
    let result = |(i, r): (usize, &ValueId)| match rounded.get(r) {
        Some(value) if i >= n_own => *value,
        _ => copy.get(*r),
    };
    let results: Vec<ValueId> = func.results.iter().enumerate().map(result).collect();
    Ok(copy.to.finish(results))
}

/// `x` as its codes have it.
fn through_codes(b: &mut Builder, x: ValueId, format: &Format) -> Result<ValueId, PassError> {
    let dtype = b.ty(x).dtype;
    let codes = quantize(b, x, format)?;
    Ok(b.emit(Op::Dequantize, &[codes], Attrs::new().with("dtype", Attr::DType(dtype)))?)
}

/// The values that are saved, each with its format and the product that asks for it. A product's
/// operand or result may be a reshape of what is saved, as long as rows stay rows.
fn saved_values(policy: &Policy, func: &Func, n_own: usize) -> BTreeMap<ValueId, (Format, OpId)> {
    let mut formats: BTreeMap<ValueId, (Format, OpId)> = BTreeMap::new();
    for (id, op) in func.body_ops().filter(|(_, op)| op.op.has(Trait::Contraction)) {
        let forward = op.attrs.get_word("role").is_none();
        let site = op.attrs.get_word("site").filter(|_| forward);
        let Some(recipe) = site.and_then(|s| policy.get(s)) else { continue };
        let ends = [(op.operands[0], recipe.saved_input), (op.results[0], recipe.saved_output)];
        for (v, format) in ends.into_iter().filter_map(|(v, f)| Some((v, f?))) {
            for same in with_reshapes(func, v) {
                formats.entry(same).or_insert((format, id));
            }
        }
    }
    let is_saved = |v: &ValueId| {
        let narrow = matches!(func.ty(*v).dtype, DType::Bf16 | DType::F32);
        narrow && !func.ty(*v).state && func.results[n_own..].contains(v)
    };
    formats.retain(|v, _| is_saved(v));
    formats
}

/// `v`, what it is a reshape of and reshapes of those, as far as they have its rows.
fn with_reshapes(func: &Func, v: ValueId) -> Vec<ValueId> {
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
    let last = func.ty(v).last();
    all.retain(|v| func.ty(*v).last() == last && func.ty(*v).rank() >= 2);
    all
}
