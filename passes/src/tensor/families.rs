//! Which dims of a program are one: what cuts a dim must cut all that it becomes.
//!
//! Every dim of every value is a member of a *family*. An op makes members of one family what it
//! takes element by element (the heads of a projection's rows, of queries, keys and values, and of
//! the columns of the matrix that reads them), and says of others that it needs them whole (the dim
//! that a norm takes the mean over). A family that nobody needs whole ends where an op sums over
//! it.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::dim::{Dim, product};
use weft_ir::module::{Func, FuncId, Module, OpData, Span, StoreKind, ValueId};
use weft_ir::op::Op;

use crate::policy::{Policy, Recipe};
use crate::rewrite::{callee, carry, stacked};

/// The number of a family.
pub type Family = usize;

/// Who needs a family whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Need {
    pub what: String,
    pub span: Option<Span>,
}

/// What is known of one family.
#[derive(Clone, Default, Debug)]
pub struct Facts {
    pub needed_by: Option<Need>,
    /// Sizes of its members.
    pub sizes: BTreeSet<u64>,
    /// Members that are dims of weights.
    pub weights: Vec<(String, usize)>,
    /// Sizes of members that a product quantizes, the groups of elements that share a scale along
    /// them, and the product's site.
    pub groups: BTreeSet<(u64, u64, String)>,
}

/// The families of a module.
pub struct Families<'a> {
    module: &'a Module,
    /// The first member of each value of each function, and of each store.
    values: Vec<Vec<usize>>,
    stores: BTreeMap<&'a str, usize>,
    /// By member: another one of its family, or itself.
    link: Vec<usize>,
    facts: BTreeMap<Family, Facts>,
}

impl<'a> Families<'a> {
    pub fn of(module: &'a Module, policy: &Policy) -> Families<'a> {
        let mut n = 0;
        let mut take = |rank: usize| {
            n += rank;
            n - rank
        };
        let of_func = |f: &Func, take: &mut dyn FnMut(usize) -> usize| {
            (0..f.n_values() as u32).map(|v| take(f.ty(ValueId(v)).rank())).collect()
        };
        let values = module.funcs.iter().map(|f| of_func(f, &mut take)).collect();
        let stores = module.stores.iter().map(|(name, s)| (name.as_str(), take(s.ty.rank())));
        let stores = stores.collect();
        let link = (0..n).collect();
        let mut families = Families { module, values, stores, link, facts: BTreeMap::new() };
        for id in module.func_ids() {
            families.func(id, policy);
        }
        for (name, store) in &module.stores {
            let first = families.stores[name.as_str()];
            for d in 0..store.ty.rank() {
                let whole = store.kind != StoreKind::Weight || d < store.starts.len();
                let family = families.root(first + d);
                let facts = families.facts.entry(family).or_default();
                match whole {
                    true => facts.need(&format!("`{name}`"), None),
                    false => facts.weights.push((name.clone(), d)),
                }
            }
        }
        families.count();
        families
    }

    /// All families, with what is known of them.
    pub fn all(&self) -> impl Iterator<Item = (Family, &Facts)> {
        self.facts.iter().map(|(family, facts)| (*family, facts))
    }

    pub fn facts(&self, family: Family) -> &Facts {
        &self.facts[&family]
    }

    /// The families of a value's dims.
    pub fn dims(&self, f: FuncId, v: ValueId) -> impl Iterator<Item = Family> + use<'_> {
        let first = self.values[f.0 as usize][v.0 as usize];
        (first..first + self.module.func(f).ty(v).rank()).map(|m| self.find(m))
    }

