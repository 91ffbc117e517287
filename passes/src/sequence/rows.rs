//! Which values a rank has its tokens of, and the program in which it has.
//!
//! A value that all ranks along `tensor` have alike, to the bit, is *alike*. One of those with a
//! dim of tokens may be had by tokens instead: a sum over ranks whose tokens hold more than a
//! number is, and so is what an op makes of such values, unless it needs all tokens at once
//! (`families`). Anything else reads them gathered.

pub mod why;

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::attr::{Attr, Attrs};
use weft_ir::dim::Dim;
use weft_ir::module::{Func, FuncId, Module, OpData, OpId, ValueId};
use weft_ir::op::Op;
use weft_ir::ty::{AxisId, DType, Type};

use crate::PassError;
use crate::autodiff::activity;
use crate::policy::Policy;
use crate::rewrite::{Copier, callee, carry};
use crate::tensor::families::{Families, Family, groups};

/// What was put in.
#[derive(Default)]
pub struct Counts {
    pub ops: usize,
    pub scattered: usize,
    pub gathered: usize,
    pub spreads: usize,
}

/// How an op is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// As it was.
    Whole(Bar),
    /// Token by token.
    Tokens,
    /// It sums over tokens.
    Sum,
}

/// What keeps an op from being done token by token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bar {
    /// It is a call, or between ranks, or reads nothing.
    Kind,
    /// Ranks would cut groups of so many tokens with one scale.
    Group(u64),
    /// It needs all tokens at once.
    AllTokens,
    /// What it makes has no tokens, and is no sum over them.
    NoTokens,
}

/// What is known of a module's values, by function and value.
pub struct Rows<'a> {
    module: &'a Module,
    axis: AxisId,
    n: u64,
    /// The dim of tokens, where there is one.
    tokens: Vec<Vec<Option<usize>>>,
    alike: Vec<Vec<bool>>,
    /// The rank has its tokens of it.
    rows: Vec<Vec<bool>>,
    /// A token of it is more than a number.
    more: Vec<Vec<bool>>,
    /// Made of what has no tokens.
    made_anywhere: Vec<Vec<bool>>,
    /// It may have a derivative.
    active: Vec<Vec<bool>>,
    /// By function and op.
    how: Vec<BTreeMap<OpId, How>>,
    /// By function: the parameters that some repeat carries through it.
    carried: Vec<usize>,
}

