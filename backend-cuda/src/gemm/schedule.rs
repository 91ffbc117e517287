//! Which tiles a CTA takes, and what part of the operands each one needs. Producer and consumers go
//! through the same list, each by itself.
//!
//! Tiles of equal products are counted in bands of eight tile rows, column after column within a
//! band: what runs at once then shares rows of A and columns of B in the second-level cache. The
//! tiles of a cluster are neighbours and are counted as one; each CTA takes its own of them. Of
//! groups with their own number of rows a CTA learns the tiles by walking the groups in order.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::kernel::Args;
use super::{Gemm, Grouping, Operand, TILE_ROWS};
use crate::ptx::{cluster, sync};

/// Tile rows of a band.
const BAND: i32 = 8;

/// A tile of C and the terms it sums.
#[derive(Clone, Copy)]
pub struct Tile<'c> {
    pub group: Val<'c>,
    /// Its first row, of the group's A and C; of all rows in `Rows`.
    pub row: Val<'c>,
    /// Rows from here on are not the group's.
    pub row_end: Val<'c>,
    pub col: Val<'c>,
    /// Its terms of k.
    pub k_begin: Val<'c>,
    pub k_end: Val<'c>,
}

impl Gemm {
    /// Runs `body` for each tile of this CTA, carrying values.
    pub fn each_tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        init: &[Val<'c>],
        body: impl FnOnce(Tile<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) {
        let tiles_n = cg.div_ceil(args.n, self.tile_cols as i32);
        let [first, step] = match self.shares {
            None => {
                let n = cg.intrinsic("llvm.nvvm.read.ptx.sreg.nctaid.x", &[], &[], Ty::I32);
                [cg.cta_index(), n]
            }
            Some(_) => cluster::index(cg),
        };
        if matches!(self.grouping, Grouping::Batch | Grouping::Inner) {
            let [rows, cols] = self.cluster_extents().map(|n| n as i32);
            let per_group = cg.mul(cg.div_ceil(args.m, rows), cg.div_ceil(args.n, cols));
            let total = cg.mul(per_group, args.groups);
            cg.for_(first, total, step, init, |t, carried| {
                // Counted anew for each tile: through the products registers are dear.
                let [m, n] = [args.m, args.n].map(|v| sync::from_here(cg, v));
                let (tiles_m, tiles_n) = (cg.div_ceil(m, rows), cg.div_ceil(n, cols));
                let per_group = cg.mul(tiles_m, tiles_n);
                let group = cg.div(t, per_group);
                let band = BAND / self.cluster_tiles()[0] as i32;
                let (m, n) = banded(cg, cg.rem(t, per_group), tiles_m, tiles_n, band);
                body(self.uniform_tile(cg, args, group, m, n), carried)
            });
            return;
        }
        // The tile counted over all groups, its group, and how many tiles are in groups before.
        let seek = |t: Val<'c>, from: &[Val<'c>]| {
            let beyond = |s: &[Val<'c>]| {
                let more = cg.cmp(Cmp::Lt, s[0], args.groups);
                let inside = cg.select(more, s[0], cg.i32(0));
                let n_tiles = cg.mul(self.row_tiles(cg, args, inside), tiles_n);
                let passed = cg.cmp(Cmp::Ge, t, cg.add(s[1], n_tiles));
                cg.and(more, passed)
            };
            let found = cg.while_(from, beyond, |s| {
                let n_tiles = cg.mul(self.row_tiles(cg, args, s[0]), tiles_n);
                vec![cg.add(s[0], 1), cg.add(s[1], n_tiles)]
            });
            [t, found[0], found[1]]
        };
        let mut state = seek(first, &[cg.i32(0), cg.i32(0)]).to_vec();
        state.extend(init);
        let inside = |s: &[Val<'c>]| cg.cmp(Cmp::Lt, s[1], args.groups);
        cg.while_(&state, inside, |s| {
            let (t, group, before) = (s[0], s[1], s[2]);
            let tile = self.ragged_tile(cg, args, group, cg.sub(t, before));
            let carried = body(tile, &s[3..]);
            let mut next = seek(cg.add(t, step), &[group, before]).to_vec();
            next.extend(carried);
            next
        });
    }

    /// Rows and columns of the tiles of a cluster.
    fn cluster_extents(&self) -> [u32; 2] {
        let [m, n] = self.cluster_tiles();
        [m * TILE_ROWS, n * self.tile_cols]
    }

    fn uniform_tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        group: Val<'c>,
        m: Val<'c>,
        n: Val<'c>,
    ) -> Tile<'c> {
        let (k_begin, k_end) = match self.grouping {
            Grouping::Inner => bounds(cg, args, group),
            _ => (cg.i32(0), args.k),
        };
        // The cluster's first, and this CTA's from there.
        let [rows, cols] = self.cluster_extents().map(|n| n as i32);
        let (mut row, mut col) = (cg.mul(m, rows), cg.mul(n, cols));
        let further = |extent: u32| cg.mul(cluster::rank(cg), extent as i32);
        match self.shares {
            None => {}
            Some(Operand::A) => col = cg.add(col, further(self.tile_cols)),
            Some(Operand::B) => row = cg.add(row, further(TILE_ROWS)),
        }
        Tile { group, row, row_end: args.m, col, k_begin, k_end }
    }

    /// Tile `t` of its group, column after column.
    fn ragged_tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        group: Val<'c>,
        t: Val<'c>,
    ) -> Tile<'c> {
        let (begin, end) = self.row_bounds(cg, args, group);
        let tiles_m = cg.div_ceil(cg.sub(end, begin), TILE_ROWS as i32);
        let (n, m) = (cg.div(t, tiles_m), cg.rem(t, tiles_m));
        Tile {
            group,
            row: cg.add(begin, cg.mul(m, TILE_ROWS as i32)),
            row_end: end,
            col: cg.mul(n, self.tile_cols as i32),
            k_begin: cg.i32(0),
            k_end: args.k,
        }
    }

    fn row_bounds<'c>(&self, cg: &Cg<'c>, args: &Args<'c>, group: Val<'c>) -> (Val<'c>, Val<'c>) {
        match self.grouping {
            Grouping::Masked => (cg.i32(0), load(cg, args, group)),
            _ => bounds(cg, args, group),
        }
    }

    fn row_tiles<'c>(&self, cg: &Cg<'c>, args: &Args<'c>, group: Val<'c>) -> Val<'c> {
        let (begin, end) = self.row_bounds(cg, args, group);
        cg.div_ceil(cg.sub(end, begin), TILE_ROWS as i32)
    }
}

/// `offsets[group]` and the next.
fn bounds<'c>(cg: &Cg<'c>, args: &Args<'c>, group: Val<'c>) -> (Val<'c>, Val<'c>) {
    (load(cg, args, group), load(cg, args, cg.add(group, 1)))
}

fn load<'c>(cg: &Cg<'c>, args: &Args<'c>, i: Val<'c>) -> Val<'c> {
    let offsets = args.offsets.expect("a grouped product has offsets");
    cg.load(Ty::I32, cg.at(offsets, Elem::I32, cg.cast(i, Elem::I64)))
}

/// Tile row and column of the `t`-th tile, in bands of `band` rows.
fn banded<'c>(
    cg: &Cg<'c>,
    t: Val<'c>,
    tiles_m: Val<'c>,
    tiles_n: Val<'c>,
    band: i32,
) -> (Val<'c>, Val<'c>) {
    let per_band = cg.mul(tiles_n, band);
    let first = cg.mul(cg.div(t, per_band), band);
    let rows = cg.min(cg.sub(tiles_m, first), band);
    let within = cg.rem(t, per_band);
    (cg.add(first, cg.rem(within, rows)), cg.div(within, rows))
}
