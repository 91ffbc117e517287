//! Know the sums over the global batch before the loss is computed.
//!
//! ```text
//! func @loss(%tokens, ..) {                    func @loss.counts(%tokens) { ..; return %1 }
//!   %2 = batch_sum %1 : f32[]             =>   func @loss.micro(%tokens, .., %sum.0: f32[]) {
//!   %3 = div %sum, %2 : f32[]                    %3 = div %sum, %sum.0 : f32[]
//! ```
//!
//! Why: a mean over the global batch divides by a count that no micro-batch knows alone. Counts
//! depend on data only, so they are computed and added first; with one micro-batch a sum is its
//! operand and nothing else is made. `@loss` itself counts its own batch alone. Callees with sums
//! are copied for each place that calls them. Cost: copies of `@loss` and of the functions with
//! sums in them. Establishes: no `batch_sum`.

use std::collections::BTreeMap;

use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::Type;

use crate::rewrite::{Copier, callee, carry, each_func, rebuild, stacked};
use crate::{Fact, Pass, PassCx, PassError, Stats, dce};

pub const PASS: Pass =
    Pass { name: "batch_sums", requires: &[], establishes: &[Fact::CountsKnown], run };

/// `@loss` with the sums as its last parameters; only where a step has several micro-batches and
/// the loss sums.
pub const MICRO_LOSS: &str = "loss.micro";
/// From data to what a micro-batch adds to each sum.
pub const COUNTS: &str = "loss.counts";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let several = cx.train.as_ref().is_some_and(|t| t.micro_batches > 1);
    let loss = module.find("loss").filter(|_| several);
    let mut hoisted = 0;
    if let Some(parts) = loss.and_then(|l| split(module, l, 0, None)) {
        hoisted = parts.sums.len();
        let names = module.func(loss.expect("it was split")).result_names.clone();
        let micro = module.func_mut(parts.micro);
        micro.name = MICRO_LOSS.into();
        micro.result_names = names;
        let counts = module.func_mut(parts.counts);
        counts.name = COUNTS.into();
        counts.result_names = (0..hoisted).map(|i| format!("count.{i}")).collect();
        dce::run(module, cx)?;
        data_only(module)?;
    }
    let mut removed = 0;
    each_func(module, |_, func| {
        rebuild(func, |_, op| {
            let own = op.op == Op::BatchSum;
            removed += usize::from(own);
            Ok(own.then(|| vec![op.operands[0]]))
        })
    })?;
    Ok(Stats { counts: vec![("sums hoisted", hoisted), ("sums removed", removed)] })
}

/// A function cut in two.
struct Parts {
    /// The function with sums given behind its parameters (behind the stacked ones if it is
    /// repeated).
    micro: FuncId,
    /// Carried results, then what this batch adds to each sum.
    counts: FuncId,
    sums: Vec<Type>,
}

/// Where a function is called from: how many of its parameters are carried, and carried or stacked.
type Sliced = Option<(usize, usize)>;

fn split(module: &mut Module, id: FuncId, n_carried: usize, site: Sliced) -> Option<Parts> {
    let func = module.func(id).clone();
    let mut nested: BTreeMap<OpId, Parts> = BTreeMap::new();
    let mut sums = vec![];
    for (op_id, op) in func.body_ops() {
        if op.op == Op::BatchSum {
            sums.push(func.ty(op.results[0]).clone());
        }
        let Some(g) = callee(op) else { continue };
        let inner = (op.op == Op::Repeat).then(|| (carry(op), carry(op) + stacked(op)));
        if let Some(parts) = split(module, g, carry(op), inner) {
            let of = |ty: &Type| if op.op == Op::Repeat { stack(ty, op) } else { ty.clone() };
            sums.extend(parts.sums.iter().map(of));
            nested.insert(op_id, parts);
        }
    }
    if sums.is_empty() {
        return None;
    }
    let micro = micro(module, &func, &nested, &sums, site);
    let counts = counts(module, &func, &nested, n_carried);
    Some(Parts { micro, counts, sums })
}

fn stack(ty: &Type, op: &OpData) -> Type {
    let mut dims = vec![weft_ir::dim::Dim::fixed(op.attrs.get_int("count").unwrap_or(1) as u64)];
    dims.extend(&ty.dims);
    ty.with_dims(dims)
}

