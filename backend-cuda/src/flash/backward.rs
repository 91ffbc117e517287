//! The derivative of attention on tensor cores, of bf16, in the form of FlashAttention 2 and 3:
//!
//! ```text
//! P  = 2^(scale q · k - lse)             dP = do · v
//! dS = P ∘ (dP - do · o)
//! dv = Pᵀ · do      dq = scale dS · k      dk = scale dSᵀ · q
//! ```
//!
//! Nothing is summed in an order that depends on scheduling: one kernel keeps 128 queries and goes
//! over keys for dq, another keeps 128 keys and goes over queries for dk and dv. Both are one
//! template, in which what is *kept* (x, y) meets blocks of what is *moved* (x', y'):
//!
//! ```text
//! kept     x, y      x', y'
//! queries  q, do     k, v        S = x · x'     dx += dS · x'
//! keys     k, v      q, do       T = y · y'     dy +=  P · y'     (for keys)
//! ```
//!
//! With keys kept scores are computed transposed, so that P and dS are in the registers that the
//! next product takes its left-hand side from; and a moved tile is read both ways as it lies. A
//! block's last product stays under way while the next block's scores are started:
//!
//! ```text
//! start S, T        wait for S (and dx of the block before)     P
//! start dy          wait for T                                  dS
//! start dx          wait for dy
//! ```
//!
//! Weights and dS are rounded to bf16 before their products. The kernel of queries, which runs
//! first, leaves for each query `-lse · log2 e` and `do · o` in a workspace, padded to whole tiles
//! with what makes a weight 0. Where several heads of q share a head of k or v, a tile of keys goes
//! over all of them if every result is shared so; else the results that are shared more are sums
//! of f32 for each unit of heads, which a kernel of plain threads adds up in order.
//!
//! Envelope: of 128 keys and 128 queries of widths 192 and 128 the products are `128 * 128 * 640`
//! multiply-adds for dk and dv, 5120 cycles of a multiprocessor's tensor cores, and `128 * 128 *
//! 512` for dq, 4096. Blocks of 32 columns, which are what registers leave room for beside dk and
//! dv of these widths, read x and y from shared memory at 192 bytes a cycle where it gives 128:
//! about 80 % of that rate at most. Never timed: no GPU has run it.

mod consume;
pub mod kernel;
mod load;
pub mod plan;
mod statistics;
mod store;

use super::signature::Tensor;
use super::{Attention, LINE, SHARED_BYTES_MAX};
use crate::ptx::wgmma::Kind;
use crate::tiles::fragment::n_sums;
use crate::tiles::ring::Ring;
use crate::tiles::shared::{Major, OperandTile, PERIOD_BYTES};

/// Rows of a kept tile: 64 for each of the two consumer warpgroups.
pub const TILE_ROWS: u32 = 128;

/// More stages hide no more than the latency of memory.
const STAGES_MAX: u32 = 4;
/// Registers of a consumer that hold neither sums nor scores, about.
const OTHER_REGISTERS: u32 = 40;
/// Bytes of a query's statistics.
const STATISTICS_BYTES: u32 = 8;

/// What a kernel makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Makes {
    /// dq, and the statistics.
    Queries,
    Keys,
    Values,
    KeysAndValues,
}

/// What a kernel's code depends on. Sizes, strides and the scale come at the launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backward {
    pub of: Attention,
    pub makes: Makes,
    /// Of each result in order (dq or dk of the parts, dv): it is f32, a sum for each unit.
    pub partial: Vec<bool>,
}

impl Backward {
    pub fn name(&self) -> String {
        let made = match self.makes {
            Makes::Queries => "dq",
            Makes::Keys => "dk",
            Makes::Values => "dv",
            Makes::KeysAndValues => "dkv",
        };
        let partial: String = self.partial.iter().map(|p| if *p { 'p' } else { 'w' }).collect();
        let partial = if partial.contains('p') { format!("_{partial}") } else { String::new() };
        format!("{}_{made}{partial}", self.of.name())
    }

    /// Why there is no such kernel.
    pub fn check(&self) -> Result<(), String> {
        let refuse = |what: &str| Err(format!("{}: {what}", self.name()));
        if let Some(odd) = self.widths().find(|w| *w == 0 || !w.is_multiple_of(8)) {
            return refuse(&format!("a head is {odd} wide, not a multiple of 8"));
        }
        if let Some(wide) = self.widths().find(|w| *w > 256) {
            return refuse(&format!("a head is {wide} wide, more than 256"));
        }
        if self.of.parts.is_empty() || self.of.parts.len() > 4 {
            return refuse(&format!("{} parts, not 1 to 4", self.of.parts.len()));
        }
        if self.partial.len() != self.made_widths().len() {
            return refuse(&format!("{} results are named", self.partial.len()));
        }
        match self.block() {
            Some(_) => Ok(()),
            None => refuse("its sums do not fit in registers, or its tiles in shared memory"),
        }
    }

