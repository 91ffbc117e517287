//! The derivative: one pass over tiles of query rows, and for each over the keys it sees.
//!
//! ```text
//! p = 2^(score - lse)                    ds = scale p (do · v - delta),  delta = Σ do o
//! dq[d, row] += k · ds, in scratch       dk += ds · q,  dv += p · do, where they lie
//! ```
//!
//! A block is one group of heads of one batch, and alone writes its dk and dv.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Val};

use super::Shape;
use super::args::{Args, GradientArgs, Source, Unit, View};
use super::rows::{self, RowTile};
use super::scores::{SIGHT_ARRAYS, Sight, block_products, block_scores};
use super::tile::{Matrix, ROW_STEP, TILE_ROWS_MAX, Tile, at, dots, exp2, mix, padded, rounded};

/// Keys of a block. Weights and their derivatives take 6 KiB each.
const BLOCK_KEYS: u32 = 48;

/// Where things lie in scratch, in f32.
struct Layout {
    /// q row by row; dq on the way out.
    q_rows: u32,
    q_row: u32,
    d_o_rows: u32,
    d_o_row: u32,
    /// Transposed q (scaled), do and dq.
    q: u32,
    d_o: u32,
    dq: u32,
    /// Scores, then weights.
    p: u32,
    /// Derivatives of the weights, then of the scores.
    ds: u32,
    lse: u32,
    delta: u32,
    sight: u32,
    /// Keys and values of a block, where they are not f32.
    keys: u32,
    end: u32,
}

impl Layout {
    fn of(shape: &Shape) -> Layout {
        let (q_row, d_o_row) = (shape.q_width(), padded(shape.v.width));
        let mut end = 0;
        let mut take = |n: u32| {
            let first = end;
            end += n * TILE_ROWS_MAX;
            first
        };
        let mut layout = Layout {
            q_rows: take(q_row),
            q_row,
            d_o_rows: take(d_o_row),
            d_o_row,
            q: take(q_row),
            d_o: take(d_o_row),
            dq: take(q_row),
            p: take(BLOCK_KEYS + ROW_STEP),
            ds: take(BLOCK_KEYS + ROW_STEP),
            lse: take(1),
            delta: take(1),
            sight: take(SIGHT_ARRAYS),
            keys: 0,
            end: 0,
        };
        layout.keys = end;
        layout.end = end + rows::widened_words(shape, BLOCK_KEYS);
        layout
    }
}

pub fn scratch_bytes(shape: &Shape) -> u64 {
    4 * u64::from(Layout::of(shape).end)
}

/// What a block works on.
struct Block<'a, 'c> {
    shape: &'a Shape,
    layout: Layout,
    tile: Tile,
    kernel: &'a Kernel<'c>,
    args: &'a Args<'c>,
    unit: Unit<'c>,
    /// dk and dv of the unit.
    dk: Vec<Source<'c>>,
    dv: Source<'c>,
}

/// Emits the kernel. Its blocks are (batch, group of heads).
pub fn emit<'c>(cg: &Cg<'c>, name: &str, shape: &Shape) {
    let tile = Tile::new(&cg.target, shape.block_rows);
    shape.kernel(cg, name, true, |kernel, args, block| {
        let (batch, index) = (cg.div(block, shape.units()), cg.rem(block, shape.units()));
        let unit = shape.unit(cg, args, batch, index);
        let Some(gradients) = &args.gradients else { return };
        let target = |view: &View<'c>, width| Source {
            ptr: view.of(cg, batch, index),
            elem: view.elem,
            row: view.row,
            width,
            rows: None,
        };
        let dk = gradients.dk.iter().zip(&shape.parts).map(|(dk, k)| target(dk, k.width)).collect();
        let dv = target(&gradients.dv, shape.v.width);
        let layout = Layout::of(shape);
        let block = Block { shape, layout, tile, kernel, args, unit, dk, dv };
        block.clear(cg);
        let step = i64::from(tile.width());
        cg.for_each(cg.i64(0), block.unit.rows, step, |first| {
            block.tile_of_rows(cg, gradients, RowTile { first, end: block.unit.rows });
        });
    });
}

