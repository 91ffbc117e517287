//! The three functions of a function's derivative.
//!
//! All of it is first written on one *tape*: the ops of `f` (calls to what is differentiated become
//! calls to its `.fwd`), then the derivatives in reverse. Then the tape is cut. What derivatives of
//! inputs need is `bwd_input`, the rest `bwd_weight`; `fwd` is what stands before, and returns what
//! the cut severs, unless moving elements or a few operations give it back.
//!
//! A half's parameters come in the order in which a reversed repeat takes them: derivatives of
//! carried results, other stacked values, parameters of `f`.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::module::{Def, Func, FuncId, Module, OpData, OpId, Span, ValueId};
use weft_ir::op::{CostRule, Op, Trait};

use super::activity::{Activity, Flows, Spec, n_sliced};
use super::vjp::vjp;
use crate::rewrite::{Copier, callee, carry, extract};
use crate::{PassCx, PassError, Save};

/// What a backward function takes, in order of its parameters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Takes {
    /// The derivative of a result of `f`.
    Cotangent(usize),
    /// A value `bwd_input` hands on, by its place behind the derivatives.
    Crossing(usize),
    /// A value `fwd` saves, by its place behind the results of `f`.
    Saved(usize),
    /// A parameter of `f`.
    Param(usize),
}

/// One of the two backward functions.
#[derive(Clone, Debug)]
pub struct Half {
    pub func: FuncId,
    pub takes: Vec<Takes>,
    /// The parameters of `f` whose derivatives are its first results.
    pub grads: Vec<usize>,
}

/// The derivative of a function.
#[derive(Clone, Debug)]
pub struct Halves {
    /// Returns the results of `f`, then the saved values.
    pub fwd: FuncId,
    /// Returns derivatives, then what crosses to `bwd_weight`. Absent if it would return nothing.
    pub bwd_input: Option<Half>,
    pub bwd_weight: Option<Half>,
    /// The results of `f` that have a derivative.
    pub cotangents: Vec<usize>,
    pub n_results: usize,
}

/// A call on the tape: its operands, and the results of `fwd` with what it saved.
struct Called {
    operands: Vec<ValueId>,
    results: Vec<ValueId>,
}

/// Differentiate `id`, whose differentiated callees are in `done`.
pub fn halve(
    module: &mut Module,
    id: FuncId,
    spec: &Spec,
    all: &[Activity],
    done: &BTreeMap<FuncId, Halves>,
    cx: &PassCx,
) -> Result<Halves, PassError> {
    let func = module.func(id).clone();
    let tape = record(module, &func, spec, all, done, cx)?;
    let cut = tape.cut(spec.carry, cx.save);
    let name =
        |module: &Module, what: &str| module.fresh_func_name(&format!("{}.{what}", func.name));

    let saved: Vec<ValueId> = cut.saved.iter().copied().collect();
    let results = tape.results.iter().chain(&saved).copied().collect::<Vec<_>>();
    let fwd = extract(&tape.func, &name(module, "fwd"), tape.params(), &results)?;
    let fwd = module.add_func(fwd);

    let mut half = |what: &str,
                    takes: &BTreeSet<(Takes, ValueId)>,
                    grads: &[(usize, ValueId)],
                    extra: &[ValueId]| {
        let results: Vec<ValueId> =
            grads.iter().map(|g| g.1).chain(extra.iter().copied()).collect();
        if results.is_empty() {
            return Ok(None);
        }
        let params: Vec<ValueId> = takes.iter().map(|t| t.1).collect();
        let made = extract(&tape.func, &name(module, what), &params, &results)?;
        Ok::<_, PassError>(Some(Half {
            func: module.add_func(made),
            takes: takes.iter().map(|t| t.0).collect(),
            grads: grads.iter().map(|g| g.0).collect(),
        }))
    };
    let bwd_input = half("bwd_input", &cut.input, &tape.input_grads, &cut.crossing)?;
    let bwd_weight = half("bwd_weight", &cut.weight, &tape.weight_grads, &[])?;
    let cotangents = tape.cotangents.iter().map(|c| c.0).collect();
    Ok(Halves { fwd, bwd_input, bwd_weight, cotangents, n_results: func.results.len() })
}

