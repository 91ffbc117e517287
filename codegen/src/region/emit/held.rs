//! Regions that go on with rows which threads hold in registers, as a product's sums: what the
//! region would load of them is there, and four threads have a row together.
//!
//! Of every eight columns of a row each of its four threads has two neighbours, a *pair*. All that
//! a row needs folded lies in one *piece* of it, so a fold is one over a thread's pairs and then
//! over the four. A sum adds them in this order, whatever a region's own kernel does.

use std::collections::BTreeSet;

use weft_ir::dim::{Dim, product};

use super::{Emitter, Lanes, Schedule, Signature, Team, Undo, Vector};
use crate::emit::{Cg, Elem, Kernel, Val};
use crate::region::graph::Buf;
use crate::region::index::{Atom, Ix, Var, linear};
use crate::region::scalar;
use crate::region::trace::{Expr, ExprId, Nest};

/// Threads that have a row together.
const WIDTH: u32 = 4;

/// How a row lies along the innermost loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Along {
    /// The loop runs over all rows as one.
    All,
    /// Over a row.
    Row,
    /// Over a piece of a row, of so many columns.
    Piece(i64),
}

/// A region whose operands `of` are held. They are alike, rows of `cols` columns.
#[derive(Clone, Debug)]
pub struct Held {
    nest: Nest,
    of: Vec<Buf>,
    cols: i64,
    along: Along,
    /// Without the operands that are held.
    pub signature: Signature,
    /// Other buffers that may begin anywhere, not at multiples of 16 bytes.
    pub unaligned: BTreeSet<Buf>,
}

/// A piece of a row as a thread has it.
pub struct Piece<'c> {
    /// An i64; a row that there is, even where there is nothing to store.
    pub row: Val<'c>,
    /// Whether results are stored.
    pub inside: Val<'c>,
    /// First column of the piece, an i64.
    pub first: Val<'c>,
    /// What to add to it for each pair's first column, an i64.
    pub cols: Vec<Val<'c>>,
    /// Of each operand that is held, its pairs: f32.
    pub pairs: Vec<Vec<[Val<'c>; 2]>>,
}

/// What a thread holds, and where: a value of the innermost variable and the operands' lanes for
/// each pair.
pub(super) struct Pairs<'c> {
    at: Vec<Val<'c>>,
    values: Vec<Vec<(ExprId, Val<'c>)>>,
}

/// A value and where it goes, on its way out of registers.
struct Store<'c> {
    value: Val<'c>,
    to: Val<'c>,
    align_bytes: u32,
}

impl Held {
    /// `None` where the region does more with `of`, arrays of `dims`, than this can.
    pub fn new(nest: &Nest, of: &[Buf], dims: &[Dim]) -> Option<Held> {
        let extent = |v: &Var| nest.vars.extent(*v);
        let extents: Vec<Dim> = nest.main.iter().map(extent).collect();
        let cols = dims.last()?.as_fixed()?;
        if nest.part.is_some() || product(&extents)? != product(dims)? || cols % 2 != 0 {
            return None;
        }
        let (var, piece) = (*nest.main.last()?, *extents.last()?);
        let along = match piece.as_fixed() {
            Some(n) if n == cols => Along::Row,
            _ if extents.len() == 1 => Along::All,
            Some(n) if cols.is_multiple_of(n) && n % 2 == 0 => Along::Piece(n as i64),
            _ => return None,
        };
        let main: Vec<Ix> = nest.main.iter().map(|v| Ix::var(*v)).collect();
        let own = linear(&main, &extents)?;
        for data in &nest.exprs {
            let fits = match &data.expr {
                Expr::Load { buf, at, guards } if of.contains(buf) => {
                    *at == own && guards.is_empty()
                }
                Expr::Fold { vars, .. } => {
                    along != Along::All && *vars == [var] && !data.deps.contains(&var)
                }
                _ => true,
            };
            if !fits {
                return None;
            }
        }
        for root in &nest.roots {
            let step = root.at.coefficient(Atom::Var(var)).as_constant();
            let stored_once = nest.main.iter().all(|v| *v == var || root.deps.contains(v));
            let fits = match root.deps.contains(&var) {
                true => step == Some(1),
                false => along != Along::All,
            };
            if !fits || !stored_once || of.contains(&root.buf) {
                return None;
            }
        }
        let mut signature = Signature::of(nest);
        signature.buffers.retain(|buf| !of.contains(buf));
        let (nest, of, cols) = (nest.clone(), of.to_vec(), cols as i64);
        Some(Held { nest, of, cols, along, signature, unaligned: BTreeSet::new() })
    }

