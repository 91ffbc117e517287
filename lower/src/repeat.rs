//! `repeat` as a rolled loop.
//!
//! Slices of stacks are arguments with a stride per turn. A carried value has one place: its
//! parameter reads it, and the result is written there at once if nothing of the turn looks at the
//! old value after, else to a temp that the end of the turn copies. The first value is copied to
//! the place before the loop, or is there already when it is a temp nobody else needs.

use weft_graph::{Arg, DimExpr, Loop, Order, Step};
use weft_ir::module::{Func, OpData, ValueId};
use weft_ir::op::{Op, Trait};

use super::uses::{last_uses, made_at_state, writer};
use super::view::{self, View};
use super::{Fault, Frame, Lower};

impl<'a> Lower<'a> {
    pub(super) fn repeat(&mut self, f: &mut Frame<'a>, op: &OpData) -> Result<(), Fault> {
        let callee = op.attrs.get_func("func").ok_or("names no function")?;
        let body = self.module.func(callee);
        let count = op.attrs.get_int("count").ok_or("has no count")?;
        let attr = |name| op.attrs.get_int(name).unwrap_or(0) as usize;
        let carry = attr("carry");
        let stacked = carry + attr("xs");
        // Stacks that run the other way are the last of their kind.
        let back_from = (stacked - attr("back_xs"), op.results.len() - attr("back_ys"));
        let back = |i: usize, from: usize| (i >= from).then_some(count);
        let depth = self.open.len() as u32;
        let skips = op.attrs.get_ints("skip").unwrap_or(&[]);
        // Stacks of states, whole.
        let mut states: Vec<Option<View>> = vec![None; op.operands.len()];

        let mut args: Vec<View> = vec![];
        for (i, x) in op.operands.iter().enumerate() {
            let state = f.func.ty(*x).state;
            let ty = body.ty(body.params[i]);
            let view = if state {
                self.view(f, *x)?
            } else if i < carry {
                let at = self.carried(f, op, i)?;
                View::row_major(&self.dims, at, ty.dtype, &ty.dims)
            } else {
                self.plain_view(f, *x)?
            };
            let sliced = (carry..stacked).contains(&i);
            let sliced = sliced.then(|| back(i, back_from.0));
            if state {
                states[i] = Some(view.clone());
            }
            args.push(match sliced {
                Some(Some(_)) if state => return Err("a stack of states runs one way".into()),
                Some(back) => {
                    let skip = skips.get(i - carry).copied().unwrap_or(0);
                    view.behind(&self.dims, skip).slice_of_stack(&self.dims, depth, back)
                }
                None => view,
            });
        }
        let mut stacks: Vec<Option<Arg>> = vec![None; op.results.len()];
        // Where each turn writes its slice.
        let mut written: Vec<Option<Arg>> = vec![None; op.results.len()];
        for (j, r) in op.results.iter().enumerate().skip(carry) {
            if !f.func.ty(*r).state {
                let stack = self.room(f, *r)?;
                let ty = body.ty(body.results[j]);
                let bytes = view::size_bytes(&self.dims, &ty.dims, ty.dtype);
                let back = back(j, back_from.1);
                written[j] = Some(view::slice_at(stack.clone(), depth, bytes, back));
                stacks[j] = Some(stack);
            }
        }

        let label = body.name.clone();
        self.open.push(self.n_loops);
        self.n_loops += 1;
        self.steps.push(vec![]);
        let lowered = self.turn(f, body, callee, carry, &args, &written);
        self.open.pop();
        let steps = self.steps.pop().unwrap_or_default();
        lowered?;
        let count = DimExpr::constant(count);
        let reverse = op.attrs.get_flag("reverse");
        let left = op.attrs.get_flag("early").then(|| args[0].at.clone());
        let order = Order::default();
        self.push(Step::Loop(Loop { count, reverse, left, body: steps, label, order }));

        for (j, r) in op.results.iter().enumerate() {
            let ty = f.func.ty(*r);
            let donor = body.donated.iter().find(|(_, r)| *r as usize == j);
            let at = match (&stacks[j], j < carry) {
                (Some(at), _) => at.clone(),
                (None, true) => args[j].at.clone(),
                // A stack of states: the one whose slices the turns changed.
                (None, false) => {
                    let state = donor.and_then(|(p, _)| states[*p as usize].as_ref());
                    state.ok_or("makes a stack of states of none")?.at.clone()
                }
            };
            let view = View::row_major(&self.dims, at, ty.dtype, &ty.dims);
            self.define(f, *r, view);
        }
        Ok(())
    }

    /// One turn: the body, then what it hands to the next.
    fn turn(
        &mut self,
        f: &Frame<'a>,
        body: &'a Func,
        callee: weft_ir::module::FuncId,
        carry: usize,
        args: &[View],
        written: &[Option<Arg>],
    ) -> Result<Vec<View>, Fault> {
        let last = last_uses(body, &made_at_state(body));
        let mut dests = vec![];
        for (j, r) in body.results.iter().enumerate() {
            let ty = body.ty(*r);
            dests.push(match &written[j] {
                Some(at) => Some(at.clone()),
                None if j < carry && !ty.state && writes_in_place(body, &last, j) => {
                    Some(args[j].at.clone())
                }
                None => None,
            });
        }
        let results = self.func(callee, args.to_vec(), &dests)?;
        self.hand_on(f, body, carry, args, &results)?;
        Ok(results)
    }

