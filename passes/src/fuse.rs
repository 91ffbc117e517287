//! Run pointwise and row ops that follow each other as one kernel.
//!
//! ```text
//! %h = add %x, %o : f32[B, S, 256]                   %h, %n = fused %x, %o, %g {func = @f.fused}
//! %n, %r = rms_norm %h, %g : f32[B, S, 256], f32[B, S]  =>
//! return %h, %n                                      return %h, %n    # and @f.fused holds both
//! ```
//!
//! Why: what passes between the ops stays in registers instead of being written and read, and a
//! launch is saved. Movement and constants are copied into each region that reads them; products go
//! on seeing them from outside. `groups.rs` says which ops go together. Numbers stay the same: an
//! op's result is rounded as if it ran alone. Cost: a search for paths for each op, O(ops²) at
//! worst. Requires: `inline`.

mod groups;

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, OpId, Span, ValueId};
use weft_ir::op::Op;

use crate::rewrite::{Copier, retarget};
use crate::{Pass, PassCx, PassError, Stats};
use groups::{Graph, Kind, group};

pub const PASS: Pass = Pass { name: "fuse", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut counts = [("regions", 0), ("ops fused", 0)];
    let held: BTreeSet<FuncId> = regions(module);
    let old = std::mem::take(&mut module.funcs);
    let mut moved: Vec<FuncId> = vec![];
    for (i, mut func) in old.into_iter().enumerate() {
        retarget(&mut func, &|f| moved[f.0 as usize]);
        if !held.contains(&FuncId(i as u32)) {
            func = fuse(module, func, &mut counts)?;
        }
        moved.push(module.add_func(func));
    }
    Ok(Stats { counts: counts.to_vec() })
}

/// Functions that are regions already.
fn regions(module: &Module) -> BTreeSet<FuncId> {
    let ops = module.funcs.iter().flat_map(|f| f.body_ops());
    let fused = ops.filter(|(_, op)| op.op == Op::Fused);
    fused.filter_map(|(_, op)| op.attrs.get_func("func")).collect()
}

fn fuse(
    module: &mut Module,
    func: Func,
    counts: &mut [(&'static str, usize); 2],
) -> Result<Func, PassError> {
    let graph = Graph::new(module, &func);
    let groups: Vec<Vec<usize>> = group(&graph).into_iter().filter(|g| g.len() > 1).collect();
    if groups.is_empty() {
        return Ok(func);
    }
    let mut made = vec![];
    for members in &groups {
        let region = Region::new(&graph, members).map_err(|e| e.within(&func))?;
        let name = module.fresh_func_name(&format!("{}.fused", func.name));
        let mut body = region.func.clone();
        body.name = name;
        made.push((region, module.add_func(body)));
        counts[0].1 += 1;
        counts[1].1 += members.len();
    }
    rewrite(module, &graph, &groups, made)
}

/// A group of ops as a function.
struct Region {
    func: Func,
    params: Vec<ValueId>,
    /// Values of the source that are results, and their dims in the region where those differ.
    results: Vec<(ValueId, Option<Vec<Dim>>)>,
    spans: Vec<Span>,
}

impl Region {
    fn new(graph: &Graph, members: &[usize]) -> Result<Region, PassError> {
        let func = graph.func;
        let mut part = Part { graph, members, copy: Copier::new(func, ""), params: vec![] };
        for at in members {
            part.member(func.body[*at]);
        }
        let mut results = vec![];
        let mut values = vec![];
        for (v, dims) in graph.results_of(members) {
            let mut value = part.copy.get(v);
            let dims = Some(dims).filter(|dims| *dims != func.ty(v).dims);
            if let Some(dims) = &dims {
                value = part.copy.to.reshape(value, dims)?;
            }
            values.push(value);
            results.push((v, dims));
        }
        let mut spans: Vec<Span> = vec![];
        for at in members {
            let new = func.op(func.body[*at]).spans.iter().filter(|s| !spans.contains(s));
            spans.extend(new.copied().collect::<Vec<_>>());
        }
        Ok(Region { params: part.params, func: part.copy.to.finish(values), results, spans })
    }
}

struct Part<'a> {
    graph: &'a Graph<'a>,
    members: &'a [usize],
    copy: Copier<'a>,
    params: Vec<ValueId>,
}

impl Part<'_> {
    fn member(&mut self, id: OpId) {
        let op = self.graph.func.op(id);
        for x in &op.operands {
            self.operand(*x);
        }
        self.copy.to.at(&op.spans);
        self.copy.op(id);
    }

    /// Makes an operand known: copied if it is movement or a constant, else a parameter.
    fn operand(&mut self, v: ValueId) {
        if self.copy.try_get(v).is_some() {
            return;
        }
        let func = self.graph.func;
        if let Some((at, id)) = self.graph.maker(v) {
            if self.graph.kind(at) == Kind::Moves {
                self.member(id);
                return;
            }
            debug_assert!(!self.members.contains(&at));
        }
        let name = format!("x{}", self.params.len());
        let param = self.copy.to.param(&name, func.ty(v).clone());
        self.copy.set(v, param);
        self.params.push(v);
    }
}

