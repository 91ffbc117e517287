//! How the threads of a warpgroup hold the 64 rows of a product's sums.
//!
//! Warp `w` has rows `16 w..16 w + 16`. Of every 8 columns lane `l` holds columns `2 (l % 4)` and
//! the next, in row `l / 4` and then in row `l / 4 + 8`: four sums, in this order.

use weft_codegen::emit::{Cg, Elem, Val};

/// Sums a thread holds of `n` columns.
pub fn n_sums(n: u32) -> usize {
    n as usize / 2
}

/// Where a thread's sums are within the warpgroup's rows.
#[derive(Clone, Copy, Debug)]
pub struct Lanes<'c> {
    /// The first of its two rows; the other is 8 further.
    pub row: Val<'c>,
    /// Its first column of the first eight.
    pub col: Val<'c>,
}

impl<'c> Lanes<'c> {
    /// Of the warp `warp` of its warpgroup (0 to 3) and its `lane`.
    pub fn new(cg: &Cg<'c>, warp: Val<'c>, lane: Val<'c>) -> Lanes<'c> {
        let row = cg.add(cg.mul(warp, 16), cg.lshr(lane, 2));
        Lanes { row, col: cg.mul(cg.and(lane, 3), 2) }
    }
}

/// A pair of neighbouring sums of one row.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Of its first sum, among the thread's.
    pub index: usize,
    /// 0 for the first row, 1 for the one 8 further.
    pub half: usize,
    /// Columns before it, beside the lane's own.
    pub col: u32,
}

/// The pairs of `n` columns, in the order of the sums.
pub fn pairs(n: u32) -> impl Iterator<Item = Pair> {
    (0..n / 4).map(|p| Pair { index: 2 * p as usize, half: p as usize % 2, col: p / 2 * 8 })
}

/// An i32 as an i64 that is not negative.
pub fn wide<'c>(cg: &Cg<'c>, v: Val<'c>) -> Val<'c> {
    cg.zext(v, Elem::I64)
}