    /// Copies carried results to their places. One that lies in the place of another goes through a
    /// temp.
    fn hand_on(
        &mut self,
        f: &Frame<'a>,
        body: &Func,
        carry: usize,
        args: &[View],
        results: &[View],
    ) -> Result<(), Fault> {
        let mut late = vec![];
        for j in 0..carry {
            let (to, from) = (&args[j].at, &results[j]);
            let ty = body.ty(body.results[j]);
            if from.at == *to || ty.state {
                continue;
            }
            if !from.is_row_major(&self.dims) {
                return Err(format!("carried value {j} returns as a view of another").into());
            }
            let bytes = view::size_bytes(&self.dims, &ty.dims, ty.dtype);
            let place_of_other = (0..carry).any(|i| args[i].at.buffer == from.at.buffer);
            let from = match place_of_other {
                false => from.at.clone(),
                true => {
                    let buffer = self.buffers[to.buffer.0 as usize].clone();
                    let temp = self.temp_like(f.id, &buffer);
                    self.copy(from.at.clone(), temp.clone(), bytes.clone(), &buffer.name);
                    temp
                }
            };
            late.push((from, to.clone(), bytes));
        }
        for (from, to, bytes) in late {
            let name = self.buffers[to.buffer.0 as usize].name.clone();
            self.copy(from, to, bytes, &name);
        }
        Ok(())
    }

    /// The place of carried value `i`, holding its first value.
    fn carried(&mut self, f: &mut Frame<'a>, op: &OpData, i: usize) -> Result<Arg, Fault> {
        let (x, r) = (op.operands[i], op.results[i]);
        let ty = f.func.ty(x);
        let name = f.names[r.0 as usize].clone();
        let place = match f.dests.get(&r) {
            Some(dest) => dest.clone(),
            None => match self.own_temp(f, op, x) {
                Some(at) => return Ok(at),
                None => self.temp(f.id, &name, ty),
            },
        };
        match self.plain_now(f, x) {
            Some(from) if from == place => {}
            Some(from) => {
                let bytes = view::size_bytes(&self.dims, &ty.dims, ty.dtype);
                self.copy(from, place.clone(), bytes, &name);
            }
            None => self.copy_region(f, x, place.clone())?,
        }
        Ok(place)
    }

    /// The place of `x` if it is a temp that this frame made here and that nothing but this operand
    /// needs from now on.
    fn own_temp(&mut self, f: &Frame<'a>, op: &OpData, x: ValueId) -> Option<Arg> {
        let at = self.plain_now(f, x)?;
        let info = self.temps.get(&at.buffer)?;
        let ours = info.frame == f.id && info.scope == self.open && at == Arg::whole(at.buffer);
        let once = op.operands.iter().filter(|o| **o == x).count() == 1;
        let free = (0..f.func.n_values() as u32).map(ValueId).all(|v| {
            let needed = v != x && f.last_use[v.0 as usize] >= f.at;
            !needed || !self.shows(f, v, at.buffer)
        });
        let copied = f.copies.iter().enumerate().any(|(v, c)| {
            let needed = v != x.0 as usize && f.last_use[v] >= f.at;
            needed && c.as_ref().is_some_and(|c| c.buffer == at.buffer)
        });
        (ours && once && free && !copied && f.last_use[x.0 as usize] <= f.at).then_some(at)
    }
}

/// May result `j` of a body be written to the place of the carried parameter `j`? Only if nothing
/// of the turn looks at the parameter after the op that writes the result, and that op reads an
/// element before it writes it.
fn writes_in_place(body: &Func, last: &[usize], j: usize) -> bool {
    let (param, result) = (body.params[j], body.results[j]);
    let Some((made, at)) = writer(body, result) else { return false };
    // A result that is returned twice, or under another carried value, is copied.
    if body.results.iter().filter(|r| **r == result).count() > 1 {
        return false;
    }
    let until = last[param.0 as usize];
    if until < at {
        return true;
    }
    let Some(op) = body.def_op(made).map(|id| body.op(id)) else { return false };
    until == at
        && op.op.has(Trait::Pointwise)
        && op.operands.contains(&param)
        && direct_only(body, param, at)
        && body.ty(param).dtype == body.ty(made).dtype
}

/// Is `param` read at `at` as it is, not through movement?
fn direct_only(body: &Func, param: ValueId, at: usize) -> bool {
    let users = body.body_ops().enumerate().filter(|(_, (_, op))| op.operands.contains(&param));
    users.into_iter().all(|(i, (_, op))| {
        let moves = op.op.has(Trait::Movement) || op.op == Op::Call || op.op == Op::Repeat;
        i == at || !moves
    })
}
