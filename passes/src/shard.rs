//! Share the training step among ranks.
//!
//! ```text
//! func @train_step(%x: f32[4, B, 3], ..) {          func @train_step(%x: f32[2{data}, B, 3], ..) {
//!   %2 = reshape %x {shape = [2, 2, B, 3]}            %2 = reshape %x {shape = [2, B, 3]}
//!   %4 = repeat %0, %2, %1                      =>    %3 = repeat %0, %2, %1
//!     {func = @train_step.micro.2, count = 2, ..}       {func = @train_step.micro, count = 2, ..}
//!   ..                                                %4 = all_reduce %3 {axis = data}
//! ```
//!
//! Why: the micro-batches of a step are added in a binary tree, in loops of two turns
//! (`train_step`). A turn of the outermost loop is what one of two ranks does, and a sum over ranks
//! in the same tree is the loop: gradients, counts, losses and side outputs come out as one rank
//! gets them, bit for bit. So 2^k ranks along `data` take the place of the k outermost loops, and
//! everything after the sums (norm, clipping, `@update`, the optimizer) is done by each alike.
//! Types are of what one rank holds; `{data}` says along which axis a dim was cut. Cost: one pass
//! over `@train_step`; links carry each gradient up and down the tree once. Requires: `train_step`.

pub mod experts;

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Axis, Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{AxisId, Type};

use crate::rewrite::{Copier, carry, stacked};
use crate::{Mesh, Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "shard", requires: &[], establishes: &[], run };

/// The axis whose ranks have batches of their own.
pub const DATA: &str = "data";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(mesh) = cx.mesh.as_ref().filter(|m| m.data > 1) else { return Ok(Stats::default()) };
    let Some(step) = module.find("train_step") else { return serve(module, mesh) };
    let axis = module.find_axis(DATA);
    let axis = axis.unwrap_or_else(|| add_axis(module, DATA, mesh.data, None));
    if !mesh.data.is_power_of_two() {
        let why =
            format!("{} ranks along data: sums are in a binary tree, so 2, 4, 8 ..", mesh.data);
        return Err(PassError::new(why));
    }
    let n_sums;
    let func = module.func(step).clone();
    (*module.func_mut(step), n_sums) = {
        let mut share = Share { module, func: &func, axis, n_ranks: mesh.data, n_sums: 0 };
        (share.step()?, share.n_sums)
    };
    let mut counts = vec![("sums over ranks", n_sums)];
    if mesh.experts > 1 {
        if !mesh.data.is_multiple_of(mesh.experts) {
            let (e, data) = (mesh.experts, mesh.data);
            let why = format!("{e} ranks along experts do not divide the {data} along data");
            return Err(PassError::new(why));
        }
        let replicas = add_axis(module, experts::REPLICAS, mesh.data / mesh.experts, Some(axis));
        let experts = add_axis(module, experts::EXPERTS, mesh.experts, Some(axis));
        let n = experts::share(module, step, mesh, experts, replicas)?;
        counts.push(("weights of experts divided", n));
    }
    Ok(Stats { counts })
}

/// Entries without a training step: each rank has requests of its own, and its part of the experts.
fn serve(module: &mut Module, mesh: &Mesh) -> Result<Stats, PassError> {
    if mesh.experts < 2 || mesh.data != mesh.experts {
        return Ok(Stats::default());
    }
    let axis = add_axis(module, experts::EXPERTS, mesh.experts, None);
    let n = experts::serve(module, mesh.experts, axis)?;
    Ok(Stats::one("weights of experts divided", n))
}

/// An axis of the mesh, faster than those before it.
pub fn add_axis(module: &mut Module, name: &str, size: u64, within: Option<AxisId>) -> AxisId {
    module.axes.push(Axis { name: name.into(), size, within });
    AxisId(module.axes.len() as u32 - 1)
}

struct Share<'a> {
    module: &'a Module,
    func: &'a Func,
    axis: AxisId,
    n_ranks: u64,
    n_sums: usize,
}

