//! A stage begins with a segment's terms. Where a block or a segment ends before the stage does,
//! those behind become zero.
//!
//! Zero in both operands: a product of zero with what another group holds would still be NaN where
//! that is NaN or infinite. Happens in at most two stages of a tile.

use weft_codegen::emit::{Cg, Cmp, Ty, Val};

use super::Gemm;
use crate::gemm::schedule::Tile;
use crate::ptx::{memory, sync};
use crate::tiles::roles::{CONSUMER_THREADS, Consumer};
use crate::tiles::shared::{LINE_BYTES, Major, OperandTile, permuted};

/// The barrier at which those that share the work meet.
const BARRIER: i32 = 1;

impl Gemm {
    pub(super) fn trim<'c>(
        &self,
        cg: &Cg<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
        stage: Val<'c>,
    ) {
        let (_, n) = self.terms(cg, tile, block);
        cg.when(cg.cmp(Cmp::Lt, n, self.stage_k()), || {
            let (a, b) = (self.a_tile(), self.b_tile());
            clear(cg, a, stage, consumer.thread, n);
            clear(cg, b, cg.add(stage, a.bytes() as i32), consumer.thread, n);
            sync::fence_async(cg);
            sync::named_barrier(cg, cg.i32(BARRIER), CONSUMER_THREADS);
        });
    }
}

/// Clears the terms of a tile from `end` on.
fn clear<'c>(cg: &Cg<'c>, tile: OperandTile, at: Val<'c>, thread: Val<'c>, end: Val<'c>) {
    let words = (LINE_BYTES / 4) as i32;
    let n = cg.i32((tile.bytes() / 4) as i32);
    let inside = |term: Val<'c>| cg.cmp(Cmp::Lt, term, end);
    cg.for_each(thread, n, CONSUMER_THREADS as i32, |i| match tile.major {
        Major::Rows => {
            let term = cg.rem(cg.div(i, words), tile.k as i32);
            cg.when(cg.not(inside(term)), || {
                memory::store_shared(cg, cg.i32(0), cg.add(at, cg.mul(i, 4)));
            });
        }
        Major::K => {
            let (line, word) = (cg.div(i, words), cg.rem(i, words));
            let element = tile.kind.element_bytes();
            let mask = (0..4 / element).fold(cg.i32(0), |mask, j| {
                let term = cg.add(cg.mul(word, (4 / element) as i32), j as i32);
                let bits = (u32::MAX >> (32 - 8 * element)) << (8 * element * j);
                let bits = cg.select(inside(term), cg.i32(bits as i32), cg.i32(0));
                cg.or(mask, bits)
            });
            let chunk = permuted(cg, LINE_BYTES, line, cg.lshr(word, 2));
            let address = cg.add(at, cg.add(chunk, cg.mul(cg.and(word, 3), 4)));
            let old = memory::load_shared(cg, Ty::I32, address);
            memory::store_shared(cg, cg.and(old, mask), address);
        }
    });
}
