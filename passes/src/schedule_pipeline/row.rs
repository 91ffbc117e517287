//! A rank's row of the table as ops: for each cell what it receives, a call, what it sends.
//!
//! Messages from one rank to another arrive in the order in which they are sent, so a rank that
//! needs one first takes those that were sent before it: they are there by then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Def, FuncId, Module, OpId, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{AxisId, Type};
use weft_schedule::Table;

use super::flat::{Flat, broken};
use crate::PassError;
use crate::rewrite::callee;

/// A value of one micro-batch, counted over all directions.
pub type Of = (ValueId, usize);

/// Where a parameter of a micro-batch's function comes from, in the function that is made.
#[derive(Clone, Copy)]
pub enum Given {
    /// A slice for each micro-batch.
    Slices(ValueId),
    Shared(ValueId),
    /// Belongs to a stage of another rank.
    Elsewhere,
}

/// Everything of the pipeline that rows are made of.
pub struct Plan<'a> {
    pub flat: &'a Flat,
    pub table: &'a Table,
    /// The place along `axis` of the rank whose row it is.
    pub place: usize,
    pub axis: AxisId,
    /// The stages that read what calls make.
    pub readers: BTreeMap<ValueId, BTreeSet<usize>>,
}

impl Plan<'_> {
    fn direction(&self, micro: usize) -> usize {
        usize::from(self.table.placement.len() > 1 && micro >= self.table.micro_batches[0])
    }

    fn rank(&self, stage: usize, micro: usize) -> usize {
        self.table.rank_of(self.direction(micro), stage)
    }

    /// The ranks that have a stage, by direction.
    pub fn holders(&self, stage: usize) -> Vec<usize> {
        let mut ranks: Vec<usize> = vec![];
        for stages in &self.table.placement {
            if !ranks.contains(&stages[stage]) {
                ranks.push(stages[stage]);
            }
        }
        ranks
    }

    /// The calls of each cell of a rank, with their micro-batches.
    fn cells(&self, rank: usize) -> Vec<Vec<(OpId, usize)>> {
        let cell = |cell: &weft_schedule::Cell| {
            let calls = cell.actions().flat_map(|a| {
                let before: usize = self.table.micro_batches[..a.direction].iter().sum();
                let calls = self.flat.calls_of(a.op, a.stage).into_iter();
                calls.map(move |id| (id, before + a.micro_batch))
            });
            calls.collect()
        };
        self.table.rows[rank].iter().map(cell).collect()
    }

    /// What a cell's calls make that other ranks read, with those.
    fn sent(&self, rank: usize, cell: &[(OpId, usize)]) -> Vec<(usize, Of)> {
        let mut all = vec![];
        for (id, micro) in cell {
            for r in &self.flat.func.op(*id).results {
                let stages = self.readers.get(r).into_iter().flatten();
                let to: BTreeSet<usize> = stages.map(|s| self.rank(*s, *micro)).collect();
                all.extend(to.into_iter().filter(|to| *to != rank).map(|to| (to, (*r, *micro))));
            }
        }
        all
    }
}

/// Several calls as one function.
#[derive(Clone)]
struct Woven {
    func: FuncId,
    /// Values, and which of the cell's micro-batches they are of.
    inputs: Vec<Of>,
    outputs: Vec<Of>,
}

/// The row under construction.
pub struct Row<'a> {
    pub plan: &'a Plan<'a>,
    pub module: &'a mut Module,
    pub b: Builder,
    given: Vec<Given>,
    known: BTreeMap<Of, ValueId>,
    /// What each rank sends to this one and it has not taken yet.
    coming: Vec<VecDeque<Of>>,
    woven: BTreeMap<Vec<Of2>, Woven>,
    n_messages: usize,
}

/// A call, and which of the cell's micro-batches it is of.
type Of2 = (OpId, usize);

