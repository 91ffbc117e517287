//! The consumers: scores, weights and their products with values, a block behind each other.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::Attention;
use super::kernel::{Args, N_PLACES, Places, Rings, Tile};
use super::sight::{Masks, Sight};
use super::softmax::{Rows, Weights, packed, scaled, weigh};
use crate::ptx::convert::{log2, pack_bf16};
use crate::ptx::wgmma::{self, Kind, Products};
use crate::ptx::{memory, sync};
use crate::tiles::fragment::{Lanes, n_sums, pairs, wide};
use crate::tiles::roles::Consumer;

/// What goes from block to block.
struct State<'c> {
    places: Places<'c>,
    rows: Rows<'c>,
    /// What `o` is still to be multiplied by.
    correction: [Val<'c>; 2],
    o: Vec<Val<'c>>,
    /// Weights of the block before, packed.
    p: Vec<Val<'c>>,
}

/// Where what lies behind places begins.
const ROWS: usize = N_PLACES;
const CORRECTION: usize = ROWS + 4;
const SUMS: usize = CORRECTION + 2;

impl<'c> State<'c> {
    fn values(&self) -> Vec<Val<'c>> {
        let mut out = self.places.values();
        out.extend(self.rows.values());
        out.extend(self.correction);
        out.extend(&self.o);
        out.extend(&self.p);
        out
    }

    fn of(values: &[Val<'c>], n_o: usize) -> State<'c> {
        let rest = &values[SUMS..];
        State {
            places: Places::of(values),
            rows: Rows::of(&values[ROWS..]),
            correction: [values[CORRECTION], values[CORRECTION + 1]],
            o: rest[..n_o].to_vec(),
            p: rest[n_o..].to_vec(),
        }
    }
}

impl Attention {
    pub(super) fn consume<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
    ) {
        self.begin_turns(cg, consumer);
        self.each_tile(cg, args, &Places::first(cg).values(), |tile, places| {
            self.tile_of_queries(cg, args, rings, consumer, &tile, Places::of(places)).values()
        });
        self.end_turns(cg, consumer);
    }

    fn tile_of_queries<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        places: Places<'c>,
    ) -> Places<'c> {
        let first_query = cg.add(tile.query, consumer.first_row);
        let masks = Masks {
            start: self.causal.then_some(tile.start),
            segments: args.segments,
            batch: tile.batch,
            queries: args.queries,
            keys: args.keys,
        };
        let sight = Sight::of_queries(cg, &masks, first_query, &consumer.lanes);
        let n_o = n_sums(self.v_width);
        let q = rings.q.wait(cg, places.q);

        // The first block has no block before it.
        let s = self.start_scores(cg, rings, consumer, q, places);
        let s = wgmma::wait(cg, 0, &s);
        let Weights { p, rows, correction } =
            self.block(cg, args, rings, consumer, &sight, places, cg.i32(0), &s, Rows::none(cg));
        let zeros = vec![cg.zero(Ty::F32); n_o];
        let next = Places { k: rings.k.next(cg, places.k), ..places };
        let init = State { places: next, rows, correction, o: zeros, p: packed(cg, &p) }.values();
        let end = cg.for_(cg.i32(1), tile.n_blocks, 1, &init, |block, values| {
            let state = State::of(values, n_o);
            let places = state.places;
            self.take_turn(cg, consumer);
            let s = self.start_scores(cg, rings, consumer, q, places);
            let o = self.corrected(cg, &state, false);
            let (o, held) = self.start_values(cg, rings, places, &o, &state.p);
            self.give_turn(cg, consumer);
            let s = wgmma::wait(cg, 1, &s);
            let weights =
                self.block(cg, args, rings, consumer, &sight, places, block, &s, state.rows);
            sync::settle(cg, &weights.rows.sum);
            // All that the product of values uses goes through the wait, and the new weights too:
            // packed earlier they would be given registers that it still reads.
            let o = self.end_values(cg, rings, consumer, places, &o, &held, &weights.p);
            let (o, p) = o.split_at(n_o);
            let (k, v) = (rings.k.next(cg, places.k), rings.v.next(cg, places.v));
            let places = Places { k, v, ..places };
            let Weights { rows, correction, .. } = weights;
            let (o, p) = (o.to_vec(), packed(cg, p));
            let state = State { places, rows, correction, o, p };
            State { o: self.corrected(cg, &state, true), ..state }.values()
        });
        let state = State::of(&end, n_o);
        // The last scores have been computed: queries may go.
        rings.q.release_if(cg, consumer.leads, state.places.q.stage);
        let places = state.places;
        let o = self.corrected(cg, &state, false);
        let (o, held) = self.start_values(cg, rings, places, &o, &state.p);
        let o = self.end_values(cg, rings, consumer, places, &o, &held, &[]);
        self.finish(cg, args, tile, first_query, &consumer.lanes, state.rows, &o);
        Places { q: rings.q.next(cg, places.q), v: rings.v.next(cg, places.v), ..places }
    }

    /// The sums, corrected if now is the time: between the products of a turn it is not.
    fn corrected<'c>(&self, cg: &Cg<'c>, state: &State<'c>, behind: bool) -> Vec<Val<'c>> {
        match behind == self.takes_turns() {
            true => scaled(cg, &state.o, state.correction),
            false => state.o.clone(),
        }
    }

    fn start_scores<'c>(
        &self,
        cg: &Cg<'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
        q: Val<'c>,
        places: Places<'c>,
    ) -> Vec<Val<'c>> {
        let k = rings.k.wait(cg, places.k);
        let line = self.q_tile(0).row_offset_bytes(64) as i32;
        let own = cg.mul(cg.lshr(consumer.first_row, 6), line);
        let (q_tile, k_tile) = (self.q_tile(0), self.k_tile(0));
        let operands = [q_tile.descriptor(cg, cg.add(q, own)), k_tile.descriptor(cg, k)];
        let mut steps = vec![];
        let (mut before_q, mut before_k) = (0, 0);
        for (part, width) in self.parts.iter().enumerate() {
            let (q_tile, k_tile) = (self.q_tile(part), self.k_tile(part));
            for k in (0..*width).step_by(16) {
                let of = |tile: crate::tiles::shared::OperandTile| tile.descriptor_step(k);
                steps.push([before_q + of(q_tile), before_k + of(k_tile)]);
            }
            before_q += q_tile.bytes() / 16;
            before_k += k_tile.bytes() / 16;
        }
        let n = self.block_keys();
        let products = Products { kind: Kind::Bf16, n, transposed: [false; 2], steps };
        let zeros = vec![cg.zero(Ty::F32); n_sums(n)];
        products.start(cg, &zeros, operands, cg.i1(false), None)
    }

    /// `o + p · v`, and the registers it uses of p.
    fn start_values<'c>(
        &self,
        cg: &Cg<'c>,
        rings: &Rings<'c>,
        places: Places<'c>,
        o: &[Val<'c>],
        p: &[Val<'c>],
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let v = rings.v.wait(cg, places.v);
        let tile = self.v_tile();
        let steps = (0..tile.k).step_by(16).map(|k| [0, tile.descriptor_step(k)]).collect();
        let transposed = [false, true];
        let products = Products { kind: Kind::Bf16, n: self.v_width, transposed, steps };
        products.start_registers(cg, o, p, tile.descriptor(cg, v))
    }

    /// Waits for the product of values and lets go of them; gives the sums, and `with` as it is.
    #[expect(clippy::too_many_arguments, reason = "all that is tied through one wait")]
    fn end_values<'c>(
        &self,
        cg: &Cg<'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
        places: Places<'c>,
        o: &[Val<'c>],
        held: &[Val<'c>],
        with: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let tied: Vec<Val> = o.iter().chain(with).chain(held).copied().collect();
        let mut out = wgmma::wait(cg, 0, &tied);
        out.truncate(o.len() + with.len());
        rings.v.release_if(cg, consumer.leads, places.v.stage);
        out
    }

    /// Lets go of the keys whose scores `s` are, and weighs them.
    #[expect(clippy::too_many_arguments, reason = "the state of one block")]
    fn block<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
        sight: &Sight<'c>,
        places: Places<'c>,
        block: Val<'c>,
        s: &[Val<'c>],
        rows: Rows<'c>,
    ) -> Weights<'c> {
        rings.k.release_if(cg, consumer.leads, places.k.stage);
        let key = cg.mul(block, self.block_keys() as i32);
        let s = sight.hide(cg, self.block_keys(), key, s);
        weigh(cg, args.scale_log2, rows, &s, |largest| largest)
    }

    /// Divides by the sum and writes o and the log of the softmax's denominator.
    #[expect(clippy::too_many_arguments, reason = "the state of one tile")]
    fn finish<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        tile: &Tile<'c>,
        first_query: Val<'c>,
        lanes: &Lanes<'c>,
        rows: Rows<'c>,
        o: &[Val<'c>],
    ) {
        let total = rows.total(cg);
        let inverse = total.map(|sum| {
            let nothing = cg.cmp(Cmp::Eq, sum, 0.0f32);
            cg.select(nothing, cg.f32(0.0), cg.div(cg.f32(1.0), sum))
        });
        let [batch, row, head] = args.o_strides;
        let start = cg.add(cg.mul(wide(cg, tile.batch), batch), cg.mul(wide(cg, tile.head), head));
        let unit = cg.add(cg.mul(tile.batch, args.heads), tile.head);
        let leads = cg.cmp(Cmp::Eq, lanes.col, 0);
        let queries = [0, 8].map(|half| cg.add(first_query, cg.add(lanes.row, half)));
        let inside = queries.map(|q| cg.cmp(Cmp::Lt, q, args.queries));
        let lines = queries.map(|q| {
            let at = cg.add(start, cg.mul(wide(cg, q), row));
            cg.at(args.o, Elem::BF16, cg.add(at, wide(cg, lanes.col)))
        });
        for pair in pairs(self.v_width) {
            let [a, b] = [0, 1].map(|i| cg.mul(o[pair.index + i], inverse[pair.half]));
            let address = cg.at(lines[pair.half], Elem::BF16, i64::from(pair.col));
            memory::store_if(cg, inside[pair.half], &[pack_bf16(cg, a, b)], address);
        }
        for half in 0..2 {
            let ln2 = cg.f32(std::f32::consts::LN_2);
            // In units of log2, so that one rounding of the scale serves scores and this.
            let top = cg.mul(rows.largest[half], args.scale_log2);
            let lse = cg.mul(cg.add(top, log2(cg, total[half])), ln2);
            let line = cg.mul(wide(cg, unit), wide(cg, args.queries));
            let at = cg.at(args.lse, Elem::F32, cg.add(line, wide(cg, queries[half])));
            memory::store_if(cg, cg.and(leads, inside[half]), &[lse], at);
        }
    }
}
