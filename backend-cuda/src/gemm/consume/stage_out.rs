//! A tile's way to C through shared memory: a chunk of columns at a time, in two buffers for each
//! warpgroup, so that one is copied out while the other is written.
//!
//! The copy leaves out what is outside C. One thread of each warpgroup starts the copies and waits
//! for the buffers.

use weft_codegen::emit::{Cg, Cmp, Val};

use super::Gemm;
use crate::gemm::kernel::{MapElement, MapSpec};
use crate::gemm::schedule::Tile;
use crate::gemm::{Store, TILE_ROWS};
use crate::ptx::convert::pack_bf16;
use crate::ptx::{bulk, matrix, sync};
use crate::tiles::roles::Consumer;
use crate::tiles::shared::{Major, permuted};

/// Rows of a warpgroup.
const ROWS: u32 = 64;
const BF16_BYTES: u32 = 2;
const BUFFERS: u32 = 2;
/// The first of the warpgroups' named barriers.
const BARRIER: i32 = 2;

impl Gemm {
    /// Columns of a chunk: as many as make a line that TMA can permute.
    fn chunk_cols(&self) -> u32 {
        [64, 32, 16].into_iter().find(|c| self.tile_cols.is_multiple_of(*c)).unwrap_or(16)
    }

    fn buffer_bytes(&self) -> u32 {
        ROWS * self.chunk_cols() * BF16_BYTES
    }

    /// Shared memory for chunks of C.
    pub(in crate::gemm) fn staging_bytes(&self) -> u32 {
        match self.store {
            Store::Tensor => TILE_ROWS / ROWS * BUFFERS * self.buffer_bytes(),
            Store::Single | Store::Paired => 0,
        }
    }

    pub(in crate::gemm) fn c_map(&self) -> MapSpec {
        let cols = self.chunk_cols();
        MapSpec {
            element: MapElement::Bf16,
            major: Major::K,
            grouped: true,
            box_dims: vec![cols, ROWS, 1],
            swizzle_bytes: cols * BF16_BYTES,
        }
    }

    pub(super) fn stage_out<'c>(
        &self,
        cg: &Cg<'c>,
        map: Val<'c>,
        consumer: &Consumer<'c>,
        staging: Val<'c>,
        tile: &Tile<'c>,
        sums: &[Val<'c>],
    ) {
        let (cols, buffer) = (self.chunk_cols(), self.buffer_bytes());
        let n_chunks = self.tile_cols / cols;
        let own = cg.mul(consumer.warpgroup, (BUFFERS * buffer) as i32);
        let own = cg.add(staging, own);
        let barrier = cg.add(consumer.warpgroup, BARRIER);
        // Lane `8 i + r` addresses row `r` of tile `i`: rows first, then columns.
        let lane = consumer.lane;
        let row = cg.add(cg.mul(consumer.warp, 16), cg.and(lane, 15));
        for chunk in 0..n_chunks {
            let at = cg.add(own, (chunk % BUFFERS * buffer) as i32);
            // The buffer's last copy is the one before last. Where the tile before ended on the
            // first buffer it is the last, and the second buffer is then free too.
            let odd = n_chunks % BUFFERS == 1;
            if !(odd && chunk == 1) {
                let left = if odd && chunk == 0 { 0 } else { BUFFERS - 1 };
                self.one_thread(cg, consumer, || bulk::wait_read(cg, left));
                sync::named_barrier(cg, barrier, 2 * ROWS);
            }
            for sixteen in 0..cols / 16 {
                let piece = cg.add(cg.lshr(lane, 4), (2 * sixteen) as i32);
                let address = cg.add(at, permuted(cg, cols * BF16_BYTES, row, piece));
                let first = ((chunk * cols + 16 * sixteen) / 2) as usize;
                let tiles =
                    [0, 2, 4, 6].map(|i| pack_bf16(cg, sums[first + i], sums[first + i + 1]));
                matrix::store_tiles(cg, address, tiles);
            }
            sync::fence_async(cg);
            sync::named_barrier(cg, barrier, 2 * ROWS);
            self.one_thread(cg, consumer, || {
                let col = cg.add(tile.col, (chunk * cols) as i32);
                let row = cg.add(tile.row, consumer.first_row);
                bulk::store(cg, map, at, &[col, row, tile.group]);
                bulk::commit(cg);
            });
        }
    }

    /// Before the CTA ends its shared memory must no longer be read.
    pub(super) fn staged_out<'c>(&self, cg: &Cg<'c>, consumer: &Consumer<'c>) {
        self.one_thread(cg, consumer, || bulk::wait_read(cg, 0));
    }

    fn one_thread<'c>(&self, cg: &Cg<'c>, consumer: &Consumer<'c>, body: impl FnOnce()) {
        cg.when(cg.cmp(Cmp::Eq, consumer.warp, 0), || cg.when(sync::elect(cg), body));
    }
}
