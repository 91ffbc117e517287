//! A model's units (embedding, each layer, head and loss) with their kernels, from the
//! differentiated and fused module.
//!
//! A stacked layer is a repeat of `@f.fwd`; its backward is in `@f.bwd_input` and `@f.bwd_weight`
//! (`PassCx::apart`). What `@grad` does itself is the embedding (rows of a table) and the head. A
//! layer with an exchange has two parts: what the exchange waits for and what waits for its return
//! is *attention*, what lies between or beside is *mlp*.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::dim::Dim;
use weft_ir::module::{Def, Func, FuncId, Module, OpData, OpId, StoreKind, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::DType;

use crate::PlanError;
use crate::kernel::{self, Kernel, Work};

/// Kernels of one part of one direction, in order.
pub type Part = Vec<Kernel>;

/// What a chunk does with a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passes {
    pub attention: Part,
    pub mlp: Part,
    /// What runs beside the exchanges and needs nothing of them: shared experts.
    pub beside: Part,
    /// The exchanges on both sides of `mlp`; none in a layer without experts, several where a
    /// backward runs the layer again.
    pub dispatch: Part,
    pub combine: Part,
}

/// Weights of a unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// Elements of one rank's part without those of experts.
    pub dense: f64,
    /// Of all experts.
    pub experts: f64,
    /// Bytes that products read of both: codes, or another type.
    pub dense_bytes: f64,
    pub expert_bytes: f64,
    /// Stores that other units have, too, and their elements.
    pub shared: BTreeMap<String, f64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    pub name: String,
    pub forward: Passes,
    pub input: Passes,
    pub weight: Passes,
    pub weights: Weights,
    /// What the backward finds saved of a micro-batch.
    pub saved_bytes: f64,
    /// Saved of it: rows that the weight gradient would otherwise exchange again.
    pub saved_row_bytes: f64,
}

impl Unit {
    /// Rows of an exchange of one direction, there and back.
    pub fn exchange_bytes(&self) -> f64 {
        let rows = |k: &Kernel| match k.work {
            Work::Dispatch(e) | Work::Combine(e) => e.row_bytes,
            _ => 0.0,
        };
        self.forward.dispatch.iter().chain(&self.forward.combine).map(rows).sum()
    }
}

/// How many units before and behind the layers there are: an embedding, a head.
pub fn ends_around(units: &[Unit]) -> (usize, usize) {
    let is = |unit: Option<&Unit>, name: &str| usize::from(unit.is_some_and(|u| u.name == name));
    (is(units.first(), EMBEDDING), is(units.last(), HEAD))
}

const EMBEDDING: &str = "embedding";
const HEAD: &str = "head";

/// The model's units in order.
pub fn units(module: &Module) -> Result<Vec<Unit>, PlanError> {
    let grad = module.find("grad").ok_or(PlanError("the module has no @grad".into()))?;
    let grad = module.func(grad);
    let mut all = vec![];
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    for (_, op) in grad.body_ops() {
        let Some((func, count)) = forward_repeat(module, grad, op) else { continue };
        let unit = stacked(module, grad, op, func, count)?;
        for store in stores(module, grad, &op.operands) {
            *used.entry(store).or_default() += 1;
        }
        all.extend((0..count).map(|i| Unit { name: format!("{}.{i}", unit.name), ..unit.clone() }));
    }
    let (embedding, head) = ends(module, grad)?;
    if let Some(unit) = embedding {
        all.insert(0, unit);
    }
    all.extend(head);
    if all.is_empty() {
        return Err(PlanError("@grad has no layers".into()));
    }
    share(module, &mut all);
    Ok(all)
}

/// A repeat of a forward function in `@grad`.
fn forward_repeat(module: &Module, _: &Func, op: &OpData) -> Option<(FuncId, usize)> {
    let func = op.attrs.get_func("func").filter(|_| op.op == Op::Repeat)?;
    let count = op.attrs.get_int("count").and_then(|n| usize::try_from(n).ok())?;
    module.func(func).name.ends_with(".fwd").then_some((func, count))
}

/// The weight stores among values of an entry.
fn stores(module: &Module, f: &Func, values: &[ValueId]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut open: Vec<ValueId> = values.to_vec();
    while let Some(v) = open.pop() {
        match f.value(v).def {
            Def::Param(_) => {
                let name = f.value(v).name.clone().unwrap_or_default();
                if module.stores.get(&name).is_some_and(|s| s.kind == StoreKind::Weight) {
                    all.insert(name);
                }
            }
            Def::Result { .. } if kernel::is_weight(module, f, v) => {
                if let Some(op) = f.def_op(v) {
                    open.extend(&f.op(op).operands);
                }
            }
            Def::Result { .. } => {}
        }
    }
    all
}

