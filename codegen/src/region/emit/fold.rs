//! Sums and maxima.
//!
//! Inside lanes, a fold over other variables keeps one value a lane. By itself it runs over lanes
//! along its last variable: one partial a lane (several vectors of them where that hides latency),
//! added up at the end half onto half.

use std::collections::BTreeSet;

use super::{Emitter, Lanes, Team};
use crate::emit::{Elem, Ty, Val};
use crate::region::index::Var;
use crate::region::scalar;
use crate::region::trace::{Expr, ExprId};

/// Partial vectors of a fold: an addition takes four cycles, two are begun in one.
const PARTIALS: u32 = 4;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn fold(&mut self, e: ExprId, x: ExprId, vars: &[Var], max: bool) -> Val<'c> {
        // What is known of an outer loop over one of these variables does not hold in this one.
        let ranges = self.ranges.clone();
        vars.iter().for_each(|v| {
            self.ranges.remove(v);
        });
        // Threads that are apart cannot fold together: each does all of it.
        let varies = self.varies(self.deps(e)) || self.apart;
        let lanes = if varies { self.lanes } else { self.lanes.take() };
        let value = if varies {
            self.fold_each_lane(e, x, vars, max)
        } else {
            self.fold_in_lanes(e, x, vars, max)
        };
        self.lanes = lanes;
        self.ranges = ranges;
        scalar::round(self.cg, value, self.dtype(e))
    }

    /// A fold of its own in each lane.
    fn fold_each_lane(&mut self, e: ExprId, x: ExprId, vars: &[Var], max: bool) -> Val<'c> {
        let n = self.lanes.map_or(1, |l| l.n);
        self.hoist(x, &vars.iter().copied().collect());
        let start = self.identity(scalar::register(self.dtype(e)).x(n), max);
        let one = |s: &mut Self, acc: &[Val<'c>]| {
            let v = s.eval(x);
            vec![s.joined(max, acc[0], s.spread(v, n))]
        };
        self.serial(vars, &[start], &one)[0]
    }

    /// One fold, along lanes of its last variable.
    fn fold_in_lanes(&mut self, e: ExprId, x: ExprId, vars: &[Var], max: bool) -> Val<'c> {
        let elem = scalar::register(self.dtype(e));
        let Some((last, serial)) = vars.split_last() else {
            let v = self.eval(x);
            return self.joined(max, self.identity(elem.x(1), max), v);
        };
        self.hoist(x, &vars.iter().copied().collect());
        if self.held.is_some() {
            return self.fold_held(x, elem, max);
        }
        if let Some(team) = self.team {
            let start = self.identity(elem.x(self.vector(*last, (0, None))), max);
            let ends = self.serial(serial, &[start], &|s, acc| s.in_team(team, x, *last, max, acc));
            let own = self.cg.reduce(ends[0], |a, b| self.joined(max, a, b));
            return team.fold(self.cg, own, |a, b| self.joined(max, a, b));
        }
        let wide = self.identity(elem.x(self.step(x, *last)), max);
        let start = [wide, self.identity(elem.x(self.cg.target.lanes), max)];
        let ends = self.serial(serial, &start, &|s, acc| s.along(x, *last, max, acc));
        let (mut wide, narrow) = (ends[0], ends[1]);
        while wide.ty.lanes > narrow.ty.lanes {
            let half = wide.ty.lanes / 2;
            let parts = [self.cg.slice(wide, 0, half), self.cg.slice(wide, half, half)];
            wide = self.joined(max, parts[0], parts[1]);
        }
        let all = self.joined(max, wide, narrow);
        self.cg.reduce(all, |a, b| self.joined(max, a, b))
    }

    pub(super) fn identity(&self, ty: Ty, max: bool) -> Val<'c> {
        if !max {
            return self.cg.zero(ty);
        }
        match ty.elem {
            Elem::I32 => self.cg.int(ty, i32::MIN.into()),
            Elem::I64 => self.cg.int(ty, i64::MIN),
            _ => self.cg.float(ty, f64::NEG_INFINITY),
        }
    }

    pub(super) fn joined(&self, max: bool, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        if max { scalar::max(self.cg, a, b) } else { self.cg.add(a, b) }
    }

    /// Bounds of a fold's variable.
    fn bounds(&self, var: Var) -> (Val<'c>, Val<'c>) {
        match self.limits {
            Some((v, lo, hi)) if v == var => (lo, hi),
            _ => (self.cg.i64(0), self.size(self.nest.vars.extent(var))),
        }
    }

    /// Loops over `vars` around `body`, carrying its values.
    fn serial(
        &mut self,
        vars: &[Var],
        start: &[Val<'c>],
        body: &dyn Fn(&mut Self, &[Val<'c>]) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let Some((var, rest)) = vars.split_first() else { return body(self, start) };
        let cg = self.cg;
        let (lo, hi) = self.bounds(*var);
        cg.for_(lo, hi, 1, start, |i, carried| {
            self.scope(*var, i, |s| s.serial(rest, carried, body))
        })
    }

    /// Lanes of a step along `var`.
    fn step(&self, x: ExprId, var: Var) -> u32 {
        let lanes = self.cg.target.lanes;
        let wide = lanes * PARTIALS;
        let short = self.nest.vars.extent(var).as_fixed().is_some_and(|n| n < u64::from(wide));
        if short || self.is_costly(x) { lanes } else { wide }
    }

    /// Does evaluating `x` take long enough that iterations overlap by themselves?
    fn is_costly(&self, x: ExprId) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![x];
        while let Some(e) = open.pop() {
            if self.values[e.0 as usize].is_some() || !seen.insert(e) {
                continue;
            }
            match &self.nest.exprs[e.0 as usize].expr {
                Expr::Scalar(op, _) if scalar::is_expensive(*op) => return true,
                Expr::Scalar(_, xs) => open.extend(xs),
                Expr::Choose { then, other, .. } => open.extend([then, other]),
                Expr::Swap { x, .. } => open.push(*x),
                Expr::Fold { .. } => return true,
                Expr::Load { .. } | Expr::Constant(_) | Expr::Index(_) | Expr::Extent(_) => {}
            }
        }
        false
    }

    /// Folds along `var`, each thread of a team its own elements, as many at once as it sums
    /// apart.
    fn in_team(
        &mut self,
        team: Team<'c>,
        x: ExprId,
        var: Var,
        max: bool,
        acc: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let cg = self.cg;
        // What may be folded together is, while the team is.
        self.hoist(x, &BTreeSet::from([var]));
        let (lo, hi) = self.bounds(var);
        let n = acc[0].ty.lanes;
        let first = cg.add(lo, cg.mul(team.lane, i64::from(n)));
        cg.for_(first, hi, i64::from(n * team.width), acc, |i, carried| {
            let v = self.in_lanes_of(Lanes { var, n, mask: None }, i, |s| s.eval(x));
            vec![self.joined(max, carried[0], self.spread(v, n))]
        })
    }

    /// Folds along `var` in lanes: whole steps into the first partials, then vectors and a masked
    /// rest into the second.
    fn along(&mut self, x: ExprId, var: Var, max: bool, acc: &[Val<'c>]) -> Vec<Val<'c>> {
        let cg = self.cg;
        let (lo, hi) = self.bounds(var);
        let [wide, narrow] = [acc[0], acc[1]];
        let lanes = narrow.ty.lanes;
        let n = cg.sub(hi, lo);
        let whole = |step: u32| {
            let steps = cg.div_exact(cg.sub(n, cg.and(n, i64::from(step) - 1)), step);
            cg.add(lo, cg.mul(steps, i64::from(step)))
        };
        let mut at = lo;
        let mut wide_end = wide;
        if wide.ty.lanes > lanes {
            let end = whole(wide.ty.lanes);
            wide_end = self.vectors(x, var, max, (at, end), wide);
            at = end;
        }
        let end = whole(lanes);
        let narrow = self.vectors(x, var, max, (at, end), narrow);
        let rest = self.rest(x, var, max, (end, hi), narrow);
        self.keep_written();
        vec![wide_end, rest]
    }

    fn vectors(
        &mut self,
        x: ExprId,
        var: Var,
        max: bool,
        (lo, hi): (Val<'c>, Val<'c>),
        acc: Val<'c>,
    ) -> Val<'c> {
        let n = acc.ty.lanes;
        let cg = self.cg;
        let ends = cg.for_(lo, hi, i64::from(n), &[acc], |i, carried| {
            let v = self.in_lanes_of(Lanes { var, n, mask: None }, i, |s| {
                let v = s.eval(x);
                s.spread(v, n)
            });
            vec![self.joined(max, carried[0], v)]
        });
        ends[0]
    }

    fn rest(
        &mut self,
        x: ExprId,
        var: Var,
        max: bool,
        (lo, hi): (Val<'c>, Val<'c>),
        acc: Val<'c>,
    ) -> Val<'c> {
        let cg = self.cg;
        let n = acc.ty.lanes;
        let extent = self.nest.vars.extent(var).as_fixed();
        let parted = self.limits.is_some_and(|(v, _, _)| v == var);
        if !parted && extent.is_some_and(|e| e % u64::from(n) == 0) {
            return acc;
        }
        let ends = cg.if_else(
            cg.cmp(crate::emit::Cmp::Lt, lo, hi),
            || {
                let mask = cg.mask_below(cg.sub(hi, lo), n);
                let lanes = Lanes { var, n, mask: Some(mask) };
                let v = self.in_lanes_of(lanes, lo, |s| {
                    let v = s.eval(x);
                    s.spread(v, n)
                });
                let v = cg.select(mask, v, self.identity(v.ty, max));
                vec![self.joined(max, acc, v)]
            },
            || vec![acc],
        );
        ends[0]
    }

    /// Runs `body` with `lanes` in flight from `first`.
    pub(super) fn in_lanes_of<R>(
        &mut self,
        lanes: Lanes<'c>,
        first: Val<'c>,
        body: impl FnOnce(&mut Self) -> R,
    ) -> R {
        let before = self.lanes.replace(lanes);
        let apart = std::mem::replace(&mut self.apart, self.team.is_some());
        let result = self.scope(lanes.var, first, body);
        self.apart = apart;
        self.lanes = before;
        result
    }
}
