//! Divide products among the ranks along `tensor` (arXiv 1909.08053).
//!
//! ```text
//! weight @up : f32[8, 6]                       weight @up : f32[4{tensor}, 6]
//! weight @down : f32[6, 8]                     weight @down : f32[6, 4{tensor}]
//!                                              %1 = spread %x {axis = tensor}
//! %a = matmul %x, %up {ty} : f32[B, 8]    =>   %a = matmul %1, %up {ty} : f32[B, 4]
//! %b = sigmoid %a : f32[B, 8]                  %b = sigmoid %a : f32[B, 4]
//! %y = matmul %b, %down {ty} : f32[B, 6]       %2 = matmul %b, %down {ty} : f32[B, 6]
//!                                              %y = all_reduce %2 {axis = tensor}
//! ```
//!
//! Why: weights, and what is computed with them, are too much for one device; here a rank has a
//! part of a weight and never another. Which dims can be cut follows from the ops (`families`): a
//! dim and all that it becomes are one family (heads, the inner width of a feed-forward layer, the
//! vocabulary), and a family is cut if some weight has it, no op needs it whole, and no group of
//! elements with one scale would be cut. A sum over a cut dim is a part of the sum: an
//! `all_reduce` makes it whole, behind what is linear in it (the routed and the shared experts of a
//! token are added first). Where all ranks make something of one value stands `spread`, whose
//! derivative is an `all_reduce`; so `autodiff`, which comes next, needs to know nothing else, and
//! gradients and optimizer states are as their weights. What is not cut every rank computes alike,
//! to the bit. Stages of a pipeline are cut afterwards, so that weights are divided alike with one
//! and without. Cost: one walk for the families, one to rewrite; for each layer two sums over ranks
//! forward and two backward. Requires: `batch_sums`; before `assign_stages` and `autodiff`.

pub mod families;
mod parts;

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::module::{FuncId, Module, Span, StoreKind, ValueId};
use weft_ir::ty::AxisId;

use crate::policy::Policy;
use crate::schedule_pipeline::AXIS as PIPELINE;
use crate::shard::{DATA, add_axis};
use crate::{Mesh, Pass, PassCx, PassError, Pipeline, Stats};
use families::{Facts, Families, Family};

pub const PASS: Pass = Pass { name: "tensor", requires: &[], establishes: &[], run };

/// The axis whose ranks share each product.
pub const TENSOR: &str = "tensor";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let trains = cx.gradients || cx.train.is_some();
    let Some(mesh) = cx.mesh.as_ref().filter(|m| m.tensor > 1 && trains) else {
        return Ok(Stats::default());
    };
    let n = mesh.tensor;
    let cuts = Cuts::of(module, n, &cx.policy);
    if let Some(why) = cuts.uneven(module, n) {
        return Err(PassError::new(why));
    }
    if cuts.chosen.is_empty() {
        let none = format!("{n} ranks along tensor, and no weight of the model can be cut");
        return Err(PassError::new(match cuts.largest_whole(module) {
            Some((name, why)) => format!("{none}; of `{name}`, the largest: {why}"),
            None => none,
        }));
    }
    let (dims, weights) = (cuts.by_value(module), cuts.by_store());
    let cut = parts::Cut { axis: add_axes(module, mesh, cx.pipeline.as_ref()), n, dims };
    let counts = parts::cut(module, &cut, &weights)?;
    Ok(Stats {
        counts: vec![
            ("weights cut", weights.len()),
            ("sums over ranks", counts.sums),
            ("values spread", counts.spreads),
        ],
    })
}

/// Neighbours along `tensor` are neighbours: the axes outside it come first.
fn add_axes(module: &mut Module, mesh: &Mesh, pipeline: Option<&Pipeline>) -> AxisId {
    if let Some(pipeline) = pipeline {
        add_axis(module, PIPELINE, pipeline.table.n_ranks() as u64, None);
    }
    if mesh.data > 1 {
        add_axis(module, DATA, mesh.data, None);
    }
    add_axis(module, TENSOR, mesh.tensor, None)
}

