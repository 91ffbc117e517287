//! Which values are gradients of experts' weights that ranks have of their own experts alone.
//!
//! They begin where rows are contracted (`grouped_outer`) and end where ranks' gradients meet, at
//! the `reduce_scatter` over `experts`, which has nothing to do then. Between the two they are
//! added, converted, stacked, handed over calls and sent along a pipeline. A constant that is added
//! to one is made anew for it.

use std::collections::BTreeMap;

use weft_ir::dim::product;
use weft_ir::module::{Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{AxisId, Type};

use crate::PassError;
use crate::rewrite::{callee, carry, stacked};
use crate::shard::experts::before;

/// By function: values that are such gradients, with the dim of the experts.
pub struct Gradients {
    of: Vec<BTreeMap<ValueId, usize>>,
    /// The dims of parameters: functions that are rewritten have other values.
    params: Vec<Vec<Option<usize>>>,
    /// Whether any stay with the experts.
    pub stay: bool,
    axis: AxisId,
    changed: bool,
}

impl Gradients {
    /// No gradient stays with the experts.
    pub fn none(module: &Module, axis: AxisId) -> Gradients {
        let of = vec![BTreeMap::new(); module.funcs.len()];
        let params = module.funcs.iter().map(|f| vec![None; f.params.len()]).collect();
        Gradients { of, params, stay: false, axis, changed: false }
    }

    pub fn find(module: &Module, axis: AxisId) -> Result<Gradients, PassError> {
        let mut all = Gradients { stay: true, changed: true, ..Gradients::none(module, axis) };
        while std::mem::take(&mut all.changed) {
            for id in module.func_ids() {
                let func = module.func(id);
                for (_, op) in func.body_ops() {
                    all.step(module, id, op).map_err(|e| e.at(func, op))?;
                }
            }
        }
        for (func, (params, of)) in module.funcs.iter().zip(all.params.iter_mut().zip(&all.of)) {
            let dims = func.params.iter().map(|p| of.get(p).copied());
            *params = dims.collect();
        }
        Ok(all)
    }

    pub fn of(&self, func: FuncId) -> &BTreeMap<ValueId, usize> {
        &self.of[func.0 as usize]
    }

    /// The dim of the experts in what a call hands in as its operand `i`.
    pub fn handed(&self, op: &OpData, i: usize) -> Option<usize> {
        let dim = self.params[callee(op)?.0 as usize][i]?;
        Some(dim + usize::from(is_sliced(op, i)))
    }

    /// Where ranks' gradients meet.
    pub fn ends(&self, func: FuncId, op: &OpData) -> bool {
        let meets = op.op == Op::ReduceScatter && op.attrs.get_axis("axis") == Some(self.axis);
        let dim = op.attrs.get_int("dim").map(|d| d as usize);
        meets && dim.is_some() && self.of(func).get(&op.operands[0]).copied() == dim
    }

    fn step(&mut self, module: &Module, id: FuncId, op: &OpData) -> Result<(), PassError> {
        let func = module.func(id);
        if callee(op).is_some() {
            return self.call(module, id, op);
        }
        if op.op == Op::GroupedOuter {
            return self.mark(func, id, op.results[0], 0);
        }
        let held = |v: &ValueId| self.of(id).get(v).map(|dim| (*v, *dim));
        let Some((v, dim)) = op.operands.iter().chain(&op.results).find_map(held) else {
            return Ok(());
        };
        if self.ends(id, op) {
            return Ok(());
        }
        if op.op == Op::Reshape {
            let (from, to) = (op.operands[0], op.results[0]);
            return match (v == from, before(func, op, dim)) {
                (true, _) => {
                    let dim = reshaped(func.ty(from), func.ty(to), dim);
                    let dim = dim.ok_or_else(|| PassError::new("reshapes experts away"))?;
                    self.mark(func, id, to, dim)
                }
                (false, Some(dim)) => self.mark(func, id, from, dim),
                (false, None) => Err(PassError::new("reshapes experts away")),
            };
        }
        let each = op.op.has(Trait::Pointwise)
            || matches!(op.op, Op::AllReduce | Op::ReduceScatter | Op::AllGather)
            || matches!(op.op, Op::Slice | Op::Concat | Op::Send | Op::Recv)
                && op.attrs.get_int("dim") != Some(dim as i64);
        if !each {
            let why = "reads the gradients of all experts, and ranks have those of their own";
            return Err(PassError::new(why));
        }
        let rank = func.ty(v).rank();
        for other in op.operands.iter().chain(&op.results) {
            if func.ty(*other).rank() == rank && !is_remade(func, *other) {
                self.mark(func, id, *other, dim)?;
            }
        }
        Ok(())
    }

    fn call(&mut self, module: &Module, id: FuncId, op: &OpData) -> Result<(), PassError> {
        let inner_id = callee(op).expect("it calls");
        let (func, inner) = (module.func(id), module.func(inner_id));
        for (i, x) in op.operands.iter().enumerate() {
            let shift = usize::from(is_sliced(op, i));
            self.both(module, (id, *x), (inner_id, inner.params[i]), shift)?;
        }
        for (i, r) in op.results.iter().enumerate() {
            let is_stack = op.op == Op::Repeat && i >= carry(op);
            self.both(module, (id, *r), (inner_id, inner.results[i]), usize::from(is_stack))?;
        }
        for (x, r) in op.operands.iter().zip(&op.results).take(carry(op)) {
            if let Some(dim) = self.of(id).get(r).copied() {
                self.mark(func, id, *x, dim)?;
            }
            if let Some(dim) = self.of(id).get(x).copied() {
                self.mark(func, id, *r, dim)?;
            }
        }
        Ok(())
    }

    /// Two values are one, but for a dim in front of the outer.
    fn both(
        &mut self,
        module: &Module,
        outer: (FuncId, ValueId),
        inner: (FuncId, ValueId),
        shift: usize,
    ) -> Result<(), PassError> {
        let [of_outer, of_inner] = [outer, inner].map(|(f, v)| self.of(f).get(&v).copied());
        if let Some(dim) = of_outer {
            let dim = dim.checked_sub(shift);
            let dim = dim.ok_or_else(|| PassError::new("takes experts one by one"))?;
            self.mark(module.func(inner.0), inner.0, inner.1, dim)?;
        }
        match of_inner {
            Some(dim) => self.mark(module.func(outer.0), outer.0, outer.1, dim + shift),
            None => Ok(()),
        }
    }

    fn mark(&mut self, func: &Func, id: FuncId, v: ValueId, dim: usize) -> Result<(), PassError> {
        if is_remade(func, v) {
            return Ok(());
        }
        match self.of[id.0 as usize].insert(v, dim) {
            None => self.changed = true,
            Some(before) if before != dim => {
                return Err(PassError::new("adds gradients of experts along unlike dims"));
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// Does a value have one number everywhere, so that it can be made anew in another size?
pub fn is_remade(func: &Func, v: ValueId) -> bool {
    let Some(op) = func.def_op(v).map(|id| func.op(id)) else { return false };
    match op.op {
        Op::Constant => true,
        Op::Broadcast => func.ty(op.operands[0]).rank() == 0,
        Op::Convert => is_remade(func, op.operands[0]),
        _ => false,
    }
}

fn is_sliced(op: &OpData, i: usize) -> bool {
    (carry(op)..carry(op) + stacked(op)).contains(&i)
}

/// The dim of a reshape's result that `dim` of its operand is.
fn reshaped(from: &Type, to: &Type, dim: usize) -> Option<usize> {
    let outside = product(&from.dims[..dim])?;
    let same =
        |d: &usize| to.dims[*d] == from.dims[dim] && product(&to.dims[..*d]) == Some(outside);
    (0..to.dims.len()).find(same)
}
