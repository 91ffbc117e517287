//! The consumers: each scores half of a block's keys and sums half of the values' columns.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::kernel::{Shared, Sizes, Tile};
use super::{BLOCK_KEYS, Decode, OWN_KEYS, TILE_HEADS};
use crate::flash::places::Places;
use crate::flash::sight::Sight;
use crate::flash::signature::{Argument, Bound};
use crate::flash::softmax::{Rows, Weights, packed, weigh};
use crate::ptx::convert::{log2, max, pack_bf16};
use crate::ptx::wgmma::{self, Kind, Products};
use crate::ptx::{matrix, memory, sync};
use crate::tiles::fragment::{n_sums, pairs, wide};
use crate::tiles::ring::Place;
use crate::tiles::roles::{CONSUMER_THREADS, Consumer};
use crate::tiles::shared::{LINE_BYTES, permuted};

/// At which both warpgroups meet.
const BARRIER: i32 = 1;

/// What goes from block to block.
struct State<'c> {
    place: Place<'c>,
    rows: Rows<'c>,
    o: Vec<Val<'c>>,
}

impl<'c> State<'c> {
    fn values(&self) -> Vec<Val<'c>> {
        let mut out = self.place.values().to_vec();
        out.extend(self.rows.values());
        out.extend(&self.o);
        out
    }

    fn of(values: &[Val<'c>]) -> State<'c> {
        State { place: Place::of(values), rows: Rows::of(&values[2..]), o: values[6..].to_vec() }
    }
}

/// What does not change while a tile meets its blocks.
struct Kept<'k, 'c> {
    cg: &'k Cg<'c>,
    shared: &'k Shared<'c>,
    consumer: &'k Consumer<'c>,
    tile: Tile<'c>,
    sight: Sight<'c>,
    /// The address of q.
    q: Val<'c>,
    scale_log2: Val<'c>,
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
            self.tile(cg, args, shared, consumer, sizes, tile, Places::of(places)).values()
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one tile")]
    fn tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        shared: &Shared<'c>,
        consumer: &Consumer<'c>,
        sizes: &Sizes<'c>,
        tile: Tile<'c>,
        places: Places<'c>,
    ) -> Places<'c> {
        let q = shared.q.wait(cg, places.kept);
        let sight = Sight::up_to(tile.end, &consumer.lanes);
        let scale_log2 = args.f32(Argument::ScaleLog2);
        let kept = Kept { cg, shared, consumer, tile, sight, q, scale_log2 };

        // The first block has no block before it.
        let s = wgmma::wait(cg, 0, &self.start_scores(&kept, places.moved));
        let Weights { p, rows, .. } = self.weights(&kept, cg.i32(0), &s, Rows::none(cg));
        self.share_weights(&kept, &p);
        let o = vec![cg.zero(Ty::F32); n_sums(self.half_width())];
        let init = State { place: shared.k.next(cg, places.moved), rows, o }.values();
        let end = cg.for_(cg.i32(1), tile.n_blocks, 1, &init, |block, values| {
            let State { place, rows, o } = State::of(values);
            let s = self.start_scores(&kept, place);
            let o = self.start_values(&kept, place, &o);
            let s = wgmma::wait(cg, 1, &s);
            let weights = self.weights(&kept, block, &s, rows);
            let [o, p] = wgmma::wait_each(cg, 0, [&o, &weights.p]);
            shared.k.release_before_if(cg, consumer.leads, place.stage);
            let corrected = pairs(self.half_width()).flat_map(|pair| {
                let by = weights.correction[pair.half];
                [cg.mul(o[pair.index], by), cg.mul(o[pair.index + 1], by)]
            });
            let o = corrected.collect();
            // Both are done with the weights before.
            meet(cg);
            self.share_weights(&kept, &p);
            State { place: shared.k.next(cg, place), rows: weights.rows, o }.values()
        });
        let State { place, rows, o } = State::of(&end);
        // The last scores have been computed: queries may go.
        shared.q.release_if(cg, consumer.leads, places.kept.stage);
        let o = wgmma::wait(cg, 0, &self.start_values(&kept, place, &o));
        shared.k.release_before_if(cg, consumer.leads, place.stage);
        let total = rows.total(cg);
        let other = self.exchanged(&kept, total);
        let total = [0, 1].map(|half| cg.add(total[half], other[half]));
        // Both have read what was exchanged, and multiplied the last weights.
        meet(cg);
        self.store(&kept, args, sizes, rows, total, &o);
        Places { kept: shared.q.next(cg, places.kept), moved: place }
    }

    /// Scores of the warpgroup's keys of a block.
    fn start_scores<'c>(&self, kept: &Kept<'_, 'c>, place: Place<'c>) -> Vec<Val<'c>> {
        let cg = kept.cg;
        let k = kept.shared.k.wait(cg, place);
        let own = cg.mul(kept.consumer.warpgroup, (OWN_KEYS * LINE_BYTES) as i32);
        let (q_tiles, k_tiles) = (self.q_tiles(), self.k_tiles());
        let (before_q, before_k) = (Self::before(&q_tiles), Self::before(&k_tiles));
        let mut steps = vec![];
        for (i, width) in self.parts.iter().enumerate() {
            for k in (0..*width).step_by(Kind::Bf16.k() as usize) {
                let of_q = before_q[i] + q_tiles[i].1.descriptor_step(k);
                steps.push([of_q, before_k[i] + k_tiles[i].1.descriptor_step(k)]);
            }
        }
        let of_q = q_tiles[0].1.descriptor(cg, kept.q);
        let operands = [of_q, k_tiles[0].1.descriptor(cg, cg.add(k, own))];
        let products = Products { kind: Kind::Bf16, n: OWN_KEYS, transposed: [false; 2], steps };
        let zeros = vec![cg.zero(Ty::F32); n_sums(OWN_KEYS)];
        products.start(cg, &zeros, operands, cg.i1(false), None)
    }

    /// `o + p · v` of the warpgroup's columns, of the block before `place`.
    fn start_values<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        place: Place<'c>,
        o: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let (cg, ring) = (kept.cg, &kept.shared.k);
        let (p, v) = (self.p_tile(), self.v_tile());
        let half = v.row_offset_bytes(self.half_width()) as i32;
        let stage = ring.stage(cg, ring.previous(cg, place.stage));
        let stage = cg.add(stage, cg.mul(kept.consumer.warpgroup, half));
        let step = |k: u32| [p.descriptor_step(k), v.descriptor_step(k)];
        let steps = (0..BLOCK_KEYS).step_by(Kind::Bf16.k() as usize).map(step).collect();
        let operands = [p.descriptor(cg, kept.shared.p), v.descriptor(cg, stage)];
        let (n, transposed) = (self.half_width(), [false, true]);
        let products = Products { kind: Kind::Bf16, n, transposed, steps };
        products.start(cg, o, operands, cg.i1(true), None)
    }

    /// The weights of the warpgroup's keys, beside the largest score of both.
    fn weights<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        block: Val<'c>,
        s: &[Val<'c>],
        rows: Rows<'c>,
    ) -> Weights<'c> {
        let cg = kept.cg;
        let key = self.block_key(cg, &kept.tile, block);
        let key = cg.add(key, cg.mul(kept.consumer.warpgroup, OWN_KEYS as i32));
        let s = kept.sight.hide(cg, OWN_KEYS, key, s);
        weigh(cg, kept.scale_log2, rows, &s, |largest| {
            let other = self.exchanged(kept, largest);
            [0, 1].map(|half| max(cg, largest[half], other[half]))
        })
    }

    /// Gives the other warpgroup a number for each row, and takes its.
    fn exchanged<'c>(&self, kept: &Kept<'_, 'c>, own: [Val<'c>; 2]) -> [Val<'c>; 2] {
        let (cg, consumer) = (kept.cg, kept.consumer);
        let line = |warpgroup: Val<'c>, half: i32| {
            let row = cg.add(consumer.lanes.row, half);
            let at = cg.add(cg.mul(warpgroup, TILE_HEADS as i32), row);
            cg.add(kept.shared.exchange, cg.mul(at, 4))
        };
        // The four lanes of a row have the same number.
        for (i, half) in [0, 8].into_iter().enumerate() {
            memory::store_shared(cg, own[i], line(consumer.warpgroup, half));
        }
        meet(cg);
        let other = cg.xor(consumer.warpgroup, 1);
        [0, 8].map(|half| memory::load_shared(cg, Ty::F32, line(other, half)))
    }

    /// Leaves the warpgroup's weights where both read them.
    fn share_weights<'c>(&self, kept: &Kept<'_, 'c>, p: &[Val<'c>]) {
        let (cg, consumer) = (kept.cg, kept.consumer);
        let packed = packed(cg, p);
        // Lane `8 i + r` addresses row `r` of tile `i`: rows first, then columns.
        let row = cg.add(cg.mul(consumer.warp, 16), cg.and(consumer.lane, 15));
        let own = cg.mul(consumer.warpgroup, (OWN_KEYS / 8) as i32);
        for sixteen in 0..OWN_KEYS / 16 {
            let piece = cg.add(cg.lshr(consumer.lane, 4), (2 * sixteen) as i32);
            let at = permuted(cg, LINE_BYTES, row, cg.add(own, piece));
            let first = 4 * sixteen as usize;
            let tiles = [0, 1, 2, 3].map(|i| packed[first + i]);
            matrix::store_tiles(cg, cg.add(kept.shared.p, at), tiles);
        }
        sync::fence_async(cg);
        meet(cg);
    }

    /// Divides by the sum and writes the warpgroup's columns of o, and the log of the softmax's
    /// denominator: in units of log2 for a piece, natural for the whole.
    fn store<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        rows: Rows<'c>,
        total: [Val<'c>; 2],
        o: &[Val<'c>],
    ) {
        let Kept { cg, consumer, tile, .. } = kept;
        let inverse = total.map(|sum| {
            let nothing = cg.cmp(Cmp::Eq, sum, 0.0f32);
            cg.select(nothing, cg.f32(0.0), cg.div(cg.f32(1.0), sum))
        });
        let heads = [0, 8].map(|half| cg.add(tile.head, cg.add(consumer.lanes.row, half)));
        let inside = heads.map(|h| cg.cmp(Cmp::Lt, h, sizes.heads));
        let first_col = cg.mul(consumer.warpgroup, self.half_width() as i32);
        let first_col = cg.add(first_col, consumer.lanes.col);
        let elem = if self.split { Elem::F32 } else { Elem::BF16 };
        let base = args.get(if self.split { Argument::PartialO } else { Argument::O });
        let lines = heads.map(|h| {
            let start = match self.split {
                true => cg.mul(self.line(cg, sizes, tile, h), i64::from(self.v_width())),
                false => {
                    let [batch, row, head] = [0, 1, 2].map(|i| args.get(Argument::OStride(i)));
                    let start = cg.mul(wide(cg, tile.batch), batch);
                    let start = cg.add(start, cg.mul(wide(cg, tile.query), row));
                    cg.add(start, cg.mul(wide(cg, h), head))
                }
            };
            cg.at(base, elem, cg.add(start, wide(cg, first_col)))
        });
        for pair in pairs(self.half_width()) {
            let both = [0, 1].map(|i| cg.mul(o[pair.index + i], inverse[pair.half]));
            let column = cg.add(first_col, pair.col as i32);
            let is = cg.cmp(Cmp::Lt, column, self.v_width() as i32);
            let is = cg.and(is, inside[pair.half]);
            let address = cg.at(lines[pair.half], elem, i64::from(pair.col));
            match self.split {
                true => memory::store_if(cg, is, &both, address),
                false => memory::store_if(cg, is, &[pack_bf16(cg, both[0], both[1])], address),
            }
        }
        // One thread of each row, of the first warpgroup.
        let leads =
            cg.and(cg.cmp(Cmp::Eq, consumer.lanes.col, 0), cg.cmp(Cmp::Eq, consumer.warpgroup, 0));
        for half in 0..2 {
            let top = cg.mul(rows.largest[half], kept.scale_log2);
            let lse = cg.add(top, log2(cg, total[half]));
            let (lse, base, at) = match self.split {
                true => {
                    let at = self.line(cg, sizes, tile, heads[half]);
                    (lse, args.get(Argument::PartialLse), at)
                }
                false => {
                    let line = cg.add(cg.mul(tile.batch, sizes.heads), heads[half]);
                    let line = cg.mul(wide(cg, line), wide(cg, sizes.queries));
                    let natural = cg.mul(lse, cg.f32(std::f32::consts::LN_2));
                    (natural, args.get(Argument::Lse), cg.add(line, wide(cg, tile.query)))
                }
            };
            let is = cg.and(leads, inside[half]);
            memory::store_if(cg, is, &[lse], cg.at(base, Elem::F32, at));
        }
    }

    /// Where a head's numbers are among those of `[pieces, batch, queries, heads]`.
    fn line<'c>(&self, cg: &Cg<'c>, sizes: &Sizes<'c>, tile: &Tile<'c>, head: Val<'c>) -> Val<'c> {
        let at = cg.add(cg.mul(wide(cg, tile.piece), wide(cg, sizes.batch)), wide(cg, tile.batch));
        let at = cg.add(cg.mul(at, wide(cg, sizes.queries)), wide(cg, tile.query));
        cg.add(cg.mul(at, wide(cg, sizes.heads)), wide(cg, head))
    }
}

/// Waits for both warpgroups.
fn meet(cg: &Cg<'_>) {
    sync::named_barrier(cg, cg.i32(BARRIER), CONSUMER_THREADS);
}
