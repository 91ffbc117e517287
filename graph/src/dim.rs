//! Dims and the expressions over them: sums of a coefficient times factors.
//!
//! A factor is a dim, or a quotient rounded up (`ceil(S / 64)`, the blocks that cover `S` rows).
//! Terms are kept sorted and merged, so equal polynomials compare equal.

use serde::{Deserialize, Serialize};
use std::ops;

/// A launch argument: any value of `0..=max`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DimDecl {
    pub name: String,
    pub max: i64,
}

/// Position of a dim in its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DimId(pub u32);

/// A size or offset known once the dims are.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DimExpr {
    terms: Vec<Term>,
}

/// `coeff * factors[0] * factors[1] * ...`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    #[serde(rename = "c")]
    pub coeff: i64,
    #[serde(rename = "f", default, skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<Factor>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    Dim(DimId),
    /// `ceil(of / by)`; `by` is positive.
    CeilDiv {
        of: DimExpr,
        by: i64,
    },
}

impl DimExpr {
    pub fn zero() -> DimExpr {
        DimExpr::default()
    }

    pub fn constant(value: i64) -> DimExpr {
        DimExpr::from_terms(vec![Term { coeff: value, factors: Vec::new() }])
    }

    pub fn dim(id: DimId) -> DimExpr {
        DimExpr::from_terms(vec![Term { coeff: 1, factors: vec![Factor::Dim(id)] }])
    }

    /// The product of all of `factors`; 1 of none.
    pub fn product(factors: impl IntoIterator<Item = DimExpr>) -> DimExpr {
        factors.into_iter().fold(DimExpr::constant(1), |product, factor| product * factor)
    }

    /// `ceil(self / by)`, for a positive `by`; simplified where every coefficient is a multiple.
    pub fn ceil_div(self, by: i64) -> DimExpr {
        assert!(by > 0, "a quotient by {by}");
        if self.terms.iter().all(|term| term.coeff % by == 0) {
            return self.map_coeffs(|coeff| coeff / by);
        }
        if let Some(value) = self.as_constant() {
            return DimExpr::constant(ceil_div(value, by));
        }
        let factors = vec![Factor::CeilDiv { of: self, by }];
        DimExpr::from_terms(vec![Term { coeff: 1, factors }])
    }

    /// The least multiple of `to` that is not below.
    pub fn round_up(self, to: i64) -> DimExpr {
        self.ceil_div(to) * DimExpr::constant(to)
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Whether it is a multiple of `by` whatever the dims are, as far as its coefficients tell.
    pub fn is_multiple_of(&self, by: i64) -> bool {
        self.terms.iter().all(|term| term.coeff % by == 0)
    }

    /// The value, where it does not depend on a dim.
    pub fn as_constant(&self) -> Option<i64> {
        match self.terms.as_slice() {
            [] => Some(0),
            [Term { coeff, factors }] if factors.is_empty() => Some(*coeff),
            _ => None,
        }
    }

    /// The value at `dims`, in the order of the entry's dims. Within the bounds of a verified graph
    /// nothing overflows; elsewhere the result saturates.
    pub fn eval(&self, dims: &[i64]) -> i64 {
        self.terms.iter().fold(0, |sum: i64, term| {
            let product = term
                .factors
                .iter()
                .fold(term.coeff, |product, factor| product.saturating_mul(factor.eval(dims)));
            sum.saturating_add(product)
        })
    }

    /// The least and the greatest value over all dims in `0..=max`, possibly wider than exact;
    /// `None` where a part leaves 62 bits or names a dim out of range.
    pub fn range(&self, dims: &[DimDecl]) -> Option<(i64, i64)> {
        let mut sum = (0i128, 0i128);
        for term in &self.terms {
            let mut product = (i128::from(term.coeff), i128::from(term.coeff));
            for factor in &term.factors {
                product = limited(multiply_ranges(product, factor.range(dims)?))?;
            }
            sum = limited((sum.0 + product.0, sum.1 + product.1))?;
        }
        Some((sum.0 as i64, sum.1 as i64))
    }

    fn from_terms(mut terms: Vec<Term>) -> DimExpr {
        for term in &mut terms {
            term.factors.sort();
        }
        terms.sort_by(|a, b| b.factors.len().cmp(&a.factors.len()).then(a.factors.cmp(&b.factors)));
        let mut merged: Vec<Term> = Vec::with_capacity(terms.len());
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.factors == term.factors => {
                    last.coeff = last.coeff.saturating_add(term.coeff);
                }
                _ => merged.push(term),
            }
        }
        merged.retain(|term| term.coeff != 0);
        DimExpr { terms: merged }
    }

    fn map_coeffs(mut self, f: impl Fn(i64) -> i64) -> DimExpr {
        for term in &mut self.terms {
            term.coeff = f(term.coeff);
        }
        self
    }
}

