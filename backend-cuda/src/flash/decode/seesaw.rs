//! What each of the two warpgroups does with the blocks of a tile.
//!
//! Warpgroup 0 has the first block of a pair, warpgroup 1 the second one. Both begin a turn of
//! their loop with the scores of a block in registers and end it with those of the next; the last
//! pair comes behind the loop.

use weft_codegen::emit::{Cmp, Ty, Val};

use super::consume::{Kept, State};
use super::exchange::{Event, List};
use super::{BLOCK_KEYS, Decode};
use crate::flash::softmax::{Rows, Weights, packed, scaled, weigh};
use crate::ptx::convert::max;
use crate::ptx::wgmma;
use crate::tiles::fragment::n_sums;
use crate::tiles::ring::Place;

/// A state, and the scores of the warpgroup's next block.
struct Scored<'c> {
    state: State<'c>,
    s: Vec<Val<'c>>,
}

impl<'c> Scored<'c> {
    fn values(&self) -> Vec<Val<'c>> {
        let mut out = self.s.clone();
        out.extend(self.state.values());
        out
    }

    fn of(values: &[Val<'c>]) -> Scored<'c> {
        let (s, state) = values.split_at(n_sums(BLOCK_KEYS));
        Scored { state: State::of(state), s: s.to_vec() }
    }
}

/// What warpgroup 0 has done of a pair before it needs to know whether there is a second block.
struct Begun<'c> {
    place: Place<'c>,
    rows: Rows<'c>,
    /// Weights, not yet rounded.
    p: Vec<Val<'c>>,
    o: Vec<Val<'c>>,
}

