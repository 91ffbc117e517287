//! Divide the tokens of what ranks along `tensor` would all compute alike (arXiv 2205.05198).
//!
//! ```text
//! %a = all_reduce %own : f32[B, 8, 6]                %1 = all_reduce %own : f32[B, 8, 6]
//! %h = add %x, %a : f32[B, 8, 6]                     %a = part %1 {dim = 1} : f32[B, 4, 6]
//!                                                    %h = add %x, %a : f32[B, 4, 6]
//! %n, %r = rms_norm %h, %g : f32[B, 8, 6], ..  =>    %2 = spread %g : f32[6]
//!                                                    %n, %r = rms_norm %h, %2 : f32[B, 4, 6], ..
//! %s = spread %n : f32[B, 8, 6]                      %3 = all_gather %n {dim = 1} : f32[B, 8, 6]
//! %b = matmul %s, %up : f32[B, 8, 4]                 %s = spread %3 : f32[B, 8, 6]
//! ```
//!
//! Why: norms, residual additions, projections that no rank has a part of are done again by every
//! rank, and what they make is kept by each until its derivative is taken. Of N ranks each can do
//! an N-th of the tokens: a sum over ranks gives each its tokens (`scatter_sums` makes one
//! collective of the two), and they are gathered where products are divided, again for their
//! derivatives. Which values a rank has its tokens of follows from the ops (`rows`). What sums over
//! tokens is summed over ranks; a weight that meets tokens is spread, so its gradient is, too.
//! Bits of the forward pass are those of `tensor` alone up to the first sum over tokens. Cost: a
//! few walks; links carry the gathers once more, backward, and for each layer and micro-batch a sum
//! of the gradients of its whole weights. Requires: `tensor`; before `assign_stages`, `autodiff`.

mod rows;

use weft_ir::module::{FuncId, Module};

use crate::policy::Policy;
use crate::tensor::TENSOR;
use crate::{Pass, PassCx, PassError, Stats};
pub use rows::why::{Had, Line};
use rows::{Counts, Rows};

pub const PASS: Pass = Pass { name: "sequence", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let asked = cx.mesh.is_some_and(|m| m.sequence);
    let Some(axis) = module.find_axis(TENSOR).filter(|_| asked) else {
        return Ok(Stats::default());
    };
    let mut counts = Counts::default();
    let made = {
        let rows = Rows::of(module, axis, &cx.policy)?;
        let func = |id: FuncId| {
            let made = rows.func(id, &mut counts);
            made.map_err(|e| e.within(module.func(id)))
        };
        module.func_ids().map(func).collect::<Result<Vec<_>, _>>()?
    };
    module.funcs = made;
    Ok(Stats {
        counts: vec![
            ("ops on a rank's tokens", counts.ops),
            ("sums scattered", counts.scattered),
            ("values gathered", counts.gathered),
            ("values spread", counts.spreads),
        ],
    })
}

/// What ranks along `tensor` would divide by tokens, op by op, of a module as that pass leaves it.
pub fn explain(module: &Module, policy: &Policy) -> Result<Vec<Line>, PassError> {
    match module.find_axis(TENSOR) {
        Some(axis) => Ok(Rows::of(module, axis, policy)?.lines()),
        None => Ok(vec![]),
    }
}