    /// Columns that have to be held together, where it matters: a whole number of pieces.
    pub fn piece_cols(&self) -> Option<i64> {
        let folds = self.nest.exprs.iter().any(|e| matches!(e.expr, Expr::Fold { .. }));
        match self.along {
            Along::Piece(n) => Some(n),
            Along::Row if folds => Some(self.cols),
            Along::Row | Along::All => None,
        }
    }

    /// Operations for each element, costly ones counted as several.
    pub fn ops(&self) -> u64 {
        let of = |e: &Expr| match e {
            Expr::Scalar(op, _) if scalar::is_expensive(*op) => COSTLY_OPS,
            Expr::Scalar(..) | Expr::Fold { .. } | Expr::Choose { .. } | Expr::Load { .. } => 1,
            _ => 0,
        };
        let computed: u64 = self.nest.exprs.iter().map(|e| of(&e.expr)).sum();
        computed + self.nest.roots.len() as u64
    }

    /// What the code depends on.
    pub fn code(&self) -> String {
        format!("{:?}{:?}{:?}", self.nest, self.of, self.unaligned)
    }

    /// Evaluates the region for pieces of rows. `kernel` has the signature's buffers and scalars,
    /// `lane` is the thread's place among the four that have a row, an i64. Whole warps must come
    /// here together.
    pub fn emit<'c>(
        &self,
        cg: &Cg<'c>,
        kernel: &Kernel<'c>,
        lane: Val<'c>,
        pieces: impl IntoIterator<Item = Piece<'c>>,
    ) {
        let (var, grid) = self.nest.main.split_last().expect("a region has a loop");
        let schedule = Schedule {
            grid: grid.to_vec(),
            order: vec![*var],
            lanes: Some(*var),
            vector: Some(Vector { most: 2, unaligned: self.unaligned.clone() }),
            ..Schedule::default()
        };
        let team = Team { index: cg.i64(0), per_cta: 1, lane, width: WIDTH };
        let mut emitter = Emitter::new(cg, &self.nest, &schedule, &self.signature, kernel);
        emitter.team = Some(team);
        for piece in pieces {
            let (block, first) = match self.along {
                Along::All => {
                    let start = cg.mul(piece.row, self.cols);
                    (cg.i64(0), cg.add(start, piece.first))
                }
                Along::Row => (piece.row, piece.first),
                Along::Piece(n) => {
                    let before = cg.mul(piece.row, self.cols / n);
                    (cg.add(before, cg.div(piece.first, n)), cg.i64(0))
                }
            };
            emitter.held = Some(self.pairs(cg, &piece, first));
            let n = schedule.grid.len();
            emitter.grid(n, block, &mut |s| s.held_block(*var, piece.inside));
        }
    }

    /// The pairs of a piece whose loop begins at `first`, rounded to what was loaded.
    fn pairs<'c>(&self, cg: &Cg<'c>, piece: &Piece<'c>, first: Val<'c>) -> Pairs<'c> {
        let loads = self.nest.exprs.iter().enumerate().filter_map(|(e, data)| match data.expr {
            Expr::Load { buf, .. } => {
                let operand = self.of.iter().position(|of| *of == buf)?;
                Some((ExprId(e as u32), operand, data.dtype))
            }
            _ => None,
        });
        let loads: Vec<_> = loads.collect();
        let values = (0..piece.cols.len()).map(|p| {
            let value = |(e, operand, dtype): &(ExprId, usize, _)| {
                let both = piece.pairs[*operand][p];
                let lanes = cg.zero(Elem::F32.x(2));
                let lanes = cg.insert(cg.insert(lanes, both[0], 0), both[1], 1);
                (*e, scalar::round(cg, lanes, *dtype))
            };
            loads.iter().map(value).collect()
        });
        Pairs {
            values: values.collect(),
            at: piece.cols.iter().map(|c| cg.add(first, *c)).collect(),
        }
    }
}

