//! Divide stores among ranks: types of parts, and collectives where a whole is needed.
//!
//! ```text
//! (%w: state f32[8, 3], ..)                       (%w: state f32[4{data}, 3], ..)
//!   %1 = read %w : f32[8, 3]                        %1 = read %w : f32[4{data}, 3]
//!   ..                                         =>   %2 = all_gather %1 {axis = data, dim = 0}
//!   %g = all_reduce %own {axis = data}              %g = reduce_scatter %own {axis = data, dim = 0}
//!   .. = adamw %w, %w.m, %w.v, %g, ..               .. = adamw %w, %w.m, %w.v, %g, ..
//! ```
//!
//! A gradient is scattered as it is summed, a weight gathered where it is read. A sum over ranks is
//! the same tree either way, and the norm of a gradient is a sum over rows of sums within rows
//! (`train_step`), so the bits are those of one rank. What reads a part and is not the optimizer's
//! arithmetic is given the gathered whole.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{AxisId, Type};

use crate::PassError;
use crate::rewrite::{Copier, callee};

/// A dim that ranks along an axis divide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    pub axis: AxisId,
    pub n_parts: u64,
    pub dim: usize,
}

impl Cut {
    fn at(self, dim: usize) -> Cut {
        Cut { dim, ..self }
    }

    fn part(&self, whole: &Type) -> Type {
        let mut ty = whole.clone();
        let size = ty.dims[self.dim].as_fixed().expect("only fixed sizes are cut");
        ty.dims[self.dim] = Dim::fixed(size / self.n_parts);
        ty.axes.resize(ty.dims.len(), None);
        ty.axes[self.dim] = Some(self.axis);
        ty
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().axis("axis", self.axis).int("dim", self.dim as i64)
    }
}

/// A sum over ranks of which each needs a part alone.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    pub op: OpId,
    pub cut: Cut,
    /// What its parts are summed over after that.
    pub rest: Option<AxisId>,
}

/// What is divided.
#[derive(Default)]
pub struct Parts {
    /// Stores by name.
    pub stores: BTreeMap<String, Cut>,
    /// Sums of the training step.
    pub sums: Vec<Sum>,
}

/// Divides the stores, in every entry, and the sums of the step.
pub fn divide(module: &mut Module, step: Option<FuncId>, parts: &Parts) -> Result<(), PassError> {
    for (name, cut) in &parts.stores {
        if let Some(store) = module.stores.get_mut(name) {
            store.ty = cut.part(&store.ty);
        }
    }
    let entries: Vec<FuncId> =
        module.func_ids().filter(|f| !module.func(*f).result_names.is_empty()).collect();
    let called: BTreeSet<FuncId> = {
        let ops = module.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op));
        ops.filter_map(callee).collect()
    };
    for entry in entries {
        if called.contains(&entry) {
            // A part of the step, which is given whole weights: no entry from now on.
            module.func_mut(entry).result_names.clear();
            continue;
        }
        let func = module.func(entry).clone();
        let sums = if Some(entry) == step { &parts.sums[..] } else { &[] };
        let held = BTreeMap::new();
        let divided = Divide { module, stores: &parts.stores, sums, func: &func, held }.func();
        *module.func_mut(entry) = divided.map_err(|e| e.within(&func))?;
    }
    Ok(())
}

/// The sum over ranks that a gradient is, scaled or not.
pub fn summed(func: &Func, gradient: ValueId) -> Option<OpId> {
    let id = func.def_op(gradient)?;
    let op = func.op(id);
    match op.op {
        Op::AllReduce => Some(id),
        Op::Mul | Op::Convert => summed(func, op.operands[0]),
        _ => None,
    }
}

/// An entry in which each rank holds its parts.
struct Divide<'a> {
    module: &'a Module,
    stores: &'a BTreeMap<String, Cut>,
    sums: &'a [Sum],
    func: &'a Func,
    /// Values of `func` of which the copy has a part so far.
    held: BTreeMap<ValueId, (ValueId, Cut)>,
}

