//! Derivatives: for every function that the objective of `@loss` depends on, `f.fwd`, `f.bwd_input`
//! and `f.bwd_weight`; and the entry `@grad`.
//!
//! ```text
//! func @f(%x, %w) {                   func @f.fwd(%x, %w) { %y = matmul %x, %w; %z = tanh %y; return %z, %z }
//!   %y = matmul %x, %w           =>   func @f.bwd_input(%d.z, %z, %w) { ..; %1 = matmul %dy, %w {ty = true}; return %1, %dy }
//!   %z = tanh %y                      func @f.bwd_weight(%dy, %x) { %1 = matmul %x, %dy {tx = true}; return %1 }
//!   return %z
//! }
//! ```
//!
//! Why: the two halves can be scheduled apart; rules for single ops are one match in `vjp.rs`,
//! repeats stay rolled. Cost: a few walks over every function; nothing grows with depth.
//! Requires: `@loss` with a result `objective`; its weights are parameters under their stores'
//! names.

pub mod activity;
pub mod halves;
pub mod vjp;

use std::collections::BTreeMap;

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::module::{Func, FuncId, Module, StoreKind};
use weft_ir::op::Op;

use crate::rewrite::{each_func, rebuild};
use crate::{Fact, Pass, PassCx, PassError, Stats};
use halves::{Halves, Takes, halve};

pub const PASS: Pass = Pass {
    name: "autodiff",
    requires: &[Fact::CountsKnown],
    establishes: &[Fact::Differentiated],
    run,
};

/// The name of the result that is differentiated.
pub const OBJECTIVE: &str = "objective";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let loss = module.find(crate::batch_sums::MICRO_LOSS).or_else(|| module.find("loss"));
    let Some(loss) = loss.filter(|_| cx.gradients || cx.train.is_some()) else {
        return Ok(Stats::default());
    };
    let func = module.func(loss);
    let Some(objective) = func.result_names.iter().position(|n| n == OBJECTIVE) else {
        return Err(PassError::new("@loss has no result `objective`").within(func));
    };
    let wrt = weight_params(module, func);
    let n_before = module.funcs.len();
    let halves = differentiate(module, loss, &wrt, objective, cx)?;
    grad_entry(module, loss, &halves, objective)?;
    // A `spread` says where derivatives are added up, and has no other meaning.
    each_func(module, |_, func| {
        rebuild(func, |_, op| Ok((op.op == Op::Spread).then(|| vec![op.operands[0]])))
    })?;
    Ok(Stats::one("functions made", module.funcs.len() - n_before))
}

/// The parameters of `func` that are weights of the module.
pub fn weight_params(module: &Module, func: &Func) -> Vec<usize> {
    let is_weight =
        |name: &str| module.stores.get(name).is_some_and(|s| s.kind == StoreKind::Weight);
    let name = |i: &usize| func.value(func.params[*i]).name.as_deref();
    (0..func.params.len()).filter(|i| name(i).is_some_and(is_weight)).collect()
}

/// Make `.fwd`, `.bwd_input` and `.bwd_weight` of `func` and of every function its result
/// `objective` reaches, for derivatives by the parameters `wrt`. Returns those of `func`.
pub fn differentiate(
    module: &mut Module,
    func: FuncId,
    wrt: &[usize],
    objective: usize,
    cx: &PassCx,
) -> Result<Halves, PassError> {
    let all = activity::deps(module);
    let specs = activity::specs(module, func, wrt, objective, &all);
    let mut done: BTreeMap<FuncId, Halves> = BTreeMap::new();
    for (id, spec) in &specs {
        let halves = halve(module, *id, spec, &all, &done, cx)?;
        done.insert(*id, halves);
    }
    done.remove(&func).ok_or_else(|| PassError::new("nothing to differentiate"))
}

/// `@grad`: the results of `func`, then `grad.<name>` for every parameter that has a derivative.
pub fn grad_entry(
    module: &mut Module,
    func: FuncId,
    halves: &Halves,
    objective: usize,
) -> Result<FuncId, PassError> {
    let source = module.func(func);
    let mut b = Builder::new(&module.fresh_func_name("grad"));
    b.spans = source.body_ops().next_back().map(|(_, op)| op.spans.clone()).unwrap_or_default();
    let mut params = vec![];
    for p in &source.params {
        let data = source.value(*p);
        params.push(b.param(data.name.as_deref().unwrap_or("p"), data.ty.clone()));
    }
    let seed_type = source.ty(source.results[objective]).as_value();
    let forward =
        b.emit_calling(module, Op::Call, &params, Attrs::new().func("func", halves.fwd))?;
    let seed = b.constant(1.0, seed_type)?;
    let mut crossing = vec![];
    let mut grads = BTreeMap::new();
    for half in [&halves.bwd_input, &halves.bwd_weight].into_iter().flatten() {
        let value = |t: &Takes| match t {
            Takes::Cotangent(_) => seed,
            Takes::Crossing(i) => crossing[*i],
            Takes::Saved(i) => forward[halves.n_results + i],
            Takes::Param(p) => params[*p],
        };
        let xs: Vec<_> = half.takes.iter().map(value).collect();
        let results =
            b.emit_calling(module, Op::Call, &xs, Attrs::new().func("func", half.func))?;
        half.grads.iter().zip(&results).for_each(|(p, d)| {
            grads.insert(*p, *d);
        });
        crossing.extend(&results[half.grads.len()..]);
    }
    let mut names = source.result_names.clone();
    let mut results = forward[..halves.n_results].to_vec();
    for (p, d) in grads {
        names.push(format!(
            "grad.{}",
            source.value(source.params[p]).name.as_deref().unwrap_or("p")
        ));
        results.push(d);
    }
    let mut func = b.finish(results);
    func.result_names = names;
    Ok(module.add_func(func))
}
