//! A loop and one that reads, turn by turn, what it stacks, as one.
//!
//! ```text
//! %a, %s = repeat %d, %ws {func = @f, count = 3, carry = 1, xs = 1, reverse = true}
//! %g = repeat %s, %vs {func = @g, count = 3, xs = 2, reverse = true}
//!                 =>
//! %a, %g = repeat %d, %ws, %vs {func = @f.g, count = 3, carry = 1, xs = 2, reverse = true}
//! ```
//!
//! A layer's weight gradients so stand in the turn of its input gradients: there is more to compute
//! while what those exchange is on its way, and a stack that nobody else reads (`%s`) is not made.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};

use super::schedule::needs;
use super::{meets, zip};
use crate::PassError;
use crate::inline::splice;
use crate::rewrite::{Copier, callee, carry, stacked};

/// Joins what there is; how many pairs.
pub fn run(module: &mut Module) -> Result<usize, PassError> {
    let (mut n, mut at) = (0, 0);
    let mut bodies: BTreeSet<String> = BTreeSet::new();
    while at < module.funcs.len() {
        match pair(module, &module.funcs[at]) {
            // The body stands where the function stood, which is looked at again.
            Some(pair) => {
                let of = |id: OpId| callee(module.funcs[at].op(id)).map(|f| &module.func(f).name);
                bodies.extend([pair.first, pair.then].into_iter().filter_map(of).cloned());
                join(module, FuncId(at as u32), &pair)?;
                n += 1;
            }
            None => at += 1,
        }
    }
    bodies.iter().for_each(|name| zip::drop_uncalled(module, name));
    Ok(n)
}

/// Two loops to make one of.
struct Pair {
    first: OpId,
    then: OpId,
    /// Operands of the second that are stacks of the first, and which of its results they are.
    wires: BTreeMap<usize, usize>,
}

/// The first two of which one meets other ranks.
fn pair(module: &Module, func: &Func) -> Option<Pair> {
    let needs = needs(module, func);
    let is_loop = |at: &usize| func.op(func.body[*at]).op == Op::Repeat;
    let loops: Vec<usize> = (0..func.body.len()).filter(is_loop).collect();
    let later = |i: usize| loops.iter().skip(i + 1).map(move |b| (i, *b));
    (0..loops.len()).flat_map(later).find_map(|(i, b)| {
        let a = loops[i];
        let (first, then) = (func.body[a], func.body[b]);
        let meet =
            [first, then].iter().any(|id| callee(func.op(*id)).is_some_and(|f| meets(module, f)));
        let wires = wires(func, first, then).filter(|_| meet)?;
        // Nothing else that the second needs stands behind the first.
        let behind = zip::after(module, func, first, then);
        let waits = needs[b].iter().any(|n| behind.contains(&func.body[*n]));
        (!waits).then_some(Pair { first, then, wires })
    })
}

/// How the second loop reads the first, if it does so turn by turn alone.
fn wires(func: &Func, first: OpId, then: OpId) -> Option<BTreeMap<usize, usize>> {
    let (a, b) = (func.op(first), func.op(then));
    // A turn of each, whatever it finds, over stacks that all run one way and begin together.
    let plain = |op: &OpData| {
        let other = ["back_xs", "back_ys"].iter().any(|n| op.attrs.get_int(n).unwrap_or(0) > 0);
        !other && !op.attrs.get_flag("early") && op.attrs.get_ints("skip").is_none()
    };
    let state = |op: &OpData| op.operands.iter().any(|x| func.ty(*x).state);
    let alike = zip::count(a) == zip::count(b) && zip::reverse(a) == zip::reverse(b);
    let mut between = func.body.iter().skip_while(|id| **id != first).take_while(|id| **id != then);
    let talks = between.any(|id| func.op(*id).op.has(Trait::Message));
    if !alike || talks || [a, b].into_iter().any(|op| !plain(op) || state(op)) {
        return None;
    }
    let mut wires = BTreeMap::new();
    for (at, x) in b.operands.iter().enumerate() {
        let Some(result) = a.results.iter().position(|r| r == x) else { continue };
        let stack = result >= carry(a) && (carry(b)..carry(b) + stacked(b)).contains(&at);
        if !stack {
            return None;
        }
        wires.insert(at, result);
    }
    (!wires.is_empty()).then_some(wires)
}

