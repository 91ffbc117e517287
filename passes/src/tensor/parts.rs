//! A program in which each rank along `tensor` has its parts.
//!
//! A value is one of three: *cut*, and a rank has its part; *partial*, and what ranks have adds up
//! to it; or *whole*, and all ranks have it alike. An op that has a dim that is cut runs on parts:
//! what it reads whole is spread first, what it sums over the dim is partial. Partial values stay
//! so through ops that are linear in them, and are summed in f32 before anything else reads them.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{AxisId, DType, Type};

use super::families::Family;
use crate::PassError;
use crate::autodiff::activity;
use crate::rewrite::{Copier, callee};

/// What is cut.
pub struct Cut {
    pub axis: AxisId,
    pub n: u64,
    /// By function and value: the dim.
    pub dims: Vec<Vec<Option<usize>>>,
}

impl Cut {
    fn part(&self, dim: Dim) -> Dim {
        Dim::fixed(dim.coeff() / self.n)
    }

    /// What a rank has of a value that is cut along `d`.
    fn own(&self, ty: &Type, d: usize) -> Type {
        let mut dims = ty.dims.clone();
        dims[d] = self.part(dims[d]);
        Type { dims, ..ty.clone() }
    }

    /// As `own`, with the axis.
    fn told(&self, ty: &Type, d: usize) -> Type {
        let mut ty = self.own(ty, d);
        ty.axes.resize(ty.dims.len(), None);
        ty.axes[d] = Some(self.axis);
        ty
    }

    fn attrs(&self) -> Attrs {
        Attrs::new().axis("axis", self.axis)
    }
}

/// What was put in.
#[derive(Default)]
pub struct Counts {
    pub sums: usize,
    pub spreads: usize,
}

/// Cuts the weights, and all functions with them.
pub fn cut(
    module: &mut Module,
    cut: &Cut,
    weights: &BTreeMap<String, (usize, Family)>,
) -> Result<Counts, PassError> {
    let mut counts = Counts::default();
    let all = activity::deps(module);
    for (name, (dim, _)) in weights {
        let store = &mut module.stores[name.as_str()];
        store.ty = cut.told(&store.ty, *dim);
    }
    for id in module.func_ids() {
        let func = module.func(id).clone();
        let dims = &cut.dims[id.0 as usize];
        let active = all[id.0 as usize].deps.iter().map(|d| !d.is_empty()).collect();
        let mut parts = Parts {
            module,
            cut,
            func: &func,
            dims,
            active,
            partial: BTreeSet::new(),
            spread_only: BTreeSet::new(),
            spread: BTreeMap::new(),
            counts: &mut counts,
        };
        parts.find_partial();
        parts.find_spread_only();
        let made = parts.func(id).map_err(|e| e.within(&func))?;
        *module.func_mut(id) = made;
    }
    Ok(counts)
}

/// A function being cut.
struct Parts<'a> {
    module: &'a Module,
    cut: &'a Cut,
    func: &'a Func,
    /// By value: the dim that is cut.
    dims: &'a [Option<usize>],
    /// By value: whether it may have a derivative.
    active: Vec<bool>,
    /// Values that stay partial: only ops that are linear in them read them.
    partial: BTreeSet<ValueId>,
    /// Values that are made of what is spread already.
    spread_only: BTreeSet<ValueId>,
    spread: BTreeMap<ValueId, ValueId>,
    counts: &'a mut Counts,
}

