//! Remove what no entry needs: ops, parameters and results of callees, carried and stacked values
//! of repeats, functions.
//!
//! ```text
//! %h, %ys = repeat %x, %w {func = @layer, ..}           %h = repeat %x, %w {func = @layer, ..}
//! return %h                                        =>   return %h        # and @layer makes no %ys
//! ```
//!
//! Why: a derivative's forward saves what some op might read; what it does read is known only here.
//! Entries (functions with named results) keep their signature. A carried value goes only when
//! neither its parameter nor its result is needed.
//! Cost: a fixpoint over calls; one or two rounds for each level of nesting.

use weft_ir::attr::Attrs;
use weft_ir::module::{Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};

use crate::rewrite::{Copier, callee, carry, n_ops, retarget, stacked};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "dce", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let (n_ops_before, n_funcs_before) = (n_ops(module), module.funcs.len());
    let n_values =
        |m: &Module| -> usize { m.funcs.iter().map(|f| f.params.len() + f.results.len()).sum() };
    let n_values_before = n_values(module);
    let live = liveness(module);
    let kept = prune(module, &live);
    let n_values_after = n_values(module);
    drop_unreachable(module, &kept);
    Ok(Stats {
        counts: vec![
            ("ops removed", n_ops_before - n_ops(module)),
            ("parameters and results removed", n_values_before - n_values_after),
            ("functions removed", n_funcs_before - module.funcs.len()),
        ],
    })
}

/// What of a function's signature is needed.
#[derive(Clone)]
struct Live {
    params: Vec<bool>,
    results: Vec<bool>,
}

fn is_entry(func: &Func) -> bool {
    !func.result_names.is_empty()
}

fn liveness(module: &Module) -> Vec<Live> {
    let mut live: Vec<Live> = module
        .funcs
        .iter()
        .map(|f| Live {
            params: vec![is_entry(f); f.params.len()],
            results: vec![is_entry(f); f.results.len()],
        })
        .collect();
    loop {
        let mut grew = false;
        for id in module.func_ids().rev() {
            grew |= mark(module.func(id), id, &mut live);
        }
        if !grew {
            return live;
        }
    }
}

/// Mark what the needed results of `func` need; whether any signature grew.
fn mark(func: &Func, id: FuncId, live: &mut [Live]) -> bool {
    let mut grew = false;
    let mut raise = |flag: &mut bool| {
        grew |= !*flag;
        *flag = true;
    };
    let mut needed = needed_results(func, &live[id.0 as usize]);
    for (_, op) in func.body_ops().rev() {
        if !is_needed(op, &needed) {
            continue;
        }
        let Some(g) = callee(op).map(|g| &mut live[g.0 as usize]) else {
            op.operands.iter().for_each(|x| needed[x.0 as usize] = true);
            continue;
        };
        for (r, flag) in op.results.iter().zip(&mut g.results) {
            if needed[r.0 as usize] {
                raise(flag);
            }
        }
        if op.attrs.get_flag("early") {
            raise(&mut g.params[0]);
            raise(&mut g.results[0]);
        }
        for i in 0..carry(op) {
            if g.params[i] || g.results[i] {
                raise(&mut g.params[i]);
                raise(&mut g.results[i]);
            }
        }
        for (x, _) in op.operands.iter().zip(&g.params).filter(|(_, p)| **p) {
            needed[x.0 as usize] = true;
        }
    }
    for (p, flag) in func.params.iter().zip(&mut live[id.0 as usize].params) {
        if needed[p.0 as usize] {
            raise(flag);
        }
    }
    grew
}

/// Is one of its results needed, or what it does to other ranks?
fn is_needed(op: &OpData, needed: &[bool]) -> bool {
    op.op.has(Trait::Message) || op.results.iter().any(|r| needed[r.0 as usize])
}

/// By value: whether it is a needed result.
fn needed_results(func: &Func, live: &Live) -> Vec<bool> {
    let mut needed = vec![false; func.n_values()];
    for (r, _) in func.results.iter().zip(&live.results).filter(|(_, l)| **l) {
        needed[r.0 as usize] = true;
    }
    needed
}

