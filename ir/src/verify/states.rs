//! The rules of states: each is consumed at most once, what was read from it dies with it, and what
//! a function makes of a state parameter is the result its donations say.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cx, Place};
use crate::module::{Func, FuncId, Module, OpData, ValueId};
use crate::op::{Op, Trait};
use crate::text;

/// One op's doing with states.
#[derive(Default)]
struct Effect {
    /// `(consumed operand, the state it became)`.
    successions: Vec<(ValueId, ValueId)>,
    /// `(value, the state whose storage it shows)`.
    reads: Vec<(ValueId, ValueId)>,
}

pub fn check(cx: &mut Cx, id: FuncId) {
    let m = cx.m;
    let f = m.func(id);
    let names = text::value_names(f);
    let name = |v: ValueId| &names[v.0 as usize];
    let mut consumed = BTreeSet::new();
    // By value: the state it shows; by state: the parameter it was.
    let mut shows: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut was: BTreeMap<ValueId, ValueId> = f.params.iter().map(|p| (*p, *p)).collect();

    for (op_id, op) in f.body_ops() {
        let at = Place::Op(id, op_id);
        // What is in flight shows what it was begun with until it is done.
        let begun = op.operands.iter().filter(|_| op.op == Op::Done).filter_map(|x| f.def_op(*x));
        let carried = begun.flat_map(|id| &f.op(id).operands);
        for v in op.operands.iter().chain(carried) {
            used(cx, at, *v, &consumed, &shows, &names);
        }
        let effect = effect(m, f, op);
        for (old, new) in effect.successions {
            let once = op.operands.iter().filter(|v| **v == old).count() == 1;
            let first = consumed.insert(old);
            cx.check(once || !first, at, || {
                format!("{} is consumed and used by one op", name(old))
            });
            // The callee could look at the value after it has changed the state.
            let shown = op.operands.iter().find(|v| shows.get(v) == Some(&old));
            if let Some(v) = shown.filter(|_| op.op.has(Trait::Calls)) {
                cx.fail(
                    at,
                    format!("{} is consumed, and {} was read from it", name(old), name(*v)),
                );
            }
            if let Some(param) = was.get(&old).copied() {
                was.insert(new, param);
            }
        }
        shows.extend(effect.reads);
        repeat(cx, at, op);
    }
    let at = Place::Return(id);
    for v in &f.results {
        used(cx, at, *v, &consumed, &shows, &names);
        if f.ty(*v).state {
            consumed.insert(*v);
        }
    }
    donations(cx, id, &was, &consumed, &names);
}

/// `v` is used at `at`: it may not be consumed, nor show a consumed state.
fn used(
    cx: &mut Cx,
    at: Place,
    v: ValueId,
    consumed: &BTreeSet<ValueId>,
    shows: &BTreeMap<ValueId, ValueId>,
    names: &[String],
) {
    let name = |v: ValueId| &names[v.0 as usize];
    cx.check(!consumed.contains(&v), at, || format!("the state {} was consumed before", name(v)));
    let dead = shows.get(&v).copied().filter(|s| consumed.contains(s));
    if let Some(state) = dead {
        cx.fail(at, format!("{} was read from {}, consumed before", name(v), name(state)));
    }
}

fn effect(m: &Module, f: &Func, op: &OpData) -> Effect {
    let mut out = Effect::default();
    let is_state = |v: &&ValueId| f.ty(**v).state;
    if op.op.has(Trait::State) {
        // The i-th state result is what the i-th state operand became.
        let old = op.operands.iter().filter(is_state).copied();
        let new = op.results.iter().filter(is_state).copied();
        out.successions = old.zip(new).collect();
        // A value beside one new state shows it: `cache_append`.
        if let [(_, new)] = out.successions[..] {
            let values = op.results.iter().filter(|v| !f.ty(**v).state);
            out.reads = values.map(|v| (*v, new)).collect();
        }
    } else if let Some(callee) = op.attrs.get_func("func") {
        let pair = |(p, r): &(u32, u32)| {
            Some((*op.operands.get(*p as usize)?, *op.results.get(*r as usize)?))
        };
        out.successions = m.func(callee).donated.iter().filter_map(pair).collect();
    } else if op.operands.len() == 1 && is_state(&&op.operands[0]) {
        out.reads = op.results.iter().map(|v| (*v, op.operands[0])).collect();
    }
    out
}

/// A repeated function may donate what goes from run to run, in its place, or slices of a stack.
fn repeat(cx: &mut Cx, at: Place, op: &OpData) {
    let Some(callee) = op.attrs.get_func("func").filter(|_| op.op == Op::Repeat) else { return };
    let count = |name| op.attrs.get_int(name).unwrap_or(0) as u32;
    let (carry, xs) = (count("carry"), count("xs"));
    for (p, r) in cx.m.func(callee).donated.clone() {
        let carried = p < carry && r == p;
        let slice = p >= carry && p < carry + xs && r >= carry;
        cx.check(carried || slice, at, || {
            format!("parameter {p} of the repeated function cannot become its result {r}")
        });
    }
}

fn donations(
    cx: &mut Cx,
    id: FuncId,
    was: &BTreeMap<ValueId, ValueId>,
    consumed: &BTreeSet<ValueId>,
    names: &[String],
) {
    let f = cx.m.func(id);
    let at = Place::Head(id);
    let (mut params, mut results) = (BTreeSet::new(), BTreeSet::new());
    for (p, r) in &f.donated {
        let pair = (f.params.get(*p as usize), f.results.get(*r as usize));
        let (Some(param), Some(result)) = pair else {
            cx.fail(at, format!("donates ({p} -> {r}) names no parameter or no result"));
            continue;
        };
        let once = params.insert(*p) & results.insert(*r);
        cx.check(once, at, || format!("donates ({p} -> {r}): one of them stands in two pairs"));
        let (from, to) = (f.ty(*param), f.ty(*result));
        let alike = from.state && from == to;
        cx.check(alike, at, || format!("donates ({p} -> {r}): not two states of one type"));
        let chain = was.get(result) == Some(param);
        cx.check(chain, at, || format!("donates ({p} -> {r}): the one does not become the other"));
    }
    for (i, v) in f.results.iter().enumerate().filter(|(_, v)| f.ty(**v).state) {
        let donated = results.contains(&(i as u32));
        let name = &names[v.0 as usize];
        cx.check(donated, at, || format!("{name} is a state that no parameter is donated to"));
    }
    for (i, v) in f.params.iter().enumerate().filter(|(i, _)| !params.contains(&(*i as u32))) {
        let name = &names[v.0 as usize];
        cx.check(!consumed.contains(v), at, || {
            format!("parameter {i}, {name}, is consumed and not donated")
        });
    }
}
