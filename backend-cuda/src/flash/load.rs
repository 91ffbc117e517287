//! The producer: one thread that keeps queries, keys and values coming.

use weft_codegen::emit::{Cg, Val};

use super::Attention;
use super::kernel::{Args, Places, Rings, Tile};
use crate::ptx::bulk;
use crate::tiles::shared::{Major, OperandTile};

impl Attention {
    pub(super) fn produce<'c>(&self, cg: &Cg<'c>, args: &Args<'c>, rings: &Rings<'c>) {
        let init = Places::first(cg).values();
        self.each_tile(cg, args, &init, |tile, places| {
            let mut places = Places::of(places);
            let [q_bytes, k_bytes, v_bytes] = self.stage_bytes(self.block_keys());
            let (to, full) = rings.q.acquire(cg, places.q, q_bytes);
            let tiles = (0..self.parts.len()).map(|i| self.q_tile(i));
            let heads = vec![tile.head; self.parts.len()];
            self.load_parts(cg, tiles, &args.map_q, &heads, (to, full), &tile, tile.query);
            places.q = rings.q.next(cg, places.q);

            let of_k: Vec<Val> = args.heads_per_k.iter().map(|n| cg.div(tile.head, *n)).collect();
            let of_v = cg.div(tile.head, args.heads_per_v);
            let end = cg.for_(cg.i32(0), tile.n_blocks, 1, &places.values(), |block, places| {
                let mut places = Places::of(places);
                let key = cg.mul(block, self.block_keys() as i32);
                let stage = rings.k.acquire(cg, places.k, k_bytes);
                let tiles = (0..self.parts.len()).map(|i| self.k_tile(i));
                self.load_parts(cg, tiles, &args.map_k, &of_k, stage, &tile, key);
                let (to, full) = rings.v.acquire(cg, places.v, v_bytes);
                load(cg, self.v_tile(), args.map_v, (to, full), [key, of_v, tile.batch]);
                places.k = rings.k.next(cg, places.k);
                places.v = rings.v.next(cg, places.v);
                places.values()
            });
            end
        });
    }

    /// Loads the tiles of all parts, one after the other in a stage.
    #[expect(clippy::too_many_arguments, reason = "what a copy is described by")]
    fn load_parts<'c>(
        &self,
        cg: &Cg<'c>,
        tiles: impl Iterator<Item = OperandTile>,
        maps: &[Val<'c>],
        heads: &[Val<'c>],
        (to, full): (Val<'c>, Val<'c>),
        tile: &Tile<'c>,
        row: Val<'c>,
    ) {
        let mut to = to;
        for ((part, map), head) in tiles.zip(maps).zip(heads) {
            load(cg, part, *map, (to, full), [row, *head, tile.batch]);
            to = cg.add(to, part.bytes() as i32);
        }
    }
}

/// Copies rows from `row` on of a head. What lies beyond the rows or the width is zero.
pub fn load<'c>(
    cg: &Cg<'c>,
    tile: OperandTile,
    map: Val<'c>,
    (to, full): (Val<'c>, Val<'c>),
    [row, head, batch]: [Val<'c>; 3],
) {
    for copy in tile.copies() {
        // A value's elements are the rows of its tile, and keys its terms.
        let (element, line) = match tile.major {
            Major::K => (copy.k, copy.row),
            Major::Rows => (copy.row, copy.k),
        };
        let coordinates = [cg.i32(element as i32), cg.add(row, line as i32), head, batch];
        bulk::load(cg, cg.add(to, copy.bytes as i32), map, full, &coordinates);
    }
}

/// Copies heads from `head` on of a row. What lies beyond the heads or the width is zero.
pub fn load_heads<'c>(
    cg: &Cg<'c>,
    tile: OperandTile,
    map: Val<'c>,
    (to, full): (Val<'c>, Val<'c>),
    [head, row, batch]: [Val<'c>; 3],
) {
    assert_eq!(tile.major, Major::K, "heads are lines");
    for copy in tile.copies() {
        let coordinates = [cg.i32(copy.k as i32), row, head, batch];
        bulk::load(cg, cg.add(to, copy.bytes as i32), map, full, &coordinates);
    }
}