/// The combined function, before it is cut.
struct Tape {
    func: Func,
    n_params: usize,
    /// Ops below this id are the forward pass.
    n_forward: u32,
    results: Vec<ValueId>,
    /// Result of `f`, and the parameter that is its derivative.
    cotangents: Vec<(usize, ValueId)>,
    input_grads: Vec<(usize, ValueId)>,
    weight_grads: Vec<(usize, ValueId)>,
    /// Derivatives of values that are not weights: what `bwd_input` computes.
    roots: Vec<ValueId>,
    /// Rows in their experts' order are sent there, which is not done twice.
    keeps_rows: bool,
}

fn record(
    module: &mut Module,
    func: &Func,
    spec: &Spec,
    all: &[Activity],
    done: &BTreeMap<FuncId, Halves>,
    cx: &PassCx,
) -> Result<Tape, PassError> {
    let (steps, flows_of, weight) = {
        let flows = Flows::new(module, func, spec, all);
        let wanted: BTreeMap<OpId, Vec<bool>> =
            func.body_ops().filter_map(|(id, op)| Some((id, flows.wanted(op)?))).collect();
        let values = (0..func.n_values() as u32).map(ValueId);
        (wanted, values.map(|v| flows.flows(v)).collect::<Vec<_>>(), flows.weight)
    };
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    let mut calls: BTreeMap<OpId, Called> = BTreeMap::new();
    for (id, op) in func.body_ops() {
        copy.to.at(&op.spans);
        match callee(op).and_then(|g| done.get(&g)).filter(|_| steps.contains_key(&id)) {
            Some(g) => {
                let operands = copy.mapped(id).operands;
                let attrs = op.attrs.clone().func("func", g.fwd);
                let results = copy.to.emit_calling(module, op.op, &operands, attrs);
                let results = results.map_err(|e| PassError::from(e).at(func, op))?;
                op.results.iter().zip(&results).for_each(|(from, to)| copy.bind(*from, *to));
                calls.insert(id, Called { operands, results });
            }
            // Derivatives are keyed by the values of `func`, so here it may vanish.
            None if op.op == Op::StopGradient => {
                let x = copy.get(op.operands[0]);
                copy.bind(op.results[0], x);
            }
            None => copy.op(id),
        }
    }
    let n_forward = copy.to.func.body.len() as u32;
    let results = func.results.iter().map(|r| copy.get(*r)).collect();

    let mut grads = Grads { of: vec![None; func.n_values()] };
    let mut cotangents = vec![];
    for (r, v) in func.results.iter().enumerate().filter(|(r, _)| spec.live[*r]) {
        let name = func.result_names.get(r).or(func.value(*v).name.as_ref());
        let name = name.map_or("d".to_string(), |n| format!("d.{n}"));
        let d = copy.to.param(&name, func.ty(*v).as_value());
        cotangents.push((r, d));
        copy.to.spans = last_spans(func);
        grads.add(&mut copy.to, *v, d)?;
    }
    let mut roots = vec![];
    for (id, op) in func.body_ops().rev() {
        let Some(want) = steps.get(&id) else { continue };
        let dys: Vec<Option<ValueId>> = op
            .results
            .iter()
            .map(|r| grads.of[r.0 as usize].filter(|_| flows_of[r.0 as usize]))
            .collect();
        if dys.iter().all(Option::is_none) {
            continue;
        }
        for (_, d) in op.results.iter().zip(&dys).filter(|(r, _)| !weight[r.0 as usize]) {
            roots.extend(d);
        }
        copy.to.at(&op.spans);
        let dxs = match calls.get(&id) {
            Some(called) => {
                let g = &done[&callee(op).expect("it was called")];
                call_backward(module, &mut copy.to, op, called, g, &dys, cx)
            }
            None => {
                let mut on_tape = copy.mapped(id);
                on_tape.results.iter_mut().for_each(|r| *r = copy.get(*r));
                vjp(&mut copy.to, &on_tape, &dys, want).map_err(PassError::from)
            }
        };
        let dxs = dxs.map_err(|e| e.at(func, op))?;
        for ((x, dx), _) in op.operands.iter().zip(dxs).zip(want).filter(|(_, w)| **w) {
            if let Some(dx) = dx {
                grads.add(&mut copy.to, *x, dx)?;
            }
        }
    }
    let (mut input_grads, mut weight_grads) = (vec![], vec![]);
    for (i, p) in func.params.iter().enumerate().filter(|(i, _)| spec.active[*i]) {
        copy.to.spans = last_spans(func);
        let d = match grads.of[p.0 as usize] {
            Some(d) => d,
            None => copy.to.constant(0.0, func.ty(*p).as_value())?,
        };
        if spec.weight[i] { weight_grads.push((i, d)) } else { input_grads.push((i, d)) }
    }
    roots.extend(input_grads.iter().map(|g| g.1));
    let func = copy.to.func;
    Ok(Tape {
        n_params: spec.active.len(),
        func,
        n_forward,
        results,
        cotangents,
        input_grads,
        weight_grads,
        roots,
        keeps_rows: cx.keeps_rows(),
    })
}

