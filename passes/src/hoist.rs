//! Move what is done to a parameter alone out of a function, to its callers.
//!
//! ```text
//! func @layer(%x, %w: f32[4, 4]) {              func @layer(%x, %w: bf16[4, 4]) {
//!   %1 = convert %w : bf16[4, 4]           =>     %1 = matmul %x, %w
//!   %2 = matmul %x, %1                          }
//! }                                             %3 = convert %ws : bf16[9, 4, 4]
//! %y = repeat %h, %ws {func = @layer, ..}       %y = repeat %h, %3 {func = @layer, ..}
//! ```
//!
//! Why: weights are rounded once a step, not in every layer of every micro-batch, forward and
//! backward. A stack is converted whole. At the end of the way up, a weight that an entry only
//! reads through one conversion is stored converted: a machine that only runs a model rounds its
//! weights when it loads them. Cost: one walk over every function and its callers; the rounded
//! weights live as long as the loop that reads them. Carried parameters stay: they differ from run
//! to run.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::module::{Def, Func, FuncId, Module, OpData, StoreKind, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use crate::rewrite::{Copier, callee, carry, stacked};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "hoist", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut moved = 0;
    // Callees come first, so what moves out of one is in its caller when that is looked at.
    for i in 0..module.funcs.len() {
        let id = FuncId(i as u32);
        if module.func(id).result_names.is_empty() && is_called(module, id) {
            moved += out_of(module, id)?;
        }
    }
    let stored = store_narrow(module);
    Ok(Stats { counts: vec![("moved to callers", moved), ("stored converted", stored)] })
}

fn is_called(module: &Module, id: FuncId) -> bool {
    let calls = |f: &Func| f.body_ops().any(|(_, op)| callee(op) == Some(id));
    module.funcs.iter().any(calls)
}

/// An op on a parameter alone that its caller can do.
#[derive(Clone, PartialEq, Debug)]
struct Work {
    /// The parameter's place.
    param: usize,
    op: OpData,
    /// What it makes.
    ty: Type,
}

/// Conversions of parameters that do not change from run to run.
fn work_in(module: &Module, id: FuncId) -> Vec<Work> {
    let func = module.func(id);
    let carried = callers(module, id).map(|(_, op)| carry(op)).max().unwrap_or(0);
    let mut found: Vec<Work> = vec![];
    for (_, op) in func.body_ops() {
        let [x] = op.operands[..] else { continue };
        let Def::Param(param) = func.value(x).def else { continue };
        let param = param as usize;
        if op.op != Op::Convert || param < carried || func.ty(x).state {
            continue;
        }
        let ty = func.ty(op.results[0]).clone();
        let known = |w: &Work| w.param == param && w.op.op == op.op && w.op.attrs == op.attrs;
        if !found.iter().any(known) {
            found.push(Work { param, op: op.clone(), ty });
        }
    }
    found
}

fn callers(module: &Module, id: FuncId) -> impl Iterator<Item = (FuncId, &OpData)> {
    module.func_ids().flat_map(move |f| {
        let ops = module.func(f).body_ops().map(|(_, op)| op);
        ops.filter(move |op| callee(op) == Some(id)).map(move |op| (f, op))
    })
}

/// What takes the place of a parameter in a signature.
struct Signature {
    /// For each parameter: whether it stays, and the works on it whose results follow it.
    params: Vec<(bool, Vec<Work>)>,
}

fn out_of(module: &mut Module, id: FuncId) -> Result<usize, PassError> {
    let works = work_in(module, id);
    if works.is_empty() {
        return Ok(0);
    }
    let signature = signature(module.func(id), &works);
    let new = without(module.func(id), &signature);
    module.funcs[id.0 as usize] = new;
    let users: BTreeSet<FuncId> = callers(module, id).map(|(f, _)| f).collect();
    for user in users {
        module.funcs[user.0 as usize] = hand_over(module.func(user), id, &signature)?;
    }
    Ok(works.len())
}

/// A parameter stays if anything but the works reads it.
fn signature(func: &Func, works: &[Work]) -> Signature {
    let is_work = |op: &OpData, p: usize| {
        works.iter().any(|w| w.param == p && w.op.op == op.op && w.op.attrs == op.attrs)
    };
    let params = func.params.iter().enumerate().map(|(p, value)| {
        let own: Vec<Work> = works.iter().filter(|w| w.param == p).cloned().collect();
        let read = func.body_ops().any(|(_, op)| op.operands.contains(value) && !is_work(op, p));
        (own.is_empty() || read || func.results.contains(value), own)
    });
    Signature { params: params.collect() }
}

