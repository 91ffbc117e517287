//! Which tile a product gets: the one that keeps most of the multiprocessors busy most of the time.
//!
//! All tiles of a launch take the same time, so a launch takes as many *waves* as there are tiles
//! for each CTA. A narrower tile makes more of them, which fills the last wave better, but reads
//! more bytes for each product. The time of a tile is the longer of multiplying and of copying.
//!
//! Two CTAs share the copying of an operand ([`Gemm::shares`]) where that costs nothing: the tiles
//! of the launch are even in number along the dim that the other operand has, and no more waves are
//! made of them. It must be worth while, too: the machine is full, so that all multiprocessors ask
//! the second-level cache at once, and rows are many, so that memory is not what all wait for.

use super::{Gemm, Grouping, Operand, TILE_ROWS};

/// What a kernel may use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Multiprocessors.
    pub sms: u32,
}

impl Budget {
    /// All of an H100 or H800.
    pub const WHOLE: Budget = Budget { sms: 132 };

    /// CTAs at once: those of whole clusters.
    pub fn ctas(self, gemm: &Gemm) -> u32 {
        let of_cluster = gemm.cluster_ctas();
        (self.sms / of_cluster * of_cluster).max(of_cluster)
    }
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

/// Rows from which on CTAs share operands.
const SHARING_ROWS_MIN: u64 = 512;

/// Columns of a tile that `gemm` may have, widest first.
pub fn widths(gemm: &Gemm) -> Vec<u32> {
    let with = |tile_cols: &u32| Gemm { tile_cols: *tile_cols, ..gemm.clone() }.check().is_ok();
    let mut out: Vec<u32> = (1..=16).map(|i| 16 * i).filter(with).collect();
    out.reverse();
    out
}

/// Tiles of the launch, at the bounds of its sizes; those of whole clusters.
pub fn n_tiles(gemm: &Gemm, sizes: Sizes) -> u64 {
    let [of_m, of_n] = gemm.cluster_tiles().map(u64::from);
    let columns = sizes.n.div_ceil(u64::from(gemm.tile_cols) * of_n) * of_n;
    let rows = sizes.m.div_ceil(u64::from(TILE_ROWS) * of_m) * of_m;
    let rows = match gemm.grouping {
        // Every group may end inside a tile.
        Grouping::Rows => rows + sizes.groups.saturating_sub(1),
        _ => sizes.groups * rows,
    };
    rows * columns
}

/// Turns that the machine takes for all tiles.
pub fn n_waves(gemm: &Gemm, sizes: Sizes, budget: Budget) -> u64 {
    n_tiles(gemm, sizes).div_ceil(u64::from(budget.ctas(gemm)))
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
    n_waves(gemm, sizes, budget) * (multiply.max(copy) + TILE_CYCLES)
}

/// `gemm` with the width that is fastest by [`cycles`]; of equals the widest.
pub fn select(gemm: &Gemm, sizes: Sizes, budget: Budget) -> Gemm {
    let with = |tile_cols: u32| Gemm { tile_cols, ..gemm.clone() };
    let best = widths(gemm).into_iter().map(with).min_by_key(|g| cycles(g, sizes, budget));
    best.unwrap_or_else(|| gemm.clone())
}

/// `gemm` on clusters that share an operand, where that saves reads and costs nothing; of both
/// operands that with more bytes.
pub fn sharing(gemm: &Gemm, sizes: Sizes, budget: Budget) -> Gemm {
    let [tiles, waves] = [n_tiles(gemm, sizes), n_waves(gemm, sizes, budget)];
    let full = tiles >= u64::from(budget.sms) && budget.sms >= 2;
    if !full || sizes.m < SHARING_ROWS_MIN {
        return gemm.clone();
    }
    let columns = gemm.n_products() as u32 * gemm.tile_cols;
    let sides = match columns >= TILE_ROWS {
        true => [Operand::B, Operand::A],
        false => [Operand::A, Operand::B],
    };
    let shared = sides.map(|side| Gemm { shares: Some(side), ..gemm.clone() });
    let as_many = |g: &Gemm| {
        n_tiles(g, sizes) == tiles && n_waves(g, sizes, budget) == waves && g.check().is_ok()
    };
    shared.into_iter().find(as_many).unwrap_or_else(|| gemm.clone())
}

/// CTAs of the launch: no more than there are tiles, or multiprocessors.
pub fn grid(gemm: &Gemm, sizes: Sizes, budget: Budget) -> u32 {
    let most = budget.ctas(gemm);
    u32::try_from(n_tiles(gemm, sizes).clamp(1, u64::from(most))).unwrap_or(most)
}
