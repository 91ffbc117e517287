//! Writes a nest's loops.
//!
//! Each expression is evaluated once in the outermost loop that binds all its variables: before a
//! loop is entered, whatever does not depend on it is hoisted. One variable runs over the lanes of
//! vectors; what does not depend on it stays scalar until it meets what does. A row's costly values
//! that a fold and a later loop both need are kept in scratch.
//!
//! On a target with threads a block is done by a warp. Its threads are the lanes: they share out
//! the loop over lanes, do everything else alike, and one of them stores what is the same for all.

mod fold;
pub mod held;
mod nest;
mod place;

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::dim::{Dim, SymId};
use weft_ir::ty::DType;

use super::graph::Buf;
use super::index::{Atom, Ix, Var};
use super::scalar;
use super::trace::{Expr, ExprId, Nest};
use crate::emit::{Cg, Elem, Frame, Kernel, Val, WARP};

/// How a nest is cut into blocks and loops.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Schedule {
    /// Variables whose values the block index gives, outermost first.
    pub grid: Vec<Var>,
    /// The first of `order` runs over this many values in a block.
    pub chunk: Option<i64>,
    /// The loops of a block, outermost first.
    pub order: Vec<Var>,
    /// The variable that runs over lanes: one of `order`, or none.
    pub lanes: Option<Var>,
    /// Vectors a step of the lanes' loop takes where that many are left.
    pub unroll: u32,
    /// A fold's first variable runs over one of `parts` equal pieces, which the first of `grid`
    /// counts.
    pub parts: Option<Parts>,
    /// Places in scratch, in f32 elements, of expressions kept along a row.
    pub kept: BTreeMap<ExprId, Kept>,
    /// Warps of a CTA, on a target with threads, where a block is a warp's. There `lanes` is the
    /// innermost loop, and nothing is kept.
    pub warps: Option<u32>,
    /// A block is all of a CTA's, not a warp's.
    pub together: bool,
    /// Neighbours that a thread of a warp takes at once along a row, at most: a power of two, for
    /// accesses of as many bytes as the hardware has. None is one.
    pub vector: Option<Vector>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Parts {
    pub var: Var,
    pub index: Var,
    pub count: i64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vector {
    pub most: u32,
    /// Buffers that may begin anywhere; all others do at multiples of [`ALIGNED_BYTES`].
    pub unaligned: BTreeSet<Buf>,
}

/// Bytes of the longest access of a thread.
pub const ALIGNED_BYTES: u32 = 16;

/// Where the values of an expression along `var` are kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Kept {
    pub var: Var,
    pub offset: u64,
}

/// What a kernel's arguments are: its buffers, and the symbol products its scalars hold.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Signature {
    pub buffers: Vec<Buf>,
    pub scalars: Vec<Vec<SymId>>,
}

impl Signature {
    /// Of all a nest reads and writes.
    pub fn of(nest: &Nest) -> Signature {
        let mut s = Signature::default();
        s.add(nest);
        s
    }

    fn add(&mut self, nest: &Nest) {
        let mut buffers = BTreeSet::new();
        let mut scalars = BTreeSet::new();
        let mut dims = |symbols: Vec<SymId>| {
            if !symbols.is_empty() {
                scalars.insert(symbols);
            }
        };
        for v in nest.all_vars() {
            dims(nest.vars.extent(v).symbols().collect());
        }
        for ix in nest.indices() {
            ix.terms().for_each(|(_, symbols, _)| dims(symbols.to_vec()));
        }
        for dim in nest.sizes() {
            dims(dim.symbols().collect());
        }
        for e in &nest.exprs {
            if let Expr::Load { buf, .. } = &e.expr {
                buffers.insert(*buf);
            }
        }
        buffers.extend(nest.roots.iter().map(|r| r.buf));
        self.buffers = buffers.into_iter().collect();
        self.scalars = scalars.into_iter().collect();
    }
}

