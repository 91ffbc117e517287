//! Send rows to the ranks that have their experts, in place of the experts' weights to all.
//!
//! ```text
//! %1 = all_gather %w {axis = experts, dim = 0}
//! %offsets, %order = route %ids {experts = 4}     %offsets, %order = route %ids {experts = 4}
//! %rows = dispatch %x, %order : f32[R, 5]         %rows = dispatch %x, %order : f32[R, 5]
//! %z = grouped_matmul %rows, %1, %offsets    =>   %got = exchange_offsets %offsets
//! %y = combine %z, %order                         %2 = exchange %rows, %offsets, %got : f32[2*R, 5]
//!                                                 %3 = grouped_matmul %2, %w, ..
//!                                                 %z = exchange %3, %offsets, %got {back}
//!                                                 %y = combine %z, %order
//! ```
//!
//! Why: a rank multiplies by weights that it has, and what crosses links is rows: of the tokens'
//! width to the experts and back, and in the backward pass likewise. Rows that come together are in
//! the order of expert, source, token, and each is computed as one rank computes it, so values and
//! gradients of inputs are those of one rank, bit for bit. What an op does to rows one by one is
//! done where its operands are; what sees several rows at once (a weight's gradient, a group of
//! scales over rows) is done where the rows come from, in the layout of one rank. So a weight's
//! gradient is contracted by source, added over micro-batches there, and summed over sources where
//! ranks' gradients meet: that is what one rank adds up, and it costs links the rows between the
//! products of an expert, and memory the gradients of all experts until the end of the step.
//! Ranks that serve store their weights as products read them, as one rank does (`hoist`).
//! With `ExpertGradients::AtExperts` it is contracted where rows come to, of a rank's own experts
//! alone, and links carry rows once each way (`own.rs`); that is another order of sums.
//! Between functions rows lie with the experts. A row may meet all others at one rank: the dim is
//! `n R`, and no token is dropped. With an `exchange_capacity` there is room for so many times the
//! rows that a rank sends; where more come, the step stops with an error that says how many did
//! (ranks that serve take them in `rounds`). Cost: one walk over the functions. Requires: `shard`;
//! `inline`, since both halves of a layer's backward share what is sent; whole quantized values, so
//! before `split_quantized`.

mod filled;
mod gradients;
mod own;
mod rows;

use std::collections::BTreeMap;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::{Dim, SymId, SymKind};
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{AxisId, Type};

use crate::hoist::store_narrow;
use crate::rewrite::{Copier, callee, carry, stacked};
use crate::shard::experts::{EXPERTS, before, expert_dims};
use crate::{ExpertGradients, Pass, PassCx, PassError, Stats};
use filled::Filled;
use gradients::Gradients;
use rows::Groups;

pub const PASS: Pass = Pass { name: "experts", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(axis) = module.find_axis(EXPERTS) else { return Ok(Stats::default()) };
    let n = module.axes[axis.0 as usize].size;
    let params = expert_dims(module);
    let gradients = match cx.mesh.map(|m| m.expert_gradients) {
        Some(ExpertGradients::AtExperts) => Gradients::find(module, axis)?,
        _ => Gradients::none(module, axis),
    };
    let filled = Filled::of(module);
    let trains = module.find("train_step").is_some();
    let rooms = match cx.mesh.and_then(|m| m.exchange_capacity).filter(|_| trains) {
        Some(capacity) => rooms(module, capacity, n),
        None => BTreeMap::new(),
    };
    let mut n_exchanges = 0;
    for i in 0..module.funcs.len() {
        let (id, func) = (FuncId(i as u32), module.funcs[i].clone());
        let mut weights = weights(&func, &params, axis).map_err(|e| e.within(&func))?;
        weights.extend(gradients.of(id));
        let groups = Groups::of(module, &func).map_err(|e| e.within(&func))?;
        let mut send = Send {
            module,
            id,
            func: &func,
            axis,
            n,
            weights,
            gradients: &gradients,
            filled: &filled,
            rooms: &rooms,
            groups,
            there: BTreeMap::new(),
            offsets: BTreeMap::new(),
            n_exchanges: 0,
        };
        let sent = send.func().map_err(|e| e.within(&func))?;
        n_exchanges += send.n_exchanges;
        module.funcs[i] = sent;
    }
    // Whoever serves reads its own weights alone now, where it gathered those of all before.
    let serves = module.find("train_step").is_none();
    let n_stored = if serves { store_narrow(module) } else { 0 };
    Ok(Stats { counts: vec![("exchanges", n_exchanges), ("stored converted", n_stored)] })
}