/// How a weight is kept, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    pub weight: String,
    /// The dim that is cut.
    pub dim: Option<usize>,
    pub why: String,
    /// Who needs it so, if that is an op of the source.
    pub span: Option<Span>,
}

/// What `n` ranks along `tensor` would divide, weight by weight.
pub fn explain(module: &Module, n: u64, policy: &Policy) -> Vec<Line> {
    let cuts = Cuts::of(module, n, policy);
    let stores = cuts.by_store();
    let weights = module.stores.iter().filter(|(_, s)| s.kind == StoreKind::Weight);
    let line = |(name, _): (&String, _)| {
        let (dim, (why, span)) = match stores.get(name) {
            Some((dim, family)) => (Some(*dim), (cuts.with(name, *family), None)),
            None => (None, cuts.why_whole(name)),
        };
        Line { weight: name.clone(), dim, why, span }
    };
    weights.map(line).collect()
}

/// Which families are cut, and why the others are not.
struct Cuts<'a> {
    families: Families<'a>,
    chosen: BTreeSet<Family>,
    /// Families of weights that no op needs whole, and why they are all the same.
    denied: BTreeMap<Family, String>,
    /// Those that only the number of ranks is in the way of.
    uneven: Vec<Family>,
}

impl<'a> Cuts<'a> {
    fn of(module: &'a Module, n: u64, policy: &Policy) -> Cuts<'a> {
        let families = Families::of(module, policy);
        let mut cuts =
            Cuts { families, chosen: BTreeSet::new(), denied: BTreeMap::new(), uneven: vec![] };
        let able = |facts: &Facts| facts.needed_by.is_none() && !facts.weights.is_empty();
        let able = cuts.families.all().filter(|(_, facts)| able(facts));
        let mut able: Vec<(u64, Family)> =
            able.map(|(family, facts)| (elements(module, facts), family)).collect();
        // The largest first; among equals the first of the program.
        able.sort_by_key(|(elements, family)| (std::cmp::Reverse(*elements), *family));
        let beside = beside(module, &cuts.families);
        for (_, family) in able {
            let facts = cuts.families.facts(family);
            let taken = cuts.chosen.iter().find(|c| beside.contains(&pair(family, **c)));
            if let Some(why) = no_groups(facts, n) {
                cuts.denied.insert(family, why);
            } else if facts.sizes.iter().fold(0, |a, b| gcd(a, *b)) == 1 {
                cuts.denied.insert(family, "it cannot be divided".into());
            } else if beside.contains(&pair(family, family)) {
                cuts.denied.insert(family, "some value has it in two dims".into());
            } else if let Some(taken) = taken {
                let (name, _) = &cuts.families.facts(*taken).weights[0];
                cuts.denied.insert(family, format!("what has it is cut along a dim of `{name}`"));
            } else if facts.sizes.iter().any(|size| !size.is_multiple_of(n)) {
                cuts.uneven.push(family);
            } else {
                cuts.chosen.insert(family);
            }
        }
        cuts
    }

    /// What is wrong with the number of ranks.
    fn uneven(&self, module: &Module, n: u64) -> Option<String> {
        let facts = self.families.facts(*self.uneven.first()?);
        let size = facts.sizes.iter().find(|size| !size.is_multiple_of(n))?;
        let all = self.uneven.iter().chain(&self.chosen);
        let sizes = all.flat_map(|family| &self.families.facts(*family).sizes);
        let all = sizes.fold(0, |a, b| gcd(a, *b));
        let nearest = (1..=n).rev().find(|d| all.is_multiple_of(*d)).unwrap_or(1);
        let (name, dim) = &facts.weights[0];
        let dim = dim - module.stores[name].starts.len();
        Some(format!(
            "{n} ranks along tensor do not divide the {size} parts that dim {dim} of `{name}` is \
             made of; the nearest is tensor = {nearest}"
        ))
    }

    /// By function and value: the dim that is cut.
    fn by_value(&self, module: &Module) -> Vec<Vec<Option<usize>>> {
        let of = |f: FuncId| {
            let values = (0..module.func(f).n_values() as u32).map(ValueId);
            let cut = |v| self.families.dims(f, v).position(|d| self.chosen.contains(&d));
            values.map(cut).collect()
        };
        module.func_ids().map(of).collect()
    }

    /// The weights that are cut: the dim, and its family.
    fn by_store(&self) -> BTreeMap<String, (usize, Family)> {
        let mut all = BTreeMap::new();
        for family in &self.chosen {
            for (name, dim) in &self.families.facts(*family).weights {
                all.insert(name.clone(), (*dim, *family));
            }
        }
        all
    }

    /// What is cut with a weight.
    fn with(&self, name: &str, family: Family) -> String {
        let facts = self.families.facts(family);
        let others = facts.weights.iter().map(|(other, _)| other).filter(|other| *other != name);
        let others: Vec<&String> = others.collect();
        let parts = facts.sizes.first().copied().unwrap_or(1);
        match others[..] {
            [] => format!("no op needs the dim whole; it has {parts} parts"),
            [one] => format!("cut with `{one}`; {parts} parts"),
            [one, ..] => format!("cut with `{one}` and {} more; {parts} parts", others.len() - 1),
        }
    }

    /// Why no dim of a weight is cut: of the dims that could have been, what denied it.
    fn why_whole(&self, name: &str) -> (String, Option<Span>) {
        let families: Vec<Family> = self.families.store(name).collect();
        let own =
            |f: &&Family| self.families.facts(**f).weights.iter().any(|(weight, _)| weight == name);
        let own: Vec<&Family> = families.iter().filter(own).collect();
        if let Some(why) = own.iter().find_map(|f| self.denied.get(f)) {
            return (why.clone(), None);
        }
        if own.iter().any(|f| self.uneven.contains(f)) {
            return ("the ranks do not divide it".into(), None);
        }
        let need = own.iter().find_map(|f| self.families.facts(**f).needed_by.as_ref());
        match need {
            Some(need) => (format!("{} needs it whole", need.what), need.span),
            None => ("it has no dim to cut".into(), None),
        }
    }

    fn largest_whole(&self, module: &Module) -> Option<(String, String)> {
        let weights = module.stores.iter().filter(|(_, s)| s.kind == StoreKind::Weight);
        let size = |ty: &weft_ir::ty::Type| ty.elements().map_or(0, |d| d.coeff());
        let largest = weights.max_by_key(|(_, s)| size(&s.ty))?.0;
        Some((largest.clone(), self.why_whole(largest).0))
    }
}

/// Elements of the weights that have a family.
fn elements(module: &Module, facts: &Facts) -> u64 {
    let of =
        |(name, _): &(String, usize)| module.stores[name].ty.elements().map_or(0, |d| d.coeff());
    facts.weights.iter().map(of).fold(0, u64::saturating_add)
}

/// A group of elements with one scale that `n` ranks would have between them.
fn no_groups(facts: &Facts, n: u64) -> Option<String> {
    let whole = |size: u64, group: u64| size.is_multiple_of(n) && (size / n).is_multiple_of(group);
    let (size, group, site) = facts.groups.iter().find(|(size, group, _)| !whole(*size, *group))?;
    Some(format!(
        "{n} ranks would cut a group of {group} of the {size} that `{site}` quantizes together"
    ))
}

/// Families that some value or weight has side by side.
fn beside(module: &Module, families: &Families) -> BTreeSet<(Family, Family)> {
    let mut all = BTreeSet::new();
    let mut add = |dims: Vec<Family>| {
        for (i, a) in dims.iter().enumerate() {
            all.extend(dims[i + 1..].iter().map(|b| pair(*a, *b)));
        }
    };
    for f in module.func_ids() {
        let values = (0..module.func(f).n_values() as u32).map(ValueId);
        values.for_each(|v| add(families.dims(f, v).collect()));
    }
    module.stores.keys().for_each(|name| add(families.store(name).collect()));
    all
}

fn pair(a: Family, b: Family) -> (Family, Family) {
    (a.min(b), a.max(b))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
