//! Which dims of a value count tokens: batch, positions, rows of segments. Values that have one are
//! stored in their module's compute type; what has none (frequencies, loads, losses) stays f32.
//!
//! Sizes may be plain numbers, so a dim's own text does not tell: where a value comes from does.

#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeMap;

use weft_ir::dim::{Dim, product};
use weft_ir::module::{Func, OpData, ValueId};
use weft_ir::op::Op;

/// By dim of a value, whether it counts tokens.
pub type Counts = Vec<bool>;

/// What is known of a function's values; those of its ops are found when they are asked for.
#[derive(Default)]
pub struct TokenDims {
    known: BTreeMap<ValueId, Counts>,
    /// Ops of the body that have been looked at.
    n_ops: usize,
}

impl TokenDims {
    /// Say what no op of the function tells: of a parameter, of a repeat's result.
    pub fn set(&mut self, v: ValueId, counts: Counts) {
        self.known.insert(v, counts);
    }

    pub fn of(&mut self, func: &Func, v: ValueId) -> Counts {
        for id in &func.body[self.n_ops..] {
            let op = func.op(*id);
            for (i, r) in op.results.iter().enumerate() {
                if !self.known.contains_key(r) {
                    let counts = self.of_result(func, op, i);
                    self.known.insert(*r, counts);
                }
            }
        }
        self.n_ops = func.body.len();
        self.get(func, v)
    }

    /// A parameter of which nothing was said is a weight, a state or a schedule.
    fn get(&self, func: &Func, v: ValueId) -> Counts {
        self.known.get(&v).cloned().unwrap_or_else(|| vec![false; func.ty(v).rank()])
    }

    fn of_result(&self, func: &Func, op: &OpData, i: usize) -> Counts {
        let x = |n: usize| self.get(func, op.operands[n]);
        let rank = func.ty(op.results[i]).rank();
        let lead = |mut counts: Counts, last: bool| {
            counts.pop();
            counts.push(last);
            counts
        };
        match op.op {
            Op::Constant | Op::Iota | Op::Extent => vec![false; rank],

            Op::Neg
            | Op::Abs
            | Op::Sign
            | Op::Floor
            | Op::Exp
            | Op::Log
            | Op::Sqrt
            | Op::Rsqrt
            | Op::Sigmoid
            | Op::Tanh
            | Op::Sin
            | Op::Cos
            | Op::Erf
            | Op::Add
            | Op::Sub
            | Op::Mul
            | Op::Div
            | Op::Max
            | Op::Min
            | Op::Eq
            | Op::Lt
            | Op::Le
            | Op::And
            | Op::Or
            | Op::Not
            | Op::Select
            | Op::Convert
            | Op::Quantize
            | Op::Encode
            | Op::Recode
            | Op::Dequantize
            | Op::StopGradient
            | Op::Concat => {
                let all = (0..op.operands.len()).map(x);
                let either = |a: Counts, b: Counts| a.iter().zip(&b).map(|(a, b)| a | b).collect();
                all.reduce(either).unwrap_or_default()
            }
            Op::Slice | Op::Pad | Op::Shift | Op::BatchSum | Op::Softmax | Op::Rotary => x(0),

            Op::Reshape => {
                let (from, to) = (&func.ty(op.operands[0]).dims, &func.ty(op.results[0]).dims);
                reshaped(from, &x(0), to)
            }
            Op::Transpose => {
                let from = x(0);
                let perm = op.attrs.get_ints("perm").unwrap_or(&[]);
                perm.iter().map(|p| from[*p as usize]).collect()
            }
            Op::Broadcast => {
                let mut to = vec![false; rank];
                let map = op.attrs.get_ints("dims").unwrap_or(&[]);
                x(0).into_iter().zip(map).for_each(|(c, d)| to[*d as usize] = c);
                to
            }
            Op::ReduceSum | Op::ReduceMax => {
                let gone = op.attrs.get_ints("dims").unwrap_or(&[]);
                let kept = x(0).into_iter().enumerate();
                kept.filter(|(d, _)| !gone.contains(&(*d as i64))).map(|(_, c)| c).collect()
            }

            // What is lowered has no operand transposed.
            Op::Matmul => lead(x(0), x(1).last().copied().unwrap_or(false)),
            Op::GroupedMatmul => vec![true, false],
            Op::Gather => {
                let mut counts = x(1);
                counts.push(x(0)[1]);
                counts
            }
            Op::Take => x(1),
            Op::OneHot => {
                let mut counts = x(0);
                counts.push(false);
                counts
            }
            Op::Topk | Op::GroupedTopk => lead(x(0), false),
            Op::Route => vec![i == 1; rank],
            Op::Dispatch => vec![true, x(0).last().copied().unwrap_or(false)],
            Op::Combine => lead(vec![true; rank], x(0)[1]),
            Op::RmsNorm | Op::CrossEntropy => {
                let mut counts = x(0);
                counts.truncate(rank);
                counts
            }
            // o has a query's dims, and the log of its denominator counts rows too.
            Op::Attention => (0..rank).map(|d| d < 2 || (i == 1 && d == 2)).collect(),
            Op::CacheAppend => x(1),

            // Not made by lowering, or told by `set`.
            Op::GroupedOuter
            | Op::ScatterAdd
            | Op::Put
            | Op::CombineDot
            | Op::RmsNormGrad
            | Op::AttentionGrad
            | Op::CrossEntropyGrad
            | Op::Read
            | Op::Assign
            | Op::AdamW
            | Op::AllReduce
            | Op::ReduceScatter
            | Op::AllGather
            | Op::Spread
            | Op::Part
            | Op::ExchangeOffsets
            | Op::Exchange
            | Op::AllReduceStart
            | Op::ReduceScatterStart
            | Op::AllGatherStart
            | Op::ExchangeStart
            | Op::Done
            | Op::Send
            | Op::Recv
            | Op::Call
            | Op::Repeat
            | Op::Fused => vec![false; rank],
        }
    }
}

