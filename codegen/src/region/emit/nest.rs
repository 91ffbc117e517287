//! Blocks and loops around the roots.

use std::collections::BTreeSet;

use super::{Emitter, Lanes, Team};
use crate::emit::{Cmp, Val};
use crate::region::index::{Ix, Var};
use crate::region::trace::{Expr, Guard};

/// A loop is cut where guards change, if that gives no more pieces than this.
const PIECES_MAX: usize = 6;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn blocks(&mut self) {
        let cg = self.cg;
        let roots: Vec<usize> = (0..self.nest.roots.len()).collect();
        let schedule = self.schedule;
        let inner = schedule.grid.iter().chain(&schedule.order).copied().collect();
        // A part's fold is not the same for all blocks though no variable of the roots says so.
        self.hoist_roots(&roots, &inner);
        let Some(team) = self.team else {
            return cg.for_each(self.kernel.begin, self.kernel.end, 1, |block| {
                self.block(&roots, block);
            });
        };
        let first = cg.mul(self.kernel.begin, i64::from(team.per_cta));
        let block = cg.add(first, team.index);
        let n_blocks = self.n_blocks();
        cg.when(cg.cmp(Cmp::Lt, block, n_blocks), || self.block(&roots, block));
    }

    fn n_blocks(&self) -> Val<'c> {
        let cg = self.cg;
        let extent = |var: &Var| self.size(self.nest.vars.extent(*var));
        let chunks = match (self.schedule.chunk, self.schedule.order.first()) {
            (Some(chunk), Some(var)) => cg.div_ceil(extent(var), chunk),
            _ => cg.i64(1),
        };
        self.schedule.grid.iter().fold(chunks, |n, var| cg.mul(n, extent(var)))
    }

    fn block(&mut self, roots: &[usize], block: Val<'c>) {
        let (cg, schedule) = (self.cg, self.schedule);
        let (mut rest, mut first) = (block, cg.i64(0));
        let mut end = None;
        if let (Some(chunk), Some(var)) = (schedule.chunk, schedule.order.first()) {
            let extent = self.size(self.nest.vars.extent(*var));
            let chunks = cg.div_ceil(extent, chunk);
            let at = cg.rem(rest, chunks);
            rest = cg.div(rest, chunks);
            first = cg.mul(at, chunk);
            end = Some(cg.min(cg.add(first, chunk), extent));
        }
        self.grid(schedule.grid.len(), rest, &mut |s| {
            s.level(0, roots, end.map(|end| (first, end)));
        });
    }

    /// Binds the first `n` variables of the grid from what is left of the block's index.
    pub(super) fn grid(&mut self, n: usize, rest: Val<'c>, body: &mut dyn FnMut(&mut Self)) {
        let cg = self.cg;
        let Some(var) = n.checked_sub(1).map(|i| self.schedule.grid[i]) else {
            return body(self);
        };
        let (value, rest) = if n == 1 {
            (rest, cg.i64(0))
        } else {
            let extent = self.size(self.nest.vars.extent(var));
            (cg.rem(rest, extent), cg.div(rest, extent))
        };
        self.scope(var, value, |s| {
            if let Some(parts) = s.schedule.parts.filter(|p| p.index == var) {
                let extent = s.size(s.nest.vars.extent(parts.var));
                let part = cg.div_ceil(extent, parts.count);
                let lo = cg.min(cg.mul(value, part), extent);
                s.limits = Some((parts.var, lo, cg.min(cg.add(lo, part), extent)));
            }
            s.grid(n - 1, rest, body);
        });
    }

    pub(super) fn hoist_roots(&mut self, roots: &[usize], inner: &BTreeSet<Var>) {
        let nest = self.nest;
        for r in roots {
            let root = &nest.roots[*r];
            self.hoist(root.value, inner);
        }
    }

    /// Stores the roots that depend on no later loop, then runs the next loop for the others.
    fn level(&mut self, depth: usize, roots: &[usize], chunk: Option<(Val<'c>, Val<'c>)>) {
        let (nest, schedule) = (self.nest, self.schedule);
        let inner: BTreeSet<Var> = schedule.order[depth..].iter().copied().collect();
        let ready = |r: &&usize| nest.roots[**r].deps.is_disjoint(&inner);
        let (now, later): (Vec<usize>, Vec<usize>) =
            (roots.iter().filter(ready).copied().collect(), {
                roots.iter().filter(|r| !ready(r)).copied().collect()
            });
        // What later roots share with these is evaluated before either, in one order.
        self.hoist_roots(&later, &inner);
        for r in now {
            let root = &nest.roots[r];
            let value = self.narrowed(root);
            self.store(value, root.buf, root.dtype, &root.at);
        }
        if later.is_empty() {
            return;
        }
        let var = schedule.order[depth];
        for (lo, hi) in self.pieces(var, chunk.is_some()) {
            let bounds = match (chunk, lo, hi) {
                (Some(bounds), _, _) => bounds,
                (None, lo, Some(hi)) => (self.cg.i64(lo), self.cg.i64(hi)),
                (None, _, None) => (self.cg.i64(0), self.size(nest.vars.extent(var))),
            };
            let known = hi.map(|hi| (lo, hi));
            let before = match known.filter(|_| chunk.is_none()) {
                Some(known) => self.ranges.insert(var, known),
                None => self.ranges.remove(&var),
            };
            if let (Some(team), true) = (self.team, schedule.lanes == Some(var)) {
                let n = match chunk.is_some() {
                    true => self.vector(var, (schedule.chunk.unwrap_or(1), None)),
                    false => self.vector(var, (lo, hi)),
                };
                self.team_loop((team, n), var, depth, &later, bounds);
            } else if schedule.lanes == Some(var) {
                let n = known.filter(|_| chunk.is_none()).map(|(lo, hi)| hi - lo);
                self.lane_loop(var, depth, &later, bounds, n);
            } else {
                self.serial_loop(var, depth, &later, bounds, known);
            }
            match before {
                Some(b) => self.ranges.insert(var, b),
                None => self.ranges.remove(&var),
            };
        }
        self.keep_written();
    }

    /// The pieces of a loop, `(from, to)`, in each of which guards on its variable alone do not
    /// change.
    fn pieces(&self, var: Var, chunked: bool) -> Vec<(i64, Option<i64>)> {
        let extent = self.nest.vars.extent(var).as_fixed().map(|n| n as i64);
        let Some(extent) = extent.filter(|_| !chunked) else { return vec![(0, None)] };
        let mut cuts = BTreeSet::from([0, extent]);
        let mut add = |guard: &Guard| {
            let alone = guard.at.clone().minus(&Ix::var(var)).as_constant();
            let limit = guard.below.as_fixed();
            if let (Some(offset), Some(limit)) = (alone, limit) {
                cuts.insert((-offset).clamp(0, extent));
                cuts.insert((limit as i64 - offset).clamp(0, extent));
            }
        };
        for e in &self.nest.exprs {
            match &e.expr {
                Expr::Load { guards, .. } => guards.iter().for_each(&mut add),
                Expr::Choose { guard, .. } => add(guard),
                _ => {}
            }
        }
        let swaps = |e: &Expr| matches!(e, Expr::Swap { var: v, .. } if *v == var);
        let swapped = self.nest.exprs.iter().any(|e| swaps(&e.expr));
        let uneven = swapped && cuts.iter().any(|c| c % 2 != 0);
        if uneven || cuts.len() > PIECES_MAX + 1 {
            return vec![(0, Some(extent))];
        }
        let cuts: Vec<i64> = cuts.into_iter().collect();
        if cuts.len() < 2 {
            return vec![(0, Some(extent))];
        }
        cuts.windows(2).map(|w| (w[0], Some(w[1]))).collect()
    }

    fn serial_loop(
        &mut self,
        var: Var,
        depth: usize,
        roots: &[usize],
        (lo, hi): (Val<'c>, Val<'c>),
        known: Option<(i64, i64)>,
    ) {
        let cg = self.cg;
        if known.is_some_and(|(lo, hi)| hi - lo == 1) {
            return self.scope(var, lo, |s| s.level(depth + 1, roots, None));
        }
        cg.for_each(lo, hi, 1, |i| self.scope(var, i, |s| s.level(depth + 1, roots, None)));
    }

    /// A loop over lanes that are the threads of a team: each takes its own elements, so many
    /// neighbours at once.
    fn team_loop(
        &mut self,
        (team, n): (Team<'c>, u32),
        var: Var,
        depth: usize,
        roots: &[usize],
        (lo, hi): (Val<'c>, Val<'c>),
    ) {
        let first = self.cg.add(lo, self.cg.mul(team.lane, i64::from(n)));
        self.cg.for_each(first, hi, i64::from(n * team.width), |i| {
            let lanes = Lanes { var, n, mask: None };
            self.in_lanes_of(lanes, i, |s| s.level(depth + 1, roots, None));
        });
    }

    /// A loop over lanes: unrolled steps, vectors, a masked rest. `n` is the count where it is
    /// known.
    fn lane_loop(
        &mut self,
        var: Var,
        depth: usize,
        roots: &[usize],
        (lo, hi): (Val<'c>, Val<'c>),
        n: Option<i64>,
    ) {
        let cg = self.cg;
        let lanes = cg.target.lanes;
        let wide = lanes * self.schedule.unroll.max(1);
        let mut at = lo;
        let count = cg.sub(hi, lo);
        let mut steps = vec![lanes];
        if wide > lanes && n.is_none_or(|n| n >= i64::from(wide)) {
            steps.insert(0, wide);
        }
        for step in steps {
            if n.is_some_and(|n| n < i64::from(step)) {
                continue;
            }
            let end = cg.sub(hi, cg.and(count, i64::from(step) - 1));
            cg.for_each(at, end, i64::from(step), |i| {
                let lanes = Lanes { var, n: step, mask: None };
                self.in_lanes_of(lanes, i, |s| s.level(depth + 1, roots, None));
            });
            at = end;
        }
        if n.is_some_and(|n| n % i64::from(lanes) == 0) {
            return;
        }
        cg.when(cg.cmp(Cmp::Lt, at, hi), || {
            let mask = cg.mask_below(cg.sub(hi, at), lanes);
            let lanes = Lanes { var, n: lanes, mask: Some(mask) };
            self.in_lanes_of(lanes, at, |s| s.level(depth + 1, roots, None));
        });
    }
}
