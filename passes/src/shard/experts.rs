//! Ranks along `experts` have the experts of a layer between them: who divides what.
//!
//! An expert store is one whose slices a `grouped_matmul` takes as the weights of its segments; it
//! is cut along that dim. What it is read as is gathered, and its gradient, a sum over `data`, is
//! scattered over `experts` and summed over `replicas`, which is the same tree. The pass `experts`
//! then sends rows in place of weights.

use std::collections::BTreeMap;

use weft_ir::dim::product;
use weft_ir::module::{Func, FuncId, Module, OpData, Store, StoreKind, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::AxisId;

use crate::divide::{Cut, Parts, Sum, divide, summed};
use crate::rewrite::{callee, carry, stacked};
use crate::tensor::Line;
use crate::{Mesh, PassError};

/// The parts of a place along `data`: ranks with the same experts, and those that divide them.
pub const REPLICAS: &str = "replicas";
pub const EXPERTS: &str = "experts";

/// Divides the expert stores among the ranks along `axis`.
pub fn share(
    module: &mut Module,
    step: FuncId,
    mesh: &Mesh,
    axis: AxisId,
    replicas: AxisId,
) -> Result<usize, PassError> {
    let func = module.func(step);
    let dims = expert_dims(module);
    let of_step = &dims[step.0 as usize];
    let rest = (mesh.data > mesh.experts).then_some(replicas);
    let mut parts = Parts::default();
    for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::AdamW) {
        let name = |v: &ValueId| func.value(*v).name.clone().unwrap_or_default();
        let param = func.params.iter().position(|p| *p == op.operands[0]);
        let Some(dim) = param.and_then(|p| of_step.get(&p)) else { continue };
        let weight = name(&op.operands[0]);
        let size = func.ty(op.operands[0]).dims[*dim].as_fixed().unwrap_or(0);
        if !size.is_multiple_of(mesh.experts) {
            return Err(PassError::new(uneven(&weight, size, mesh.experts)));
        }
        let Some(sum) = summed(func, op.operands[3]) else {
            let why = format!("the gradient of `{weight}` is no sum over ranks");
            return Err(PassError::new(why));
        };
        let cut = Cut { axis, n_parts: mesh.experts, dim: *dim };
        parts.sums.push(Sum { op: sum, cut, rest });
        parts.stores.extend(op.operands[..3].iter().map(|v| (name(v), cut)));
    }
    if parts.stores.is_empty() {
        let why = format!("{} ranks along experts, and the model has none", mesh.experts);
        return Err(PassError::new(why));
    }
    divide(module, Some(step), &parts)?;
    Ok(parts.sums.len())
}

/// The same for entries that serve: nothing is summed over ranks.
pub fn serve(module: &mut Module, n_ranks: u64, axis: AxisId) -> Result<usize, PassError> {
    let mut parts = Parts::default();
    let dims = expert_dims(module);
    for func in module.funcs.iter().zip(&dims) {
        let (func, dims) = func;
        let entry = !func.result_names.is_empty();
        for (p, dim) in dims.iter().filter(|_| entry) {
            let param = func.params[*p];
            let Some(name) = func.value(param).name.clone() else { continue };
            let size = func.ty(param).dims[*dim].as_fixed().unwrap_or(0);
            if !size.is_multiple_of(n_ranks) {
                return Err(PassError::new(uneven(&name, size, n_ranks)));
            }
            parts.stores.insert(name, Cut { axis, n_parts: n_ranks, dim: *dim });
        }
    }
    if parts.stores.is_empty() {
        let why = format!("{n_ranks} ranks along experts, and the model has none");
        return Err(PassError::new(why));
    }
    divide(module, None, &parts)?;
    Ok(parts.stores.len())
}

fn uneven(weight: &str, n_experts: u64, n_ranks: u64) -> String {
    let legal = (1..=n_ranks).rev().find(|n| n_experts.is_multiple_of(*n) && n.is_power_of_two());
    format!(
        "{n_ranks} ranks along experts do not divide the {n_experts} experts of `{weight}`; the \
         nearest is experts = {}",
        legal.unwrap_or(1)
    )
}

/// For each function, parameters that hold weights of experts, and along which dim. Callees stand
/// before their callers.
pub fn expert_dims(module: &Module) -> Vec<BTreeMap<usize, usize>> {
    let mut all: Vec<BTreeMap<usize, usize>> = vec![];
    for id in module.func_ids() {
        let func = module.func(id);
        let mut own = BTreeMap::new();
        let mut found = |v: ValueId, dim: usize| {
            own.extend(source(func, v, dim));
        };
        for (_, op) in func.body_ops() {
            if op.op == Op::GroupedMatmul {
                found(op.operands[1], 0);
            }
            let Some(inner) = callee(op).and_then(|f| all.get(f.0 as usize)) else { continue };
            for (param, dim) in inner {
                let sliced = (carry(op)..carry(op) + stacked(op)).contains(param);
                found(op.operands[*param], dim + usize::from(sliced));
            }
        }
        all.push(own);
    }
    all
}

/// The parameter that a value has the elements of, in another form or not, and which of its dims
/// the value's `dim` is.
pub fn source(func: &Func, v: ValueId, dim: usize) -> Option<(usize, usize)> {
    let Some(op) = func.def_op(v).map(|id| func.op(id)) else {
        return Some((func.params.iter().position(|p| *p == v)?, dim));
    };
    source(func, op.operands[0], before(func, op, dim)?)
}

/// The dim of an op's first operand that `dim` of its result is, if the op gives a weight another
/// form, or takes it from a stack.
pub fn before(func: &Func, op: &OpData, dim: usize) -> Option<usize> {
    match op.op {
        Op::Read | Op::Convert | Op::Quantize | Op::Dequantize => Some(dim),
        Op::Slice => (op.attrs.get_int("dim") != Some(dim as i64)).then_some(dim),
        Op::Reshape => {
            let (from, to) = (&func.ty(op.operands[0]).dims, &func.ty(op.results[0]).dims);
            let outside = product(&to[..dim])?;
            let same = |d: &usize| from[*d] == to[dim] && product(&from[..*d]) == Some(outside);
            (0..from.len()).find(same)
        }
        _ => None,
    }
}

/// What `n` ranks along `experts` would divide, weight by weight. The dim of experts is one that
/// the tensors of a store are stacked along.
pub fn explain(module: &Module, n: u64) -> Vec<Line> {
    let dims = expert_dims(module);
    let mut found = BTreeMap::new();
    for (func, dims) in module.funcs.iter().zip(&dims).filter(|(f, _)| !f.result_names.is_empty()) {
        for (p, dim) in dims {
            found.extend(func.value(func.params[*p]).name.clone().map(|name| (name, *dim)));
        }
    }
    let weights = module.stores.iter().filter(|(_, s)| s.kind == StoreKind::Weight);
    let line = |(name, store): (&String, &Store)| {
        let dim = found.get(name).copied();
        let size = dim.and_then(|d| store.ty.dims[d].as_fixed()).unwrap_or(0);
        let (dim, why) = match dim {
            None => {
                (None, "no product takes slices of it by expert: each rank has it whole".into())
            }
            Some(_) if !size.is_multiple_of(n) => (None, uneven(name, size, n)),
            Some(d) => {
                let rows = "to which rows of tokens are sent";
                (Some(d), format!("a slice for each of {size} experts; {} here, {rows}", size / n))
            }
        };
        Line { weight: name.clone(), dim, why, span: None }
    };
    weights.map(line).collect()
}