/// Emits the kernel `name`.
pub fn kernel(cg: &Cg, name: &str, nest: &Nest, schedule: &Schedule, signature: &Signature) {
    let (n_buffers, n_scalars) = (signature.buffers.len(), signature.scalars.len());
    let frame = Frame::ctas(schedule.warps.map_or(1, |n| n * WARP));
    cg.framed_kernel(name, frame, n_buffers, n_scalars, |k| {
        let mut emitter = Emitter::new(cg, nest, schedule, signature, k);
        emitter.blocks();
    });
}

/// The lanes in flight.
#[derive(Clone, Copy)]
struct Lanes<'c> {
    var: Var,
    n: u32,
    mask: Option<Val<'c>>,
}

/// Values out of sight, by the position of their expression.
type Hidden<'c> = Vec<(usize, Val<'c>)>;

/// What a scope takes back when it ends.
enum Undo {
    Value(ExprId),
    Opaque(u32),
    Kept(ExprId),
}

/// The threads that this one does a block with.
#[derive(Clone, Copy)]
struct Team<'c> {
    /// Its place in the CTA, which has so many.
    index: Val<'c>,
    per_cta: u32,
    /// The thread's place in it.
    lane: Val<'c>,
    /// Threads of it.
    width: u32,
}

impl<'c> Team<'c> {
    /// A warp.
    fn warp(cg: &Cg<'c>, per_cta: u32) -> Team<'c> {
        let thread = cg.cast(cg.thread_index(), Elem::I64);
        let index = cg.lshr(thread, i64::from(WARP.trailing_zeros()));
        Team { index, per_cta, lane: cg.and(thread, i64::from(WARP) - 1), width: WARP }
    }

    /// All of a CTA of so many warps.
    fn cta(cg: &Cg<'c>, warps: u32) -> Team<'c> {
        let lane = cg.cast(cg.thread_index(), Elem::I64);
        Team { index: cg.i64(0), per_cta: 1, lane, width: warps * WARP }
    }

    /// Folds a value of each thread; all get the same bits.
    fn fold(self, cg: &Cg<'c>, v: Val<'c>, f: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
        match self.width {
            0..=WARP => cg.reduce_lanes(v, self.width, f),
            width => cg.reduce_cta(v, width / WARP, f),
        }
    }
}

struct Emitter<'a, 'c> {
    team: Option<Team<'c>>,
    cg: &'a Cg<'c>,
    nest: &'a Nest,
    schedule: &'a Schedule,
    signature: &'a Signature,
    kernel: &'a Kernel<'c>,
    /// Expressions that another reads.
    read: Vec<bool>,
    values: Vec<Option<Val<'c>>>,
    opaques: Vec<Option<Val<'c>>>,
    log: Vec<Undo>,
    /// Values of variables, of the first lane for the one in lanes.
    bound: BTreeMap<Var, Val<'c>>,
    /// Known ranges, narrower than the extents, of variables of a piece of a loop.
    ranges: BTreeMap<Var, (i64, i64)>,
    lanes: Option<Lanes<'c>>,
    /// First value and end of a fold's variable that runs over a part.
    limits: Option<(Var, Val<'c>, Val<'c>)>,
    /// Expressions whose values the loop being emitted writes to scratch.
    keeping: Vec<ExprId>,
    /// Expressions whose values are in scratch.
    kept: BTreeSet<ExprId>,
    /// The team's threads are at different elements, or some at none: nothing may be done together.
    apart: bool,
    /// What is in registers from the start, of the block being emitted.
    held: Option<held::Pairs<'c>>,
}

impl<'a, 'c> Emitter<'a, 'c> {
    fn new(
        cg: &'a Cg<'c>,
        nest: &'a Nest,
        schedule: &'a Schedule,
        signature: &'a Signature,
        kernel: &'a Kernel<'c>,
    ) -> Emitter<'a, 'c> {
        Emitter {
            team: schedule.warps.map(|n| match schedule.together {
                true => Team::cta(cg, n),
                false => Team::warp(cg, n),
            }),
            cg,
            nest,
            schedule,
            signature,
            kernel,
            read: nest.read(),
            values: vec![None; nest.exprs.len()],
            opaques: vec![None; nest.opaques.len()],
            log: vec![],
            bound: BTreeMap::new(),
            ranges: BTreeMap::new(),
            lanes: None,
            limits: None,
            keeping: vec![],
            kept: BTreeSet::new(),
            apart: false,
            held: None,
        }
    }
}

impl<'c> Emitter<'_, 'c> {
    fn size(&self, dim: Dim) -> Val<'c> {
        let symbols: Vec<SymId> = dim.symbols().collect();
        self.product(&symbols, dim.coeff() as i64)
    }

