//! Attention on tensor cores, `o = softmax(scale Σ_j q_j · k_j + mask) v`, of bf16: the form of
//! FlashAttention 3.
//!
//! A CTA takes 128 queries of a head, two warpgroups 64 each; a thread of a third warpgroup copies.
//! Queries stay in shared memory, keys and values come in blocks through two rings:
//!
//! ```text
//! S = q · k                     of the next block
//! O = O · correction            of the block before, under the product of scores
//! O += P · v                    of the block before; P is in registers
//! P = 2^(S - largest)           when S is there, under the product of values
//! ```
//!
//! so that a block's softmax lies under products of the one before. Of narrow heads, whose products
//! are shorter than that, the warpgroups take turns (`turns`): one starts its products when the
//! other has started its own and weighs, and O is corrected under the other's, behind P. Weights
//! are rounded to bf16 before their product with v; the sum of the weights is of those before
//! rounding. Blocks that no query of the tile sees are not visited; keys in a visited block that a
//! query may not see weigh 0.
//!
//! Envelope: of 128 queries and 128 keys of widths 192 and 128 the products are `128 * 128 * 320`
//! multiply-adds, 2560 cycles of a multiprocessor's tensor cores, and 16,384 exponentials, 16 a
//! cycle, 1024 cycles beside them. Never timed: no GPU has run it.

pub mod backward;
pub mod decode;
mod forward;
mod kernel;
mod load;
mod places;
pub mod plan;
mod sight;
pub mod signature;
mod softmax;
pub mod template;
mod turns;

use crate::ptx::wgmma::Kind;
use crate::tiles::shared::{LINE_BYTES, Major, OperandTile, PERIOD_BYTES};

/// Queries of a tile: 64 for each of the two consumer warpgroups.
pub const TILE_QUERIES: u32 = 128;

/// Elements of bf16 in a line of shared memory.
const LINE: u32 = LINE_BYTES / 2;

/// What a CTA may ask of shared memory.
const SHARED_BYTES_MAX: u32 = 227 * 1024;

/// What a kernel's code depends on. Sizes, strides and the scale come at the launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// The width of each q and k: their products are summed.
    pub parts: Vec<u32>,
    pub v_width: u32,
    /// Query `s` sees keys up to `s`, or up to `s` plus its batch's start if `offset`.
    pub causal: bool,
    pub offset: bool,
    /// Queries see keys of their own segment.
    pub segments: bool,
}

impl Attention {
    pub fn name(&self) -> String {
        let widths: Vec<String> = self.parts.iter().map(u32::to_string).collect();
        let mut name = format!("sm90a_bf16_attention_{}x{}", widths.join("_"), self.v_width);
        for (is, suffix) in
            [(self.causal, "_causal"), (self.offset, "_offset"), (self.segments, "_segments")]
        {
            name += if is { suffix } else { "" };
        }
        name
    }

    /// Why there is no such kernel.
    pub fn check(&self) -> Result<(), String> {
        let refuse = |what: String| Err(format!("{}: {what}", self.name()));
        let widths = self.parts.iter().chain([&self.v_width]);
        if let Some(odd) = widths.into_iter().find(|w| **w == 0 || !w.is_multiple_of(8)) {
            return refuse(format!("a head is {odd} wide, not a multiple of 8"));
        }
        if self.v_width > 256 {
            return refuse(format!("values are {} wide, more than 256", self.v_width));
        }
        if self.parts.is_empty() || self.parts.len() > 4 {
            return refuse(format!("{} parts, not 1 to 4", self.parts.len()));
        }
        if self.shared_bytes(self.block_keys()) > SHARED_BYTES_MAX {
            return refuse("queries and keys are too wide for shared memory".into());
        }
        Ok(())
    }

    /// Keys of a block: as many as fit twice in shared memory, and once in registers.
    pub fn block_keys(&self) -> u32 {
        let most = if self.v_width <= 128 { 128 } else { 64 };
        let fits = |n: &u32| *n <= most && self.shared_bytes(*n) <= SHARED_BYTES_MAX;
        [128, 96, 64, 32].into_iter().find(fits).unwrap_or(32)
    }

    fn q_tile(&self, part: usize) -> OperandTile {
        self.tile(part, TILE_QUERIES)
    }

    fn k_tile(&self, part: usize) -> OperandTile {
        self.tile(part, self.block_keys())
    }

    fn tile(&self, part: usize, rows: u32) -> OperandTile {
        let k = self.parts[part].next_multiple_of(LINE);
        OperandTile { kind: Kind::Bf16, major: Major::K, rows, k }
    }

    /// Values as the right-hand side of `P · v`: rows are their elements, k the keys.
    fn v_tile(&self) -> OperandTile {
        let rows = self.v_width.next_multiple_of(LINE);
        OperandTile { kind: Kind::Bf16, major: Major::Rows, rows, k: self.block_keys() }
    }

    /// Bytes of queries, and of a block of keys and one of values.
    fn stage_bytes(&self, block_keys: u32) -> [u32; 3] {
        let width: u32 = self.parts.iter().map(|w| w.next_multiple_of(LINE)).sum();
        let v = self.v_width.next_multiple_of(LINE);
        [TILE_QUERIES * width * 2, block_keys * width * 2, block_keys * v * 2]
    }

    fn shared_bytes(&self, block_keys: u32) -> u32 {
        let [q, k, v] = self.stage_bytes(block_keys);
        q + kernel::STAGES * (k + v) + kernel::BARRIERS_BYTES + PERIOD_BYTES
    }
}
