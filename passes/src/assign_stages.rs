//! Cut the loss into the stages of a pipeline, each a function with weights of its own.
//!
//! ```text
//! func @loss(%x, %w: f32[4, 3, 3], %g) {        func @stage.0(%x, %w.stage.0: f32[2, 3, 3]) { .. }
//!   %1 = repeat %x, %w                          func @stage.1(%1, %w.stage.1: f32[2, 3, 3], %g) { .. }
//!     {func = @layer, count = 4, ..}       =>   func @loss(%x, %w.stage.0, %w.stage.1, %g) {
//!   %y = rms_norm %1, %g                          %1 = call %x, %w.stage.0 {func = @stage.0}
//!   ..                                            %2 = call %1, %w.stage.1, %g {func = @stage.1}
//! ```
//!
//! Why: `autodiff` makes the halves of each stage as it does of any function, and what one stage
//! hands to another is a value. Turns of repeats over stacked weights are the units that are cut
//! (`weft_schedule::assign`, the slowest rank as fast as can be, or as `stage_layers` says); a
//! repeat over a boundary becomes two, over parts of its stores. Every other op stands where the
//! weights that it reads live, which is where they are read first, else where its latest operand is
//! made; what is made of data alone each stage makes for itself. A repeat whose body reads weights
//! that others read too (multi-token prediction: the embedding and the head) is unrolled, so that a
//! lookup is done where its table is, however late what it gives is read. Side outputs that no
//! update reads go. Cost: a few walks over `@loss`. Requires: counts known, products divided;
//! before `autodiff`. Establishes: no weight is read by two stages.

mod partition;
mod segments;

use std::collections::BTreeMap;

use weft_ir::cost;
use weft_ir::dim::SymKind;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, StoreKind, ValueId};
use weft_ir::op::{Op, Trait};
use weft_schedule::assign::{Shape, Unit, assign, given};
use weft_schedule::table::{self, Table};

use crate::autodiff::OBJECTIVE;
use crate::batch_sums::MICRO_LOSS;
use crate::inline::splice;
use crate::keep_results::keep_results;
use crate::rewrite::{Copier, callee, carry, retarget, stacked};
use crate::schedule_pipeline::AXIS;
use crate::shard::add_axis;
use crate::{Pass, PassCx, PassError, Pipeline, Stats};

pub const PASS: Pass = Pass { name: "assign_stages", requires: &[], establishes: &[], run };

/// The name of a stage's function in the function that is trained.
pub fn stage_name(stage: usize) -> String {
    format!("stage.{stage}")
}

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(pipeline) = &cx.pipeline else { return Ok(Stats::default()) };
    let micro = module.find(MICRO_LOSS);
    let Some(trained) = micro.or_else(|| module.find("loss")) else { return Ok(Stats::default()) };
    let update = module.find("update").map(|u| module.func(u));
    let read: Vec<String> = update
        .iter()
        .flat_map(|u| u.params.iter().filter_map(|p| u.value(*p).name.clone()))
        .collect();
    let is_kept = |name: &str| name == OBJECTIVE || name.starts_with("metric.");
    keep_results(module, trained, &|name| is_kept(name) || read.iter().any(|r| r == name));

    let flat = flattened(module, trained)?;
    let n_stages = pipeline.table.n_stages();
    let cuts =
        cuts(module, &flat, n_unrolled(module, trained), pipeline).map_err(|e| e.within(&flat))?;
    let mut parts = stages_of(module, trained, &cuts, n_stages, &stage_name)?;
    if micro.is_some()
        && let Some(held_out) = module.find("loss")
    {
        keep_results(module, held_out, &is_kept);
        let name = |stage| format!("loss.stage.{stage}");
        parts.extend(stages_of(module, held_out, &cuts, n_stages, &name)?);
    }
    segments::divide_stores(module, &parts);
    if module.find_axis(AXIS).is_none() {
        add_axis(module, AXIS, pipeline.table.n_ranks() as u64, None);
    }
    Ok(Stats { counts: vec![("stages", n_stages), ("stores divided", parts.len())] })
}

/// Replaces a function by one that calls its stages; returns how stores were divided.
fn stages_of(
    module: &mut Module,
    id: FuncId,
    cuts: &[usize],
    n_stages: usize,
    name: &dyn Fn(usize) -> String,
) -> Result<segments::Divided, PassError> {
    let flat = flattened(module, id)?;
    let cut = segments::cut(module, &flat, cuts).map_err(|e| e.within(&flat))?;
    let homes = homes(module, &cut).map_err(|e| e.within(&flat))?;
    let whole = partition::partition(module, &cut.func, &homes, n_stages, name)?;
    replace_at_end(module, id, whole);
    Ok(cut.divided)
}

