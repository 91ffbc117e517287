//! Ops that run as regions: alone with the movement and the constants they read, or fused already.

use std::collections::{BTreeMap, BTreeSet};

use weft_graph::{Arg, Buffer, BufferId, DType, Role};
use weft_ir::module::{Def, Func, OpData, ValueId};
use weft_ir::op::{Op, Trait};

use super::contract::is_aligned;
use super::plan_memory::InPlace;
use super::view::View;
use super::{Fault, Frame, Lower, TempInfo, Work};
use weft_codegen::region::graph::Buf;

use crate::region;

/// A function for a region, and what its parameters are in the frame.
struct Part {
    func: Func,
    params: Vec<ValueId>,
    map: BTreeMap<ValueId, ValueId>,
}

impl<'a> Lower<'a> {
    /// One op as a region of its own.
    pub(super) fn region(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        self.one_region(f, &[op])
    }

    /// Ops that read nothing of each other as one region.
    pub(super) fn one_region(&mut self, f: &mut Frame<'a>, ops: &[&OpData]) -> Result<(), Fault> {
        let [op, ..] = ops else { return Ok(()) };
        let mut part = Part::new(op.op.name());
        let all: Vec<ValueId> = ops.iter().flat_map(|op| op.results.clone()).collect();
        let wanted: Vec<ValueId> =
            all.iter().copied().filter(|r| f.last_use[r.0 as usize] > 0).collect();
        let results = if wanted.is_empty() { all } else { wanted };
        for op in ops {
            part.op(self, f, op)?;
        }
        let made = results.iter().map(|r| part.map[r]).collect();
        part.finish(made);
        self.run(f, op, &part.func, &part.params, &results)
    }

    /// A region that `fuse` made. One that attends has kernels of its own, as a call has.
    pub(super) fn fused(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let callee = op.attrs.get_func("func").ok_or("names no function")?;
        let func = self.module.func(callee);
        if func.body_ops().any(|(_, op)| op.op == Op::Attention) {
            return self.call(f, op);
        }
        self.run(f, op, func, &op.operands, &op.results)
    }

    /// Writes a value that is made of movement and constants to `to`, in row-major order.
    pub(super) fn copy_region(
        &mut self,
        f: &mut Frame<'a>,
        v: ValueId,
        to: Arg,
    ) -> Result<(), Fault> {
        let Some(id) = f.func.def_op(v) else {
            return Err("a parameter of the function has no place in memory".into());
        };
        let op = f.func.op(id);
        if !f.is_deferred(v) {
            return Err(format!("`{}` has not run yet", op.op.name()).into());
        }
        let mut part = Part::new(op.op.name());
        part.op(self, f, op)?;
        let made = part.map[&v];
        part.finish(vec![made]);
        self.launches(f, op, &part.func, &part.params, &[Some(to)]).map(|_| ())
    }

    fn run(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        func: &Func,
        operands: &[ValueId],
        results: &[ValueId],
    ) -> Result<(), Fault> {
        let places = self.launches(f, op, func, operands, &self.wanted(f, results))?;
        for (r, at) in results.iter().zip(places) {
            let ty = f.func.ty(*r);
            let view = View::row_major(&self.dims, at, ty.dtype, &ty.dims);
            self.define(f, *r, view);
        }
        Ok(())
    }

    /// Where results belong, if they belong somewhere.
    pub(super) fn wanted(&self, f: &Frame<'a>, results: &[ValueId]) -> Vec<Option<Arg>> {
        results.iter().map(|r| f.dests.get(r).cloned()).collect()
    }

