//! Hand codes over calls instead of what they stand for.
//!
//! ```text
//! func @f.fwd(..) {                                func @f.fwd(..) {
//!   %d = dequantize %q {dtype = bf16}        =>      return %y, %q
//!   return %y, %d                                  }
//! }                                                %y, %q = call .. {func = @f.fwd}
//! %y, %d = call .. {func = @f.fwd}                 %d = dequantize %q {dtype = bf16}
//! ```
//!
//! and where every caller hands a dequantized value in, it hands the codes in, and the function
//! dequantizes. What lies between the two is then codes and scales in memory. A reshape behind
//! `dequantize` goes with it.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, OpData, Span, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use crate::PassError;
use crate::rewrite::{Copier, callee, carry, stacked};

/// Codes, and how a value is made of them.
#[derive(Clone, PartialEq, Debug)]
struct Coded {
    /// The type of the codes.
    ty: Type,
    /// What they are dequantized to.
    dtype: DType,
    /// The dims the value has.
    dims: Vec<Dim>,
}

impl Coded {
    /// The value, if it is read from codes, and those.
    fn of(func: &Func, v: ValueId) -> Option<(ValueId, Coded)> {
        let made = |v: ValueId| func.def_op(v).map(|id| func.op(id));
        let mut from = made(v)?;
        if from.op == Op::Reshape {
            from = made(from.operands[0])?;
        }
        let codes = *from.operands.first().filter(|_| from.op == Op::Dequantize)?;
        let (ty, value) = (func.ty(codes).clone(), func.ty(v));
        Some((codes, Coded { ty, dtype: value.dtype, dims: value.dims.clone() }))
    }

    fn read(&self, b: &mut Builder, codes: ValueId) -> Result<ValueId, PassError> {
        let attrs = Attrs::new().with("dtype", weft_ir::attr::Attr::DType(self.dtype));
        let value = b.emit(Op::Dequantize, &[codes], attrs)?;
        Ok(b.reshape(value, &self.dims)?)
    }

    /// Of all runs of a repeat.
    fn stack(&self, count: Dim) -> Coded {
        let with = |dims: &[Dim]| [&[count], dims].concat();
        Coded {
            ty: self.ty.with_dims(with(&self.ty.dims)),
            dtype: self.dtype,
            dims: with(&self.dims),
        }
    }

    /// Of one run of a repeat, if each has codes of its own.
    fn of_one_run(&self) -> Option<Coded> {
        let (codes, dims) = (self.ty.dims.split_first()?, self.dims.split_first()?);
        let apart = codes.0 == dims.0 && codes.1.len() >= 2;
        apart.then(|| Coded {
            ty: self.ty.with_dims(codes.1),
            dtype: self.dtype,
            dims: dims.1.to_vec(),
        })
    }
}

/// Move `dequantize` up to callers, then down to callees; returns how many values are handed on as
/// codes.
pub fn hand_codes(module: &mut Module) -> Result<usize, PassError> {
    let mut handed = 0;
    // Callees come first, so what one returns is codes when its callers are looked at.
    for i in 0..module.funcs.len() {
        handed += results_up(module, FuncId(i as u32))?;
    }
    for i in (0..module.funcs.len()).rev() {
        params_down(module, FuncId(i as u32))?;
    }
    Ok(handed)
}

fn callers(module: &Module, id: FuncId) -> Vec<(FuncId, &OpData)> {
    let of = |f: FuncId| {
        let ops = module.func(f).body_ops().map(|(_, op)| op);
        ops.filter(move |op| callee(op) == Some(id)).map(move |op| (f, op))
    };
    module.func_ids().flat_map(of).collect()
}

fn is_entry(func: &Func) -> bool {
    !func.result_names.is_empty()
}

fn results_up(module: &mut Module, id: FuncId) -> Result<usize, PassError> {
    let func = module.func(id);
    let callers = callers(module, id);
    if is_entry(func) || callers.is_empty() {
        return Ok(0);
    }
    let carried = callers.iter().map(|(_, op)| carry(op)).max().unwrap_or(0);
    let coded: BTreeMap<usize, (ValueId, Coded)> = (carried..func.results.len())
        .filter_map(|i| Some((i, Coded::of(func, func.results[i])?)))
        .collect();
    if coded.is_empty() {
        return Ok(0);
    }
    let users: BTreeSet<FuncId> = callers.iter().map(|(f, _)| *f).collect();
    let mut func = func.clone();
    for (i, (codes, _)) in &coded {
        func.results[*i] = *codes;
    }
    module.funcs[id.0 as usize] = func;
    for user in users {
        let read = read_results(module, user, id, &coded)?;
        module.funcs[user.0 as usize] = read;
    }
    Ok(coded.len())
}

