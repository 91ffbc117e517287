//! The training step as one function.
//!
//! ```text
//! func @train_step(%tokens: i32[N, B, S], %lr, %step, .., %w: state f32[..], %w.m: .., %w.v: ..)
//!     -> (objective: f32[], metric.loss: f32[], grad_norm: f32[], w: state f32[..], ..) donates (..) {
//!   %sums = repeat ..                    # counts of all micro-batches, if the loss has any
//!   %g, %metrics, %emits = repeat ..     # gradients and results of `@grad`, added; a call if N is 1
//!   %norm = sqrt (Σ g²)                  # of all gradients together; if above `clip`, they shrink to it
//!   %bias = call .. @update              # from side outputs summed over the micro-batches
//!   %w', %m', %v' = adamw %w, %m, %v, %g, %lr, %step
//! ```
//!
//! Why: everything a step does is in the graph. Metrics add up: a loss's mean is over the global
//! batch, so a micro-batch holds its share. Micro-batches are added in one binary tree over their
//! index, as loops of two turns within one another (`turns`): any half of the batch is one summand,
//! so ranks that share a batch get the bits that one rank gets. `Sums::InOrder` has fewer halves
//! and adds the micro-batches of each one after the other, which takes one sum in place of one a
//! level, and gives the bits of as many halves alone. Weight decay is for weights with at least two
//! dims without the layers they are stacked over: gains and biases are not pulled to
//! zero.
//! The parameters are data, schedules, `lr` and `step`, then states by store name; the results
//! metrics, side outputs that `@update` reads, and the states that changed, each donated. Moments
//! are stores `<weight>.m` and `<weight>.v`. Cost: a few ops for each weight. Requires: `@grad`.

use std::collections::BTreeMap;
use std::ops::Range;

use indexmap::IndexMap;
use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Init, Module, Store, StoreKind, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use crate::autodiff::OBJECTIVE;
use crate::batch_sums::{COUNTS, MICRO_LOSS};
use crate::tensor::TENSOR;
use crate::{Fact, Pass, PassCx, PassError, Stats, Sums, Train};

pub const PASS: Pass = Pass {
    name: "train_step",
    requires: &[Fact::CountsKnown, Fact::Differentiated],
    establishes: &[],
    run,
};

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(train) = &cx.train else { return Ok(Stats::default()) };
    let grad = module.find("grad").ok_or_else(|| PassError::new("there is no @grad"))?;
    add_moments(module, grad, train.moments);
    let func = build(module, grad, train)?;
    let n_ops = func.body.len();
    module.add_func(func);
    // Parts of the step from now on, not entries.
    for name in [MICRO_LOSS, COUNTS, "update"] {
        if let Some(f) = module.find(name) {
            module.func_mut(f).result_names.clear();
        }
    }
    if !cx.gradients {
        module.func_mut(grad).result_names.clear();
    }
    Ok(Stats::one("ops made", n_ops))
}

fn param_names(func: &Func) -> Vec<String> {
    func.params.iter().map(|p| func.value(*p).name.clone().unwrap_or_default()).collect()
}

/// The weights that `@grad` differentiates by, in its order.
fn weights(module: &Module, grad: FuncId) -> Vec<String> {
    let names = module.func(grad).result_names.iter();
    names.filter_map(|n| n.strip_prefix("grad.")).map(str::to_string).collect()
}

fn add_moments(module: &mut Module, grad: FuncId, dtype: DType) {
    for weight in weights(module, grad) {
        let Some(store) = module.stores.get(&weight).cloned() else { continue };
        for moment in ["m", "v"] {
            let suffixed = |t: &String| format!("{t}.{moment}");
            let store = Store {
                ty: store.ty.as_value().with_dtype(dtype),
                kind: StoreKind::State,
                templates: store.templates.iter().take(1).map(suffixed).collect(),
                starts: store.starts.clone(),
                init: Init::Constant(0.0),
                part: None,
                placed: None,
            };
            module.stores.insert(format!("{weight}.{moment}"), store);
        }
    }
}

/// `@train_step` under construction.
struct Step<'a> {
    module: &'a mut Module,
    b: Builder,
    n_micro: u64,
    /// Turns of the loops that add micro-batches up, outermost first.
    turns: Vec<u64>,
    /// Data of the whole step, by name: micro-batches in dim 0.
    data: IndexMap<String, ValueId>,
    /// What every micro-batch sees, by name: values of weights and states, schedules.
    shared: BTreeMap<String, ValueId>,
}