    /// The launches of a region; returns where its results are. `wanted`: where they belong.
    fn launches(
        &mut self,
        f: &mut Frame<'a>,
        op: &OpData,
        func: &Func,
        operands: &[ValueId],
        wanted: &[Option<Arg>],
    ) -> Result<Vec<Arg>, Fault> {
        let mut given = vec![];
        for x in operands {
            given.push(match f.func.ty(*x).state {
                true => self.view(f, *x)?.at,
                false => self.plain(f, *x)?,
            });
        }
        let place = self.place(op);
        let size = |d| self.dims.expr(d);
        let grows = func.body_ops().any(|(_, op)| op.op == Op::CacheAppend);
        let aligned = |buf: Buf| match buf {
            Buf::Operand(i) => is_aligned(&given[i as usize]),
            // One that is an operand's storage begins where that does.
            Buf::Result(i) => match func.donated.iter().find(|(_, r)| *r == i) {
                Some((p, _)) => is_aligned(&given[*p as usize]),
                None => !grows && wanted.get(i as usize).is_none_or(lies_aligned),
            },
            Buf::Workspace(_) => true,
        };
        let hint = hint(func);
        let region =
            region::compile_at(self.backend, self.module, func, (&hint, &place), &size, &aligned);
        let compiled =
            region.map_err(|e| if e.op == op.op.name() { e.reason } else { e.to_string() })?;
        let mut made = vec![];
        for (i, r) in func.results.iter().enumerate() {
            let alias = compiled.aliases.iter().find(|(result, _)| *result as usize == i);
            made.push(match (alias, wanted.get(i).cloned().flatten()) {
                (Some((_, operand)), _) => given[*operand as usize].clone(),
                (None, Some(at)) => at,
                (None, None) => {
                    let name = match op.results.get(i) {
                        Some(r) if wanted.len() == op.results.len() => &f.names[r.0 as usize],
                        _ => &func.name,
                    };
                    self.temp(f.id, &name.clone(), func.ty(*r))
                }
            });
        }
        let workspaces: Vec<Arg> = compiled
            .workspaces
            .iter()
            .map(|bytes| {
                let dims = vec![bytes.clone()];
                let name = format!("{}.workspace", func.name);
                let id = self.buffer(&name, DType::U8, dims, Role::Temp { offset: 0 });
                self.temps.insert(id, TempInfo { scope: self.open.clone(), frame: f.id });
                Arg::whole(id)
            })
            .collect();
        if let ([_], [to]) = (&compiled.launches[..], &made[..]) {
            self.note_in_place(func, &given, to);
        }
        for launch in compiled.launches {
            let arg = |buf: &Buf| match buf {
                Buf::Operand(i) => given[*i as usize].clone(),
                Buf::Result(i) => made[*i as usize].clone(),
                Buf::Workspace(i) => workspaces[*i as usize].clone(),
            };
            let changed = |p: &u32| compiled.aliases.iter().any(|(_, of)| of == p);
            let writes = |(at, buf): (usize, &Buf)| match buf {
                Buf::Operand(p) => changed(p).then_some(at as u32),
                Buf::Result(_) | Buf::Workspace(_) => Some(at as u32),
            };
            let work = Work {
                sms: launch.kernel.cta.grid_max,
                kernel: self.kernels.add(launch.kernel, launch.scratch_bytes),
                args: launch.args.iter().map(arg).collect(),
                writes: launch.args.iter().enumerate().filter_map(writes).collect(),
                scalars: launch.scalars,
                grid: launch.grid,
                flops: launch.flops,
                bytes: launch.bytes,
            };
            self.launch(f, op, work);
        }
        Ok(made)
    }

    /// A launch whose every element depends on the elements of an operand at the same place may
    /// overwrite that operand. A scalar saves nothing, and a block whose warps all compute it reads
    /// what one of them has written.
    fn note_in_place(&mut self, func: &Func, given: &[Arg], to: &Arg) {
        let whole = |at: &Arg| *at == Arg::whole(at.buffer);
        let result = func.ty(func.results[0]);
        if !whole(to) || result.rank() == 0 {
            return;
        }
        for (p, at) in func.params.iter().zip(given) {
            let once = given.iter().filter(|x| x.buffer == at.buffer).count() == 1;
            let same = func.ty(*p).dims == result.dims && func.ty(*p).dtype == result.dtype;
            if whole(at) && once && same && is_pointwise_in(func, *p) {
                self.in_place.push(InPlace { read: at.buffer, written: to.buffer });
            }
        }
    }

    /// Does a value lie in `storage`, or is it made of what does, when it is read?
    pub(super) fn shows(&self, f: &Frame<'a>, v: ValueId, storage: BufferId) -> bool {
        if f.copies[v.0 as usize].is_some() {
            return false;
        }
        if let Some(view) = &f.views[v.0 as usize] {
            return view.at.buffer == storage;
        }
        let Some(op) = f.func.def_op(v).map(|id| f.func.op(id)) else { return false };
        f.is_deferred(v) && op.operands.iter().any(|x| self.shows(f, *x, storage))
    }

