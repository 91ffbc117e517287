//! What must be differentiated: which parameters of each function carry a derivative, which results
//! receive one, and which parameters are weights, over all places the function is called from.
//!
//! Upwards, `deps` says for each result which parameters it depends on differentiably. Downwards
//! from the objective, `specs` joins what every call site asks of its callee.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::module::{Func, FuncId, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};

use crate::rewrite::{callee, carry, stacked};

/// Parameters, by place.
pub type Params = BTreeSet<usize>;

/// What of a function is differentiated.
#[derive(Clone, Debug)]
pub struct Spec {
    /// By parameter: its derivative is wanted.
    pub active: Vec<bool>,
    /// By result: it has a derivative.
    pub live: Vec<bool>,
    /// By parameter: every call gives it a weight, or an element-moving function of one.
    pub weight: Vec<bool>,
    /// The most parameters any repeat carries through this function.
    pub carry: usize,
}

impl Spec {
    fn none(func: &Func) -> Spec {
        Spec {
            active: vec![false; func.params.len()],
            live: vec![false; func.results.len()],
            weight: vec![true; func.params.len()],
            carry: 0,
        }
    }
}

/// What a call or repeat asks of its callee.
pub struct Site {
    pub active: Vec<bool>,
    pub live: Vec<bool>,
}

/// The facts of a function's values.
pub struct Activity {
    /// By value: the parameters it depends on differentiably.
    pub deps: Vec<Params>,
}

pub fn deps(module: &Module) -> Vec<Activity> {
    let mut all: Vec<Activity> = vec![];
    for func in &module.funcs {
        let a = func_deps(module, func, &all);
        all.push(a);
    }
    all
}

fn func_deps(module: &Module, func: &Func, above: &[Activity]) -> Activity {
    let mut deps = vec![Params::new(); func.n_values()];
    for (i, p) in func.params.iter().enumerate() {
        if func.ty(*p).dtype.is_float() {
            deps[p.0 as usize].insert(i);
        }
    }
    for (_, op) in func.body_ops().filter(|(_, op)| !op.op.has(Trait::Blocks)) {
        let of = |ps: &mut dyn Iterator<Item = usize>| -> Params {
            ps.flat_map(|p| deps[op.operands[p].0 as usize].iter().copied()).collect()
        };
        let found: Vec<Params> = match callee(op) {
            None => vec![of(&mut (0..op.operands.len())); op.results.len()],
            Some(g) => {
                let g = closure(module.func(g), &above[g.0 as usize], op);
                g.iter().map(|ps| of(&mut ps.iter().copied())).collect()
            }
        };
        for (r, found) in op.results.iter().zip(found) {
            if func.ty(*r).dtype.is_float() {
                deps[r.0 as usize] = found;
            }
        }
    }
    Activity { deps }
}

/// For each result of the callee, the parameters it depends on after any number of runs.
fn closure(g: &Func, a: &Activity, op: &OpData) -> Vec<Params> {
    let mut all: Vec<Params> = g.results.iter().map(|r| a.deps[r.0 as usize].clone()).collect();
    let carry = carry(op);
    loop {
        let before: usize = all.iter().map(BTreeSet::len).sum();
        for r in 0..all.len() {
            let earlier: Params = all[r].range(..carry).flat_map(|i| all[*i].clone()).collect();
            all[r].extend(earlier);
        }
        if before == all.iter().map(BTreeSet::len).sum::<usize>() {
            return all;
        }
    }
}

/// What every function reached from result `objective` of `root` is asked for, derivatives by the
/// parameters `wrt`.
pub fn specs(
    module: &Module,
    root: FuncId,
    wrt: &[usize],
    objective: usize,
    all: &[Activity],
) -> BTreeMap<FuncId, Spec> {
    let mut specs = BTreeMap::new();
    let mut top = Spec::none(module.func(root));
    wrt.iter().for_each(|p| top.active[*p] = true);
    top.weight.clone_from(&top.active);
    top.live[objective] = true;
    specs.insert(root, top);
    for id in module.func_ids().rev().filter(|id| *id <= root) {
        let Some(spec) = specs.get_mut(&id) else { continue };
        settle(module.func(id), spec);
        let spec = spec.clone();
        visit(module, id, &spec, all, &mut specs);
    }
    specs
}

/// A carried value has a derivative before and after a run, or neither; it is not a weight.
fn settle(func: &Func, spec: &mut Spec) {
    for i in 0..spec.carry {
        let both = func.ty(func.params[i]).dtype.is_float() && (spec.active[i] || spec.live[i]);
        (spec.active[i], spec.live[i], spec.weight[i]) = (both, both, false);
    }
}