/// Puts `func`, which calls what was added last, in the place of `id`, which nobody calls.
pub fn replace_at_end(module: &mut Module, id: FuncId, func: Func) -> FuncId {
    let new = module.add_func(func);
    module.funcs.remove(id.0 as usize);
    for f in &mut module.funcs {
        retarget(f, &|f| FuncId(f.0 - u32::from(f > id)));
    }
    FuncId(new.0 - 1)
}

/// Is it a parameter that is a weight?
fn is_weight(module: &Module, func: &Func, v: ValueId) -> bool {
    let store = func.value(v).name.as_ref().and_then(|name| module.stores.get(name));
    func.params.contains(&v) && store.is_some_and(|s| s.kind == StoreKind::Weight)
}

/// Does a repeat cut a stack of weights, and does it read weights that all its turns share?
fn weights_of(module: &Module, func: &Func, op: &OpData) -> (bool, bool) {
    let (first, last) = (carry(op), carry(op) + stacked(op));
    let any = |xs: &[ValueId]| xs.iter().any(|x| is_weight(module, func, *x));
    (any(&op.operands[first..last]), any(&op.operands[last..]))
}

/// Is it a call of what may belong to several stages: repeats, or uses of weights that others read?
/// Other calls stay, so that derivatives save what those of one rank save.
fn is_cut(module: &Module, func: &Func, op: &OpData) -> bool {
    let users = |x: &ValueId| func.body_ops().filter(|(_, op)| op.operands.contains(x)).count();
    let shared = |x: &ValueId| is_weight(module, func, *x) && users(x) > 1;
    op.op == Op::Call && (op.operands.iter().any(shared) || repeats(module, op))
}

fn repeats(module: &Module, op: &OpData) -> bool {
    let inside = |f| module.func(f).body_ops().any(|(_, op)| repeats(module, op));
    op.op == Op::Repeat || callee(op).is_some_and(inside)
}

/// The function with calls inlined that may belong to several stages, and repeats that read shared
/// weights unrolled.
fn flattened(module: &Module, id: FuncId) -> Result<Func, PassError> {
    let mut func = module.func(id).clone();
    loop {
        let unrolls = |f: &Func, op: &OpData| op.op == Op::Repeat && weights_of(module, f, op).1;
        let calls = |f: &Func, op: &OpData| is_cut(module, f, op) || unrolls(f, op);
        if !func.body_ops().any(|(_, op)| calls(&func, op)) {
            return Ok(func);
        }
        let mut copy = Copier::new(&func, &func.name);
        copy.params();
        for (id, op) in func.body_ops() {
            copy.to.at(&op.spans);
            let body = callee(op).filter(|_| calls(&func, op));
            let Some(body) = body.map(|b| module.func(b)) else {
                copy.op(id);
                continue;
            };
            let xs = copy.mapped(id).operands;
            let results = match op.op {
                Op::Call => put(&mut copy, body, &xs),
                _ => segments::unroll(&mut copy, body, op, &xs).map_err(|e| e.at(&func, op))?,
            };
            op.results.iter().zip(results).for_each(|(from, to)| copy.bind(*from, to));
        }
        let next = copy.finish();
        func = next;
    }
}

/// How many turns of repeats `flattened` unrolls.
fn n_unrolled(module: &Module, id: FuncId) -> usize {
    let func = module.func(id);
    let repeats = func.body_ops().map(|(_, op)| op).filter(|op| op.op == Op::Repeat);
    let unrolls = repeats.filter(|op| weights_of(module, func, op).1);
    unrolls.map(|op| op.attrs.get_int("count").unwrap_or(0) as usize).sum()
}

/// The results of `body` on `xs` at the end of the copy.
fn put(copy: &mut Copier, body: &Func, xs: &[ValueId]) -> Vec<ValueId> {
    let to = std::mem::replace(&mut copy.to, weft_ir::builder::Builder::new(""));
    let (to, results) = splice(body, to, xs);
    copy.to = to;
    results
}

/// How many turns a repeat over stacked weights has.
fn n_units(module: &Module, func: &Func, op: &OpData) -> usize {
    let cuts = op.op == Op::Repeat && weights_of(module, func, op).0;
    if cuts { op.attrs.get_int("count").unwrap_or(0) as usize } else { 0 }
}