fn stacked(
    module: &Module,
    grad: &Func,
    op: &OpData,
    func: FuncId,
    count: usize,
) -> Result<Unit, PlanError> {
    let forward = module.func(func);
    let name = forward.name.trim_end_matches(".fwd").to_string();
    let half = |which: &str| {
        let starts = format!("{name}.{which}");
        let of = |f: &&Func| f.name == starts || f.name == format!("{starts}.run");
        module.funcs.iter().find(of)
    };
    let missing = |which: &str| PlanError(format!("@{name} has no {which}"));
    let input = half("bwd_input").ok_or_else(|| missing("bwd_input"))?;
    let weight = half("bwd_weight").ok_or_else(|| missing("bwd_weight"))?;

    let mut weights = Weights::default();
    let experts = expert_params(forward);
    let (mut dense_plain, mut expert_plain) = (0.0, 0.0);
    for (i, v) in op.operands.iter().enumerate() {
        for store in stores(module, grad, &[*v]) {
            let ty = &module.stores[&store].ty;
            let n = kernel::elements(module, ty)?;
            let stacked = ty.dims.first().and_then(|d| d.as_fixed());
            let rank = forward.params.get(i).map_or(0, |p| forward.ty(*p).rank());
            // A weight of its own has a dim for its layers before those of the parameter.
            let own = ty.rank() > rank && stacked == Some(count as u64);
            if !own {
                weights.shared.insert(store, n);
                continue;
            }
            let each = 1.0 / count as f64;
            let of_experts = experts.contains(&(i as u32)) || rank > 2;
            let (all, all_bytes, plain) = match of_experts {
                true => (&mut weights.experts, &mut weights.expert_bytes, &mut expert_plain),
                false => (&mut weights.dense, &mut weights.dense_bytes, &mut dense_plain),
            };
            let scales = store.ends_with(".scales");
            if !scales {
                *all += n * each;
            }
            // Codes and scales may be stores of their own, made once a step.
            match ty.dtype == DType::F32 && !scales {
                true => *plain += n * each,
                false => *all_bytes += kernel::bytes(module, ty)? * each,
            }
        }
    }
    let (mut dense_codes, mut expert_codes) = (0.0, 0.0);
    for (_, op) in forward.body_ops().filter(|(_, op)| op.op == Op::Encode) {
        if kernel::is_weight(module, forward, op.operands[0]) {
            let bytes: Result<f64, _> =
                op.results.iter().map(|r| kernel::bytes(module, forward.ty(*r))).sum();
            // A stack of matrices is one of experts.
            match forward.ty(op.operands[0]).rank() {
                3.. => expert_codes += bytes?,
                _ => dense_codes += bytes?,
            }
        }
    }
    weights.dense_bytes += if dense_codes > 0.0 { dense_codes } else { 2.0 * dense_plain };
    weights.expert_bytes += if expert_codes > 0.0 { expert_codes } else { 2.0 * expert_plain };

    let forward_parts = split(module, forward, None)?;
    let sites = sites(&forward_parts);
    let mut input_parts = split(module, input, Some(&sites))?;
    let Halved { weight: weight_parts, before, row_bytes: saved_row_bytes } =
        weight_half(module, weight, &sites, &handed_on(grad, module, input, weight))?;
    input_parts.attention.extend(before.attention);
    input_parts.mlp.extend(before.mlp);
    Ok(Unit {
        name,
        saved_bytes: saved(module, forward)?,
        saved_row_bytes,
        forward: forward_parts,
        input: input_parts,
        weight: weight_parts,
        weights,
    })
}

/// Parameters that grouped products read as their weights.
pub fn expert_params(f: &Func) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for (_, op) in f.body_ops().filter(|(_, op)| op.op == Op::GroupedMatmul) {
        let mut v = op.operands[1];
        loop {
            match f.value(v).def {
                Def::Param(i) => {
                    all.insert(i);
                    break;
                }
                Def::Result { op, .. } => match f.op(op).operands.first() {
                    Some(first) => v = *first,
                    None => break,
                },
            }
        }
    }
    all
}

/// Bytes of what a forward function returns for its backward: all but its first result, each value
/// once.
fn saved(module: &Module, f: &Func) -> Result<f64, PlanError> {
    let kept: BTreeSet<ValueId> = f.results.iter().skip(1).copied().collect();
    let kept = kept.into_iter().filter(|v| !kernel::is_weight(module, f, *v));
    kept.map(|v| kernel::bytes(module, f.ty(v))).sum()
}

