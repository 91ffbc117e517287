//! Lanes: broadcast, extraction, shuffles, reductions.

use inkwell::values::{BasicValueEnum, VectorValue};

use super::{Cg, Cmp, Elem, Ty, Val, built};

impl<'c> Cg<'c> {
    /// A scalar in every lane; one lane gives the scalar back.
    pub fn splat(&self, v: Val<'c>, lanes: u32) -> Val<'c> {
        assert_eq!(v.ty.lanes, 1, "splat of {}", v.ty);
        if lanes == 1 {
            return v;
        }
        let ty = v.ty.elem.x(lanes);
        let first = self.insert(self.undef(ty), v, 0);
        self.shuffle(first, first, &vec![0; lanes as usize])
    }

    /// One lane of a vector, chosen when compiling.
    pub fn lane(&self, v: Val<'c>, lane: u32) -> Val<'c> {
        if v.ty.lanes == 1 {
            return v;
        }
        let index = self.ctx.i32_type().const_int(lane.into(), false);
        let raw = built(self.builder.build_extract_element(vector(v), index, ""));
        Val { ty: v.ty.elem.x(1), raw }
    }

    /// `v` with one lane replaced.
    pub fn insert(&self, v: Val<'c>, scalar: Val<'c>, lane: u32) -> Val<'c> {
        let index = self.ctx.i32_type().const_int(lane.into(), false);
        let raw = built(self.builder.build_insert_element(vector(v), scalar.raw, index, ""));
        Val { ty: v.ty, raw: raw.into() }
    }

    /// Lanes of `a` then `b`, picked by `indices`; the result has as many lanes as indices.
    pub fn shuffle(&self, a: Val<'c>, b: Val<'c>, indices: &[u32]) -> Val<'c> {
        assert_eq!(a.ty, b.ty, "shuffle of {} and {}", a.ty, b.ty);
        let i32t = self.ctx.i32_type();
        let mask: Vec<_> = indices.iter().map(|&i| i32t.const_int(i.into(), false)).collect();
        let mask = inkwell::types::VectorType::const_vector(&mask);
        let raw = built(self.builder.build_shuffle_vector(vector(a), vector(b), mask, ""));
        Val { ty: a.ty.elem.x(indices.len() as u32), raw: raw.into() }
    }

    /// The lane of `table` that the low bits of each lane of `index` name; both of i16, for targets
    /// with `bf16_dot`, which have this operation.
    pub fn permute_i16(&self, table: Val<'c>, index: Val<'c>) -> Val<'c> {
        assert!(self.target.bf16_dot, "{} does not permute 16-bit lanes", self.target.name);
        let name = format!("llvm.x86.avx512.permvar.hi.{}", 8 * table.ty.bytes());
        self.intrinsic(&name, &[], &[table, index], table.ty)
    }

    /// `lanes` lanes of `v` from `first` on.
    pub fn slice(&self, v: Val<'c>, first: u32, lanes: u32) -> Val<'c> {
        if lanes == 1 {
            return self.lane(v, first);
        }
        self.shuffle(v, v, &(first..first + lanes).collect::<Vec<_>>())
    }

    /// Lanes of `a` followed by those of `b`.
    pub fn concat(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.shuffle(a, b, &(0..2 * a.ty.lanes).collect::<Vec<_>>())
    }

    /// `[a0, b0, a1, b1, ..]`, twice as many lanes.
    pub fn interleave(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        let n = a.ty.lanes;
        self.shuffle(a, b, &(0..n).flat_map(|i| [i, n + i]).collect::<Vec<_>>())
    }

    /// The transpose of a square of `rows.len()` vectors of as many lanes (a power of two).
    pub fn transpose(&self, rows: &[Val<'c>]) -> Vec<Val<'c>> {
        let n = rows.len() as u32;
        assert!(n.is_power_of_two() && rows[0].ty.lanes == n, "transpose of {n} x {}", rows[0].ty);
        let mut rows = rows.to_vec();
        // Each stage swaps the off-diagonal quarters of all 2h x 2h blocks.
        let mut h = 1;
        while h < n {
            let pick = |odd: u32| -> Vec<u32> {
                let from = |c: u32| if c & h == 0 { c + odd * h } else { n + (c - h) + odd * h };
                (0..n).map(from).collect()
            };
            let (even, odd) = (pick(0), pick(1));
            for r in (0..n).filter(|r| r & h == 0) {
                let (top, bottom) = (rows[r as usize], rows[(r + h) as usize]);
                rows[r as usize] = self.shuffle(top, bottom, &even);
                rows[(r + h) as usize] = self.shuffle(top, bottom, &odd);
            }
            h *= 2;
        }
        rows
    }

    /// Sum over lanes in a fixed tree: upper half onto lower half until one is left.
    pub fn reduce_add(&self, v: Val<'c>) -> Val<'c> {
        self.reduce(v, |a, b| self.add(a, b))
    }

    /// Largest lane; a NaN lane may be lost (see [`Cg::max`]).
    pub fn reduce_max(&self, v: Val<'c>) -> Val<'c> {
        self.reduce(v, |a, b| self.max(a, b))
    }

    /// Folds the upper half of the lanes onto the lower half until one is left.
    pub fn reduce(&self, v: Val<'c>, f: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
        let mut v = v;
        while v.ty.lanes > 1 {
            let half = v.ty.lanes / 2;
            v = f(self.slice(v, 0, half), self.slice(v, half, half));
        }
        v
    }

    /// True in the lanes below `n` (an i64, may be negative or beyond the lanes).
    pub fn mask_below(&self, n: Val<'c>, lanes: u32) -> Val<'c> {
        if lanes == 1 {
            return self.cmp(Cmp::Gt, n, 0);
        }
        // Clamped, so that the low 32 bits of a large count do not read as a small one.
        let n = self.min(n, i64::from(lanes));
        let n = self.splat(self.cast(n, Elem::I32), lanes);
        self.cmp(Cmp::Lt, self.iota(Elem::I32.x(lanes)), n)
    }

    /// All lanes true.
    pub fn mask_all(&self, lanes: u32) -> Val<'c> {
        self.int(Ty { elem: Elem::I1, lanes }, 1)
    }
}

fn vector(v: Val<'_>) -> VectorValue<'_> {
    match v.raw {
        BasicValueEnum::VectorValue(x) => x,
        _ => panic!("{} where a vector is wanted", v.ty),
    }
}
