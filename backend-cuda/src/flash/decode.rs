//! Attention of a few queries over keys that all heads share, the first part of which is the value
//! too: latent attention once its up-projections have been absorbed, in the form of FlashMLA.
//!
//! Rows of a tile are heads, 64 of one query. Their sums over 512 columns would fill half of a
//! multiprocessor's registers, so two warpgroups own half of the columns each and help each other
//! to weights, 64 keys at a time:
//!
//! ```text
//! S = q · k          of 32 keys each, while
//! O += P · v         of the 64 keys before, each its columns
//! m = max            of both, exchanged in shared memory
//! P = 2^(S - m)      of 32 keys each, when both are done with the old P exchanged too
//! ```
//!
//! Latents come once and serve as keys and, seen the other way around, as values. Keys are cut in
//! *pieces*, so that a few requests keep all multiprocessors busy; what a piece gives is combined
//! by a kernel of plain threads. How long a piece is depends on the graph alone: a request's result
//! does not depend on which others are decoded with it. The cache is contiguous, as the runtime's
//! is; pages are not taken.
//!
//! Envelope: of 64 heads and 64 keys of widths 576 and 512 the products are `64 * 64 * 1088`
//! multiply-adds, 2176 cycles of a multiprocessor's tensor cores, for 73,728 bytes: with 128 heads
//! the two tiles of a query read them twice, once from memory. Scores of 32 columns read q and k
//! from shared memory at 192 bytes a cycle where it gives 128: about 80 % of that rate at most.
//! Never timed: no GPU has run it.

mod consume;
mod kernel;
mod load;
pub mod plan;

use super::signature::Tensor;
use super::{LINE, SHARED_BYTES_MAX};
use crate::ptx::wgmma::Kind;
use crate::tiles::ring::Ring;
use crate::tiles::shared::{Major, OperandTile, PERIOD_BYTES};

/// Heads of a tile.
pub const TILE_HEADS: u32 = 64;
/// Keys of a block: half of them for each warpgroup's scores.
pub const BLOCK_KEYS: u32 = 64;
const OWN_KEYS: u32 = BLOCK_KEYS / 2;

/// Blocks of keys that shared memory holds: one whose values are multiplied, one for scores.
const STAGES_MIN: u32 = 2;
const STAGES_MAX: u32 = 4;

/// What a kernel's code depends on. Sizes, strides and the scale come at the launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decode {
    /// The width of each q and k; the first k is v.
    pub parts: Vec<u32>,
    /// Query `s` sees keys up to `s`, or up to `s` plus its batch's start if `offset`.
    pub causal: bool,
    pub offset: bool,
    /// Keys are cut in pieces, whose sums are left to be combined.
    pub split: bool,
}

impl Decode {
    pub fn name(&self) -> String {
        let widths: Vec<String> = self.parts.iter().map(u32::to_string).collect();
        let mut name = format!("sm90a_bf16_latent_attention_{}", widths.join("_"));
        for (is, suffix) in
            [(self.causal, "_causal"), (self.offset, "_offset"), (self.split, "_split")]
        {
            name += if is { suffix } else { "" };
        }
        name
    }

    /// Why there is no such kernel.
    pub fn check(&self) -> Result<(), String> {
        let refuse = |what: String| Err(format!("{}: {what}", self.name()));
        if self.parts.is_empty() || self.parts.len() > 4 {
            return refuse(format!("{} parts, not 1 to 4", self.parts.len()));
        }
        if let Some(odd) = self.parts.iter().find(|w| **w == 0 || !w.is_multiple_of(8)) {
            return refuse(format!("a head is {odd} wide, not a multiple of 8"));
        }
        if self.v_width() > 512 {
            return refuse(format!("values are {} wide, more than 512", self.v_width()));
        }
        if self.n_stages() < STAGES_MIN {
            return refuse("queries and keys are too wide for shared memory".into());
        }
        Ok(())
    }

    pub fn v_width(&self) -> u32 {
        self.parts[0]
    }

    /// Columns of the values that a warpgroup owns; beyond the width they are zero.
    fn half_width(&self) -> u32 {
        self.k_tile(0).k / 2
    }

    fn q_tile(&self, part: usize) -> OperandTile {
        let k = self.parts[part].next_multiple_of(LINE);
        OperandTile { kind: Kind::Bf16, major: Major::K, rows: TILE_HEADS, k }
    }

    /// Of the values each half is of whole lines.
    fn k_tile(&self, part: usize) -> OperandTile {
        let lines = if part == 0 { 2 * LINE } else { LINE };
        let k = self.parts[part].next_multiple_of(lines);
        OperandTile { kind: Kind::Bf16, major: Major::K, rows: BLOCK_KEYS, k }
    }

    /// The first part of a block as the right-hand side of `P · v`.
    fn v_tile(&self) -> OperandTile {
        let lies = self.k_tile(0);
        OperandTile { major: Major::Rows, rows: lies.k, k: lies.rows, ..lies }
    }

    /// Weights of a block, as the left-hand side of it.
    fn p_tile(&self) -> OperandTile {
        OperandTile { kind: Kind::Bf16, major: Major::K, rows: TILE_HEADS, k: BLOCK_KEYS }
    }

    fn q_tiles(&self) -> Vec<(Tensor, OperandTile)> {
        (0..self.parts.len()).map(|i| (Tensor::Q(i), self.q_tile(i))).collect()
    }

    fn k_tiles(&self) -> Vec<(Tensor, OperandTile)> {
        (0..self.parts.len()).map(|i| (Tensor::K(i), self.k_tile(i))).collect()
    }

    fn q_bytes(&self) -> u32 {
        self.q_tiles().iter().map(|(_, tile)| tile.bytes()).sum()
    }

    fn stage_bytes(&self) -> u32 {
        self.k_tiles().iter().map(|(_, tile)| tile.bytes()).sum()
    }

    /// For each warpgroup and row a number that the other one reads.
    fn exchange_bytes() -> u32 {
        2 * TILE_HEADS * 4
    }

    fn n_stages(&self) -> u32 {
        let barriers = Ring::barriers_bytes(1 + STAGES_MAX);
        let fixed = self.q_bytes() + self.p_tile().bytes() + Self::exchange_bytes() + barriers;
        let free = SHARED_BYTES_MAX.saturating_sub(fixed);
        (free / self.stage_bytes()).min(STAGES_MAX)
    }

    fn shared_bytes(&self) -> u32 {
        self.barriers_at() + Ring::barriers_bytes(1) + Ring::barriers_bytes(self.n_stages())
    }

    /// Where weights, what is exchanged, and barriers begin, behind q and the stages.
    fn p_at(&self) -> u32 {
        self.q_bytes() + self.n_stages() * self.stage_bytes()
    }

    fn exchange_at(&self) -> u32 {
        self.p_at() + self.p_tile().bytes()
    }

    fn barriers_at(&self) -> u32 {
        self.exchange_at() + Self::exchange_bytes()
    }
}

const _: () = assert!(BLOCK_KEYS == LINE && OWN_KEYS * super::LINE_BYTES % PERIOD_BYTES == 0);
