//! Attention of a few queries over keys that all heads share, the first part of which is the value
//! too: latent attention once its up-projections have been absorbed, in the form of FlashMLA.
//!
//! Rows of a tile are heads, 64 of one query. Their sums over 512 columns fill half of a
//! multiprocessor's registers, so there is no second tile whose products could hide this one's
//! softmax. Two warpgroups own half of the columns each and take blocks of 64 keys in pairs. Each
//! scores one block of the two. Its weights are multiplied twice: by itself, from its registers,
//! with its own half of the values (*near*), and by the other one, from shared memory, with the
//! other half (*far*). They go up and down in turn, the seesaw of FlashMLA's description:
//!
//! ```text
//! warpgroup 0, left half of o            warpgroup 1, right half of o
//!
//! S0 = q · k0                            far product of the pair before
//! m0 = max(m, S0), tells m0              S1 = q · k1
//! P0 = 2^(S0 - m0), O = O 2^(m - m0)       ...
//! O += P0 · v0, near                     m1 = max(m0, S1), tells m1
//!   ...                                  P1 = 2^(S1 - m1), gives P1, O = O 2^(m - m1)
//! P0 = P0 2^(m0 - m1), gives P0          O += P1 · v1, near
//! O = O 2^(m0 - m1), O += P1 · v1, far   O += P0 · v0, far
//! S0 = q · k0 of the next pair           S1 = q · k1 of the next pair
//! ```
//!
//! so that the softmax of one lies under products of the other. What they tell and give goes
//! through shared memory, behind named barriers at which one side only arrives. A row's maximum is
//! handed back and forth; weights of block 0, made beside m0, are corrected once m1 is known. The
//! last block of an odd number is warpgroup 0's; warpgroup 1 then has its far product alone.
//!
//! Latents come once and serve as keys and, seen the other way around, as values. The halves of a
//! block have barriers of their own, and each half is free once the warpgroup whose columns it has
//! has multiplied it: the next block's near half is on its way while the far one is in use. Two
//! blocks of 576 and the queries leave no room for weights: these lie where the block's last
//! columns were, which are read for scores alone.
//!
//! Keys are cut in *pieces*, so that a few requests keep all multiprocessors busy; what a piece
//! gives is combined by a kernel of plain threads. How long a piece is depends on the graph alone:
//! a request's result does not depend on which others are decoded with it. Where keys lie in pages
//! of a pool, a page holds whole blocks, so that a block's copies are those of consecutive rows:
//! the producer looks their first up in the table, and nothing else knows of pages.
//!
//! Envelope: of 64 heads and 128 keys of widths 576 and 512 the products are `64 * 128 * 1088`
//! multiply-adds, 4352 cycles of a multiprocessor's tensor cores, for 147,456 bytes: with 128 heads
//! the two tiles of a query read them twice, once from memory. Scores read q and k from shared
//! memory at 128 bytes a cycle, which is what it gives, near products read 64 and far ones 80. The
//! softmax of a block is 4096 exponentials, 256 cycles, and about as many of other instructions;
//! that of warpgroup 1 has a near product of 512 cycles to lie under, that of warpgroup 0 what is
//! left of the other's scores, 1152. Never timed: no GPU has run it.

mod consume;
mod exchange;
mod kernel;
mod load;
pub mod plan;
mod products;
mod seesaw;
mod store;

use super::signature::Tensor;
use super::{LINE, SHARED_BYTES_MAX};
use crate::ptx::wgmma::Kind;
use crate::tiles::ring::Ring;
use crate::tiles::shared::{Major, OperandTile, PERIOD_BYTES};

/// Heads of a tile.
pub const TILE_HEADS: u32 = 64;
/// Keys of a block, whose scores are one warpgroup's.
pub const BLOCK_KEYS: u32 = 64;

/// Blocks of keys that shared memory holds: at least a pair.
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
    /// Keys lie in pages of whole blocks.
    pub paged: bool,
}

impl Decode {
    pub fn name(&self) -> String {
        let widths: Vec<String> = self.parts.iter().map(u32::to_string).collect();
        let mut name = format!("sm90a_bf16_latent_attention_{}", widths.join("_"));
        for (is, suffix) in [
            (self.causal, "_causal"),
            (self.offset, "_offset"),
            (self.split, "_split"),
            (self.paged, "_paged"),
        ] {
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

    /// Weights of a block in shared memory, as the left-hand side of it.
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

    /// Bytes of half of a block's values.
    fn half_bytes(&self) -> u32 {
        self.v_tile().row_offset_bytes(self.half_width())
    }

    /// Bytes of a block's other parts.
    fn rest_bytes(&self) -> u32 {
        self.k_tiles()[1..].iter().map(|(_, tile)| tile.bytes()).sum()
    }

    /// A block; weights lie where its other parts were.
    fn stage_bytes(&self) -> u32 {
        self.p_offset_bytes() + self.rest_bytes().max(self.p_tile().bytes())
    }

    /// Where the weights of a block are in its stage.
    fn p_offset_bytes(&self) -> u32 {
        self.k_tile(0).bytes()
    }

    fn n_stages(&self) -> u32 {
        let fixed = self.q_bytes() + exchange::BYTES + Self::barriers_bytes(STAGES_MAX);
        let free = SHARED_BYTES_MAX.saturating_sub(fixed);
        (free / self.stage_bytes()).min(STAGES_MAX)
    }

    fn shared_bytes(&self) -> u32 {
        self.barriers_at() + Self::barriers_bytes(self.n_stages())
    }

    /// Of queries, and of the left and the right halves of blocks.
    fn barriers_bytes(n_stages: u32) -> u32 {
        Ring::barriers_bytes(1) + 2 * Ring::barriers_bytes(n_stages)
    }

    /// Where what is exchanged, and barriers, begin, behind q and the stages.
    fn exchange_at(&self) -> u32 {
        self.q_bytes() + self.n_stages() * self.stage_bytes()
    }

    fn barriers_at(&self) -> u32 {
        self.exchange_at() + exchange::BYTES
    }
}

const _: () = assert!(BLOCK_KEYS == LINE && BLOCK_KEYS * super::LINE_BYTES % PERIOD_BYTES == 0);
