//! What is done to one micro-batch: calls of stages' functions, and the small ops between them.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::module::{Func, FuncId, Module, OpId, ValueId};
use weft_ir::op::Op;
use weft_schedule::table;

use crate::PassError;
use crate::inline::splice;
use crate::rewrite::{Copier, callee};

/// Which function of a stage a call runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Half {
    Forward,
    Input,
    Weight,
}

impl Half {
    /// Whether an action runs it.
    pub fn is_of(self, op: table::Op) -> bool {
        match op {
            table::Op::Forward => self == Half::Forward,
            table::Op::Backward => self != Half::Forward,
            table::Op::BackwardInput => self == Half::Input,
            table::Op::BackwardWeight => self == Half::Weight,
        }
    }
}

/// A call of a stage's function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Work {
    pub stage: usize,
    pub half: Half,
}

pub struct Flat {
    pub func: Func,
    pub calls: BTreeMap<OpId, Work>,
    /// By value: the results of calls that it is made of, itself if it is one.
    leaves: Vec<BTreeSet<ValueId>>,
    /// By value: the parameters that it is made of.
    given: Vec<BTreeSet<ValueId>>,
}

impl Flat {
    /// `id` with every call inlined that runs no function of a stage; these are called `stage(k)`,
    /// and what `autodiff` makes of that.
    pub fn of(
        module: &Module,
        id: FuncId,
        n_stages: usize,
        stage: &dyn Fn(usize) -> String,
    ) -> Flat {
        let suffixes = [
            ("", Half::Forward),
            (".fwd", Half::Forward),
            (".bwd_input", Half::Input),
            (".bwd_weight", Half::Weight),
        ];
        let mut works: BTreeMap<FuncId, Work> = BTreeMap::new();
        for k in 0..n_stages {
            for (suffix, half) in suffixes {
                let f = module.find(&format!("{}{suffix}", stage(k)));
                works.extend(f.map(|f| (f, Work { stage: k, half })));
            }
        }
        let func = inlined(module, module.func(id), &works);
        let work = |id: &OpId| callee(func.op(*id)).and_then(|f| works.get(&f).copied());
        let calls: BTreeMap<OpId, Work> =
            func.body.iter().filter_map(|id| Some((*id, work(id)?))).collect();
        let mut leaves: Vec<BTreeSet<ValueId>> = vec![BTreeSet::new(); func.n_values()];
        let mut given = leaves.clone();
        func.params.iter().for_each(|p| given[p.0 as usize] = BTreeSet::from([*p]));
        for (id, op) in func.body_ops() {
            let of = |all: &[BTreeSet<ValueId>]| -> BTreeSet<ValueId> {
                op.operands.iter().flat_map(|x| all[x.0 as usize].iter().copied()).collect()
            };
            let (from_calls, from_params) = match calls.contains_key(&id) {
                true => (BTreeSet::new(), BTreeSet::new()),
                false => (of(&leaves), of(&given)),
            };
            for r in &op.results {
                leaves[r.0 as usize] = match calls.contains_key(&id) {
                    true => BTreeSet::from([*r]),
                    false => from_calls.clone(),
                };
                given[r.0 as usize] = from_params.clone();
            }
        }
        Flat { func, calls, leaves, given }
    }

    pub fn leaves(&self, v: ValueId) -> &BTreeSet<ValueId> {
        &self.leaves[v.0 as usize]
    }

    /// The call that makes a value.
    pub fn work(&self, v: ValueId) -> Option<Work> {
        self.func.def_op(v).and_then(|op| self.calls.get(&op).copied())
    }

    /// The calls of an action on a stage, in order.
    pub fn calls_of(&self, op: table::Op, stage: usize) -> Vec<OpId> {
        let is_of = |w: &Work| w.stage == stage && w.half.is_of(op);
        let own = |id: &&OpId| self.calls.get(id).is_some_and(is_of);
        self.func.body.iter().filter(own).copied().collect()
    }

    /// The stages that read a value that a call makes; `results` are read too, each on its stage.
    pub fn readers(&self, results: &[(ValueId, usize)]) -> BTreeMap<ValueId, BTreeSet<usize>> {
        let mut readers: BTreeMap<ValueId, BTreeSet<usize>> = BTreeMap::new();
        for (id, work) in &self.calls {
            for x in self.func.op(*id).operands.iter().flat_map(|x| self.leaves(*x)) {
                readers.entry(*x).or_default().insert(work.stage);
            }
        }
        for (v, stage) in results {
            for x in self.leaves(*v) {
                readers.entry(*x).or_default().insert(*stage);
            }
        }
        readers
    }

    /// The stages whose calls read a parameter.
    pub fn stages_of_params(&self) -> BTreeMap<String, BTreeSet<usize>> {
        let mut stages: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (id, work) in &self.calls {
            let operands = &self.func.op(*id).operands;
            for p in operands.iter().flat_map(|x| &self.given[x.0 as usize]) {
                let name = self.func.value(*p).name.clone().unwrap_or_default();
                stages.entry(name).or_default().insert(work.stage);
            }
        }
        stages
    }
}

fn inlined(module: &Module, func: &Func, works: &BTreeMap<FuncId, Work>) -> Func {
    let goes = |op: &weft_ir::module::OpData| {
        callee(op).filter(|f| op.op == Op::Call && !works.contains_key(f))
    };
    let mut func = func.clone();
    while func.body_ops().any(|(_, op)| goes(op).is_some()) {
        let mut copy = Copier::new(&func, &func.name);
        copy.params();
        for (id, op) in func.body_ops() {
            let Some(f) = goes(op) else {
                copy.op(id);
                continue;
            };
            let xs = copy.mapped(id).operands;
            let to = std::mem::replace(&mut copy.to, weft_ir::builder::Builder::new(""));
            let (to, results) = splice(module.func(f), to, &xs);
            copy.to = to;
            op.results.iter().zip(results).for_each(|(from, to)| copy.bind(*from, to));
        }
        let next = copy.finish();
        func = next;
    }
    func
}

/// The stage that a result belongs to: the last that has a part in it.
pub fn home(flat: &Flat, v: ValueId) -> Option<Work> {
    flat.leaves(v)
        .iter()
        .filter_map(|x| flat.work(*x))
        .reduce(|a, b| Work { stage: a.stage.max(b.stage), half: a.half.max(b.half) })
}

/// An error of this pass's own making.
pub fn broken(what: &str) -> PassError {
    PassError::new(format!("the step is not as `train_step` and `shard` leave it: {what}"))
}