/// Rebuild every function without what is not needed; says which functions some kept op runs or are
/// entries.
fn prune(module: &mut Module, live: &[Live]) -> Vec<bool> {
    let mut kept: Vec<bool> = module.funcs.iter().map(is_entry).collect();
    for id in module.func_ids().rev() {
        if kept[id.0 as usize] {
            let func = module.func(id);
            let pruned = prune_func(func, &live[id.0 as usize], live, &mut kept);
            *module.func_mut(id) = pruned;
        }
    }
    kept
}

fn prune_func(func: &Func, mine: &Live, live: &[Live], kept: &mut [bool]) -> Func {
    let mut needed = needed_results(func, mine);
    let mut ops = vec![];
    for (id, op) in func.body_ops().rev() {
        if !is_needed(op, &needed) {
            continue;
        }
        ops.push(id);
        let g = callee(op).map(|g| &live[g.0 as usize]);
        for (i, x) in op.operands.iter().enumerate() {
            needed[x.0 as usize] |= g.is_none_or(|g| g.params[i]);
        }
    }
    let mut copy = Copier::new(func, &func.name);
    for (p, _) in func.params.iter().zip(&mine.params).filter(|(_, l)| **l) {
        copy.param(*p, "p");
    }
    for id in ops.into_iter().rev() {
        let op = func.op(id);
        let Some(g) = callee(op) else {
            copy.op(id);
            continue;
        };
        kept[g.0 as usize] = true;
        let g = &live[g.0 as usize];
        let operands = pick(&op.operands, &g.params).iter().map(|x| copy.get(*x)).collect();
        let attrs = match op.op {
            Op::Repeat => repeat_attrs(&op.attrs, carry(op), stacked(op), g),
            _ => op.attrs.clone(),
        };
        copy.put(op.op, operands, attrs, &pick(&op.results, &g.results), &op.spans);
    }
    let results = pick(&func.results, &mine.results).iter().map(|r| copy.get(*r)).collect();
    let mut pruned = copy.to.finish(results);
    pruned.result_names = func.result_names.clone();
    let place = |flags: &[bool], i: u32| count(&flags[..i as usize]) as u32;
    pruned.donated = func
        .donated
        .iter()
        .filter(|(p, r)| mine.params[*p as usize] && mine.results[*r as usize])
        .map(|(p, r)| (place(&mine.params, *p), place(&mine.results, *r)))
        .collect();
    pruned
}

fn repeat_attrs(attrs: &Attrs, carry: usize, xs: usize, g: &Live) -> Attrs {
    let mut kept = attrs
        .clone()
        .int("carry", count(&g.params[..carry]) as i64)
        .int("xs", count(&g.params[carry..carry + xs]) as i64);
    for (name, flags) in [("back_xs", &g.params[..carry + xs]), ("back_ys", &g.results[..])] {
        if let Some(n) = attrs.get_int(name) {
            kept = kept.int(name, count(&flags[flags.len() - n as usize..]) as i64);
        }
    }
    if let Some(skip) = attrs.get_ints("skip") {
        let live = skip.iter().zip(&g.params[carry..carry + xs]).filter(|(_, live)| **live);
        kept = kept.ints("skip", live.map(|(n, _)| *n).collect::<Vec<_>>());
    }
    kept
}

fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|f| **f).count()
}

fn pick(values: &[ValueId], flags: &[bool]) -> Vec<ValueId> {
    values.iter().zip(flags).filter(|(_, f)| **f).map(|(v, _)| *v).collect()
}

fn drop_unreachable(module: &mut Module, kept: &[bool]) {
    let place: Vec<u32> = (0..kept.len()).map(|i| count(&kept[..i]) as u32).collect();
    let old = std::mem::take(&mut module.funcs);
    module.funcs = old.into_iter().zip(kept).filter(|(_, k)| **k).map(|(f, _)| f).collect();
    for func in &mut module.funcs {
        retarget(func, &|f| FuncId(place[f.0 as usize]));
    }
}