/// A forward or an input gradient: its kernels by part. `sites` are those of the forward, where it
/// is known: what is computed again of attention is attention, though no exchange holds it up.
pub fn split(
    module: &Module,
    f: &Func,
    sites: Option<&BTreeMap<String, bool>>,
) -> Result<Passes, PlanError> {
    let before = reaching(f, |op| op == Op::Dispatch);
    let after = depending(f, |op| op == Op::Combine);
    let between = depending(f, |op| op == Op::Dispatch);
    let joins = reaching_set(f, &after);
    let of_mlp = sites.map(|sites| around(f, sites));
    let of_mlp = |id: &OpId| of_mlp.as_ref().is_none_or(|all| all.contains(id));
    let mut parts = Passes::default();
    for (id, op) in f.body_ops() {
        let kernels = kernel::of_op(module, f, op)?;
        match op.op {
            Op::Dispatch => kernels.into_iter().for_each(|k| exchange(&mut parts.dispatch, k)),
            Op::Combine => kernels.into_iter().for_each(|k| exchange(&mut parts.combine, k)),
            // Beside the exchange: what its result is added to, and what is made of that.
            _ if !before.contains(&id)
                && !after.contains(&id)
                && (between.contains(&id)
                    || of_mlp(&id) && (joins.contains(&id) || made_of(f, id, &joins))) =>
            {
                let part = if between.contains(&id) { &mut parts.mlp } else { &mut parts.beside };
                part.extend(kernels);
            }
            _ => parts.attention.extend(kernels),
        }
    }
    if parts.dispatch.is_empty() {
        // Without an exchange there is nothing to part.
        let (mlp, beside) = (std::mem::take(&mut parts.mlp), std::mem::take(&mut parts.beside));
        parts.attention.extend(mlp.into_iter().chain(beside));
    }
    Ok(parts)
}

/// Adds an exchange to those of a direction. A number for each row goes with the rows.
fn exchange(all: &mut Part, kernel: Kernel) {
    for earlier in all.iter_mut() {
        let both = match (&earlier.work, &kernel.work) {
            (Work::Dispatch(a), Work::Dispatch(b)) => a.with(*b).map(Work::Dispatch),
            (Work::Combine(a), Work::Combine(b)) => a.with(*b).map(Work::Combine),
            _ => None,
        };
        if let Some(both) = both {
            earlier.work = both;
            return;
        }
    }
    all.push(kernel);
}

/// Products of the mlp part, what they need and what reads them.
fn around(f: &Func, sites: &BTreeMap<String, bool>) -> BTreeSet<OpId> {
    let of_mlp = |op: &OpData| op.attrs.get_word("site").and_then(|s| sites.get(s)) == Some(&true);
    let products: BTreeSet<OpId> =
        f.body_ops().filter(|(_, op)| of_mlp(op)).map(|(id, _)| id).collect();
    let mut all = reaching_set(f, &products);
    let reads = |op: &OpData| {
        op.operands.iter().any(|v| f.def_op(*v).is_some_and(|d| products.contains(&d)))
    };
    all.extend(f.body_ops().filter(|(_, op)| reads(op)).map(|(id, _)| id));
    all.extend(products);
    all
}

/// Whether an op reads a result of an op in `of` that is a product: it saves what that made.
fn made_of(f: &Func, id: OpId, of: &BTreeSet<OpId>) -> bool {
    let product =
        |v: &ValueId| f.def_op(*v).is_some_and(|d| of.contains(&d) && f.op(d).op == Op::Matmul);
    f.op(id).operands.iter().any(product)
}

/// Ops with a path to one of that kind, those themselves not.
fn reaching(f: &Func, kind: impl Fn(Op) -> bool) -> BTreeSet<OpId> {
    let of: BTreeSet<OpId> = f.body_ops().filter(|(_, o)| kind(o.op)).map(|(i, _)| i).collect();
    reaching_set(f, &of)
}

fn reaching_set(f: &Func, of: &BTreeSet<OpId>) -> BTreeSet<OpId> {
    let mut all = BTreeSet::new();
    for (id, op) in f.body_ops().rev() {
        if of.contains(&id) || all.contains(&id) {
            all.extend(op.operands.iter().filter_map(|v| f.def_op(*v)));
        }
    }
    all
}