/// The place of ops that belong to no op of the source in particular.
fn last_spans(func: &Func) -> Vec<Span> {
    func.body_ops().next_back().map(|(_, op)| op.spans.clone()).unwrap_or_default()
}

/// The derivative of each value of the source, summed so far.
struct Grads {
    of: Vec<Option<ValueId>>,
}

impl Grads {
    fn add(&mut self, b: &mut Builder, v: ValueId, d: ValueId) -> Result<(), PassError> {
        let sum = match self.of[v.0 as usize] {
            Some(so_far) => b.binary(Op::Add, so_far, d)?,
            None => d,
        };
        self.of[v.0 as usize] = Some(sum);
        Ok(())
    }
}

/// Where the tape is severed.
struct Cut {
    saved: BTreeSet<ValueId>,
    crossing: Vec<ValueId>,
    input: BTreeSet<(Takes, ValueId)>,
    weight: BTreeSet<(Takes, ValueId)>,
}

/// What a half reads from outside.
#[derive(Default)]
struct Leaves {
    params: BTreeSet<ValueId>,
    cotangents: BTreeSet<ValueId>,
    crossing: BTreeSet<ValueId>,
    saved: BTreeSet<ValueId>,
}

impl Tape {
    fn params(&self) -> &[ValueId] {
        &self.func.params[..self.n_params]
    }