impl Factor {
    fn eval(&self, dims: &[i64]) -> i64 {
        match self {
            Factor::Dim(id) => dims.get(id.0 as usize).copied().unwrap_or(0),
            Factor::CeilDiv { of, by } => ceil_div(of.eval(dims), *by),
        }
    }

    fn range(&self, dims: &[DimDecl]) -> Option<(i128, i128)> {
        match self {
            Factor::Dim(id) => Some((0, i128::from(dims.get(id.0 as usize)?.max))),
            Factor::CeilDiv { by, .. } if *by <= 0 => None,
            Factor::CeilDiv { of, by } => {
                let (least, greatest) = of.range(dims)?;
                Some((i128::from(ceil_div(least, *by)), i128::from(ceil_div(greatest, *by))))
            }
        }
    }
}

fn ceil_div(value: i64, by: i64) -> i64 {
    let by = by.max(1);
    value.div_euclid(by) + i64::from(value.rem_euclid(by) != 0)
}

fn multiply_ranges(a: (i128, i128), b: (i128, i128)) -> (i128, i128) {
    let corners = [a.0 * b.0, a.0 * b.1, a.1 * b.0, a.1 * b.1];
    corners.into_iter().fold((corners[0], corners[0]), |(least, greatest), corner| {
        (least.min(corner), greatest.max(corner))
    })
}

/// Keeps a range whose ends fit 62 bits, so that products and sums of i128 cannot overflow either.
fn limited(range: (i128, i128)) -> Option<(i128, i128)> {
    const LIMIT: i128 = 1 << 62;
    (range.0 > -LIMIT && range.1 < LIMIT).then_some(range)
}

impl From<i64> for DimExpr {
    fn from(value: i64) -> DimExpr {
        DimExpr::constant(value)
    }
}

impl From<DimId> for DimExpr {
    fn from(id: DimId) -> DimExpr {
        DimExpr::dim(id)
    }
}

impl ops::Add for DimExpr {
    type Output = DimExpr;

    fn add(self, other: DimExpr) -> DimExpr {
        DimExpr::from_terms(self.terms.into_iter().chain(other.terms).collect())
    }
}

impl ops::Sub for DimExpr {
    type Output = DimExpr;

    fn sub(self, other: DimExpr) -> DimExpr {
        ops::Add::add(self, other.map_coeffs(i64::saturating_neg))
    }
}

impl ops::Mul for DimExpr {
    type Output = DimExpr;

    fn mul(self, other: DimExpr) -> DimExpr {
        let mut terms = Vec::with_capacity(self.terms.len() * other.terms.len());
        for a in &self.terms {
            for b in &other.terms {
                terms.push(Term {
                    coeff: a.coeff.saturating_mul(b.coeff),
                    factors: a.factors.iter().chain(&b.factors).cloned().collect(),
                });
            }
        }
        DimExpr::from_terms(terms)
    }
}

impl ops::Mul<i64> for DimExpr {
    type Output = DimExpr;

    fn mul(self, other: i64) -> DimExpr {
        self * DimExpr::constant(other)
    }
}

impl ops::Add<i64> for DimExpr {
    type Output = DimExpr;

    fn add(self, other: i64) -> DimExpr {
        self + DimExpr::constant(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims() -> (DimExpr, DimExpr, Vec<DimDecl>) {
        let decl = |name: &str, max| DimDecl { name: name.into(), max };
        (DimExpr::dim(DimId(0)), DimExpr::dim(DimId(1)), vec![decl("B", 8), decl("S", 100)])
    }

    #[test]
    fn equal_polynomials_are_equal() {
        let (b, s, _) = dims();
        let left = (b.clone() + s.clone()) * (b.clone() - s.clone());
        let right = b.clone() * b.clone() - s.clone() * s.clone();
        assert_eq!(left, right);
        assert_eq!(b.clone() - b, DimExpr::zero());
    }

    #[test]
    fn evaluates_products_and_quotients() {
        let (b, s, _) = dims();
        let blocks = b.clone() * s.clone().ceil_div(64) + 3;
        assert_eq!(blocks.eval(&[8, 65]), 8 * 2 + 3);
        assert_eq!((s.clone() * 128).ceil_div(64), s.clone() * 2);
        assert_eq!(DimExpr::constant(100).round_up(64), DimExpr::constant(128));
        assert_eq!((b - s).ceil_div(4).eval(&[0, 5]), -1);
    }

    #[test]
    fn range_covers_every_value() {
        let (b, s, decls) = dims();
        let expr = b.clone() * s.clone() * 3 - s.clone() * 7 + s.ceil_div(6);
        let (least, greatest) = expr.range(&decls).unwrap();
        for b in 0..=8 {
            for s in 0..=100 {
                assert!((least..=greatest).contains(&expr.eval(&[b, s])));
            }
        }
    }

    #[test]
    fn range_refuses_overflow_and_unknown_dims() {
        let (b, _, decls) = dims();
        assert_eq!((b * i64::MAX).range(&decls), None);
        assert_eq!(DimExpr::dim(DimId(2)).range(&decls), None);
    }
}
