//! Divide weights and optimizer states among the ranks that share the batch (ZeRO-1,
//! arXiv 1910.02054).
//!
//! ```text
//! (%w: state f32[8, 3], ..)                       (%w: state f32[4{data}, 3], ..)
//!   %1 = read %w : f32[8, 3]                        %1 = read %w : f32[4{data}, 3]
//!   ..                                         =>   %2 = all_gather %1 {axis = data, dim = 0}
//!   %g = all_reduce %own {axis = data}              %g = reduce_scatter %own {axis = data, dim = 0}
//!   .. = adamw %w, %w.m, %w.v, %g, ..               .. = adamw %w, %w.m, %w.v, %g, ..
//! ```
//!
//! Why: every rank would keep the same master weights and moments and change them alike; of a part
//! each, memory for them falls by the number of ranks. Links carry what an `all_reduce` carries: a
//! gradient is scattered as it is summed, a weight gathered when the step begins. A sum over ranks
//! is the same tree either way, and the norm of a gradient is a sum over rows of sums within rows
//! (`train_step`), so the bits are those of one rank. A tensor is cut along its first dim; one that
//! the ranks do not divide stays whole. What reads a part and is not the optimizer's arithmetic is
//! given the gathered whole. Cost: one pass over the entries. Requires: `shard`.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, Store, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{AxisId, Type};

use crate::rewrite::{Copier, callee};
use crate::shard::DATA;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "zero", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(mesh) = cx.mesh.as_ref().filter(|m| m.zero && m.data > 1) else {
        return Ok(Stats::default());
    };
    let axis = module.axes.iter().position(|a| a.name == DATA);
    let (Some(step), Some(axis)) = (module.find("train_step"), axis) else {
        return Ok(Stats::default());
    };
    let axis = AxisId(axis as u32);
    let func = module.func(step).clone();
    let mut parts = Parts { axis, n_ranks: mesh.data, stores: BTreeMap::new(), sums: vec![] };
    parts.find(module, &func);
    for (name, dim) in &parts.stores {
        if let Some(store) = module.stores.get_mut(name) {
            store.ty = parts.part(&store.ty, *dim);
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
        let sums = if entry == step { &parts.sums[..] } else { &[] };
        let held = BTreeMap::new();
        let divided = Divide { module, parts: &parts, sums, func: &func, held }.func();
        *module.func_mut(entry) = divided.map_err(|e| e.within(&func))?;
    }
    Ok(Stats::one("stores divided", parts.stores.len()))
}

/// What is divided.
struct Parts {
    axis: AxisId,
    n_ranks: u64,
    /// Stores by name, and the dim each is cut along.
    stores: BTreeMap<String, usize>,
    /// Sums over ranks of which each needs a part, and along which dim.
    sums: Vec<(OpId, usize)>,
}

impl Parts {
    /// The weights whose gradients are sums over the ranks, with their moments.
    fn find(&mut self, module: &Module, func: &Func) {
        for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::AdamW) {
            let names = op.operands[..3].iter().map(|v| func.value(*v).name.clone());
            let Some(names) = names.collect::<Option<Vec<String>>>() else { continue };
            let Some(store) = module.stores.get(&names[0]) else { continue };
            let (Some(dim), Some(sum)) = (self.dim(store), summed(func, op.operands[3])) else {
                continue;
            };
            self.sums.push((sum, dim));
            self.stores.extend(names.into_iter().map(|name| (name, dim)));
        }
    }

    /// The first dim of the stored tensors, if the ranks divide it.
    fn dim(&self, store: &Store) -> Option<usize> {
        let dim = store.starts.len();
        let size = store.ty.dims.get(dim)?.as_fixed()?;
        size.is_multiple_of(self.n_ranks).then_some(dim)
    }

    fn part(&self, whole: &Type, dim: usize) -> Type {
        let mut ty = whole.clone();
        let size = ty.dims[dim].as_fixed().expect("only fixed sizes are cut");
        ty.dims[dim] = Dim::fixed(size / self.n_ranks);
        ty.axes = vec![None; ty.dims.len()];
        ty.axes[dim] = Some(self.axis);
        ty
    }

    fn attrs(&self, dim: usize) -> Attrs {
        Attrs::new().axis("axis", self.axis).int("dim", dim as i64)
    }
}

/// The sum over ranks that a gradient is, scaled or not.
fn summed(func: &Func, gradient: ValueId) -> Option<OpId> {
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
    parts: &'a Parts,
    sums: &'a [(OpId, usize)],
    func: &'a Func,
    /// Values of `func` of which the copy has a part so far, and along which dim.
    held: BTreeMap<ValueId, (ValueId, usize)>,
}