impl Parts<'_> {
    fn dim(&self, v: ValueId) -> Option<usize> {
        self.dims[v.0 as usize]
    }

    /// Does an op run on parts?
    fn is_cut(&self, op: &OpData) -> bool {
        callee(op).is_none()
            && op.operands.iter().chain(&op.results).any(|v| self.dim(*v).is_some())
    }

    /// Does it sum over the dim that is cut?
    fn sums(&self, op: &OpData) -> bool {
        self.is_cut(op) && op.results.iter().all(|r| self.dim(*r).is_none())
    }

    /// Finds what stays partial. A candidate is a sum over what is cut, or linear in candidates
    /// alone; one that something else reads is summed where it is made.
    fn find_partial(&mut self) {
        let mut summed: BTreeSet<ValueId> = self.func.results.iter().copied().collect();
        loop {
            let mut candidates: BTreeSet<ValueId> = BTreeSet::new();
            for (_, op) in self.func.body_ops() {
                let [y] = op.results[..] else { continue };
                let kept = |x: &ValueId| candidates.contains(x) && !summed.contains(x);
                if self.sums(op) || linear(self.func, op).is_some_and(|xs| xs.iter().all(kept)) {
                    candidates.insert(y);
                }
            }
            let n_before = summed.len();
            for (_, op) in self.func.body_ops() {
                let goes_on = op.results.first().is_some_and(|y| candidates.contains(y));
                let own = if goes_on { linear(self.func, op).unwrap_or_default() } else { vec![] };
                let others = op.operands.iter().filter(|x| !own.contains(x));
                summed.extend(others.filter(|x| candidates.contains(x)));
            }
            if summed.len() == n_before {
                candidates.retain(|v| !summed.contains(v));
                self.partial = candidates;
                return;
            }
        }
    }

    /// Finds what only ops on parts read, so that what it is made of can be spread in its place:
    /// tokens before they go to several experts each.
    fn find_spread_only(&mut self) {
        let mut readers: BTreeMap<ValueId, Vec<&OpData>> = BTreeMap::new();
        for (_, op) in self.func.body_ops() {
            op.operands.iter().for_each(|x| readers.entry(*x).or_default().push(op));
        }
        for (_, op) in self.func.body_ops().rev() {
            let [y] = op.results[..] else { continue };
            let moves = op.op == Op::Dispatch || op.op == Op::Convert || strides(op.op);
            let takes = |reader: &&OpData| {
                self.is_cut(reader) || reader.results.iter().all(|r| self.spread_only.contains(r))
            };
            let only = readers.get(&y).is_some_and(|all| all.iter().all(takes));
            let is_result = self.func.results.contains(&y);
            let of_floats =
                self.func.ty(op.operands.first().copied().unwrap_or(y)).dtype.is_float();
            if moves && only && of_floats && !is_result && !self.is_cut(op) {
                self.spread_only.insert(y);
            }
        }
    }

    fn func(&mut self, id: FuncId) -> Result<Func, PassError> {
        let func = self.func;
        let is_entry = !func.result_names.is_empty();
        let mut copy = Copier::new(func, &func.name);
        for p in &func.params {
            let value = func.value(*p);
            let name = value.name.as_deref().unwrap_or("p");
            let ty = match self.dim(*p) {
                None => value.ty.clone(),
                Some(d) if is_entry => self.cut.told(&value.ty, d),
                Some(d) => self.cut.own(&value.ty, d),
            };
            let own = copy.to.param(name, ty);
            copy.set(*p, own);
        }
        for (at, op) in func.body_ops() {
            copy.to.at(&op.spans);
            self.op(&mut copy, at, op).map_err(|e| e.at(func, op))?;
        }
        let mut results = vec![];
        for r in &func.results {
            let own = copy.get(*r);
            results.push(match self.dim(*r).filter(|_| is_entry) {
                None => own,
                Some(d) => {
                    let attrs = self.cut.attrs().int("dim", d as i64);
                    copy.to.emit_calling(self.module, Op::AllGather, &[own], attrs)?[0]
                }
            });
        }
        debug_assert!(self.module.func(id).params.len() == copy.to.func.params.len());
        let mut made = copy.to.finish(results);
        made.result_names.clone_from(&func.result_names);
        made.donated.clone_from(&func.donated);
        Ok(made)
    }

    fn op(&mut self, copy: &mut Copier, at: OpId, op: &OpData) -> Result<(), PassError> {
        if callee(op).is_some() {
            let xs: Vec<ValueId> = op.operands.iter().map(|x| copy.get(*x)).collect();
            let made = copy.to.emit_calling(self.module, op.op, &xs, op.attrs.clone())?;
            op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
            return Ok(());
        }
        let goes_on =
            linear(self.func, op).filter(|xs| xs.iter().all(|x| self.partial.contains(x)));
        if let Some(partial) = goes_on {
            return self.linear(copy, op, &partial);
        }
        if op.results.iter().any(|r| self.spread_only.contains(r)) {
            let mut xs = vec![];
            for x in &op.operands {
                xs.push(self.spread(copy, *x)?);
            }
            let y = copy.to.emit(op.op, &xs, op.attrs.clone())?;
            copy.bind(op.results[0], y);
            return Ok(());
        }
        if !self.is_cut(op) {
            copy.op(at);
            return Ok(());
        }
        match op.op {
            Op::Gather if self.dim(op.operands[0]) == Some(0) => return self.gather(copy, op),
            Op::CrossEntropy if self.sums(op) => return self.cross_entropy(copy, op),
            _ => {}
        }
        let mut xs = vec![];
        for x in &op.operands {
            xs.push(self.spread(copy, *x)?);
        }
        if !self.sums(op) {
            let made = copy.to.emit_all(op.op, &xs, self.own_attrs(op))?;
            op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
            return Ok(());
        }
        let mut attrs = op.attrs.clone();
        let narrow = self.func.ty(op.results[0]).dtype != DType::F32;
        if op.op == Op::Matmul && narrow && self.widens(op.results[0]) {
            attrs = attrs.with("dtype", Attr::DType(DType::F32));
        }
        let y = copy.to.emit(op.op, &xs, attrs)?;
        self.summed(copy, op.results[0], y)
    }

    /// The attributes of an op on parts: shapes are those of its results.
    fn own_attrs(&self, op: &OpData) -> Attrs {
        let mut attrs = op.attrs.clone();
        let (y, Some(d)) = (op.results[0], self.dim(op.results[0])) else { return attrs };
        for (name, attr) in attrs.iter_mut() {
            match attr {
                Attr::Dims(dims) if name == "shape" => dims[d] = self.cut.part(dims[d]),
                Attr::Type(ty) => *ty = self.cut.own(self.func.ty(y), d),
                _ => {}
            }
        }
        attrs
    }

    /// An op that is linear in what is partial.
    fn linear(
        &mut self,
        copy: &mut Copier,
        op: &OpData,
        partial: &[ValueId],
    ) -> Result<(), PassError> {
        let mut xs = vec![];
        for x in &op.operands {
            xs.push(match partial.contains(x) {
                true => copy.get(*x),
                false => self.spread(copy, *x)?,
            });
        }
        // What was summed in f32 is so still.
        if xs.iter().any(|x| copy.to.ty(*x).dtype == DType::F32) {
            for x in xs.iter_mut().zip(&op.operands).filter(|(_, x)| partial.contains(x)) {
                *x.0 = copy.to.convert(*x.0, DType::F32)?;
            }
        }
        let y = match op.op {
            Op::Convert => copy.to.convert(xs[0], self.func.ty(op.results[0]).dtype)?,
            _ => copy.to.emit(op.op, &xs, op.attrs.clone())?,
        };
        self.summed(copy, op.results[0], y)
    }

    /// What ranks have of a sum; the sum, unless it stays partial.
    fn summed(&mut self, copy: &mut Copier, v: ValueId, own: ValueId) -> Result<(), PassError> {
        if self.partial.contains(&v) {
            copy.set(v, own);
            return Ok(());
        }
        let all = self.all_reduce(copy, own)?;
        let all = copy.to.convert(all, self.func.ty(v).dtype)?;
        copy.bind(v, all);
        Ok(())
    }

    fn all_reduce(&mut self, copy: &mut Copier, own: ValueId) -> Result<ValueId, PassError> {
        self.counts.sums += 1;
        let own = copy.to.convert(own, DType::F32)?;
        Ok(copy.to.emit_calling(self.module, Op::AllReduce, &[own], self.cut.attrs())?[0])
    }

    /// Can a sum be made in f32? Up to where ranks add it, it only changes its form.
    fn widens(&self, v: ValueId) -> bool {
        !self.partial.contains(&v)
            || self.func.body_ops().filter(|(_, op)| op.operands.contains(&v)).all(|(_, op)| {
                let on = op.op == Op::Convert || op.op == Op::Add || strides(op.op);
                on && self.widens(op.results[0])
            })
    }

    /// An operand of an op on parts: the part, or what all have, to make something else of.
    fn spread(&mut self, copy: &mut Copier, x: ValueId) -> Result<ValueId, PassError> {
        let own = copy.get(x);
        let whole = self.dim(x).is_none() && !self.spread_only.contains(&x);
        if !whole || !self.active[x.0 as usize] {
            return Ok(own);
        }
        if let Some(known) = self.spread.get(&x) {
            return Ok(*known);
        }
        // Of one value in several forms, the value is spread.
        let maker = self.func.def_op(x).map(|id| self.func.op(id)).filter(|op| strides(op.op));
        let made = match maker {
            Some(op) => {
                let whole = self.spread(copy, op.operands[0])?;
                copy.to.emit(op.op, &[whole], op.attrs.clone())?
            }
            None => {
                self.counts.spreads += 1;
                let attrs = self.cut.attrs();
                copy.to.emit_calling(self.module, Op::Spread, &[own], attrs)?[0]
            }
        };
        self.spread.insert(x, made);
        Ok(made)
    }

    /// The indices along a dim of `whole` that are the rank's: i32[part].
    fn indices(&self, copy: &mut Copier, whole: Dim) -> Result<ValueId, PassError> {
        let ty = Attr::Type(Type::i32([whole]));
        let all = copy.to.emit(Op::Iota, &[], Attrs::new().int("dim", 0).with("type", ty))?;
        let attrs = self.cut.attrs().int("dim", 0);
        Ok(copy.to.emit_calling(self.module, Op::Part, &[all], attrs)?[0])
    }

    /// Rows that the rank has; zeros for those of others.
    fn gather(&mut self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        let (table, ids) = (op.operands[0], copy.get(op.operands[1]));
        let whole = self.func.ty(table).dims[0];
        let dims = copy.to.dims(ids);
        let own = self.indices(copy, whole)?;
        let first = Attrs::new().int("dim", 0).int("start", 0).int("len", 1);
        let first = copy.to.emit(Op::Slice, &[own], first)?;
        let first = copy.to.reshape(first, &[])?;
        let first = copy.to.broadcast_to(first, &dims)?;
        let at = copy.to.binary(Op::Sub, ids, first)?;
        let n = copy.to.constant(self.cut.part(whole).coeff() as f64, Type::i32(dims))?;
        let none = copy.to.constant_like(-1.0, n)?;
        let inside = copy.to.binary(Op::Lt, at, n)?;
        let at = copy.to.emit(Op::Select, &[inside, at, none], Attrs::new())?;
        let rows = copy.to.binary(Op::Gather, copy.get(table), at)?;
        self.summed(copy, op.results[0], rows)
    }

    /// Of the classes that the rank has, the sum of exponentials and the target's logit, if it is
    /// one of them: all of the loss that ranks must tell each other. The largest logit is taken off
    /// first; the loss does not depend on it.
    fn cross_entropy(&mut self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        let (logits, targets) = (copy.get(op.operands[0]), copy.get(op.operands[1]));
        let x = copy.to.convert(logits, DType::F32)?;
        let dims = copy.to.dims(x);
        let last = dims.len() - 1;
        let rows = &dims[..last];
        let of_last = Attrs::new().ints("dims", [last as i64]);
        let along: Vec<i64> = (0..last as i64).collect();
        let along = Attrs::new().dims("shape", dims.clone()).ints("dims", along);

        let fixed = copy.to.unary(Op::StopGradient, x)?;
        let most = copy.to.emit(Op::ReduceMax, &[fixed], of_last.clone())?;
        let most = copy.to.reshape(most, &[rows, &[Dim::fixed(1)]].concat())?;
        let by_rank = self.cut.attrs().int("dim", last as i64);
        let most = copy.to.emit_calling(self.module, Op::AllGather, &[most], by_rank)?[0];
        let most = copy.to.emit(Op::ReduceMax, &[most], of_last)?;
        let off = copy.to.emit(Op::Broadcast, &[most], along.clone())?;
        let off = copy.to.binary(Op::Sub, x, off)?;
        let e = copy.to.unary(Op::Exp, off)?;
        let sum = copy.to.reduce_sum(e, &[last as i64])?;
        let sum = self.all_reduce(copy, sum)?;
        let log = copy.to.unary(Op::Log, sum)?;
        let lse = copy.to.binary(Op::Add, most, log)?;

        let whole = self.func.ty(op.operands[0]).dims[last];
        let own = self.indices(copy, whole)?;
        let own = copy.to.broadcast_to(own, &dims)?;
        let target = copy.to.emit(Op::Broadcast, &[targets], along)?;
        let hit = copy.to.binary(Op::Eq, own, target)?;
        let none = copy.to.constant_like(0.0, x)?;
        let hit = copy.to.emit(Op::Select, &[hit, x, none], Attrs::new())?;
        let hit = copy.to.reduce_sum(hit, &[last as i64])?;
        let hit = self.all_reduce(copy, hit)?;
        let loss = copy.to.binary(Op::Sub, lse, hit)?;
        let zero = copy.to.constant_like(0.0, targets)?;
        let skipped = copy.to.binary(Op::Lt, targets, zero)?;
        let none = copy.to.constant_like(0.0, loss)?;
        let loss = copy.to.emit(Op::Select, &[skipped, none, loss], Attrs::new())?;
        copy.bind(op.results[0], loss);
        copy.bind(op.results[1], lse);
        Ok(())
    }
}

/// Only the form of a value changes.
fn strides(op: Op) -> bool {
    op.has(Trait::Movement) && matches!(op, Op::Reshape | Op::Transpose | Op::Broadcast)
}

/// The operands that an op is linear in, if nothing else it reads can be partial: the sum of what
/// it makes of parts is what it makes of their sum.
fn linear(func: &Func, op: &OpData) -> Option<Vec<ValueId>> {
    let float = |v: ValueId| func.ty(v).dtype.is_float();
    match op.op {
        Op::Reshape | Op::Transpose if float(op.operands[0]) => Some(vec![op.operands[0]]),
        // A rounded part is no part of a rounded sum.
        Op::Convert if func.ty(op.results[0]).dtype == DType::F32 && float(op.operands[0]) => {
            Some(vec![op.operands[0]])
        }
        Op::Add => Some(op.operands.clone()),
        Op::Combine => Some(vec![op.operands[0]]),
        _ => None,
    }
}
