//! The consumers: scores and weights of a block, and the products they go into.

use weft_codegen::emit::{Cg, Cmp, Ty, Val};

use super::Backward;
use super::kernel::{Rings, Sizes, Tile};
use super::statistics::Statistics;
use crate::flash::places::Places;
use crate::flash::sight::Sight;
use crate::flash::signature::{Argument, Bound};
use crate::flash::softmax::packed;
use crate::ptx::convert::exp2;
use crate::ptx::wgmma::{self, Kind, Products};
use crate::ptx::{memory, sync};
use crate::tiles::fragment::{n_sums, pairs};
use crate::tiles::ring::Place;
use crate::tiles::roles::Consumer;
use crate::tiles::shared::{Major, OperandTile};

/// What goes from block to block.
#[derive(Clone)]
struct State<'c> {
    place: Place<'c>,
    /// 1 once a block has been met.
    begun: Val<'c>,
    /// Sums of dx, with the last block's product still under way, and of dy.
    x: Vec<Val<'c>>,
    y: Vec<Val<'c>>,
    /// What that product reads: dS, packed.
    ds: Vec<Val<'c>>,
}

impl<'c> State<'c> {
    fn values(&self) -> Vec<Val<'c>> {
        let mut out = self.place.values().to_vec();
        out.push(self.begun);
        out.extend(self.x.iter().chain(&self.y).chain(&self.ds));
        out
    }

    fn of(values: &[Val<'c>], like: &State<'c>) -> State<'c> {
        let mut rest = values[3..].to_vec();
        let mut take = |n: usize| rest.drain(..n).collect();
        State {
            place: Place::of(values),
            begun: values[2],
            x: take(like.x.len()),
            y: take(like.y.len()),
            ds: take(like.ds.len()),
        }
    }
}

/// What does not change while a tile meets its blocks.
struct Kept<'k, 'c> {
    cg: &'k Cg<'c>,
    rings: &'k Rings<'c>,
    consumer: &'k Consumer<'c>,
    sight: Sight<'c>,
    /// Of the rows, where they are queries.
    statistics: Option<Statistics<'c>>,
    /// The address of the warpgroup's rows of x.
    x: Val<'c>,
    scale_log2: Val<'c>,
}