/// Ops that depend on one of that kind.
fn depending(f: &Func, kind: impl Fn(Op) -> bool) -> BTreeSet<OpId> {
    let mut all = BTreeSet::new();
    for (id, op) in f.body_ops() {
        let from = |v: &ValueId| f.def_op(*v).is_some_and(|d| all.contains(&d) || kind(f.op(d).op));
        if op.operands.iter().any(from) {
            all.insert(id);
        }
    }
    all
}

/// Whether a product of that site is in the mlp part.
fn sites(parts: &Passes) -> BTreeMap<String, bool> {
    let of = |part: &Part, mlp: bool| -> Vec<(String, bool)> {
        let products = part.iter().filter(|k| matches!(k.work, Work::Product { .. }));
        products.map(|k| (k.name.clone(), mlp)).collect()
    };
    let all = [of(&parts.attention, false), of(&parts.mlp, true), of(&parts.beside, true)];
    all.into_iter().flatten().collect()
}

/// The weight gradient in the order in which it is scheduled.
struct Halved {
    /// Products, and encodings of the rows of an exchange.
    weight: Passes,
    /// Everything else: it runs with the input gradient, where the values are.
    before: Passes,
    /// Rows that would be exchanged again and are found saved.
    row_bytes: f64,
}

/// Parameters of the weight gradient that the input gradient of the same micro-batch makes: they
/// do not wait for it among what the forward saved.
fn handed_on(grad: &Func, module: &Module, input: &Func, weight: &Func) -> BTreeSet<ValueId> {
    let calls = |op: &OpData, f: &Func| {
        op.attrs.get_func("func").is_some_and(|id| module.func(id).name == f.name)
    };
    let Some((_, run)) = grad.body_ops().find(|(_, op)| calls(op, weight)) else {
        return BTreeSet::new();
    };
    let made = |v: &ValueId| grad.def_op(*v).is_some_and(|d| calls(grad.op(d), input));
    run.operands.iter().zip(&weight.params).filter(|(v, _)| made(v)).map(|(_, p)| *p).collect()
}

/// The parameters that a value is made of.
fn params_of(f: &Func, v: ValueId) -> BTreeSet<ValueId> {
    let (mut found, mut open) = (BTreeSet::new(), vec![v]);
    while let Some(v) = open.pop() {
        match f.value(v).def {
            Def::Param(_) => {
                found.insert(v);
            }
            Def::Result { op, .. } => open.extend(&f.op(op).operands),
        }
    }
    found
}

/// A product is of the part that it is of in the forward, other ops of the part of a product that
/// needs them.
fn weight_half(
    module: &Module,
    f: &Func,
    sites: &BTreeMap<String, bool>,
    handed_on: &BTreeSet<ValueId>,
) -> Result<Halved, PlanError> {
    let mut of: BTreeMap<OpId, bool> = BTreeMap::new();
    for (id, op) in f.body_ops().rev() {
        let own = op.attrs.get_word("site").and_then(|s| sites.get(s)).copied();
        let Some(mlp) = own.or(of.get(&id).copied()) else { continue };
        of.insert(id, mlp);
        for d in op.operands.iter().filter_map(|v| f.def_op(*v)) {
            of.insert(d, mlp);
        }
    }
    let gone = reaching(f, |op| op == Op::Dispatch);
    let dispatched = f.body_ops().filter(|(_, o)| o.op == Op::Dispatch);
    let dispatched: Vec<&[Dim]> = dispatched.map(|(_, o)| &f.ty(o.results[0]).dims[..]).collect();
    let rows = |v: &ValueId| dispatched.contains(&&f.ty(*v).dims[..]);
    let (mut weight, mut before, mut row_bytes) = (Passes::default(), Passes::default(), 0.0);
    for (id, op) in f.body_ops() {
        for kernel in kernel::of_op(module, f, op)? {
            match kernel.work {
                Work::Dispatch(_) if !params_of(f, op.operands[0]).is_disjoint(handed_on) => {}
                Work::Dispatch(e) => row_bytes += e.row_bytes,
                Work::Rows { .. } | Work::Region { .. }
                    if gone.contains(&id) && used_once(f, id, &gone) => {}
                _ => {
                    let late = matches!(kernel.work, Work::Product { .. })
                        || op.op == Op::Encode && op.operands.iter().any(rows)
                        || op.op == Op::Recode;
                    let half = if late { &mut weight } else { &mut before };
                    match of.get(&id) {
                        Some(true) => half.mlp.push(kernel),
                        _ => half.attention.push(kernel),
                    }
                }
            }
        }
    }
    Ok(Halved { weight, before, row_bytes })
}

