//! The training step of one rank of a pipeline: its row of the schedule's table.
//!
//! ```text
//!                                            %a = call %t0, %w0 {func = @stage.0.fwd, noinline = true}
//! %g.. = repeat .. {func = @train_step       send %a {axis = pipeline, to = 1}
//!   .micro, count = 2, ..}              =>   ..
//! .. = adamw %w0, .., %g0, ..                %d = recv {axis = pipeline, from = 1, type = ..}
//! .. = adamw %w1, .., %g1, ..                %p = call %d, .. {func = @stage.0.bwd_weight, ..}
//!                                            %g0 = call %p0, %p1, %zero {func = @stage.0.sum_grads, ..}
//!                                            .. = adamw %w0, .., %g0, ..
//! ```
//!
//! Why: in the place of the loop over micro-batches stand the cells of the table, each a call that
//! stays one, so that the text does not grow with micro-batches times ops. What a cell reads of
//! another rank it receives right before it, what others read of it is sent right after, straight
//! to whoever reads it, however many stages lie between. Gradients are added in the loops' tree, so
//! losses, gradients and weights have the bits of one rank. A rank keeps the weights and moments of
//! its stages; what else the step computes (norm, `@update`) each rank computes as one rank does,
//! from values that the ranks of the stages send to all others. Held-out loss goes through the
//! stages in turn. Cost: ops for each cell and message. Requires: `assign_stages`, `shard`.

mod flat;
mod nest;
mod row;
mod sums;

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::builder::Builder;
use weft_ir::module::{Func, Module, OpData, OpId, StoreKind, ValueId};
use weft_ir::op::Trait;
use weft_ir::ty::AxisId;
use weft_schedule::table::{self, Action, Cell, Table};

use crate::assign_stages::{replace_at_end, stage_name};
use crate::batch_sums::MICRO_LOSS;
use crate::{Pass, PassCx, PassError, Pipeline, Stats};
use flat::{Flat, Half, broken, home};
use nest::Nest;
use row::{Given, Plan, Row};
use sums::Group;

pub const PASS: Pass = Pass { name: "schedule_pipeline", requires: &[], establishes: &[], run };

/// The axis whose ranks have stages of their own.
pub const AXIS: &str = "pipeline";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(pipeline) = &cx.pipeline else { return Ok(Stats::default()) };
    let axis = module.find_axis(AXIS).ok_or_else(|| broken("there is no axis pipeline"))?;
    let (Some(step), Some(grad)) = (module.find("train_step"), module.find("grad")) else {
        return Ok(Stats::default());
    };
    let func = module.func(step).clone();
    let nest = nest::find(module, &func, grad).map_err(|e| e.within(&func))?;
    check_counts(&pipeline.table, &nest.turns)?;
    let stages = Flat::of(module, grad, pipeline.table.n_stages(), &stage_name);
    let homes = Homes::of(module, &stages, pipeline);

    let mut n_messages = 0;
    let step_func = step_of(module, &func, &nest, &stages, &homes, pipeline, axis, &mut n_messages)
        .map_err(|e| e.within(&func))?;
    replace_at_end(module, step, step_func);
    if let Some(loss) = module.find("loss") {
        let func = module.func(loss).clone();
        let own = module.find(MICRO_LOSS).is_some();
        let name = |k| if own { format!("loss.{}", stage_name(k)) } else { stage_name(k) };
        let made = held_out(module, &func, &name, &homes, pipeline, axis, &mut n_messages);
        let made = made.map_err(|e| e.within(&func))?;
        replace_at_end(module, loss, made);
    }
    module.stores.retain(|name, _| homes.is_here(name));
    if let Some(grad) = module.find("grad").filter(|_| !cx.gradients) {
        module.func_mut(grad).result_names.clear();
    }
    Ok(Stats { counts: vec![("messages", n_messages)] })
}

/// Whether the table does as many micro-batches as the step's loops add.
fn check_counts(table: &Table, turns: &[usize]) -> Result<(), PassError> {
    let (has, wants) = (table.n_micro_batches(), turns.iter().product::<usize>());
    if has != wants {
        let why = format!("the schedule has {has} micro-batches, and each rank gets {wants}");
        return Err(PassError::new(why));
    }
    let halves = table.micro_batches.iter().all(|n| 2 * n == wants) && turns.first() == Some(&2);
    if table.placement.len() > 1 && !halves {
        let why =
            format!("two directions have half of the micro-batches each, and there are {has}");
        return Err(PassError::new(why));
    }
    Ok(())
}

/// Where stores live.
struct Homes {
    stages: BTreeMap<String, usize>,
    /// The stages that this rank has.
    own: BTreeSet<usize>,
}

