//! Index polynomials: where an element lies, as a function of loop variables.
//!
//! An [`Ix`] is a sum of coefficients times size symbols times at most one *atom*: a loop variable,
//! or an opaque value (a quotient, a remainder, an index that is data). Movement ops turn such sums
//! into such sums, so a chain of them costs nothing; only what cannot be told from the sums becomes
//! opaque.

use std::collections::{BTreeMap, BTreeSet};

use weft_ir::dim::{Dim, SymId};

/// A loop variable, a position in [`Vars`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Var(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Atom {
    One,
    Var(Var),
    /// A position in the expression's table of opaque values.
    Opaque(u32),
}

/// `Σ coefficient * symbols * atom`; no coefficient is zero.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ix {
    terms: BTreeMap<(Atom, Vec<SymId>), i64>,
}

impl Ix {
    pub fn constant(c: i64) -> Ix {
        Ix::term(Atom::One, Dim::fixed(1)).times(c)
    }

    pub fn var(v: Var) -> Ix {
        Ix::term(Atom::Var(v), Dim::fixed(1))
    }

    pub fn dim(d: Dim) -> Ix {
        Ix::term(Atom::One, d)
    }

    pub fn term(atom: Atom, by: Dim) -> Ix {
        let mut ix = Ix::default();
        ix.push(atom, by.symbols().collect(), by.coeff() as i64);
        ix
    }

    fn push(&mut self, atom: Atom, symbols: Vec<SymId>, coeff: i64) {
        let key = (atom, symbols);
        let sum = self.terms.get(&key).copied().unwrap_or(0) + coeff;
        if sum == 0 {
            self.terms.remove(&key);
        } else {
            self.terms.insert(key, sum);
        }
    }

    pub fn terms(&self) -> impl Iterator<Item = (Atom, &[SymId], i64)> {
        self.terms.iter().map(|((atom, symbols), c)| (*atom, symbols.as_slice(), *c))
    }

    pub fn plus(mut self, other: &Ix) -> Ix {
        for (atom, symbols, c) in other.terms() {
            self.push(atom, symbols.to_vec(), c);
        }
        self
    }

    pub fn plus_const(self, c: i64) -> Ix {
        self.plus(&Ix::constant(c))
    }

    fn times(mut self, by: i64) -> Ix {
        self.terms.retain(|_, c| {
            *c *= by;
            *c != 0
        });
        self
    }

    pub fn minus(self, other: &Ix) -> Ix {
        self.plus(&other.clone().times(-1))
    }

    pub fn scaled(&self, by: Dim) -> Ix {
        let mut out = Ix::default();
        for (atom, symbols, c) in self.terms() {
            let mut all: Vec<SymId> = symbols.iter().copied().chain(by.symbols()).collect();
            all.sort();
            out.push(atom, all, c * by.coeff() as i64);
        }
        out
    }

    /// The terms with this atom, as a polynomial without atoms.
    pub fn coefficient(&self, of: Atom) -> Ix {
        let mut out = Ix::default();
        for (_, symbols, c) in self.terms().filter(|(atom, _, _)| *atom == of) {
            out.push(Atom::One, symbols.to_vec(), c);
        }
        out
    }

    /// The number, where there is nothing else.
    pub fn as_constant(&self) -> Option<i64> {
        match self.terms.len() {
            0 => Some(0),
            1 => self.terms.get(&(Atom::One, vec![])).copied(),
            _ => None,
        }
    }

    pub fn atoms(&self) -> BTreeSet<Atom> {
        self.terms.keys().map(|(atom, _)| *atom).filter(|a| *a != Atom::One).collect()
    }

    /// With polynomials put in the place of atoms.
    pub fn substitute(&self, map: &dyn Fn(Atom) -> Option<Ix>) -> Ix {
        let mut out = Ix::default();
        for (atom, symbols, c) in self.terms() {
            match map(atom) {
                None => out.push(atom, symbols.to_vec(), c),
                Some(ix) => {
                    let by = symbols.iter().fold(ix, |ix, s| ix.scaled(Dim::sym(*s)));
                    out = out.plus(&by.times(c));
                }
            }
        }
        out
    }

    /// `self = quotient * by + remainder` with terms assigned by divisibility alone.
    fn divide(&self, by: Dim) -> (Ix, Ix) {
        let (mut quotient, mut remainder) = (Ix::default(), Ix::default());
        let divisor = by.coeff() as i64;
        for (atom, symbols, c) in self.terms() {
            let mut rest = symbols.to_vec();
            let has_all = by.symbols().all(|s| match rest.iter().position(|r| *r == s) {
                Some(at) => {
                    rest.remove(at);
                    true
                }
                None => false,
            });
            if has_all && divisor > 0 && c % divisor == 0 {
                quotient.push(atom, rest, c / divisor);
            } else {
                remainder.push(atom, symbols.to_vec(), c);
            }
        }
        (quotient, remainder)
    }
}

/// Loop variables and how far they run.
#[derive(Clone, Debug, Default)]
pub struct Vars {
    extents: Vec<Dim>,
}

/// A variable that must be cut in two, the inner part running to `inner`, for an index to become a
/// polynomial.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Split {
    pub var: Var,
    pub inner: Dim,
}