impl<'a> Rows<'a> {
    pub fn of(module: &'a Module, axis: AxisId, policy: &Policy) -> Result<Rows<'a>, PassError> {
        let n = module.axes[axis.0 as usize].size;
        let mut families = Families::of(module, policy);
        let of_data = OfData::of(module, &families, n)?;
        let each = |of: &dyn Fn(FuncId, ValueId) -> bool| -> Vec<Vec<bool>> {
            let values = |f: FuncId| (0..module.func(f).n_values() as u32).map(ValueId);
            module.func_ids().map(|f| values(f).map(|v| of(f, v)).collect()).collect()
        };
        let places = |f: FuncId, v: ValueId| -> Vec<usize> {
            let dims = families.dims(f, v).enumerate();
            dims.filter(|(_, family)| of_data.tokens.contains(family)).map(|(d, _)| d).collect()
        };
        let all_places: Vec<Vec<Vec<usize>>> = module
            .func_ids()
            .map(|f| (0..module.func(f).n_values() as u32).map(|v| places(f, ValueId(v))).collect())
            .collect();
        let more = each(&|f, v| {
            let dims = families.dims(f, v).zip(&module.func(f).ty(v).dims);
            let mut others = dims.filter(|(family, _)| !of_data.all.contains(family));
            others.any(|(_, size)| !size.is_one())
        });
        let one = |places: &Vec<usize>| match places[..] {
            [d] => Some(d),
            _ => None,
        };
        let tokens = all_places.iter().map(|f| f.iter().map(one).collect()).collect();
        let deps = activity::deps(module);
        let mut carried = vec![0; module.funcs.len()];
        for (_, op) in module.funcs.iter().flat_map(Func::body_ops) {
            if let Some(g) = callee(op) {
                carried[g.0 as usize] = carry(op).max(carried[g.0 as usize]);
            }
        }
        let mut rows = Rows {
            module,
            axis,
            n,
            tokens,
            alike: each(&|_, _| true),
            rows: each(&|_, _| false),
            more,
            made_anywhere: each(&|_, _| false),
            active: each(&|f, v| !deps[f.0 as usize].deps[v.0 as usize].is_empty()),
            how: vec![],
            carried,
        };
        for f in module.func_ids() {
            let func = module.func(f);
            let how = |(id, op): (OpId, &'a OpData)| {
                let needs = match callee(op) {
                    Some(_) => vec![],
                    None => families.needs(f, op),
                };
                (id, rows.how_of(f, op, &all_places[f.0 as usize], &needs, policy))
            };
            let own = func.body_ops().map(how).collect();
            rows.how.push(own);
        }
        rows.find_alike();
        rows.find_rows();
        rows.find_made_anywhere();
        match rows.rows.iter().flatten().any(|r| *r) {
            true => Ok(rows),
            false => Err(PassError::new(format!(
                "{n} ranks along sequence, and no sum over ranks along tensor has tokens to divide"
            ))),
        }
    }

    fn axis_of(&self, op: &OpData) -> bool {
        op.attrs.get_axis("axis") == Some(self.axis)
    }

    fn tokens(&self, f: FuncId, v: ValueId) -> Option<usize> {
        self.tokens[f.0 as usize][v.0 as usize]
    }

    fn is_rows(&self, f: FuncId, v: ValueId) -> bool {
        self.rows[f.0 as usize][v.0 as usize]
    }

    fn is_alike(&self, f: FuncId, v: ValueId) -> bool {
        self.alike[f.0 as usize][v.0 as usize]
    }

    /// How an op can be done; it may have to be left as it is all the same.
    fn how_of(
        &self,
        f: FuncId,
        op: &OpData,
        places: &[Vec<usize>],
        needs: &[(ValueId, usize)],
        policy: &Policy,
    ) -> How {
        if callee(op).is_some() || op.attrs.get_axis("axis").is_some() || op.operands.is_empty() {
            return How::Whole(Bar::Kind);
        }
        let func = self.module.func(f);
        let of = |v: &ValueId| places[v.0 as usize].len();
        let fits = |v: &ValueId| match self.tokens(f, *v) {
            Some(d) => !needs.contains(&(*v, d)),
            None => of(v) == 0,
        };
        let recipe = op.attrs.get_word("site").and_then(|site| policy.get(site));
        let cut = |(v, d, size, group): &(ValueId, usize, u64, u64)| {
            self.tokens(f, *v) == Some(*d) && !(size / self.n).is_multiple_of(*group)
        };
        let groups = recipe.map(|r| groups(func, op, r)).unwrap_or_default();
        if let Some((.., group)) = groups.iter().find(|g| cut(g)) {
            return How::Whole(Bar::Group(*group));
        }
        if !op.operands.iter().chain(&op.results).all(fits) {
            return How::Whole(Bar::AllTokens);
        }
        let n_with = op.results.iter().filter(|r| of(r) > 0).count();
        if n_with == op.results.len() {
            return How::Tokens;
        }
        let sums = match op.op {
            Op::ReduceSum => true,
            Op::Matmul => op.operands.iter().all(|x| of(x) > 0),
            _ => false,
        };
        if n_with == 0 && sums && op.operands.iter().any(|x| of(x) > 0) {
            How::Sum
        } else {
            How::Whole(Bar::NoTokens)
        }
    }

    /// From all values down to those of which nothing says that ranks have them differently.
    fn find_alike(&mut self) {
        loop {
            let mut differ: Vec<(FuncId, ValueId)> = vec![];
            for f in self.module.func_ids() {
                let func = self.module.func(f);
                if !func.result_names.is_empty() {
                    let cut = |p: &&ValueId| func.ty(**p).axes.iter().any(Option::is_some);
                    differ.extend(func.params.iter().filter(cut).map(|p| (f, *p)));
                }
                for (_, op) in func.body_ops() {
                    match callee(op) {
                        Some(g) => self.differ_by_call(f, op, g, &mut differ),
                        None => {
                            let made = match op.op {
                                Op::AllReduce | Op::AllGather if self.axis_of(op) => true,
                                Op::Part | Op::Spread => false,
                                _ => op.operands.iter().all(|x| self.is_alike(f, *x)),
                            };
                            differ.extend(op.results.iter().filter(|_| !made).map(|r| (f, *r)));
                        }
                    }
                }
            }
            differ.retain(|(f, v)| self.is_alike(*f, *v));
            if differ.is_empty() {
                return;
            }
            for (f, v) in differ {
                self.alike[f.0 as usize][v.0 as usize] = false;
            }
        }
    }

    fn differ_by_call(
        &self,
        f: FuncId,
        op: &OpData,
        g: FuncId,
        differ: &mut Vec<(FuncId, ValueId)>,
    ) {
        let inner = self.module.func(g);
        for (x, p) in op.operands.iter().zip(&inner.params) {
            differ.extend((!self.is_alike(f, *x)).then_some((g, *p)));
        }
        for (i, (y, r)) in op.results.iter().zip(&inner.results).enumerate() {
            if !self.is_alike(g, *r) {
                differ.push((f, *y));
                differ.extend((i < carry(op)).then(|| (g, inner.params[i])));
            }
            // A loop of no turns gives what it was given.
            let given = i < carry(op) && !self.is_alike(g, inner.params[i]);
            differ.extend(given.then_some((f, *y)));
        }
    }

    /// From the sums over ranks to all that is made of them token by token.
    fn find_rows(&mut self) {
        loop {
            let mut found: Vec<(FuncId, ValueId)> = vec![];
            for f in self.module.func_ids() {
                for (id, op) in self.module.func(f).body_ops() {
                    match callee(op) {
                        Some(g) => self.rows_by_call(f, op, g, &mut found),
                        None => {
                            let own = self.is_seed(f, op)
                                || self.how[f.0 as usize][&id] == How::Tokens
                                    && op.operands.iter().any(|x| self.is_rows(f, *x));
                            found.extend(op.results.iter().filter(|_| own).map(|r| (f, *r)));
                        }
                    }
                }
            }
            let new = |(f, v): &(FuncId, ValueId)| {
                self.is_alike(*f, *v) && self.tokens(*f, *v).is_some() && !self.is_rows(*f, *v)
            };
            found.retain(new);
            if found.is_empty() {
                return;
            }
            for (f, v) in found {
                self.rows[f.0 as usize][v.0 as usize] = true;
            }
        }
    }

    /// A sum over ranks whose tokens hold more than a number.
    fn is_seed(&self, f: FuncId, op: &OpData) -> bool {
        let y = op.results[0];
        op.op == Op::AllReduce
            && self.axis_of(op)
            && self.tokens(f, y).is_some()
            && self.more[f.0 as usize][y.0 as usize]
    }

    fn rows_by_call(&self, f: FuncId, op: &OpData, g: FuncId, found: &mut Vec<(FuncId, ValueId)>) {
        let inner = self.module.func(g);
        for (x, p) in op.operands.iter().zip(&inner.params) {
            found.extend(self.is_rows(f, *x).then_some((g, *p)));
        }
        for (i, (y, r)) in op.results.iter().zip(&inner.results).enumerate() {
            if i < self.carried[g.0 as usize] {
                found.extend(self.is_rows(g, *r).then(|| (g, inner.params[i])));
                found.extend(self.is_rows(g, inner.params[i]).then_some((f, *y)));
            } else {
                found.extend(self.is_rows(g, *r).then_some((f, *y)));
            }
        }
    }

    fn find_made_anywhere(&mut self) {
        for f in self.module.func_ids() {
            for (id, op) in self.module.func(f).body_ops() {
                let bare = |x: &ValueId| {
                    self.tokens(f, *x).is_none() || self.made_anywhere[f.0 as usize][x.0 as usize]
                };
                let source = op.op == Op::Constant;
                let able = source || self.how[f.0 as usize][&id] == How::Tokens;
                if able && op.operands.iter().all(bare) {
                    for r in &op.results {
                        self.made_anywhere[f.0 as usize][r.0 as usize] = true;
                    }
                }
            }
        }
    }

    /// A rank's part of a dim.
    fn part(&self, dim: Dim) -> Dim {
        Dim::fixed(dim.coeff() / self.n)
    }

    fn own_type(&self, ty: &Type, d: usize) -> Type {
        let mut dims = ty.dims.clone();
        dims[d] = self.part(dims[d]);
        Type { dims, ..ty.clone() }
    }

    /// The function in which ranks have their tokens.
    pub fn func(&self, id: FuncId, counts: &mut Counts) -> Result<Func, PassError> {
        let func = self.module.func(id);
        let mut made = Made {
            all: self,
            id,
            func,
            copy: Copier::new(func, &func.name),
            own: BTreeMap::new(),
            spread: BTreeMap::new(),
            counts,
        };
        for p in &func.params {
            match self.tokens(id, *p).filter(|_| self.is_rows(id, *p)) {
                None => drop(made.copy.param(*p, "p")),
                Some(d) => {
                    let value = func.value(*p);
                    let name = value.name.as_deref().unwrap_or("p");
                    let own = made.copy.to.param(name, self.own_type(&value.ty, d));
                    made.own.insert(*p, own);
                }
            }
        }
        for (at, op) in func.body_ops() {
            made.copy.to.at(&op.spans);
            made.op(at, op).map_err(|e| e.at(func, op))?;
        }
        let mut results = vec![];
        let is_entry = !func.result_names.is_empty();
        for (i, r) in func.results.iter().enumerate() {
            results.push(made.given(*r, !is_entry && self.returns_rows(id, i))?);
        }
        let mut done = made.copy.to.finish(results);
        done.result_names.clone_from(&func.result_names);
        done.donated.clone_from(&func.donated);
        Ok(done)
    }

    /// Whether a function returns a rank's tokens: what it carries it returns as it takes it.
    fn returns_rows(&self, id: FuncId, result: usize) -> bool {
        let func = self.module.func(id);
        match result < self.carried[id.0 as usize] {
            true => self.is_rows(id, func.params[result]),
            false => self.is_rows(id, func.results[result]),
        }
    }
}

/// Which families are what.
struct OfData {
    /// All dims of data.
    all: BTreeSet<Family>,
    /// The dim that ranks divide: sequences, if they divide those, else the tokens of each.
    tokens: BTreeSet<Family>,
}

impl OfData {
    fn of(module: &Module, families: &Families, n: u64) -> Result<OfData, PassError> {
        let mut found = OfData { all: BTreeSet::new(), tokens: BTreeSet::new() };
        for f in module.func_ids().filter(|f| !module.func(*f).result_names.is_empty()) {
            let func = module.func(f);
            for p in &func.params {
                let (ty, name) = (func.ty(*p), func.value(*p).name.as_deref().unwrap_or("p"));
                let [.., sequences, tokens] = ty.dims[..] else { continue };
                if module.stores.contains_key(name) || !ty.dtype.is_int() {
                    continue;
                }
                let (Some(sequences), Some(tokens)) = (sequences.as_fixed(), tokens.as_fixed())
                else {
                    let why = format!("`{name}` has no fixed number of tokens to divide");
                    return Err(PassError::new(why).within(func));
                };
                let last = ty.rank() - 1;
                let dim = match (sequences.is_multiple_of(n), tokens.is_multiple_of(n)) {
                    (true, _) => last - 1,
                    (false, true) => last,
                    (false, false) => return Err(uneven(name, sequences, tokens, n).within(func)),
                };
                found.all.extend(families.dims(f, *p));
                found.tokens.extend(families.dims(f, *p).nth(dim));
            }
        }
        Ok(found)
    }
}

fn uneven(name: &str, sequences: u64, tokens: u64, n: u64) -> PassError {
    let nearest = (1..n).rev().find(|k| tokens.is_multiple_of(*k)).unwrap_or(1);
    PassError::new(format!(
        "{n} ranks along sequence divide neither the {sequences} sequences of `{name}` nor their \
         {tokens} tokens; the nearest is sequence = {nearest}"
    ))
}

/// A function under construction. Values that a rank has whole are the copy's; of others it has its
/// own tokens.
struct Made<'a, 'b> {
    all: &'b Rows<'a>,
    id: FuncId,
    func: &'a Func,
    copy: Copier<'a>,
    own: BTreeMap<ValueId, ValueId>,
    spread: BTreeMap<ValueId, ValueId>,
    counts: &'b mut Counts,
}

impl Made<'_, '_> {
    fn attrs(&self) -> Attrs {
        Attrs::new().axis("axis", self.all.axis)
    }

