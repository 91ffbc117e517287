//! Packing of a tile's operands into the words the micro-kernel reads.
//!
//! Rows and columns outside the operand are packed as whatever lies there in the scratch or in the
//! last row or column: what they give is never stored. Words outside k are zero or not read.

use weft_codegen::emit::{Cg, Cmp, Elem, Val};
use weft_codegen::narrow;
use weft_ir::formats::Format;

use super::micro::Packing;

/// What an operand is contiguous along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    K,
    /// Rows of A, columns of B.
    Free,
    Neither,
}

/// A rectangle of an operand: `free` rows of A (or columns of B) by `k` elements.
pub struct Block<'c> {
    pub elem: Elem,
    /// What its bytes are, where they are codes.
    pub code: Option<Format>,
    pub along: Along,
    pub start: Val<'c>,
    /// Elements from one row of A (column of B) to the next.
    pub free_stride: Val<'c>,
    pub k_stride: Val<'c>,
    pub free: Val<'c>,
    pub k: Val<'c>,
}

impl<'c> Block<'c> {
    fn at(&self, cg: &Cg<'c>, free: Val<'c>, k: Val<'c>) -> Val<'c> {
        let by_free = cg.mul(free, self.free_stride);
        let by_k = if self.k_is_unit() { k } else { cg.mul(k, self.k_stride) };
        cg.at(self.start, self.elem, cg.add(by_free, by_k))
    }

    fn k_is_unit(&self) -> bool {
        self.along == Along::K
    }

    /// Loaded elements as words hold them: bf16 in pairs, else f32.
    fn decoded(&self, cg: &Cg<'c>, p: &Packing, v: Val<'c>) -> Val<'c> {
        match (self.code, p.k_per_word) {
            (None, 2) => v,
            (None, _) => cg.cast(v, Elem::F32),
            (Some(format), 2) => narrow::decode_bf16(cg, v, format),
            (Some(format), _) => narrow::decode(cg, cg.zext(v, Elem::I32), format),
        }
    }

    /// `lanes` words along k from `k` on of one row; zero where `mask` (on elements) fails.
    fn words_along_k(
        &self,
        cg: &Cg<'c>,
        p: &Packing,
        free: Val<'c>,
        k: Val<'c>,
        mask: Option<Val<'c>>,
    ) -> Val<'c> {
        let v = cg.load_tail(self.elem.x(p.lanes * p.k_per_word), self.at(cg, free, k), mask);
        let v = self.decoded(cg, p, v);
        if p.k_per_word == 2 { cg.bitcast(v, Elem::I32.x(p.lanes)) } else { v }
    }

    /// `lanes` words across rows from `free` on, at word `word` of k: with pairs, two elements of k
    /// interleaved.
    fn words_across(
        &self,
        cg: &Cg<'c>,
        p: &Packing,
        free: Val<'c>,
        word: Val<'c>,
        mask: Option<Val<'c>>,
    ) -> Val<'c> {
        let ty = self.elem.x(p.lanes);
        let load = |k: Val<'c>, mask| {
            cg.load_tail(
                ty,
                cg.at(self.start, self.elem, cg.add(free, cg.mul(k, self.k_stride))),
                mask,
            )
        };
        if p.k_per_word == 1 {
            return self.decoded(cg, p, load(word, mask));
        }
        let k = cg.mul(word, 2);
        let low = load(k, mask);
        let second = cg.add(k, 1);
        let inside = cg.cmp(Cmp::Lt, second, self.k);
        let high = cg.if_else(inside, || vec![load(second, mask)], || vec![cg.zero(ty)]);
        let [low, high] = [low, high[0]].map(|v| self.decoded(cg, p, v));
        cg.bitcast(cg.interleave(low, high), Elem::I32.x(p.lanes))
    }

    /// Number of words.
    fn words(&self, cg: &Cg<'c>, p: &Packing) -> Val<'c> {
        cg.div_ceil(self.k, i64::from(p.k_per_word))
    }
}

/// Rows to fetch ahead of the copy: each is a jump that the machine's own prefetching does not
/// follow. An address beyond the operand does no harm there.
const AHEAD: i64 = 4;

/// Packs rows of A at `to`.
pub fn pack_a<'c>(cg: &Cg<'c>, p: &Packing, a: &Block<'c>, to: Val<'c>) {
    match a.along {
        Along::K => copy_rows(cg, p, a, to),
        Along::Free => {
            let widths = (i64::from(p.rows), i64::from(p.a_panel_words()));
            copy_across(cg, p, a, widths, 1, to);
        }
        Along::Neither => {
            let widths = (i64::from(p.rows), i64::from(p.a_panel_words()));
            copy_elements(cg, p, a, widths, to);
        }
    }
}

/// Packs columns of B at `to`.
pub fn pack_b<'c>(cg: &Cg<'c>, p: &Packing, b: &Block<'c>, to: Val<'c>) {
    let widths = (i64::from(p.cols), i64::from(p.b_panel_words()));
    match b.along {
        Along::K => copy_transposed(cg, p, b, to),
        Along::Free => copy_across(cg, p, b, widths, 2, to),
        Along::Neither => copy_elements(cg, p, b, widths, to),
    }
}