impl Homes {
    fn of(module: &Module, flat: &Flat, pipeline: &Pipeline) -> Homes {
        let is_weight =
            |w: &String| module.stores.get(w).is_some_and(|s| s.kind == StoreKind::Weight);
        let read = flat.stages_of_params().into_iter().filter(|(w, _)| is_weight(w));
        let own = pipeline.table.stages_of(pipeline.place).into_iter().map(|s| s.1).collect();
        Homes { stages: read.filter_map(|(w, by)| Some((w, *by.first()?))).collect(), own }
    }

    /// The stage of a weight, or of a moment of it; none for what every rank has.
    fn stage(&self, store: &str) -> Option<usize> {
        let of = store.strip_suffix(".m").or_else(|| store.strip_suffix(".v"));
        let own = self.stages.get(store).or_else(|| self.stages.get(of?));
        own.copied()
    }

    fn is_here(&self, store: &str) -> bool {
        self.stage(store).is_none_or(|s| self.own.contains(&s))
    }
}

/// A value of the step as one rank of several has it.
#[derive(Clone, Copy)]
enum Held {
    /// Every rank has it.
    All(ValueId),
    /// The ranks of a stage have it; this one may be one of them.
    Stage(usize, Option<ValueId>),
}

/// The step under construction.
struct Step<'a, 'b> {
    func: &'a Func,
    homes: &'a Homes,
    row: Row<'b>,
    held: Vec<Option<Held>>,
}

#[expect(clippy::too_many_arguments, reason = "all that is known of the step, each once")]
fn step_of(
    module: &mut Module,
    func: &Func,
    nest: &Nest,
    flat: &Flat,
    homes: &Homes,
    pipeline: &Pipeline,
    axis: AxisId,
    n_messages: &mut usize,
) -> Result<Func, PassError> {
    let results: Vec<ValueId> = nest.results.iter().map(|r| flat.func.results[*r]).collect();
    let plan = plan(flat, &results, &pipeline.table, pipeline.place, axis);
    let mut b = Builder::new(&func.name);
    b.spans = func.op(nest.op).spans.clone();
    let mut held: Vec<Option<Held>> = vec![None; func.n_values()];
    for p in &func.params {
        let data = func.value(*p);
        let name = data.name.clone().unwrap_or_default();
        let stage = if module.stores.contains_key(&name) { homes.stage(&name) } else { None };
        let here = homes.is_here(&name);
        held[p.0 as usize] = Some(match stage {
            Some(stage) if !here => Held::Stage(stage, None),
            Some(stage) => Held::Stage(stage, Some(b.param(&name, data.ty.clone()))),
            None => Held::All(b.param(&name, data.ty.clone())),
        });
    }
    // The row reads values of the ops before the loop: those come first.
    let row = Row::new(&plan, module, b, vec![]);
    let mut step = Step { func, homes, row, held };
    for (id, op) in func.body_ops() {
        step.row.b.at(&op.spans);
        let done = if id == nest.op { step.pipeline(nest, op) } else { step.op(id, op) };
        done.map_err(|e| e.at(func, op))?;
    }
    let made = step.finish()?;
    *n_messages += made.1;
    Ok(made.0)
}

fn plan<'a>(
    flat: &'a Flat,
    results: &[ValueId],
    table: &'a Table,
    place: usize,
    axis: AxisId,
) -> Plan<'a> {
    let read: Vec<(ValueId, usize)> =
        results.iter().filter_map(|v| Some((*v, home(flat, *v)?.stage))).collect();
    Plan { flat, table, place, axis, readers: flat.readers(&read) }
}

impl Step<'_, '_> {
    fn get(&self, v: ValueId) -> Result<Held, PassError> {
        self.held[v.0 as usize].ok_or_else(|| broken("a value is read before it is made"))
    }