/// Stage s has units `cuts[s]..cuts[s + 1]`: turns of repeats, in order.
fn cuts(
    module: &Module,
    func: &Func,
    unrolled: usize,
    pipeline: &Pipeline,
) -> Result<Vec<usize>, PassError> {
    let table = &pipeline.table;
    let max = |s| match module.sym(s).kind {
        SymKind::Bounded { max } => Some(max),
        SymKind::Ragged { .. } => None,
    };
    let mut units: Vec<Unit> = vec![];
    let mut before = 0.0;
    for (_, op) in func.body_ops() {
        let cost = cost::of_op(module, func, op, &max);
        let flops = cost.map_err(|e| PassError::new(e.to_string()).at(func, op))?.flops as f64;
        let n = n_units(module, func, op);
        for _ in 0..n {
            units.push(Unit {
                name: func.name.clone(),
                time: flops / n as f64,
                weight_bytes: 0.0,
                activation_bytes: 0.0,
                shares: vec![],
            });
        }
        // What is no turn of a repeat is done with the turn before it.
        match units.last_mut() {
            _ if n > 0 => {}
            Some(unit) => unit.time += flops,
            None => before += flops,
        }
    }
    if let Some(first) = units.first_mut() {
        first.time += before;
    }
    let (n_ranks, n_stages) = (table.n_ranks(), table.n_stages());
    if units.len() < n_stages {
        let n = units.len();
        let nearest = (1..=n).rev().find(|n| n_stages.is_multiple_of(*n)).unwrap_or(1);
        return Err(PassError::new(format!(
            "{n_stages} stages ({n_ranks} ranks along pipeline) need a layer each, and the model \
             has {n}; the nearest is {nearest} {}, or a depth of {n_stages}",
            if nearest == 1 { "stage" } else { "stages" }
        )));
    }
    let (shape, n_ranks) = shape(table);
    let live = vec![1; n_stages];
    let cut = match &pipeline.layers {
        Some(layers) => given(&units, shape, n_ranks, &live, &of_units(layers, unrolled)?),
        None => assign(&units, shape, n_ranks, &live, None, 0.0),
    };
    Ok(cut.map_err(|e| PassError::new(e.to_string()))?.cuts)
}

/// The units of each stage that was given so many layers. Those that were unrolled are no units:
/// they stand with the last.
fn of_units(layers: &[usize], unrolled: usize) -> Result<Vec<usize>, PassError> {
    let mut units = layers.to_vec();
    match units.last_mut() {
        Some(last) if *last > unrolled => *last -= unrolled,
        Some(last) => {
            return Err(PassError::new(format!(
                "not available yet: a last stage of {last} layers, where {unrolled} read weights \
                 of other stages and stand with the layer before them; give it {} at least",
                unrolled + 1
            )));
        }
        None => {}
    }
    Ok(units)
}

/// How the table's stages lie on ranks; each by itself where that has no name.
fn shape(table: &Table) -> (Shape, usize) {
    let (n_ranks, n_stages) = (table.n_ranks(), table.n_stages());
    let placed = &table.placement;
    if *placed == table::bidirectional(n_ranks) && n_ranks.is_multiple_of(2) {
        (Shape::Mirrored, n_ranks)
    } else if *placed == table::v_shaped(n_ranks) {
        (Shape::V, n_ranks)
    } else if *placed == table::looped(n_ranks, n_stages) && n_stages.is_multiple_of(n_ranks) {
        (Shape::Looped { stages_per_rank: n_stages / n_ranks }, n_ranks)
    } else {
        (Shape::Looped { stages_per_rank: 1 }, n_stages)
    }
}

/// The stage of each op; none for what is made of data alone.
fn homes(module: &Module, cut: &segments::Cut) -> Result<BTreeMap<OpId, usize>, PassError> {
    let func = &cut.func;
    let mut homes: BTreeMap<OpId, usize> = BTreeMap::new();
    let mut of_weight: BTreeMap<ValueId, usize> = BTreeMap::new();
    // A weight in another form is made where it is read, and that is where the weight is.
    let mut forms: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut now = 0;
    for (id, op) in func.body_ops() {
        let made = |x: &ValueId| func.def_op(*x).and_then(|op| homes.get(&op).copied());
        let latest = op.operands.iter().filter_map(made).max();
        let fixed = cut.stages.get(&id).copied();
        now = fixed.unwrap_or(now);
        let weight = |x: &ValueId| {
            let own = is_weight(module, func, *x) || cut.pieces.contains(x);
            if own { Some(*x) } else { forms.get(x).copied() }
        };
        let moves = op.op.has(Trait::Movement) || op.op == Op::Convert;
        if let ([x], true, None) = (&op.operands[..], moves, fixed)
            && let Some(weight) = weight(x)
        {
            forms.extend(op.results.iter().map(|r| (*r, weight)));
            continue;
        }
        let mut home = fixed;
        for x in op.operands.iter().filter_map(weight) {
            let own = *of_weight.entry(x).or_insert(now);
            let at = *home.get_or_insert(own);
            let needed = latest.unwrap_or(0).max(at);
            if own != needed {
                let name = func.value(x).name.as_deref().unwrap_or("?");
                return Err(PassError::new(format!(
                    "`{name}` is read by stage {own} and by stage {needed}, and a weight lives on \
                     one; give the later use a weight of its own, or one stage"
                ))
                .at(func, op));
            }
        }
        if let Some(home) = home.or(latest) {
            homes.insert(id, home);
        }
    }
    Ok(homes)
}
