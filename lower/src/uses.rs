//! Who may look at a value's storage, and until when.

use weft_ir::module::{Def, Func, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};

/// May the result of `op` lie in the storage of its operands?
fn is_view(op: Op) -> bool {
    match op {
        Op::Reshape | Op::Transpose | Op::Slice | Op::Broadcast => true,
        Op::Read | Op::StopGradient | Op::BatchSum => true,
        Op::Assign | Op::CacheAppend | Op::AdamW => true,
        // A function may return what it was given. A repeat copies that.
        Op::Call => true,
        // What is in flight is its operand still.
        op if op.started().is_some() => true,
        _ => false,
    }
}

/// Pointwise ops whose one result only an op that changes states reads, once: they are made there,
/// so that gradients are clipped and used in one pass over them.
pub fn made_at_state(func: &Func) -> Vec<bool> {
    let counts = func.use_counts();
    let mut made = vec![false; func.n_ops()];
    for (_, op) in func.body_ops().filter(|(_, op)| op.op.has(Trait::State)) {
        for x in op.operands.iter().filter(|x| counts[x.0 as usize] == 1) {
            if let Some(id) = func.def_op(*x)
                && func.op(id).op.has(Trait::Pointwise)
            {
                made[id.0 as usize] = true;
            }
        }
    }
    made
}

/// For each value the place in the body of the last op that may read its storage, through views of
/// it too; the length of the body for results. 0 where nothing does. `late` ops run where their
/// results are read.
pub fn last_uses(func: &Func, late: &[bool]) -> Vec<usize> {
    let mut last = vec![0; func.n_values()];
    for r in &func.results {
        last[r.0 as usize] = func.body.len();
    }
    for (at, id) in func.body.iter().enumerate().rev() {
        let op = func.op(*id);
        let seen = op.results.iter().map(|r| last[r.0 as usize]).max().unwrap_or(0);
        let until = if is_view(op.op) || late[id.0 as usize] { seen.max(at) } else { at };
        for x in &op.operands {
            let slot = &mut last[x.0 as usize];
            *slot = (*slot).max(until);
        }
    }
    last
}

/// The value whose op writes the storage of `v`, following reshapes, and that op's place in the
/// body; `None` for what no op of the function writes.
pub fn writer(func: &Func, v: ValueId) -> Option<(ValueId, usize)> {
    let Def::Result { op: id, .. } = func.value(v).def else { return None };
    let op = func.op(id);
    match op.op {
        Op::Reshape => writer(func, op.operands[0]),
        Op::Read | Op::StopGradient | Op::BatchSum => None,
        _ if func.ty(v).state => None,
        // It may come from the moment it is begun.
        Op::Done => {
            let begun = func.def_op(op.operands[0])?;
            Some((v, func.body.iter().position(|o| *o == begun)?))
        }
        _ => Some((v, func.body.iter().position(|o| *o == id)?)),
    }
}

/// The states that `op` changes.
pub fn consumed(module: &Module, op: &OpData) -> Vec<ValueId> {
    match op.op {
        Op::Assign | Op::CacheAppend => vec![op.operands[0]],
        Op::AdamW => op.operands[..3].to_vec(),
        Op::Call | Op::Repeat | Op::Fused => {
            let Some(callee) = op.attrs.get_func("func") else { return vec![] };
            let donated = &module.func(callee).donated;
            donated.iter().map(|(p, _)| op.operands[*p as usize]).collect()
        }
        _ => vec![],
    }
}
