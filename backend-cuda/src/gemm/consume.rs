//! The consumers: two warpgroups that multiply what is in the ring, promote, and store.

mod promote;
mod stage_out;
mod store;
mod trim;

use weft_codegen::emit::{Cg, Cmp, Ty, Val};

use super::kernel::Args;
use super::schedule::Tile;
use super::{Gemm, Grouping, Store};
use crate::ptx::wgmma::{self, Products};
use crate::tiles::fragment::n_sums;
use crate::tiles::ring::{Place, Ring};
use crate::tiles::roles::Consumer;
use crate::tiles::shared::Major;

impl Gemm {
    pub(super) fn consume<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        ring: &Ring<'c>,
        staging: Val<'c>,
        consumer: &Consumer<'c>,
    ) {
        self.each_tile(cg, args, &Place::first(cg).values(), |tile, place| {
            let (sums, place) = match self.scales {
                None => self.accumulate(cg, ring, consumer, &tile, Place::of(place)),
                Some(_) => self.promote(cg, args, ring, consumer, &tile, Place::of(place)),
            };
            for (sums, c) in sums.iter().zip(&args.c) {
                match (c, self.store) {
                    (None, _) => {}
                    (Some(c), Store::Tensor) => {
                        self.stage_out(cg, *c, consumer, staging, &tile, sums);
                    }
                    (Some(c), _) => self.store(cg, args, *c, consumer, &tile, sums),
                }
            }
            self.end(cg, args, consumer, &tile, &sums);
            place.values().to_vec()
        });
        if self.store == Store::Tensor {
            self.staged_out(cg, consumer);
        }
    }

    fn products(&self) -> Products {
        let tiles = [self.a_tile(), self.b_tile()];
        let step = |k: u32| tiles.map(|t| t.descriptor_step(k));
        Products {
            kind: self.kind,
            n: self.tile_cols,
            transposed: tiles.map(|t| t.major == Major::Rows),
            steps: (0..tiles[0].k).step_by(self.kind.k() as usize).map(step).collect(),
        }
    }

    /// Descriptors of the stage's A, as far as it is this warpgroup's, and of product `p`'s B.
    fn descriptors<'c>(
        &self,
        cg: &Cg<'c>,
        consumer: &Consumer<'c>,
        stage: Val<'c>,
        p: usize,
    ) -> [Val<'c>; 2] {
        let (a, b) = (self.a_tile(), self.b_tile());
        let part = cg.mul(cg.lshr(consumer.first_row, 6), a.row_offset_bytes(64) as i32);
        let to_b = cg.add(stage, self.b_offset_bytes(p) as i32);
        [a.descriptor(cg, cg.add(stage, part)), b.descriptor(cg, to_b)]
    }

    /// Waits for a stage; where a segment of k ends in it, what is not the tile's becomes zero.
    fn arrived<'c>(
        &self,
        cg: &Cg<'c>,
        ring: &Ring<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        block: Val<'c>,
        place: Place<'c>,
    ) -> Val<'c> {
        let stage = ring.wait(cg, place);
        if self.grouping == Grouping::Inner {
            self.trim(cg, consumer, tile, block, stage);
        }
        stage
    }

    /// Sums over all of k in the tensor cores' accumulators, of each product. A stage's products
    /// stay under way while the next stage is waited for.
    fn accumulate<'c>(
        &self,
        cg: &Cg<'c>,
        ring: &Ring<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        place: Place<'c>,
    ) -> (Vec<Vec<Val<'c>>>, Place<'c>) {
        let (first, end) = self.blocks(cg, tile);
        let (n, n_products) = (n_sums(self.tile_cols), self.n_products());
        let mut init = place.values().to_vec();
        init.extend(vec![cg.zero(Ty::F32); n * n_products]);
        let products = self.products();
        let out = cg.for_(first, end, 1, &init, |block, carried| {
            let place = Place::of(carried);
            let stage = self.arrived(cg, ring, consumer, tile, block, place);
            let adds = cg.cmp(Cmp::Ne, block, first);
            // One product waits in the same breath.
            let left = (n_products == 1).then_some(1);
            let start = |(p, sums): (usize, &[Val<'c>])| {
                let operands = self.descriptors(cg, consumer, stage, p);
                products.start(cg, sums, operands, adds, left)
            };
            let mut sums: Vec<Val> = carried[2..].chunks(n).enumerate().flat_map(start).collect();
            if left.is_none() {
                sums = wgmma::wait(cg, n_products as u32, &sums);
            }
            // The products of the stage before have ended with this wait.
            let done = cg.and(consumer.leads, adds);
            ring.release_before_if(cg, done, place.stage);
            let mut next = ring.next(cg, place).values().to_vec();
            next.extend(sums);
            next
        });
        let place = Place::of(&out);
        let sums = wgmma::wait(cg, 0, &out[2..]);
        let any = cg.cmp(Cmp::Lt, first, end);
        ring.release_before_if(cg, cg.and(consumer.leads, any), place.stage);
        (sums.chunks(n).map(<[Val]>::to_vec).collect(), place)
    }
}