    fn product(&self, symbols: &[SymId], by: i64) -> Val<'c> {
        let cg = self.cg;
        if symbols.is_empty() {
            return cg.i64(by);
        }
        let at = self.signature.scalars.iter().position(|s| s == symbols);
        let scalar = self.kernel.scalars[at.expect("the signature lists every product")];
        if by == 1 { scalar } else { cg.mul(scalar, by) }
    }

    fn buffer(&self, buf: Buf) -> Val<'c> {
        let at = self.signature.buffers.iter().position(|b| *b == buf);
        self.kernel.buffers[at.expect("the signature lists every buffer")]
    }

    /// Elements along `var`, of those from `from` on, that a thread of a team takes at once, where
    /// it is known that there are only whole vectors of them, and enough for all threads.
    fn vector(&self, var: Var, (from, to): (i64, Option<i64>)) -> u32 {
        let most = self.schedule.vector.as_ref().map_or(1, |v| v.most);
        let extent = self.nest.vars.extent(var);
        let width = self.team.map_or(WARP, |team| team.width);
        let limited = self.limits.is_some_and(|(v, _, _)| v == var);
        let fits = |n: u32| {
            let whole = |count: u64| count.is_multiple_of(u64::from(n));
            let parts = from % i64::from(n) == 0 && to.is_none_or(|to| to % i64::from(n) == 0);
            let enough = extent.as_fixed().is_none_or(|count| count >= u64::from(n * width));
            !limited && whole(extent.coeff()) && parts && enough
        };
        let mut n = most;
        while n > 1 && !fits(n) {
            n /= 2;
        }
        n
    }

    /// What an access of the thread's lanes at `ix` is aligned to.
    fn align_bytes(&self, buf: Buf, ix: &Ix, elem: Elem) -> u32 {
        let (Some(vector), Some(lanes)) = (&self.schedule.vector, self.lanes) else {
            return elem.bytes();
        };
        if lanes.n == 1 || vector.unaligned.contains(&buf) {
            return elem.bytes();
        }
        // A thread's first element along the lanes is a multiple of their number.
        let factor = |(atom, _, c): (Atom, &[SymId], i64)| match atom {
            Atom::Var(v) if v == lanes.var => c.unsigned_abs() * u64::from(lanes.n),
            _ => c.unsigned_abs(),
        };
        let bits = ix.terms().map(factor).fold(0, |all, c| all | c);
        let elements = 1u64 << bits.trailing_zeros().min(8);
        (elements as u32 * elem.bytes()).min(ALIGNED_BYTES)
    }

    fn deps(&self, e: ExprId) -> &BTreeSet<Var> {
        &self.nest.exprs[e.0 as usize].deps
    }

    fn dtype(&self, e: ExprId) -> DType {
        self.nest.exprs[e.0 as usize].dtype
    }

    /// Runs `body` with a variable bound; values that depend on it do not outlive it. A variable
    /// may be bound already: values that depend on the outer binding are out of sight inside.
    fn scope<R>(&mut self, var: Var, value: Val<'c>, body: impl FnOnce(&mut Self) -> R) -> R {
        let mark = self.log.len();
        let before = self.bound.insert(var, value);
        let hidden = before.map(|_| self.hide(var));
        let result = body(self);
        while self.log.len() > mark {
            match self.log.pop() {
                Some(Undo::Value(e)) => self.values[e.0 as usize] = None,
                Some(Undo::Opaque(o)) => self.opaques[o as usize] = None,
                Some(Undo::Kept(e)) => {
                    self.kept.remove(&e);
                }
                None => {}
            }
        }
        match before {
            Some(v) => self.bound.insert(var, v),
            None => self.bound.remove(&var),
        };
        if let Some((values, opaques)) = hidden {
            values.into_iter().for_each(|(e, v)| self.values[e] = Some(v));
            opaques.into_iter().for_each(|(o, v)| self.opaques[o] = Some(v));
        }
        result
    }

    /// Takes away the values that depend on `var`.
    fn hide(&mut self, var: Var) -> (Hidden<'c>, Hidden<'c>) {
        let nest = self.nest;
        let of = |all: &mut [Option<Val<'c>>], depends: &dyn Fn(usize) -> bool| -> Hidden<'c> {
            let taken = all.iter_mut().enumerate().filter(|(i, _)| depends(*i));
            taken.filter_map(|(i, v)| v.take().map(|v| (i, v))).collect()
        };
        let values = of(&mut self.values, &|i| nest.exprs[i].deps.contains(&var));
        let opaques = of(&mut self.opaques, &|i| nest.opaques[i].1.contains(&var));
        (values, opaques)
    }

    /// Evaluates now what of `e` does not depend on `inner`.
    fn hoist(&mut self, e: ExprId, inner: &BTreeSet<Var>) {
        let mut seen = BTreeSet::new();
        self.hoist_new(e, inner, &mut seen);
    }

    fn hoist_new(&mut self, e: ExprId, inner: &BTreeSet<Var>, seen: &mut BTreeSet<ExprId>) {
        if self.values[e.0 as usize].is_some() || !seen.insert(e) {
            return;
        }
        if self.deps(e).is_disjoint(inner) {
            self.eval(e);
            return;
        }
        let nest = self.nest;
        match &nest.exprs[e.0 as usize].expr {
            Expr::Load { at, guards, .. } => {
                let ixs = std::iter::once(at).chain(guards.iter().map(|g| &g.at));
                for ix in ixs {
                    self.hoist_index(ix, inner, seen);
                }
            }
            Expr::Index(ix) => self.hoist_index(ix, inner, seen),
            Expr::Constant(_) | Expr::Extent(_) => {}
            Expr::Scalar(_, xs) => xs.iter().for_each(|x| self.hoist_new(*x, inner, seen)),
            Expr::Choose { guard, then, other } => {
                self.hoist_index(&guard.at, inner, seen);
                self.hoist_new(*then, inner, seen);
                self.hoist_new(*other, inner, seen);
            }
            Expr::Fold { x, vars, .. } => {
                let all = inner.iter().chain(vars).copied().collect();
                self.hoist_new(*x, &all, seen);
            }
            // The partner is evaluated only where lanes cannot be exchanged.
            Expr::Swap { x, .. } => self.hoist_new(*x, inner, seen),
        }
    }

    /// The value of an expression: scalar, or one a lane.
    fn eval(&mut self, e: ExprId) -> Val<'c> {
        if let Some(v) = self.values[e.0 as usize] {
            return v;
        }
        let value = match self.kept_place(e) {
            Some(at) if self.kept.contains(&e) => self.load_kept(at),
            Some(at) => {
                let value = self.eval_new(e);
                self.store_kept(e, value, at);
                value
            }
            None => self.eval_new(e),
        };
        self.values[e.0 as usize] = Some(value);
        self.log.push(Undo::Value(e));
        value
    }

    /// The scratch address of this step's values, for an expression kept along the lanes' variable.
    fn kept_place(&self, e: ExprId) -> Option<Val<'c>> {
        let kept = self.schedule.kept.get(&e)?;
        let lanes = self.lanes.filter(|l| l.var == kept.var)?;
        let first = *self.bound.get(&lanes.var)?;
        let start = self.cg.offset(self.kernel.scratch, (kept.offset * 4) as i64);
        Some(self.cg.at(start, Elem::F32, first))
    }

    fn load_kept(&self, at: Val<'c>) -> Val<'c> {
        let lanes = self.lanes.expect("kept values are read in lanes");
        self.cg.load_tail(Elem::F32.x(lanes.n), at, lanes.mask)
    }

    fn store_kept(&mut self, e: ExprId, value: Val<'c>, at: Val<'c>) {
        let lanes = self.lanes.expect("kept values are written in lanes");
        self.cg.store_tail(self.spread(value, lanes.n), at, lanes.mask);
        self.keeping.push(e);
    }

    /// Ends a loop over lanes: what every step of it wrote to scratch may be read from here on.
    fn keep_written(&mut self) {
        for e in std::mem::take(&mut self.keeping) {
            if self.kept.insert(e) {
                self.log.push(Undo::Kept(e));
            }
        }
    }

    fn spread(&self, v: Val<'c>, lanes: u32) -> Val<'c> {
        if v.ty.lanes == lanes { v } else { self.cg.splat(v, lanes) }
    }

    /// Operands of a scalar op, with as many lanes each.
    fn operands(&mut self, xs: &[ExprId]) -> Vec<Val<'c>> {
        let mut xs: Vec<Val> = xs.iter().map(|x| self.eval(*x)).collect();
        self.alike(&mut xs);
        xs
    }

    /// Scalars among vectors become vectors.
    fn alike(&self, xs: &mut [Val<'c>]) {
        let lanes = xs.iter().map(|x| x.ty.lanes).max().unwrap_or(1);
        xs.iter_mut().for_each(|x| *x = self.spread(*x, lanes));
    }

    fn eval_new(&mut self, e: ExprId) -> Val<'c> {
        let (cg, nest) = (self.cg, self.nest);
        let dtype = self.dtype(e);
        match &nest.exprs[e.0 as usize].expr {
            Expr::Load { buf, at, guards } => self.load(*buf, dtype, at, guards),
            Expr::Constant(value) => scalar::constant(cg, *value, dtype),
            Expr::Index(ix) => self.index_value(ix, dtype),
            Expr::Extent(dim) => {
                let size = cg.cast(self.size(*dim), Elem::F32);
                scalar::round(cg, size, dtype)
            }
            Expr::Scalar(op, xs) => {
                let xs = self.operands(xs);
                scalar::apply(cg, *op, &xs, dtype)
            }
            Expr::Choose { guard, then, other } => {
                let condition = self.condition(std::slice::from_ref(guard));
                match condition {
                    place::Condition::Always => self.eval(*then),
                    place::Condition::Never => self.eval(*other),
                    place::Condition::If(c) => {
                        let mut sides = [self.eval(*then), self.eval(*other)];
                        self.alike(&mut sides);
                        let mut c = c;
                        if c.ty.lanes > 1 {
                            sides = sides.map(|s| self.spread(s, c.ty.lanes));
                        } else {
                            c = self.spread(c, sides[0].ty.lanes);
                        }
                        cg.select(c, sides[0], sides[1])
                    }
                }
            }
            Expr::Fold { x, vars, max } => self.fold(e, *x, vars, *max),
            Expr::Swap { x, var, partner } => {
                let lanes = self.lanes.filter(|l| l.var == *var && l.n > 1);
                let Some(lanes) = lanes else { return self.eval(*partner) };
                let v = self.eval(*x);
                let v = self.spread(v, lanes.n);
                cg.shuffle(v, v, &(0..lanes.n).map(|i| i ^ 1).collect::<Vec<_>>())
            }
        }
    }
}
