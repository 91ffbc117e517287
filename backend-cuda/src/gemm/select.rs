//! Which tile a product gets: the one that keeps most of the multiprocessors busy most of the time.
//!
//! All tiles of a launch take the same time, so a launch takes as many *waves* as there are tiles
//! for each CTA. A narrower tile makes more of them, which fills the last wave better, but reads
//! more bytes for each product. The time of a tile is the longer of multiplying and of copying.

use super::{Gemm, Grouping, TILE_ROWS};

/// What a kernel may use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Multiprocessors.
    pub sms: u32,
}

impl Budget {
    /// All of an H100 or H800.
    pub const WHOLE: Budget = Budget { sms: 132 };
}

/// Sizes of a product, those that are known only on the device at their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub groups: u64,
}

/// Bytes of A's elements times multiply-adds that a multiprocessor's tensor cores do in a cycle.
const MULTIPLY_ADD_BYTES: u64 = 4096;
/// Bytes a cycle that a multiprocessor gets from the second-level cache, about.
const CACHE_BYTES: u64 = 64;
/// Cycles that the end of a tile costs before the tensor cores have work again, about.
const TILE_CYCLES: u64 = 1000;

/// Columns of a tile that `gemm` may have, widest first.
pub fn widths(gemm: &Gemm) -> Vec<u32> {
    let with = |tile_cols: &u32| Gemm { tile_cols: *tile_cols, ..gemm.clone() }.check().is_ok();
    let mut out: Vec<u32> = (1..=16).map(|i| 16 * i).filter(with).collect();
    out.reverse();
    out
}

/// Tiles of the launch, at the bounds of its sizes.
pub fn n_tiles(grouping: Grouping, sizes: Sizes, tile_cols: u32) -> u64 {
    let columns = sizes.n.div_ceil(u64::from(tile_cols));
    let rows = match grouping {
        // Every group may end inside a tile.
        Grouping::Rows => sizes.m.div_ceil(u64::from(TILE_ROWS)) + sizes.groups.saturating_sub(1),
        _ => sizes.groups * sizes.m.div_ceil(u64::from(TILE_ROWS)),
    };
    rows * columns
}

/// Cycles of the launch, as far as this model goes.
pub fn cycles(gemm: &Gemm, sizes: Sizes, budget: Budget) -> u64 {
    let cols = gemm.n_products() as u64 * u64::from(gemm.tile_cols);
    let bytes = u64::from(gemm.kind.element_bytes());
    let k = match gemm.grouping {
        Grouping::Inner => sizes.k.div_ceil(sizes.groups.max(1)),
        _ => sizes.k,
    };
    let rate = MULTIPLY_ADD_BYTES / bytes;
    let multiply = u64::from(TILE_ROWS) * cols * k / rate;
    let copy = (u64::from(TILE_ROWS) + cols) * k * bytes / CACHE_BYTES;
    let waves = n_tiles(gemm.grouping, sizes, gemm.tile_cols).div_ceil(u64::from(budget.sms));
    waves * (multiply.max(copy) + TILE_CYCLES)
}

/// `gemm` with the width that is fastest by [`cycles`]; of equals the widest.
pub fn select(gemm: &Gemm, sizes: Sizes, budget: Budget) -> Gemm {
    let with = |tile_cols: u32| Gemm { tile_cols, ..gemm.clone() };
    let best = widths(gemm).into_iter().map(with).min_by_key(|g| cycles(g, sizes, budget));
    best.unwrap_or_else(|| gemm.clone())
}

/// CTAs of the launch: no more than there are tiles, or multiprocessors.
pub fn grid(gemm: &Gemm, sizes: Sizes, budget: Budget) -> u32 {
    let tiles = n_tiles(gemm.grouping, sizes, gemm.tile_cols);
    u32::try_from(tiles.clamp(1, u64::from(budget.sms))).unwrap_or(budget.sms)
}
