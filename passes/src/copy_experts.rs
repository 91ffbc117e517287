//! Several copies of some experts, among which tokens take turns.
//!
//! ```text
//! weight @up : f32[2, 4, 8, 8] at ..            weight @up : f32[2, 6, 8, 8] placed 0 at ..
//!                                               weight @places : i32[2, 4, 64] places 0
//!                                               layer [0, 1, 2, 3, 0, 1]
//!                                               layer [..]
//! %offsets, %order = route %ids              => %1 = take %places, (%ids 64 + token mod 64)
//!   {experts = 4} : i32[5], i32[R]              %offsets, %order = route %1
//!                                                 {experts = 6} : i32[7], i32[R]
//! %z = grouped_matmul %rows, %up, %offsets      %z = grouped_matmul %rows, %up, %offsets
//! ```
//!
//! Why: ranks share the experts of a layer evenly, and tokens do not; a popular expert at several
//! places is as many ranks' work. A *place* has the weights of the expert that the placement (one
//! line a layer: `Module::placement`, from loads or in order) has there; places of a rank follow
//! one another. What was a choice of experts becomes one of places where rows are routed, and
//! nowhere else: loads are still counted by expert. Which place a token takes is looked up in a
//! table, by expert and the token's number: as many turns as `TURNS`, each rank's its own
//! (`weft_graph::WeightInfo::turns`). A row is computed as its expert would, so values are those of
//! one copy each, bit for bit. Cost: memory for the copies, a look-up for each choice. Entries are
//! those that serve: copies have no gradients. Requires: to stand before `shard`, which divides
//! places as it does experts.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, SymKind, product};
use weft_ir::module::{
    Func, FuncId, Init, Module, OpData, OpId, Placed, Store, StoreKind, ValueId,
};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

use crate::rewrite::{Copier, callee, carry, stacked};
use crate::shard::experts::{before, source};
use crate::{Copies, Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "copy_experts", requires: &[], establishes: &[], run };

/// Turns in a table: copies of an expert get shares that differ by one of so many.
const TURNS: u64 = 64;

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(copies) = &cx.copies else { return Ok(Stats::default()) };
    if module.find("train_step").is_some() {
        return Err(PassError::new("copies of experts are for serving: they have no gradients"));
    }
    let mut all: Vec<Asks> = vec![];
    for func in &module.funcs {
        let asks = Asks::of(func, &all).map_err(|e| e.within(func))?;
        all.push(asks);
    }
    let more = copies.redundant;
    for i in 0..module.funcs.len() {
        let func = module.funcs[i].clone();
        for (_, op) in func.body_ops().filter(|(_, op)| op.op == Op::Route) {
            let rows = op.attrs.get_dim("rows").into_iter().flat_map(|d| d.symbols().next());
            for sym in rows {
                let n = n_experts(op)? + more;
                if let SymKind::Ragged { segments, .. } = &mut module.syms[sym.0 as usize].kind {
                    *segments = n;
                }
            }
        }
        let is_entry = !func.result_names.is_empty();
        let tables = if is_entry { stores(module, &func, &all, i, copies)? } else { vec![] };
        let place = FuncId(i as u32);
        let rewrite = Rewrite { module, func: &func, all: &all, at: place, more, tables };
        module.funcs[i] = rewrite.func().map_err(|e| e.within(&func))?;
    }
    Ok(Stats::one("copies of experts", if all.is_empty() { 0 } else { more as usize }))
}

/// Which choice of experts a segment's offsets are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    /// The n-th of the tables that a function asks for.
    Table(usize),
    /// What it is given as this parameter.
    Given(usize),
}

/// What a function has to do with experts.
#[derive(Default)]
struct Asks {
    /// Parameters that hold weights of experts: along which dim, and whose.
    weights: BTreeMap<usize, (usize, Choice)>,
    /// Parameters that are offsets by expert.
    offsets: BTreeSet<usize>,
    /// The dims of the tables that it looks up, or that functions which it calls do.
    tables: Vec<Vec<u64>>,
    /// For each route and call, the first of its tables.
    first: BTreeMap<OpId, usize>,
}

