//! Move what is done to a weight alone out of functions, to their callers.
//!
//! ```text
//! func @layer(%x, %w: f32[4, 4]) {              func @layer(%x, %w: bf16[4, 4]) {
//!   %1 = convert %w : bf16[4, 4]           =>     %1 = matmul %x, %w
//!   %2 = matmul %x, %1                          }
//! }                                             %3 = convert %ws : bf16[9, 4, 4]
//! %y = repeat %h, %ws {func = @layer, ..}       %y = repeat %h, %3 {func = @layer, ..}
//! ```
//!
//! Why: weights are rounded and quantized once a step, not in every layer of every micro-batch,
//! forward and backward. A stack is done whole. At the end of the way up, a weight that the entries
//! only read so is stored as they read it, in as many forms as they read: a machine that only runs
//! a model makes bf16, or codes and scales, of its weights when it loads them. Cost: one walk over
//! every function and its callers; what is made of weights lives as long as the loop that reads it.
//! What is no weight stays: saved activations would be converted for all layers at once. A weight
//! is one in another shape, too, and gathered from ranks' parts.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::module::{Def, Func, FuncId, Module, OpData, Store, StoreKind, ValueId};
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
            // What moves here in another shape moves on behind it.
            while let n @ 1.. = out_of(module, id)? {
                moved += n;
            }
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

/// Work that gives a weight the form in which it is read.
fn is_work(op: &OpData) -> bool {
    matches!(op.op, Op::Convert | Op::Quantize)
}

/// Whether a value is a weight in the entries that it comes from, whole or a layer of it. What
/// another function computed is not moved: it would be converted for all layers before the first
/// runs.
fn is_weight(module: &Module, id: FuncId, v: ValueId) -> bool {
    let func = module.func(id);
    match func.value(v).def {
        Def::Param(_) if !func.result_names.is_empty() => {
            let store = func.value(v).name.as_ref().and_then(|name| module.stores.get(name));
            store.is_some_and(|s| s.kind == StoreKind::Weight)
        }
        Def::Param(p) => {
            let p = p as usize;
            let mut users = callers(module, id).peekable();
            users.peek().is_some()
                && users.all(|(f, op)| p >= carry(op) && is_weight(module, f, op.operands[p]))
        }
        Def::Result { op, .. } => {
            let op = func.op(op);
            let same = matches!(op.op, Op::Read | Op::AllGather | Op::Reshape);
            same && is_weight(module, id, op.operands[0])
        }
    }
}

