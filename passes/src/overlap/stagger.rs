//! Two equal loops as one in which the second is half a turn behind the first.
//!
//! ```text
//!                                           %va, .. = repeat %ws, %x {func = @f.first, count = 1}
//! %a = repeat %x, %ws {func = @f, count = 3} %v, %yb = repeat %va, %y, %ws, %ws, %ws
//! %b = repeat %y, %ws {func = @f, count = 3} =>   {func = @f.staggered, count = 2, skip = [0, 1, 0]}
//!                                           %a, %b = repeat %ws, %ws, %ws, %v, %yb
//!                                             {func = @f.last, count = 1, skip = [2, 2, 2]}
//! ```
//!
//! A turn is cut where its rows leave: its *first* half is all that the first `exchange` of rows
//! needs (attention, the choice of experts), its *second* what else there is (what every token goes
//! through, the experts, the way back). `@f.staggered` does the second half of the first loop's
//! turn i, the first of its turn i + 1, and between them, needing nothing of these, both halves of
//! the other loop's turn i: so while the rows of the one are away or computed on, the other is at
//! its attention, which is what decoding has most of (five phases a half turn: dispatch under what
//! every token goes through and attention up to its core, experts, combine under the rest of
//! attention). What is known at the cut goes from turn to turn; caches are changed in the first
//! half, a slice later in the first loop: `skip`. Only loops of one function whose stacks of
//! results are states are taken, since others would be cut and put together.

use std::collections::BTreeSet;

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;

use super::zip::{count, drop_uncalled, in_place_of, insert, pair, reverse};
use crate::PassError;
use crate::inline::splice;
use crate::rewrite::{Copier, callee, carry, extract, made_of_nothing, stacked};

/// Staggers what there is; how many pairs.
pub fn run(module: &mut Module) -> Result<usize, PassError> {
    let (mut n, mut at) = (0, 0);
    let mut bodies: BTreeSet<String> = BTreeSet::new();
    while at < module.funcs.len() {
        let func = &module.funcs[at];
        let found = pair(module, func).and_then(|(a, b)| {
            let halves = Halves::of(module, func.op(a), func.op(b))?;
            Some((a, b, halves))
        });
        if let Some((a, b, halves)) = found {
            bodies.extend(callee(func.op(a)).map(|f| module.func(f).name.clone()));
            let n_new = stagger(module, FuncId(at as u32), a, b, &halves)?;
            at += n_new;
            n += 1;
        }
        at += 1;
    }
    bodies.iter().for_each(|name| drop_uncalled(module, name));
    Ok(n)
}

/// A loop's body in two, and what each takes and gives.
struct Halves {
    count: i64,
    first: Func,
    second: Func,
    /// Places among the body's parameters: stacks that each half reads, and what else it does.
    stacks: [Vec<usize>; 2],
    shared: [Vec<usize>; 2],
    carry: usize,
    /// Values that go from the first half to the second, in the place of its first results.
    n_between: usize,
    /// For each state of the first half's results: the place of its stack.
    states: Vec<usize>,
}

