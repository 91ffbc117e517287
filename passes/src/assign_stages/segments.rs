//! Repeats cut at the boundaries of stages, with the stores whose slices they read.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::module::{Func, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;

use super::{is_weight, n_units, put};
use crate::PassError;
use crate::rewrite::{Copier, carry, stacked};

/// By the name of a stacked store: for each of its parts the stage, the first index and the length.
pub type Divided = BTreeMap<String, Vec<Part>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    pub stage: usize,
    from: usize,
    len: usize,
}

/// A function whose repeats over weights lie on one stage each.
pub struct Cut {
    pub func: Func,
    /// The stages of those repeats.
    pub stages: BTreeMap<OpId, usize>,
    /// The parameters that are parts of weights.
    pub pieces: BTreeSet<ValueId>,
    pub divided: Divided,
}

/// The name of the part of a store that belongs to a stage.
fn part_name(store: &str, stage: usize) -> String {
    format!("{store}.stage.{stage}")
}

/// Cuts `func`, stage s of which has units `cuts[s]..cuts[s + 1]`.
pub fn cut(module: &Module, func: &Func, cuts: &[usize]) -> Result<Cut, PassError> {
    let stage_of = |unit: usize| cuts.iter().rposition(|c| *c <= unit).unwrap_or(0);
    let mut parts_of: BTreeMap<OpId, Vec<Part>> = BTreeMap::new();
    let mut divided = Divided::new();
    let mut units = 0;
    for (id, op) in func.body_ops() {
        let n = n_units(module, func, op);
        let mut parts: Vec<Part> = vec![];
        for i in 0..n {
            let stage = stage_of(units + i);
            match parts.last_mut().filter(|p| p.stage == stage) {
                Some(part) => part.len += 1,
                None => parts.push(Part { stage, from: i, len: 1 }),
            }
        }
        units += n;
        if parts.len() > 1 {
            if op.attrs.get_flag("reverse") {
                return Err(PassError::new("layers in reverse cannot be stages").at(func, op));
            }
            for x in &op.operands[carry(op)..carry(op) + stacked(op)] {
                let Some(name) =
                    func.value(*x).name.clone().filter(|_| is_weight(module, func, *x))
                else {
                    continue;
                };
                if module.stores[&name].starts.is_empty() {
                    let why =
                        format!("`{name}` is divided among stages, and its layers have no names");
                    return Err(PassError::new(why).at(func, op));
                }
                let users = func.body_ops().filter(|(_, op)| op.operands.contains(x)).count();
                if users > 1 || divided.insert(name.clone(), parts.clone()).is_some() {
                    let why = format!("`{name}` is divided among stages, and read by others too");
                    return Err(PassError::new(why).at(func, op));
                }
            }
        }
        if !parts.is_empty() {
            parts_of.insert(id, parts);
        }
    }
    build(module, func, &parts_of, divided)
}

fn build(
    module: &Module,
    func: &Func,
    parts_of: &BTreeMap<OpId, Vec<Part>>,
    divided: Divided,
) -> Result<Cut, PassError> {
    let mut copy = Copier::new(func, &func.name);
    let mut pieces: BTreeMap<ValueId, Vec<ValueId>> = BTreeMap::new();
    for p in &func.params {
        let name = func.value(*p).name.clone().unwrap_or_default();
        let Some(parts) = divided.get(&name) else {
            copy.param(*p, "p");
            continue;
        };
        for part in parts {
            let ty = with_len(func.ty(*p), part.len);
            let piece = copy.to.param(&part_name(&name, part.stage), ty);
            pieces.entry(*p).or_default().push(piece);
        }
    }
    let mut stages = BTreeMap::new();
    for (id, op) in func.body_ops() {
        copy.to.at(&op.spans);
        match parts_of.get(&id).map(Vec::as_slice) {
            None => copy.op(id),
            Some([one]) => {
                copy.op(id);
                stages.extend(copy.to.func.body.last().map(|id| (*id, one.stage)));
            }
            Some(parts) => {
                let results = split(module, &mut copy, op, parts, &pieces, &mut stages)
                    .map_err(|e| e.at(func, op))?;
                op.results.iter().zip(results).for_each(|(from, to)| copy.bind(*from, to));
            }
        }
    }
    let pieces = pieces.into_values().flatten().collect();
    Ok(Cut { func: copy.finish(), stages, pieces, divided })
}