    fn cut(&self, carry: usize, save: Save) -> Cut {
        let ours = self.input_ops();
        let input_starts: Vec<ValueId> = self.input_grads.iter().map(|g| g.1).collect();
        let weight_starts: Vec<ValueId> = self.weight_grads.iter().map(|g| g.1).collect();
        let moved = |v: &ValueId| self.is_moved(*v);
        let crossing = self.leaves(&weight_starts, carry, Some(&ours), &moved).crossing;
        let all_input: Vec<ValueId> = input_starts.iter().chain(&crossing).copied().collect();

        let first = self.leaves(&all_input, carry, None, &moved).saved;
        let second = self.leaves(&weight_starts, carry, Some(&ours), &moved).saved;
        let needed = first.union(&second).copied().collect();
        let kept = match save {
            Save::Handed if carry > 0 => self.impure(needed),
            _ => self.without_cheap(needed, carry, save),
        };
        let again = |v: &ValueId| !kept.contains(v);
        let input = self.leaves(&all_input, carry, None, &again);
        let weight = self.leaves(&weight_starts, carry, Some(&ours), &again);

        let saved: BTreeSet<ValueId> = input.saved.union(&weight.saved).copied().collect();
        let crossing: Vec<ValueId> = crossing.into_iter().collect();
        let behind: Vec<ValueId> = saved.iter().copied().collect();
        let takes = |l: &Leaves, all_cotangents: bool| -> BTreeSet<(Takes, ValueId)> {
            let given = |d: &&(usize, ValueId)| all_cotangents || l.cotangents.contains(&d.1);
            let mut takes: BTreeSet<(Takes, ValueId)> = self
                .cotangents
                .iter()
                .filter(given)
                .map(|d| (Takes::Cotangent(d.0), d.1))
                .collect();
            takes.extend(l.crossing.iter().map(|v| (Takes::Crossing(place(*v, &crossing)), *v)));
            takes.extend(l.saved.iter().map(|v| (Takes::Saved(place(*v, &behind)), *v)));
            takes.extend(l.params.iter().map(|v| (Takes::Param(place(*v, self.params())), *v)));
            takes
        };
        Cut { input: takes(&input, true), weight: takes(&weight, false), saved, crossing }
    }

    /// The backward ops that derivatives of inputs need.
    fn input_ops(&self) -> BTreeSet<OpId> {
        let mut ops = BTreeSet::new();
        let mut stack = self.roots.clone();
        while let Some(v) = stack.pop() {
            if let Some(op) = self.func.def_op(v).filter(|op| op.0 >= self.n_forward)
                && ops.insert(op)
            {
                stack.extend(&self.func.op(op).operands);
            }
        }
        ops
    }

    /// Walk back from `starts` to what another function has: parameters, derivatives of results,
    /// values of the forward pass and, for the weight half, of the ops `theirs` of the input half.
    /// Where `again` allows it, a value of those is computed again and the walk goes on.
    fn leaves(
        &self,
        starts: &[ValueId],
        carry: usize,
        theirs: Option<&BTreeSet<OpId>>,
        again: &dyn Fn(&ValueId) -> bool,
    ) -> Leaves {
        let mut l = Leaves::default();
        let mut seen = BTreeSet::new();
        let mut stack = starts.to_vec();
        while let Some(v) = stack.pop() {
            if !seen.insert(v) {
                continue;
            }
            match self.func.value(v).def {
                // A carried value is another in every run: the run that had it saves it.
                Def::Param(i) if (i as usize) < carry.min(self.n_params) => l.saved.insert(v),
                Def::Param(i) if (i as usize) < self.n_params => l.params.insert(v),
                Def::Param(_) => {
                    let of = self.cotangents.iter().find(|c| c.1 == v).expect("all are listed").0;
                    if theirs.is_some() && of < carry {
                        l.crossing.insert(v)
                    } else {
                        l.cotangents.insert(v)
                    }
                }
                Def::Result { op, .. } => {
                    let forward = op.0 < self.n_forward;
                    let crosses = theirs.is_some_and(|t| t.contains(&op));
                    if forward && !again(&v) {
                        l.saved.insert(v)
                    } else if crosses && !self.is_moved(v) {
                        l.crossing.insert(v)
                    } else {
                        stack.extend(&self.func.op(op).operands);
                        false
                    }
                }
            };
        }
        l
    }

    /// Made from nothing, or from one value whose elements are all there, perhaps in fewer bits.
    /// Rows in their experts' order are copies of tokens, several of each: made again rather than
    /// kept, unless each of them has to be sent.
    fn is_moved(&self, v: ValueId) -> bool {
        let Some(op) = self.func.def_op(v).map(|op| self.func.op(op)) else { return false };
        let source = op.operands.is_empty();
        let one = op.op.has(Trait::Movement) && op.operands.len() == 1 && op.op != Op::Slice;
        let widened = op.op == Op::Convert && {
            let (from, to) = (self.func.ty(op.operands[0]).dtype, self.func.ty(v).dtype);
            from.is_float() && to.is_float() && from.bits() < to.bits()
        };
        let rows = op.op == Op::Dispatch && op.operands.len() == 2 && !self.keeps_rows;
        source || one || widened || rows
    }

