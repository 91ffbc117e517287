//! The producer: one thread that keeps tiles and blocks coming.

use weft_codegen::emit::{Cg, Elem, Val};

use super::Backward;
use super::kernel::{Rings, Sizes, Tile};
use crate::flash::load::load;
use crate::flash::places::Places;
use crate::flash::signature::{Argument, Bound, Tensor};
use crate::ptx::bulk;
use crate::tiles::ring::Place;
use crate::tiles::shared::OperandTile;

impl Backward {
    pub(super) fn produce<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>, rings: &Rings<'c>) {
        let columns = self.columns();
        let (kept, moved) = (self.kept(), self.moved(columns));
        self.each_tile(cg, args, &Places::first(cg).values(), |sizes, tile, places| {
            let places = Places::of(places);
            let stage = rings.kept.acquire(cg, places.kept, self.kept_bytes());
            copy(cg, args, &kept, stage, tile.row, tile.head, tile.batch);
            let init = places.moved.values();
            let end = cg.for_(cg.i32(0), tile.n_heads, 1, &init, |i, place| {
                let head = cg.add(tile.head, i);
                let [first, end] = tile.blocks;
                cg.for_(first, end, 1, place, |block, place| {
                    let place = Place::of(place);
                    let column = cg.mul(block, columns as i32);
                    let (to, full) = rings.moved.acquire(cg, place, self.block_bytes(columns));
                    copy(cg, args, &moved, (to, full), column, head, tile.batch);
                    if self.keeps_keys() {
                        let to = cg.add(to, self.moved_bytes(columns) as i32);
                        self.copy_statistics(cg, args, (to, full), sizes, &tile, head, column);
                    }
                    rings.moved.next(cg, place).values().to_vec()
                })
            });
            let moved = Place::of(&end);
            Places { kept: rings.kept.next(cg, places.kept), moved }.values()
        });
    }

    #[expect(clippy::too_many_arguments, reason = "what a copy is described by")]
    fn copy_statistics<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        (to, full): (Val<'c>, Val<'c>),
        sizes: &Sizes<'c>,
        tile: &Tile<'c>,
        head: Val<'c>,
        query: Val<'c>,
    ) {
        let n_bytes = 4 * self.columns();
        let base = args.get(Argument::Statistics);
        for (i, at) in sizes.statistics(cg, tile.batch, head, query).into_iter().enumerate() {
            let to = cg.add(to, (i as u32 * n_bytes) as i32);
            bulk::load_line(cg, to, cg.at(base, Elem::F32, at), n_bytes, full);
        }
    }
}

/// Copies tiles of rows from `row` on into a stage, one behind the other.
fn copy<'c>(
    cg: &Cg<'c>,
    args: &Bound<'_, 'c>,
    tiles: &[(Tensor, OperandTile)],
    (to, full): (Val<'c>, Val<'c>),
    row: Val<'c>,
    head: Val<'c>,
    batch: Val<'c>,
) {
    let mut to = to;
    for (tensor, tile) in tiles {
        let head = match tensor {
            Tensor::Q(_) | Tensor::DO => head,
            Tensor::K(_) | Tensor::V => cg.div(head, args.size(Argument::HeadsPer(*tensor))),
        };
        load(cg, *tile, args.map(*tensor), (to, full), [row, head, batch]);
        to = cg.add(to, tile.bytes() as i32);
    }
}