fn micro(
    module: &mut Module,
    func: &Func,
    nested: &BTreeMap<OpId, Parts>,
    sums: &[Type],
    site: Sliced,
) -> FuncId {
    let mut copy = Copier::new(func, &module.fresh_func_name(&format!("{}.micro", func.name)));
    let place = site.map_or(func.params.len(), |(_, sliced)| sliced);
    func.params[..place].iter().for_each(|p| {
        copy.param(*p, "p");
    });
    let given: Vec<ValueId> = sums
        .iter()
        .enumerate()
        .map(|(i, ty)| copy.to.param(&format!("sum.{i}"), ty.clone()))
        .collect();
    func.params[place..].iter().for_each(|p| {
        copy.param(*p, "p");
    });
    let mut given = given.into_iter();
    let mut next = || given.next().expect("one for each sum");
    for (id, op) in func.body_ops() {
        match nested.get(&id) {
            Some(parts) => {
                let mut xs = copy.mapped(id).operands;
                let at = if op.op == Op::Repeat { carry(op) + stacked(op) } else { xs.len() };
                xs.splice(at..at, parts.sums.iter().map(|_| next()));
                let mut attrs = op.attrs.clone().func("func", parts.micro);
                if op.op == Op::Repeat {
                    attrs = attrs.int("xs", (stacked(op) + parts.sums.len()) as i64);
                }
                copy.put(op.op, xs, attrs, &op.results, &op.spans);
            }
            None if op.op == Op::BatchSum => copy.bind(op.results[0], next()),
            None => copy.op(id),
        }
    }
    let done = copy.finish();
    module.add_func(done)
}

/// The whole function again, with the operands of its sums as results; `dce` takes what they do not
/// need.
fn counts(
    module: &mut Module,
    func: &Func,
    nested: &BTreeMap<OpId, Parts>,
    n_carried: usize,
) -> FuncId {
    let mut copy = Copier::new(func, &module.fresh_func_name(&format!("{}.counts", func.name)));
    copy.params();
    let mut added = vec![];
    for (id, op) in func.body_ops() {
        copy.op(id);
        if op.op == Op::BatchSum {
            added.push(copy.get(op.operands[0]));
        }
        if let Some(parts) = nested.get(&id) {
            let n_carried = carry(op);
            let xs = copy.mapped(id).operands;
            let mut types: Vec<Type> =
                op.results[..n_carried].iter().map(|r| func.ty(*r).clone()).collect();
            let of = |ty: &Type| if op.op == Op::Repeat { stack(ty, op) } else { ty.clone() };
            types.extend(parts.sums.iter().map(of));
            let attrs = op.attrs.clone().func("func", parts.counts);
            let made = copy.to.func.push_op(op.op, xs, attrs, types, op.spans.clone());
            added.extend(&copy.to.func.op(made).results[n_carried..]);
        }
    }
    let carried: Vec<ValueId> = func.results[..n_carried].iter().map(|r| copy.get(*r)).collect();
    let to = copy.to;
    module.add_func(to.finish(carried.into_iter().chain(added).collect()))
}

/// Take the parameters `@loss.counts` does not read, and refuse one that is no data, and a sum that
/// depends on a sum.
fn data_only(module: &mut Module) -> Result<(), PassError> {
    let id = module.find(COUNTS).expect("an entry stays");
    let func = module.func(id).clone();
    let mut reached = vec![id];
    while let Some(f) = reached.pop() {
        let f = module.func(f);
        for (_, op) in f.body_ops() {
            if op.op == Op::BatchSum {
                let why = "a sum over the global batch depends on another";
                return Err(PassError::new(why).at(f, op));
            }
            reached.extend(callee(op));
        }
    }
    let used = func.use_counts();
    let mut copy = Copier::new(&func, &func.name);
    for p in func.params.iter().filter(|p| used[p.0 as usize] > 0) {
        let name = func.value(*p).name.clone().unwrap_or_default();
        if module.stores.contains_key(&name) {
            let why = format!("a sum over the global batch depends on {name}; it may on data only");
            return Err(PassError::new(why).within(&func));
        }
        copy.param(*p, "p");
    }
    func.body.iter().for_each(|op| copy.op(*op));
    let func = copy.finish();
    *module.func_mut(id) = func;
    Ok(())
}
