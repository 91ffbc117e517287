//! A function as calls of its stages, given the stage of each op.

use std::collections::BTreeMap;

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::module::{Func, Module, OpId, ValueId};
use weft_ir::op::Op;

use crate::PassError;
use crate::rewrite::Copier;

/// Adds the functions of the stages and returns the one that calls them. Ops without a home are
/// copied into every stage that reads what they make.
pub fn partition(
    module: &mut Module,
    func: &Func,
    homes: &BTreeMap<OpId, usize>,
    n_stages: usize,
    name: &dyn Fn(usize) -> String,
) -> Result<Func, PassError> {
    let home = |v: ValueId| func.def_op(v).and_then(|op| homes.get(&op).copied());
    // A result that no stage makes is made by the last.
    let of_result = |v: ValueId| home(v).unwrap_or(n_stages - 1);
    let needed: Vec<Vec<bool>> =
        (0..n_stages).map(|stage| needed(func, homes, stage, &of_result)).collect();
    let mut whole = Builder::new(&func.name);
    whole.spans = func.body_ops().next_back().map(|(_, op)| op.spans.clone()).unwrap_or_default();
    let mut map: Vec<Option<ValueId>> = vec![None; func.n_values()];
    for p in &func.params {
        let data = func.value(*p);
        let param = whole.param(data.name.as_deref().unwrap_or("p"), data.ty.clone());
        map[p.0 as usize] = Some(param);
    }
    for stage in 0..n_stages {
        let is_own = |id: &OpId| homes.get(id) == Some(&stage);
        let all = (0..func.n_values() as u32).map(ValueId);
        let given: Vec<ValueId> = all
            .filter(|v| needed[stage][v.0 as usize])
            .filter(|v| match func.def_op(*v) {
                None => true,
                Some(op) => homes.get(&op).is_some_and(|h| *h != stage),
            })
            .collect();
        // Values of other stages first, then parameters in their order.
        let (made, params): (Vec<ValueId>, Vec<ValueId>) =
            given.into_iter().partition(|v| func.def_op(*v).is_some());
        let mut copy = Copier::new(func, &module.fresh_func_name(&name(stage)));
        for v in made.iter().chain(func.params.iter().filter(|p| params.contains(p))) {
            copy.param(*v, "x");
        }
        for (id, op) in func.body_ops() {
            let cloned =
                !homes.contains_key(&id) && op.results.iter().any(|r| needed[stage][r.0 as usize]);
            if is_own(&id) || cloned {
                copy.to.at(&op.spans);
                copy.op(id);
            }
        }
        let mut returned: Vec<ValueId> = vec![];
        for (id, op) in func.body_ops() {
            for r in &op.results {
                let elsewhere = (0..n_stages).any(|s| s != stage && needed[s][r.0 as usize]);
                let crosses = is_own(&id) && elsewhere;
                let result = func.results.contains(r) && of_result(*r) == stage;
                if crosses || result {
                    returned.push(*r);
                }
            }
        }
        let xs: Vec<ValueId> = copy_operands(&made, &params, func, &map)?;
        let results = returned.iter().map(|r| copy.get(*r)).collect();
        let stage_func = module.add_func(copy.to.finish(results));
        let attrs = Attrs::new().func("func", stage_func);
        let results = whole.emit_calling(module, Op::Call, &xs, attrs)?;
        for (from, to) in returned.iter().zip(results) {
            map[from.0 as usize] = Some(to);
            if let Some(name) = &func.value(*from).name {
                whole.name(to, name);
            }
        }
    }
    let lost = || PassError::new("a result is made by no stage");
    let results: Result<Vec<ValueId>, PassError> =
        func.results.iter().map(|r| map[r.0 as usize].ok_or_else(lost)).collect();
    let mut whole = whole.finish(results?);
    whole.result_names = func.result_names.clone();
    Ok(whole)
}

/// What stage's call is given.
fn copy_operands(
    made: &[ValueId],
    params: &[ValueId],
    func: &Func,
    map: &[Option<ValueId>],
) -> Result<Vec<ValueId>, PassError> {
    let all = made.iter().chain(func.params.iter().filter(|p| params.contains(p)));
    let lost = || PassError::new("a stage reads what a later one makes");
    all.map(|v| map[v.0 as usize].ok_or_else(lost)).collect()
}

/// By value: whether a stage's ops read it, or those without a home that it copies.
fn needed(
    func: &Func,
    homes: &BTreeMap<OpId, usize>,
    stage: usize,
    of_result: &dyn Fn(ValueId) -> usize,
) -> Vec<bool> {
    let mut needed = vec![false; func.n_values()];
    for r in func.results.iter().filter(|r| {
        let homeless = func.def_op(**r).is_none_or(|op| !homes.contains_key(&op));
        homeless && of_result(**r) == stage
    }) {
        needed[r.0 as usize] = true;
    }
    for (id, op) in func.body_ops().rev() {
        let runs = match homes.get(&id) {
            Some(home) => *home == stage,
            None => op.results.iter().any(|r| needed[r.0 as usize]),
        };
        if runs {
            op.operands.iter().for_each(|x| needed[x.0 as usize] = true);
        }
    }
    needed
}
