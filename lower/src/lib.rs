//! From planned IR to an executable graph: parameters and results become buffers, ops become
//! launches, `repeat` becomes a rolled loop.
//!
//! A value is a [`View`]: reshape, transpose, slice and broadcast give views, not steps. What reads
//! a view that is not row-major takes the movement into its own kernel (regions) or its strides
//! (products); constants too are made where they are read. Where the result of a function belongs
//! (an output, the slice of a stack, what the next turn of a loop reads) is known before the op
//! that makes it, which writes it there.
//!
//! Which kernel does an op, and how a region's loops are cut, is a [`Backend`]'s to say; what is
//! here is the same for all.
//!
//! A state is changed in place. What was moved out of it by strides alone and is needed later is
//! copied first.

mod attention;
mod backend;
pub mod cache;
mod collective;
pub mod compile;
mod contract;
pub mod describe;
mod dims;
mod ending;
mod entry;
mod kernels;
pub mod listing;
pub mod plan_memory;
pub mod region;
mod regions;
mod repeat;
pub mod streams;
mod uses;
mod view;

use std::collections::BTreeMap;

use weft_graph::{
    Arg, Buffer, BufferId, Collective, Copy, DimExpr, KernelId, Launch, Order, Role, Scalar, Step,
};
use weft_ir::module::{Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::text;
use weft_ir::ty::Type;

use dims::Dims;
use plan_memory::InPlace;
use uses::{last_uses, made_at_state, writer};
use view::View;

pub use backend::{Backend, WholeGrid};
pub use entry::{Unplaced, lower, select_kernels};
pub use kernels::Kernels;

/// Why a module cannot be lowered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LowerError {
    pub func: String,
    pub op: Option<&'static str>,
    /// `file:line:column` of the op.
    pub place: Option<String>,
    pub why: String,
}

impl std::error::Error for LowerError {}

impl std::fmt::Display for LowerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        match self.op {
            Some(op) => write!(f, "`{op}` in @{}: {}", self.func, self.why),
            None => write!(f, "@{}: {}", self.func, self.why),
        }
    }
}

/// A failure whose place may not be known yet.
enum Fault {
    Here(String),
    There(LowerError),
}

impl From<String> for Fault {
    fn from(why: String) -> Fault {
        Fault::Here(why)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Fault {
        Fault::Here(why.into())
    }
}

impl From<LowerError> for Fault {
    fn from(e: LowerError) -> Fault {
        Fault::There(e)
    }
}

/// An entry under construction.
struct Lower<'a> {
    backend: &'a dyn Backend,
    /// Multiprocessors that carry what is in flight, by flight, and what they leave of the machine.
    carrying: BTreeMap<u32, u32>,
    beside: Option<Box<dyn Backend>>,
    module: &'a Module,
    kernels: &'a mut Kernels,
    dims: Dims<'a>,
    buffers: Vec<Buffer>,
    temps: BTreeMap<BufferId, TempInfo>,
    in_place: Vec<InPlace>,
    /// The steps of the entry, then of each open loop.
    steps: Vec<Vec<Step>>,
    /// Open loops, numbered in the order in which loops begin.
    open: Vec<u32>,
    n_loops: u32,
    n_frames: u32,
    n_flights: u32,
}

struct TempInfo {
    scope: Vec<u32>,
    /// The frame that made it: no other knows it before that frame returns.
    frame: u32,
}

/// A function being lowered.
struct Frame<'a> {
    id: u32,
    func: &'a Func,
    names: Vec<String>,
    /// Where values lie; `None` before they are defined and for what is made where it is read.
    views: Vec<Option<View>>,
    /// Row-major copies of values whose view is not, or that have none.
    copies: Vec<Option<Arg>>,
    /// Copies of codes as products read them, with the sizes of each.
    turned: BTreeMap<ValueId, (contract::Layout, Arg)>,
    /// Where values are to be written, for results that belong somewhere.
    dests: BTreeMap<ValueId, Arg>,
    /// The last op that may look at a value's storage; the number of ops for results.
    last_use: Vec<usize>,
    /// Ops that are made where they are read, by op.
    late: Vec<bool>,
    /// The op at hand, counted in the body.
    at: usize,
    /// What is in flight.
    flights: BTreeMap<ValueId, Collective>,
}

/// A launch without the parts every launch has.
struct Work {
    kernel: KernelId,
    args: Vec<Arg>,
    /// Positions of those that the kernel writes.
    writes: Vec<u32>,
    /// Of a kernel that stays on its multiprocessors.
    sms: Option<u32>,
    scalars: Vec<Scalar>,
    grid: DimExpr,
    flops: DimExpr,
    bytes: DimExpr,
}