/// What came of a division.
pub enum Division {
    Exact(Ix, Ix),
    Needs(Split),
    Opaque,
}

impl Vars {
    pub fn add(&mut self, extent: Dim) -> Var {
        self.extents.push(extent);
        Var(self.extents.len() as u32 - 1)
    }

    pub fn extent(&self, v: Var) -> Dim {
        self.extents[v.0 as usize]
    }

    /// Lets a variable run over `extent`.
    pub fn widen(&mut self, v: Var, extent: Dim) {
        self.extents[v.0 as usize] = extent;
    }

    /// Quotient and remainder of an index by a size.
    pub fn div_rem(&self, ix: &Ix, by: Dim) -> Division {
        let (quotient, remainder) = ix.divide(by);
        if self.is_below(&remainder, by) {
            return Division::Exact(quotient, remainder);
        }
        for (atom, symbols, c) in remainder.terms() {
            let Atom::Var(var) = atom else { continue };
            let coefficient = symbols
                .iter()
                .try_fold(Dim::fixed(c.max(0) as u64), |d, s| d.checked_mul(Dim::sym(*s)));
            let inner = coefficient.and_then(|c| by.checked_div(c)).filter(|m| !m.is_one());
            let Some(inner) = inner else { continue };
            if self.extent(var).checked_div(inner).is_some_and(|q| !q.is_one()) {
                return Division::Needs(Split { var, inner });
            }
        }
        Division::Opaque
    }

    /// Is `0 <= ix < limit` for all values of the variables?
    fn is_below(&self, ix: &Ix, limit: Dim) -> bool {
        if let (Some((low, high)), Some(limit)) = (self.range(ix), limit.as_fixed()) {
            return low >= 0 && high < limit as i64;
        }
        // Mixed radix: each coefficient covers the reach of the ones below it.
        let mut parts: Vec<(Dim, Dim)> = vec![];
        for (atom, symbols, c) in ix.terms() {
            let Atom::Var(v) = atom else { return false };
            let coefficient = symbols
                .iter()
                .try_fold(Dim::fixed(c.max(0) as u64), |d, s| d.checked_mul(Dim::sym(*s)));
            match coefficient {
                Some(coefficient) if c > 0 => parts.push((coefficient, self.extent(v))),
                _ => return false,
            }
        }
        parts.sort_by_key(|(c, _)| (c.symbols().count(), c.coeff()));
        let mut reach = Dim::fixed(1);
        for (coefficient, extent) in parts {
            if coefficient.checked_div(reach).is_none() {
                return false;
            }
            match coefficient.checked_mul(extent) {
                Some(next) => reach = next,
                None => return false,
            }
        }
        limit.checked_div(reach).is_some()
    }

    /// The least and greatest value, where all sizes are numbers.
    pub fn range(&self, ix: &Ix) -> Option<(i64, i64)> {
        let (mut low, mut high) = (0i64, 0i64);
        for (atom, symbols, c) in ix.terms() {
            let reach = match atom {
                _ if !symbols.is_empty() => return None,
                Atom::Opaque(_) => return None,
                Atom::One => {
                    low = low.checked_add(c)?;
                    high = high.checked_add(c)?;
                    continue;
                }
                Atom::Var(v) => i64::try_from(self.extent(v).as_fixed()?).ok()?.max(1) - 1,
            };
            let far = c.checked_mul(reach)?;
            low = low.checked_add(far.min(0))?;
            high = high.checked_add(far.max(0))?;
        }
        Some((low, high))
    }
}

/// Row-major strides of `dims`.
pub fn strides(dims: &[Dim]) -> Option<Vec<Dim>> {
    let mut strides = vec![Dim::fixed(1); dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d].checked_mul(dims[d])?;
    }
    Some(strides)
}

/// The place in memory of an element of a row-major array.
pub fn linear(at: &[Ix], dims: &[Dim]) -> Option<Ix> {
    let strides = strides(dims)?;
    let terms = at.iter().zip(strides);
    Some(terms.fold(Ix::default(), |sum, (ix, stride)| sum.plus(&ix.scaled(stride))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_dim_splits_back() {
        let mut vars = Vars::default();
        let (s, h) = (Dim::sym(SymId(0)), Dim::fixed(8));
        let (i, j) = (vars.add(s), vars.add(h));
        let merged = Ix::var(i).scaled(h).plus(&Ix::var(j));
        let Division::Exact(q, r) = vars.div_rem(&merged, h) else { panic!("not exact") };
        assert_eq!((q, r), (Ix::var(i), Ix::var(j)));
    }

    #[test]
    fn a_flat_variable_asks_to_be_cut() {
        let mut vars = Vars::default();
        let n = Dim::sym(SymId(0)).checked_mul(Dim::fixed(8)).unwrap();
        let i = vars.add(n);
        let Division::Needs(split) = vars.div_rem(&Ix::var(i), Dim::fixed(4)) else {
            panic!("no split")
        };
        assert_eq!(split, Split { var: i, inner: Dim::fixed(4) });
    }

    #[test]
    fn what_may_be_negative_is_opaque() {
        let mut vars = Vars::default();
        let i = vars.add(Dim::fixed(7));
        let shifted = Ix::var(i).plus_const(-1);
        assert!(matches!(vars.div_rem(&shifted, Dim::fixed(4)), Division::Opaque));
    }
}
