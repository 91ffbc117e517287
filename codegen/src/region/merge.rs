//! Merges loop variables that always step together.

use super::index::{Atom, Ix, Var};
use super::trace::{Expr, Nest, Opaque};

/// Merges neighbours `(a, b)` of the roots' variables, and of folds, wherever every index sees only
/// `a * extent(b) + b`: `b` then runs over both.
pub fn merge(nest: &mut Nest) {
    while let Some((a, b)) = pair(nest) {
        let extent = nest.vars.extent(a).checked_mul(nest.vars.extent(b));
        let Some(extent) = extent else { return };
        nest.vars.widen(b, extent);
        apply(nest, a, b);
    }
}

fn pair(nest: &Nest) -> Option<(Var, Var)> {
    let lists = sequences(nest);
    let neighbours = lists.iter().flat_map(|l| l.windows(2).map(|w| (w[0], w[1])));
    neighbours.into_iter().find(|(a, b)| {
        let together = |list: &Vec<Var>| {
            let at = |v| list.iter().position(|x| *x == v);
            match (at(*a), at(*b)) {
                (None, None) => true,
                (Some(i), Some(j)) => i + 1 == j,
                _ => false,
            }
        };
        let extent = nest.vars.extent(*b);
        let overflows = nest.vars.extent(*a).checked_mul(extent).is_none();
        !overflows
            && lists.iter().all(together)
            && nest.indices().all(|ix| {
                let (outer, inner) = (ix.coefficient(Atom::Var(*a)), ix.coefficient(Atom::Var(*b)));
                outer == inner.scaled(extent)
            })
            && !swapped(nest, *a)
            && nest.part != Some(*a)
            && nest.part != Some(*b)
    })
}

/// Is `v` the variable of an exchange of neighbours?
fn swapped(nest: &Nest, v: Var) -> bool {
    nest.exprs.iter().any(|e| matches!(e.expr, Expr::Swap { var, .. } if var == v))
}

fn sequences(nest: &Nest) -> Vec<Vec<Var>> {
    let folds = nest.exprs.iter().filter_map(|e| match &e.expr {
        Expr::Fold { vars, .. } => Some(vars.clone()),
        _ => None,
    });
    std::iter::once(nest.main.clone()).chain(folds).collect()
}

/// Takes `a` out of the nest; `b` stands for both.
fn apply(nest: &mut Nest, a: Var, b: Var) {
    let gone = |atom: Atom| (atom == Atom::Var(a)).then(Ix::default);
    let rewrite = |ix: &mut Ix| *ix = ix.substitute(&gone);
    let drop = |deps: &mut std::collections::BTreeSet<Var>| {
        if deps.remove(&a) {
            deps.insert(b);
        }
    };
    nest.main.retain(|v| *v != a);
    for e in &mut nest.exprs {
        drop(&mut e.deps);
        match &mut e.expr {
            Expr::Load { at, guards, .. } => {
                rewrite(at);
                guards.iter_mut().for_each(|g| rewrite(&mut g.at));
            }
            Expr::Index(ix) => rewrite(ix),
            Expr::Choose { guard, .. } => rewrite(&mut guard.at),
            Expr::Fold { vars, .. } => vars.retain(|v| *v != a),
            Expr::Constant(_) | Expr::Extent(_) | Expr::Scalar(..) | Expr::Swap { .. } => {}
        }
    }
    for (o, deps) in &mut nest.opaques {
        drop(deps);
        match o {
            Opaque::Quotient(ix, _) | Opaque::Remainder(ix, _) => rewrite(ix),
            Opaque::Data(_) => {}
        }
    }
    for r in &mut nest.roots {
        rewrite(&mut r.at);
        drop(&mut r.deps);
    }
}