impl Frame<'_> {
    /// Is a value made where it is read by an op of its own?
    fn is_late(&self, v: ValueId) -> bool {
        self.func.def_op(v).is_some_and(|id| self.late[id.0 as usize])
    }

    /// Has a value no step of its own?
    fn is_deferred(&self, v: ValueId) -> bool {
        let Some(id) = self.func.def_op(v) else { return false };
        self.late[id.0 as usize] || regions::is_deferred(self.func.op(id).op)
    }
}

impl<'a> Lower<'a> {
    /// The steps of `func` on `args`; each result lies in its place of `dests`, if it has one.
    fn func(
        &mut self,
        id: FuncId,
        args: Vec<View>,
        dests: &[Option<Arg>],
    ) -> Result<Vec<View>, LowerError> {
        let func = self.module.func(id);
        self.n_frames += 1;
        let late = made_at_state(func);
        let mut frame = Frame {
            id: self.n_frames,
            func,
            names: text::value_names(func),
            views: vec![None; func.n_values()],
            copies: vec![None; func.n_values()],
            turned: BTreeMap::new(),
            dests: BTreeMap::new(),
            last_use: last_uses(func, &late),
            late,
            at: 0,
            flights: BTreeMap::new(),
        };
        for (p, view) in func.params.iter().zip(args) {
            frame.views[p.0 as usize] = Some(view);
        }
        for (r, dest) in func.results.iter().zip(dests) {
            let Some(dest) = dest else { continue };
            if let Some((made, _)) = writer(func, *r) {
                frame.dests.entry(made).or_insert_with(|| dest.clone());
            }
        }
        let endings = ending::endings(self.module, func);
        for (at, (id, op)) in func.body_ops().enumerate() {
            frame.at = at;
            let waits = endings.values().any(|ending| ending.products.contains(&id));
            if frame.late[id.0 as usize] || waits {
                continue;
            }
            let done = match endings.get(&id) {
                Some(ending) => self.ended(&mut frame, op, ending),
                None => self.op(&mut frame, op),
            };
            done.map_err(|why| self.error(func, op, why))?;
        }
        frame.at = func.body.len();
        let mut results = vec![];
        for (i, r) in func.results.iter().enumerate() {
            let dest = dests.get(i).cloned().flatten();
            let view = self.result(&mut frame, *r, dest);
            results.push(view.map_err(|e| self.error_in(func, e))?);
        }
        Ok(results)
    }

    fn result(&mut self, f: &mut Frame<'a>, r: ValueId, dest: Option<Arg>) -> Result<View, Fault> {
        let ty = f.func.ty(r).clone();
        let Some(dest) = dest else {
            return match ty.state {
                true => self.view(f, r),
                false => self.plain_view(f, r),
            };
        };
        let at = self.plain(f, r)?;
        if at != dest {
            let bytes = view::size_bytes(&self.dims, &ty.dims, ty.dtype);
            self.copy(at, dest.clone(), bytes, &f.names[r.0 as usize]);
        }
        Ok(View::row_major(&self.dims, dest, ty.dtype, &ty.dims))
    }

    fn op(&mut self, f: &mut Frame<'a>, op: &'a OpData) -> Result<(), Fault> {
        self.save_before_change(f, op)?;
        match op.op {
            // Made where they are read.
            Op::Constant | Op::Iota | Op::Extent => Ok(()),
            Op::Read | Op::StopGradient | Op::BatchSum | Op::Spread => {
                let x = self.view(f, op.operands[0])?;
                self.define(f, op.results[0], x);
                Ok(())
            }
            Op::Reshape | Op::Transpose | Op::Slice | Op::Broadcast => {
                let Some(x) = f.views[op.operands[0].0 as usize].clone() else { return Ok(()) };
                let ty = f.func.ty(op.results[0]);
                if let Some(view) = x.moved(&self.dims, op.op, &op.attrs, &ty.dims) {
                    self.define(f, op.results[0], view);
                }
                Ok(())
            }
            Op::Matmul | Op::GroupedMatmul | Op::GroupedOuter => self.product(f, op),
            Op::Attention | Op::AttentionGrad => self.attention(f, op),
            Op::Encode => self.encode(f, op),
            Op::Quantize | Op::Dequantize => Err("quantized values are split before this".into()),
            Op::Assign if f.is_late(op.operands[1]) => self.region(f, op),
            Op::Assign => {
                let (state, x) = (self.view(f, op.operands[0])?, self.plain(f, op.operands[1])?);
                if x != state.at {
                    let bytes = view::size_bytes(&self.dims, &state.dims, state.dtype);
                    self.copy(x, state.at.clone(), bytes, &f.names[op.results[0].0 as usize]);
                }
                self.define(f, op.results[0], state);
                Ok(())
            }
            Op::AllReduce
            | Op::ReduceScatter
            | Op::AllGather
            | Op::Part
            | Op::ExchangeOffsets
            | Op::Exchange
            | Op::AllReduceStart
            | Op::ReduceScatterStart
            | Op::AllGatherStart
            | Op::ExchangeStart => self.collective(f, op),
            Op::Done => self.done(f, op),
            Op::Send | Op::Recv => self.message(f, op),
            Op::Call => self.call(f, op),
            Op::Repeat => self.repeat(f, op),
            Op::Fused => self.fused(f, op),
            Op::Pad | Op::Concat | Op::Shift | Op::Recode => self.region(f, op),
            Op::Neg
            | Op::Abs
            | Op::Sign
            | Op::Floor
            | Op::Exp
            | Op::Log
            | Op::Sqrt
            | Op::Rsqrt
            | Op::Sigmoid
            | Op::Tanh
            | Op::Sin
            | Op::Cos
            | Op::Erf
            | Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Div
            | Op::Max
            | Op::Min
            | Op::Eq
            | Op::Lt
            | Op::Le
            | Op::And
            | Op::Or
            | Op::Not
            | Op::Select
            | Op::Convert
            | Op::ReduceSum
            | Op::ReduceMax
            | Op::Gather
            | Op::ScatterAdd
            | Op::Take
            | Op::Put
            | Op::OneHot
            | Op::Topk
            | Op::GroupedTopk
            | Op::Route
            | Op::Dispatch
            | Op::Combine
            | Op::CombineDot
            | Op::RmsNorm
            | Op::RmsNormGrad
            | Op::Softmax
            | Op::Rotary
            | Op::CrossEntropy
            | Op::CrossEntropyGrad
            | Op::CacheAppend
            | Op::AdamW => self.region(f, op),
        }
    }