impl<'a> Row<'a> {
    pub fn new(
        plan: &'a Plan<'a>,
        module: &'a mut Module,
        b: Builder,
        given: Vec<Given>,
    ) -> Row<'a> {
        let from = |rank: usize| {
            let cells = plan.cells(rank);
            let sent = cells.iter().flat_map(|cell| plan.sent(rank, cell));
            sent.filter(|(to, _)| *to == plan.place).map(|(_, of)| of).collect()
        };
        let coming = (0..plan.table.n_ranks()).map(from).collect();
        let (known, woven) = (BTreeMap::new(), BTreeMap::new());
        Row { plan, module, b, given, known, coming, woven, n_messages: 0 }
    }

    pub fn set_given(&mut self, given: Vec<Given>) {
        self.given = given;
    }

    /// All cells; `done` is told each action's calls when they stand.
    pub fn cells(
        &mut self,
        done: &mut dyn FnMut(&mut Row<'a>, &[(OpId, usize)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        for cell in self.plan.cells(self.plan.place) {
            match cell[..] {
                [] => continue,
                [(id, micro)] => self.call(id, micro)?,
                _ => self.weave(&cell)?,
            }
            for (to, of) in self.plan.sent(self.plan.place, &cell) {
                let x = self.value(of)?;
                self.send(x, to)?;
            }
            done(self, &cell)?;
        }
        Ok(())
    }

    pub fn n_messages(&self) -> usize {
        self.n_messages
    }

    pub fn send(&mut self, x: ValueId, to: usize) -> Result<(), PassError> {
        let attrs = Attrs::new().axis("axis", self.plan.axis).int("to", to as i64);
        self.b.emit_calling(self.module, Op::Send, &[x], attrs)?;
        self.n_messages += 1;
        Ok(())
    }

    pub fn recv(&mut self, ty: &Type, from: usize, name: &str) -> Result<ValueId, PassError> {
        let attrs = Attrs::new().axis("axis", self.plan.axis).int("from", from as i64);
        let attrs = attrs.with("type", Attr::Type(ty.as_value()));
        let x = self.b.emit_calling(self.module, Op::Recv, &[], attrs)?[0];
        self.b.name(x, name);
        self.n_messages += 1;
        Ok(x)
    }

    /// A value of a micro-batch on this rank: made here, made again, or received.
    pub fn value(&mut self, of: Of) -> Result<ValueId, PassError> {
        if let Some(x) = self.known.get(&of) {
            return Ok(*x);
        }
        let (v, micro) = of;
        let flat = self.plan.flat;
        let x = match flat.func.value(v).def {
            Def::Param(p) => self.param(p as usize, micro)?,
            Def::Result { op, idx } => match flat.calls.get(&op) {
                Some(work) => {
                    let from = self.plan.rank(work.stage, micro);
                    self.take(from, of)?
                }
                None => self.again(op, micro)?[idx as usize],
            },
        };
        self.known.insert(of, x);
        Ok(x)
    }

    fn param(&mut self, p: usize, micro: usize) -> Result<ValueId, PassError> {
        let ty = self.plan.flat.func.ty(self.plan.flat.func.params[p]).clone();
        match self.given[p] {
            Given::Shared(x) => Ok(x),
            Given::Elsewhere => Err(broken("a stage reads a weight of another rank's")),
            Given::Slices(all) => {
                let n: usize = self.plan.table.micro_batches.iter().sum();
                let dims = [&[Dim::fixed(n as u64)], &ty.dims[..]].concat();
                let all = self.b.reshape(all, &dims)?;
                let attrs = Attrs::new().int("dim", 0).int("start", micro as i64).int("len", 1);
                let one = self.b.emit(Op::Slice, &[all], attrs)?;
                Ok(self.b.reshape(one, &ty.dims)?)
            }
        }
    }

    /// The op on values of a micro-batch.
    fn again(&mut self, op: OpId, micro: usize) -> Result<Vec<ValueId>, PassError> {
        let flat = self.plan.flat;
        let data = flat.func.op(op);
        let mut xs = vec![];
        for x in &data.operands {
            xs.push(self.value((*x, micro))?);
        }
        let types = data.results.iter().map(|r| flat.func.ty(*r).clone()).collect();
        let (attrs, spans) = (data.attrs.clone(), data.spans.clone());
        let id = self.b.func.push_op(data.op, xs, attrs, types, spans);
        Ok(self.b.func.op(id).results.clone())
    }

    /// Receives what a rank sends up to this value.
    fn take(&mut self, from: usize, of: Of) -> Result<ValueId, PassError> {
        if from == self.plan.place {
            return Err(broken("a cell reads what is made later"));
        }
        while let Some(next) = self.coming[from].pop_front() {
            let (v, micro) = next;
            let name = self.plan.flat.func.value(v).name.clone();
            let name = format!("{}.micro.{micro}", name.as_deref().unwrap_or("x"));
            let ty = self.plan.flat.func.ty(v).clone();
            let x = self.recv(&ty, from, &name)?;
            self.known.insert(next, x);
            if next == of {
                return Ok(x);
            }
        }
        Err(broken("a value is sent by nobody"))
    }

    fn call(&mut self, id: OpId, micro: usize) -> Result<(), PassError> {
        let op = self.plan.flat.func.op(id);
        let mut xs = vec![];
        for x in &op.operands {
            xs.push(self.value((*x, micro))?);
        }
        let f = callee(op).ok_or_else(|| broken("a call"))?;
        let outputs: Vec<Of> = op.results.iter().map(|r| (*r, micro)).collect();
        self.noinline(f, &xs, &outputs)
    }

    fn noinline(&mut self, f: FuncId, xs: &[ValueId], outputs: &[Of]) -> Result<(), PassError> {
        let attrs = Attrs::new().func("func", f).flag("noinline", true);
        let results = self.b.emit_calling(self.module, Op::Call, xs, attrs)?;
        for ((v, micro), r) in outputs.iter().zip(results) {
            if let Some(name) = &self.plan.flat.func.value(*v).name {
                self.b.name(r, &format!("{name}.micro.{micro}"));
            }
            self.known.insert((*v, *micro), r);
        }
        Ok(())
    }

    /// Several calls of one cell as a function of their own.
    fn weave(&mut self, cell: &[(OpId, usize)]) -> Result<(), PassError> {
        let mut micros: Vec<usize> = vec![];
        for (_, micro) in cell {
            if !micros.contains(micro) {
                micros.push(*micro);
            }
        }
        let place = |micro: &usize| micros.iter().position(|m| m == micro).unwrap_or(0);
        let key: Vec<Of2> = cell.iter().map(|(id, micro)| (*id, place(micro))).collect();
        let woven = match self.woven.get(&key) {
            Some(woven) => woven.clone(),
            None => {
                let woven = self.woven_of(&key)?;
                self.woven.insert(key, woven.clone());
                woven
            }
        };
        let mut xs = vec![];
        for (v, at) in &woven.inputs {
            xs.push(self.value((*v, micros[*at]))?);
        }
        let outputs: Vec<Of> = woven.outputs.iter().map(|(v, at)| (*v, micros[*at])).collect();
        self.noinline(woven.func, &xs, &outputs)
    }

    fn woven_of(&mut self, calls: &[Of2]) -> Result<Woven, PassError> {
        let flat = self.plan.flat;
        let name = |id: &OpId| {
            let f = callee(flat.func.op(*id)).map(|f| self.module.func(f).name.clone());
            f.unwrap_or_default()
        };
        let names: Vec<String> = calls.iter().map(|(id, _)| name(id)).collect();
        let mut weave = Weave {
            flat,
            b: Builder::new(&self.module.fresh_func_name(&names.join("."))),
            inside: BTreeMap::new(),
            inputs: vec![],
            made: BTreeSet::new(),
        };
        let mut outputs = vec![];
        let mut results = vec![];
        for (id, at) in calls {
            let op = flat.func.op(*id);
            let mut xs = vec![];
            for x in &op.operands {
                xs.push(weave.value((*x, *at)));
            }
            weave.b.at(&op.spans);
            let attrs = Attrs::new().func("func", callee(op).ok_or_else(|| broken("a call"))?);
            let values = weave.b.emit_calling(self.module, Op::Call, &xs, attrs)?;
            for (r, x) in op.results.iter().zip(values) {
                weave.inside.insert((*r, *at), x);
                weave.made.insert((*r, *at));
                outputs.push((*r, *at));
                results.push(x);
            }
        }
        let func = self.module.add_func(weave.b.finish(results));
        Ok(Woven { func, inputs: weave.inputs, outputs })
    }
}

