//! The producer: one thread that keeps queries and blocks of keys coming.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::Decode;
use super::kernel::{Shared, Tile};
use crate::flash::load::{load, load_heads};
use crate::flash::places::Places;
use crate::flash::signature::{Argument, Bound, Tensor};
use crate::ptx::bulk;
use crate::tiles::ring::Place;

/// Where keys begin in their maps.
#[derive(Clone, Copy)]
struct Row<'c> {
    row: Val<'c>,
    batch: Val<'c>,
}

impl Decode {
    pub(super) fn produce<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>, shared: &Shared<'c>) {
        self.each_tile(cg, args, &Places::first(cg).values(), |_, tile, places| {
            let places = Places::of(places);
            let (mut to, full) = shared.q.acquire(cg, places.kept, self.q_bytes());
            for (of, lies) in self.q_tiles() {
                let at = [tile.head, tile.query, tile.batch];
                load_heads(cg, lies, args.map(of), (to, full), at);
                to = cg.add(to, lies.bytes() as i32);
            }
            let init = places.moved.values();
            let end = cg.for_(cg.i32(0), tile.n_blocks, 2, &init, |block, place| {
                self.pair(cg, args, shared, &tile, block, Place::of(place)).values().to_vec()
            });
            Places { kept: shared.q.next(cg, places.kept), moved: Place::of(&end) }.values()
        });
    }

    /// A pair of blocks, or the last one, in the order in which their pieces are let go of.
    fn pair<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        shared: &Shared<'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
        first: Place<'c>,
    ) -> Place<'c> {
        let second = shared.next(cg, first);
        let after = cg.add(block, 1);
        let is_pair = cg.cmp(Cmp::Lt, after, tile.n_blocks);
        let places = [first, second];
        let rows = [block, after].map(|block| self.block_row(cg, args, tile, block));
        let near = |own: usize| self.near(cg, args, shared, own, (rows[own], places[own]));
        let far = |own: usize| self.far(cg, args, shared, own, (rows[own], places[own]));
        near(0);
        cg.when(is_pair, || near(1));
        far(0);
        cg.when(is_pair, || far(1));
        let behind = shared.next(cg, second);
        let choose = |a: Val<'c>, b: Val<'c>| cg.select(is_pair, a, b);
        Place {
            stage: choose(behind.stage, second.stage),
            parity: choose(behind.parity, second.parity),
        }
    }

    /// The row and the batch of the maps where a block begins. That of the table is looked up here,
    /// before the producer waits for room.
    fn block_row<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
    ) -> Row<'c> {
        let key = self.block_key(cg, tile, block);
        if !self.paged {
            return Row { row: key, batch: tile.batch };
        }
        let size = args.size(Argument::PageKeys);
        let of_request = args.size(Argument::PagesPerRequest);
        // The block after the last may be behind the last page.
        let nth = cg.min(cg.div(key, size), cg.sub(of_request, 1));
        let at = cg.cast(cg.add(cg.mul(tile.batch, of_request), nth), Elem::I64);
        let page = cg.load(Ty::I32, cg.at(args.get(Argument::Pages), Elem::I32, at));
        Row { row: cg.add(cg.mul(page, size), cg.rem(key, size)), batch: cg.i32(0) }
    }

    /// The half of a block's values that its owner multiplies.
    fn near<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        shared: &Shared<'c>,
        own: usize,
        (row, place): (Row<'c>, Place<'c>),
    ) {
        let stage = shared.halves[own].acquire(cg, place, self.half_bytes());
        self.half(cg, args, own as u32, row, stage);
    }

    /// The other half, and the other parts.
    fn far<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        shared: &Shared<'c>,
        own: usize,
        (row, place): (Row<'c>, Place<'c>),
    ) {
        // These lie in the stage, not in a half of it: both halves have been acquired by now.
        let n_bytes = self.half_bytes() + self.rest_bytes();
        let (stage, full) = shared.halves[1 - own].acquire(cg, place, n_bytes);
        self.half(cg, args, 1 - own as u32, row, (stage, full));
        let mut to = cg.add(stage, self.p_offset_bytes() as i32);
        for (of, lies) in self.k_tiles().drain(1..) {
            let at = [row.row, cg.i32(0), row.batch];
            load(cg, lies, args.map(of), (to, full), at);
            to = cg.add(to, lies.bytes() as i32);
        }
    }

    fn half<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        half: u32,
        row: Row<'c>,
        (stage, full): (Val<'c>, Val<'c>),
    ) {
        for copy in self.k_tile(0).copies() {
            if copy.k / self.half_width() == half {
                let at = [cg.i32(copy.k as i32), row.row, cg.i32(0), row.batch];
                let to = cg.add(stage, copy.bytes as i32);
                bulk::load(cg, to, args.map(Tensor::K(0)), full, &at);
            }
        }
    }
}
