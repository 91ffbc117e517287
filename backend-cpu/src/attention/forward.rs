//! Forward: one pass over the keys with a running maximum and sum.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Val};
use weft_codegen::math;

use super::Shape;
use super::args::{Args, Unit};
use super::codes::{self, Kept};
use super::rows::{self, RowTile};
use super::scores::{SIGHT_ARRAYS, Sight, block_scores};
use super::tile::{ROW_STEP, TILE_ROWS_MAX, Tile, at, exp2, mix, padded, rounded};

/// Keys of a block: the same on every variant, so that a row's chain is too. Its scores are 12 KiB.
const BLOCK_KEYS: u32 = 96;

/// Where things lie in scratch, in f32.
struct Layout {
    /// Row by row: q on the way in, o on the way out.
    rows: u32,
    /// A row of it.
    row: u32,
    /// Transposed q, scaled.
    q: u32,
    /// Transposed o.
    o: u32,
    scores: u32,
    lse: u32,
    sight: u32,
    /// Keys and values of a block, where they are not f32.
    keys: u32,
    /// Rows of a block's keys in the pool, where they lie in pages.
    paged: u32,
    /// Rows of o, where they end as codes.
    kept: u32,
    end: u32,
}

impl Layout {
    fn of(shape: &Shape) -> Layout {
        let q_width = shape.q_width();
        let o_width = padded(shape.v.width);
        let row = q_width.max(o_width);
        let q = row * TILE_ROWS_MAX;
        let o = q + q_width * TILE_ROWS_MAX;
        let scores = o + o_width * TILE_ROWS_MAX;
        let lse = scores + (BLOCK_KEYS + ROW_STEP) * TILE_ROWS_MAX;
        let sight = lse + TILE_ROWS_MAX;
        let keys = sight + SIGHT_ARRAYS * TILE_ROWS_MAX;
        let paged = keys + rows::widened_words(shape, BLOCK_KEYS);
        let kept = paged + rows::paged_words(shape, BLOCK_KEYS);
        let end = kept + shape.codes_words();
        Layout { rows: 0, row, q, o, scores, lse, sight, keys, paged, kept, end }
    }
}

pub fn scratch_bytes(shape: &Shape) -> u64 {
    4 * u64::from(Layout::of(shape).end)
}

/// Emits the kernel. Blocks are (batch, groups of heads, block of query rows), the last fastest.
pub fn emit(cg: &Cg, name: &str, shape: &Shape) {
    let tile = Tile::new(&cg.target, shape.block_rows);
    shape.kernel(cg, name, false, |kernel, args, block| {
        let (outer, index) = (cg.div(block, args.blocks), cg.rem(block, args.blocks));
        let sets = shape.units() / shape.block_units;
        let (batch, set) = (cg.div(outer, sets), cg.rem(outer, sets));
        let step = i64::from(shape.block_rows);
        let first = cg.mul(index, step);
        let unit0 = cg.mul(set, shape.block_units);
        let place = (first, cg.mul(unit0, shape.group));
        let kept = codes::kept(cg, shape, kernel, place, Layout::of(shape).kept);
        let to = Written { kernel, args, kept };
        cg.for_each(unit0, cg.add(unit0, shape.block_units), 1, |unit| {
            let unit = shape.unit(cg, args, batch, unit);
            let end = cg.min(cg.add(first, step), unit.rows);
            cg.for_each(first, end, i64::from(tile.width()), |first| {
                tile_of_rows(cg, shape, &to, &unit, &tile, RowTile { first, end });
            });
        });
        if let Some(kept) = kept {
            kept.encode(cg, shape, args, batch);
        }
    });
}

/// Where a block writes.
struct Written<'a, 'c> {
    kernel: &'a Kernel<'c>,
    args: &'a Args<'c>,
    kept: Option<Kept<'c>>,
}