    /// The families of a store's dims.
    pub fn store(&self, name: &str) -> impl Iterator<Item = Family> + use<'_> {
        let first = self.stores[name];
        let rank = self.module.stores[name].ty.rank();
        (first..first + rank).map(|m| self.find(m))
    }

    fn find(&self, mut member: usize) -> Family {
        while self.link[member] != member {
            member = self.link[member];
        }
        member
    }

    fn root(&mut self, mut member: usize) -> Family {
        while self.link[member] != member {
            self.link[member] = self.link[self.link[member]];
            member = self.link[member];
        }
        member
    }

    /// Makes two members one family.
    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        let (a, b) = (a.min(b), a.max(b));
        self.link[b] = a;
        if let Some(more) = self.facts.remove(&b) {
            let facts = self.facts.entry(a).or_default();
            facts.needed_by = facts.needed_by.take().or(more.needed_by);
            facts.groups.extend(more.groups);
        }
    }

    /// Sizes of members; those of symbols are needed whole.
    fn count(&mut self) {
        for (f, func) in self.module.funcs.iter().enumerate() {
            for v in 0..func.n_values() {
                let first = self.values[f][v];
                for (d, size) in func.ty(ValueId(v as u32)).dims.iter().enumerate() {
                    let family = self.root(first + d);
                    let facts = self.facts.entry(family).or_default();
                    match size.as_fixed() {
                        Some(n) => drop(facts.sizes.insert(n)),
                        None => facts.need("its size, which data decides,", None),
                    }
                }
            }
        }
    }

    fn func(&mut self, id: FuncId, policy: &Policy) {
        let func = self.module.func(id);
        if !func.result_names.is_empty() {
            for p in &func.params {
                let name = func.value(*p).name.as_deref().unwrap_or("p");
                let store = self.stores.get(name).copied();
                for d in 0..func.ty(*p).rank() {
                    let own = self.values[id.0 as usize][p.0 as usize] + d;
                    match store {
                        Some(store) => self.join(own, store + d),
                        None => self.need(own, &format!("`{name}`, which is data,"), None),
                    }
                }
            }
        }
        for (_, op) in func.body_ops() {
            let mut at = At { all: self, id, func, op, whole: vec![] };
            match callee(op) {
                Some(f) => at.call(f),
                None => at.op(),
            }
            let recipe = op.attrs.get_word("site").and_then(|site| policy.get(site));
            for (v, d, size, group) in recipe.map_or(vec![], |r| groups(func, op, r)) {
                let family = self.root(self.values[id.0 as usize][v.0 as usize] + d);
                let site = op.attrs.get_word("site").unwrap_or("").to_string();
                let facts = self.facts.entry(family).or_default();
                facts.groups.insert((size, group, site));
            }
        }
    }

    /// The dims of its operands and results that an op, which is no call, needs whole.
    pub fn needs(&mut self, id: FuncId, op: &'a OpData) -> Vec<(ValueId, usize)> {
        // What an op says is known already: saying it again changes nothing.
        let mut at = At { func: self.module.func(id), all: self, id, op, whole: vec![] };
        at.op();
        at.whole
    }

    fn need(&mut self, member: usize, what: &str, span: Option<Span>) {
        let family = self.root(member);
        self.facts.entry(family).or_default().need(what, span);
    }
}

impl Facts {
    fn need(&mut self, what: &str, span: Option<Span>) {
        self.needed_by.get_or_insert_with(|| Need { what: what.into(), span });
    }
}

/// What one op says of its dims.
struct At<'f, 'a> {
    all: &'f mut Families<'a>,
    id: FuncId,
    func: &'a Func,
    op: &'a OpData,
    /// What it needs whole.
    whole: Vec<(ValueId, usize)>,
}

impl At<'_, '_> {
    fn member(&self, v: ValueId, d: usize) -> usize {
        self.all.values[self.id.0 as usize][v.0 as usize] + d
    }

    fn rank(&self, v: ValueId) -> usize {
        self.func.ty(v).rank()
    }

    fn size(&self, v: ValueId, d: usize) -> Dim {
        self.func.ty(v).dims[d]
    }

    fn same(&mut self, (a, i): (ValueId, usize), (b, j): (ValueId, usize)) {
        let (a, b) = (self.member(a, i), self.member(b, j));
        self.all.join(a, b);
    }

    fn whole(&mut self, v: ValueId, d: usize) {
        self.whole.push((v, d));
        let member = self.member(v, d);
        let what = format!("`{}`", self.op.op.name());
        self.all.need(member, &what, self.op.spans.first().copied());
    }