    /// A new temp of a buffer's kind.
    pub(super) fn temp_like(&mut self, frame: u32, like: &Buffer) -> Arg {
        let (name, dtype, dims) = (format!("{}.next", like.name), like.dtype, like.dims.clone());
        let id = self.buffer(&name, dtype, dims, Role::Temp { offset: 0 });
        self.temps.insert(id, TempInfo { scope: self.open.clone(), frame });
        Arg::whole(id)
    }
}

impl Part {
    fn new(name: &str) -> Part {
        Part { func: Func::new(name), params: vec![], map: BTreeMap::new() }
    }

    /// A copy of `op`, and of the movement and constants it reads.
    fn op<'a>(&mut self, cx: &mut Lower<'a>, f: &Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let mut operands = vec![];
        for x in &op.operands {
            operands.push(self.value(cx, f, *x)?);
        }
        let types = op.results.iter().map(|r| f.func.ty(*r).clone()).collect();
        let (attrs, spans) = (op.attrs.clone(), op.spans.clone());
        let id = self.func.push_op(op.op, operands, attrs, types, spans);
        let made = self.func.op(id).results.clone();
        self.map.extend(op.results.iter().copied().zip(made));
        Ok(())
    }

    fn value<'a>(
        &mut self,
        cx: &mut Lower<'a>,
        f: &Frame<'a>,
        v: ValueId,
    ) -> Result<ValueId, Fault> {
        if let Some(known) = self.map.get(&v) {
            return Ok(*known);
        }
        let op = f.func.def_op(v).map(|id| f.func.op(id));
        if let Some(op) = op.filter(|_| f.is_deferred(v))
            && cx.plain_now(f, v).is_none()
        {
            self.op(cx, f, op)?;
            return Ok(self.map[&v]);
        }
        let p = self.func.add_param(&format!("x{}", self.params.len()), f.func.ty(v).clone());
        self.params.push(v);
        self.map.insert(v, p);
        Ok(p)
    }

    fn finish(&mut self, results: Vec<ValueId>) {
        let states = |values: &[ValueId], func: &Func| -> Vec<u32> {
            let all = values.iter().enumerate().filter(|(_, v)| func.ty(**v).state);
            all.map(|(i, _)| i as u32).collect()
        };
        let (from, to) = (states(&self.func.params, &self.func), states(&results, &self.func));
        self.func.donated = from.into_iter().zip(to).collect();
        self.func.results = results;
    }
}

/// A place that is yet to be made will be.
fn lies_aligned(at: &Option<Arg>) -> bool {
    at.as_ref().is_none_or(is_aligned)
}

/// What a kernel is called: its ops but for movement and constants. Regions of equal code then have
/// one kernel, whatever functions they come from.
pub(super) fn hint(func: &Func) -> String {
    let mut names: Vec<&str> = vec![];
    for (_, op) in func.body_ops().filter(|(_, op)| !is_deferred(op.op)) {
        if !names.contains(&op.op.name()) {
            names.push(op.op.name());
        }
    }
    match names.as_slice() {
        [] => func.body_ops().next_back().map_or("copy", |(_, op)| op.op.name()).into(),
        [few @ .., last] if few.len() > HINT_OPS => {
            format!("{}_{}_{last}", few[..HINT_OPS].join("_"), names.len() - HINT_OPS)
        }
        all => all.join("_"),
    }
}

/// Ops named in a kernel's name.
const HINT_OPS: usize = 3;

/// What has no step of its own: it is seen through strides or made where it is read.
pub(super) fn is_deferred(op: Op) -> bool {
    matches!(
        op,
        Op::Constant
            | Op::Iota
            | Op::Extent
            | Op::Reshape
            | Op::Transpose
            | Op::Slice
            | Op::Broadcast
    )
}

/// Do only pointwise ops stand between `param` and the results?
fn is_pointwise_in(func: &Func, param: ValueId) -> bool {
    let mut from = BTreeSet::from([param]);
    for (_, op) in func.body_ops() {
        if !op.operands.iter().any(|x| from.contains(x)) {
            continue;
        }
        if !op.op.has(Trait::Pointwise) {
            return false;
        }
        from.extend(&op.results);
    }
    matches!(func.value(param).def, Def::Param(_))
}