impl Halves {
    /// `None` where the loops cannot be staggered.
    fn of(module: &Module, a: &OpData, b: &OpData) -> Option<Halves> {
        let f = callee(a).filter(|f| callee(b) == Some(*f))?;
        let body = module.func(f);
        let (n_carried, n_stacks) = (carry(a), stacked(a));
        let alike = count(a) == count(b) && !reverse(a) && !reverse(b) && a.attrs == b.attrs;
        let made = &body.results[n_carried..];
        let states_only = made.iter().all(|r| body.ty(*r).state);
        let carried_values = body.results[..n_carried].iter().all(|r| !body.ty(*r).state);
        if !alike || !states_only || !carried_values {
            return None;
        }
        let leaves = |op: &OpData| op.op == Op::Exchange && !op.attrs.get_flag("back");
        let (leaving, _) = body.body_ops().find(|(_, op)| leaves(op))?;
        let before = needed(body, &body.op(leaving).operands, made);
        // Values of the first half, or given to it, that the second reads.
        let is_late = |v: ValueId| body.def_op(v).is_some_and(|id| !before.contains(&id));
        let late = body.body_ops().filter(|(id, _)| !before.contains(id));
        let read = late.flat_map(|(_, op)| &op.operands).chain(&body.results[..n_carried]);
        let mut between: Vec<ValueId> = vec![];
        let place = |v: &ValueId| body.params.iter().position(|p| p == v);
        for v in read {
            let given = place(v).is_some_and(|p| p >= n_carried);
            if !given && !is_late(*v) && !made_of_nothing(body, *v) && !between.contains(v) {
                between.push(*v);
            }
        }
        if between.iter().any(|v| body.ty(*v).state || body.ty(*v).flight) {
            return None;
        }
        let params = |half: usize, kind: std::ops::Range<usize>| -> Vec<usize> {
            let reads = |p: &usize| {
                let ops = body.body_ops().filter(|(id, _)| before.contains(id) == (half == 0));
                ops.flat_map(|(_, op)| &op.operands).any(|x| *x == body.params[*p])
            };
            kind.filter(reads).collect()
        };
        let of_kind = |kind: std::ops::Range<usize>| [0, 1].map(|half| params(half, kind.clone()));
        let stacks = of_kind(n_carried..n_carried + n_stacks);
        let shared = of_kind(n_carried + n_stacks..body.params.len());
        // A state is changed before the rows leave.
        if stacks[1].iter().chain(&shared[1]).any(|p| body.ty(body.params[*p]).state) {
            return None;
        }
        let values = |places: &[usize]| places.iter().map(|p| body.params[*p]).collect::<Vec<_>>();
        let carried = &body.params[..n_carried];
        let given = [&values(&stacks[0])[..], carried, &values(&shared[0])].concat();
        let results = [&between[..], made].concat();
        let mut first = extract(body, "first", &given, &results).ok()?;
        let mut states = vec![];
        for (i, r) in made.iter().enumerate() {
            let j = n_carried + i;
            let (p, _) = body.donated.iter().find(|(_, r)| *r as usize == j)?;
            let at = given.iter().position(|v| *v == body.params[*p as usize])?;
            first.donated.push((at as u32, (between.len() + i) as u32));
            states.push(*p as usize);
            debug_assert!(body.ty(*r).state);
        }
        let given = [&between[..], &values(&stacks[1]), &values(&shared[1])].concat();
        let second = extract(body, "second", &given, &body.results[..n_carried]).ok()?;
        let n_between = between.len();
        Some(Halves {
            count: count(a),
            first,
            second,
            stacks,
            shared,
            carry: n_carried,
            n_between,
            states,
        })
    }
}

/// The ops that make `values` and the new `states`.
fn needed(body: &Func, values: &[ValueId], states: &[ValueId]) -> BTreeSet<OpId> {
    let mut ops = BTreeSet::new();
    let mut stack: Vec<ValueId> = values.iter().chain(states).copied().collect();
    while let Some(v) = stack.pop() {
        let Some(id) = body.def_op(v) else { continue };
        if ops.insert(id) {
            stack.extend(&body.op(id).operands);
        }
    }
    ops
}

/// The two loops, as their operands are in a copy.
struct Loops<'a> {
    halves: &'a Halves,
    /// By loop.
    xs: [Vec<ValueId>; 2],
}

/// A loop that does halves of the two: what it is given, slice by slice and whole.
#[derive(Default)]
struct Given {
    stacks: Vec<ValueId>,
    skip: Vec<i64>,
    rest: Vec<ValueId>,
}

impl Loops<'_> {
    /// The stacks that a half of a loop reads, from the slice `skip` on.
    fn stacks(&self, given: &mut Given, of: usize, half: usize, skip: i64) {
        for p in &self.halves.stacks[half] {
            given.stacks.push(self.xs[of][*p]);
            given.skip.push(skip);
        }
    }

    fn shared(&self, of: usize, half: usize) -> Vec<ValueId> {
        self.halves.shared[half].iter().map(|p| self.xs[of][*p]).collect()
    }
}

fn repeat(
    copy: &mut Copier,
    module: &Module,
    (func, count): (FuncId, i64),
    carried: &[ValueId],
    given: Given,
) -> Result<Vec<ValueId>, PassError> {
    let xs = [carried, &given.stacks, &given.rest].concat();
    let mut attrs = Attrs::new()
        .func("func", func)
        .int("count", count)
        .int("carry", carried.len() as i64)
        .int("xs", given.stacks.len() as i64);
    if !given.skip.is_empty() {
        attrs = attrs.ints("skip", given.skip);
    }
    Ok(copy.to.emit_calling(module, Op::Repeat, &xs, attrs)?)
}

/// The only slices of stacks.
fn only(to: &mut Builder, stacks: &[ValueId]) -> Result<Vec<ValueId>, PassError> {
    let one = |x: &ValueId| {
        let dims = to.dims(*x)[1..].to_vec();
        Ok(to.emit(Op::Reshape, &[*x], Attrs::new().with("shape", Attr::Dims(dims)))?)
    };
    stacks.iter().map(one).collect()
}