impl Divide<'_> {
    fn func(mut self) -> Result<Func, PassError> {
        let mut copy = Copier::new(self.func, &self.func.name);
        for p in &self.func.params {
            let value = self.func.value(*p);
            let name = value.name.clone().unwrap_or_default();
            match self.parts.stores.get(&name) {
                None => drop(copy.param(*p, "p")),
                Some(dim) => {
                    let own = copy.to.param(&name, self.parts.part(&value.ty, *dim));
                    // A state is its part; a value is gathered where it is first read.
                    match value.ty.state {
                        true => copy.set(*p, own),
                        false => drop(self.held.insert(*p, (own, *dim))),
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
        if let Some((_, dim)) = self.sums.iter().find(|(sum, _)| *sum == id) {
            let x = copy.get(op.operands[0]);
            let attrs = self.parts.attrs(*dim);
            let part = copy.to.emit_calling(self.module, Op::ReduceScatter, &[x], attrs)?[0];
            return self.hold(copy, op.results[0], part, *dim);
        }
        if op.op == Op::Read
            && let Some(dim) = self.stored(op.operands[0])
        {
            let part = copy.to.unary(Op::Read, copy.get(op.operands[0]))?;
            return self.hold(copy, op.results[0], part, dim);
        }
        let dim = op.operands.iter().find_map(|x| Some(self.held.get(x)?.1));
        match (op.op, dim) {
            (Op::Mul | Op::Convert, Some(dim)) if self.is_elementwise(op, dim) => {
                let mut xs = vec![];
                for x in &op.operands {
                    xs.push(self.part_of(copy, *x, dim)?);
                }
                let part = copy.to.emit(op.op, &xs, op.attrs.clone())?;
                self.hold(copy, op.results[0], part, dim)
            }
            (Op::ReduceSum, Some(dim)) if !summed_dims(op).contains(&(dim as i64)) => {
                let x = self.held[&op.operands[0]].0;
                let part = copy.to.emit(op.op, &[x], op.attrs.clone())?;
                let before = summed_dims(op).iter().filter(|d| **d < dim as i64).count();
                self.hold(copy, op.results[0], part, dim - before)
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

    /// The dim that a parameter's store is cut along.
    fn stored(&self, param: ValueId) -> Option<usize> {
        let name = self.func.value(param).name.as_ref()?;
        self.func.params.contains(&param).then(|| self.parts.stores.get(name).copied()).flatten()
    }

    /// Are all operands parts along `dim`, or one number everywhere?
    fn is_elementwise(&self, op: &OpData, dim: usize) -> bool {
        op.operands.iter().all(|x| match self.held.get(x) {
            Some((_, d)) => *d == dim,
            None => self.number(*x).is_some(),
        })
    }

    /// The scalar that a value repeats.
    fn number(&self, v: ValueId) -> Option<ValueId> {
        let op = self.func.op(self.func.def_op(v)?);
        let scalar = op.op == Op::Broadcast && self.func.ty(op.operands[0]).rank() == 0;
        scalar.then(|| op.operands[0])
    }

    fn part_of(&self, copy: &mut Copier, x: ValueId, dim: usize) -> Result<ValueId, PassError> {
        if let Some((part, _)) = self.held.get(&x) {
            return Ok(*part);
        }
        let number = copy.get(self.number(x).expect("checked by `is_elementwise`"));
        let dims = self.parts.part(self.func.ty(x), dim).dims;
        Ok(copy.to.broadcast_to(number, &dims)?)
    }

    fn hold(
        &mut self,
        copy: &mut Copier,
        whole: ValueId,
        part: ValueId,
        dim: usize,
    ) -> Result<(), PassError> {
        if let Some(name) = &self.func.value(whole).name {
            copy.to.name(part, name);
        }
        self.held.insert(whole, (part, dim));
        Ok(())
    }

    /// Makes the whole of what the copy has a part of.
    fn gather(&mut self, copy: &mut Copier, x: ValueId) -> Result<(), PassError> {
        let Some((part, dim)) = self.held.get(&x).copied() else { return Ok(()) };
        if copy.try_get(x).is_none() {
            let attrs = self.parts.attrs(dim);
            let whole = copy.to.emit_calling(self.module, Op::AllGather, &[part], attrs)?[0];
            copy.set(x, whole);
        }
        Ok(())
    }
}

fn summed_dims(op: &OpData) -> Vec<i64> {
    op.attrs.get_ints("dims").map(<[i64]>::to_vec).unwrap_or_default()
}
