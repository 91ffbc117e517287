//! The softmax of a block of scores, in the registers that hold them.

use weft_codegen::emit::{Cg, Cmp, Val};

use crate::ptx::convert::{exp2, max, pack_bf16};
use crate::ptx::sync::butterfly;
use crate::tiles::fragment::{Pair, pairs};

/// What a thread knows of its two rows: the largest score so far, unscaled, and its own part of the
/// sum of the weights.
#[derive(Clone, Copy)]
pub struct Rows<'c> {
    pub largest: [Val<'c>; 2],
    pub sum: [Val<'c>; 2],
}

impl<'c> Rows<'c> {
    pub fn values(self) -> [Val<'c>; 4] {
        [self.largest[0], self.largest[1], self.sum[0], self.sum[1]]
    }

    pub fn of(values: &[Val<'c>]) -> Rows<'c> {
        Rows { largest: [values[0], values[1]], sum: [values[2], values[3]] }
    }

    /// Before any key.
    pub fn none(cg: &Cg<'c>) -> Rows<'c> {
        let lowest = cg.f32(f32::NEG_INFINITY);
        Rows { largest: [lowest; 2], sum: [cg.f32(0.0); 2] }
    }

    /// The same beside a score that is at least as large, and what weights so far are to be
    /// multiplied by.
    pub fn beside(
        self,
        cg: &Cg<'c>,
        scale_log2: Val<'c>,
        largest: [Val<'c>; 2],
    ) -> (Rows<'c>, [Val<'c>; 2]) {
        self.corrected(cg, &Beside::new(cg, scale_log2, largest))
    }

    fn corrected(self, cg: &Cg<'c>, beside: &Beside<'c>) -> (Rows<'c>, [Val<'c>; 2]) {
        let correction = [0, 1].map(|half| beside.power(cg, self.largest[half], half));
        let sum = [0, 1].map(|half| cg.mul(self.sum[half], correction[half]));
        (Rows { largest: beside.largest, sum }, correction)
    }

    /// Sums of all that share a row.
    pub fn total(self, cg: &Cg<'c>) -> [Val<'c>; 2] {
        self.sum.map(|sum| across(cg, sum, |a, b| cg.add(a, b)))
    }
}

/// Folds over the four lanes that share a row.
pub fn across<'c>(cg: &Cg<'c>, v: Val<'c>, f: impl Fn(Val<'c>, Val<'c>) -> Val<'c>) -> Val<'c> {
    let v = f(v, butterfly(cg, v, 1));
    f(v, butterfly(cg, v, 2))
}

/// Powers of scores beside the largest ones of two rows.
struct Beside<'c> {
    scale_log2: Val<'c>,
    largest: [Val<'c>; 2],
    less: [Val<'c>; 2],
}

impl<'c> Beside<'c> {
    /// A row that has seen nothing yet subtracts 0: its weights are then 0, not NaN.
    fn new(cg: &Cg<'c>, scale_log2: Val<'c>, largest: [Val<'c>; 2]) -> Beside<'c> {
        let less = largest.map(|v| {
            let scaled = cg.neg(cg.mul(v, scale_log2));
            cg.select(cg.cmp(Cmp::Eq, v, f32::NEG_INFINITY), cg.f32(0.0), scaled)
        });
        Beside { scale_log2, largest, less }
    }

    /// `2^(x - largest)` with scores in units of the scale.
    fn power(&self, cg: &Cg<'c>, x: Val<'c>, half: usize) -> Val<'c> {
        exp2(cg, cg.fma(x, self.scale_log2, self.less[half]))
    }
}

/// A block after its softmax.
pub struct Weights<'c> {
    /// Not yet rounded.
    pub p: Vec<Val<'c>>,
    pub rows: Rows<'c>,
    /// What earlier weights, and sums of values, are to be multiplied by.
    pub correction: [Val<'c>; 2],
}

/// The weights of a block, `2^(score - largest)` with scores in units of `scale_log2`. What a row's
/// largest score is beside this block's, `meet` says: of it alone, it is what it is given.
pub fn weigh<'c>(
    cg: &Cg<'c>,
    scale_log2: Val<'c>,
    rows: Rows<'c>,
    scores: &[Val<'c>],
    meet: impl FnOnce([Val<'c>; 2]) -> [Val<'c>; 2],
) -> Weights<'c> {
    let columns = 2 * scores.len() as u32;
    let mut largest = rows.largest;
    for pair in pairs(columns) {
        for i in 0..2 {
            largest[pair.half] = max(cg, largest[pair.half], scores[pair.index + i]);
        }
    }
    let largest = meet(largest.map(|v| across(cg, v, |a, b| max(cg, a, b))));
    let beside = Beside::new(cg, scale_log2, largest);
    let (Rows { mut sum, .. }, correction) = rows.corrected(cg, &beside);
    let mut p = scores.to_vec();
    for pair in pairs(columns) {
        for at in pair.index..pair.index + 2 {
            p[at] = beside.power(cg, scores[at], pair.half);
            sum[pair.half] = cg.add(sum[pair.half], p[at]);
        }
    }
    Weights { p, rows: Rows { largest, sum }, correction }
}

/// Sums, or weights, of two rows times a number for each.
pub fn scaled<'c>(cg: &Cg<'c>, sums: &[Val<'c>], by: [Val<'c>; 2]) -> Vec<Val<'c>> {
    let both = |pair: Pair| [0, 1].map(|i| cg.mul(sums[pair.index + i], by[pair.half]));
    pairs(2 * sums.len() as u32).flat_map(both).collect()
}

/// Weights as the left-hand side of a product: two of a row in each register, which lie in the
/// order in which products of 16 terms take them.
pub fn packed<'c>(cg: &Cg<'c>, p: &[Val<'c>]) -> Vec<Val<'c>> {
    p.chunks(2).map(|pair| pack_bf16(cg, pair[0], pair[1])).collect()
}
