//! Regions that go on with a tile's sums where they are, in registers.

use std::sync::Arc;

use weft_codegen::emit::{Cg, Cmp, Kernel, Param, Val};
use weft_codegen::region::emit::held::{Held, Piece};

use super::Gemm;
use super::kernel::Args;
use super::schedule::Tile;
use crate::ptx::sync;
use crate::tiles::fragment::{Pair, pairs, wide};
use crate::tiles::roles::Consumer;

/// A region, and the products whose sums it goes on with.
#[derive(Clone)]
pub struct Epilogue {
    /// Equal names mean equal regions.
    pub region_name: String,
    pub region: Arc<Held>,
    /// For each product, whether its sums are stored as C, too.
    pub keeps: Vec<bool>,
}

impl Epilogue {
    /// Part of the kernel's name.
    pub fn name(&self) -> String {
        let kept = match self.keeps[..] {
            [false] => "",
            [true] => "_kept",
            [false, false] => "_pair",
            [true, true] => "_pair_kept",
            [true, ..] => "_pair_kept0",
            _ => "_pair_kept1",
        };
        format!("{kept}_{}", self.region_name)
    }

    /// The region's buffers, then its scalars.
    pub fn params(&self) -> Vec<Param> {
        let of = &self.region.signature;
        let mut params = vec![Param::Buffer; of.buffers.len()];
        params.resize(params.len() + of.scalars.len(), Param::I64);
        params
    }
}

impl Gemm {
    /// What the region makes of a tile.
    pub(super) fn end<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        sums: &[Vec<Val<'c>>],
    ) {
        let Some(epilogue) = &self.epilogue else { return };
        let region = &epilogue.region;
        let (buffers, scalars) = args.extra.split_at(region.signature.buffers.len());
        let zero = cg.i64(0);
        let kernel = Kernel {
            buffers: buffers.to_vec(),
            scalars: scalars.to_vec(),
            begin: zero,
            end: zero,
            scratch: zero,
        };
        let width = region.piece_cols().map_or(self.tile_cols, |n| n as u32);
        let lane = sync::from_here(cg, consumer.lane);
        let own_col = wide(cg, cg.mul(cg.and(lane, 3), 2));
        let row_end = sync::from_here(cg, tile.row_end);
        let own_row = sync::from_here(cg, cg.add(consumer.first_row, consumer.lanes.row));
        let (row0, col0) = (cg.add(tile.row, own_row), sync::from_here(cg, tile.col));
        let piece = |half: usize, begin: u32| {
            let row = cg.add(row0, (8 * half) as i32);
            let held = |p: &Pair| p.half == half && (begin..begin + width).contains(&p.col);
            let held: Vec<_> = pairs(self.tile_cols).filter(held).collect();
            let of = |sums: &Vec<Val<'c>>| {
                held.iter().map(|p| [sums[p.index], sums[p.index + 1]]).collect()
            };
            Piece {
                // Rows beyond the last are computed as the last one is, and not stored.
                row: wide(cg, cg.min(row, cg.sub(row_end, 1))),
                inside: cg.cmp(Cmp::Lt, row, row_end),
                first: wide(cg, cg.add(col0, begin as i32)),
                cols: held.iter().map(|p| cg.add(own_col, i64::from(p.col - begin))).collect(),
                pairs: sums.iter().map(of).collect(),
            }
        };
        let begins = (0..self.tile_cols).step_by(width as usize);
        let all = begins.flat_map(|begin| [0, 1].map(|half| piece(half, begin)));
        // The four threads that have a row are neighbours.
        region.emit(cg, &kernel, wide(cg, cg.and(lane, 3)), all);
    }
}