impl Asks {
    /// Callees stand before their callers.
    fn of(func: &Func, known: &[Asks]) -> Result<Asks, PassError> {
        let mut asks = Asks::default();
        let mut routed: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (id, op) in func.body_ops() {
            asks.first.insert(id, asks.tables.len());
            if op.op == Op::Route {
                routed.insert(op.results[0], asks.tables.len());
                asks.tables.push(vec![n_experts(op)?, TURNS]);
            }
            if op.op == Op::GroupedMatmul {
                let choice = asks.choice(func, &routed, op.operands[2]);
                asks.found(func, op.operands[1], 0, choice.map_err(|e| e.at(func, op))?);
            }
            let Some(inner) = callee(op).and_then(|f| known.get(f.0 as usize)) else { continue };
            let first = asks.tables.len();
            let count = (op.op == Op::Repeat).then(|| op.attrs.get_int("count")).flatten();
            for table in &inner.tables {
                let count = count.and_then(|n| u64::try_from(n).ok());
                asks.tables.push(count.into_iter().chain(table.iter().copied()).collect());
            }
            for offsets in &inner.offsets {
                let choice = asks.choice(func, &routed, op.operands[*offsets]);
                choice.map_err(|e| e.at(func, op))?;
            }
            for (param, (dim, choice)) in &inner.weights {
                let choice = match *choice {
                    Choice::Table(table) => Choice::Table(first + table),
                    Choice::Given(p) => asks.choice(func, &routed, op.operands[p])?,
                };
                let sliced = (carry(op)..carry(op) + stacked(op)).contains(param);
                asks.found(func, op.operands[*param], dim + usize::from(sliced), choice);
            }
        }
        Ok(asks)
    }

    fn choice(
        &mut self,
        func: &Func,
        routed: &BTreeMap<ValueId, usize>,
        offsets: ValueId,
    ) -> Result<Choice, PassError> {
        if let Some(table) = routed.get(&offsets) {
            return Ok(Choice::Table(*table));
        }
        let Some(param) = func.params.iter().position(|p| *p == offsets) else {
            return Err(PassError::new("segments of rows that no choice of experts makes"));
        };
        self.offsets.insert(param);
        Ok(Choice::Given(param))
    }

    fn found(&mut self, func: &Func, weights: ValueId, dim: usize, choice: Choice) {
        if let Some((param, dim)) = source(func, weights, dim) {
            self.weights.insert(param, (dim, choice));
        }
    }
}

fn n_experts(op: &OpData) -> Result<u64, PassError> {
    let n = op.attrs.get_int("experts").and_then(|n| u64::try_from(n).ok());
    n.ok_or_else(|| PassError::new("a route names no number of experts"))
}

/// Gives an entry's experts their places, and stores to its tables; the names of these.
fn stores(
    module: &mut Module,
    func: &Func,
    all: &[Asks],
    i: usize,
    copies: &Copies,
) -> Result<Vec<String>, PassError> {
    let asks = &all[i];
    let mut first = 0;
    let mut firsts = vec![];
    let mut names = vec![];
    let n_lines: usize = asks.tables.iter().map(|t| lines_of(t)).sum();
    if !copies.lines.is_empty() && copies.lines.len() != n_lines {
        let n = copies.lines.len();
        let why = format!("a placement for {n} layers, and the model has experts in {n_lines}");
        return Err(PassError::new(why));
    }
    for table in &asks.tables {
        let n_experts = table[table.len() - 2];
        for line in first..first + lines_of(table) {
            let given = copies.lines.get(line).cloned();
            let in_order = || (0..n_experts + copies.redundant).map(|p| p % n_experts).collect();
            let given = given.unwrap_or_else(in_order);
            check(&given, line, n_experts, copies.redundant)?;
            match module.placement.get(line) {
                None => module.placement.push(given),
                Some(other) if *other == given => {}
                Some(_) => return Err(PassError::new("entries differ in their experts")),
            }
        }
        let name = (1..).map(|n| if n == 1 { "places".into() } else { format!("places.{n}") });
        let free = |n: &String| !names.contains(n) && taken(module, n, first);
        let name = name.into_iter().find(free).expect("some number is free");
        let store = Store {
            ty: table_type(table),
            kind: StoreKind::Weight,
            templates: vec![],
            starts: vec![],
            init: Init::Constant(0.0),
            part: None,
            placed: Some(Placed::Table(first as u64)),
        };
        module.stores.insert(name.clone(), store);
        names.push(name);
        firsts.push(first);
        first += lines_of(table);
    }
    for (param, (dim, choice)) in &asks.weights {
        let name = func.value(func.params[*param]).name.clone().unwrap_or_default();
        let (Choice::Table(table), Some(store)) = (choice, module.stores.get_mut(&name)) else {
            let why = format!("`{name}` has weights of experts and is not stored");
            return Err(PassError::new(why));
        };
        let lines = lines_of(&asks.tables[*table]);
        let before: u64 = store.ty.dims[..*dim].iter().filter_map(|d| d.as_fixed()).product();
        let stacked = store.starts.len() == dim + 1 && store.starts[*dim] == 0;
        if !stacked || before != lines as u64 {
            let why = format!("`{name}` has experts of other layers than those that choose them");
            return Err(PassError::new(why));
        }
        store.ty = grown(&store.ty, *dim, copies.redundant);
        store.placed = Some(Placed::Weights(firsts[*table] as u64));
    }
    Ok(names)
}

