//! Ops that run another function.

use std::rc::Rc;

use super::{Fault, Run, RunError, Tensor};
use crate::module::{Func, FuncId, OpData};
use crate::op::Op;

pub(super) fn run(
    run: &Run,
    caller: FuncId,
    f: &Func,
    op: &OpData,
    xs: Vec<Rc<Tensor>>,
) -> Result<Vec<Rc<Tensor>>, RunError> {
    let fault = |why: Fault| run.error(f, Some(op), why);
    let Some(callee) = op.attrs.get_func("func").filter(|c| c.0 < caller.0) else {
        return Err(fault("the callee must stand before its caller".into()));
    };
    if op.op != Op::Repeat {
        return run.func(callee, xs);
    }
    let donated = &run.module.func(callee).donated;
    repeat(run, callee, op, xs, donated, &fault)
}

fn repeat(
    run: &Run,
    callee: FuncId,
    op: &OpData,
    xs: Vec<Rc<Tensor>>,
    donated: &[(u32, u32)],
    fault: &dyn Fn(Fault) -> RunError,
) -> Result<Vec<Rc<Tensor>>, RunError> {
    let attr = |name| op.attrs.get_int(name).unwrap_or(0) as usize;
    let (count, carry, n_stacks) = (attr("count"), attr("carry"), attr("xs"));
    let (carried, rest) = xs.split_at(carry);
    let (stacks, shared) = rest.split_at(n_stacks);
    let mut carried = carried.to_vec();
    // For each stacked result, its slices in the order of the turns.
    let mut slices: Vec<Vec<Rc<Tensor>>> = vec![];
    let reverse = op.attrs.get_flag("reverse");
    // The slice of a turn, in a stack that runs the same way as the others or the other way.
    let place = |turn: usize, back: bool| if reverse != back { count - 1 - turn } else { turn };
    let skips = op.attrs.get_ints("skip").unwrap_or(&[]);
    let skip = |stack: usize| skips.get(stack).map_or(0, |n| *n as usize);
    for turn in 0..count {
        if op.attrs.get_flag("early") && carried[0].ints().map_err(fault)?.iter().all(|n| *n <= 0) {
            break;
        }
        let mut args = carried;
        for (i, stack) in stacks.iter().enumerate() {
            let slice = skip(i) + place(turn, i + attr("back_xs") >= n_stacks);
            args.push(Rc::new(stack.slice_of_stack(slice).map_err(fault)?));
        }
        args.extend(shared.iter().cloned());
        carried = run.func(callee, args)?;
        let of_run = carried.split_off(carry);
        slices.resize(of_run.len(), vec![]);
        slices.iter_mut().zip(of_run).for_each(|(all, slice)| all.push(slice));
    }
    let n_made = slices.len();
    for (i, all) in slices.into_iter().enumerate() {
        let back = reverse != (i + attr("back_ys") >= n_made);
        let mut all: Vec<Rc<Tensor>> = if back { all.into_iter().rev().collect() } else { all };
        let donor = donated.iter().find(|(_, r)| *r as usize == carry + i);
        if let Some((p, _)) = donor.filter(|_| !skips.is_empty()) {
            // The slices of a state that no turn changed.
            let at = *p as usize - carry;
            let whole = (0..stacks[at].dims[0]).map(|n| stacks[at].slice_of_stack(n).map(Rc::new));
            let mut whole = whole.collect::<Result<Vec<_>, _>>().map_err(fault)?;
            whole.splice(skip(at)..skip(at) + count, all);
            all = whole;
        }
        carried.push(Rc::new(stacked(&all).map_err(fault)?));
    }
    Ok(carried)
}

fn stacked(slices: &[Rc<Tensor>]) -> Result<Tensor, Fault> {
    let first = slices.first().ok_or("a stack has at least one slice")?;
    let mut data = first.data.none();
    for slice in slices {
        data.append(&slice.data, 0, slice.len())?;
    }
    let dims = [&[slices.len()], &first.dims[..]].concat();
    let scales: Option<Vec<Rc<Tensor>>> =
        slices.iter().map(|s| s.scales.as_ref().map(|s| Rc::new((**s).clone()))).collect();
    let scales = scales.map(|all| stacked(&all)).transpose()?.map(Box::new);
    Ok(Tensor { dtype: first.dtype, dims, data, scales })
}