/// Room for rows at a rank, a multiple of those that it sends; where that is all, there is none.
fn rooms(module: &mut Module, capacity: f64, n: u64) -> BTreeMap<SymId, Dim> {
    let mut rooms = BTreeMap::new();
    for sym in (0..module.syms.len() as u32).map(SymId) {
        let SymKind::Ragged { segments, total } = module.sym(sym).kind else { continue };
        let wanted = (total.coeff() as f64 * capacity).ceil() as u64;
        let unit = total.checked_div(Dim::fixed(total.coeff()));
        let total = unit.and_then(|unit| unit.checked_mul(Dim::fixed(wanted)));
        let Some(total) = total.filter(|_| capacity < n as f64) else { continue };
        let kind = SymKind::Ragged { segments: segments / n, total };
        rooms.insert(sym, Dim::sym(module.add_sym(&free_room(module), kind)));
    }
    rooms
}

/// A free name for a number of rows that there is room for: C, C2, ..
pub fn free_room(module: &Module) -> String {
    let mut names = (1..).map(|i| if i == 1 { "C".to_string() } else { format!("C{i}") });
    names.find(|n| module.find_sym(n).is_none()).expect("one is free")
}

/// Values of a function that hold weights of experts, with the dim of these: from where they are
/// gathered, or from a parameter, to the products.
fn weights(
    func: &Func,
    params: &[BTreeMap<usize, usize>],
    axis: AxisId,
) -> Result<BTreeMap<ValueId, usize>, PassError> {
    let mut found = BTreeMap::new();
    for (_, op) in func.body_ops() {
        for (v, dim) in asked(op, params) {
            trace(func, v, dim, axis, &mut found).map_err(|e| e.at(func, op))?;
        }
    }
    for (_, op) in func.body_ops() {
        let asked: Vec<ValueId> = asked(op, params).into_iter().map(|(v, _)| v).collect();
        let goes_on = op.results.iter().any(|r| found.contains_key(r));
        let other = op.operands.iter().find(|x| found.contains_key(x) && !asked.contains(x));
        if other.is_some() && !goes_on {
            let why = "reads the weights of all experts, and ranks have them between them";
            return Err(PassError::new(why).at(func, op));
        }
    }
    Ok(found)
}

/// The operands that an op takes weights of experts in.
fn asked(op: &OpData, params: &[BTreeMap<usize, usize>]) -> Vec<(ValueId, usize)> {
    if op.op == Op::GroupedMatmul {
        return vec![(op.operands[1], 0)];
    }
    let Some(inner) = callee(op).and_then(|f| params.get(f.0 as usize)) else { return vec![] };
    let sliced = carry(op)..carry(op) + stacked(op);
    let at = |(p, dim): (&usize, &usize)| (op.operands[*p], dim + usize::from(sliced.contains(p)));
    inner.iter().map(at).collect()
}

