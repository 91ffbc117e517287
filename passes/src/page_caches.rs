//! Make caches pools of pages, which requests share.
//!
//! ```text
//! func @decode(%q, %c, %start,                    func @decode(%q, %c, %start,
//!     %cache: state f32[B, 64, 8])                    %cache: state f32[9, 16, 8], %pages: i32[B, 4])
//!   %all, %next =                            =>     %pool, %next =
//!     cache_append %cache, %c, %start                 cache_append %cache, %c, %start, %pages
//!   %k = reshape %all : f32[B, 64, 1, 8]            %k = reshape %pool : f32[9, 16, 1, 8]
//!   %o = attention %q, %k, %k, %start               %o = attention %q, %k, %k, %start, %pages
//! ```
//!
//! Why: a cache in one piece has room for the longest request in every place of a batch. In pages
//! of so many positions requests take what they fill, from one pool (PagedAttention, arXiv
//! 2309.06180); which pages a request has is an input. `pages` of an entry is i32[B, n]: position t
//! of request b is row t mod N of page `pages[b, t / N]` of every pool, of every layer.
//!
//! Attention that has all its keys and values from caches reads them through the table, unless it
//! is of so many queries that the machine has better kernels for keys in order. What else reads a
//! cache (an up-projection that was not absorbed, keys of which only a part is cached) gets its
//! rows in order, a `gather`. Values are those without pages, wherever pages lie.
//! Cost: one walk over each function; where rows are gathered, a copy of them in each layer.
//! Requires: `absorb`, which looks for what was cached.

use std::collections::BTreeMap;

use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::module::{Def, Func, Module, OpData, ValueId};
use weft_ir::op::Op;
use weft_ir::pages;
use weft_ir::rules::TypeError;
use weft_ir::ty::Type;

use crate::rewrite::{Copier, callee, carry, stacked};
use crate::{Pages, Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "page_caches", requires: &[], establishes: &[], run };

/// The parameter of an entry that says which pages requests have.
pub const TABLE: &str = "pages";

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    let Some(pool) = cx.pages else { return Ok(Stats::default()) };
    let (mut paged, mut gathered) = (0, 0);
    // Callees stand first.
    let mut known: Vec<Option<Caches>> = vec![];
    for i in 0..module.funcs.len() {
        let func = &module.funcs[i];
        let caches = Caches::of(func, &known, pool)?;
        let Some(caches) = caches else {
            known.push(None);
            continue;
        };
        let mut work = Work::new(module, func, &known, &caches, pool);
        work.copy()?;
        gathered += work.n_gathered;
        let made = work.to.finish();
        if !func.result_names.is_empty() {
            let names = caches.stacked.keys().map(|p| (*p, func.params[*p]));
            let names: Vec<(usize, String)> =
                names.filter_map(|(p, v)| Some((p, func.value(v).name.clone()?))).collect();
            paged += names.len();
            for (p, name) in names {
                if let Some(store) = module.stores.get_mut(&name) {
                    store.ty.dims = made.ty(made.params[p]).dims.clone();
                }
            }
        }
        module.funcs[i] = made;
        known.push(Some(caches));
    }
    Ok(Stats { counts: vec![("caches in pages", paged), ("read in order", gathered)] })
}

/// The caches among a function's parameters.
struct Caches {
    /// By their place, how many dims of a stack they have first.
    stacked: BTreeMap<usize, usize>,
    batch: Dim,
    positions: Dim,
}

impl Caches {
    fn of(func: &Func, known: &[Option<Caches>], pool: Pages) -> Result<Option<Caches>, PassError> {
        let mut found: Option<Caches> = None;
        for (_, op) in func.body_ops() {
            for (cache, levels) in caches_of(op, known) {
                let Def::Param(p) = func.value(cache).def else {
                    let why =
                        "a cache that is changed twice, or is a part of another, has no pages";
                    return Err(PassError::new(why).at(func, op));
                };
                let dims = &func.ty(cache).dims;
                let (batch, positions) = (dims[levels], dims[levels + 1]);
                let all = found.get_or_insert_with(|| Caches {
                    stacked: BTreeMap::new(),
                    batch,
                    positions,
                });
                if (all.batch, all.positions) != (batch, positions) {
                    let why = "caches of different lengths cannot have one table of pages";
                    return Err(PassError::new(why).at(func, op));
                }
                all.stacked.insert(p as usize, levels);
            }
        }
        match &found {
            Some(caches) if caches.n_pages(pool).is_none() => {
                let (size, positions) = (pool.size, caches.positions.as_fixed());
                let positions = positions.map_or("a bounded number of".into(), |n| n.to_string());
                let why = format!(
                    "{positions} positions are no whole number of pages of {size}; \
                     take a multiple of {size}"
                );
                Err(PassError::new(why).within(func))
            }
            _ => Ok(found),
        }
    }