/// `user` with the coded results of its calls of `id` dequantized.
fn read_results(
    module: &Module,
    user: FuncId,
    id: FuncId,
    coded: &BTreeMap<usize, (ValueId, Coded)>,
) -> Result<Func, PassError> {
    let func = module.func(user);
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    for (at, op) in func.body_ops() {
        if callee(op) != Some(id) {
            copy.op(at);
            continue;
        }
        copy.to.at(&op.spans);
        let given = copy.mapped(at);
        let made = copy.to.emit_calling(module, op.op, &given.operands, given.attrs);
        let made = made.map_err(|e| PassError::from(e).at(func, op))?;
        for (i, (from, to)) in op.results.iter().zip(made).enumerate() {
            let Some((_, coded)) = coded.get(&i) else {
                copy.bind(*from, to);
                continue;
            };
            let value = match op.attrs.get_int("count").filter(|_| op.op == Op::Repeat) {
                Some(count) => coded.stack(Dim::fixed(count as u64)).read(&mut copy.to, to),
                None => coded.read(&mut copy.to, to),
            };
            copy.bind(*from, value.map_err(|e| e.at(func, op))?);
        }
    }
    Ok(copy.finish())
}

fn params_down(module: &mut Module, id: FuncId) -> Result<(), PassError> {
    let func = module.func(id);
    let callers = callers(module, id);
    if is_entry(func) || callers.is_empty() {
        return Ok(());
    }
    let coded: BTreeMap<usize, Coded> = (0..func.params.len())
        .filter_map(|p| {
            let mut all = callers.iter().map(|(f, op)| handed_in(module.func(*f), op, p));
            let first = all.next()??;
            all.all(|other| other.as_ref() == Some(&first)).then_some((p, first))
        })
        .collect();
    if coded.is_empty() {
        return Ok(());
    }
    let users: BTreeSet<FuncId> = callers.iter().map(|(f, _)| *f).collect();
    module.funcs[id.0 as usize] = take_codes(func, &coded)?;
    for user in users {
        let func = module.func(user);
        let mut copy = Copier::new(func, &func.name);
        copy.params();
        for (at, op) in func.body_ops() {
            let mut given = copy.mapped(at);
            if callee(op) == Some(id) {
                for p in coded.keys() {
                    let codes = Coded::of(func, op.operands[*p]).map(|(codes, _)| copy.get(codes));
                    given.operands[*p] = codes.expect("every caller hands a coded value in");
                }
            }
            copy.put(op.op, given.operands, given.attrs, &op.results, &op.spans);
        }
        module.funcs[user.0 as usize] = copy.finish();
    }
    Ok(())
}

/// What one run is handed as its parameter `p`, if the call has it from codes.
fn handed_in(caller: &Func, op: &OpData, p: usize) -> Option<Coded> {
    let (_, coded) = Coded::of(caller, op.operands[p])?;
    match p {
        p if p < carry(op) => None,
        p if p < carry(op) + stacked(op) => coded.of_one_run(),
        _ => Some(coded),
    }
}

fn take_codes(func: &Func, coded: &BTreeMap<usize, Coded>) -> Result<Func, PassError> {
    let mut copy = Copier::new(func, &func.name);
    let mut taken = vec![];
    for (i, p) in func.params.iter().enumerate() {
        match coded.get(&i) {
            None => drop(copy.param(*p, "p")),
            Some(coded) => {
                let name = func.value(*p).name.as_deref().unwrap_or("p");
                taken.push((*p, copy.to.param(name, coded.ty.clone()), coded));
            }
        }
    }
    copy.to.at(&first_spans(func));
    for (p, codes, coded) in taken {
        let value = coded.read(&mut copy.to, codes)?;
        copy.set(p, value);
    }
    func.body.iter().for_each(|op| copy.op(*op));
    Ok(copy.finish())
}

/// The place of what a function does before anything else.
fn first_spans(func: &Func) -> Vec<Span> {
    func.body_ops().next().map(|(_, op)| op.spans.clone()).unwrap_or_default()
}