/// The function with the works' results as parameters.
fn without(func: &Func, signature: &Signature) -> Func {
    let mut copy = Copier::new(func, &func.name);
    let mut made: BTreeMap<(usize, String), ValueId> = BTreeMap::new();
    let mut places = vec![];
    for (p, (value, (stays, works))) in func.params.iter().zip(&signature.params).enumerate() {
        let name = func.value(*value).name.clone().unwrap_or_else(|| "p".into());
        if *stays {
            places.push(Some(p));
            copy.param(*value, "p");
        }
        for (i, work) in works.iter().enumerate() {
            places.push((!*stays && i == 0).then_some(p));
            let param = copy.to.param(&name, work.ty.as_value());
            made.insert((p, key(&work.op)), param);
        }
    }
    for (id, op) in func.body_ops() {
        let param = op.operands.first().and_then(|x| match func.value(*x).def {
            Def::Param(p) if op.operands.len() == 1 => Some(p as usize),
            _ => None,
        });
        match param.and_then(|p| made.get(&(p, key(op)))) {
            Some(value) => copy.set(op.results[0], *value),
            None => copy.op(id),
        }
    }
    let mut new = copy.finish();
    // Donations name parameters by place.
    for (param, _) in &mut new.donated {
        let at = places.iter().position(|from| *from == Some(*param as usize));
        *param = at.expect("a state stays a parameter") as u32;
    }
    new
}

/// What tells works on one parameter apart.
fn key(op: &OpData) -> String {
    format!("{} {:?}", op.op.name(), op.attrs)
}

/// `func` with the works done on the operands of every call of `id`.
fn hand_over(func: &Func, id: FuncId, signature: &Signature) -> Result<Func, PassError> {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    for (at, op) in func.body_ops() {
        if callee(op) != Some(id) {
            copy.op(at);
            continue;
        }
        let given = copy.mapped(at);
        let (first, last) = (carry(op), carry(op) + stacked(op));
        let (mut operands, mut xs) = (vec![], 0);
        for (p, (stays, works)) in signature.params.iter().enumerate() {
            let before = operands.len();
            if *stays {
                operands.push(given.operands[p]);
            }
            for work in works {
                copy.to.at(&work.op.spans);
                let made = copy.to.emit(work.op.op, &[given.operands[p]], work.op.attrs.clone());
                operands.push(made.map_err(|e| PassError::from(e).at(func, op))?);
            }
            if (first..last).contains(&p) {
                xs += operands.len() - before;
            }
        }
        let attrs = match op.op {
            Op::Repeat => given.attrs.int("xs", xs as i64),
            _ => given.attrs,
        };
        copy.put(op.op, operands, attrs, &op.results, &op.spans);
    }
    Ok(copy.finish())
}

/// Weights that every entry reads through one and the same narrowing conversion, and that none
/// changes, are stored as what it makes.
fn store_narrow(module: &mut Module) -> usize {
    let weights: Vec<String> = module
        .stores
        .iter()
        .filter(|(_, s)| s.kind == StoreKind::Weight && !s.ty.state)
        .map(|(name, _)| name.clone())
        .collect();
    let mut stored = 0;
    for name in weights {
        let Some(dtype) = read_as(module, &name) else { continue };
        for i in 0..module.funcs.len() {
            module.funcs[i] = retyped(&module.funcs[i], &name, dtype);
        }
        if let Some(store) = module.stores.get_mut(&name) {
            store.ty = store.ty.with_dtype(dtype);
        }
        stored += 1;
    }
    stored
}

/// The parameter of an entry that is a store.
fn param_of(func: &Func, store: &str) -> Option<ValueId> {
    if func.result_names.is_empty() {
        return None;
    }
    func.params.iter().copied().find(|p| func.value(*p).name.as_deref() == Some(store))
}

/// The one type that entries convert a weight to before anything else is done with it.
fn read_as(module: &Module, store: &str) -> Option<DType> {
    let mut only = None;
    for func in &module.funcs {
        let Some(param) = param_of(func, store) else { continue };
        if func.ty(param).state || func.results.contains(&param) {
            return None;
        }
        for (_, op) in func.body_ops().filter(|(_, op)| op.operands.contains(&param)) {
            let to = func.ty(op.results[0]).dtype;
            let narrows = op.op == Op::Convert && to.is_float();
            if !narrows || to.bits() >= func.ty(param).dtype.bits() {
                return None;
            }
            if *only.get_or_insert(to) != to {
                return None;
            }
        }
    }
    only
}

/// The entry with the store's parameter in `dtype`, and no conversions of it.
fn retyped(func: &Func, store: &str, dtype: DType) -> Func {
    let Some(param) = param_of(func, store) else { return func.clone() };
    let mut copy = Copier::new(func, &func.name);
    for p in &func.params {
        if *p == param {
            let to = copy.to.param(store, func.ty(*p).with_dtype(dtype));
            copy.set(*p, to);
        } else {
            copy.param(*p, "p");
        }
    }
    for (id, op) in func.body_ops() {
        match op.operands[..] == [param] {
            true => copy.set(op.results[0], copy.get(param)),
            false => copy.op(id),
        }
    }
    copy.finish()
}
