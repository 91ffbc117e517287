//! Attention and its derivative, `o = softmax(scale Σ_j q_j · k_j + mask) v`, in blocks: no array
//! of queries by keys exists. Operands are f32 or bf16, sums are f32.
//!
//! A vector's lanes are *query rows*; keys and their elements are broadcast from where they lie:
//!
//! ```text
//! for each tile of 16 or 32 query rows:              q transposed into scratch, [D, rows]
//!     for each block of keys it sees:                scores, [keys, rows], in L1
//!         running maximum and sum, lane by lane      p = 2^(score - maximum)
//!         o [Dv, rows] = o · correction + v · p
//! ```
//!
//! So neither k nor v is copied or transposed, softmax needs no sum across lanes, and masks compare
//! lanes. Query heads that share all keys and values are rows of one tile: with one kv head for 8
//! query heads a decoded token fills 8 lanes. A row's arithmetic is its lane's: it depends on no
//! other row, on the number of queries or on the batch, and not on threads. Keys after the last
//! that a tile's rows see are not touched; keys before it that a row may not see must be finite,
//! since they are weighed with 0.
//!
//! Keys and values in pages of a pool are read where they lie, too: for each block of keys their
//! rows in the pool are looked up once, and broadcasts begin there. Blocks are as long as without
//! pages, whatever a page has, so sums run in one order and results have the same bits.
//!
//! Where rows of o are wanted as codes (`codes.rs`), a block does as many heads as share a group of
//! codes, keeps their o and encodes it at its end.
//!
//! In bf16 a block of keys and values is widened into scratch, once for all rows of a tile. Weights
//! and derivatives of scores are rounded to bf16 before their products, as where matrix units take
//! them; the sum of the weights is of those before rounding.
//!
//! The derivative is one launch over (batch, kv head): it computes scores and `do · v` again, and
//! sums dq in scratch, dk and dv in place, in the order of the rows. What several kv heads share
//! (the rotary part of latent attention) is summed head by head in a workspace and added up by a
//! second launch; so is, since sums are f32, all of dk and dv in bf16.
//!
//! Envelope: `2 (D + Dv)` flops for a query, head and key forward, `6 D + 4 Dv` backward, at two
//! vector FMAs a cycle; a score's exponential and mask are about 20 more vector operations.
//! Decoding is bound by broadcasts, two a cycle, one for each element of k and v. Measured on one
//! core of an EPYC with AVX-512 (f32 roof about 250 GFLOP/s), causal, S 256, D 32 + 16, Dv 32, not
//! counting what is masked: a head takes 31 us forward and 75 us backward, 170 and 180 GFLOP/s; a
//! token decoded by 8 heads over 512 keys of 64 + 16 takes 12 us.

mod args;
mod backward;
mod codes;
mod forward;
mod plan;
mod reduce;
mod rows;
mod scores;
mod tile;

use weft_codegen::emit::Elem;
use weft_codegen::row_codes::RowCodes;

pub use plan::{backward, forward, takes_codes};
pub use weft_lower::describe::attention::{
    Attention, Buffer, Gradients, Heads, Launch, Part, Planned,
};

/// The keys or values of a kernel, as far as its code depends on them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Keys {
    pub width: u32,
    pub heads: i64,
    /// The distance of rows, where it is known.
    pub row_stride: Option<i64>,
}

/// What a kernel's code depends on: all else comes as scalars.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    pub elem: Elem,
    pub parts: Vec<Keys>,
    pub v: Keys,
    pub heads: i64,
    /// Consecutive query heads that share all keys and values.
    pub group: i64,
    pub causal: bool,
    pub offset: bool,
    pub segments: bool,
    /// Positions of a page, where keys and values lie in pages.
    pub page: Option<i64>,
    /// Query rows of a block: `group` for each query.
    pub block_rows: u32,
    /// Groups of heads that a block of the forward pass does, one after the other.
    pub block_units: i64,
    /// What rows of o become at a block's end.
    pub codes: Vec<RowCodes>,
    /// Is o itself written?
    pub keeps_o: bool,
}

impl Shape {
    /// Groups of heads.
    pub fn units(&self) -> i64 {
        self.heads / self.group
    }

    /// Where in a row of scratch that holds all of q each part starts.
    pub fn q_firsts(&self) -> Vec<u32> {
        let before = |j: usize| self.parts[..j].iter().map(|p| tile::padded(p.width)).sum();
        (0..self.parts.len()).map(before).collect()
    }

    /// f32 of such a row.
    pub fn q_width(&self) -> u32 {
        self.parts.iter().map(|p| tile::padded(p.width)).sum()
    }

    /// Are weights rounded, and keys and values widened?
    pub fn is_narrow(&self) -> bool {
        self.elem != Elem::F32
    }
}