    /// The rank's row in the place of the loop.
    fn pipeline(&mut self, nest: &Nest, op: &OpData) -> Result<(), PassError> {
        let mut given = vec![];
        for (v, slices) in &nest.given {
            given.push(match (self.get(*v)?, slices) {
                (Held::All(x) | Held::Stage(_, Some(x)), true) => Given::Slices(x),
                (Held::All(x) | Held::Stage(_, Some(x)), false) => Given::Shared(x),
                (Held::Stage(_, None), _) => Given::Elsewhere,
            });
        }
        self.row.set_given(given);
        let flat = self.row.plan.flat;
        let is_grad = |r: usize| {
            home(flat, flat.func.results[r]).is_some_and(|work| work.half != Half::Forward)
        };
        let mut groups: BTreeMap<_, Group> = BTreeMap::new();
        for r in &nest.results {
            let v = flat.func.results[*r];
            let home = home(flat, v);
            let group = groups.entry((home, is_grad(*r))).or_insert_with(|| Group::new(home));
            if !group.values.contains(&v) {
                group.values.push(v);
            }
        }
        let turns = &nest.turns;
        self.row.cells(&mut |row, calls| {
            for group in groups.values_mut() {
                let Some(work) = group.home else { continue };
                let micro = ready(flat, calls, work.stage, work.half);
                for micro in micro {
                    group.add(row, turns, micro)?;
                }
            }
            Ok(())
        })?;
        let mut sums: BTreeMap<(ValueId, bool), Held> = BTreeMap::new();
        for ((home, grad), mut group) in groups {
            if group.home.is_none() {
                for micro in 0..turns.iter().product() {
                    group.add(&mut self.row, turns, micro)?;
                }
            }
            let total = group.total(&mut self.row, turns)?;
            for (i, v) in group.values.iter().enumerate() {
                let own = total.as_ref().map(|t| t[i]);
                let sum = match (home, own) {
                    (None, Some(x)) => Held::All(x),
                    (Some(work), own) => Held::Stage(work.stage, own),
                    (None, None) => return Err(broken("a sum")),
                };
                let ty = flat.func.ty(*v).as_value();
                let sum = if grad { sum } else { Held::All(self.share(sum, &ty, "sum")?) };
                sums.insert((*v, grad), sum);
            }
        }
        for (r, result) in op.results.iter().zip(&nest.results) {
            let sum = sums.get(&(flat.func.results[*result], is_grad(*result)));
            let sum = *sum.ok_or_else(|| broken("a result"))?;
            self.hold(*r, sum);
        }
        Ok(())
    }

    fn hold(&mut self, v: ValueId, held: Held) {
        if let (Held::All(x) | Held::Stage(_, Some(x)), Some(name)) =
            (held, &self.func.value(v).name)
            && self.row.b.func.value(x).name.is_none()
        {
            self.row.b.name(x, name);
        }
        self.held[v.0 as usize] = Some(held);
    }

    /// The value on every rank: the first that has it sends it to those that do not.
    fn share(
        &mut self,
        held: Held,
        ty: &weft_ir::ty::Type,
        name: &str,
    ) -> Result<ValueId, PassError> {
        let (stage, own) = match held {
            Held::All(x) => return Ok(x),
            Held::Stage(stage, own) => (stage, own),
        };
        let holders = self.row.plan.holders(stage);
        let Some(x) = own else { return self.row.recv(ty, holders[0], name) };
        if holders[0] == self.row.plan.place {
            for to in (0..self.row.plan.table.n_ranks()).filter(|r| !holders.contains(r)) {
                self.row.send(x, to)?;
            }
        }
        Ok(x)
    }

    /// The value on every rank, from now on.
    fn shared(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        let ty = self.func.ty(v).clone();
        let name = self.func.value(v).name.clone().unwrap_or_else(|| "shared".into());
        let held = self.get(v)?;
        let x = self.share(held, &ty, &name)?;
        self.held[v.0 as usize] = Some(Held::All(x));
        Ok(x)
    }

    /// An op of the step: where its operands are, or everywhere if they are of several stages, or
    /// numbers: what is made of the norm is made by all, not sent to all.
    fn op(&mut self, id: OpId, op: &OpData) -> Result<(), PassError> {
        let mut stages = BTreeSet::new();
        let (mut of_all, mut numbers) = (false, true);
        for x in &op.operands {
            let ty = self.func.ty(*x);
            match self.get(*x)? {
                Held::Stage(stage, _) => {
                    numbers &= ty.rank() == 0 && !ty.state;
                    stages.insert(stage);
                }
                Held::All(_) => of_all |= ty.state,
            }
        }
        let changes_all = of_all && op.op.has(Trait::State);
        let stage = match stages.len() {
            1 if !changes_all && !numbers => stages.first().copied(),
            _ => {
                for x in &op.operands {
                    self.shared(*x)?;
                }
                None
            }
        };
        if let Some(stage) = stage.filter(|s| !self.homes.own.contains(s)) {
            for r in &op.results {
                self.hold(*r, Held::Stage(stage, None));
            }
            return Ok(());
        }
        let mut xs = vec![];
        for x in &op.operands {
            match self.get(*x)? {
                Held::All(x) | Held::Stage(_, Some(x)) => xs.push(x),
                Held::Stage(_, None) => return Err(broken("a value of another rank's")),
            }
        }
        let data = self.func.op(id);
        let types = data.results.iter().map(|r| self.func.ty(*r).clone()).collect();
        let b = &mut self.row.b;
        let made = b.func.push_op(data.op, xs, data.attrs.clone(), types, data.spans.clone());
        let made = b.func.op(made).results.clone();
        for (r, x) in op.results.iter().zip(made) {
            self.hold(*r, stage.map_or(Held::All(x), |s| Held::Stage(s, Some(x))));
        }
        Ok(())
    }