impl Divide<'_> {
    fn func(mut self) -> Result<Func, PassError> {
        let mut copy = Copier::new(self.func, &self.func.name);
        for p in &self.func.params {
            let value = self.func.value(*p);
            let name = value.name.clone().unwrap_or_default();
            match self.stores.get(&name) {
                None => drop(copy.param(*p, "p")),
                Some(cut) => {
                    let own = copy.to.param(&name, cut.part(&value.ty));
                    // A state is its part; a value is gathered where it is first read.
                    match value.ty.state {
                        true => copy.set(*p, own),
                        false => drop(self.held.insert(*p, (own, *cut))),
                    }
                }
            }
        }
        for (id, op) in self.func.body_ops() {
            copy.to.at(&op.spans);
            self.op(&mut copy, id, op).map_err(|e| e.at(self.func, op))?;
        }
        for r in &self.func.results {
            self.gather(&mut copy, *r)?;
        }
        Ok(copy.finish())
    }

    fn op(&mut self, copy: &mut Copier, id: OpId, op: &OpData) -> Result<(), PassError> {
        if let Some(sum) = self.sums.iter().find(|sum| sum.op == id) {
            let x = copy.get(op.operands[0]);
            let attrs = sum.cut.attrs();
            let mut part = copy.to.emit_calling(self.module, Op::ReduceScatter, &[x], attrs)?[0];
            if let Some(axis) = sum.rest {
                let attrs = Attrs::new().axis("axis", axis);
                part = copy.to.emit_calling(self.module, Op::AllReduce, &[part], attrs)?[0];
            }
            return self.hold(copy, op.results[0], part, sum.cut);
        }
        if op.op == Op::Read
            && let Some(cut) = self.stored(op.operands[0])
        {
            let part = copy.to.unary(Op::Read, copy.get(op.operands[0]))?;
            return self.hold(copy, op.results[0], part, cut);
        }
        let cut = op.operands.iter().find_map(|x| Some(self.held.get(x)?.1));
        match (op.op, cut) {
            (Op::Mul | Op::Convert, Some(cut)) if self.is_elementwise(op, cut) => {
                let mut xs = vec![];
                for x in &op.operands {
                    xs.push(self.part_of(copy, *x, cut)?);
                }
                let part = copy.to.emit(op.op, &xs, op.attrs.clone())?;
                self.hold(copy, op.results[0], part, cut)
            }
            (Op::ReduceSum, Some(cut)) if !summed_dims(op).contains(&(cut.dim as i64)) => {
                let x = self.held[&op.operands[0]].0;
                let part = copy.to.emit(op.op, &[x], op.attrs.clone())?;
                let before = summed_dims(op).iter().filter(|d| **d < cut.dim as i64).count();
                self.hold(copy, op.results[0], part, cut.at(cut.dim - before))
            }
            (Op::AdamW, _) if self.stored(op.operands[0]).is_some() => {
                let mut xs: Vec<ValueId> = vec![];
                for (i, x) in op.operands.iter().enumerate() {
                    let own = (i == 3).then(|| self.held.get(x)).flatten();
                    xs.push(own.map_or_else(|| copy.get(*x), |(part, _)| *part));
                }
                let made = copy.to.emit_all(op.op, &xs, op.attrs.clone())?;
                op.results.iter().zip(made).for_each(|(from, to)| copy.bind(*from, to));
                Ok(())
            }
            _ => {
                for x in &op.operands {
                    self.gather(copy, *x)?;
                }
                copy.op(id);
                Ok(())
            }
        }
    }

    /// How a parameter's store is cut.
    fn stored(&self, param: ValueId) -> Option<Cut> {
        let name = self.func.value(param).name.as_ref()?;
        self.func.params.contains(&param).then(|| self.stores.get(name).copied()).flatten()
    }

    /// Are all operands parts of one cut, or one number everywhere?
    fn is_elementwise(&self, op: &OpData, cut: Cut) -> bool {
        op.operands.iter().all(|x| match self.held.get(x) {
            Some((_, other)) => *other == cut,
            None => self.number(*x).is_some(),
        })
    }

    /// The scalar that a value repeats.
    fn number(&self, v: ValueId) -> Option<ValueId> {
        let op = self.func.op(self.func.def_op(v)?);
        let scalar = op.op == Op::Broadcast && self.func.ty(op.operands[0]).rank() == 0;
        scalar.then(|| op.operands[0])
    }

    fn part_of(&self, copy: &mut Copier, x: ValueId, cut: Cut) -> Result<ValueId, PassError> {
        if let Some((part, _)) = self.held.get(&x) {
            return Ok(*part);
        }
        let number = copy.get(self.number(x).expect("checked by `is_elementwise`"));
        let dims = cut.part(self.func.ty(x)).dims;
        Ok(copy.to.broadcast_to(number, &dims)?)
    }

    fn hold(
        &mut self,
        copy: &mut Copier,
        whole: ValueId,
        part: ValueId,
        cut: Cut,
    ) -> Result<(), PassError> {
        if let Some(name) = &self.func.value(whole).name {
            copy.to.name(part, name);
        }
        self.held.insert(whole, (part, cut));
        Ok(())
    }

    /// Makes the whole of what the copy has a part of.
    fn gather(&mut self, copy: &mut Copier, x: ValueId) -> Result<(), PassError> {
        let Some((part, cut)) = self.held.get(&x).copied() else { return Ok(()) };
        if copy.try_get(x).is_none() {
            let attrs = cut.attrs();
            let whole = copy.to.emit_calling(self.module, Op::AllGather, &[part], attrs)?[0];
            copy.set(x, whole);
        }
        Ok(())
    }
}

fn summed_dims(op: &OpData) -> Vec<i64> {
    op.attrs.get_ints("dims").map(<[i64]>::to_vec).unwrap_or_default()
}