impl Backward {
    pub(super) fn consume<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
    ) {
        self.each_tile(cg, args, &Places::first(cg).values(), |sizes, tile, places| {
            self.tile(cg, args, rings, consumer, sizes, &tile, Places::of(places)).values()
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one tile")]
    fn tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        rings: &Rings<'c>,
        consumer: &Consumer<'c>,
        sizes: &Sizes<'c>,
        tile: &Tile<'c>,
        places: Places<'c>,
    ) -> Places<'c> {
        let first = cg.add(tile.row, consumer.first_row);
        let masks = self.tile_masks(args, sizes, tile);
        let (sight, statistics) = match self.keeps_keys() {
            true => (Sight::of_keys(cg, &masks, first, &consumer.lanes), None),
            false => {
                let made = self.make_statistics(cg, args, sizes, consumer, tile);
                (Sight::of_queries(cg, &masks, first, &consumer.lanes), Some(made))
            }
        };
        let stage = rings.kept.wait(cg, places.kept);
        let own = self.kept()[0].1.row_offset_bytes(64) as i32;
        let x = cg.add(stage, cg.mul(consumer.warpgroup, own));
        let scale_log2 = args.f32(Argument::ScaleLog2);
        let kept = Kept { cg, rings, consumer, sight, statistics, x, scale_log2 };

        let init = self.nothing(cg, places.moved);
        let end = cg.for_(cg.i32(0), tile.n_heads, 1, &init.values(), |_, values| {
            let [first, end] = tile.blocks;
            cg.for_(first, end, 1, values, |block, values| {
                self.block_products(&kept, block, State::of(values, &init)).values()
            })
        });
        let state = State::of(&end, &init);
        let [x, y, _] = wgmma::wait_each(cg, 0, [&state.x, &state.y, &state.ds]);
        let begun = cg.cmp(Cmp::Ne, state.begun, 0);
        let place = state.place;
        rings.moved.release_before_if(cg, cg.and(consumer.leads, begun), place.stage);
        rings.kept.release_if(cg, consumer.leads, places.kept.stage);
        self.store(cg, args, sizes, consumer, tile, &x, &y);
        Places { kept: rings.kept.next(cg, places.kept), moved: place }
    }

    fn nothing<'c>(&self, cg: &Cg<'c>, place: Place<'c>) -> State<'c> {
        let zeros = |n: u32| vec![cg.zero(Ty::F32); n_sums(n)];
        let x = match self.makes_x() {
            true => self.of.parts.iter().flat_map(|w| zeros(*w)).collect(),
            false => vec![],
        };
        let y = if self.makes_y() { zeros(self.of.v_width) } else { vec![] };
        let n = if self.makes_x() { self.columns() as usize / 4 } else { 0 };
        State { place, begun: cg.i32(0), x, y, ds: vec![cg.i32(0); n] }
    }

    fn block_products<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        block: Val<'c>,
        state: State<'c>,
    ) -> State<'c> {
        let Kept { cg, rings, consumer, .. } = *kept;
        let n = self.columns();
        let stage = rings.moved.wait(cg, state.place);
        let n_parts = self.of.parts.len();
        let s = self.start_scores(kept, stage, 0..n_parts);
        let t = self.makes_x().then(|| self.start_scores(kept, stage, n_parts..n_parts + 1));
        // With the scores the block before has ended, too.
        let left = u32::from(t.is_some());
        let [s, x, _] = wgmma::wait_each(cg, left, [&s, &state.x, &state.ds]);
        let begun = cg.cmp(Cmp::Ne, state.begun, 0);
        rings.moved.release_before_if(cg, cg.and(consumer.leads, begun), state.place.stage);

        let column = cg.mul(block, n as i32);
        let s = kept.sight.hide(cg, n, column, &s);
        let p = self.weights(kept, stage, &s);
        let y = self.makes_y().then(|| self.start_y(kept, stage, &state.y, &packed(cg, &p)));
        let mut next = State { place: rings.moved.next(cg, state.place), x, ..state };
        next.begun = cg.i32(1);
        match (t, y) {
            (None, None) => {}
            (None, Some((y, held))) => {
                let [y, _] = wgmma::wait_each(cg, 0, [&y, &held]);
                next.y = y;
            }
            (Some(t), None) => {
                sync::settle(cg, &p);
                let t = wgmma::wait(cg, 0, &t);
                let ds = self.d_scores(kept, stage, &p, &t);
                (next.x, next.ds) = self.start_x(kept, stage, &next.x, &ds);
            }
            (Some(t), Some((y, held))) => {
                let t = wgmma::wait(cg, 1, &t);
                let ds = self.d_scores(kept, stage, &p, &t);
                (next.x, next.ds) = self.start_x(kept, stage, &next.x, &ds);
                // The next block's first wait would do, but P would hold its registers until then.
                let [y, _] = wgmma::wait_each(cg, n_parts as u32, [&y, &held]);
                next.y = y;
            }
        }
        next
    }

    /// Products of kept and moved tiles, those of `which` summed.
    fn start_scores<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        which: std::ops::Range<usize>,
    ) -> Vec<Val<'c>> {
        let (cg, n) = (kept.cg, self.columns());
        let (mine, theirs) = (self.kept(), self.moved(n));
        let widths: Vec<u32> = self.widths().collect();
        let before = |tiles: &[(_, OperandTile)], i: usize| -> u32 {
            tiles[..i].iter().map(|(_, tile)| tile.bytes() / 16).sum()
        };
        let mut steps = vec![];
        for i in which {
            for k in (0..widths[i]).step_by(Kind::Bf16.k() as usize) {
                let step =
                    |tiles: &[(_, OperandTile)]| before(tiles, i) + tiles[i].1.descriptor_step(k);
                steps.push([step(&mine), step(&theirs)]);
            }
        }
        let operands = [mine[0].1.descriptor(cg, kept.x), theirs[0].1.descriptor(cg, stage)];
        let products = Products { kind: Kind::Bf16, n, transposed: [false; 2], steps };
        let zeros = vec![cg.zero(Ty::F32); n_sums(n)];
        products.start(cg, &zeros, operands, cg.i1(false), None)
    }

    /// `2^(scaled score - lse)`.
    fn weights<'c>(&self, kept: &Kept<'_, 'c>, stage: Val<'c>, s: &[Val<'c>]) -> Vec<Val<'c>> {
        let cg = kept.cg;
        self.each_pair(kept, stage, 0, |own, at, less| {
            own[at] = exp2(cg, cg.fma(s[at], kept.scale_log2, less));
        })
    }

    /// `P ∘ (T - delta)`, packed.
    fn d_scores<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        p: &[Val<'c>],
        t: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let cg = kept.cg;
        let ds = self.each_pair(kept, stage, 1, |own, at, delta| {
            own[at] = cg.mul(p[at], cg.sub(t[at], delta));
        });
        packed(cg, &ds)
    }

    /// Runs `f` for each score with the first (0) or second (1) of its query's statistics.
    fn each_pair<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        which: u32,
        mut f: impl FnMut(&mut [Val<'c>], usize, Val<'c>),
    ) -> Vec<Val<'c>> {
        let (cg, n) = (kept.cg, self.columns());
        let mut out = vec![cg.zero(Ty::F32); n_sums(n)];
        // Of columns both rows of a thread read the same.
        let (mut col, mut of_columns) = (u32::MAX, [cg.zero(Ty::F32); 2]);
        for pair in pairs(n) {
            let both = match kept.statistics {
                Some(rows) => [[rows.less, rows.delta][which as usize][pair.half]; 2],
                None => {
                    if col != pair.col {
                        let line = self.moved_bytes(n) + 4 * (which * n + pair.col);
                        let own = cg.add(stage, cg.mul(kept.consumer.lanes.col, 4));
                        of_columns = memory::load_shared_pair(cg, cg.add(own, line as i32));
                        col = pair.col;
                    }
                    of_columns
                }
            };
            for (i, statistic) in both.into_iter().enumerate() {
                f(&mut out, pair.index + i, statistic);
            }
        }
        out
    }

    /// `y + P · y'`, and what it reads.
    fn start_y<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        y: &[Val<'c>],
        p: &[Val<'c>],
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        self.start_product(kept, stage, self.of.parts.len(), y, p)
    }

    /// `x + dS · x'` of all parts, and what they read.
    fn start_x<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        x: &[Val<'c>],
        ds: &[Val<'c>],
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let (mut sums, mut held, mut rest) = (vec![], ds.to_vec(), x);
        for (part, width) in self.of.parts.iter().enumerate() {
            let (own, others) = rest.split_at(n_sums(*width));
            let (own, tied) = self.start_product(kept, stage, part, own, &held);
            sums.extend(own);
            (held, rest) = (tied, others);
        }
        (sums, held)
    }

    /// Adds the product of `a` and the `i`-th moved tile, whose columns are its terms.
    fn start_product<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        stage: Val<'c>,
        i: usize,
        sums: &[Val<'c>],
        a: &[Val<'c>],
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let (cg, n) = (kept.cg, self.columns());
        let moved = self.moved(n);
        let before: u32 = moved[..i].iter().map(|(_, tile)| tile.bytes()).sum();
        // Lines of the moved tile are a step of k each, blocks of them its columns.
        let lies = moved[i].1;
        let tile = OperandTile { major: Major::Rows, rows: lies.k, k: lies.rows, ..lies };
        let width = self.widths().nth(i).unwrap_or(self.of.v_width);
        let steps = (0..n).step_by(16).map(|k| [0, tile.descriptor_step(k)]).collect();
        let products = Products { kind: Kind::Bf16, n: width, transposed: [false, true], steps };
        let b = tile.descriptor(cg, cg.add(stage, before as i32));
        products.start_registers(cg, sums, a, b)
    }
}