    fn between(&mut self, op: Op, x: ValueId, attrs: Attrs) -> Result<ValueId, PassError> {
        Ok(self.copy.to.emit_calling(self.all.module, op, &[x], attrs)?[0])
    }

    fn tokens(&self, v: ValueId) -> Option<usize> {
        self.all.tokens(self.id, v)
    }

    fn given(&mut self, v: ValueId, rows: bool) -> Result<ValueId, PassError> {
        if rows { self.own(v) } else { self.whole(v) }
    }

    fn whole(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        if let Some(x) = self.copy.try_get(v) {
            return Ok(x);
        }
        let dim = self.tokens(v).expect("what is had by tokens has some");
        let attrs = self.attrs().int("dim", dim as i64);
        let all = self.between(Op::AllGather, self.own[&v], attrs)?;
        self.counts.gathered += 1;
        self.copy.set(v, all);
        Ok(all)
    }

    /// A rank's tokens.
    fn own(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        if let Some(x) = self.own.get(&v) {
            return Ok(*x);
        }
        let made = self
            .func
            .def_op(v)
            .filter(|_| self.all.made_anywhere[self.id.0 as usize][v.0 as usize]);
        if let Some(at) = made {
            self.on_tokens(self.func.op(at))?;
            return Ok(self.own[&v]);
        }
        let dim = self.tokens(v).expect("what is cut by tokens has some");
        let attrs = self.attrs().int("dim", dim as i64);
        let part = self.between(Op::Part, self.copy.get(v), attrs)?;
        self.own.insert(v, part);
        Ok(part)
    }