fn build(module: &mut Module, grad: FuncId, train: &Train) -> Result<Func, PassError> {
    let update = module.find("update");
    let weights = weights(module, grad);
    let mut b = Builder::new(&module.fresh_func_name("train_step"));
    b.spans = places(module.func(grad));

    let mut wanted = param_names(module.func(grad));
    wanted.extend(update.iter().flat_map(|u| param_names(module.func(*u))));
    let mut data = IndexMap::new();
    for (name, p) in param_names(module.func(grad)).into_iter().zip(&module.func(grad).params) {
        if !module.stores.contains_key(&name) && !name.starts_with("sum.") {
            let ty = module.func(grad).ty(*p);
            let dims: Vec<Dim> = [Dim::fixed(train.micro_batches)]
                .into_iter()
                .chain(ty.dims.iter().copied())
                .collect();
            data.insert(name.clone(), b.param(&name, ty.with_dims(dims)));
        }
    }
    let mut shared = BTreeMap::new();
    let stores: Vec<(String, Store)> =
        module.stores.iter().map(|(n, s)| (n.clone(), s.clone())).collect();
    for (name, store) in &stores {
        if store.kind == StoreKind::Schedule && wanted.contains(name) {
            shared.insert(name.clone(), b.param(name, store.ty.as_value()));
        }
    }
    let lr = b.param("lr", Type::f32([]));
    let t = b.param("step", Type::f32([]));
    let mut states: IndexMap<String, ValueId> = IndexMap::new();
    let moment = |name: &str| {
        let of = name.strip_suffix(".m").or_else(|| name.strip_suffix(".v"));
        of.is_some_and(|w| weights.iter().any(|x| x == w))
    };
    for (name, store) in &stores {
        if store.kind != StoreKind::Schedule && (wanted.contains(name) || moment(name)) {
            states.insert(name.clone(), b.param(name, store.ty.as_state()));
        }
    }
    for (name, state) in states.iter().filter(|(n, _)| wanted.contains(n)) {
        let value = b.unary(Op::Read, *state)?;
        shared.insert(name.clone(), value);
    }

    let n_micro = train.micro_batches;
    let turns = turns(n_micro, train.sums)?;
    let mut step = Step { module, b, n_micro, turns, data, shared };
    let sums = step.counts()?;
    for (i, sum) in sums.into_iter().enumerate() {
        step.shared.insert(format!("sum.{i}"), sum);
    }
    let emits = step.emits(update);
    let kept = step.kept(grad, &emits);
    let totals = step.totals(grad, &kept)?;

    let grads: Vec<ValueId> = weights.iter().map(|w| totals[&format!("grad.{w}")]).collect();
    let (norm, grads) = step.clip(grads, &weights, train.clip)?;
    let mut results: IndexMap<String, ValueId> = IndexMap::new();
    for name in kept.iter().filter(|n| !n.starts_with("grad.")) {
        results.insert(name.clone(), totals[name]);
    }
    results.insert("grad_norm".into(), norm);
    let changed = step.update(update, &totals)?;

    let mut b = step.b;
    let mut after: IndexMap<String, ValueId> = IndexMap::new();
    for (weight, g) in weights.iter().zip(grads) {
        let store = &stores.iter().find(|s| s.0 == *weight).expect("a weight is a store").1;
        let matrix = store.ty.rank() >= 2 + store.starts.len();
        let attrs = Attrs::new()
            .float("beta1", train.beta1)
            .float("beta2", train.beta2)
            .float("eps", train.eps)
            .float("decay", if matrix { train.decay } else { 0.0 });
        let names = [weight.clone(), format!("{weight}.m"), format!("{weight}.v")];
        let [w, m, v] = names.clone().map(|n| states[&n]);
        let new = b.emit_all(Op::AdamW, &[w, m, v, g, lr, t], attrs)?;
        after.extend(names.into_iter().zip(new));
    }
    for (name, value) in changed {
        let state = *states.get(&name).ok_or_else(|| PassError::new(format!("no state {name}")))?;
        after.insert(name, b.binary(Op::Assign, state, value)?);
    }
    // In the order of the parameters, so that the pairs ascend.
    let mut donated = vec![];
    for (name, param) in &states {
        if let Some(new) = after.get(name) {
            let place = b.func.params.iter().position(|p| p == param).expect("it is a parameter");
            donated.push((place as u32, results.len() as u32));
            results.insert(name.clone(), *new);
        }
    }
    let (names, values): (Vec<String>, Vec<ValueId>) = results.into_iter().unzip();
    let mut func = b.finish(values);
    func.result_names = names;
    func.donated = donated;
    Ok(func)
}