    /// Those of `saved` that depend on state, which has another value by the time of the backward
    /// pass.
    fn impure(&self, saved: BTreeSet<ValueId>) -> BTreeSet<ValueId> {
        let state = |v: &ValueId| self.func.ty(*v).state;
        let stateful = |v: &ValueId| {
            let op = self.func.def_op(*v).map(|op| self.func.op(op));
            op.is_some_and(|op| op.operands.iter().chain(&op.results).any(state))
        };
        saved.into_iter().filter(stateful).collect()
    }

    /// `saved` without what the rest and the parameters give back cheaply.
    fn without_cheap(
        &self,
        saved: BTreeSet<ValueId>,
        carry: usize,
        save: Save,
    ) -> BTreeSet<ValueId> {
        let mut kept = saved.clone();
        for v in saved.iter().rev() {
            kept.remove(v);
            let mut budget = MAX_AGAIN;
            if !self.is_derivable(*v, &kept, carry, save, &mut budget) {
                kept.insert(*v);
            }
        }
        kept
    }

    fn is_derivable(
        &self,
        v: ValueId,
        kept: &BTreeSet<ValueId>,
        carry: usize,
        save: Save,
        budget: &mut u32,
    ) -> bool {
        if kept.contains(&v) {
            return true;
        }
        let (id, idx) = match self.func.value(v).def {
            Def::Param(i) => return i as usize >= carry,
            Def::Result { op, idx } => (op, idx),
        };
        let op = self.func.op(id);
        // Behind the first result stand an op's small ones, such as the factor of a norm: better
        // saved.
        let sent = self.keeps_rows && op.op == Op::Dispatch;
        let cheap = is_cheap(op.op, save) && !sent;
        if idx > 0 || !(cheap || self.widens(op, save)) || *budget == 0 {
            return false;
        }
        *budget -= 1;
        op.operands.iter().all(|x| self.is_derivable(*x, kept, carry, save, budget))
    }

    /// Is it an up-projection that is run again?
    fn widens(&self, op: &OpData, save: Save) -> bool {
        let width = |v: ValueId| self.func.ty(v).last().and_then(|d| d.as_fixed());
        let (Save::NoWide, Op::Matmul) = (save, op.op) else { return false };
        let (Some(from), Some(to)) = (width(op.operands[0]), width(op.results[0])) else {
            return false;
        };
        !op.attrs.get_flag("tx") && to >= WIDER * from
    }
}

fn place(v: ValueId, among: &[ValueId]) -> usize {
    among.iter().position(|a| *a == v).expect("a leaf is listed")
}

/// An up-projection makes rows this many times as wide as it reads: running it again costs few
/// flops for each byte that is not saved.
const WIDER: u64 = 4;

/// At most this many ops are run again for one value.
const MAX_AGAIN: u32 = 24;

/// Ops that are run again rather than have their result saved: they move elements or, unless
/// everything is saved, fetch rows or do a few operations an element.
fn is_cheap(op: Op, save: Save) -> bool {
    let row = op.def();
    let free = row.cost == CostRule::Free && op.is_pure();
    let few = matches!(row.cost, CostRule::PerElement(n) if n <= 5);
    let local = op.has(Trait::Pointwise) || op.has(Trait::Composite);
    let moves = op.has(Trait::Movement) || (row.operands.is_empty() && free);
    // A rank keeps its part, and gathers it again.
    let gathers = op == Op::AllGather;
    moves || (save != Save::Everything && (free || gathers || (few && local)))
}