/// The function of several calls under construction.
struct Weave<'a> {
    flat: &'a Flat,
    b: Builder,
    inside: BTreeMap<Of, ValueId>,
    inputs: Vec<Of>,
    /// What its calls have made.
    made: BTreeSet<Of>,
}

impl Weave<'_> {
    /// A value inside: small ops on what its own calls make are done here, all else is given.
    fn value(&mut self, of: Of) -> ValueId {
        if let Some(x) = self.inside.get(&of) {
            return *x;
        }
        let (v, at) = of;
        let own = self.flat.leaves(v).iter().any(|leaf| self.made.contains(&(*leaf, at)));
        let x = match self.flat.func.value(v).def {
            Def::Result { op, idx } if own => {
                let data = self.flat.func.op(op).clone();
                let xs = data.operands.iter().map(|x| self.value((*x, at))).collect();
                let types = data.results.iter().map(|r| self.flat.func.ty(*r).clone()).collect();
                let id = self.b.func.push_op(data.op, xs, data.attrs, types, data.spans);
                self.b.func.op(id).results[idx as usize]
            }
            _ => {
                let data = self.flat.func.value(v);
                self.inputs.push(of);
                self.b.param(data.name.as_deref().unwrap_or("x"), data.ty.clone())
            }
        };
        self.inside.insert(of, x);
        x
    }
}