/// The function with a `fused` in the place of each group, every op after those it needs and else
/// in the old order.
fn rewrite(
    module: &Module,
    graph: &Graph,
    groups: &[Vec<usize>],
    made: Vec<(Region, FuncId)>,
) -> Result<Func, PassError> {
    let func = graph.func;
    let of: BTreeMap<usize, usize> = groups
        .iter()
        .enumerate()
        .flat_map(|(g, members)| members.iter().map(move |at| (*at, g)))
        .collect();
    // A group stands where its last op stood.
    let place = |at: usize| of.get(&at).map_or(at, |g| *groups[*g].last().expect("not empty"));
    let wanted = movement_outside(graph, &of);
    let mut needs: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for at in 0..func.body.len() {
        if graph.kind(at) == Kind::Moves && !wanted.contains(&at) {
            continue;
        }
        let own = place(at);
        let entry = needs.entry(own).or_default();
        match of.get(&at) {
            Some(g) => {
                let makers = made[*g].0.params.iter().filter_map(|v| graph.maker(*v));
                entry.extend(makers.map(|(m, _)| place(m)));
            }
            None => {
                let operands = func.op(func.body[at]).operands.iter();
                let makers = operands.filter_map(|v| graph.maker(*v));
                entry.extend(makers.map(|(m, _)| place(m)));
            }
        }
        entry.extend(graph.before(at).iter().map(|earlier| place(*earlier)));
        entry.remove(&own);
    }
    let mut copy = Copier::new(func, &func.name);
    copy.params();
    let mut done: BTreeSet<usize> = BTreeSet::new();
    while done.len() < needs.len() {
        let ready = needs.iter().find(|(at, before)| !done.contains(at) && before.is_subset(&done));
        let Some((&at, _)) = ready else {
            return Err(PassError::new("regions need each other").within(func));
        };
        match of.get(&at) {
            None => copy.op(func.body[at]),
            Some(g) => put(module, &mut copy, &made[*g])?,
        }
        done.insert(at);
    }
    Ok(copy.finish())
}

/// Movement and constants that something outside the groups reads.
fn movement_outside(graph: &Graph, of: &BTreeMap<usize, usize>) -> BTreeSet<usize> {
    let func = graph.func;
    let apart = |at: &usize| graph.kind(*at) != Kind::Moves && !of.contains_key(at);
    let mut open: Vec<ValueId> = func.results.clone();
    for at in (0..func.body.len()).filter(apart) {
        open.extend(&func.op(func.body[at]).operands);
    }
    let mut wanted = BTreeSet::new();
    while let Some(v) = open.pop() {
        let Some((at, id)) = graph.maker(v) else { continue };
        if graph.kind(at) == Kind::Moves && wanted.insert(at) {
            open.extend(&func.op(id).operands);
        }
    }
    wanted
}

fn put(module: &Module, copy: &mut Copier, made: &(Region, FuncId)) -> Result<(), PassError> {
    let (region, id) = made;
    let operands: Vec<ValueId> = region.params.iter().map(|v| copy.get(*v)).collect();
    copy.to.at(&region.spans);
    let attrs = Attrs::new().func("func", *id);
    let values = copy.to.emit_calling(module, Op::Fused, &operands, attrs)?;
    for ((v, dims), value) in region.results.iter().zip(values) {
        let mut value = value;
        if dims.is_some() {
            let own = copy.from.ty(*v).dims.clone();
            value = Builder::reshape(&mut copy.to, value, &own)?;
        }
        copy.bind(*v, value);
    }
    Ok(())
}