/// Works on weights.
fn work_in(module: &Module, id: FuncId) -> Vec<Work> {
    let func = module.func(id);
    let mut found: Vec<Work> = vec![];
    for (_, op) in func.body_ops() {
        let [x] = op.operands[..] else { continue };
        let Def::Param(param) = func.value(x).def else { continue };
        let param = param as usize;
        let moves = is_work(op) || op.op == Op::Reshape && is_passed_whole(module, id, param);
        if !moves || func.ty(x).state || !is_weight(module, id, x) {
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

/// Whether no caller stacks a parameter, so that it has there the shape that it has here.
fn is_passed_whole(module: &Module, id: FuncId, param: usize) -> bool {
    callers(module, id).all(|(_, op)| param >= carry(op) + stacked(op))
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
    let new = without(module.func(id), &signature, &|p, _| name_of(module.func(id), p));
    module.funcs[id.0 as usize] = new;
    let users: BTreeSet<FuncId> = callers(module, id).map(|(f, _)| f).collect();
    for user in users {
        module.funcs[user.0 as usize] = hand_over(module.func(user), id, &signature)?;
    }
    Ok(works.len())
}

/// A parameter stays if anything but the works reads it.
fn signature(func: &Func, works: &[Work]) -> Signature {
    let moves = |op: &OpData, p: usize| {
        works.iter().any(|w| w.param == p && w.op.op == op.op && w.op.attrs == op.attrs)
    };
    let params = func.params.iter().enumerate().map(|(p, value)| {
        let own: Vec<Work> = works.iter().filter(|w| w.param == p).cloned().collect();
        let read = func.body_ops().any(|(_, op)| op.operands.contains(value) && !moves(op, p));
        (own.is_empty() || read || func.results.contains(value), own)
    });
    Signature { params: params.collect() }
}

fn name_of(func: &Func, param: usize) -> String {
    func.value(func.params[param]).name.clone().unwrap_or_else(|| "p".into())
}

/// The function with the works' results as parameters under the names that `name` gives.
fn without(func: &Func, signature: &Signature, name: &dyn Fn(usize, &Work) -> String) -> Func {
    let mut copy = Copier::new(func, &func.name);
    let mut made: BTreeMap<(usize, String), ValueId> = BTreeMap::new();
    let mut places = vec![];
    for (p, (value, (stays, works))) in func.params.iter().zip(&signature.params).enumerate() {
        if *stays {
            places.push(Some(p));
            copy.param(*value, "p");
        }
        for (i, work) in works.iter().enumerate() {
            places.push((!*stays && i == 0).then_some(p));
            let param = copy.to.param(&name(p, work), work.ty.as_value());
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

/// Weights that every entry reads through narrowing works alone, and that none changes, are stored
/// as what those make: one store for each. Codes have the name of their type too, for prefill and
/// decode are compiled apart and share what is stored under one name.
pub fn store_narrow(module: &mut Module) -> usize {
    let weights: Vec<String> = module
        .stores
        .iter()
        .filter(|(_, s)| s.kind == StoreKind::Weight && !s.ty.state)
        .map(|(name, _)| name.clone())
        .collect();
    let mut forms = BTreeMap::new();
    for name in weights {
        let Some(works) = read_as(module, &name) else { continue };
        let named = |work: &Work| match work.op.op {
            Op::Quantize => format!("{name}.{}", work.ty.dtype.name()),
            _ => name.clone(),
        };
        let names: Vec<String> = works.iter().map(named).collect();
        let unlike = names.iter().collect::<BTreeSet<_>>().len() == names.len();
        // Two codes of 12 bits share a byte: what is loaded is of whole bytes.
        let packed = works.iter().any(|work| work.ty.dtype == DType::E5m6);
        if works.is_empty() || !unlike || packed {
            continue;
        }
        for i in 0..module.funcs.len() {
            module.funcs[i] = reading_forms(&module.funcs[i], &name, &works, &names);
        }
        forms.insert(name, works.into_iter().map(|w| w.ty).zip(names).collect::<Vec<_>>());
    }
    let mut stored = 0;
    for (name, store) in std::mem::take(&mut module.stores) {
        let Some(forms) = forms.remove(&name) else {
            module.stores.insert(name, store);
            continue;
        };
        for (ty, name) in forms {
            stored += 1;
            module.stores.insert(name, Store { ty: ty.as_value(), ..store.clone() });
        }
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

/// What entries make of a weight before anything else is done with it.
fn read_as(module: &Module, store: &str) -> Option<Vec<Work>> {
    let mut works: Vec<Work> = vec![];
    for func in &module.funcs {
        let Some(param) = param_of(func, store) else { continue };
        if func.ty(param).state || func.results.contains(&param) {
            return None;
        }
        let place = func.params.iter().position(|p| *p == param)?;
        for (_, op) in func.body_ops().filter(|(_, op)| op.operands.contains(&param)) {
            let ty = func.ty(op.results[0]).clone();
            let narrows = is_work(op) && ty.dtype.bits() < func.ty(param).dtype.bits();
            if !narrows || !ty.dtype.is_float() {
                return None;
            }
            if !works.iter().any(|w| key(&w.op) == key(op)) {
                works.push(Work { param: place, op: op.clone(), ty });
            }
        }
    }
    works.sort_by_key(|w| (std::cmp::Reverse(w.ty.dtype.bits()), key(&w.op)));
    Some(works)
}

/// The entry with a parameter for each of the forms of `store` that it reads.
fn reading_forms(func: &Func, store: &str, works: &[Work], names: &[String]) -> Func {
    let Some(param) = param_of(func, store) else { return func.clone() };
    let read = |w: &Work| {
        let reads = |op: &OpData| op.operands == [param] && key(op) == key(&w.op);
        func.body_ops().any(|(_, op)| reads(op))
    };
    let params = func.params.iter().map(|p| match *p == param {
        true => (false, works.iter().filter(|w| read(w)).cloned().collect()),
        false => (true, vec![]),
    });
    let name = |_: usize, work: &Work| {
        let form = works.iter().position(|w| key(&w.op) == key(&work.op));
        names[form.expect("it is one of the forms")].clone()
    };
    without(func, &Signature { params: params.collect() }, &name)
}
