//! Scatter a sum over ranks of which each reads its part alone.
//!
//! ```text
//! %1 = all_reduce %own : f32[8, 6]
//! %2 = convert %1 {dtype = bf16} : bf16[8, 6]          %1 = reduce_scatter %own {dim = 0}
//! %y = part %2 {dim = 0} : bf16[4, 6]             =>   %y = convert %1 {dtype = bf16} : bf16[4, 6]
//! ```
//!
//! Why: the sum for all is the sum of parts, gathered; who reads a part has no use for the rest.
//! Elements are those that the sum for all has, to the bit. `sequence` leaves such pairs forward,
//! and `autodiff` backward, where what was gathered is also spread. Cost: one walk. Requires: `cse`
//! before, so that a sum has one reader.

use std::collections::BTreeMap;

use weft_ir::module::{Func, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;

use crate::rewrite::{Copier, each_func};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "scatter_sums", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut scattered = 0;
    each_func(module, |module, func| {
        let found = sums(func);
        scattered += found.len();
        if found.is_empty() { Ok(func.clone()) } else { scatter(module, func, &found) }
    })?;
    Ok(Stats::one("sums scattered", scattered))
}

/// By the sum over ranks that only a part of is read: the op that takes the part.
fn sums(func: &Func) -> BTreeMap<OpId, OpId> {
    let uses = func.use_counts();
    let mut found = BTreeMap::new();
    for (part, op) in func.body_ops().filter(|(_, op)| op.op == Op::Part) {
        if let Some(sum) = sum_of(func, op.operands[0], &uses)
            && func.op(sum).attrs.get_axis("axis") == op.attrs.get_axis("axis")
        {
            found.insert(sum, part);
        }
    }
    found
}

/// The sum that a value is, perhaps in another type, if nothing else reads it.
fn sum_of(func: &Func, v: ValueId, uses: &[u32]) -> Option<OpId> {
    let id = func.def_op(v).filter(|_| uses[v.0 as usize] == 1)?;
    match func.op(id) {
        OpData { op: Op::AllReduce, .. } => Some(id),
        OpData { op: Op::Convert, operands, .. } => sum_of(func, operands[0], uses),
        _ => None,
    }
}

fn scatter(module: &Module, func: &Func, found: &BTreeMap<OpId, OpId>) -> Result<Func, PassError> {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    for (id, op) in func.body_ops() {
        copy.to.at(&op.spans);
        if let Some(part) = found.get(&id) {
            let attrs = func.op(*part).attrs.clone();
            let x = copy.get(op.operands[0]);
            let own = copy.to.emit_calling(module, Op::ReduceScatter, &[x], attrs)?[0];
            copy.set(op.results[0], own);
        } else if found.values().any(|part| *part == id) {
            copy.bind(op.results[0], copy.get(op.operands[0]));
        } else if op.op == Op::Convert
            && copy.try_get(op.operands[0]).is_some_and(|x| {
                // Of what a rank has.
                copy.to.ty(x).dims != func.ty(op.operands[0]).dims
            })
        {
            let x = copy.get(op.operands[0]);
            let own = copy.to.emit(Op::Convert, &[x], op.attrs.clone())?;
            copy.bind(op.results[0], own);
        } else {
            copy.op(id);
        }
    }
    Ok(copy.finish())
}