    /// A value without tokens, of which each rank makes something of its own.
    fn spread(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        let x = self.whole(v)?;
        if !self.all.active[self.id.0 as usize][v.0 as usize] {
            return Ok(x);
        }
        if let Some(known) = self.spread.get(&v) {
            return Ok(*known);
        }
        let attrs = self.attrs();
        let made = self.between(Op::Spread, x, attrs)?;
        self.counts.spreads += 1;
        self.spread.insert(v, made);
        Ok(made)
    }

    fn operands(&mut self, op: &OpData) -> Result<Vec<ValueId>, PassError> {
        let mut xs = vec![];
        for x in &op.operands {
            xs.push(match self.tokens(*x) {
                Some(_) => self.own(*x)?,
                None => self.spread(*x)?,
            });
        }
        Ok(xs)
    }

    /// The op on a rank's tokens.
    fn on_tokens(&mut self, op: &OpData) -> Result<(), PassError> {
        let xs = self.operands(op)?;
        let made = self.copy.to.emit_all(op.op, &xs, self.own_attrs(op))?;
        self.counts.ops += 1;
        for (r, x) in op.results.iter().zip(made) {
            if let (Some(name), None) = (&self.func.value(*r).name, self.copy.try_get(*r)) {
                self.copy.to.name(x, name);
            }
            self.own.insert(*r, x);
        }
        Ok(())
    }

