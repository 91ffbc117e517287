//! Begin early what ranks do together, end it late, and compute in between.
//!
//! ```text
//! %sent = exchange %rows, ..                     %1 = exchange_start %rows, .. {stream = comm}
//! %z = grouped_matmul %sent, %w, ..              %shared = matmul %x, %v {stream = compute}
//! %back = exchange %z, .. {back}          =>     %sent = done %1 {stream = comm}
//! %y = combine %back, %order                     %z = grouped_matmul %sent, %w, .. {stream = compute}
//! %shared = matmul %x, %v                        %2 = exchange_start %z, .. {back, stream = comm}
//! %sum = add %y, %shared                         ..
//! ```
//!
//! Why: links and multiprocessors work at once. A collective becomes its two halves, and the ops of
//! the function are put in the order of a schedule of two streams (`schedule`): compute does one op
//! after the other, communication one transfer after the other, and the program is the order in
//! which the compute stream meets ops, beginnings and ends. Halves that nothing came to stand
//! between are put together again, and a function without collectives stays as it is.
//!
//! Where a function runs two loops of which neither needs the other (the forward of one
//! micro-batch and the backward of another: a pair of a pipeline's table), and one of them meets
//! other ranks, they become one loop (`zip`), a turn of each in a body, so that either computes
//! while the other is on its way. Layers stay rolled: nothing crosses the turns of a loop, so what
//! is begun in a turn is done in it. Where the one has more turns, its others are a loop behind. In
//! decoding the second is half a turn behind the first (`stagger`). Before that a loop that reads
//! turn by turn what another stacks (the weight gradients of layers whose input gradients the same
//! cell makes) becomes one with it (`join`).
//!
//! `stream` says on which of the two an op is, `sms` (the `communication_sms` of a parallel block)
//! how many multiprocessors carry a transfer; compute is counted on the rest. Values do not
//! change: the same ops run on the same operands. Memory: what is in flight is kept with its
//! source until it is done; at most `IN_FLIGHT_MAX` are. Cost: a walk over each function for each
//! op that is ready. Requires: all that makes collectives; `fuse`, since what is scheduled is
//! kernels.

mod join;
mod schedule;
mod stagger;
mod zip;

use weft_ir::attr::Attrs;
use weft_ir::cost;
use weft_ir::module::{Func, FuncId, Module, OpId, ValueId};
use weft_ir::op::{Op, Trait};

use crate::rewrite::{Copier, callee};
use crate::{Pass, PassCx, PassError, Stats};
use schedule::Slot;

pub const PASS: Pass = Pass { name: "overlap", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    if module.n_ranks() < 2 {
        return Ok(Stats::default());
    }
    let sms = cx.mesh.as_ref().map_or(0, |m| m.communication_sms);
    let n_staggered = if cx.staggered { stagger::run(module)? } else { 0 };
    let n_joined = join::run(module)?;
    let n_zipped = zip::run(module)?;
    let even = cost::evenly(module);
    let mut n_split = 0;
    for id in module.func_ids() {
        let func = module.func(id);
        let slots = schedule::slots(&even, even.func(id), sms);
        let n = slots.iter().filter(|s| matches!(s, Slot::Start(_))).count();
        if n > 0 {
            n_split += n;
            let woven = woven(func, &slots, sms);
            *module.func_mut(id) = woven;
        }
    }
    Ok(Stats {
        counts: vec![
            ("loops staggered", n_staggered),
            ("loops joined", n_joined),
            ("loops zipped", n_zipped),
            ("collectives begun early", n_split),
        ],
    })
}

/// Is it a collective that has two halves?
fn splits(op: Op) -> bool {
    op.start().is_some()
}

/// Does a function, or one that it calls, meet other ranks in what has two halves?
fn meets(module: &Module, func: FuncId) -> bool {
    let mut ops = module.func(func).body_ops().map(|(_, op)| op);
    ops.any(|op| splits(op.op) || callee(op).is_some_and(|f| meets(module, f)))
}

/// The function with its ops in the order of `slots`.
fn woven(func: &Func, slots: &[Slot], sms: u64) -> Func {
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    let mut flights: Vec<(OpId, ValueId)> = vec![];
    for slot in slots {
        match *slot {
            Slot::Op(id) => {
                let data = copy.mapped(id);
                let meets = data.op.has(Trait::Collective) || data.op.has(Trait::Message);
                let attrs = on_stream(data.attrs, meets);
                copy.put(data.op, data.operands, attrs, &func.op(id).results, &data.spans);
            }
            Slot::Start(id) => {
                let data = copy.mapped(id);
                let start = data.op.start().expect("only what has two halves is begun");
                let mut attrs = data.attrs;
                if sms > 0 {
                    attrs = attrs.int("sms", sms as i64);
                }
                let types = func.op(id).results.iter().map(|r| func.ty(*r).in_flight()).collect();
                let attrs = on_stream(attrs, true);
                let made = copy.to.func.push_op(start, data.operands, attrs, types, data.spans);
                flights.push((id, copy.to.func.op(made).results[0]));
            }
            Slot::Done(id) => {
                let at = flights.iter().position(|(of, _)| *of == id);
                let (_, flight) = flights.remove(at.expect("begun before"));
                let data = func.op(id);
                let attrs = on_stream(Attrs::new(), true);
                copy.put(Op::Done, vec![flight], attrs, &data.results, &data.spans);
            }
        }
    }
    copy.finish()
}

fn on_stream(attrs: Attrs, comm: bool) -> Attrs {
    attrs.word("stream", if comm { "comm" } else { "compute" })
}
