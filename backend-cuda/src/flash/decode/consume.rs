//! The consumers: what both know of a tile, and what they do with it in the end.

use weft_codegen::emit::{Cg, Cmp, Val};

use super::Decode;
use super::exchange::{Event, List};
use super::kernel::{Shared, Sizes, Tile};
use crate::flash::places::Places;
use crate::flash::sight::Sight;
use crate::flash::signature::{Argument, Bound};
use crate::flash::softmax::Rows;
use crate::tiles::ring::Place;
use crate::tiles::roles::Consumer;

/// What goes from pair to pair.
pub struct State<'c> {
    /// Of the first block that is to come.
    pub place: Place<'c>,
    pub rows: Rows<'c>,
    pub o: Vec<Val<'c>>,
}

impl<'c> State<'c> {
    pub fn values(&self) -> Vec<Val<'c>> {
        let mut out = self.place.values().to_vec();
        out.extend(self.rows.values());
        out.extend(&self.o);
        out
    }

    pub fn of(values: &[Val<'c>]) -> State<'c> {
        State { place: Place::of(values), rows: Rows::of(&values[2..]), o: values[6..].to_vec() }
    }
}

/// What does not change while a tile meets its blocks.
pub struct Kept<'k, 'c> {
    pub cg: &'k Cg<'c>,
    pub shared: &'k Shared<'c>,
    pub consumer: &'k Consumer<'c>,
    pub tile: Tile<'c>,
    pub sight: Sight<'c>,
    /// The address of q, and its stage.
    pub q: Val<'c>,
    pub q_stage: Val<'c>,
    pub scale_log2: Val<'c>,
}

impl<'c> Kept<'_, 'c> {
    /// Lets go of warpgroup `own`'s half of the block at `place`.
    pub fn release(&self, own: usize, place: Place<'c>) {
        self.shared.halves[own].release_if(self.cg, self.consumer.leads, place.stage);
    }
}

impl Decode {
    pub(super) fn consume<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        shared: &Shared<'c>,
        consumer: &Consumer<'c>,
    ) {
        self.each_tile(cg, args, &Places::first(cg).values(), |sizes, tile, places| {
            let places = Places::of(places);
            let kept = Kept {
                cg,
                shared,
                consumer,
                tile,
                sight: Sight::up_to(tile.end, &consumer.lanes),
                q: shared.q.wait(cg, places.kept),
                q_stage: places.kept.stage,
                scale_log2: args.f32(Argument::ScaleLog2),
            };
            let moved = self.tile(&kept, args, sizes, places.moved);
            Places { kept: shared.q.next(cg, places.kept), moved }.values()
        });
    }

    fn tile<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        place: Place<'c>,
    ) -> Place<'c> {
        let cg = kept.cg;
        let is_first = cg.cmp(Cmp::Eq, kept.consumer.warpgroup, 0);
        let side = |own: u32| {
            let State { place, mut rows, o } = match own {
                0 => self.first(kept, place),
                _ => self.second(kept, place),
            };
            rows.sum = rows.total(cg);
            kept.put(List::Sums(own), rows.sum);
            State { place, rows, o }.values()
        };
        let end = cg.if_else(is_first, || side(0), || side(1));
        let State { place, rows, o } = State::of(&end);
        Event::Sums.wait(cg);
        let [a, b] = [0, 1].map(|of| kept.get(List::Sums(of)));
        let total = [0, 1].map(|half| cg.add(a[half], b[half]));
        // Both have read them: the next tile may be of one block, whose sums wait for nothing.
        Event::Sums.wait(cg);
        self.store(kept, args, sizes, rows, total, &o);
        place
    }
}
