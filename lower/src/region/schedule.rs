//! What is true of a nest however its loops are cut, for the backends that cut them.

use std::collections::{BTreeMap, BTreeSet};

use weft_codegen::region::emit::{Kept, Parts, Schedule};
use weft_codegen::region::graph::NodeId;
use weft_codegen::region::index::{Atom, Var};
use weft_codegen::region::scalar::is_expensive;
use weft_codegen::region::trace::{Expr, ExprId, Nest};
use weft_ir::dim::Dim;

/// A row longer than this is not kept in scratch: recomputing costs less than the cache misses.
const KEPT_MAX: u64 = 1 << 16;
/// A fold of up to so many elements may be done again for every index of a loop.
const REPEATED_MAX: u64 = 16;
/// Lanes are assumed to be at most this many where a loop's tail matters.
pub const LANES_MAX: u64 = 16;

/// A schedule and how its launch is sized.
pub struct Scheduled {
    pub schedule: Schedule,
    /// `grid` is the product of these.
    pub grid: Vec<Dim>,
    /// Times this, rounded up to whole chunks.
    pub chunked: Option<(Dim, i64)>,
    pub scratch_bytes: u64,
}

/// How a nest that sums in parts does.
pub fn parts(nest: &Nest) -> Option<Parts> {
    let index = nest.part?;
    let Expr::Fold { vars, .. } = &nest.exprs[nest.roots[0].value.0 as usize].expr else {
        return None;
    };
    let count = nest.vars.extent(index).as_fixed().unwrap_or(1) as i64;
    Some(Parts { var: *vars.first()?, index, count })
}

/// The folds of a nest, and the expressions each loop evaluates.
pub struct Folds {
    pub all: Vec<(ExprId, Vec<Var>)>,
}

impl Folds {
    pub fn of(nest: &Nest) -> Folds {
        let live = reachable(nest, nest.roots.iter().map(|r| r.value), true);
        let fold = |e: ExprId| match &nest.exprs[e.0 as usize].expr {
            Expr::Fold { vars, .. } => Some((e, vars.clone())),
            _ => None,
        };
        Folds { all: live.into_iter().filter_map(fold).collect() }
    }
}

/// What evaluating `from` evaluates; into the bodies of folds too if `inside`.
fn reachable(nest: &Nest, from: impl Iterator<Item = ExprId>, inside: bool) -> BTreeSet<ExprId> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<ExprId> = from.collect();
    while let Some(e) = open.pop() {
        if !seen.insert(e) {
            continue;
        }
        match &nest.exprs[e.0 as usize].expr {
            Expr::Scalar(_, xs) => open.extend(xs),
            Expr::Choose { guard, then, other } => {
                open.extend([*then, *other]);
                open.extend(nest.data(&guard.at));
            }
            Expr::Swap { x, .. } => open.push(*x),
            Expr::Fold { x, .. } if inside => open.push(*x),
            Expr::Fold { .. } | Expr::Constant(_) | Expr::Extent(_) => {}
            Expr::Index(ix) => open.extend(nest.data(ix)),
            Expr::Load { at, guards, .. } => {
                open.extend(nest.data(at));
                open.extend(guards.iter().flat_map(|g| nest.data(&g.at)));
            }
        }
    }
    seen
}

/// Is `var` better in lanes than the last variable of the folds in it? Not where those would then
/// be read with strides.
pub fn lanes_fit(nest: &Nest, var: Var) -> bool {
    let live = reachable(nest, nest.roots.iter().map(|r| r.value), true);
    let mut along_fold = 0;
    let mut along_var = 0;
    for e in live {
        let Expr::Fold { x, vars, .. } = &nest.exprs[e.0 as usize].expr else { continue };
        if !nest.exprs[e.0 as usize].deps.contains(&var) {
            continue;
        }
        for inner in reachable(nest, std::iter::once(*x), false) {
            let data = &nest.exprs[inner.0 as usize];
            let Expr::Load { at, .. } = &data.expr else { continue };
            // What the fold does not run over is loaded once.
            if vars.iter().all(|v| !data.deps.contains(v)) {
                continue;
            }
            let stride = |v: &Var| at.coefficient(Atom::Var(*v)).as_constant();
            // Where data says which row is read, neighbours along `var` are anywhere.
            let scattered = at.atoms().iter().any(|atom| match atom {
                Atom::Opaque(o) => nest.opaques[*o as usize].1.contains(&var),
                Atom::Var(_) | Atom::One => false,
            });
            if stride(&var) == Some(1) {
                along_var += 1;
            } else if vars.last().and_then(stride) == Some(1)
                && (scattered || stride(&var) != Some(0))
            {
                along_fold += 1;
            }
        }
    }
    along_fold <= along_var
}