/// Dims of equal product on both sides, from the left, have their tokens in common.
fn reshaped(from: &[Dim], counts: &[bool], to: &[Dim]) -> Counts {
    let mut out = vec![false; to.len()];
    let (mut f, mut t) = (0, 0);
    while t < to.len() {
        let (f0, t0) = (f, t);
        (f, t) = ((f + 1).min(from.len()), t + 1);
        while product(&from[f0..f]) != product(&to[t0..t]) && (f, t) != (from.len(), to.len()) {
            let size = |dims: &[Dim]| product(dims).map_or(u64::MAX, |d| d.coeff());
            // The side that is behind goes on; of symbols the coefficient does not tell, and both
            // sides end together.
            if t == to.len() || (f < from.len() && size(&from[f0..f]) <= size(&to[t0..t])) {
                f += 1;
            } else {
                t += 1;
            }
        }
        let token = counts[f0..f].iter().any(|c| *c);
        out[t0..t].fill(token);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &[u64], counts: &[bool], to: &[u64], expected: &[bool]) {
        let dims = |ns: &[u64]| ns.iter().map(|n| Dim::fixed(*n)).collect::<Vec<_>>();
        assert_eq!(reshaped(&dims(from), counts, &dims(to)), expected, "{from:?} as {to:?}");
    }

    #[test]
    fn a_reshape_keeps_tokens_apart_from_features() {
        let yes_yes_no = [true, true, false];
        check(&[4, 5, 6], &yes_yes_no, &[4, 5, 2, 3], &[true, true, false, false]);
        check(&[4, 5, 6], &yes_yes_no, &[20, 6], &[true, false]);
        check(&[20, 6], &[true, false], &[4, 5, 6], &yes_yes_no);
        check(&[4, 5, 6], &yes_yes_no, &[4, 30], &[true, true]);
        check(&[1, 5, 6], &yes_yes_no, &[5, 6], &[true, false]);
        check(&[6], &[false], &[1, 1, 6], &[false, false, false]);
        check(&[4, 1, 6], &[true, false, false], &[4, 6], &[true, false]);
        check(&[], &[], &[1], &[false]);
    }
}