/// Tell the callees of a function what its calls ask of them.
fn visit(
    module: &Module,
    id: FuncId,
    spec: &Spec,
    all: &[Activity],
    specs: &mut BTreeMap<FuncId, Spec>,
) {
    let func = module.func(id);
    let flows = Flows::new(module, func, spec, all);
    for (_, op) in func.body_ops() {
        let (Some(g), Some(site)) = (callee(op), flows.site(op)) else { continue };
        let spec = specs.entry(g).or_insert_with(|| Spec::none(module.func(g)));
        let or = |to: &mut Vec<bool>, from: &[bool]| {
            to.iter_mut().zip(from).for_each(|(t, f)| *t |= *f);
        };
        or(&mut spec.active, &site.active);
        or(&mut spec.live, &site.live);
        for (i, x) in op.operands.iter().enumerate() {
            spec.weight[i] &= flows.weight[x.0 as usize];
        }
        spec.carry = spec.carry.max(carry(op));
    }
}

/// Which values of a function derivatives flow through, given its spec.
pub struct Flows<'a> {
    module: &'a Module,
    all: &'a [Activity],
    /// By value: depends on an active parameter.
    pub active: Vec<bool>,
    /// By value: an objective depends on it.
    pub live: Vec<bool>,
    /// By value: a weight, or an element-moving function of weights, or where inputs have
    /// derivatives any function of weights alone: its derivative belongs to `bwd_weight`.
    pub weight: Vec<bool>,
}

impl<'a> Flows<'a> {
    pub fn new(module: &'a Module, func: &Func, spec: &Spec, all: &'a [Activity]) -> Flows<'a> {
        let id = module.find(&func.name).expect("a function of the module");
        let deps = &all[id.0 as usize].deps;
        let active = deps.iter().map(|d| d.iter().any(|p| spec.active[*p])).collect();
        let live = vec![false; func.n_values()];
        let weight = weight_values(func, spec, deps);
        let mut flows = Flows { module, all, active, live, weight };
        for (r, _) in func.results.iter().zip(&spec.live).filter(|(_, l)| **l) {
            flows.live[r.0 as usize] = true;
        }
        for (_, op) in func.body_ops().rev() {
            let Some(wanted) = flows.wanted(op) else { continue };
            for (x, _) in op.operands.iter().zip(wanted).filter(|(_, w)| *w) {
                flows.live[x.0 as usize] = true;
            }
        }
        flows
    }

    pub fn is_active(&self, v: ValueId) -> bool {
        self.active[v.0 as usize]
    }

    /// Active, and the objective depends on it.
    pub fn flows(&self, v: ValueId) -> bool {
        self.active[v.0 as usize] && self.live[v.0 as usize]
    }

    /// By operand: whether its derivative is wanted; `None` if no derivative reaches the op.
    pub fn wanted(&self, op: &OpData) -> Option<Vec<bool>> {
        if op.op.has(Trait::Blocks) || !op.results.iter().any(|r| self.flows(*r)) {
            return None;
        }
        match self.site(op) {
            Some(site) => {
                let active = |(x, a): (&ValueId, &bool)| *a && self.is_active(*x);
                Some(op.operands.iter().zip(&site.active).map(active).collect())
            }
            None => Some(op.operands.iter().map(|x| self.is_active(*x)).collect()),
        }
    }

    /// What the call `op` asks of its callee; `None` if it is no call or no derivative reaches it.
    pub fn site(&self, op: &OpData) -> Option<Site> {
        let g = callee(op)?;
        let live: Vec<bool> = op.results.iter().map(|r| self.flows(*r)).collect();
        if !live.contains(&true) {
            return None;
        }
        let closed = closure(self.module.func(g), &self.all[g.0 as usize], op);
        let carry = carry(op);
        let reached: Params =
            (0..live.len()).filter(|r| live[*r]).flat_map(|r| closed[r].iter().copied()).collect();
        let given = |p: usize| self.is_active(op.operands[p]);
        let mut site = Site {
            active: (0..op.operands.len()).map(|p| given(p) && reached.contains(&p)).collect(),
            live: live.clone(),
        };
        for i in 0..carry {
            let active = given(i) || closed[i].iter().any(|p| given(*p));
            let both = active && (live[i] || reached.contains(&i));
            (site.active[i], site.live[i]) = (both, both);
        }
        Some(site)
    }
}

fn weight_values(func: &Func, spec: &Spec, deps: &[Params]) -> Vec<bool> {
    let is_weight = |p: usize| spec.weight[p] && spec.active[p];
    let inputs = (0..spec.active.len()).any(|p| spec.active[p] && !spec.weight[p]);
    let mut weight = vec![false; func.n_values()];
    for (i, p) in func.params.iter().enumerate() {
        weight[p.0 as usize] = spec.weight[i];
    }
    for (_, op) in func.body_ops() {
        let moves = op.op.has(Trait::Movement) || op.op == Op::Convert;
        let moved = moves && op.operands.iter().all(|x| weight[x.0 as usize]);
        for r in &op.results {
            let d = &deps[r.0 as usize];
            let alone =
                inputs && !d.is_empty() && d.iter().all(|p| is_weight(*p) || !spec.active[*p]);
            weight[r.0 as usize] = moved || (alone && d.iter().any(|p| is_weight(*p)));
        }
    }
    weight
}

/// The number of leading operands that are slices or carried, by a repeat's attributes.
pub fn n_sliced(op: &OpData) -> usize {
    carry(op) + stacked(op)
}
