//! The producer: one thread that keeps queries and blocks of keys coming.

use weft_codegen::emit::Cg;

use super::Decode;
use super::kernel::Shared;
use crate::flash::load::{load, load_heads};
use crate::flash::places::Places;
use crate::flash::signature::Bound;
use crate::tiles::ring::Place;

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
            let end = cg.for_(cg.i32(0), tile.n_blocks, 1, &init, |block, place| {
                let place = Place::of(place);
                let key = self.block_key(cg, &tile, block);
                let (mut to, full) = shared.k.acquire(cg, place, self.stage_bytes());
                for (of, lies) in self.k_tiles() {
                    let at = [key, cg.i32(0), tile.batch];
                    load(cg, lies, args.map(of), (to, full), at);
                    to = cg.add(to, lies.bytes() as i32);
                }
                shared.k.next(cg, place).values().to_vec()
            });
            Places { kept: shared.q.next(cg, places.kept), moved: Place::of(&end) }.values()
        });
    }
}