    fn define(&mut self, f: &mut Frame<'a>, v: ValueId, view: View) {
        f.views[v.0 as usize] = Some(view);
    }

    /// Where a value lies, with any strides.
    fn view(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<View, Fault> {
        if let Some(view) = &f.views[v.0 as usize] {
            return Ok(view.clone());
        }
        let at = self.plain(f, v)?;
        let ty = f.func.ty(v);
        Ok(View::row_major(&self.dims, at, ty.dtype, &ty.dims))
    }

    /// Where a value lies in row-major order; it is copied there if it does not.
    fn plain(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<Arg, Fault> {
        if let Some(at) = self.plain_now(f, v) {
            return Ok(at);
        }
        // What is its operand under another name lies where that lies.
        if let Some(op) = f.func.def_op(v).map(|id| f.func.op(id))
            && matches!(op.op, Op::StopGradient | Op::BatchSum)
        {
            return self.plain(f, op.operands[0]);
        }
        let to = self.room(f, v)?;
        self.copy_region(f, v, to.clone())?;
        f.copies[v.0 as usize] = Some(to.clone());
        Ok(to)
    }

    /// Where a value lies in row-major order, if it does.
    fn plain_now(&mut self, f: &Frame<'a>, v: ValueId) -> Option<Arg> {
        if let Some(at) = &f.copies[v.0 as usize] {
            return Some(at.clone());
        }
        let view = f.views[v.0 as usize].as_ref()?;
        view.is_row_major(&self.dims).then(|| view.at.clone())
    }

    /// Room for a value: where it belongs, or a new temp.
    fn room(&mut self, f: &Frame<'a>, v: ValueId) -> Result<Arg, Fault> {
        match f.dests.get(&v) {
            Some(dest) => Ok(dest.clone()),
            None => {
                let name = f.names[v.0 as usize].clone();
                Ok(self.temp(f.id, &name, f.func.ty(v)))
            }
        }
    }

    /// Room for a result, which is a view of it from now on.
    fn result_room(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<Arg, Fault> {
        let at = self.room(f, v)?;
        let ty = f.func.ty(v);
        let view = View::row_major(&self.dims, at.clone(), ty.dtype, &ty.dims);
        self.define(f, v, view);
        Ok(at)
    }

    fn temp(&mut self, frame: u32, name: &str, ty: &Type) -> Arg {
        let dims = self.dims.exprs(&ty.dims);
        let id = self.buffer(name, dims::dtype(ty.dtype), dims, Role::Temp { offset: 0 });
        self.temps.insert(id, TempInfo { scope: self.open.clone(), frame });
        Arg::whole(id)
    }

    fn buffer(
        &mut self,
        name: &str,
        dtype: weft_graph::DType,
        dims: Vec<DimExpr>,
        role: Role,
    ) -> BufferId {
        let taken = |n: &str| self.buffers.iter().any(|b| b.name == n);
        let name = match taken(name) {
            false => name.to_string(),
            true => (2..).map(|i| format!("{name}.{i}")).find(|n| !taken(n)).unwrap_or_default(),
        };
        self.buffers.push(Buffer::new(name, dtype, dims, role));
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// The machine as the step at hand has it.
    fn machine(&self) -> &dyn Backend {
        self.beside.as_deref().unwrap_or(self.backend)
    }

    /// Something is in flight from now on, or is not any more.
    fn carry(&mut self, flight: u32, sms: Option<u32>) {
        match sms {
            Some(sms) => drop(self.carrying.insert(flight, sms)),
            None => drop(self.carrying.remove(&flight)),
        }
        let taken = self.carrying.values().copied().max().filter(|sms| *sms > 0);
        self.beside = taken.and_then(|sms| self.backend.beside(sms));
    }

    fn launch(&mut self, f: &Frame<'a>, op: &OpData, work: Work) {
        let label = op.results.first().map_or(op.op.name().into(), |r| {
            let name = &f.names[r.0 as usize];
            format!("{}.{}", name.trim_start_matches('%'), op.op.name())
        });
        let step = Launch {
            writes: Some(work.writes),
            sms: work.sms,
            scalars: work.scalars,
            source: self.places(op),
            flops: work.flops,
            bytes: work.bytes,
            ..Launch::new(work.kernel, work.args, work.grid, label)
        };
        self.push(Step::Launch(step));
    }

    fn copy(&mut self, from: Arg, to: Arg, bytes: DimExpr, label: &str) {
        let (label, order) = (format!("{label}.copy"), Order::default());
        self.push(Step::Copy(Copy { from, to, bytes, label, order }));
    }

    fn push(&mut self, step: Step) {
        if let Some(steps) = self.steps.last_mut() {
            steps.push(step);
        }
    }

    /// Before `op` changes a state: copies what only shows the state's storage and is needed later.
    fn save_before_change(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        for state in uses::consumed(self.module, op) {
            let Some(storage) = f.views[state.0 as usize].as_ref().map(|v| v.at.buffer) else {
                continue;
            };
            if let Some(c) = f.flights.values().find(|c| c.from.buffer == storage) {
                let why = format!("changes a state that {} carries to other ranks", c.label);
                return Err(why.into());
            }
            for v in (0..f.func.n_values() as u32).map(ValueId) {
                let needed = f.last_use[v.0 as usize] >= f.at && !f.func.ty(v).state;
                if needed && self.shows(f, v, storage) {
                    self.save(f, v)?;
                }
            }
        }
        Ok(())
    }

    /// Gives a value storage of its own.
    fn save(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<(), Fault> {
        let ty = f.func.ty(v);
        let to = self.temp(f.id, &f.names[v.0 as usize].clone(), ty);
        match self.plain_now(f, v) {
            Some(from) => {
                let bytes = view::size_bytes(&self.dims, &ty.dims, ty.dtype);
                self.copy(from, to.clone(), bytes, &f.names[v.0 as usize].clone());
            }
            None => self.copy_region(f, v, to.clone())?,
        }
        f.views[v.0 as usize] = Some(View::row_major(&self.dims, to, ty.dtype, &ty.dims));
        Ok(())
    }

    /// The body of a called function in the place of the call.
    fn call(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let callee = op.attrs.get_func("func").ok_or("names no function")?;
        let mut args = vec![];
        for x in &op.operands {
            let ty = f.func.ty(*x).clone();
            let view = if ty.state { self.view(f, *x)? } else { self.plain_view(f, *x)? };
            args.push(view);
        }
        let dests: Vec<Option<Arg>> = op.results.iter().map(|r| f.dests.get(r).cloned()).collect();
        let results = self.func(callee, args, &dests)?;
        for (r, view) in op.results.iter().zip(results) {
            self.define(f, *r, view);
        }
        Ok(())
    }

    fn plain_view(&mut self, f: &mut Frame<'a>, v: ValueId) -> Result<View, Fault> {
        let at = self.plain(f, v)?;
        let ty = f.func.ty(v);
        Ok(View::row_major(&self.dims, at, ty.dtype, &ty.dims))
    }

    fn places(&self, op: &OpData) -> Vec<String> {
        let file = |i: u32| self.module.files.get(i as usize).map_or("?", String::as_str);
        op.spans.iter().map(|s| format!("{}:{}:{}", file(s.file), s.line, s.col)).collect()
    }

    fn place(&self, op: &OpData) -> String {
        self.places(op).into_iter().next().unwrap_or_default()
    }

    fn error(&self, func: &Func, op: &OpData, fault: Fault) -> LowerError {
        let place = self.places(op).into_iter().next();
        match fault {
            Fault::There(e) => e,
            Fault::Here(why) => {
                LowerError { func: func.name.clone(), op: Some(op.op.name()), place, why }
            }
        }
    }

    fn error_in(&self, func: &Func, fault: Fault) -> LowerError {
        match fault {
            Fault::There(e) => e,
            Fault::Here(why) => LowerError { func: func.name.clone(), op: None, place: None, why },
        }
    }
}