fn tile_of_rows<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    to: &Written<'_, 'c>,
    unit: &Unit<'c>,
    tile: &Tile,
    rows: RowTile<'c>,
) {
    let Written { kernel, args, .. } = to;
    let layout = Layout::of(shape);
    let place = |n: u32| at(cg, kernel.scratch, n);
    let (o, scores) = (place(layout.o), place(layout.scores));
    let by_row = (place(layout.rows), layout.row);
    let q = rows::load_queries(cg, shape, args, unit, (tile, &rows), by_row, place(layout.q));
    let sight = Sight::of(cg, shape, args, unit, (tile, &rows), place(layout.sight));
    rows::clear(cg, tile.lanes, o, shape.v.width * tile.width());

    let vector = Elem::F32.x(tile.lanes);
    let n_vectors = tile.vectors as usize;
    let lowest = cg.float(vector, f64::NEG_INFINITY);
    let mut init = vec![lowest; n_vectors];
    init.extend(vec![cg.zero(vector); n_vectors]);
    let carried = cg.for_(cg.i64(0), sight.end, i64::from(BLOCK_KEYS), &init, |t0, carried| {
        let (top, sum) = carried.split_at(n_vectors);
        let n = cg.min(cg.sub(sight.end, t0), i64::from(BLOCK_KEYS));
        let room = (place(layout.keys), BLOCK_KEYS);
        let pages = args.pages.as_ref().zip(shape.page);
        let paged = pages
            .map(|pages| rows::rows_of_pages(cg, pages, unit.batch, (t0, n), place(layout.paged)));
        let (k, v) = rows::keys_and_values(cg, shape, unit, (t0, n), room, paged);
        let terms: Vec<_> = k.into_iter().zip(q.iter().copied()).collect();
        let largest = block_scores(cg, tile, &terms, &sight, (t0, n), scores);
        let next: Vec<Val> = top.iter().zip(&largest).map(|(a, b)| cg.max(*b, *a)).collect();
        // A row that has seen nothing yet subtracts 0: its weights are then 0, not NaN.
        let base: Vec<Val> = next.iter().map(|x| finite_or_zero(cg, *x)).collect();
        let correction: Vec<Val> =
            top.iter().zip(&base).map(|(t, b)| exp2(cg, cg.sub(*t, *b))).collect();
        let sum: Vec<Val> = sum.iter().zip(&correction).map(|(s, c)| cg.mul(*s, *c)).collect();
        let sum = weights(cg, shape, tile, (scores, n), &base, &sum);
        mix(cg, tile, v, scores, o, n, Some(&correction));
        [next, sum].concat()
    });
    let (top, sum) = carried.split_at(n_vectors);
    finish(cg, shape, to, unit, tile, &rows, top, sum);
}

fn finite_or_zero<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let nothing = cg.cmp(Cmp::Eq, x, f32::NEG_INFINITY);
    cg.select(nothing, cg.zero(x.ty), x)
}

/// Replaces scores by `2^(score - base)` and adds them to `sum`.
fn weights<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    tile: &Tile,
    (scores, n): (Val<'c>, Val<'c>),
    base: &[Val<'c>],
    sum: &[Val<'c>],
) -> Vec<Val<'c>> {
    cg.for_(cg.i64(0), n, 1, sum, |t, sum| {
        let row = cg.at(scores, Elem::F32, cg.mul(t, i64::from(tile.width())));
        let weigh = |(x, b): (Val<'c>, &Val<'c>)| exp2(cg, cg.sub(x, *b));
        let p: Vec<Val> = tile.load(cg, row).into_iter().zip(base).map(weigh).collect();
        let stored: Vec<Val> = p.iter().map(|p| rounded(cg, *p, shape.elem)).collect();
        tile.store(cg, &stored, row);
        sum.iter().zip(&p).map(|(s, p)| cg.add(*s, *p)).collect()
    })
}

/// Divides by the sum, writes or keeps o and writes lse.
#[expect(clippy::too_many_arguments, reason = "the state of one tile")]
fn finish<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    to: &Written<'_, 'c>,
    unit: &Unit<'c>,
    tile: &Tile,
    rows: &RowTile<'c>,
    top: &[Val<'c>],
    sum: &[Val<'c>],
) {
    let Written { kernel, args, kept } = to;
    let layout = Layout::of(shape);
    let place = |n: u32| at(cg, kernel.scratch, n);
    let one = cg.float(Elem::F32.x(tile.lanes), 1.0);
    let inverse: Vec<Val> = sum
        .iter()
        .map(|s| cg.select(cg.cmp(Cmp::Eq, *s, 0.0f32), cg.zero(s.ty), cg.div(one, *s)))
        .collect();
    let lse: Vec<Val> = top
        .iter()
        .zip(sum)
        .map(|(t, s)| cg.fma(*t, cg.float(t.ty, std::f64::consts::LN_2), math::ln(cg, *s)))
        .collect();
    tile.store(cg, &lse, place(layout.lse));
    let to = (place(layout.rows), layout.row);
    cg.for_each(cg.i64(0), cg.i64(shape.v.width.into()), 1, |d| {
        let line = cg.mul(d, i64::from(tile.width()));
        let line = cg.at(place(layout.o), Elem::F32, line);
        let sums = tile.load(cg, line);
        let o: Vec<Val> = sums.iter().zip(&inverse).map(|(x, f)| cg.mul(*x, *f)).collect();
        tile.store(cg, &o, line);
    });
    rows::from_lanes(cg, tile, place(layout.o), to, shape.v.width);
    rows.each_row(cg, shape, unit, tile, |row| {
        let line = cg.mul(row.lane, i64::from(layout.row));
        let from = cg.at(place(layout.rows), Elem::F32, line);
        if let Some(o) = &args.o {
            rows::store_row(cg, tile.lanes, from, rows::row_of(cg, unit, o, &row), shape.v.width);
        }
        if let Some(kept) = kept {
            kept.put(cg, shape, tile.lanes, from, &row);
        }
        let value = cg.load(Elem::F32.x(1), cg.at(place(layout.lse), Elem::F32, row.lane));
        cg.store(value, rows::statistic(cg, shape, args, unit, args.lse, &row));
    });
}
