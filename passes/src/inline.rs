//! Put the body of a called function in the place of the call.
//!
//! ```text
//! func @f(%x) { %1 = exp %x; return %1 }
//! %2 = call %y {func = @f}                     =>   %2 = exp %y
//! ```
//!
//! Why: ops meet their neighbours: both halves of a backward share what they compute again, and
//! fusion sees one region. Bodies of repeats stay functions, so nothing grows with depth; so do
//! those of calls marked `noinline`.
//! Cost: the size of the result; a function called n times stands n times.

use weft_ir::module::{Func, Module, ValueId};
use weft_ir::op::Op;

use crate::rewrite::{Copier, callee, each_func};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "inline", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut inlined = 0;
    // Callees come first, so what is put in place of a call has no call left.
    each_func(module, |module, func| Ok(inline(module, func, &mut inlined)))?;
    Ok(Stats::one("inlined", inlined))
}

fn inline(module: &Module, func: &Func, inlined: &mut usize) -> Func {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    for (id, op) in func.body_ops() {
        let stays = op.op != Op::Call || op.attrs.get_flag("noinline");
        let Some(g) = callee(op).filter(|_| !stays) else {
            copy.op(id);
            continue;
        };
        *inlined += 1;
        let operands = copy.mapped(id).operands;
        let to = std::mem::replace(&mut copy.to, weft_ir::builder::Builder::new(""));
        let (to, results) = splice(module.func(g), to, &operands);
        copy.to = to;
        op.results.iter().zip(results).for_each(|(from, to)| copy.bind(*from, to));
    }
    copy.finish()
}

/// The body of `func` on `operands` at the end of `to`; returns its results there.
pub fn splice(
    func: &Func,
    to: weft_ir::builder::Builder,
    operands: &[ValueId],
) -> (weft_ir::builder::Builder, Vec<ValueId>) {
    let mut copy = Copier::into(func, to);
    func.params.iter().zip(operands).for_each(|(p, x)| copy.set(*p, *x));
    func.body.iter().for_each(|id| copy.op(*id));
    let results = func.results.iter().map(|r| copy.get(*r)).collect();
    (copy.to, results)
}