fn trace(
    func: &Func,
    v: ValueId,
    dim: usize,
    axis: AxisId,
    found: &mut BTreeMap<ValueId, usize>,
) -> Result<(), PassError> {
    found.insert(v, dim);
    let Some(op) = func.def_op(v).map(|id| func.op(id)) else { return Ok(()) };
    let gathered = is_gather(op, axis) && op.attrs.get_int("dim") == Some(dim as i64);
    match before(func, op, dim) {
        Some(dim) => trace(func, op.operands[0], dim, axis, found),
        None if gathered => Ok(()),
        None => {
            let why = format!("weights of experts come from `{}`", op.op.name());
            Err(PassError::new(why).at(func, op))
        }
    }
}

fn is_gather(op: &OpData, axis: AxisId) -> bool {
    op.op == Op::AllGather && op.attrs.get_axis("axis") == Some(axis)
}

/// A function whose rows are sent.
struct Send<'a> {
    module: &'a Module,
    id: FuncId,
    func: &'a Func,
    axis: AxisId,
    n: u64,
    /// What a rank has of its experts alone, with their dim: weights, and gradients that stay.
    weights: BTreeMap<ValueId, usize>,
    gradients: &'a Gradients,
    filled: &'a Filled,
    /// For numbers of rows, how many may come to a rank, where not all may.
    rooms: &'a BTreeMap<SymId, Dim>,
    groups: Groups,
    /// Rows as they lie with the experts, so far; the copy's own map has them where they come from.
    there: BTreeMap<ValueId, ValueId>,
    /// For offsets by expert: those of the rows that come, by expert and source, and by expert.
    offsets: BTreeMap<ValueId, (ValueId, ValueId)>,
    n_exchanges: usize,
}