/// The place of the objective: where the step's own ops come from.
fn places(grad: &Func) -> Vec<weft_ir::module::Span> {
    grad.body_ops().next_back().map(|(_, op)| op.spans.clone()).unwrap_or_default()
}

/// What is added up over the micro-batches.
struct Sum<'a> {
    f: FuncId,
    name: &'a str,
    /// Results of `f`.
    places: &'a [usize],
    /// Parameters of `f`: `n_xs` with a slice for each micro-batch, then those all see.
    given: Vec<usize>,
    n_xs: usize,
}

/// Turns of the loops that add `n` micro-batches up, outermost first: halves, halves of halves and
/// so on; what is left is added in order.
fn turns(n: u64, sums: Sums) -> Result<Vec<u64>, PassError> {
    let most = n.trailing_zeros();
    let halvings = match sums {
        Sums::Tree => most,
        Sums::InOrder { halvings } if halvings > most => {
            let why = format!("{n} micro-batches are not halved {halvings} times");
            return Err(PassError::new(why));
        }
        Sums::InOrder { halvings } => halvings,
    };
    let mut turns = vec![2; halvings as usize];
    let rest = n >> halvings;
    turns.extend((rest > 1).then_some(rest));
    Ok(turns)
}

/// The weights that are parts of one stack of layers: neighbours under one published name.
fn stacks(module: &Module, weights: &[String]) -> Vec<Range<usize>> {
    let published = |w: &String| {
        let store = module.stores.get(w).filter(|s| !s.starts.is_empty());
        store.and_then(|s| s.templates.first())
    };
    let mut stacks: Vec<Range<usize>> = vec![];
    for i in 0..weights.len() {
        let own = published(&weights[i]);
        match stacks.last_mut() {
            Some(last) if own.is_some() && published(&weights[last.start]) == own => {
                last.end += 1;
            }
            _ => stacks.push(i..i + 1),
        }
    }
    stacks
}

/// The sum of squares of a gradient: of each layer, if it is stacked (`first` dims), else of all.
/// Squares are added within each row of the stored tensors' first dim, then over rows, then over
/// the inner stacked dims, so that whoever holds some rows, experts or layers adds what one who
/// holds all adds.
pub fn squares(b: &mut Builder, g: ValueId, first: usize) -> Result<ValueId, PassError> {
    let g = b.convert(g, DType::F32)?;
    let mut sum = b.binary(Op::Mul, g, g)?;
    let within: Vec<i64> = (first as i64 + 1..b.ty(sum).rank() as i64).collect();
    if !within.is_empty() {
        sum = b.reduce_sum(sum, &within)?;
    }
    for dim in (1..b.ty(sum).rank() as i64).rev() {
        sum = b.reduce_sum(sum, &[dim])?;
    }
    if first == 0 && b.ty(sum).rank() > 0 {
        sum = b.reduce_sum(sum, &[0])?;
    }
    Ok(sum)
}

fn stacked_dims(turns: &[u64], dims: &[Dim]) -> Vec<Dim> {
    turns.iter().map(|n| Dim::fixed(*n)).chain(dims.iter().copied()).collect()
}

/// The sum of what `count` turns of `body` add to zeros; `xs` are the stacks and what all see.
fn repeat_sum(
    module: &Module,
    b: &mut Builder,
    body: FuncId,
    count: u64,
    n_xs: usize,
    xs: &[ValueId],
) -> Result<Vec<ValueId>, PassError> {
    let func = module.func(body);
    let mut operands = vec![];
    for total in &func.params[..func.params.len() - xs.len()] {
        operands.push(b.constant(0.0, func.ty(*total).clone())?);
    }
    let attrs = Attrs::new()
        .int("count", count as i64)
        .int("carry", operands.len() as i64)
        .int("xs", n_xs as i64);
    operands.extend(xs);
    Ok(b.emit_calling(module, Op::Repeat, &operands, attrs.func("func", body))?)
}

