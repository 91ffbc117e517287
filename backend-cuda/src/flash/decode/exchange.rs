//! What the two warpgroups tell each other: numbers of a tile's rows, and weights, in shared memory
//! behind named barriers.

use weft_codegen::emit::{Cg, Ty, Val};

use super::consume::Kept;
use super::{Decode, TILE_HEADS};
use crate::flash::softmax::packed;
use crate::ptx::{matrix, memory, sync};
use crate::tiles::ring::Place;
use crate::tiles::roles::CONSUMER_THREADS;
use crate::tiles::shared::{LINE_BYTES, permuted};

/// Largest scores, and sums of weights, of each warpgroup.
pub const BYTES: u32 = 4 * TILE_HEADS * 4;

/// Numbers of all rows, of warpgroup 0 or 1.
#[derive(Clone, Copy)]
pub enum List {
    Largest(u32),
    Sums(u32),
}

/// What has been done when a barrier ends its phase.
#[derive(Clone, Copy)]
pub enum Event {
    /// The largest scores of warpgroup 0, or 1, can be read: it arrives, the other one waits. All
    /// warps that wait have their scores, too: no product reads their block's last columns.
    Largest(u32),
    /// The weights of warpgroup 0, or 1, can be multiplied: it arrives, the other one waits.
    Weights(u32),
    /// All warps of warpgroup 0 have their scores; they meet.
    Scores,
    /// Both have left their sums, or read them; they meet.
    Sums,
}

impl Event {
    /// Barrier 0 is that of the CTA.
    fn barrier(self) -> i32 {
        match self {
            Event::Largest(of) => 1 + of as i32,
            Event::Weights(of) => 3 + of as i32,
            Event::Scores => 5,
            Event::Sums => 6,
        }
    }

    fn threads(self) -> u32 {
        match self {
            Event::Scores => CONSUMER_THREADS / 2,
            _ => CONSUMER_THREADS,
        }
    }

    pub fn tell(self, cg: &Cg<'_>) {
        sync::named_arrive(cg, cg.i32(self.barrier()), self.threads());
    }

    pub fn wait(self, cg: &Cg<'_>) {
        sync::named_barrier(cg, cg.i32(self.barrier()), self.threads());
    }
}

impl<'c> Kept<'_, 'c> {
    /// Leaves a number for each of the thread's rows. The four lanes of a row have the same one.
    pub fn put(&self, list: List, rows: [Val<'c>; 2]) {
        for (half, v) in rows.into_iter().enumerate() {
            memory::store_shared(self.cg, v, self.line(list, half));
        }
    }

    /// The numbers of the thread's rows that were left there.
    pub fn get(&self, list: List) -> [Val<'c>; 2] {
        [0, 1].map(|half| memory::load_shared(self.cg, Ty::F32, self.line(list, half)))
    }

    fn line(&self, list: List, half: usize) -> Val<'c> {
        let first = match list {
            List::Largest(of) => of * TILE_HEADS,
            List::Sums(of) => (2 + of) * TILE_HEADS,
        };
        let row = self.cg.add(self.consumer.lanes.row, (first + 8 * half as u32) as i32);
        self.cg.add(self.shared.exchange, self.cg.mul(row, 4))
    }
}

impl Decode {
    /// Leaves the weights of the block at `place` where the other warpgroup multiplies them, and
    /// says so. All warps of the warpgroup have their scores: these need no longer what was there.
    pub(super) fn give_weights<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        own: u32,
        place: Place<'c>,
        p: &[Val<'c>],
    ) {
        let (cg, consumer) = (kept.cg, kept.consumer);
        let packed = packed(cg, p);
        let to = kept.shared.stage(cg, place);
        let to = cg.add(to, self.p_offset_bytes() as i32);
        // Lane `8 i + r` addresses row `r` of tile `i`: rows first, then columns.
        let row = cg.add(cg.mul(consumer.warp, 16), cg.and(consumer.lane, 15));
        for (sixteen, tiles) in packed.chunks_exact(4).enumerate() {
            let piece = cg.add(cg.lshr(consumer.lane, 4), 2 * sixteen as i32);
            let at = permuted(cg, LINE_BYTES, row, piece);
            matrix::store_tiles(cg, cg.add(to, at), [0, 1, 2, 3].map(|i| tiles[i]));
        }
        sync::fence_async(cg);
        Event::Weights(own).tell(cg);
    }
}