impl Send<'_> {
    fn func(&mut self) -> Result<Func, PassError> {
        let func = self.func;
        let mut copy = Copier::new(func, &func.name);
        for p in &func.params {
            let name = func.value(*p).name.as_deref().unwrap_or("p");
            if self.groups.is_rows(*p) {
                let ty = self.more(func.ty(*p));
                let there = copy.to.param(name, ty);
                self.there.insert(*p, there);
            } else if let Some(dim) = self.weights.get(p) {
                let own = copy.to.param(name, self.own(func.ty(*p), *dim)?);
                copy.set(*p, own);
            } else {
                copy.param(*p, "p");
            }
        }
        for (id, op) in func.body_ops() {
            copy.to.at(&op.spans);
            self.op(&mut copy, id, op).map_err(|e| e.at(func, op))?;
        }
        let mut results = vec![];
        for r in &func.results {
            results.push(match self.groups.is_rows(*r) {
                true => self.there(&mut copy, *r)?,
                false => copy.get(*r),
            });
        }
        let mut sent = copy.to.finish(results);
        sent.result_names.clone_from(&func.result_names);
        sent.donated.clone_from(&func.donated);
        Ok(sent)
    }

    fn op(&mut self, copy: &mut Copier, id: OpId, op: &OpData) -> Result<(), PassError> {
        let gathers = is_gather(op, self.axis) && self.weights.contains_key(&op.results[0]);
        if gathers || self.gradients.ends(self.id, op) {
            copy.set(op.results[0], copy.get(op.operands[0]));
            return Ok(());
        }
        if callee(op).is_some() {
            return self.call(copy, op);
        }
        if op.op == Op::GroupedMatmul {
            return self.product(copy, op);
        }
        // What makes rows of nothing is made where it is wanted.
        if self.groups.makes(op) {
            return Ok(());
        }
        if self.contracts(op) {
            return self.contract(copy, op);
        }
        let gone = op.operands.iter().any(|x| self.there.contains_key(x));
        if gone && rows::one_by_one(self.func, op) {
            let made = self.emit_there(copy, op)?;
            for (r, made) in op.results.iter().zip(made) {
                self.there.insert(*r, made);
                self.name(copy, *r, made);
            }
            return Ok(());
        }
        for x in &op.operands {
            self.here(copy, *x)?;
        }
        if op.op.has(Trait::State) || !self.touches(op) {
            copy.op(id);
            return Ok(());
        }
        self.emit_here(copy, op)
    }

    /// Does an op read weights or rows, so that its type may be another?
    fn touches(&self, op: &OpData) -> bool {
        op.operands.iter().chain(&op.results).any(|v| self.weights.contains_key(v))
    }

    fn emit_here(&self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        let made = self.emit_own(copy, op)?;
        op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
        Ok(())
    }

    /// The op on rows that lie with the experts.
    fn emit_there(&mut self, copy: &mut Copier, op: &OpData) -> Result<Vec<ValueId>, PassError> {
        let mut xs = vec![];
        for x in &op.operands {
            xs.push(match self.groups.is_rows(*x) {
                true => self.there(copy, *x)?,
                false => copy.get(*x),
            });
        }
        let mut attrs = op.attrs.clone();
        for (_, attr) in attrs.iter_mut() {
            match attr {
                Attr::Dim(d) => *d = self.more_dim(*d),
                Attr::Dims(dims) => dims.iter_mut().for_each(|d| *d = self.more_dim(*d)),
                Attr::Type(ty) => *ty = self.more(ty),
                _ => {}
            }
        }
        Ok(copy.to.emit_all(op.op, &xs, attrs)?)
    }

    fn product(&mut self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        let mut xs = vec![self.there(copy, op.operands[0])?, copy.get(op.operands[1])];
        xs.push(self.offsets(copy, op.operands[2])?.1);
        let z = copy.to.emit(op.op, &xs, op.attrs.clone())?;
        self.there.insert(op.results[0], z);
        self.name(copy, op.results[0], z);
        Ok(())
    }

    fn call(&mut self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        let mut xs = vec![];
        for (i, x) in op.operands.iter().enumerate() {
            let dim = self.gradients.handed(op, i);
            xs.push(match self.groups.is_rows(*x) {
                true => self.there(copy, *x)?,
                false => self.own_operand(copy, *x, dim)?,
            });
        }
        let made = copy.to.emit_calling(self.module, op.op, &xs, op.attrs.clone())?;
        for (r, made) in op.results.iter().zip(made) {
            match self.groups.is_rows(*r) {
                true => {
                    self.there.insert(*r, made);
                    self.name(copy, *r, made);
                }
                false => copy.bind(*r, made),
            }
        }
        Ok(())
    }

    /// A value as it lies with the experts.
    fn there(&mut self, copy: &mut Copier, v: ValueId) -> Result<ValueId, PassError> {
        if let Some(there) = self.there.get(&v) {
            return Ok(*there);
        }
        let there = match copy.try_get(v) {
            Some(here) if !self.repeats(v) => self.exchange(copy, v, here, false)?,
            _ => {
                let op = self.made_by(v)?;
                self.emit_there(copy, &op)?[0]
            }
        };
        self.there.insert(v, there);
        Ok(there)
    }

    /// Makes a value where its rows come from.
    fn here(&mut self, copy: &mut Copier, v: ValueId) -> Result<(), PassError> {
        if copy.try_get(v).is_some() {
            return Ok(());
        }
        match self.there.get(&v).copied() {
            Some(there) => {
                let here = self.exchange(copy, v, there, true)?;
                copy.set(v, here);
                Ok(())
            }
            None => {
                let op = self.made_by(v)?;
                for x in &op.operands {
                    self.here(copy, *x)?;
                }
                self.emit_here(copy, &op)
            }
        }
    }

    /// Is a value made of less, which is sent in its place?
    fn repeats(&self, v: ValueId) -> bool {
        let Some(op) = self.func.def_op(v).map(|id| self.func.op(id)) else { return false };
        let bits = |v: ValueId| self.func.ty(v).dtype.bits();
        let less = match op.op {
            Op::Broadcast => true,
            Op::Convert => bits(op.operands[0]) < bits(v),
            _ => false,
        };
        less && rows::one_by_one(self.func, op)
    }

    fn made_by(&self, v: ValueId) -> Result<OpData, PassError> {
        let op = self.func.def_op(v).map(|id| self.func.op(id).clone());
        op.ok_or_else(|| PassError::new("rows that no op makes"))
    }

    fn exchange(
        &mut self,
        copy: &mut Copier,
        v: ValueId,
        x: ValueId,
        back: bool,
    ) -> Result<ValueId, PassError> {
        let sent = self.groups.offsets(v).ok_or_else(|| {
            PassError::new("rows are to be sent, and no op here says which expert they are for")
        })?;
        let got = self.offsets(copy, sent)?.0;
        let mut attrs = Attrs::new().axis("axis", self.axis);
        let rows = self.func.ty(v).dims[0];
        if back {
            attrs = attrs.flag("back", true);
        }
        if !self.rooms.is_empty() {
            let room = if back { rows } else { self.more_dim(rows) };
            attrs = attrs.with("room", Attr::Dim(room));
        }
        let xs = [x, copy.get(sent), got];
        self.n_exchanges += 1;
        let moved = copy.to.emit_calling(self.module, Op::Exchange, &xs, attrs)?[0];
        if let Some(name) = &self.func.value(v).name {
            copy.to.name(moved, &format!("{name}.{}", if back { "back" } else { "sent" }));
        }
        Ok(moved)
    }

    /// Where the rows that come begin: by expert and source, and by expert.
    fn offsets(
        &mut self,
        copy: &mut Copier,
        sent: ValueId,
    ) -> Result<(ValueId, ValueId), PassError> {
        if let Some(known) = self.offsets.get(&sent) {
            return Ok(*known);
        }
        let attrs = Attrs::new().axis("axis", self.axis);
        let xs = [copy.get(sent)];
        let got = copy.to.emit_calling(self.module, Op::ExchangeOffsets, &xs, attrs)?[0];
        // Every n-th segment is the first of an expert.
        let n_experts = copy.to.dims(got)[0].as_fixed().unwrap_or(1).saturating_sub(1);
        let ty = Type::i32([Dim::fixed(n_experts / self.n + 1)]);
        let attrs = Attrs::new().int("dim", 0).with("type", Attr::Type(ty.clone()));
        let expert = copy.to.emit(Op::Iota, &[], attrs)?;
        let n = copy.to.constant(self.n as f64, ty)?;
        let first = copy.to.binary(Op::Mul, expert, n)?;
        let own = copy.to.binary(Op::Take, got, first)?;
        self.offsets.insert(sent, (got, own));
        Ok((got, own))
    }

    /// The type of rows that lie with the experts.
    fn more(&self, ty: &Type) -> Type {
        let dims: Vec<Dim> = ty.dims.iter().map(|d| self.more_dim(*d)).collect();
        Type { dims, ..ty.clone() }
    }

    fn more_dim(&self, dim: Dim) -> Dim {
        let ragged = |s: &SymId| matches!(self.module.sym(*s).kind, SymKind::Ragged { .. });
        let Some(rows) = dim.symbols().find(ragged) else { return dim };
        let more = match self.rooms.get(&rows) {
            Some(room) => dim.checked_div(Dim::sym(rows)).and_then(|n| n.checked_mul(*room)),
            None => dim.checked_mul(Dim::fixed(self.n)),
        };
        more.unwrap_or(dim)
    }

    /// The type of the weights that a rank has.
    fn own(&self, ty: &Type, dim: usize) -> Result<Type, PassError> {
        let mut ty = ty.clone();
        let part = ty.dims[dim].checked_div(Dim::fixed(self.n));
        ty.dims[dim] = part.ok_or_else(|| PassError::new("the ranks do not divide the experts"))?;
        Ok(ty)
    }

    fn name(&self, copy: &mut Copier, from: ValueId, to: ValueId) {
        if let Some(name) = &self.func.value(from).name {
            copy.to.name(to, name);
        }
    }
}
