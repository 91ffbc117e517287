//! The producer: one thread that keeps the ring full.

use weft_codegen::emit::{Cg, Val};

use super::Gemm;
use super::kernel::Args;
use super::schedule::Tile;
use crate::ptx::bulk;
use crate::tiles::ring::{Place, Ring};
use crate::tiles::shared::{Major, OperandTile};

impl Gemm {
    pub(super) fn produce<'c>(&self, cg: &Cg<'c>, args: &Args<'c>, ring: &Ring<'c>) {
        self.each_tile(cg, args, &Place::first(cg).values(), |tile, place| {
            let (first, end) = self.blocks(cg, &tile);
            cg.for_(first, end, 1, place, |block, place| {
                let place = Place::of(place);
                self.fill(cg, args, ring, &tile, block, place);
                ring.next(cg, place).values().to_vec()
            })
        });
    }

    fn fill<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        ring: &Ring<'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
        place: Place<'c>,
    ) {
        let (a, b) = (self.a_tile(), self.b_tile());
        let bytes = a.bytes() + self.n_products() as u32 * b.bytes();
        let (stage, full) = ring.acquire(cg, place, bytes);
        let (k, _) = self.terms(cg, tile, block);
        let [a_grouped, b_grouped] = self.grouped_operands();
        let group = |grouped: bool| grouped.then_some(tile.group);
        copy(cg, a, stage, args.map_a, full, [tile.row, k], group(a_grouped));
        for (p, map) in args.map_b.iter().enumerate() {
            let to_b = cg.add(stage, self.b_offset_bytes(p) as i32);
            copy(cg, b, to_b, *map, full, [tile.col, k], group(b_grouped));
        }
    }
}

/// Copies a tile from `[row, k]` of the operand.
fn copy<'c>(
    cg: &Cg<'c>,
    tile: OperandTile,
    to: Val<'c>,
    map: Val<'c>,
    barrier: Val<'c>,
    [row, k]: [Val<'c>; 2],
    group: Option<Val<'c>>,
) {
    for copy in tile.copies() {
        let (row, k) = (cg.add(row, copy.row as i32), cg.add(k, copy.k as i32));
        let mut coordinates = match tile.major {
            Major::K => vec![k, row],
            Major::Rows => vec![row, k],
        };
        coordinates.extend(group);
        bulk::load(cg, cg.add(to, copy.bytes as i32), map, barrier, &coordinates);
    }
}
