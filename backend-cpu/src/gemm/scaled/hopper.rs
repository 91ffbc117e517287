//! What a Hopper tensor core makes of a sum of products, term by term.
//!
//! A block is cut in steps of 32 terms. In a step the 32 products (exact) and the accumulator are
//! aligned to the largest of them: with E the largest `floor(log2 |v|)`, at least -100, each is cut
//! off toward zero to a multiple of `2^(E - 13)`, and the multiples are added exactly, which is the
//! accumulator of the next step. NaN and infinities go the way of IEEE 754.
//!
//! The multiples are integers below 2^14 each and 2^20 together: in f32 they are exact, in any
//! order. Envelope: two passes over a step and about 8 operations a term, where a product needs
//! one.

use weft_codegen::emit::{Cg, Cmp, Elem, Val};

use super::emit::{Meeting, Piece, Work, either};

/// Terms a tensor core adds at once.
const STEP: i64 = 32;
/// Bits of the largest term that are kept, less one.
const KEPT: i64 = 13;
/// The biased exponent below which terms are not told apart by size.
const EXPONENT_MIN: i64 = 127 - 100;

/// Sums a piece of a panel pair, row by row.
pub fn sum<'c>(cg: &Cg<'c>, work: &Work<'_, 'c>, at: &Meeting<'c>, piece: &Piece<'c>) {
    let p = &work.p;
    let rows = cg.min(at.panel.left.0, i64::from(p.rows));
    cg.for_each(cg.i64(0), rows, 1, |row| {
        for vector in 0..p.cols / p.lanes {
            let rest = cg.add(cg.mul(row, i64::from(p.cols)), i64::from(vector * p.lanes));
            let rest = cg.at(at.partials, Elem::F32, rest);
            let ty = Elem::F32.x(p.lanes);
            let zero = cg.zero(ty);
            let start = match work.opens(cg, piece) {
                None => zero,
                Some(opens) => cg.if_else(
                    opens,
                    || vec![zero],
                    || vec![cg.load_aligned(ty, rest, 4 * p.lanes)],
                )[0],
            };
            let terms = work.terms(cg, piece);
            let acc = cg.for_(cg.i64(0), terms, STEP, &[start], |k, acc| {
                let end = cg.min(cg.add(k, STEP), terms);
                vec![step(cg, work, at, piece, (row, vector), (k, end), acc[0])]
            })[0];
            let fold = || work.fold(cg, at, piece, (row, vector), acc);
            match work.closes(cg, piece) {
                None => fold(),
                Some(closes) => {
                    either(cg, closes, fold, || cg.store_aligned(acc, rest, 4 * p.lanes));
                }
            }
        }
    });
}

/// The accumulator after terms `first..end` of a piece.
fn step<'c>(
    cg: &Cg<'c>,
    work: &Work<'_, 'c>,
    at: &Meeting<'c>,
    piece: &Piece<'c>,
    (row, vector): (Val<'c>, u32),
    (first, end): (Val<'c>, Val<'c>),
    acc: Val<'c>,
) -> Val<'c> {
    let p = &work.p;
    let int = acc.ty.with(Elem::I32);
    let scale = match work.s.scaled_products {
        true => work.scale(cg, at, piece, (row, vector)),
        false => None,
    };
    let product = |k: Val<'c>| {
        let a = cg.splat(cg.load(Elem::F32.x(1), work.a_at(cg, &at.panel, row, k)), p.lanes);
        let place = cg.add(cg.mul(k, i64::from(p.cols)), i64::from(vector * p.lanes));
        let b = cg.load_aligned(acc.ty, cg.at(at.panel.b, Elem::F32, place), 4 * p.lanes);
        let product = cg.mul(a, b);
        scale.map_or(product, |s| cg.mul(product, s))
    };
    let size = |v: Val<'c>| cg.and(cg.bitcast(v, int), 0x7fff_ffff);
    // Sizes compare as integers do.
    let largest = cg.for_(first, end, 1, &[size(acc)], |k, top| {
        let size = size(product(k));
        vec![cg.select(cg.cmp(Cmp::Gt, size, top[0]), size, top[0])]
    })[0];
    let exponent = cg.max(cg.lshr(largest, 23), EXPONENT_MIN);
    let power = |biased: Val<'c>| cg.bitcast(cg.shl(biased, 23), acc.ty);
    let up = power(cg.sub(cg.int(int, 2 * 127 + KEPT), exponent));
    let unit = power(cg.sub(exponent, KEPT));
    let cut = |v: Val<'c>| {
        let v = cg.mul(v, up);
        cg.intrinsic("llvm.trunc", &[v.ty], &[v], v.ty)
    };
    let units =
        cg.for_(first, end, 1, &[cut(acc)], |k, sum| vec![cg.add(sum[0], cut(product(k)))])[0];
    cg.mul(units, unit)
}