    /// Pages of a request.
    fn n_pages(&self, pool: Pages) -> Option<Dim> {
        let n = self.positions.as_fixed().filter(|n| n.is_multiple_of(pool.size.max(1)))?;
        Some(Dim::fixed(n / pool.size.max(1)))
    }
}

/// The states that an op changes as caches, each with the dims of a stack it has first.
fn caches_of(op: &OpData, known: &[Option<Caches>]) -> Vec<(ValueId, usize)> {
    if op.op == Op::CacheAppend {
        return vec![(op.operands[0], 0)];
    }
    let Some(inner) = callee(op).and_then(|f| known[f.0 as usize].as_ref()) else { return vec![] };
    let slices = carry(op)..carry(op) + stacked(op);
    let of =
        |(p, levels): (&usize, &usize)| (op.operands[*p], levels + usize::from(slices.contains(p)));
    inner.stacked.iter().map(of).collect()
}

/// A function on its way.
struct Work<'a> {
    module: &'a Module,
    func: &'a Func,
    known: &'a [Option<Caches>],
    caches: &'a Caches,
    pool: Pages,
    to: Copier<'a>,
    /// The pools that values of the function show, also in other shapes.
    pools: BTreeMap<ValueId, ValueId>,
    /// Values that are read in order.
    in_order: Vec<bool>,
    n_gathered: usize,
}

impl<'a> Work<'a> {
    fn new(
        module: &'a Module,
        func: &'a Func,
        known: &'a [Option<Caches>],
        caches: &'a Caches,
        pool: Pages,
    ) -> Work<'a> {
        let to = Copier::new(func, &func.name);
        let through = |op: &OpData| attends_by_pages(module, func, op, pool);
        let (pools, in_order) = (BTreeMap::new(), read_in_order(func, &through));
        Work { module, func, known, caches, pool, to, pools, in_order, n_gathered: 0 }
    }

    fn copy(&mut self) -> Result<(), PassError> {
        let func = self.func;
        for (i, p) in func.params.iter().enumerate() {
            let Some(levels) = self.caches.stacked.get(&i) else {
                self.to.param(*p, "p");
                continue;
            };
            let mut ty = func.ty(*p).clone();
            ty.dims[*levels] = Dim::fixed(self.pool.count);
            ty.dims[levels + 1] = Dim::fixed(self.pool.size);
            let name = func.value(*p).name.as_deref().unwrap_or("cache");
            let made = self.to.to.param(name, ty);
            self.to.set(*p, made);
        }
        let n = self.caches.n_pages(self.pool).expect("checked when caches were found");
        let table = self.to.to.param(TABLE, Type::i32([self.caches.batch, n]));
        for (id, op) in func.body_ops() {
            self.to.to.at(&op.spans);
            if !self.op(op, table).map_err(|e| PassError::from(e).at(func, op))? {
                self.to.op(id);
            }
        }
        Ok(())
    }

    /// Whether the op was dealt with; else it stays as it is.
    fn op(&mut self, op: &OpData, table: ValueId) -> Result<bool, TypeError> {
        let func = self.func;
        if op.op == Op::CacheAppend {
            let mut xs: Vec<ValueId> = op.operands.iter().map(|x| self.to.get(*x)).collect();
            xs.push(table);
            let made = self.to.to.emit_all(Op::CacheAppend, &xs, op.attrs.clone())?;
            let [all, next] = op.results[..] else { return Ok(false) };
            self.pools.insert(all, made[0]);
            if self.in_order[all.0 as usize] {
                let rows = pages::in_order(&mut self.to.to, made[0], table)?;
                self.to.bind(all, rows);
                self.n_gathered += 1;
            } else if let Some(name) = &func.value(all).name {
                self.to.to.name(made[0], name);
            }
            self.to.bind(next, made[1]);
        } else if callee(op).is_some_and(|f| self.known[f.0 as usize].is_some()) {
            self.call(op, table)?;
        } else if attends_by_pages(self.module, func, op, self.pool) {
            self.attention(op, table)?;
        } else {
            // A shape of a pool that only attention reads is made there.
            let shape = op.op == Op::Reshape && is_whole_cache(func, op.results[0]);
            return Ok(shape && !self.in_order[op.results[0].0 as usize]);
        }
        Ok(true)
    }

    fn call(&mut self, op: &OpData, table: ValueId) -> Result<(), TypeError> {
        let mut xs: Vec<ValueId> = op.operands.iter().map(|x| self.to.get(*x)).collect();
        xs.push(table);
        let made = self.to.to.emit_calling(self.module, op.op, &xs, op.attrs.clone())?;
        op.results.iter().zip(made).for_each(|(from, to)| self.to.bind(*from, to));
        Ok(())
    }

    fn attention(&mut self, op: &OpData, table: ValueId) -> Result<(), TypeError> {
        let keys = keys(op);
        let mut xs = vec![];
        for (i, x) in op.operands.iter().enumerate() {
            xs.push(if keys.contains(&i) { self.pool(*x)? } else { self.to.get(*x) });
        }
        xs.push(table);
        let attrs: Attrs = op.attrs.clone().flag("pages", true);
        let made = self.to.to.emit_all(Op::Attention, &xs, attrs)?;
        op.results.iter().zip(made).for_each(|(from, to)| self.to.bind(*from, to));
        Ok(())
    }

    /// The pool behind a cached value, in its shape.
    fn pool(&mut self, v: ValueId) -> Result<ValueId, TypeError> {
        if let Some(pool) = self.pools.get(&v) {
            return Ok(*pool);
        }
        let whole = self.pools[&self.func.past_reshapes(v)];
        let mut dims = self.to.to.dims(whole)[..2].to_vec();
        dims.extend(&self.func.ty(v).dims[2..]);
        let pool = self.to.to.reshape(whole, &dims)?;
        self.pools.insert(v, pool);
        Ok(pool)
    }
}