/// Row by row: a copy that puts rows at a fixed distance.
fn copy_rows<'c>(cg: &Cg<'c>, p: &Packing, a: &Block<'c>, to: Val<'c>) {
    let lanes = i64::from(p.lanes * p.k_per_word);
    let whole = cg.sub(a.k, cg.rem(a.k, lanes));
    let put = |row: Val<'c>, k: Val<'c>, v: Val<'c>| {
        let row = cg.at(to, Elem::F32, cg.mul(row, i64::from(p.a_row_words())));
        cg.store_aligned(v, cg.at(row, Elem::F32, cg.div_exact(k, p.k_per_word)), 4 * p.lanes);
    };
    cg.for_each(cg.i64(0), a.free, 1, |row| {
        cg.for_each(cg.i64(0), whole, lanes, |k| {
            cg.prefetch(a.at(cg, cg.add(row, AHEAD), k));
            put(row, k, a.words_along_k(cg, p, row, k, None));
        });
        cg.when(cg.cmp(Cmp::Lt, whole, a.k), || {
            let mask = cg.mask_below(cg.sub(a.k, whole), p.lanes * p.k_per_word);
            put(row, whole, a.words_along_k(cg, p, row, whole, Some(mask)));
        });
    });
}

/// Panels of `width` rows (columns of B), k by k, from an operand that is contiguous along them. A
/// panel is `vectors` vectors; one that is narrower than its vectors is stored whole all the same,
/// the next k then overwrites what ran over.
fn copy_across<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    x: &Block<'c>,
    (width, panel_words): (i64, i64),
    vectors: u32,
    to: Val<'c>,
) {
    let panels = cg.div_ceil(x.free, width);
    let lanes = i64::from(p.lanes);
    let panel_lanes = width.min(lanes);
    let words = x.words(cg, p);
    let one_panel = |word: Val<'c>, panel: Val<'c>, left: Option<Val<'c>>| {
        for v in 0..vectors {
            let inside = i64::from(v) * lanes;
            let first = cg.add(cg.mul(panel, width), inside);
            let mask = match left {
                Some(left) => {
                    let left = cg.min(cg.sub(left, inside), panel_lanes);
                    Some(cg.mask_below(left, p.lanes))
                }
                None if panel_lanes < lanes => Some(cg.mask_below(cg.i64(panel_lanes), p.lanes)),
                None => None,
            };
            let ahead = cg.mul(cg.add(word, AHEAD), i64::from(p.k_per_word));
            cg.prefetch(x.at(cg, first, ahead));
            let v = x.words_across(cg, p, first, word, mask);
            let at = cg.add(cg.mul(panel, panel_words), cg.add(cg.mul(word, width), inside));
            cg.store(v, cg.at(to, Elem::F32, at));
        }
    };
    let last = cg.sub(panels, 1);
    let left = cg.sub(x.free, cg.mul(last, width));
    cg.for_each(cg.i64(0), words, 1, |word| {
        cg.for_each(cg.i64(0), last, 1, |panel| one_panel(word, panel, None));
        one_panel(word, last, Some(left));
    });
}

/// Panels of columns, k by k, from an operand that is contiguous along k: squares are transposed in
/// registers. Columns outside are copies of the last one.
fn copy_transposed<'c>(cg: &Cg<'c>, p: &Packing, b: &Block<'c>, to: Val<'c>) {
    let lanes = i64::from(p.lanes);
    let k_step = lanes * i64::from(p.k_per_word);
    let last = cg.sub(b.free, 1);
    let panel_words = i64::from(p.b_panel_words());
    let square = |col: Val<'c>, k: Val<'c>| {
        let rows: Vec<Val> = (0..lanes)
            .map(|i| b.words_along_k(cg, p, cg.min(cg.add(col, i), last), k, None))
            .collect();
        // Two vectors a panel: even ones are its left half.
        let vector = cg.ashr(col, i64::from(p.lanes.trailing_zeros()));
        let panel = cg.ashr(vector, 1);
        let half = cg.mul(cg.and(vector, 1), lanes);
        let word = cg.div_exact(k, p.k_per_word);
        let at = cg.add(cg.mul(panel, panel_words), cg.add(cg.mul(word, i64::from(p.cols)), half));
        let to = cg.at(to, Elem::F32, at);
        for (i, row) in cg.transpose(&rows).into_iter().enumerate() {
            cg.store_aligned(row, cg.at(to, Elem::F32, i as i64 * i64::from(p.cols)), 4 * p.lanes);
        }
    };
    let whole = cg.sub(b.k, cg.rem(b.k, k_step));
    cg.for_each(cg.i64(0), b.free, lanes, |col| {
        cg.for_each(cg.i64(0), whole, k_step, |k| square(col, k));
    });
    // The rest of k is narrower than a square, and absent where k is a multiple of one.
    let rest =
        Block { start: cg.at(b.start, b.elem, whole), free: b.free, k: cg.sub(b.k, whole), ..*b };
    let words = cg.mul(cg.div_exact(whole, p.k_per_word), i64::from(p.cols));
    copy_elements(cg, p, &rest, (i64::from(p.cols), panel_words), cg.at(to, Elem::F32, words));
}

/// Element by element, for an operand that is contiguous along nothing. Slow, and rare.
fn copy_elements<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    x: &Block<'c>,
    (width, panel_words): (i64, i64),
    to: Val<'c>,
) {
    let packed = if p.k_per_word == 2 { Elem::BF16 } else { Elem::F32 };
    let per_word = i64::from(p.k_per_word);
    let k_padded = cg.mul(x.words(cg, p), per_word);
    cg.for_each(cg.i64(0), x.free, 1, |i| {
        let panel = cg.mul(cg.div(i, width), panel_words);
        let within = cg.rem(i, width);
        cg.for_each(cg.i64(0), k_padded, 1, |k| {
            let inside = cg.cmp(Cmp::Lt, k, x.k);
            let v = cg.masked_load(x.elem.x(1), x.at(cg, i, k), inside);
            let word = cg.add(panel, cg.add(cg.mul(cg.div(k, per_word), width), within));
            let at = cg.add(cg.mul(word, per_word), cg.rem(k, per_word));
            cg.store(x.decoded(cg, p, v), cg.at(to, packed, at));
        });
    });
}
