//! E5M6 between arrays of bf16, which holds its every value, and memory, where two codes lie in
//! three bytes: little-endian 24 bits, the first in the low 12. An odd last code takes two bytes.

use weft_ir::formats::E5M6;

use crate::emit::{Cg, Cmp, Elem, Kernel, Val};
use crate::narrow;

/// Elements of a block: whole pairs.
pub const BLOCK: i64 = 4096;

/// Bits of a code.
const CODE: i64 = 12;

/// `from` is bf16, `to` codes; the block's elements are `first..end`.
pub fn pack<'c>(cg: &Cg<'c>, k: &Kernel<'c>, (first, end): (Val<'c>, Val<'c>)) {
    let (from, to) = (k.buffers[0], k.buffers[1]);
    let lanes = cg.target.lanes;
    let whole = each_vector(cg, lanes, (first, end), |i| {
        let words = cg.load(Elem::I32.x(lanes), cg.at(from, Elem::BF16, i));
        store_words(cg, pair(cg, words), byte_of(cg, to, i));
    });
    let code = |i: Val<'c>| {
        let x = cg.cast(cg.load(Elem::BF16.x(1), cg.at(from, Elem::BF16, i)), Elem::F32);
        narrow::encode(cg, x, E5M6)
    };
    cg.for_each(whole, end, 2, |i| {
        let to = byte_of(cg, to, i);
        let low = code(i);
        let next = cg.add(i, 1);
        cg.if_else(
            cg.cmp(Cmp::Lt, next, end),
            || {
                store_pair(cg, low, code(next), to);
                vec![]
            },
            || {
                store_bytes(cg, low, to, 2);
                vec![]
            },
        );
    });
}

/// `from` is codes, `to` bf16.
pub fn unpack<'c>(cg: &Cg<'c>, k: &Kernel<'c>, (first, end): (Val<'c>, Val<'c>)) {
    let (from, to) = (k.buffers[0], k.buffers[1]);
    let lanes = cg.target.lanes;
    let whole = each_vector(cg, lanes, (first, end), |i| {
        let bytes = cg.load(Elem::I8.x(3 * lanes), byte_of(cg, from, i));
        // The fourth byte of a word is any.
        let spread: Vec<u32> = (0..4 * lanes).map(|b| b / 4 * 3 + (b % 4).min(2)).collect();
        let words = cg.bitcast(cg.shuffle(bytes, bytes, &spread), Elem::I32.x(lanes));
        cg.store(values(cg, words), cg.at(to, Elem::BF16, i));
    });
    let byte = |at: Val<'c>, n: i64| cg.zext(cg.load(Elem::I8.x(1), cg.offset(at, n)), Elem::I32);
    let put = |bits: Val<'c>, i: Val<'c>| {
        cg.store(cg.cast(bits, Elem::I16), cg.at(to, Elem::I16, i));
    };
    cg.for_each(whole, end, 2, |i| {
        let from = byte_of(cg, from, i);
        let low = cg.or(byte(from, 0), cg.shl(byte(from, 1), 8));
        put(cg.lshr(decoded(cg, low), 16), i);
        let next = cg.add(i, 1);
        cg.when(cg.cmp(Cmp::Lt, next, end), || {
            let word = cg.or(low, cg.shl(byte(from, 2), 16));
            put(cg.lshr(decoded(cg, cg.lshr(word, CODE)), 16), next);
        });
    });
}

/// The address of the byte that element `i`, an even one, starts in.
pub(crate) fn byte_of<'c>(cg: &Cg<'c>, ptr: Val<'c>, i: Val<'c>) -> Val<'c> {
    cg.offset(ptr, cg.mul(cg.div_exact(i, 2), 3))
}

/// Stores the low 24 bits of each lane, one after the other.
fn store_words<'c>(cg: &Cg<'c>, words: Val<'c>, to: Val<'c>) {
    let n = 4 * words.ty.lanes;
    let bytes = cg.bitcast(words, Elem::I8.x(n));
    let kept: Vec<u32> = (0..n).filter(|b| b % 4 != 3).collect();
    cg.store(cg.shuffle(bytes, bytes, &kept), to);
}

/// Stores i32 lanes of codes, an even number, whose first starts a byte.
pub(crate) fn store_pairs<'c>(cg: &Cg<'c>, codes: Val<'c>, to: Val<'c>) {
    let every_other = |first: u32| {
        let lanes: Vec<u32> = (first..codes.ty.lanes).step_by(2).collect();
        cg.shuffle(codes, codes, &lanes)
    };
    let (low, high) = (every_other(0), every_other(1));
    store_words(cg, cg.or(low, cg.shl(high, CODE)), to);
}

/// Stores two codes as three bytes.
pub(crate) fn store_pair<'c>(cg: &Cg<'c>, low: Val<'c>, high: Val<'c>, to: Val<'c>) {
    store_bytes(cg, cg.or(low, cg.shl(high, CODE)), to, 3);
}

fn store_bytes<'c>(cg: &Cg<'c>, word: Val<'c>, to: Val<'c>, n: i64) {
    (0..n).for_each(|b| {
        cg.store(cg.cast(cg.lshr(word, 8 * b), Elem::I8), cg.offset(to, b));
    });
}

/// Runs over whole vectors of pairs; gives what comes after them.
fn each_vector<'c>(
    cg: &Cg<'c>,
    lanes: u32,
    (first, end): (Val<'c>, Val<'c>),
    body: impl FnOnce(Val<'c>),
) -> Val<'c> {
    let step = 2 * i64::from(lanes);
    let n = cg.max(cg.sub(end, first), 0);
    let whole = cg.add(first, cg.sub(n, cg.rem(n, step)));
    cg.for_each(first, whole, step, body);
    whole
}

/// Pairs of bf16 as pairs of codes, 24 bits.
fn pair<'c>(cg: &Cg<'c>, words: Val<'c>) -> Val<'c> {
    let float = words.ty.with(Elem::F32);
    let [low, high] = [cg.shl(words, 16), cg.and(words, 0xffff_0000u32 as i32)]
        .map(|bits| narrow::encode(cg, cg.bitcast(bits, float), E5M6));
    cg.or(low, cg.shl(high, CODE))
}

/// Pairs of codes as pairs of bf16.
fn values<'c>(cg: &Cg<'c>, words: Val<'c>) -> Val<'c> {
    let (low, high) = (decoded(cg, words), decoded(cg, cg.lshr(words, CODE)));
    cg.or(cg.lshr(low, 16), cg.and(high, 0xffff_0000u32 as i32))
}

/// The f32 bits of the code in the low 12; those of a bf16 all of them.
fn decoded<'c>(cg: &Cg<'c>, words: Val<'c>) -> Val<'c> {
    cg.bitcast(narrow::decode(cg, words, E5M6), words.ty)
}