/// Moves loops inside the lanes' loop that costly values in lanes do not depend on: rotary angles
/// are the same for all heads.
pub fn sink(nest: &Nest, lanes: Option<Var>, chunked: bool, order: &mut Vec<Var>) {
    let Some(lanes) = lanes else { return };
    let live = reachable(nest, nest.roots.iter().map(|r| r.value), false);
    let idle = |u: &Var| {
        live.iter().any(|e| {
            let data = &nest.exprs[e.0 as usize];
            let costly = matches!(&data.expr, Expr::Scalar(op, _) if is_expensive(*op));
            costly && data.deps.contains(&lanes) && !data.deps.contains(u)
        })
    };
    let free = usize::from(chunked);
    let sunk: Vec<Var> =
        order.iter().skip(free).copied().filter(|v| *v != lanes && idle(v)).collect();
    order.retain(|v| !sunk.contains(v));
    order.extend(sunk);
}

/// A fold that this order of loops would do too often; one of up to `per_call_max` elements that is
/// the same for all blocks may be done again by each call of a kernel.
pub fn repeated(
    nest: &Nest,
    order: &[Var],
    chunked: Option<Var>,
    per_call_max: u64,
    extent: &dyn Fn(&Var) -> u64,
) -> Option<NodeId> {
    // Folds to look at, with the loops around them.
    let mut open: Vec<(ExprId, Vec<Var>)> = vec![];
    let found = |from: ExprId, path: &[Var], open: &mut Vec<(ExprId, Vec<Var>)>| {
        for e in reachable(nest, std::iter::once(from), false) {
            if matches!(nest.exprs[e.0 as usize].expr, Expr::Fold { .. }) {
                open.push((e, path.to_vec()));
            }
        }
    };
    nest.roots.iter().for_each(|r| found(r.value, order, &mut open));
    while let Some((e, path)) = open.pop() {
        let Expr::Fold { x, vars, .. } = &nest.exprs[e.0 as usize].expr else { continue };
        let deps = &nest.exprs[e.0 as usize].deps;
        let size = vars.iter().map(extent).fold(1, u64::saturating_mul);
        let place = |v: &Var| path.iter().position(|o| o == v);
        let n = deps.iter().filter_map(place).max().map_or(0, |last| last + 1);
        let outside = &path[..n];
        let idle = outside.iter().filter(|v| !deps.contains(v));
        let times = idle.map(extent).fold(1, u64::saturating_mul);
        let rebound = outside.iter().any(|v| vars.contains(v));
        let per_chunk = chunked.is_some_and(|c| !deps.contains(&c)) && !deps.is_empty();
        // Storing a fold that does not depend on all of its dims cannot do better.
        let is_root = nest.roots.iter().any(|r| r.value == e);
        let too_often = (times > 1 || per_chunk) && size > REPEATED_MAX
            || rebound
            || deps.is_empty() && !order.is_empty() && size > per_call_max;
        if too_often && !is_root {
            return nest.folds.iter().find(|(f, _)| *f == e).map(|(_, node)| *node);
        }
        let inner: Vec<Var> = outside.iter().chain(vars).copied().collect();
        found(*x, &inner, &mut open);
    }
    None
}

/// Costly values along the lanes' variable that a fold and another loop both need, and the elements
/// of scratch they take.
pub fn kept(
    nest: &Nest,
    folds: &Folds,
    lanes: Option<Var>,
    extent: &dyn Fn(&Var) -> u64,
) -> (BTreeMap<ExprId, Kept>, u64) {
    let mut places = BTreeMap::new();
    let mut offset = 0;
    // Loops by the variable they run over: those of folds, and the roots'.
    let mut loops: Vec<(Var, BTreeSet<ExprId>)> = vec![];
    for (e, vars) in &folds.all {
        let Expr::Fold { x, .. } = &nest.exprs[e.0 as usize].expr else { continue };
        let whole = lanes.is_none_or(|v| !nest.exprs[e.0 as usize].deps.contains(&v));
        if let ([var], true, None) = (&vars[..], whole, nest.part) {
            loops.push((*var, reachable(nest, std::iter::once(*x), false)));
        }
    }
    if let Some(var) = lanes {
        loops.push((var, reachable(nest, nest.roots.iter().map(|r| r.value), false)));
    }
    for (i, data) in nest.exprs.iter().enumerate() {
        let e = ExprId(i as u32);
        if !matches!(&data.expr, Expr::Scalar(op, _) if is_expensive(*op)) {
            continue;
        }
        let of = |v: &Var| loops.iter().filter(|(w, set)| w == v && set.contains(&e)).count();
        let Some(var) = data.deps.iter().find(|v| of(v) >= 2) else { continue };
        let n = extent(var);
        if n <= KEPT_MAX {
            places.insert(e, Kept { var: *var, offset });
            offset += n.next_multiple_of(LANES_MAX);
        }
    }
    (places, offset)
}