    fn all_whole(&mut self) {
        for v in self.op.operands.iter().chain(&self.op.results) {
            (0..self.rank(*v)).for_each(|d| self.whole(*v, d));
        }
    }

    /// The first `n` dims of both, one by one.
    fn lead(&mut self, a: ValueId, b: ValueId, n: usize) {
        (0..n).for_each(|d| self.same((a, d), (b, d)));
    }

    /// All dims of operands and results, but `dim`, which is needed whole.
    fn but(&mut self, dim: Option<usize>) {
        let y = self.op.results[0];
        for x in self.op.operands.iter().chain(&self.op.results) {
            for d in 0..self.rank(*x) {
                match dim == Some(d) {
                    true => self.whole(*x, d),
                    false => self.same((*x, d), (y, d)),
                }
            }
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    #[rustfmt::skip]
    fn op(&mut self) {
        let op = self.op;
        let x = |i: usize| op.operands[i];
        let dim = op.attrs.get_int("dim").map(|d| d as usize);
        match op.op {
            Op::Constant | Op::Extent => {}
            Op::Iota => self.whole(op.results[0], dim.unwrap_or(0)),

            Op::Neg | Op::Abs | Op::Sign | Op::Floor | Op::Exp | Op::Log | Op::Sqrt | Op::Rsqrt
            | Op::Sigmoid | Op::Tanh | Op::Sin | Op::Cos | Op::Erf | Op::Add | Op::Sub | Op::Mul
            | Op::Div | Op::Max | Op::Min | Op::Eq | Op::Lt | Op::Le | Op::And | Op::Or | Op::Not
            | Op::Select | Op::Convert | Op::StopGradient | Op::Read | Op::BatchSum => {
                self.but(None);
            }

            Op::Slice | Op::Pad | Op::Concat | Op::Shift => self.but(dim),
            Op::AllReduce | Op::Spread => self.but(None),
            Op::Part | Op::ReduceScatter | Op::AllGather => self.but(dim),
            Op::Reshape => self.reshape(x(0), op.results[0]),
            Op::Transpose => {
                let perm = op.attrs.get_ints("perm").unwrap_or(&[]).to_vec();
                for (to, from) in perm.into_iter().enumerate() {
                    self.same((x(0), from as usize), (op.results[0], to));
                }
            }
            Op::Broadcast => {
                let map = op.attrs.get_ints("dims").unwrap_or(&[]).to_vec();
                for (from, to) in map.into_iter().enumerate() {
                    let to = to as usize;
                    if self.size(x(0), from) == self.size(op.results[0], to) {
                        self.same((x(0), from), (op.results[0], to));
                    }
                }
            }
            Op::ReduceSum | Op::ReduceMax => {
                let gone = op.attrs.get_ints("dims").unwrap_or(&[]).to_vec();
                let mut to = 0;
                for d in 0..self.rank(x(0)) {
                    if !gone.contains(&(d as i64)) {
                        self.same((x(0), d), (op.results[0], to));
                        to += 1;
                    } else if op.op == Op::ReduceMax {
                        self.whole(x(0), d);
                    }
                }
            }

            Op::Matmul => self.matmul(),
            Op::GroupedMatmul => {
                let (n, k) = if op.attrs.get_flag("ty") { (1, 2) } else { (2, 1) };
                self.same((x(0), 0), (op.results[0], 0));
                self.same((x(0), 1), (x(1), k));
                self.same((x(1), n), (op.results[0], 1));
                self.whole(x(1), 0);
                self.whole(x(2), 0);
            }

            Op::Gather => {
                let (last, n) = (self.rank(op.results[0]) - 1, self.rank(x(1)));
                self.same((x(0), 1), (op.results[0], last));
                self.lead(x(1), op.results[0], n);
            }
            Op::Take => {
                let last = self.rank(x(0)) - 1;
                self.but(Some(last));
            }
            Op::OneHot | Op::Topk | Op::GroupedTopk => {
                let last = self.rank(op.results[0]) - 1;
                let n = last.min(self.rank(x(0)));
                self.lead(x(0), op.results[0], n);
                (n..self.rank(x(0))).for_each(|d| self.whole(x(0), d));
                self.whole(op.results[0], last);
            }
            // Rows and tokens are not the same; what a row holds is.
            Op::Dispatch | Op::Combine => {
                let y = op.results[0];
                self.same((x(0), self.rank(x(0)) - 1), (y, self.rank(y) - 1));
                (0..self.rank(x(0)) - 1).for_each(|d| self.whole(x(0), d));
                (0..self.rank(y) - 1).for_each(|d| self.whole(y, d));
                for v in &op.operands[1..] {
                    (0..self.rank(*v)).for_each(|d| self.whole(*v, d));
                }
            }

            Op::RmsNorm | Op::Softmax => {
                let last = self.rank(x(0)) - 1;
                for y in &op.results {
                    self.lead(x(0), *y, last);
                }
                self.whole(x(0), last);
                self.whole(op.results[0], last);
                op.operands[1..].iter().for_each(|g| self.whole(*g, 0));
            }
            Op::Rotary => {
                self.lead(x(0), op.results[0], 3);
                self.lead(x(0), x(1), 2);
                self.whole(x(0), 3);
                self.whole(op.results[0], 3);
                self.whole(x(2), 0);
            }
            Op::Attention => self.attention(),
            Op::CrossEntropy => {
                let last = self.rank(x(0)) - 1;
                for v in [x(1)].iter().chain(&op.results) {
                    self.lead(x(0), *v, last);
                }
            }

            Op::Route | Op::Quantize | Op::Encode | Op::Recode | Op::Dequantize | Op::GroupedOuter
            | Op::ScatterAdd | Op::Put | Op::CombineDot | Op::RmsNormGrad | Op::AttentionGrad
            | Op::CrossEntropyGrad | Op::Assign | Op::CacheAppend | Op::AdamW | Op::ExchangeOffsets
            | Op::Exchange | Op::AllReduceStart | Op::ReduceScatterStart | Op::AllGatherStart
            | Op::ExchangeStart | Op::Done | Op::Send | Op::Recv | Op::Call | Op::Repeat
            | Op::Fused => {
                self.all_whole();
            }
        }
    }

    /// A dim that is split or merged is its outermost factor; the others are needed whole.
    fn reshape(&mut self, x: ValueId, y: ValueId) {
        let long = |func: &Func, v: ValueId| -> Vec<(usize, Dim)> {
            func.ty(v).dims.iter().copied().enumerate().filter(|(_, d)| !d.is_one()).collect()
        };
        let (xs, ys) = (long(self.func, x), long(self.func, y));
        let size = |dims: &[(usize, Dim)]| product(&dims.iter().map(|d| d.1).collect::<Vec<_>>());
        let (mut i, mut j) = (0, 0);
        while i < xs.len() && j < ys.len() {
            let (mut a, mut b) = (i + 1, j + 1);
            while size(&xs[i..a]) != size(&ys[j..b]) && (a < xs.len() || b < ys.len()) {
                let (p, q) = (size(&xs[i..a]), size(&ys[j..b]));
                let behind = p.zip(q).is_some_and(|(p, q)| q.checked_div(p).is_some());
                if a < xs.len() && (behind || b == ys.len()) {
                    a += 1;
                } else {
                    b += 1;
                }
            }
            self.same((x, xs[i].0), (y, ys[j].0));
            xs[i + 1..a].iter().for_each(|d| self.whole(x, d.0));
            ys[j + 1..b].iter().for_each(|d| self.whole(y, d.0));
            (i, j) = (a, b);
        }
        xs[i..].iter().for_each(|d| self.whole(x, d.0));
        ys[j..].iter().for_each(|d| self.whole(y, d.0));
    }

    fn matmul(&mut self) {
        let (x, y, z) = (self.op.operands[0], self.op.operands[1], self.op.results[0]);
        let batch = self.rank(x) - 2;
        let (m, k) = if self.op.attrs.get_flag("tx") { (1, 0) } else { (0, 1) };
        let (own, n) = if self.op.attrs.get_flag("ty") { (1, 0) } else { (0, 1) };
        let first = self.rank(y) - 2;
        self.lead(x, z, batch);
        self.lead(y, z, first);
        self.same((x, batch + m), (z, batch));
        self.same((x, batch + k), (y, first + own));
        self.same((y, first + n), (z, batch + 1));
    }

    /// Heads are one family; a head that all queries share is none of it.
    fn attention(&mut self) {
        let n = 2 * self.op.attrs.get_int("parts").unwrap_or(1) as usize + 1;
        let (o, lse) = (self.op.results[0], self.op.results[1]);
        self.same((o, 2), (lse, 1));
        self.same((o, 0), (lse, 0));
        self.whole(o, 1);
        self.whole(o, 3);
        self.whole(lse, 2);
        for (i, x) in self.op.operands.clone().into_iter().enumerate() {
            self.same((x, 0), (o, 0));
            (1..self.rank(x)).filter(|d| *d != 2).for_each(|d| self.whole(x, d));
            if i < n && !self.size(x, 2).is_one() {
                self.same((x, 2), (o, 2));
            }
        }
    }

    fn call(&mut self, f: FuncId) {
        let module = self.all.module;
        let inner = module.func(f);
        let (carry, xs) = (carry(self.op), stacked(self.op));
        let repeats = self.op.op == Op::Repeat;
        let tie = |at: &mut Self, outer: ValueId, inner: ValueId, stacked: bool| {
            let shift = usize::from(stacked);
            if stacked {
                at.whole(outer, 0);
            }
            for d in shift..at.rank(outer) {
                let (a, b) = (
                    at.member(outer, d),
                    at.all.values[f.0 as usize][inner.0 as usize] + d - shift,
                );
                at.all.join(a, b);
            }
        };
        for (i, (x, p)) in self.op.operands.iter().zip(&inner.params).enumerate() {
            tie(self, *x, *p, repeats && (carry..carry + xs).contains(&i));
        }
        for (i, (y, r)) in self.op.results.iter().zip(&inner.results).enumerate() {
            tie(self, *y, *r, repeats && i >= carry);
        }
        if repeats {
            for (p, r) in inner.params[..carry].iter().zip(&inner.results) {
                for d in 0..inner.ty(*p).rank() {
                    let of = |v: &ValueId| self.all.values[f.0 as usize][v.0 as usize] + d;
                    let (a, b) = (of(p), of(r));
                    self.all.join(a, b);
                }
            }
        }
    }
}

/// Groups of elements with one scale along the dims of a product and of its derivatives: the value,
/// the dim, its size and that of a group.
pub fn groups(func: &Func, op: &OpData, recipe: &Recipe) -> Vec<(ValueId, usize, u64, u64)> {
    if !matches!(op.op, Op::Matmul | Op::GroupedMatmul) {
        return vec![];
    }
    let (x, w, z) = (op.operands[0], op.operands[1], op.results[0]);
    let pair = |p: &crate::policy::Product, i: usize| p.operands.map(|o| o[i].group);
    let saved = |f: Option<crate::policy::Format>| f.map(|f| f.group);
    let all = [
        (x, pair(&recipe.forward, 0)),
        (w, pair(&recipe.forward, 1)),
        (z, pair(&recipe.input_grad, 0)),
        (w, pair(&recipe.input_grad, 1)),
        (z, pair(&recipe.weight_grad, 0)),
        (x, pair(&recipe.weight_grad, 1)),
        (x, saved(recipe.saved_input)),
        (z, saved(recipe.saved_output)),
        (x, saved(recipe.dispatched)),
    ];
    let mut found = vec![];
    for (v, group) in all {
        let Some(group) = group else { continue };
        let rank = func.ty(v).rank();
        for (d, group) in [(rank - 2, group[0]), (rank - 1, group[1])] {
            if let (Some(size), 2..) = (func.ty(v).dims[d].as_fixed(), group) {
                found.push((v, d, size, u64::from(group)));
            }
        }
    }
    found
}