/// Which operands of attention are keys and values.
fn keys(op: &OpData) -> std::ops::Range<usize> {
    let n = op.attrs.get_int("parts").unwrap_or(0).max(0) as usize;
    n..2 * n + 1
}

/// Is `v` the whole of a cache, in some shape?
fn is_whole_cache(func: &Func, v: ValueId) -> bool {
    let whole = func.past_reshapes(v);
    let made = func.def_op(whole).map(|id| func.op(id));
    made.is_some_and(|op| op.op == Op::CacheAppend && op.results[0] == whole)
}

/// Are all keys and values caches, each position a row?
fn keys_are_cached(func: &Func, op: &OpData) -> bool {
    let rows = |v: ValueId| &func.ty(v).dims[..2];
    let cached = |v: ValueId| is_whole_cache(func, v) && rows(v) == rows(func.past_reshapes(v));
    op.operands[keys(op)].iter().all(|x| cached(*x))
}

/// Does attention read pages?
fn attends_by_pages(module: &Module, func: &Func, op: &OpData, pool: Pages) -> bool {
    if op.op != Op::Attention || !keys_are_cached(func, op) {
        return false;
    }
    let queries = module.dim_max(func.ty(op.operands[0]).dims[1]);
    pool.in_order_from.is_none_or(|n| queries < n)
}

/// For each value whether something needs it with its positions in order, and not only attention
/// that reads pages.
fn read_in_order(func: &Func, by_pages: &dyn Fn(&OpData) -> bool) -> Vec<bool> {
    let mut needed = vec![false; func.n_values()];
    func.results.iter().for_each(|r| needed[r.0 as usize] = true);
    for (_, op) in func.body_ops().rev() {
        let through_pages = match op.op {
            Op::Attention if by_pages(op) => keys(op),
            Op::Reshape if !needed[op.results[0].0 as usize] => 0..1,
            _ => 0..0,
        };
        let others = op.operands.iter().enumerate().filter(|(i, _)| !through_pages.contains(i));
        others.for_each(|(_, x)| needed[x.0 as usize] = true);
    }
    needed
}
