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

use weft_ir::module::{Func, Module, Store};
use weft_ir::op::Op;

use crate::divide::{Cut, Parts, Sum, divide, summed};
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
    for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::AdamW) {
        let names = op.operands[..3].iter().map(|v| func.value(*v).name.clone());
        let Some(names) = names.collect::<Option<Vec<String>>>() else { continue };
        let Some(store) = module.stores.get(&names[0]) else { continue };
        let Some(sum) = summed(func, op.operands[3]) else { continue };
        let Some(axis) = func.op(sum).attrs.get_axis("axis") else { continue };
        let n_parts = module.axes[axis.0 as usize].size;
        let Some(dim) = dim(store, n_parts) else { continue };
        let cut = Cut { axis, n_parts, dim };
        parts.sums.push(Sum { op: sum, cut, rest: None });
        parts.stores.extend(names.into_iter().map(|name| (name, cut)));
    }
    parts
}

/// The first dim of the stored tensors, if the ranks divide it.
fn dim(store: &Store, n_parts: u64) -> Option<usize> {
    let dim = store.starts.len();
    let size = store.ty.dims.get(dim)?.as_fixed()?;
    let cut = store.ty.axes.get(dim).copied().flatten().is_some();
    (size.is_multiple_of(n_parts) && !cut).then_some(dim)
}
