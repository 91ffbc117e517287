//! Matrix products on tensor cores: `C[m, n] (+)= Σ_k A[m, k] · B[k, n]`.
//!
//! One kernel form serves all. Its CTAs stay: each takes tiles of C one after the other. A thread
//! of the last warpgroup fills a ring of stages by TMA; two warpgroups multiply them by wgmma, each
//! 64 rows of the tile, and store. The producer runs ahead into the next tile while the consumers
//! store.
//!
//! Sums of bf16 stay in the tensor cores' accumulators for all of k. Products of codes are cut in
//! blocks of 128 terms, at multiples of 128 counted from the start of the array (and where a
//! segment of [`Grouping::Inner`] begins and ends):
//!
//! ```text
//! s = round(scale of A · scale of B)        sum = fma(partial, s, sum)        C = round(sum)
//! ```
//!
//! as the CPU's kernels do it; `partial` is what the tensor core makes of its 128 terms.
//!
//! Two products of one A may be done together, and a region may go on with their sums in registers
//! (`epilogue`): gate and up, SiLU, and codes with their scales are one kernel.
//!
//! Where [`Gemm::shares`] says so, CTAs make clusters of two with neighbouring tiles: of the same
//! columns, which share what they need of B, or of the same rows, which share A. Each copies half
//! of the shared part of a stage into both (multicast). Where tiles are odd in number the last pair
//! has one that lies beyond C: of an operand it gets zeros, and nothing of it is stored.
//!
//! Envelope: a stage of 128 rows and BN columns is `128 * BN` times 64 terms of bf16, or 128 of
//! e4m3, in `(128 + BN) * 128` bytes. A multiprocessor multiplies 2048 pairs of bf16 or 4096 of
//! e4m3 a cycle, so that a stage takes `4 BN` cycles: 64 bytes a cycle with BN = 128, about what
//! the second-level cache gives, 48 with 256. What two CTAs share is read from that cache once for
//! both: with 256 columns and a shared B a CTA reads 256 lines a stage, not 384, a third less; with
//! 128 a quarter less, whichever is shared. As many bytes come to each multiprocessor as before.
//! Never timed: no GPU has run it.

mod consume;
pub mod ended;
pub mod epilogue;
mod kernel;
pub mod plan;
mod produce;
mod schedule;
pub mod select;

pub use crate::ptx::wgmma::Kind;
use crate::tiles::shared::{LINE_BYTES, Major, OperandTile};
pub use epilogue::Epilogue;
pub use kernel::{Argument, Launch, MapElement, MapSpec};

/// Rows of a tile: 64 for each of the two consumer warpgroups.
pub const TILE_ROWS: u32 = 128;

/// Columns of a tile that a region goes on with.
const REGION_COLS_MAX: u32 = 128;

/// Terms of k that share a scale, and after which a partial sum is promoted.
pub const BLOCK_K: u32 = 128;

/// How a product repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// A batch of equal products; a single one is a batch of one.
    Batch,
    /// Rows `offsets[g]..offsets[g + 1]` of A and C belong to B of group `g`.
    Rows,
    /// Group `g` has rows `0..counts[g]` of its own A and C; there are `m` places for them.
    Masked,
    /// Terms `offsets[g]..offsets[g + 1]` of the sum belong to C of group `g`.
    Inner,
}

/// How an operand of codes is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scales {
    pub dtype: ScaleType,
    /// Rows of A or columns of B that share a scale: 1 or 128.
    pub rows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    F32,
    /// A power of two in a byte.
    Ue8m0,
}

/// What is known of the blocks whose partial sums are meant to be as tensor cores make them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocks {
    /// Each has all of its 128 terms: the code is that of other sums.
    Whole,
    /// Some end before. What is behind them is zero, but a step of zeros alone would cut the sum
    /// once more: it is left out.
    Partial,
}

/// What C is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    F32,
    Bf16,
}

/// How a tile gets to C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Store {
    /// Element by element.
    Single,
    /// Two neighbours at once: C's row stride is even.
    Paired,
    /// Through shared memory by TMA: C is bf16, its row stride a multiple of 8.
    Tensor,
}

/// One side of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    A,
    B,
}

/// What a kernel's code depends on. Sizes, strides and addresses come at the launch.
#[derive(Clone)]
pub struct Gemm {
    pub kind: Kind,
    /// How A's rows (m) and B's (n) lie in memory.
    pub a_major: Major,
    pub b_major: Major,
    /// Of operands of codes, and only of those: A's and B's.
    pub scales: Option<[Scales; 2]>,
    /// Partial sums of codes are meant to be as tensor cores make them; a device that could sum
    /// better imitates them.
    pub hopper14: Option<Blocks>,
    pub output: Output,
    pub grouping: Grouping,
    /// Adds to C instead of overwriting it.
    pub accumulate: bool,
    /// Columns of a tile.
    pub tile_cols: u32,
    pub store: Store,
    pub epilogue: Option<Epilogue>,
    /// CTAs come in clusters of two, whose tiles share what they need of this operand; each copies
    /// half of it into both.
    pub shares: Option<Operand>,
}