/// The derivatives of a call's operands: its callee's halves, run as the callee was.
fn call_backward(
    module: &mut Module,
    b: &mut Builder,
    op: &OpData,
    called: &Called,
    g: &Halves,
    dys: &[Option<ValueId>],
    cx: &PassCx,
) -> Result<Vec<Option<ValueId>>, PassError> {
    let mut grads = vec![None; op.operands.len()];
    let mut site = Site { b, op, called, g, dys, crossing: vec![], grads: &mut grads };
    let (input, weight) = (g.bwd_input.as_ref(), g.bwd_weight.as_ref());
    if op.op == Op::Call {
        site.call(module, input)?;
        site.call(module, weight)?;
    } else if cx.apart {
        site.repeat(module, &[input], "bwd_input.run")?;
        site.repeat(module, &[weight], "bwd_weight.run")?;
    } else {
        site.repeat(module, &[input, weight], "bwd.run")?;
    }
    Ok(grads)
}

/// A call being differentiated.
struct Site<'a> {
    b: &'a mut Builder,
    op: &'a OpData,
    called: &'a Called,
    g: &'a Halves,
    dys: &'a [Option<ValueId>],
    crossing: Vec<ValueId>,
    grads: &'a mut [Option<ValueId>],
}

impl Site<'_> {
    fn value(&mut self, t: Takes) -> Result<ValueId, PassError> {
        Ok(match t {
            Takes::Cotangent(r) => match self.dys[r] {
                Some(d) => d,
                None => self.b.constant_like(0.0, self.called.results[r])?,
            },
            Takes::Crossing(i) => self.crossing[i],
            Takes::Saved(i) => self.called.results[self.g.n_results + i],
            Takes::Param(p) => self.called.operands[p],
        })
    }

    fn call(&mut self, module: &Module, half: Option<&Half>) -> Result<(), PassError> {
        let Some(half) = half else { return Ok(()) };
        let xs = half.takes.iter().map(|t| self.value(*t)).collect::<Result<Vec<_>, _>>()?;
        let results =
            self.b.emit_calling(module, Op::Call, &xs, Attrs::new().func("func", half.func))?;
        for (p, d) in half.grads.iter().zip(&results) {
            self.grads[*p] = Some(*d);
        }
        self.crossing.extend(&results[half.grads.len()..]);
        Ok(())
    }

    /// A repeat in the other direction over a body that runs `halves` and sums derivatives of
    /// values all runs share.
    fn repeat(
        &mut self,
        module: &mut Module,
        halves: &[Option<&Half>],
        name: &str,
    ) -> Result<(), PassError> {
        let halves: Vec<&Half> = halves.iter().copied().flatten().collect();
        if halves.is_empty() {
            return Ok(());
        }
        let body = run_body(module, self.op, &halves, name)?;
        let mut xs = vec![];
        for t in &body.carried {
            xs.push(self.value(*t)?);
        }
        for p in &body.sums {
            xs.push(self.b.constant_like(0.0, self.called.operands[*p])?);
        }
        for t in body.stacked.iter().chain(&body.shared) {
            xs.push(self.value(*t)?);
        }
        let attrs = Attrs::new()
            .func("func", body.func)
            .int("count", self.op.attrs.get_int("count").unwrap_or(0))
            .int("carry", (body.carried.len() + body.sums.len()) as i64)
            .int("xs", body.stacked.len() as i64)
            .flag("reverse", !self.op.attrs.get_flag("reverse"));
        let results = self.b.emit_calling(module, Op::Repeat, &xs, attrs)?;
        let mut next = results.into_iter();
        for p in body.carried_grads.iter().chain(&body.sums).chain(&body.stacked_grads) {
            self.grads[*p] = next.next();
        }
        self.crossing.extend(next);
        Ok(())
    }
}

/// What a reversed repeat runs, and what it takes in which place.
struct RunBody {
    func: FuncId,
    /// Derivatives of carried results, and of which parameters they become the derivative.
    carried: Vec<Takes>,
    carried_grads: Vec<usize>,
    /// Shared parameters whose derivatives are summed over the runs.
    sums: Vec<usize>,
    stacked: Vec<Takes>,
    shared: Vec<Takes>,
    stacked_grads: Vec<usize>,
}