/// What an exponential or an exact division counts as.
const COSTLY_OPS: u64 = 16;

impl<'c> Emitter<'_, 'c> {
    fn n_pairs(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.at.len())
    }

    /// Runs `body` at a pair.
    fn at_pair<R>(&mut self, var: Var, p: usize, body: impl FnOnce(&mut Self) -> R) -> R {
        let held = self.held.as_ref().expect("there are pairs");
        let (at, values) = (held.at[p], held.values[p].clone());
        self.in_lanes_of(Lanes { var, n: 2, mask: None }, at, |s| {
            for (e, value) in values {
                s.values[e.0 as usize] = Some(value);
                s.log.push(Undo::Value(e));
            }
            body(s)
        })
    }

    /// The fold of `x` over the piece.
    pub(super) fn fold_held(&mut self, x: ExprId, elem: Elem, max: bool) -> Val<'c> {
        let cg = self.cg;
        let var = self.schedule.order[0];
        let mut all = self.identity(elem.x(2), max);
        for p in 0..self.n_pairs() {
            let v = self.at_pair(var, p, |s| {
                let v = s.eval(x);
                s.spread(v, 2)
            });
            all = self.joined(max, all, v);
        }
        let own = cg.reduce(all, |a, b| self.joined(max, a, b));
        let team = self.team.expect("rows have threads");
        team.fold(cg, own, |a, b| self.joined(max, a, b))
    }

    fn held_block(&mut self, var: Var, inside: Val<'c>) {
        let (cg, nest) = (self.cg, self.nest);
        let all: Vec<usize> = (0..nest.roots.len()).collect();
        self.hoist_roots(&all, &BTreeSet::from([var]));
        let of_rows = |r: &usize| !nest.roots[*r].deps.contains(&var);
        let (rows, elements): (Vec<usize>, Vec<usize>) = all.into_iter().partition(of_rows);
        let rows: Vec<Store> = rows.into_iter().map(|r| self.leaving(r)).collect();
        let mut stores = vec![];
        for p in 0..self.n_pairs() {
            let leave = |s: &mut Self| -> Vec<Store<'c>> {
                elements.iter().map(|r| s.leaving(*r)).collect()
            };
            stores.extend(self.at_pair(var, p, leave));
        }
        let put = |store: &Store<'c>| cg.store_aligned(store.value, store.to, store.align_bytes);
        cg.when(inside, || stores.iter().for_each(put));
        let team = self.team.expect("rows have threads");
        let leads = cg.and(inside, cg.cmp(crate::emit::Cmp::Eq, team.lane, 0));
        cg.when(leads, || rows.iter().for_each(put));
    }

    /// A root's value in memory's form, and its address.
    fn leaving(&mut self, r: usize) -> Store<'c> {
        let root = &self.nest.roots[r];
        let elem = scalar::memory(root.dtype);
        let value = self.narrowed(root);
        let n = self.lanes.map_or(1, |lanes| lanes.n);
        let value = self.spread(value, n);
        let base = self.place(&root.at).base;
        let to = self.cg.at(self.buffer(root.buf), elem, base);
        Store { value, to, align_bytes: self.align_bytes(root.buf, &root.at, elem) }
    }
}