    /// Of q and k, and of v.
    fn widths(&self) -> impl Iterator<Item = u32> {
        self.of.parts.iter().copied().chain([self.of.v_width])
    }

    pub fn keeps_keys(&self) -> bool {
        self.makes != Makes::Queries
    }

    /// Whether dx is made: dq or dk.
    fn makes_x(&self) -> bool {
        self.makes != Makes::Values
    }

    /// Whether dy is made: dv.
    fn makes_y(&self) -> bool {
        matches!(self.makes, Makes::Values | Makes::KeysAndValues)
    }

    /// Widths of the results, in order.
    pub fn made_widths(&self) -> Vec<u32> {
        let x = if self.makes_x() { &self.of.parts[..] } else { &[] };
        x.iter().copied().chain(self.makes_y().then_some(self.of.v_width)).collect()
    }

    /// Columns of a block: as many as registers and two stages of shared memory hold.
    fn block(&self) -> Option<u32> {
        // Of queries those that fill tiles: statistics are padded so.
        let sizes: &[u32] = match self.keeps_keys() {
            true => &[128, 64, 32, 16],
            false => &[128, 96, 80, 64, 48, 32, 16],
        };
        let sums: usize = self.made_widths().into_iter().map(n_sums).sum();
        // Scores, what y gives, and the weights packed.
        let registers = |n: u32| sums as u32 + 5 * n / 4 + OTHER_REGISTERS;
        let most = kernel::REGISTERS.consumer;
        sizes.iter().copied().find(|n| registers(*n) <= most && self.n_stages(*n) >= 2)
    }

    /// As [`Backward::block`], of a kernel that there is.
    pub fn columns(&self) -> u32 {
        self.block().unwrap_or_else(|| panic!("{} has no block", self.name()))
    }

    fn n_stages(&self, columns: u32) -> u32 {
        let fixed = self.kept_bytes() + Ring::barriers_bytes(1 + STAGES_MAX) + PERIOD_BYTES;
        let free = SHARED_BYTES_MAX.saturating_sub(fixed);
        (free / self.stage_bytes(columns)).min(STAGES_MAX)
    }

    fn y_tile(&self, rows: u32) -> OperandTile {
        let k = self.of.v_width.next_multiple_of(LINE);
        OperandTile { kind: Kind::Bf16, major: Major::K, rows, k }
    }

    /// x and, where it is looked at, y.
    fn kept(&self) -> Vec<(Tensor, OperandTile)> {
        let (x, y): (fn(usize) -> Tensor, Tensor) = match self.keeps_keys() {
            true => (Tensor::K, Tensor::V),
            false => (Tensor::Q, Tensor::DO),
        };
        let mut out = self.x_tiles(x, TILE_ROWS);
        out.extend(self.makes_x().then(|| (y, self.y_tile(TILE_ROWS))));
        out
    }

    /// x' and y'.
    fn moved(&self, columns: u32) -> Vec<(Tensor, OperandTile)> {
        let (x, y): (fn(usize) -> Tensor, Tensor) = match self.keeps_keys() {
            true => (Tensor::Q, Tensor::DO),
            false => (Tensor::K, Tensor::V),
        };
        let mut out = self.x_tiles(x, columns);
        out.push((y, self.y_tile(columns)));
        out
    }

    fn x_tiles(&self, x: fn(usize) -> Tensor, rows: u32) -> Vec<(Tensor, OperandTile)> {
        (0..self.of.parts.len()).map(|i| (x(i), self.of.tile(i, rows))).collect()
    }

    fn kept_bytes(&self) -> u32 {
        self.kept().iter().map(|(_, tile)| tile.bytes()).sum()
    }

    /// Where a stage's statistics begin, behind its tiles.
    fn moved_bytes(&self, columns: u32) -> u32 {
        self.moved(columns).iter().map(|(_, tile)| tile.bytes()).sum()
    }

    /// What is copied for a block.
    fn block_bytes(&self, columns: u32) -> u32 {
        let statistics = if self.keeps_keys() { STATISTICS_BYTES * columns } else { 0 };
        self.moved_bytes(columns) + statistics
    }

    fn stage_bytes(&self, columns: u32) -> u32 {
        self.block_bytes(columns).next_multiple_of(PERIOD_BYTES)
    }

    fn shared_bytes(&self) -> u32 {
        let columns = self.columns();
        let n_stages = self.n_stages(columns);
        let barriers = Ring::barriers_bytes(1) + Ring::barriers_bytes(n_stages);
        self.kept_bytes() + n_stages * self.stage_bytes(columns) + barriers
    }
}