    /// Shapes are those of a rank's tokens.
    fn own_attrs(&self, op: &OpData) -> Attrs {
        let mut attrs = op.attrs.clone();
        let (y, Some(d)) = (op.results[0], self.tokens(op.results[0])) else { return attrs };
        for (name, attr) in attrs.iter_mut() {
            match attr {
                Attr::Dims(dims) if name == "shape" => dims[d] = self.all.part(dims[d]),
                Attr::Type(ty) => *ty = self.all.own_type(self.func.ty(y), d),
                _ => {}
            }
        }
        attrs
    }

    fn op(&mut self, at: OpId, op: &OpData) -> Result<(), PassError> {
        if let Some(g) = callee(op) {
            return self.call(op, g);
        }
        if self.all.is_seed(self.id, op) && self.all.is_rows(self.id, op.results[0]) {
            let x = self.whole(op.operands[0])?;
            let sum = self.between(Op::AllReduce, x, op.attrs.clone())?;
            let dim = self.tokens(op.results[0]).expect("its tokens are divided");
            let attrs = self.attrs().int("dim", dim as i64);
            let part = self.between(Op::Part, sum, attrs)?;
            self.counts.scattered += 1;
            self.own.insert(op.results[0], part);
            return Ok(());
        }
        let any = op.operands.iter().any(|x| self.all.is_rows(self.id, *x));
        match self.all.how[self.id.0 as usize][&at] {
            How::Tokens if op.results.iter().all(|r| self.all.is_rows(self.id, *r)) => {
                self.on_tokens(op)
            }
            How::Sum if any && self.is_alike(op) => self.sum(op),
            _ => {
                for x in &op.operands {
                    self.whole(*x)?;
                }
                self.copy.op(at);
                Ok(())
            }
        }
    }

