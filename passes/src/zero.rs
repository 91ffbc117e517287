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
//! gradient is scattered as it is summed, a weight gathered when the step begins (`divide`). A
//! tensor is cut along its first dim, among the ranks that its gradient is summed over: those along
//! `data`, and of what ranks along `experts` divide already, those along `replicas`. One that they
//! do not divide stays whole. Cost: one pass over the entries. Requires: `shard`.

use weft_ir::module::{Func, Module, OpId, Store, ValueId};
use weft_ir::op::Op;

use crate::divide::{Cut, Parts, Sum, divide, summed};
use crate::tensor::Line;
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "zero", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let asked = cx.mesh.is_some_and(|m| m.zero && m.data > 1);
    let Some(step) = module.find("train_step").filter(|_| asked) else {
        return Ok(Stats::default());
    };
    let parts = parts(module, module.func(step));
    divide(module, Some(step), &parts)?;
    Ok(Stats::one("stores divided", parts.stores.len()))
}

/// The weights whose gradients are sums over ranks, with their moments.
fn parts(module: &Module, func: &Func) -> Parts {
    let mut parts = Parts::default();
    for weight in weights(module, func) {
        let Ok((op, cut)) = weight.cut else { continue };
        parts.sums.push(Sum { op, cut, rest: None });
        parts.stores.extend(weight.names.into_iter().map(|name| (name, cut)));
    }
    parts
}

/// A weight that the optimizer changes.
struct Weight {
    /// Its own name and those of its moments.
    names: Vec<String>,
    /// The sum that its gradient is, and how ranks divide it; or why they do not.
    cut: Result<(OpId, Cut), String>,
}

fn weights(module: &Module, func: &Func) -> Vec<Weight> {
    let mut all = vec![];
    for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::AdamW) {
        let names = op.operands[..3].iter().map(|v| func.value(*v).name.clone());
        let Some(names) = names.collect::<Option<Vec<String>>>() else { continue };
        let Some(store) = module.stores.get(&names[0]) else { continue };
        let cut = cut(module, func, store, op.operands[3]);
        all.push(Weight { names, cut });
    }
    all
}

fn cut(
    module: &Module,
    func: &Func,
    store: &Store,
    gradient: ValueId,
) -> Result<(OpId, Cut), String> {
    let alone = "no other rank has it, and its gradient is no sum over ranks";
    let sum = summed(func, gradient).ok_or(alone)?;
    let axis = func.op(sum).attrs.get_axis("axis").ok_or(alone)?;
    let n_parts = module.axes[axis.0 as usize].size;
    Ok((sum, Cut { axis, n_parts, dim: dim(module, store, n_parts)? }))
}

/// The first dim of the stored tensors, if the ranks divide it.
fn dim(module: &Module, store: &Store, n_parts: u64) -> Result<usize, String> {
    let dim = store.starts.len();
    let size = store.ty.dims.get(dim).ok_or("it is a number, and has no dim")?;
    let taken = store.ty.axes.get(dim).copied().flatten();
    if let Some(axis) = taken {
        let axis = &module.axes[axis.0 as usize].name;
        return Err(format!("its first dim is divided along {axis} already"));
    }
    match size.as_fixed() {
        Some(n) if n.is_multiple_of(n_parts) => Ok(dim),
        Some(n) => Err(format!("{n_parts} ranks do not divide the {n} of its first dim")),
        None => Err("the size of its first dim is not fixed".into()),
    }
}

/// What ranks would divide, weight by weight, of a module as `shard` leaves it.
pub fn explain(module: &Module) -> Vec<Line> {
    let Some(step) = module.find("train_step") else { return vec![] };
    let line = |weight: Weight| {
        let name = weight.names.into_iter().next().unwrap_or_default();
        let (dim, why) = match weight.cut {
            Ok((_, cut)) => {
                let axis = &module.axes[cut.axis.0 as usize].name;
                let own = format!("its gradient is a sum over the {} ranks", cut.n_parts);
                (Some(cut.dim), format!("{own} along {axis}; each has a part of its first dim"))
            }
            Err(why) => (None, why),
        };
        Line { weight: name, dim, why, span: None }
    };
    weights(module, module.func(step)).into_iter().map(line).collect()
}