/// Whether everything that reads an op's results is itself only for the exchange.
fn used_once(f: &Func, id: OpId, gone: &BTreeSet<OpId>) -> bool {
    f.body_ops()
        .filter(|(_, o)| o.operands.iter().any(|v| f.def_op(*v) == Some(id)))
        .all(|(i, o)| gone.contains(&i) || o.op == Op::Dispatch)
}

/// The embedding and the head: what `@grad` does itself.
fn ends(module: &Module, grad: &Func) -> Result<(Option<Unit>, Option<Unit>), PlanError> {
    let new = |name: &str| Unit {
        name: name.to_string(),
        forward: Passes::default(),
        input: Passes::default(),
        weight: Passes::default(),
        weights: Weights::default(),
        saved_bytes: 0.0,
        saved_row_bytes: 0.0,
    };
    let (mut embedding, mut head) = (new(EMBEDDING), new(HEAD));
    let backward = depending(grad, |op| op == Op::CrossEntropy);
    let mut turned = false;
    for (id, op) in grad.body_ops() {
        turned |= op.attrs.get_word("role").is_some();
        let stores = stores(module, grad, &op.operands);
        // Values of all layers at once are stacks that layers take their slices of.
        let stack = |v: &ValueId| {
            grad.def_op(*v).is_some_and(|d| grad.op(d).op == Op::Repeat) && op.op == Op::Convert
        };
        if op.operands.iter().any(stack) {
            continue;
        }
        let kernels = kernel::of_op(module, grad, op)?;
        if kernels.is_empty() {
            continue;
        }
        let unit = match op.op {
            Op::Gather | Op::ScatterAdd => &mut embedding,
            _ => &mut head,
        };
        for store in stores {
            let n = kernel::elements(module, &module.stores[&store].ty)?;
            if unit.weights.shared.insert(store, n).is_none() {
                unit.weights.dense_bytes += 2.0 * n;
            }
        }
        let weight_grad = op.attrs.get_word("role") == Some("weight_grad");
        let passes = match (op.op, weight_grad) {
            (Op::ScatterAdd, _) | (_, true) => &mut unit.weight,
            _ if turned || backward.contains(&id) => &mut unit.input,
            _ => {
                let kept = op.results.iter().map(|r| kernel::bytes(module, grad.ty(*r)));
                unit.saved_bytes += kept.sum::<Result<f64, _>>()?;
                &mut unit.forward
            }
        };
        passes.attention.extend(kernels);
    }
    let there = |u: Unit| (!u.forward.attention.is_empty()).then_some(u);
    Ok((there(embedding), there(head)))
}

/// Leaves as shared what more than one unit has; the rest is the unit's own.
fn share(module: &Module, units: &mut [Unit]) {
    let mut n_units: BTreeMap<String, usize> = BTreeMap::new();
    for unit in units.iter() {
        for store in unit.weights.shared.keys() {
            *n_units.entry(store.clone()).or_default() += 1;
        }
    }
    let is_weight = |s: &str| module.stores.get(s).is_some_and(|s| s.kind == StoreKind::Weight);
    for unit in units.iter_mut() {
        let all = std::mem::take(&mut unit.weights.shared);
        for (store, n) in all.into_iter().filter(|(s, _)| is_weight(s)) {
            match n_units.get(&store) {
                Some(2..) => {
                    unit.weights.shared.insert(store, n);
                }
                _ => unit.weights.dense += n,
            }
        }
    }
}

/// Numbers that layouts must divide: heads of attention, experts of layers.
pub fn heads_and_experts(module: &Module) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut heads, mut experts) = (BTreeSet::new(), BTreeSet::new());
    for f in &module.funcs {
        for (_, op) in f.body_ops() {
            match op.op {
                Op::Attention => {
                    heads.extend(f.ty(op.operands[0]).dims.get(2).and_then(|d| d.as_fixed()));
                }
                Op::Route => {
                    let n = op.attrs.get_int("experts").and_then(|n| u64::try_from(n).ok());
                    experts.extend(n);
                }
                _ => {}
            }
        }
    }
    (heads, experts)
}

/// What one layer hands the next.
pub fn message_bytes(module: &Module) -> Result<f64, PlanError> {
    let forwards = module.funcs.iter().filter(|f| f.name.ends_with(".fwd"));
    let first = |f: &Func| f.results.first().map(|r| kernel::bytes(module, f.ty(*r)));
    let all: Vec<f64> = forwards.filter_map(first).collect::<Result<_, _>>()?;
    Ok(all.into_iter().fold(0.0, f64::max))
}