    /// Results that are not states are everywhere, states where their stores are.
    fn finish(mut self) -> Result<(Func, usize), PassError> {
        let mut places: Vec<Option<u32>> = vec![];
        let (mut results, mut names) = (vec![], vec![]);
        for (r, name) in self.func.results.iter().zip(&self.func.result_names) {
            let own = match self.get(*r)? {
                Held::All(x) | Held::Stage(_, Some(x)) if self.func.ty(*r).state => Some(x),
                Held::Stage(_, None) if self.func.ty(*r).state => None,
                _ => Some(self.shared(*r)?),
            };
            places.push(own.map(|_| results.len() as u32));
            results.extend(own);
            names.extend(own.map(|_| name.clone()));
        }
        let mut donated = vec![];
        for (p, r) in &self.func.donated {
            let param = match self.get(self.func.params[*p as usize])? {
                Held::All(x) | Held::Stage(_, Some(x)) => x,
                Held::Stage(_, None) => continue,
            };
            let place = self.row.b.func.params.iter().position(|x| *x == param);
            donated.extend(place.map(|p| p as u32).zip(places[*r as usize]));
        }
        let n_messages = self.row.n_messages();
        let mut func = self.row.b.finish(results);
        (func.result_names, func.donated) = (names, donated);
        Ok((func, n_messages))
    }
}

/// The micro-batches for which these calls do the last half that a stage's results wait for.
fn ready(flat: &Flat, calls: &[(OpId, usize)], stage: usize, half: Half) -> Vec<usize> {
    let fits = |(id, _): &&(OpId, usize)| {
        flat.calls.get(id).is_some_and(|w| w.stage == stage && w.half == half)
    };
    calls.iter().filter(fits).map(|(_, micro)| *micro).collect()
}

/// A forward pass through the stages, one after the other.
fn forward_only(table: &Table) -> Table {
    let placement = vec![table.placement[0].clone()];
    let cell = |stage| {
        let op = table::Op::Forward;
        Cell::One(Action { op, direction: 0, stage, micro_batch: 0 })
    };
    let stages = |rank: usize| {
        let own = placement[0].iter().enumerate().filter(|(_, r)| **r == rank);
        own.map(|(stage, _)| cell(stage)).collect()
    };
    let rows = (0..table.n_ranks()).map(stages).collect();
    Table { placement, micro_batches: vec![1], rows }
}

/// The loss alone: every rank gets its results.
fn held_out(
    module: &mut Module,
    func: &Func,
    name: &dyn Fn(usize) -> String,
    homes: &Homes,
    pipeline: &Pipeline,
    axis: AxisId,
    n_messages: &mut usize,
) -> Result<Func, PassError> {
    let id = module.find(&func.name).ok_or_else(|| broken("there is no @loss"))?;
    let flat = Flat::of(module, id, pipeline.table.n_stages(), name);
    let table = forward_only(&pipeline.table);
    let plan = plan(&flat, &flat.func.results, &table, pipeline.place, axis);
    let mut b = Builder::new(&func.name);
    b.spans = func.body_ops().next_back().map(|(_, op)| op.spans.clone()).unwrap_or_default();
    let mut given = vec![];
    for p in &func.params {
        let data = func.value(*p);
        let store = data.name.clone().unwrap_or_default();
        given.push(match homes.is_here(&store) {
            true => Given::Shared(b.param(&store, data.ty.clone())),
            false => Given::Elsewhere,
        });
    }
    let row = Row::new(&plan, module, b, given);
    let held = vec![None; func.n_values()];
    let mut step = Step { func, homes, row, held };
    step.row.cells(&mut |_, _| Ok(()))?;
    let mut results = vec![];
    for (r, name) in flat.func.results.iter().zip(&func.result_names) {
        let Some(work) = home(&flat, *r) else {
            results.push(step.row.value((*r, 0))?);
            continue;
        };
        // With one direction a stage lives on one rank.
        let own = plan.holders(work.stage).contains(&pipeline.place);
        let own = if own { Some(step.row.value((*r, 0))?) } else { None };
        results.push(step.share(Held::Stage(work.stage, own), flat.func.ty(*r), name)?);
    }
    *n_messages += step.row.n_messages();
    let mut made = step.row.b.finish(results);
    made.result_names = func.result_names.clone();
    Ok(made)
}