impl Share<'_> {
    fn step(&mut self) -> Result<Func, PassError> {
        let func = self.func;
        let mut copy = Copier::new(func, &func.name);
        for p in &func.params {
            match self.is_data(*p) {
                true => self.cut(&mut copy, *p)?,
                false => drop(copy.param(*p, "p")),
            }
        }
        for (id, op) in func.body_ops() {
            copy.to.at(&op.spans);
            if op.op == Op::Repeat && is_sum(self.module, func, op) {
                self.sum(&mut copy, op).map_err(|e| e.at(func, op))?;
            } else if op.op == Op::Reshape && self.is_data(op.operands[0]) {
                // The stack of the loop that the ranks take the place of; `sum` reads the data.
                copy.set(op.results[0], copy.get(op.operands[0]));
            } else {
                copy.op(id);
            }
        }
        Ok(copy.finish())
    }

    /// Is it a parameter with a place for each micro-batch: neither stored nor a scalar?
    fn is_data(&self, v: ValueId) -> bool {
        let value = self.func.value(v);
        let name = value.name.as_deref().unwrap_or("");
        self.func.params.contains(&v)
            && !self.module.stores.contains_key(name)
            && !value.ty.state
            && value.ty.rank() > 0
    }

    /// The parameter with this rank's micro-batches alone.
    fn cut(&self, copy: &mut Copier, p: ValueId) -> Result<(), PassError> {
        let (ty, n) = (self.func.ty(p), self.n_ranks);
        let size = ty.dims[0].as_fixed().unwrap_or(0);
        if size == 0 || !size.is_multiple_of(n) {
            let why = format!("{n} ranks along data do not divide {size} micro-batches");
            return Err(PassError::new(why).within(self.func));
        }
        let mut dims = ty.dims.clone();
        dims[0] = Dim::fixed(size / n);
        let mut axes = vec![None; dims.len()];
        axes[0] = Some(self.axis);
        let name = self.func.value(p).name.clone().unwrap_or_default();
        let own = copy.to.param(&name, Type { axes, ..ty.with_dims(dims) });
        copy.set(p, own);
        Ok(())
    }

    /// What this rank adds up, and then all of them.
    fn sum(&mut self, copy: &mut Copier, op: &OpData) -> Result<(), PassError> {
        let (carry, n_xs) = (carry(op), stacked(op));
        let mut inner = Inner { op: op.clone(), func: self.func.clone() };
        let mut left = self.n_ranks;
        let mut body = FuncId(u32::MAX);
        while left > 1 {
            let count = inner.op.attrs.get_int("count").unwrap_or(0);
            if inner.op.op != Op::Repeat || count != 2 {
                let (n, done) = (self.n_ranks, self.n_ranks / left);
                let why = format!("{n} ranks along data, and the micro-batches halve {done} times");
                return Err(PassError::new(why));
            }
            body = inner.op.attrs.get_func("func").expect("required by the row");
            let func = self.module.func(body).clone();
            let op = func.op(added(&func).ok_or_else(|| PassError::new("is no sum"))?).clone();
            inner = Inner { op, func };
            left /= 2;
        }
        // The operands of the innermost op that is left, given what the outermost was given.
        let of_body = &self.module.func(body).params;
        let mut xs = vec![];
        for x in &inner.op.operands {
            if let Some(i) = of_body.iter().position(|p| p == x) {
                let value = copy.get(op.operands[i]);
                let is_slice = (carry..carry + n_xs).contains(&i);
                let dims = &inner.func.ty(*x).dims;
                xs.push(if is_slice { copy.to.reshape(value, dims)? } else { value });
            } else {
                // Zeros that an inner loop begins with.
                xs.push(copy.to.constant(0.0, inner.func.ty(*x).clone())?);
            }
        }
        let attrs = inner.op.attrs.clone();
        let own = copy.to.emit_calling(self.module, inner.op.op, &xs, attrs)?;
        for (i, r) in op.results.iter().enumerate() {
            // The result that the body adds to the total.
            let add = inner.func.def_op(inner.func.results[i]).expect("a sum is made by an op");
            let add = inner.func.op(add);
            let place = inner.op.results.iter().position(|x| *x == add.operands[1]);
            let own = own[place.expect("checked by `added`")];
            let attrs = Attrs::new().axis("axis", self.axis);
            let all = copy.to.emit_calling(self.module, Op::AllReduce, &[own], attrs)?[0];
            copy.bind(*r, all);
            let total = inner.func.value(inner.func.params[i]).name.as_deref().unwrap_or("");
            copy.to.name(all, total.strip_prefix("total.").unwrap_or("sum"));
            self.n_sums += 1;
        }
        Ok(())
    }
}

/// An op of a sum's body, with the function it stands in.
struct Inner {
    op: OpData,
    func: Func,
}

/// Is a repeat the sum over its turns: all it carries, from zeros?
fn is_sum(module: &Module, func: &Func, op: &OpData) -> bool {
    let zero = |v: &ValueId| {
        let made = func.def_op(*v).map(|id| func.op(id));
        made.is_some_and(|o| o.op == Op::Constant && o.attrs.get_float("value") == Some(0.0))
    };
    let n = carry(op);
    let body = op.attrs.get_func("func").map(|f| module.func(f));
    op.results.len() == n
        && op.operands[..n].iter().all(zero)
        && body.is_some_and(|body| added(body).is_some())
}

/// The one op whose results a sum's body adds to its first parameters.
pub fn added(body: &Func) -> Option<weft_ir::module::OpId> {
    let mut made = None;
    for (result, total) in body.results.iter().zip(&body.params) {
        let add = body.op(body.def_op(*result)?);
        let by = body.def_op(*add.operands.get(1)?)?;
        let fits = add.op == Op::Add && add.operands[0] == *total;
        if !fits || *made.get_or_insert(by) != by {
            return None;
        }
    }
    made
}