/// How many functions now stand before `id` that did not.
fn stagger(
    module: &mut Module,
    id: FuncId,
    a: OpId,
    b: OpId,
    halves: &Halves,
) -> Result<usize, PassError> {
    let base = callee(module.func(id).op(a)).map(|f| module.func(f).name.clone());
    let base = base.ok_or_else(|| PassError::new("a loop names no function"))?;
    let mut bodies = vec![named(module, &halves.first, &format!("{base}.first"))];
    if halves.count > 1 {
        let between = between(halves, &module.fresh_func_name(&format!("{base}.staggered")));
        bodies.push(between);
    }
    bodies.push(last(halves, &module.fresh_func_name(&format!("{base}.last"))));
    let n = bodies.len();
    for (i, body) in bodies.into_iter().enumerate() {
        insert(module, FuncId(id.0 + i as u32), body);
    }
    let (first, main, rest) = (id, FuncId(id.0 + 1), FuncId(id.0 + n as u32 - 1));
    let id = FuncId(id.0 + n as u32);
    in_place_of(module, id, (a, b), &|module, copy| {
        both(module, copy, [a, b], halves, [first, main, rest])
    })?;
    Ok(n)
}

fn named(module: &Module, func: &Func, name: &str) -> Func {
    let mut func = func.clone();
    func.name = module.fresh_func_name(name);
    func
}

fn both(
    module: &Module,
    copy: &mut Copier,
    ops: [OpId; 2],
    halves: &Halves,
    [first, main, rest]: [FuncId; 3],
) -> Result<(), PassError> {
    let (n_carried, n_between) = (halves.carry, halves.n_between);
    let mut loops = Loops { halves, xs: ops.map(|op| copy.mapped(op).operands) };
    let states = |loops: &mut Loops, of: usize, made: &[ValueId]| {
        halves.states.iter().zip(made).for_each(|(p, new)| loops.xs[of][*p] = *new);
    };
    let n_states = halves.states.len();

    let mut given = Given::default();
    loops.stacks(&mut given, 0, 0, 0);
    given.rest = [&loops.xs[0][..n_carried], &loops.shared(0, 0)].concat();
    let made = repeat(copy, module, (first, 1), &[], given)?;
    let mut between = only(&mut copy.to, &made[..n_between])?;
    states(&mut loops, 0, &made[n_between..]);

    let mut other = loops.xs[1][..n_carried].to_vec();
    let turns = halves.count - 1;
    if turns > 0 {
        let mut given = Given::default();
        for (of, half, skip) in [(0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)] {
            loops.stacks(&mut given, of, half, skip);
            given.rest.extend(loops.shared(of, half));
        }
        let carried = [&between[..], &other].concat();
        let made = repeat(copy, module, (main, turns), &carried, given)?;
        let (carried, made) = made.split_at(n_between + n_carried);
        (between, other) = (carried[..n_between].to_vec(), carried[n_between..].to_vec());
        states(&mut loops, 0, &made[..n_states]);
        states(&mut loops, 1, &made[n_states..]);
    }

    let mut given = Given { rest: [&between[..], &other].concat(), ..Given::default() };
    for (of, half) in [(0, 1), (1, 0), (1, 1)] {
        loops.stacks(&mut given, of, half, turns);
        given.rest.extend(loops.shared(of, half));
    }
    let made = repeat(copy, module, (rest, 1), &[], given)?;
    let (values, made) = made.split_at(2 * n_carried);
    let values = only(&mut copy.to, values)?;
    states(&mut loops, 1, made);

    for (of, op) in ops.into_iter().enumerate() {
        let results = copy.from.op(op).results.clone();
        let (carried, stacks) = results.split_at(n_carried);
        let values = &values[of * n_carried..(of + 1) * n_carried];
        carried.iter().zip(values).for_each(|(r, v)| copy.bind(*r, *v));
        let new = halves.states.iter().map(|p| loops.xs[of][*p]);
        stacks.iter().zip(new.collect::<Vec<_>>()).for_each(|(r, v)| copy.bind(*r, v));
    }
    Ok(())
}

/// A body under construction that does halves of turns.
struct Turn<'a> {
    halves: &'a Halves,
    to: Builder,
    /// For each half that it does, its stacks' slices and what else it is given.
    slices: Vec<Vec<ValueId>>,
    shared: Vec<Vec<ValueId>>,
    /// Pairs of a parameter and the state that it became.
    states: Vec<(ValueId, ValueId)>,
}