/// Is a name free, or that of this table already?
fn taken(module: &Module, name: &str, first: usize) -> bool {
    let placed = module.stores.get(name).map(|store| store.placed);
    placed.is_none_or(|placed| placed == Some(Placed::Table(first as u64)))
}

fn table_type(table: &[u64]) -> Type {
    Type::i32(table.iter().map(|n| Dim::fixed(*n)).collect::<Vec<_>>())
}

fn lines_of(table: &[u64]) -> usize {
    table[..table.len() - 2].iter().product::<u64>() as usize
}

fn check(line: &[u64], layer: usize, n_experts: u64, redundant: u64) -> Result<(), PassError> {
    let n = n_experts + redundant;
    if line.len() as u64 != n {
        return Err(PassError::new(format!(
            "the placement of layer {layer} has {} places for {n_experts} experts and {redundant} \
             copies",
            line.len()
        )));
    }
    if let Some(other) = line.iter().find(|e| **e >= n_experts) {
        let why = format!("the placement of layer {layer} names expert {other} of {n_experts}");
        return Err(PassError::new(why));
    }
    match (0..n_experts).find(|e| !line.contains(e)) {
        None => Ok(()),
        Some(e) => Err(PassError::new(format!(
            "the placement of layer {layer} has no place for expert {e}"
        ))),
    }
}

/// A type with so many more experts along `dim`.
fn grown(ty: &Type, dim: usize, more: u64) -> Type {
    let mut ty = ty.clone();
    ty.dims[dim] = Dim::fixed(ty.dims[dim].as_fixed().unwrap_or(0) + more);
    ty
}

/// A function whose experts have copies.
struct Rewrite<'a> {
    module: &'a Module,
    func: &'a Func,
    all: &'a [Asks],
    at: FuncId,
    more: u64,
    /// The names of the tables, in an entry.
    tables: Vec<String>,
}

