//! From index polynomials to addresses, masks and loads.

use std::collections::BTreeSet;

use weft_ir::dim::Dim;
use weft_ir::ty::DType;

use super::{Emitter, Undo};
use crate::emit::{Cmp, Elem, Val};
use crate::region::graph::Buf;
use crate::region::index::{Atom, Ix, Var};
use crate::region::scalar;
use crate::region::trace::{Expr, ExprId, Guard, Opaque, Root};

/// An index: a scalar and what each lane adds to it.
pub(super) struct Place<'c> {
    pub base: Val<'c>,
    pub step: Step<'c>,
}

pub(super) enum Step<'c> {
    Uniform,
    /// Lane `i` adds `i`.
    Contiguous,
    /// i64 lanes.
    Lanes(Val<'c>),
}

pub(super) enum Condition<'c> {
    Always,
    Never,
    /// A bit, or one a lane.
    If(Val<'c>),
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn hoist_index(
        &mut self,
        ix: &Ix,
        inner: &BTreeSet<Var>,
        seen: &mut BTreeSet<ExprId>,
    ) {
        let nest = self.nest;
        for atom in ix.atoms() {
            let Atom::Opaque(o) = atom else { continue };
            let (opaque, deps) = &nest.opaques[o as usize];
            match opaque {
                _ if deps.is_disjoint(inner) => {
                    self.opaque(o);
                }
                Opaque::Quotient(ix, _) | Opaque::Remainder(ix, _) => {
                    self.hoist_index(ix, inner, seen);
                }
                Opaque::Data(e) => self.hoist_new(*e, inner, seen),
            }
        }
    }

    /// An opaque value: a scalar i64, or i64 lanes.
    fn opaque(&mut self, o: u32) -> Val<'c> {
        if let Some(v) = self.opaques[o as usize] {
            return v;
        }
        let (cg, nest) = (self.cg, self.nest);
        let value = match &nest.opaques[o as usize].0 {
            Opaque::Quotient(ix, by) => {
                let (x, by) = self.dividend(ix, *by);
                cg.div(x, by)
            }
            Opaque::Remainder(ix, by) => {
                let (x, by) = self.dividend(ix, *by);
                cg.rem(x, by)
            }
            Opaque::Data(e) => {
                let v = self.eval(*e);
                cg.cast(v, Elem::I64)
            }
        };
        self.opaques[o as usize] = Some(value);
        self.log.push(Undo::Opaque(o));
        value
    }

    fn dividend(&mut self, ix: &Ix, by: Dim) -> (Val<'c>, Val<'c>) {
        let x = self.index(ix);
        let by = self.size(by);
        (x, self.spread(by, x.ty.lanes))
    }

    /// An index as a scalar, or as i64 lanes.
    pub(super) fn index(&mut self, ix: &Ix) -> Val<'c> {
        let place = self.place(ix);
        self.lanes_of(&place)
    }

    fn lanes_of(&self, place: &Place<'c>) -> Val<'c> {
        let cg = self.cg;
        let n = self.lanes.map_or(1, |l| l.n);
        match place.step {
            Step::Uniform => place.base,
            Step::Contiguous => cg.add(cg.splat(place.base, n), cg.iota(Elem::I64.x(n))),
            Step::Lanes(step) => cg.add(cg.splat(place.base, n), step),
        }
    }

    pub(super) fn place(&mut self, ix: &Ix) -> Place<'c> {
        let cg = self.cg;
        let mut base = cg.i64(0);
        let mut step: Option<Val<'c>> = None;
        for (atom, symbols, c) in ix.terms() {
            let by = self.product(symbols, c);
            match atom {
                Atom::One => base = cg.add(base, by),
                Atom::Var(v) => {
                    let value = self.bound[&v];
                    base = cg.add(base, cg.mul(value, by));
                }
                Atom::Opaque(o) => {
                    let value = self.opaque(o);
                    if value.ty.lanes == 1 {
                        base = cg.add(base, cg.mul(value, by));
                    } else {
                        let term = cg.mul(value, cg.splat(by, value.ty.lanes));
                        step = Some(step.map_or(term, |s| cg.add(s, term)));
                    }
                }
            }
        }
        let Some(lanes) = self.lanes else { return Place { base, step: Step::Uniform } };
        let stride = ix.coefficient(Atom::Var(lanes.var));
        let constant = stride.as_constant();
        let step = match (step, constant) {
            (None, Some(0)) => Step::Uniform,
            (None, Some(1)) => Step::Contiguous,
            (step, Some(0)) => step.map_or(Step::Uniform, Step::Lanes),
            (step, _) => {
                let by = stride
                    .terms()
                    .fold(cg.i64(0), |sum, (_, symbols, c)| cg.add(sum, self.product(symbols, c)));
                let ty = Elem::I64.x(lanes.n);
                let own = cg.mul(cg.iota(ty), cg.splat(by, lanes.n));
                Step::Lanes(step.map_or(own, |s| cg.add(s, own)))
            }
        };
        Place { base, step }
    }

    /// The index as a number of `dtype`.
    pub(super) fn index_value(&mut self, ix: &Ix, dtype: DType) -> Val<'c> {
        let cg = self.cg;
        let place = self.place(ix);
        let value = match place.step {
            // Counting in 32 bits fills a vector with as many lanes as f32 has.
            Step::Contiguous if dtype != DType::I64 => {
                let n = self.lanes.map_or(1, |l| l.n);
                let first = cg.splat(cg.cast(place.base, Elem::I32), n);
                cg.add(first, cg.iota(Elem::I32.x(n)))
            }
            _ => {
                let wide = self.lanes_of(&place);
                if dtype == DType::I64 { wide } else { cg.cast(wide, Elem::I32) }
            }
        };
        scalar::round(cg, cg.cast(value, scalar::register(dtype)), dtype)
    }

    /// Do all guards hold?
    pub(super) fn condition(&mut self, guards: &[Guard]) -> Condition<'c> {
        let cg = self.cg;
        let mut all: Option<Val<'c>> = None;
        for guard in guards {
            let limit = guard.below.as_fixed().map(|n| n as i64);
            let range = self.range(&guard.at);
            if let (Some((low, high)), Some(limit)) = (range, limit) {
                if low >= 0 && high < limit {
                    continue;
                }
                if high < 0 || low >= limit {
                    return Condition::Never;
                }
            }
            let at = self.index(&guard.at);
            let n = at.ty.lanes;
            let below = self.size(guard.below);
            let mut holds = cg.cmp(Cmp::Lt, at, self.spread(below, n));
            if range.is_none_or(|(low, _)| low < 0) {
                holds = cg.and(holds, cg.cmp(Cmp::Ge, at, 0));
            }
            all = Some(match all {
                None => holds,
                Some(before) => {
                    let lanes = before.ty.lanes.max(n);
                    cg.and(self.spread(before, lanes), self.spread(holds, lanes))
                }
            });
        }
        all.map_or(Condition::Always, Condition::If)
    }

    /// The range of an index given what is known of the variables here.
    fn range(&self, ix: &Ix) -> Option<(i64, i64)> {
        let (mut low, mut high) = (0, 0);
        for (atom, symbols, c) in ix.terms() {
            let (first, last) = match atom {
                _ if !symbols.is_empty() => return None,
                Atom::One => (1, 1),
                Atom::Opaque(_) => return None,
                Atom::Var(v) => match self.ranges.get(&v) {
                    Some((lo, hi)) => (*lo, *hi - 1),
                    None => (0, self.nest.vars.extent(v).as_fixed()? as i64 - 1),
                },
            };
            low += (c * first).min(c * last);
            high += (c * first).max(c * last);
        }
        Some((low, high))
    }

    pub(super) fn load(&mut self, buf: Buf, dtype: DType, at: &Ix, guards: &[Guard]) -> Val<'c> {
        let cg = self.cg;
        let elem = scalar::memory(dtype);
        let condition = match self.condition(guards) {
            Condition::Never => return cg.zero(scalar::register(dtype).x(1)),
            Condition::Always => None,
            Condition::If(c) => Some(c),
        };
        let place = self.place(at);
        let ptr = self.buffer(buf);
        let raw = match place.step {
            Step::Uniform if condition.is_none_or(|c| c.ty.lanes == 1) => {
                let ptr = cg.at(ptr, elem, place.base);
                match condition {
                    None => cg.load(elem.x(1), ptr),
                    Some(c) => cg.masked_load(elem.x(1), ptr, c),
                }
            }
            Step::Contiguous => {
                let lanes = self.lanes.expect("only lanes are contiguous");
                let mask = match (condition, lanes.mask) {
                    (None, mask) => mask,
                    (Some(c), None) => Some(self.spread(c, lanes.n)),
                    (Some(c), Some(mask)) => Some(cg.and(self.spread(c, lanes.n), mask)),
                };
                let ptr = cg.at(ptr, elem, place.base);
                match mask {
                    None => {
                        let align = self.align_bytes(buf, at, elem);
                        cg.load_aligned(elem.x(lanes.n), ptr, align)
                    }
                    // A thread has no masks.
                    Some(_) if self.team.is_some() && lanes.n > 1 => {
                        let ptr = self.buffer(buf);
                        self.load_lanes(ptr, elem, &place, condition)
                    }
                    Some(mask) => cg.masked_load(elem.x(lanes.n), ptr, mask),
                }
            }
            _ => self.load_lanes(ptr, elem, &place, condition),
        };
        scalar::widen(cg, raw, dtype)
    }

    /// One load a lane; lanes that are out read element 0 and give zero.
    fn load_lanes(
        &self,
        ptr: Val<'c>,
        elem: Elem,
        place: &Place<'c>,
        condition: Option<Val<'c>>,
    ) -> Val<'c> {
        let cg = self.cg;
        let lanes = self.lanes.expect("lanes are loaded in lanes");
        let at = self.spread(self.lanes_of(place), lanes.n);
        let mask = match (condition, lanes.mask) {
            (None, mask) => mask,
            (Some(c), None) => Some(self.spread(c, lanes.n)),
            (Some(c), Some(mask)) => Some(cg.and(self.spread(c, lanes.n), mask)),
        };
        // Moved as bits: 16-bit floats have no lanes of their own on most machines.
        let bits = if elem == Elem::BF16 { Elem::I16 } else { elem };
        let ty = bits.x(lanes.n);
        let at = match mask {
            None => at,
            Some(mask) => cg.select(mask, at, cg.zero(at.ty)),
        };
        let mut v = cg.zero(ty);
        for lane in 0..lanes.n {
            let one = cg.load(bits.x(1), cg.at(ptr, bits, cg.lane(at, lane)));
            v = if lanes.n == 1 { one } else { cg.insert(v, one, lane) };
        }
        let v = match mask {
            None => v,
            Some(mask) => cg.select(mask, v, cg.zero(ty)),
        };
        cg.bitcast(v, elem.x(lanes.n))
    }

    /// A root's value as it lies in memory. What nothing else reads is not rounded first.
    pub(super) fn narrowed(&mut self, root: &Root) -> Val<'c> {
        let (cg, nest, e) = (self.cg, self.nest, root.value);
        let known = self.values[e.0 as usize].is_some() || self.schedule.kept.contains_key(&e);
        let data = &nest.exprs[e.0 as usize];
        match &data.expr {
            Expr::Scalar(op, xs) if !known && !self.read[e.0 as usize] => {
                let xs = self.operands(xs);
                let value = scalar::unrounded(cg, *op, &xs, data.dtype);
                scalar::narrow(cg, value, root.dtype)
            }
            _ => {
                let value = self.eval(e);
                scalar::narrow(cg, value, root.dtype)
            }
        }
    }

    /// Stores a root's value, in memory's form.
    pub(super) fn store(&mut self, v: Val<'c>, buf: Buf, dtype: DType, at: &Ix) {
        let cg = self.cg;
        let elem = scalar::memory(dtype);
        let place = self.place(at);
        let ptr = self.buffer(buf);
        match place.step {
            Step::Uniform => {
                let store = || cg.store(cg.lane(v, 0), cg.at(ptr, elem, place.base));
                match self.team.filter(|_| !self.apart) {
                    None => store(),
                    Some(team) => cg.when(cg.cmp(Cmp::Eq, team.lane, 0), store),
                }
            }
            Step::Contiguous => {
                let lanes = self.lanes.expect("only lanes are contiguous");
                let v = self.spread(v, lanes.n);
                let ptr = cg.at(ptr, elem, place.base);
                match lanes.mask {
                    None => cg.store_aligned(v, ptr, self.align_bytes(buf, at, elem)),
                    Some(mask) => cg.masked_store(v, ptr, mask),
                }
            }
            Step::Lanes(_) => {
                let lanes = self.lanes.expect("lanes are stored in lanes");
                let v = self.spread(v, lanes.n);
                let at = self.lanes_of(&place);
                for lane in 0..lanes.n {
                    let one = || {
                        cg.store(cg.lane(v, lane), cg.at(ptr, elem, cg.lane(at, lane)));
                    };
                    match lanes.mask {
                        None => one(),
                        Some(mask) => cg.when(cg.lane(mask, lane), one),
                    }
                }
            }
        }
    }

    /// Does a value with these variables differ from lane to lane?
    pub(super) fn varies(&self, deps: &BTreeSet<Var>) -> bool {
        self.lanes.is_some_and(|l| deps.contains(&l.var))
    }
}