impl Step<'_> {
    /// The results of `@grad` that `@update` reads.
    fn emits(&self, update: Option<FuncId>) -> Vec<String> {
        let names = update.map(|u| param_names(self.module.func(u))).unwrap_or_default();
        names.into_iter().filter(|n| !self.module.stores.contains_key(n)).collect()
    }

    /// The results of `@grad` that the step sums.
    fn kept(&self, grad: FuncId, emits: &[String]) -> Vec<String> {
        let keeps = |n: &&String| {
            *n == OBJECTIVE
                || n.starts_with("metric.")
                || n.starts_with("grad.")
                || emits.contains(n)
        };
        self.module.func(grad).result_names.iter().filter(keeps).cloned().collect()
    }

    /// Micro-batch 0 of the data.
    fn only(&mut self, name: &str) -> Result<Option<ValueId>, PassError> {
        let Some(all) = self.data.get(name).copied() else { return Ok(None) };
        let dims = self.b.dims(all)[1..].to_vec();
        Ok(Some(self.b.reshape(all, &dims)?))
    }

    /// The sums of `@loss.counts` over the micro-batches.
    fn counts(&mut self) -> Result<Vec<ValueId>, PassError> {
        let Some(counts) = self.module.find(COUNTS) else { return Ok(vec![]) };
        let func = self.module.func(counts);
        let (names, all) = (param_names(func), (0..func.results.len()).collect::<Vec<_>>());
        self.sum_over(counts, "train_step.counts", &names, &all)
    }

    /// Results of `@grad` by name, summed over the micro-batches.
    fn totals(
        &mut self,
        grad: FuncId,
        kept: &[String],
    ) -> Result<BTreeMap<String, ValueId>, PassError> {
        let func = self.module.func(grad);
        let place = |n: &String| func.result_names.iter().position(|r| r == n);
        let places: Vec<usize> = kept.iter().filter_map(place).collect();
        let names = param_names(func);
        let values = self.sum_over(grad, "train_step.micro", &names, &places)?;
        Ok(kept.iter().cloned().zip(values).collect())
    }

    /// Results `places` of `f`, whose parameters are `names`, added up over the micro-batches.
    fn sum_over(
        &mut self,
        f: FuncId,
        name: &str,
        names: &[String],
        places: &[usize],
    ) -> Result<Vec<ValueId>, PassError> {
        if self.n_micro == 1 {
            let mut xs = vec![];
            for n in names {
                let x = self.only(n)?.or_else(|| self.shared.get(n).copied());
                xs.push(x.ok_or_else(|| PassError::new(format!("the step has no `{n}`")))?);
            }
            let attrs = Attrs::new().func("func", f);
            let all = self.b.emit_calling(self.module, Op::Call, &xs, attrs)?;
            return Ok(places.iter().map(|p| all[*p]).collect());
        }
        let (mut xs, mut shared) = (vec![], vec![]);
        for (i, n) in names.iter().enumerate() {
            match (self.data.get(n), self.shared.get(n)) {
                (Some(x), _) => xs.push((i, *x)),
                (None, Some(x)) => shared.push((i, *x)),
                (None, None) => return Err(PassError::new(format!("the step has no `{n}`"))),
            }
        }
        let given: Vec<usize> = xs.iter().chain(&shared).map(|x| x.0).collect();
        let sum = Sum { f, name, places, given, n_xs: xs.len() };
        // From the innermost level to the outermost.
        let mut body: Option<FuncId> = None;
        for at in (0..self.turns.len()).rev() {
            body = Some(self.level(&sum, at, body)?);
        }
        let mut operands = vec![];
        for (i, x) in &xs {
            let func = self.module.func(f);
            let dims = stacked_dims(&self.turns, &func.ty(func.params[*i]).dims);
            operands.push(self.b.reshape(*x, &dims)?);
        }
        operands.extend(shared.iter().map(|x| x.1));
        let body = body.expect("several micro-batches have a level");
        repeat_sum(self.module, &mut self.b, body, self.turns[0], xs.len(), &operands)
    }

    /// The body of the loop at level `at` of the sum: `total + ` what its turn adds up, which is
    /// `sum.f` itself on the innermost level and a loop over `inner` on the others.
    fn level(&mut self, sum: &Sum, at: usize, inner: Option<FuncId>) -> Result<FuncId, PassError> {
        let rest = &self.turns[at + 1..];
        let n_turn: u64 = rest.iter().product();
        let name = if n_turn == 1 { sum.name.into() } else { format!("{}.{n_turn}", sum.name) };
        let mut body = Builder::new(&self.module.fresh_func_name(&name));
        body.at(&self.b.spans);
        let func = self.module.func(sum.f);
        let mut totals = vec![];
        for p in sum.places {
            let name = func.result_names.get(*p).map_or("count", String::as_str);
            let ty = func.ty(func.results[*p]).as_value();
            totals.push(body.param(&format!("total.{name}"), ty));
        }
        let mut xs = vec![];
        for (k, i) in sum.given.iter().enumerate() {
            let (name, ty) = (func.value(func.params[*i]).name.clone(), func.ty(func.params[*i]));
            let ty = match k < sum.n_xs {
                true => ty.with_dims(stacked_dims(rest, &ty.dims)),
                false => ty.clone(),
            };
            xs.push(body.param(name.as_deref().unwrap_or("x"), ty));
        }
        let added = match inner {
            Some(inner) => repeat_sum(self.module, &mut body, inner, rest[0], sum.n_xs, &xs)?,
            None => {
                let mut ordered: Vec<(usize, ValueId)> =
                    sum.given.iter().copied().zip(xs).collect();
                ordered.sort_unstable();
                let xs: Vec<ValueId> = ordered.into_iter().map(|x| x.1).collect();
                let attrs = Attrs::new().func("func", sum.f);
                let all = body.emit_calling(self.module, Op::Call, &xs, attrs)?;
                sum.places.iter().map(|p| all[*p]).collect()
            }
        };
        let mut sums = vec![];
        for (total, added) in totals.into_iter().zip(added) {
            sums.push(body.binary(Op::Add, total, added)?);
        }
        Ok(self.module.add_func(body.finish(sums)))
    }

    /// The norm of all gradients together, and the gradients shrunk to `clip` if it is larger.
    fn clip(
        &mut self,
        grads: Vec<ValueId>,
        weights: &[String],
        clip: Option<f64>,
    ) -> Result<(ValueId, Vec<ValueId>), PassError> {
        let (b, module) = (&mut self.b, &*self.module);
        let mut total = b.constant(0.0, Type::f32([]))?;
        // What ranks along `tensor` have of the sum, where they have parts of the gradients.
        let (axis, mut of_parts) = (module.find_axis(TENSOR), None);
        for stack in stacks(module, weights) {
            let store = module.stores.get(&weights[stack.start]);
            let first_dim = store.map_or(0, |s| s.starts.len());
            let is_part = axis.is_some() && store.is_some_and(|s| s.ty.axes.contains(&axis));
            let mut layers = vec![];
            for i in stack {
                layers.push(squares(b, grads[i], first_dim)?);
            }
            let mut sum = match layers[..] {
                [one] => one,
                _ => b.emit(Op::Concat, &layers, Attrs::new().int("dim", 0))?,
            };
            if b.ty(sum).rank() > 0 {
                sum = b.reduce_sum(sum, &[0])?;
            }
            match (is_part, of_parts) {
                (false, _) => total = b.binary(Op::Add, total, sum)?,
                (true, None) => of_parts = Some(sum),
                (true, Some(so_far)) => of_parts = Some(b.binary(Op::Add, so_far, sum)?),
            }
        }
        if let (Some(own), Some(axis)) = (of_parts, axis) {
            let attrs = Attrs::new().axis("axis", axis);
            let all = b.emit_calling(module, Op::AllReduce, &[own], attrs)?[0];
            total = b.binary(Op::Add, total, all)?;
        }
        let norm = b.unary(Op::Sqrt, total)?;
        let Some(clip) = clip else { return Ok((norm, grads)) };
        // clip / max(norm, clip) is exactly 1 up to the limit.
        let limit = b.constant(clip, Type::f32([]))?;
        let most = b.binary(Op::Max, norm, limit)?;
        let scale = b.binary(Op::Div, limit, most)?;
        let mut clipped = vec![];
        for g in grads {
            let scale = b.convert(scale, b.ty(g).dtype)?;
            let dims = b.dims(g);
            let scale = b.broadcast_to(scale, &dims)?;
            clipped.push(b.binary(Op::Mul, g, scale)?);
        }
        Ok((norm, clipped))
    }

    /// What `@update` makes of states, by store name.
    fn update(
        &mut self,
        update: Option<FuncId>,
        totals: &BTreeMap<String, ValueId>,
    ) -> Result<Vec<(String, ValueId)>, PassError> {
        let Some(update) = update else { return Ok(vec![]) };
        let func = self.module.func(update);
        let mut xs = vec![];
        for name in param_names(func) {
            let x = totals.get(&name).or_else(|| self.shared.get(&name));
            let why = || PassError::new(format!("@update reads `{name}`, which the step lacks"));
            xs.push(*x.ok_or_else(why)?);
        }
        let attrs = Attrs::new().func("func", update);
        let values = self.b.emit_calling(self.module, Op::Call, &xs, attrs)?;
        Ok(func.result_names.iter().cloned().zip(values).collect())
    }
}
