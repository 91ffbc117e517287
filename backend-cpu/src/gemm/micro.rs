//! The micro-kernel: a few rows of packed A times a few vectors of packed B, summed in registers.
//!
//! Packed operands are made of 32-bit words: an f32, or with `bf16_dot` a pair of bf16 next to each
//! other in k. A word of A is broadcast, a vector of words of B is loaded.

use weft_codegen::emit::{Cg, Elem, Target, Val};

use super::{Shape, Unit};

/// k words of one packed chunk. A panel of B is then 32 KiB and stays in the first-level cache.
pub const CHUNK_WORDS: u32 = 256;

/// Sizes of the packed form on one target.
#[derive(Clone, Copy)]
pub struct Packing {
    /// Rows of a panel of A.
    pub rows: u32,
    /// Columns of a panel of B: two vectors.
    pub cols: u32,
    pub lanes: u32,
    /// Elements of k in a word: 2 when a word is a pair of bf16.
    pub k_per_word: u32,
    /// A is packed row by row (it came with k contiguous), else k by k.
    pub a_by_row: bool,
}

impl Packing {
    pub fn new(target: &Target, shape: &Shape) -> Packing {
        let pairs = target.bf16_dot && shape.a == Elem::BF16 && shape.b == Elem::BF16;
        // 12 x 2 sums, 2 of B and the broadcasts fill 32 registers; 6 x 2 fill 16.
        let rows = if target.vector_registers >= 32 { 12 } else { 6 };
        Packing {
            rows,
            cols: 2 * target.lanes,
            lanes: target.lanes,
            k_per_word: if pairs { 2 } else { 1 },
            a_by_row: shape.a_unit == Unit::Col,
        }
    }

    /// The element of a packed word.
    pub fn word(&self) -> Elem {
        if self.k_per_word == 2 { Elem::I32 } else { Elem::F32 }
    }

    /// Words from one row of packed A to the next: a line more than the chunk, so that the rows of
    /// a panel do not fall on the same cache set.
    pub fn a_row_words(&self) -> u32 {
        CHUNK_WORDS + 16
    }

    /// Words from one panel of A to the next. A panel packed k by k ends with the room that storing
    /// whole vectors runs over.
    pub fn a_panel_words(&self) -> u32 {
        if self.a_by_row { self.rows * self.a_row_words() } else { self.rows * CHUNK_WORDS + 16 }
    }

    /// Words from one panel of B to the next.
    pub fn b_panel_words(&self) -> u32 {
        CHUNK_WORDS * self.cols
    }

    fn a_word(&self, row: u32) -> (u32, u32) {
        if self.a_by_row { (row * self.a_row_words(), 1) } else { (row, self.rows) }
    }
}

/// Sums `words` steps onto `acc` (`rows` x `vectors`, row by row) from panels at `a` and `b`. The
/// loop is not unrolled: 24 multiply-adds a step hide its end, and a step more costs only code.
pub fn accumulate<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    (rows, vectors): (u32, u32),
    (a, b): (Val<'c>, Val<'c>),
    words: Val<'c>,
    acc: &[Val<'c>],
) -> Vec<Val<'c>> {
    let (_, a_step) = p.a_word(0);
    let vector = p.word().x(p.lanes);
    cg.for_(cg.i64(0), words, 1, acc, |k, acc| {
        let a = cg.at(a, Elem::F32, cg.mul(k, i64::from(a_step)));
        let b = cg.at(b, Elem::F32, cg.mul(k, i64::from(p.cols)));
        let b_at = |v: u32| cg.at(b, Elem::F32, i64::from(v * p.lanes));
        let b: Vec<Val> =
            (0..vectors).map(|v| cg.load_aligned(vector, b_at(v), 4 * p.lanes)).collect();
        let a_at = |r: u32| cg.at(a, Elem::F32, i64::from(p.a_word(r).0));
        let rows = (0..rows).map(|r| cg.splat(cg.load(p.word().x(1), a_at(r)), p.lanes));
        let places = rows.flat_map(|a| b.iter().map(move |&b| (a, b)));
        places.zip(acc).map(|((a, b), &acc)| multiply_add(cg, p, a, b, acc)).collect()
    })
}

/// `acc + a · b` on words.
pub fn multiply_add<'c>(cg: &Cg<'c>, p: &Packing, a: Val<'c>, b: Val<'c>, acc: Val<'c>) -> Val<'c> {
    if p.k_per_word == 2 { cg.dot_bf16(a, b, acc) } else { cg.fma(a, b, acc) }
}