fn with_len(ty: &weft_ir::ty::Type, len: usize) -> weft_ir::ty::Type {
    let mut dims = ty.dims.clone();
    dims[0] = Dim::fixed(len as u64);
    weft_ir::ty::Type { dims, ..ty.clone() }
}

/// A repeat for each part, and the stacks of all.
fn split(
    module: &Module,
    copy: &mut Copier,
    op: &OpData,
    parts: &[Part],
    pieces: &BTreeMap<ValueId, Vec<ValueId>>,
    stages: &mut BTreeMap<OpId, usize>,
) -> Result<Vec<ValueId>, PassError> {
    let (n, last) = (carry(op), carry(op) + stacked(op));
    let mut carried: Vec<ValueId> = op.operands[..n].iter().map(|x| copy.get(*x)).collect();
    let mut stacks: Vec<Vec<ValueId>> = vec![vec![]; op.results.len() - n];
    for (i, part) in parts.iter().enumerate() {
        let mut xs = carried.clone();
        for x in &op.operands[n..last] {
            xs.push(match pieces.get(x) {
                Some(own) => own[i],
                None => {
                    let whole = copy.try_get(*x);
                    slice(&mut copy.to, whole, part)?
                }
            });
        }
        xs.extend(op.operands[last..].iter().map(|x| copy.get(*x)));
        let attrs = op.attrs.clone().int("count", part.len as i64);
        let results = copy.to.emit_calling(module, Op::Repeat, &xs, attrs)?;
        stages.extend(copy.to.func.body.last().map(|id| (*id, part.stage)));
        carried = results[..n].to_vec();
        stacks.iter_mut().zip(&results[n..]).for_each(|(all, r)| all.push(*r));
    }
    for all in stacks {
        carried.push(copy.to.emit(Op::Concat, &all, Attrs::new().int("dim", 0))?);
    }
    Ok(carried)
}

fn slice(b: &mut Builder, x: Option<ValueId>, part: &Part) -> Result<ValueId, PassError> {
    let x = x.ok_or_else(|| PassError::new("a stack is divided among stages twice"))?;
    let attrs = Attrs::new().int("dim", 0).int("start", part.from as i64);
    Ok(b.emit(Op::Slice, &[x], attrs.int("len", part.len as i64))?)
}

/// The turns of a repeat one after the other.
pub fn unroll(
    copy: &mut Copier,
    body: &Func,
    op: &OpData,
    xs: &[ValueId],
) -> Result<Vec<ValueId>, PassError> {
    let (n, last) = (carry(op), carry(op) + stacked(op));
    let count = op.attrs.get_int("count").unwrap_or(0) as usize;
    let mut carried = xs[..n].to_vec();
    let mut stacks: Vec<Vec<ValueId>> = vec![vec![]; op.results.len() - n];
    let turns: Vec<usize> = match op.attrs.get_flag("reverse") {
        true => (0..count).rev().collect(),
        false => (0..count).collect(),
    };
    for i in turns {
        let mut args = carried.clone();
        for x in &xs[n..last] {
            let of_turn = match count {
                1 => *x,
                _ => slice(&mut copy.to, Some(*x), &Part { stage: 0, from: i, len: 1 })?,
            };
            let dims = copy.to.dims(of_turn)[1..].to_vec();
            args.push(copy.to.reshape(of_turn, &dims)?);
        }
        args.extend(&xs[last..]);
        let results = put(copy, body, &args);
        carried = results[..n].to_vec();
        for (all, r) in stacks.iter_mut().zip(&results[n..]) {
            let dims = [&[Dim::fixed(1)], &copy.to.dims(*r)[..]].concat();
            let one = copy.to.reshape(*r, &dims)?;
            all.insert(if op.attrs.get_flag("reverse") { 0 } else { all.len() }, one);
        }
    }
    for all in stacks {
        carried.push(match all[..] {
            [one] => one,
            _ => copy.to.emit(Op::Concat, &all, Attrs::new().int("dim", 0))?,
        });
    }
    Ok(carried)
}

/// Stores of the parts in the places of those that were divided.
pub fn divide_stores(module: &mut Module, divided: &Divided) {
    for (name, store) in std::mem::take(&mut module.stores) {
        let Some(parts) = divided.get(&name) else {
            module.stores.insert(name, store);
            continue;
        };
        for part in parts {
            let mut own = store.clone();
            own.ty = with_len(&store.ty, part.len);
            if let Some(first) = own.starts.first_mut() {
                *first += part.from as u64;
            }
            module.stores.insert(part_name(&name, part.stage), own);
        }
    }
}