impl<'c> Block<'_, 'c> {
    fn place(&self, cg: &Cg<'c>, n: u32) -> Val<'c> {
        at(cg, self.kernel.scratch, n)
    }

    /// dk and dv start at zero.
    fn clear(&self, cg: &Cg<'c>) {
        let zero = cg.zero(Elem::F32.x(self.tile.lanes));
        cg.for_each(cg.i64(0), self.args.keys, 1, |t| {
            for d in self.dk.iter().chain([&self.dv]) {
                let row = d.from(cg, t).ptr;
                for (first, mask) in rows::columns(cg, self.tile.lanes, d.width) {
                    cg.store_tail(zero, at(cg, row, first), mask);
                }
            }
        });
    }

    fn tile_of_rows(&self, cg: &Cg<'c>, gradients: &GradientArgs<'c>, rows: RowTile<'c>) {
        let Block { shape, layout, tile, args, unit, .. } = self;
        let by_row = (self.place(cg, layout.q_rows), layout.q_row);
        let place = self.place(cg, layout.q);
        let q = rows::load_queries(cg, shape, args, unit, (tile, &rows), by_row, place);
        let (lse, delta) = self.load_rows(cg, gradients, &rows);
        let sight = self.place(cg, layout.sight);
        let sight = Sight::of(cg, shape, args, unit, (tile, &rows), sight);
        let (p, ds) = (self.place(cg, layout.p), self.place(cg, layout.ds));
        let (d_o, dq) = (self.place(cg, layout.d_o), self.place(cg, layout.dq));
        rows::clear(cg, tile.lanes, dq, layout.q_row * tile.width());

        cg.for_each(cg.i64(0), sight.end, i64::from(BLOCK_KEYS), |t0| {
            let n = cg.min(cg.sub(sight.end, t0), i64::from(BLOCK_KEYS));
            let room = (self.place(cg, layout.keys), BLOCK_KEYS);
            let (keys, v) = rows::keys_and_values(cg, shape, unit, (t0, n), room, None);
            let terms: Vec<_> = keys.iter().copied().zip(q.iter().copied()).collect();
            block_scores(cg, tile, &terms, &sight, (t0, n), p);
            block_products(cg, tile, &[(v, d_o)], n, ds);
            self.derive(cg, n, &lse, &delta);
            for ((k, dk), first) in keys.iter().zip(&self.dk).zip(shape.q_firsts()) {
                let to = at(cg, dq, first * tile.width());
                mix(cg, tile, *k, ds, to, n, None);
                let q = at(cg, by_row.0, first);
                self.add_outer(cg, ds, (q, layout.q_row), dk.from(cg, t0), n);
            }
            let d_o = (self.place(cg, layout.d_o_rows), layout.d_o_row);
            self.add_outer(cg, p, d_o, self.dv.from(cg, t0), n);
        });
        self.store_dq(cg, gradients, &rows);
    }

    /// Brings do into scratch, row by row and transposed; gives each lane's lse (of base 2) and
    /// `scale · Σ do o`.
    fn load_rows(
        &self,
        cg: &Cg<'c>,
        gradients: &GradientArgs<'c>,
        rows: &RowTile<'c>,
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let Block { shape, layout, tile, args, unit, .. } = self;
        let width = shape.v.width;
        let d_o_rows = self.place(cg, layout.d_o_rows);
        let (lse, delta) = (self.place(cg, layout.lse), self.place(cg, layout.delta));
        let vector = Elem::F32.x(tile.lanes);
        rows.each_lane(cg, shape, unit, tile, |row| {
            let to = cg.at(d_o_rows, Elem::F32, cg.mul(row.lane, i64::from(layout.d_o_row)));
            let d_o = rows::row_of(cg, unit, &gradients.d_o, &row);
            let o = rows::row_of(cg, unit, &gradients.o, &row);
            let mut sum = cg.zero(vector);
            for (first, mask) in rows::columns(cg, tile.lanes, width) {
                let d_o = d_o.load(cg, tile.lanes, first, mask);
                let o = o.load(cg, tile.lanes, first, mask);
                sum = cg.fma(d_o, o, sum);
                cg.store_aligned(d_o, at(cg, to, first), 4 * tile.lanes);
            }
            let sum = cg.mul(cg.reduce_add(sum), args.scale);
            cg.store(sum, cg.at(delta, Elem::F32, row.lane));
            let from = rows::statistic(cg, shape, args, unit, args.lse, &row);
            cg.store(cg.load(Elem::F32.x(1), from), cg.at(lse, Elem::F32, row.lane));
        });
        let from = (d_o_rows, layout.d_o_row);
        rows::to_lanes(cg, tile, from, self.place(cg, layout.d_o), width, None);
        let len = rows.len(cg, tile);
        // Lanes past the last row, and rows that see nothing, get weights of 0.
        let far = cg.float(vector, f64::INFINITY);
        let exponent = |(v, x): (usize, Val<'c>)| {
            let left = cg.sub(len, (v as u32 * tile.lanes) as i64);
            let real = cg.mask_below(left, tile.lanes);
            let seeing = cg.cmp(Cmp::Ne, x, f32::NEG_INFINITY);
            cg.select(cg.and(real, seeing), cg.mul(x, std::f32::consts::LOG2_E), far)
        };
        let lse = tile.load(cg, lse).into_iter().enumerate().map(exponent).collect();
        (lse, tile.load(cg, delta))
    }

    /// Scores become weights; derivatives of the weights become those of the scores.
    fn derive(&self, cg: &Cg<'c>, n: Val<'c>, lse: &[Val<'c>], delta: &[Val<'c>]) {
        let tile = &self.tile;
        let (p, ds) = (self.place(cg, self.layout.p), self.place(cg, self.layout.ds));
        let scale = cg.splat(self.args.scale, tile.lanes);
        cg.for_each(cg.i64(0), n, 1, |t| {
            let line = cg.mul(t, i64::from(tile.width()));
            let (p, ds) = (cg.at(p, Elem::F32, line), cg.at(ds, Elem::F32, line));
            let weigh = |(x, lse): (Val<'c>, &Val<'c>)| exp2(cg, cg.sub(x, *lse));
            let weights: Vec<Val> = tile.load(cg, p).into_iter().zip(lse).map(weigh).collect();
            let centred = |(x, delta): (Val<'c>, &Val<'c>)| cg.fma(x, scale, cg.neg(*delta));
            let slopes = tile.load(cg, ds).into_iter().zip(delta).map(centred);
            let slopes: Vec<Val> = slopes.zip(&weights).map(|(s, p)| cg.mul(s, *p)).collect();
            let narrow = |x: Vec<Val<'c>>| -> Vec<Val<'c>> {
                x.into_iter().map(|x| rounded(cg, x, self.shape.elem)).collect()
            };
            tile.store(cg, &narrow(weights), p);
            tile.store(cg, &narrow(slopes), ds);
        });
    }

    /// `to[t, d] += Σ_row a[t, row] · b[row, d]` for `t` below `n`.
    fn add_outer(
        &self,
        cg: &Cg<'c>,
        a: Val<'c>,
        (b, stride): (Val<'c>, u32),
        to: Source<'c>,
        n: Val<'c>,
    ) {
        let tile = &self.tile;
        let group = |col: Val<'c>, vectors: u32, mask: Option<Val<'c>>| {
            let b = Matrix { ptr: cg.at(b, Elem::F32, col), stride, vectors };
            let to = Source { ptr: cg.at(to.ptr, Elem::F32, col), ..to };
            let mut first = cg.i64(0);
            for size in [tile.rows, tile.rows / 3, 1] {
                let end = cg.sub(n, cg.rem(cg.sub(n, first), i64::from(size)));
                self.outer_rows(cg, a, b, to, (first, end, size), mask);
                first = end;
            }
        };
        let step = tile.width();
        let whole = to.width - to.width % step;
        cg.for_each(cg.i64(0), cg.i64(whole.into()), i64::from(step), |col| {
            group(col, tile.vectors, None);
        });
        for (first, mask) in rows::columns(cg, tile.lanes, to.width) {
            if first >= whole {
                group(cg.i64(first.into()), 1, mask);
            }
        }
    }

    /// Rows `first..end` of it, `size` at a time.
    fn outer_rows(
        &self,
        cg: &Cg<'c>,
        a: Val<'c>,
        b: Matrix<'c>,
        to: Source<'c>,
        (first, end, size): (Val<'c>, Val<'c>, u32),
        mask: Option<Val<'c>>,
    ) {
        let tile = &self.tile;
        let vector = Elem::F32.x(tile.lanes);
        let offsets: Vec<Val> = (0..size).map(|r| cg.i64((r * tile.width()).into())).collect();
        cg.for_each(first, end, i64::from(size), |t| {
            let a = cg.at(a, Elem::F32, cg.mul(t, i64::from(tile.width())));
            let place = |i: u32| {
                let (r, v) = (i / b.vectors, i % b.vectors);
                at(cg, to.from(cg, cg.add(t, i64::from(r))).ptr, v * tile.lanes)
            };
            let n_sums = size * b.vectors;
            let acc: Vec<Val> = (0..n_sums).map(|i| cg.load_tail(vector, place(i), mask)).collect();
            let acc = dots(cg, tile, a, &offsets, b, tile.width(), &acc);
            for (i, sum) in acc.iter().enumerate() {
                cg.store_tail(*sum, place(i as u32), mask);
            }
        });
    }

    fn store_dq(&self, cg: &Cg<'c>, gradients: &GradientArgs<'c>, rows: &RowTile<'c>) {
        let Block { shape, layout, tile, unit, .. } = self;
        let by_row = self.place(cg, layout.q_rows);
        let firsts = shape.q_firsts();
        let dq = self.place(cg, layout.dq);
        rows::from_lanes(cg, tile, dq, (by_row, layout.q_row), layout.q_row);
        rows.each_row(cg, shape, unit, tile, |row| {
            let from = cg.at(by_row, Elem::F32, cg.mul(row.lane, i64::from(layout.q_row)));
            for ((dq, part), first) in gradients.dq.iter().zip(&shape.parts).zip(&firsts) {
                let to = rows::row_of(cg, unit, dq, &row);
                rows::store_row(cg, tile.lanes, at(cg, from, *first), to, part.width);
            }
        });
    }
}