    fn is_alike(&self, op: &OpData) -> bool {
        op.results.iter().all(|r| self.all.is_alike(self.id, *r))
    }

    /// The sum over the tokens of all ranks.
    fn sum(&mut self, op: &OpData) -> Result<(), PassError> {
        let xs = self.operands(op)?;
        let y = op.results[0];
        let dtype = self.func.ty(y).dtype;
        let mut attrs = op.attrs.clone();
        if op.op == Op::Matmul && dtype != DType::F32 {
            attrs = attrs.with("dtype", Attr::DType(DType::F32));
        }
        let own = self.copy.to.emit(op.op, &xs, attrs)?;
        let own = self.copy.to.convert(own, DType::F32)?;
        let attrs = self.attrs();
        let all = self.between(Op::AllReduce, own, attrs)?;
        let all = self.copy.to.convert(all, dtype)?;
        self.counts.ops += 1;
        self.copy.bind(y, all);
        Ok(())
    }

    fn call(&mut self, op: &OpData, g: FuncId) -> Result<(), PassError> {
        let inner = self.all.module.func(g);
        let mut xs = vec![];
        for (x, p) in op.operands.iter().zip(&inner.params) {
            xs.push(self.given(*x, self.all.is_rows(g, *p))?);
        }
        let types = op.results.iter().enumerate().map(|(i, r)| {
            let ty = self.func.ty(*r);
            match self.tokens(*r).filter(|_| self.all.returns_rows(g, i)) {
                Some(d) => self.all.own_type(ty, d),
                None => ty.clone(),
            }
        });
        let types: Vec<Type> = types.collect();
        let spans = op.spans.clone();
        let made = self.copy.to.func.push_op(op.op, xs, op.attrs.clone(), types, spans);
        let made = self.copy.to.func.op(made).results.clone();
        for (i, (r, x)) in op.results.iter().zip(made).enumerate() {
            if let Some(name) = &self.func.value(*r).name {
                self.copy.to.name(x, name);
            }
            match self.all.returns_rows(g, i) {
                true => drop(self.own.insert(*r, x)),
                false => self.copy.set(*r, x),
            }
        }
        Ok(())
    }
}