impl<'a> Turn<'a> {
    /// Parameters are in the order of `repeat`: `before` stand in front of the stacks, `between`
    /// behind them, then what the halves (0 or 1) are given whole.
    fn new(
        halves: &'a Halves,
        name: &str,
        before: &[(&Func, &[ValueId])],
        behind: &[(&Func, &[ValueId])],
        done: &[usize],
    ) -> (Turn<'a>, Vec<Vec<ValueId>>) {
        let mut to = Builder::new(name);
        let mut given = vec![];
        let add = |to: &mut Builder, func: &Func, values: &[ValueId]| -> Vec<ValueId> {
            let one = |v: &ValueId| {
                to.param(func.value(*v).name.as_deref().unwrap_or("v"), func.ty(*v).clone())
            };
            values.iter().map(one).collect()
        };
        for (func, values) in before {
            given.push(add(&mut to, func, values));
        }
        let mut slices = vec![];
        for half in done {
            let (func, values) = halves.slices(*half);
            slices.push(add(&mut to, func, values));
        }
        for (func, values) in behind {
            given.push(add(&mut to, func, values));
        }
        let mut shared = vec![];
        for half in done {
            let (func, values) = halves.whole(*half);
            shared.push(add(&mut to, func, values));
        }
        (Turn { halves, to, slices, shared, states: vec![] }, given)
    }

    /// Does the half that stands at place `at`: a first one gives what is known at the cut.
    fn half(mut self, at: usize, first: bool, given: &[ValueId]) -> (Turn<'a>, Vec<ValueId>) {
        let (slices, shared) = (&self.slices[at], &self.shared[at]);
        let func = if first { &self.halves.first } else { &self.halves.second };
        let xs = match first {
            true => [&slices[..], given, shared].concat(),
            false => [given, &slices[..], shared].concat(),
        };
        let (to, made) = splice(func, self.to, &xs);
        self.to = to;
        for (p, r) in &func.donated {
            self.states.push((xs[*p as usize], made[*r as usize]));
        }
        let n = if first { self.halves.n_between } else { made.len() };
        (self, made[..n].to_vec())
    }

    /// The function that returns `values` and the states, in the order in which they were made.
    fn finish(self, values: Vec<ValueId>) -> Func {
        let first = values.len() as u32;
        let states = self.states;
        let mut func = self.to.finish([values, states.iter().map(|s| s.1).collect()].concat());
        for (i, (param, _)) in states.iter().enumerate() {
            let at = func.params.iter().position(|p| p == param).expect("it is given the state");
            func.donated.push((at as u32, first + i as u32));
        }
        func
    }
}

impl Halves {
    /// The parameters of a half that are slices of stacks.
    fn slices(&self, half: usize) -> (&Func, &[ValueId]) {
        let n = self.stacks[half].len();
        match half {
            0 => (&self.first, &self.first.params[..n]),
            _ => (&self.second, &self.second.params[self.n_between..self.n_between + n]),
        }
    }

    /// Those that are the same in all turns.
    fn whole(&self, half: usize) -> (&Func, &[ValueId]) {
        let n = self.stacks[half].len();
        match half {
            0 => (&self.first, &self.first.params[n + self.carry..]),
            _ => (&self.second, &self.second.params[self.n_between + n..]),
        }
    }

    /// What is known at the cut, as the second half is given it.
    fn at_cut(&self) -> (&Func, &[ValueId]) {
        (&self.second, &self.second.params[..self.n_between])
    }

    /// What goes from turn to turn, as the first half is given it.
    fn carried(&self) -> (&Func, &[ValueId]) {
        let n = self.stacks[0].len();
        (&self.first, &self.first.params[n..n + self.carry])
    }
}

/// The turn of the loop.
fn between(halves: &Halves, name: &str) -> Func {
    let before = [halves.at_cut(), halves.carried()];
    let (turn, given) = Turn::new(halves, name, &before, &[], &[1, 0, 0, 1]);
    let (turn, done) = turn.half(0, false, &given[0]);
    let (turn, at_cut) = turn.half(1, true, &done);
    let (turn, of_other) = turn.half(2, true, &given[1]);
    let (turn, other) = turn.half(3, false, &of_other);
    turn.finish([at_cut, other].concat())
}

/// What is left behind the last turn.
fn last(halves: &Halves, name: &str) -> Func {
    let behind = [halves.at_cut(), halves.carried()];
    let (turn, given) = Turn::new(halves, name, &[], &behind, &[1, 0, 1]);
    let (turn, done) = turn.half(0, false, &given[0]);
    let (turn, of_other) = turn.half(1, true, &given[1]);
    let (turn, other) = turn.half(2, false, &of_other);
    turn.finish([done, other].concat())
}
