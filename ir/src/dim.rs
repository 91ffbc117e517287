//! Dims: the sizes of a type. A dim is a number times a product of *symbols*, such as `256`, `S` or
//! `2*B*S`.
//!
//! A symbol is declared once in the module: *bounded* (`S <= 4096`, a launch argument) or *ragged*
//! (rows cut into segments whose lengths are data; its total is itself a dim). Sums of dims do not
//! exist: `concat` along a symbolic dim is refused unless the symbols agree (`2*S` and `3*S` give
//! `5*S`).

use std::fmt;

/// A symbol of the module's dim table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SymId(pub u32);

/// At most this many symbols are multiplied in one dim; a checkpoint of sanity, not of any model.
pub const MAX_FACTORS: usize = 4;

const NONE: SymId = SymId(u32::MAX);

/// `coeff * sym * sym ...`, factors sorted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    coeff: u64,
    factors: [SymId; MAX_FACTORS],
}

/// What a symbol stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SymKind {
    /// A launch argument between 1 and `max`.
    Bounded { max: u64 },
    /// Rows in `segments` runs, their offsets known on the device; all together `total` rows.
    Ragged { segments: u64, total: Dim },
}

/// An entry of the module's dim table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sym {
    pub name: String,
    pub kind: SymKind,
}

impl Dim {
    pub const fn fixed(n: u64) -> Dim {
        Dim { coeff: n, factors: [NONE; MAX_FACTORS] }
    }

    pub fn sym(sym: SymId) -> Dim {
        let mut factors = [NONE; MAX_FACTORS];
        factors[0] = sym;
        Dim { coeff: 1, factors }
    }

    pub fn coeff(self) -> u64 {
        self.coeff
    }

    /// The symbols multiplied in, sorted.
    pub fn symbols(&self) -> impl Iterator<Item = SymId> + '_ {
        self.factors.iter().copied().filter(|s| *s != NONE)
    }

    /// The number, when no symbol is in it.
    pub fn as_fixed(self) -> Option<u64> {
        (self.factors[0] == NONE).then_some(self.coeff)
    }

    pub fn is_one(self) -> bool {
        self == Dim::fixed(1)
    }

    /// `None` on overflow or on more than [`MAX_FACTORS`] symbols.
    pub fn checked_mul(self, other: Dim) -> Option<Dim> {
        let coeff = self.coeff.checked_mul(other.coeff)?;
        let mut all: Vec<SymId> = self.symbols().chain(other.symbols()).collect();
        all.sort();
        if all.len() > MAX_FACTORS {
            return None;
        }
        let mut factors = [NONE; MAX_FACTORS];
        factors[..all.len()].copy_from_slice(&all);
        Some(Dim { coeff, factors })
    }

    /// `self / other` where it is exact and leaves a dim.
    pub fn checked_div(self, other: Dim) -> Option<Dim> {
        if other.coeff == 0 || !self.coeff.is_multiple_of(other.coeff) {
            return None;
        }
        let mut rest: Vec<SymId> = self.symbols().collect();
        for s in other.symbols() {
            rest.remove(rest.iter().position(|r| *r == s)?);
        }
        let mut factors = [NONE; MAX_FACTORS];
        factors[..rest.len()].copy_from_slice(&rest);
        Some(Dim { coeff: self.coeff / other.coeff, factors })
    }

    /// `self + other` where both have the same symbols.
    pub fn checked_add(self, other: Dim) -> Option<Dim> {
        if self.coeff == 0 {
            return Some(other);
        }
        if other.coeff == 0 {
            return Some(self);
        }
        (self.factors == other.factors)
            .then_some(Dim { coeff: self.coeff.checked_add(other.coeff)?, factors: self.factors })
    }

    /// The value under `lookup`, which gives each symbol's size; `None` on overflow or a missing
    /// symbol.
    pub fn eval(self, lookup: &dyn Fn(SymId) -> Option<u64>) -> Option<u64> {
        let mut n = self.coeff;
        for s in self.factors.iter().filter(|s| **s != NONE) {
            n = n.checked_mul(lookup(*s)?)?;
        }
        Some(n)
    }

    /// Replace symbols by dims.
    pub fn substitute(self, map: &dyn Fn(SymId) -> Option<Dim>) -> Option<Dim> {
        let mut out = Dim::fixed(self.coeff);
        for s in self.factors.iter().filter(|s| **s != NONE) {
            out = out.checked_mul(map(*s).unwrap_or(Dim::sym(*s)))?;
        }
        Some(out)
    }
}

impl From<u64> for Dim {
    fn from(n: u64) -> Dim {
        Dim::fixed(n)
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.coeff)?;
        self.symbols().try_for_each(|s| write!(f, "*#{}", s.0))
    }
}

/// The product of `dims`; `None` on overflow.
pub fn product(dims: &[Dim]) -> Option<Dim> {
    dims.iter().try_fold(Dim::fixed(1), |n, d| n.checked_mul(*d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_quotients_are_exact() {
        let (b, s) = (Dim::sym(SymId(0)), Dim::sym(SymId(1)));
        let rows = b.checked_mul(s).unwrap().checked_mul(Dim::fixed(6)).unwrap();
        assert_eq!(rows.checked_div(s).unwrap(), b.checked_mul(Dim::fixed(6)).unwrap());
        assert_eq!(rows.checked_div(Dim::fixed(4)), None);
        assert_eq!(b.checked_div(s), None);
        assert_eq!(s.checked_add(b), None);
        assert_eq!(s.checked_add(s), Some(Dim::fixed(2).checked_mul(s).unwrap()));
        assert_eq!(Dim::fixed(u64::MAX).checked_mul(Dim::fixed(2)), None);
    }
}
