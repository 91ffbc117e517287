//! What the loops over micro-batches run, and on what: read from the step that `train_step` made.

use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;

use super::flat::broken;
use crate::PassError;
use crate::rewrite::{callee, carry, stacked};
use crate::shard::added;

/// The sum over micro-batches.
pub struct Nest {
    /// The loop, or the call of the one micro-batch.
    pub op: OpId,
    /// Turns of the loops, outermost first.
    pub turns: Vec<usize>,
    /// Where each parameter of `@grad` comes from: an operand of `op`, and whether it has a slice
    /// for each micro-batch.
    pub given: Vec<(ValueId, bool)>,
    /// The result of `@grad` that each result of `op` adds up.
    pub results: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Source {
    Total,
    Slices(ValueId),
    Shared(ValueId),
}

/// Finds the sum over `grad` in `step`.
pub fn find(module: &Module, step: &Func, grad: FuncId) -> Result<Nest, PassError> {
    for (id, op) in step.body_ops().filter(|(_, op)| matches!(op.op, Op::Repeat | Op::Call)) {
        if let Some(nest) = read(module, id, op, grad)? {
            return Ok(nest);
        }
    }
    Err(broken("it does not run @grad"))
}

fn read(module: &Module, id: OpId, op: &OpData, grad: FuncId) -> Result<Option<Nest>, PassError> {
    let (n, last) = (carry(op), carry(op) + stacked(op));
    let source = |(i, x): (usize, &ValueId)| match i {
        i if i < n => Source::Total,
        i if i < last => Source::Slices(*x),
        _ => Source::Shared(*x),
    };
    let mut sources: Vec<Source> = op.operands.iter().enumerate().map(source).collect();
    let mut results: Vec<usize> = (0..op.results.len()).collect();
    let mut turns = vec![];
    let mut inner = op.clone();
    loop {
        let Some(f) = callee(&inner) else { return Ok(None) };
        if inner.op == Op::Repeat {
            turns.push(inner.attrs.get_int("count").unwrap_or(0) as usize);
        }
        if f == grad {
            break;
        }
        let body = module.func(f);
        let Some(next) = added(body).map(|id| body.op(id)) else { return Ok(None) };
        let of_body = |x: &ValueId| match body.params.iter().position(|p| p == x) {
            Some(p) => sources[p],
            None => Source::Total,
        };
        sources = next.operands.iter().map(of_body).collect();
        let place = |r: &usize| {
            let add = body.def_op(body.results[*r]).map(|id| body.op(id));
            let by = add.and_then(|add| add.operands.get(1));
            by.and_then(|by| next.results.iter().position(|x| x == by))
        };
        results =
            results.iter().map(place).collect::<Option<_>>().ok_or_else(|| broken("a sum"))?;
        inner = next.clone();
    }
    let given = sources.iter().map(|s| match s {
        Source::Total => Err(broken("@grad reads a total")),
        Source::Slices(x) => Ok((*x, true)),
        Source::Shared(x) => Ok((*x, false)),
    });
    let given = given.collect::<Result<_, _>>()?;
    Ok(Some(Nest { op: id, turns, given, results }))
}