impl Gemm {
    /// The kernel's name; equal names mean equal code.
    pub fn name(&self) -> String {
        let mut name = match self.kind {
            Kind::Bf16 => "sm90a_bf16_gemm".to_string(),
            Kind::E4m3 => "sm90a_e4m3_gemm".to_string(),
        };
        let major = |m: Major| if m == Major::K { 'k' } else { 'r' };
        name += &format!("_{}{}", major(self.a_major), major(self.b_major));
        if let Some(scales) = self.scales {
            for s in scales {
                let dtype = if s.dtype == ScaleType::F32 { 's' } else { 'u' };
                name += &format!("_{dtype}{}", s.rows);
            }
        }
        name += match self.hopper14 {
            None => "",
            Some(Blocks::Whole) => "_hopper14",
            Some(Blocks::Partial) => "_hopper14_partial",
        };
        name += match self.output {
            Output::F32 => "_f32",
            Output::Bf16 => "_bf16",
        };
        name += match self.grouping {
            Grouping::Batch => "",
            Grouping::Rows => "_rows",
            Grouping::Masked => "_masked",
            Grouping::Inner => "_inner",
        };
        name += if self.accumulate { "_acc" } else { "" };
        name += match self.store {
            Store::Single => "_single",
            Store::Paired => "",
            Store::Tensor => "_tma",
        };
        name += &format!("_{TILE_ROWS}x{}", self.tile_cols);
        name += match self.shares {
            None => "",
            Some(Operand::A) => "_shares_a",
            Some(Operand::B) => "_shares_b",
        };
        if let Some(epilogue) = &self.epilogue {
            name += &epilogue.name();
        }
        name
    }

    /// Tiles of a cluster, along m and n.
    pub fn cluster_tiles(&self) -> [u32; 2] {
        match self.shares {
            None => [1, 1],
            Some(Operand::A) => [1, 2],
            Some(Operand::B) => [2, 1],
        }
    }

    /// CTAs of a cluster.
    pub fn cluster_ctas(&self) -> u32 {
        self.cluster_tiles().iter().product()
    }

    /// Products of one A, each with its own B and C.
    pub fn n_products(&self) -> usize {
        self.epilogue.as_ref().map_or(1, |e| e.keeps.len())
    }

    /// Whether product `p` is stored as C.
    pub fn keeps(&self, p: usize) -> bool {
        self.epilogue.as_ref().is_none_or(|e| e.keeps[p])
    }

    fn a_tile(&self) -> OperandTile {
        self.tile(self.a_major, TILE_ROWS)
    }

    fn b_tile(&self) -> OperandTile {
        self.tile(self.b_major, self.tile_cols)
    }

    /// CTAs that copy a part of the operand's tile each.
    fn copiers(&self, operand: Operand) -> u32 {
        if self.shares == Some(operand) { self.cluster_ctas() } else { 1 }
    }

    fn tile(&self, major: Major, rows: u32) -> OperandTile {
        let k = LINE_BYTES / self.kind.element_bytes();
        OperandTile { kind: self.kind, major, rows, k }
    }

    /// Why there is no such kernel.
    pub fn check(&self) -> Result<(), String> {
        let refuse = |what: &str| Err(format!("{}: {what}", self.name()));
        let n = self.tile_cols;
        let whole = self.grouping == Grouping::Batch && !self.accumulate;
        if self.store == Store::Tensor && !(whole && self.output == Output::Bf16) {
            return refuse("TMA stores whole tiles of bf16, over what was there");
        }
        if let Some(epilogue) = &self.epilogue {
            if self.accumulate || self.store == Store::Tensor || self.grouping == Grouping::Inner {
                return refuse("a region goes on with whole sums, which threads store");
            }
            if epilogue.region.piece_cols().is_some_and(|piece| i64::from(n) % piece != 0) {
                return refuse("a tile has all of what a region folds");
            }
            // More sums and what is made of them, or more scales, would not fit in registers.
            if n > REGION_COLS_MAX {
                return refuse("a tile that a region goes on with has 128 columns at most");
            }
            if self.n_products() > 1 && self.scales.is_some_and(|[_, b]| b.rows == 1) {
                return refuse("columns of two products have no scales of their own");
            }
        }
        if self.shares.is_some() && self.grouping != Grouping::Batch {
            return refuse("CTAs whose numbers of blocks differ cannot fill their rings together");
        }
        if self.hopper14 == Some(Blocks::Whole) && self.grouping == Grouping::Inner {
            return refuse("segments of k may end anywhere in a block");
        }
        match (self.kind, self.scales) {
            (Kind::Bf16, Some(_)) => return refuse("bf16 has no scales"),
            (Kind::E4m3, None) => return refuse("codes need scales"),
            (Kind::E4m3, Some([a, b])) => {
                if [self.a_major, self.b_major] != [Major::K; 2] {
                    return refuse("codes must be contiguous along k");
                }
                if [a, b].iter().any(|s| ![1, 128].contains(&s.rows)) {
                    return refuse("scales are of 1 or 128 rows or columns, by 128 terms");
                }
                if !n.is_multiple_of(32) || !(32..=192).contains(&n) {
                    return refuse("a tile has 32 to 192 columns, in steps of 32");
                }
                // More would not fit in registers: two scales of every eight columns.
                if b.rows == 1 && n > 96 {
                    return refuse("columns with scales of their own come 96 at a time at most");
                }
            }
            (Kind::Bf16, None) => {
                let step = if n > 64 { 32 } else { 16 };
                if !n.is_multiple_of(step) || !(16..=256).contains(&n) {
                    return refuse("a tile has 16 to 256 columns, in steps of 16, above 64 of 32");
                }
                if self.b_major == Major::Rows && !n.is_multiple_of(64) {
                    return refuse("columns contiguous in memory come 64 at a time");
                }
            }
        }
        Ok(())
    }
}