fn join(module: &mut Module, id: FuncId, pair: &Pair) -> Result<(), PassError> {
    let func = module.func(id);
    let (a, b) = (func.op(pair.first).clone(), func.op(pair.then).clone());
    let uses = func.use_counts();
    let read_by_then = |r: &ValueId| b.operands.iter().filter(|x| *x == r).count() as u32;
    let kept: Vec<bool> = a
        .results
        .iter()
        .enumerate()
        .map(|(i, r)| i < carry(&a) || uses[r.0 as usize] > read_by_then(r))
        .collect();
    let body = body(module, &a, &b, &pair.wires, &kept)?;
    zip::insert(module, id, body);
    let (body, id) = (id, FuncId(id.0 + 1));
    zip::in_place_of(module, id, (pair.first, pair.then), &|module, copy| {
        both(module, copy, &a, &b, (&pair.wires, &kept), body)
    })
}

/// What a turn takes, in order: carried values, slices of stacks, and the rest, of each loop.
fn operands<T: Copy>(
    a: (&OpData, &[T]),
    b: (&OpData, &[T]),
    wires: &BTreeMap<usize, usize>,
) -> Vec<(usize, usize, T)> {
    let ranges = |op: &OpData, n: usize| {
        let (first, last) = (carry(op), carry(op) + stacked(op));
        [0..first, first..last, last..n]
    };
    let (of_a, of_b) = (ranges(a.0, a.1.len()), ranges(b.0, b.1.len()));
    let mut all = vec![];
    for (in_a, in_b) in of_a.into_iter().zip(of_b) {
        all.extend(in_a.map(|i| (0, i, a.1[i])));
        all.extend(in_b.filter(|i| !wires.contains_key(i)).map(|i| (1, i, b.1[i])));
    }
    all
}

/// One turn of the first, then one of the second.
fn body(
    module: &Module,
    a: &OpData,
    b: &OpData,
    wires: &BTreeMap<usize, usize>,
    kept: &[bool],
) -> Result<Func, PassError> {
    let [Some(f), Some(g)] = [a, b].map(|op| callee(op).map(|f| module.func(f))) else {
        return Err(PassError::new("a loop names no function"));
    };
    let mut to = Builder::new(&module.fresh_func_name(&format!("{}.{}", f.name, g.name)));
    let mut given: [BTreeMap<usize, ValueId>; 2] = Default::default();
    for (side, at, p) in operands((a, &f.params), (b, &g.params), wires) {
        let func = [f, g][side];
        let name = func.value(p).name.as_deref().unwrap_or("p");
        given[side].insert(at, to.param(name, func.ty(p).clone()));
    }
    let [of_f, mut of_g] = given;
    let (to, made_f) = splice(f, to, &of_f.into_values().collect::<Vec<_>>());
    of_g.extend(wires.iter().map(|(at, result)| (*at, made_f[*result])));
    let (to, made_g) = splice(g, to, &of_g.into_values().collect::<Vec<_>>());
    let stacks = made_f.iter().zip(kept).skip(carry(a)).filter(|(_, k)| **k).map(|(r, _)| *r);
    let carried = made_f[..carry(a)].iter().chain(&made_g[..carry(b)]).copied();
    let results = carried.chain(stacks).chain(made_g[carry(b)..].iter().copied()).collect();
    Ok(to.finish(results))
}

/// The loop in the place of both.
fn both(
    module: &Module,
    copy: &mut Copier,
    a: &OpData,
    b: &OpData,
    (wires, kept): (&BTreeMap<usize, usize>, &[bool]),
    body: FuncId,
) -> Result<(), PassError> {
    let all = operands((a, &a.operands), (b, &b.operands), wires);
    let xs: Vec<ValueId> = all.into_iter().map(|(_, _, x)| copy.get(x)).collect();
    let attrs = Attrs::new()
        .func("func", body)
        .int("count", zip::count(a))
        .int("carry", (carry(a) + carry(b)) as i64)
        .int("xs", (stacked(a) + stacked(b) - wires.len()) as i64)
        .flag("reverse", zip::reverse(a));
    let made = copy.to.emit_calling(module, Op::Repeat, &xs, attrs)?;
    let stays = a.results.iter().zip(kept).skip(carry(a)).filter(|(_, k)| **k).map(|(r, _)| r);
    let carried = a.results[..carry(a)].iter().chain(&b.results[..carry(b)]);
    let results = carried.chain(stays).chain(&b.results[carry(b)..]);
    results.zip(made).for_each(|(r, x)| copy.bind(*r, x));
    Ok(())
}