impl Rewrite<'_> {
    fn asks(&self) -> &Asks {
        &self.all[self.at.0 as usize]
    }

    fn func(self) -> Result<Func, PassError> {
        let func = self.func;
        let mut copy = Copier::new(func, &func.name);
        let place = self.place();
        let mut tables = vec![];
        // Values that hold weights, with the dim of experts.
        let mut weights: BTreeMap<ValueId, usize> = BTreeMap::new();
        for i in 0..=func.params.len() {
            if i == place {
                tables = self.params(&mut copy);
            }
            let Some(p) = func.params.get(i) else { continue };
            let name = func.value(*p).name.as_deref().unwrap_or("p");
            if let Some((dim, _)) = self.asks().weights.get(&i) {
                let more = copy.to.param(name, grown(func.ty(*p), *dim, self.more));
                copy.set(*p, more);
                weights.insert(*p, *dim);
            } else if self.asks().offsets.contains(&i) {
                let more = copy.to.param(name, grown(func.ty(*p), 0, self.more));
                copy.set(*p, more);
            } else {
                copy.param(*p, "p");
            }
        }
        for (id, op) in func.body_ops() {
            copy.to.at(&op.spans);
            self.op(&mut copy, id, op, &tables, &mut weights).map_err(|e| e.at(func, op))?;
        }
        let mut new = copy.finish();
        for (param, _) in &mut new.donated {
            if *param as usize >= place {
                *param += tables.len() as u32;
            }
        }
        Ok(new)
    }

    /// Where tables stand among a function's parameters: last of the stacks where a loop runs it.
    /// Who calls it is not rewritten yet.
    fn place(&self) -> usize {
        let ops = self.module.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op));
        let mut looped = ops.filter(|op| op.op == Op::Repeat && callee(op) == Some(self.at));
        let looped = looped.next().map(|op| carry(op) + stacked(op));
        looped.unwrap_or(self.func.params.len())
    }

    fn params(&self, copy: &mut Copier) -> Vec<ValueId> {
        let mut made = vec![];
        for (i, table) in self.asks().tables.iter().enumerate() {
            let name = self.tables.get(i).map_or("places", String::as_str);
            made.push(copy.to.param(name, table_type(table)));
        }
        made
    }

    fn op(
        &self,
        copy: &mut Copier,
        id: OpId,
        op: &OpData,
        tables: &[ValueId],
        weights: &mut BTreeMap<ValueId, usize>,
    ) -> Result<(), PassError> {
        let first = self.asks().first.get(&id).copied().unwrap_or(0);
        if op.op == Op::Route {
            return self.route(copy, op, tables[first]);
        }
        if let Some(f) = callee(op) {
            return self.call(copy, op, f, &tables[first..]);
        }
        let xs: Vec<ValueId> = op.operands.iter().map(|x| copy.get(*x)).collect();
        let same = |x: &ValueId| copy.to.ty(copy.get(*x)) == self.func.ty(*x);
        if op.operands.iter().all(same) {
            copy.op(id);
            return Ok(());
        }
        let mut attrs = op.attrs.clone();
        if let Some(dim) = op.operands.first().and_then(|x| weights.get(x).copied()) {
            let rank = self.func.ty(op.results[0]).rank();
            let Some(at) = (0..rank).find(|d| before(self.func, op, *d) == Some(dim)) else {
                return Err(PassError::new("reads the weights of all experts, of some twice"));
            };
            if op.op == Op::Reshape {
                let ty = grown(self.func.ty(op.results[0]), at, self.more);
                attrs = attrs.with("shape", Attr::Dims(ty.dims));
            }
            weights.insert(op.results[0], at);
        } else if op.op != Op::GroupedMatmul {
            return Err(PassError::new("reads what experts have by their number"));
        }
        let made = copy.to.emit_all(op.op, &xs, attrs)?;
        op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
        Ok(())
    }

    fn call(
        &self,
        copy: &mut Copier,
        op: &OpData,
        f: FuncId,
        tables: &[ValueId],
    ) -> Result<(), PassError> {
        let n = self.all[f.0 as usize].tables.len();
        let mut xs: Vec<ValueId> = op.operands.iter().map(|x| copy.get(*x)).collect();
        let mut attrs = op.attrs.clone();
        let at = match op.op {
            Op::Repeat => {
                attrs = attrs.int("xs", (stacked(op) + n) as i64);
                carry(op) + stacked(op)
            }
            _ => xs.len(),
        };
        xs.splice(at..at, tables[..n].iter().copied());
        let made = copy.to.emit_calling(self.module, op.op, &xs, attrs)?;
        op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
        Ok(())
    }

    /// The rows of each expert to its places.
    fn route(&self, copy: &mut Copier, op: &OpData, table: ValueId) -> Result<(), PassError> {
        let ids = copy.get(op.operands[0]);
        let places = look_up(&mut copy.to, ids, table)?;
        let attrs = op.attrs.clone().int("experts", (n_experts(op)? + self.more) as i64);
        let made = copy.to.emit_all(op.op, &[places], attrs)?;
        op.results.iter().zip(made).for_each(|(r, made)| copy.bind(*r, made));
        Ok(())
    }
}

/// The places of `ids`, i32[.., active]: each token's turn.
fn look_up(b: &mut Builder, ids: ValueId, table: ValueId) -> Result<ValueId, PassError> {
    let dims = b.dims(ids);
    let many = || PassError::new("too many choices of experts to count");
    let all = product(&dims).ok_or_else(many)?;
    let active = dims.last().and_then(|d| d.as_fixed()).ok_or_else(many)?;
    let sizes: Vec<u64> = b.dims(table).iter().filter_map(|d| d.as_fixed()).collect();
    let flat = Type { dtype: DType::I32, ..Type::i32([all]) };
    let number = |b: &mut Builder, n: u64| b.constant(n as f64, flat.clone());
    let attrs = Attrs::new().int("dim", 0).with("type", Attr::Type(flat.clone()));
    let place = b.emit(Op::Iota, &[], attrs)?;
    let (active, turns) = (number(b, active)?, number(b, sizes[1])?);
    let token = b.binary(Op::Div, place, active)?;
    let rounds = b.binary(Op::Div, token, turns)?;
    let before = b.binary(Op::Mul, rounds, turns)?;
    let turn = b.binary(Op::Sub, token, before)?;
    let ids = b.reshape(ids, &[all])?;
    let row = b.binary(Op::Mul, ids, turns)?;
    let at = b.binary(Op::Add, row, turn)?;
    let table = b.reshape(table, &[Dim::fixed(sizes[0] * sizes[1])])?;
    let places = b.binary(Op::Take, table, at)?;
    Ok(b.reshape(places, &dims)?)
}