impl Decode {
    /// Warpgroup 0, from the first block at `place` on.
    pub(super) fn first<'c>(&self, kept: &Kept<'_, 'c>, place: Place<'c>) -> State<'c> {
        let (cg, shared) = (kept.cg, kept.shared);
        let n_blocks = kept.tile.n_blocks;
        let s = self.scores(kept, 0, place);
        let init = Scored { state: self.nothing(kept, place), s }.values();
        // All pairs but the last one, which may have no second block.
        let last = cg.sub(cg.div_ceil(n_blocks, 2), 1);
        let end = cg.for_(cg.i32(0), last, 1, &init, |pair, values| {
            let begun = self.begin(kept, cg.mul(pair, 2), Scored::of(values));
            let (state, second) = self.start_far_of_pair(kept, &begun);
            let s = self.start_near_scores(kept, 0, state.place);
            let o = wgmma::wait(cg, 1, &state.o);
            kept.release(0, second);
            let s = self.end_scores(kept, 0, state.place, &s);
            Scored { state: State { o, ..state }, s }.values()
        });
        // The last scores have been computed: queries may go.
        shared.q.release_if(cg, kept.consumer.leads, kept.q_stage);
        let begun = self.begin(kept, cg.mul(last, 2), Scored::of(&end));
        let is_pair = cg.cmp(Cmp::Eq, cg.and(n_blocks, 1), 0);
        let both = || {
            let (state, second) = self.start_far_of_pair(kept, &begun);
            let o = wgmma::wait(cg, 0, &state.o);
            kept.release(0, second);
            State { o, ..state }.values()
        };
        let one = || {
            // In a pair the wait for the other's maximum is a meeting of this warpgroup, too.
            Event::Scores.wait(cg);
            self.give_weights(kept, 0, begun.place, &begun.p);
            let place = shared.next(cg, begun.place);
            State { place, rows: begun.rows, o: begun.o.clone() }.values()
        };
        State::of(&cg.if_else(is_pair, both, one))
    }

    /// The softmax of `block`, and its product with the near half.
    fn begin<'c>(&self, kept: &Kept<'_, 'c>, block: Val<'c>, at: Scored<'c>) -> Begun<'c> {
        let cg = kept.cg;
        let Scored { state: State { place, rows, o }, s } = at;
        let Weights { p, rows, correction } = self.weigh(kept, block, &s, rows, |own| {
            kept.put(List::Largest(0), own);
            Event::Largest(0).tell(cg);
            own
        });
        let o = scaled(cg, &o, correction);
        let (o, held) = self.start_near(kept, 0, place, &o, &packed(cg, &p));
        let [o, p, _] = wgmma::wait_each(cg, 0, [&o, &p, &held]);
        kept.release(0, place);
        Begun { place, rows, p, o }
    }

    /// Follows the second block's maximum, and starts the product with its weights. Gives the place
    /// of that block, too, which is in use.
    fn start_far_of_pair<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        begun: &Begun<'c>,
    ) -> (State<'c>, Place<'c>) {
        let (cg, shared) = (kept.cg, kept.shared);
        let Begun { place, rows, p, o } = begun;
        let place = *place;
        Event::Largest(1).wait(cg);
        let largest = kept.get(List::Largest(1));
        let (rows, correction) = rows.beside(cg, kept.scale_log2, largest);
        self.give_weights(kept, 0, place, &scaled(cg, p, correction));
        let o = scaled(cg, o, correction);
        let second = shared.next(cg, place);
        Event::Weights(1).wait(cg);
        let o = self.start_far(kept, 0, second, &o);
        (State { place: shared.next(cg, second), rows, o }, second)
    }

    /// Warpgroup 1, where the first block is at `place`.
    pub(super) fn second<'c>(&self, kept: &Kept<'_, 'c>, place: Place<'c>) -> State<'c> {
        let (cg, shared) = (kept.cg, kept.shared);
        let n_blocks = kept.tile.n_blocks;
        let n_pairs = cg.lshr(n_blocks, 1);
        let has_pairs = cg.cmp(Cmp::Gt, n_pairs, 0);
        let s = cg.if_else(
            has_pairs,
            || self.scores(kept, 1, shared.next(cg, place)),
            || vec![cg.zero(Ty::F32); n_sums(BLOCK_KEYS)],
        );
        let init = Scored { state: self.nothing(kept, place), s }.values();
        let last = cg.sub(n_pairs, 1);
        let end = cg.for_(cg.i32(0), last, 1, &init, |pair, values| {
            let state = self.pair_of_second(kept, pair, Scored::of(values));
            let s = self.scores(kept, 1, shared.next(cg, state.place));
            Scored { state, s }.values()
        });
        shared.q.release_if(cg, kept.consumer.leads, kept.q_stage);
        let end = Scored::of(&end);
        let before = end.state.values();
        let end =
            cg.if_else(has_pairs, || self.pair_of_second(kept, last, end).values(), || before);
        let is_odd = cg.cmp(Cmp::Eq, cg.and(n_blocks, 1), 1);
        let end =
            cg.if_else(is_odd, || self.last_alone(kept, State::of(&end)).values(), || end.clone());
        State::of(&end)
    }

    /// A pair, of which warpgroup 1 has the scores of the second block.
    fn pair_of_second<'c>(&self, kept: &Kept<'_, 'c>, pair: Val<'c>, at: Scored<'c>) -> State<'c> {
        let (cg, shared) = (kept.cg, kept.shared);
        let Scored { state: State { place, rows, o }, s } = at;
        let block = cg.add(cg.mul(pair, 2), 1);
        let Weights { p, rows, correction } = self.weigh(kept, block, &s, rows, |own| {
            Event::Largest(0).wait(cg);
            let first = kept.get(List::Largest(0));
            let largest = [0, 1].map(|half| max(cg, own[half], first[half]));
            kept.put(List::Largest(1), largest);
            Event::Largest(1).tell(cg);
            largest
        });
        let second = shared.next(cg, place);
        self.give_weights(kept, 1, second, &p);
        let o = scaled(cg, &o, correction);
        let (o, held) = self.start_near(kept, 1, second, &o, &packed(cg, &p));
        Event::Weights(0).wait(cg);
        let o = self.start_far(kept, 1, place, &o);
        // The sums are in use until the second product ends, too.
        wgmma::wait(cg, 1, &held);
        kept.release(1, second);
        let o = wgmma::wait(cg, 0, &o);
        kept.release(1, place);
        State { place: shared.next(cg, second), rows, o }
    }

    /// The last block of an odd number, which is warpgroup 0's.
    fn last_alone<'c>(&self, kept: &Kept<'_, 'c>, at: State<'c>) -> State<'c> {
        let (cg, shared) = (kept.cg, kept.shared);
        let State { place, rows, o } = at;
        Event::Largest(0).wait(cg);
        let (rows, correction) = rows.beside(cg, kept.scale_log2, kept.get(List::Largest(0)));
        let o = scaled(cg, &o, correction);
        Event::Weights(0).wait(cg);
        let o = wgmma::wait(cg, 0, &self.start_far(kept, 1, place, &o));
        kept.release(1, place);
        State { place: shared.next(cg, place), rows, o }
    }

    /// Before any key.
    fn nothing<'c>(&self, kept: &Kept<'_, 'c>, place: Place<'c>) -> State<'c> {
        let o = vec![kept.cg.zero(Ty::F32); n_sums(self.half_width())];
        State { place, rows: Rows::none(kept.cg), o }
    }

    /// The weights of a block. What a row's largest score is beside the other warpgroup's, `meet`
    /// says.
    fn weigh<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        block: Val<'c>,
        s: &[Val<'c>],
        rows: Rows<'c>,
        meet: impl FnOnce([Val<'c>; 2]) -> [Val<'c>; 2],
    ) -> Weights<'c> {
        let key = self.block_key(kept.cg, &kept.tile, block);
        let s = kept.sight.hide(kept.cg, BLOCK_KEYS, key, s);
        weigh(kept.cg, kept.scale_log2, rows, &s, meet)
    }
}