fn run_body(
    module: &mut Module,
    op: &OpData,
    halves: &[&Half],
    name: &str,
) -> Result<RunBody, PassError> {
    let (carry, sliced) = (carry(op), n_sliced(op));
    let original = callee(op).expect("a repeat has a body");
    let mut b =
        Builder::new(&module.fresh_func_name(&format!("{}.{name}", module.func(original).name)));
    b.at(&op.spans);

    let inside = |t: &Takes| matches!(t, Takes::Crossing(_)) && halves.len() > 1;
    let takes: BTreeSet<Takes> =
        halves.iter().flat_map(|h| h.takes.iter().copied()).filter(|t| !inside(t)).collect();
    let is_carried = |t: &Takes| matches!(t, Takes::Cotangent(r) if *r < carry);
    let is_shared = |t: &Takes| matches!(t, Takes::Param(p) if *p >= sliced);
    let carried: Vec<Takes> = takes.iter().copied().filter(is_carried).collect();
    let shared: Vec<Takes> = takes.iter().copied().filter(is_shared).collect();
    let stacked: Vec<Takes> =
        takes.iter().copied().filter(|t| !is_carried(t) && !is_shared(t)).collect();
    let carried_grads: Vec<usize> = carried
        .iter()
        .filter_map(|t| if let Takes::Cotangent(r) = t { Some(*r) } else { None })
        .collect();
    let all_grads = halves.iter().flat_map(|h| h.grads.iter().copied());
    let (sums, stacked_grads): (Vec<usize>, Vec<usize>) =
        all_grads.filter(|p| !carried_grads.contains(p)).partition(|p| *p >= sliced);

    let mut values: BTreeMap<Takes, ValueId> = BTreeMap::new();
    let mut take = |b: &mut Builder, t: &Takes| {
        let (h, i) = halves
            .iter()
            .find_map(|h| Some((h, h.takes.iter().position(|x| x == t)?)))
            .expect("some half takes it");
        let source = module.func(h.func);
        let data = source.value(source.params[i]);
        let v = b.param(data.name.as_deref().unwrap_or("s"), data.ty.clone());
        values.insert(*t, v);
    };
    carried.iter().for_each(|t| take(&mut b, t));
    let mut so_far = vec![];
    for p in &sums {
        let source = module.func(original);
        let data = source.value(source.params[*p]);
        so_far.push(
            b.param(&format!("sum.{}", data.name.as_deref().unwrap_or("s")), data.ty.as_value()),
        );
    }
    stacked.iter().chain(&shared).for_each(|t| take(&mut b, t));

    let mut grads: BTreeMap<usize, ValueId> = BTreeMap::new();
    let mut crossing: Vec<ValueId> = vec![];
    for h in halves {
        let known = |t: &Takes| match t {
            Takes::Crossing(i) if halves.len() > 1 => crossing[*i],
            t => values[t],
        };
        let xs: Vec<ValueId> = h.takes.iter().map(known).collect();
        let results = b.emit_calling(module, Op::Call, &xs, Attrs::new().func("func", h.func))?;
        h.grads.iter().zip(&results).for_each(|(p, d)| {
            grads.insert(*p, *d);
        });
        crossing.extend(&results[h.grads.len()..]);
    }
    let mut results: Vec<ValueId> = carried_grads.iter().map(|p| grads[p]).collect();
    for (p, so_far) in sums.iter().zip(so_far) {
        results.push(b.binary(Op::Add, so_far, grads[p])?);
    }
    results.extend(stacked_grads.iter().map(|p| grads[p]));
    if halves.len() == 1 {
        results.extend(&crossing);
    }
    let func = module.add_func(b.finish(results));
    Ok(RunBody { func, carried, carried_grads, sums, stacked, shared, stacked_grads })
}
