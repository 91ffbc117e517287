//! Query rows between where they lie and a tile's lanes.

use weft_codegen::emit::{Cg, Elem, Ty, Val};

use super::Shape;
use super::args::{Args, PagesArgs, Source, Unit, View};
use super::tile::{Tile, at, padded};

/// A tile of the unit's rows. Lanes beyond the last row repeat it.
#[derive(Clone, Copy)]
pub struct RowTile<'c> {
    pub first: Val<'c>,
    /// The end of the block's rows.
    pub end: Val<'c>,
}

/// One row: its lane, its query and its head.
#[derive(Clone, Copy)]
pub struct Row<'c> {
    pub lane: Val<'c>,
    pub query: Val<'c>,
    pub head: Val<'c>,
}

impl<'c> RowTile<'c> {
    /// The number of rows.
    pub fn len(&self, cg: &Cg<'c>, tile: &Tile) -> Val<'c> {
        cg.min(cg.sub(self.end, self.first), i64::from(tile.width()))
    }

    /// Every lane of the tile.
    pub fn each_lane(
        &self,
        cg: &Cg<'c>,
        shape: &Shape,
        unit: &Unit<'c>,
        tile: &Tile,
        body: impl FnOnce(Row<'c>),
    ) {
        cg.for_each(cg.i64(0), cg.i64(tile.width().into()), 1, |lane| {
            let row = cg.min(cg.add(self.first, lane), cg.sub(self.end, 1));
            let (query, head) = shape.place(cg, unit, row);
            body(Row { lane, query, head });
        });
    }

    /// Every row of the tile.
    pub fn each_row(
        &self,
        cg: &Cg<'c>,
        shape: &Shape,
        unit: &Unit<'c>,
        tile: &Tile,
        body: impl FnOnce(Row<'c>),
    ) {
        cg.for_each(cg.i64(0), self.len(cg, tile), 1, |lane| {
            let (query, head) = shape.place(cg, unit, cg.add(self.first, lane));
            body(Row { lane, query, head });
        });
    }
}

/// The start of a row in an operand.
pub fn row_of<'c>(cg: &Cg<'c>, unit: &Unit<'c>, view: &View<'c>, row: &Row<'c>) -> Line<'c> {
    let head = view.of(cg, unit.batch, row.head);
    Line { ptr: cg.at(head, view.elem, cg.mul(row.query, view.row)), elem: view.elem }
}

/// Where the query row's element of an f32 `[B, H, S]` is.
pub fn statistic<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    unit: &Unit<'c>,
    base: Val<'c>,
    row: &Row<'c>,
) -> Val<'c> {
    let line = cg.add(cg.mul(unit.batch, shape.heads), row.head);
    cg.at(base, Elem::F32, cg.add(cg.mul(line, args.queries), row.query))
}

/// The vectors that cover `width` elements, each with the mask it needs.
pub fn columns<'c>(cg: &Cg<'c>, lanes: u32, width: u32) -> Vec<(u32, Option<Val<'c>>)> {
    let mask = |first: u32| {
        let left = width - first;
        (left < lanes).then(|| cg.mask_below(cg.i64(left.into()), lanes))
    };
    (0..width).step_by(lanes as usize).map(|first| (first, mask(first))).collect()
}

/// Elements of a row outside scratch: what they are, and where.
#[derive(Clone, Copy)]
pub struct Line<'c> {
    pub ptr: Val<'c>,
    pub elem: Elem,
}

impl<'c> Line<'c> {
    /// `lanes` elements from `first` on as f32; zero where `mask` fails.
    pub fn load(&self, cg: &Cg<'c>, lanes: u32, first: u32, mask: Option<Val<'c>>) -> Val<'c> {
        let from = cg.at(self.ptr, self.elem, i64::from(first));
        cg.cast(cg.load_tail(self.elem.x(lanes), from, mask), Elem::F32)
    }

    /// Stores f32 lanes as the elements from `first` on.
    pub fn store(&self, cg: &Cg<'c>, x: Val<'c>, first: u32, mask: Option<Val<'c>>) {
        let place = cg.at(self.ptr, self.elem, i64::from(first));
        cg.store_tail(cg.cast(x, self.elem), place, mask);
    }
}

/// Copies a row's `width` elements; in scratch what follows them up to a whole vector becomes zero.
pub fn load_row<'c>(cg: &Cg<'c>, lanes: u32, from: Line<'c>, to: Val<'c>, width: u32) {
    for (first, mask) in columns(cg, lanes, width) {
        cg.store_aligned(from.load(cg, lanes, first, mask), at(cg, to, first), 4 * lanes);
    }
}

/// Copies a row's `width` elements out of scratch.
pub fn store_row<'c>(cg: &Cg<'c>, lanes: u32, from: Val<'c>, to: Line<'c>, width: u32) {
    for (first, mask) in columns(cg, lanes, width) {
        let x = cg.load_aligned(Elem::F32.x(lanes), at(cg, from, first), 4 * lanes);
        to.store(cg, x, first, mask);
    }
}

/// Keys `t0..t0 + n` and their values, in f32: where they lie, or widened at `scratch`. `paged` are
/// their rows in a pool, where they lie in pages.
pub fn keys_and_values<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    unit: &Unit<'c>,
    (t0, n): (Val<'c>, Val<'c>),
    (scratch, keys_max): (Val<'c>, u32),
    paged: Option<Val<'c>>,
) -> (Vec<Source<'c>>, Source<'c>) {
    let mut used = 0;
    let mut block = |source: &Source<'c>| {
        let source = match paged {
            Some(_) => Source { rows: paged, ..*source },
            None => source.from(cg, t0),
        };
        if !shape.is_narrow() {
            return source;
        }
        let to = at(cg, scratch, used);
        used += keys_max * padded(source.width);
        widened(cg, &source, n, to)
    };
    let k = unit.k.iter().map(&mut block).collect();
    (k, block(&unit.v))
}

/// The rows of the pool that keys `t0..t0 + n` of a batch are, as i64 at `to`. A page outside the
/// pool counts as its nearest.
pub fn rows_of_pages<'c>(
    cg: &Cg<'c>,
    (pages, page): (&PagesArgs<'c>, i64),
    batch: Val<'c>,
    (t0, n): (Val<'c>, Val<'c>),
    to: Val<'c>,
) -> Val<'c> {
    let table = cg.at(pages.table, Elem::I32, cg.mul(batch, pages.n));
    let last = cg.sub(pages.pool, 1);
    cg.for_each(cg.i64(0), n, 1, |i| {
        let t = cg.add(t0, i);
        let id = cg.load(Ty::I32, cg.at(table, Elem::I32, cg.div(t, page)));
        let id = cg.min(cg.max(cg.cast(id, Elem::I64), 0), last);
        let row = cg.add(cg.mul(id, page), cg.rem(t, page));
        cg.store(row, cg.at(to, Elem::I64, i));
    });
    to
}

/// f32 of scratch that [`rows_of_pages`] needs for `keys_max` keys.
pub fn paged_words(shape: &Shape, keys_max: u32) -> u32 {
    if shape.page.is_some() { 2 * padded(keys_max) } else { 0 }
}

/// f32 of scratch that [`keys_and_values`] needs.
pub fn widened_words(shape: &Shape, keys_max: u32) -> u32 {
    if shape.is_narrow() { keys_max * (shape.q_width() + padded(shape.v.width)) } else { 0 }
}

fn widened<'c>(cg: &Cg<'c>, from: &Source<'c>, n: Val<'c>, to: Val<'c>) -> Source<'c> {
    let row = cg.i64(padded(from.width).into());
    cg.for_each(cg.i64(0), n, 1, |t| {
        let at = cg.at(from.ptr, from.elem, from.behind(cg, t));
        let line = Line { ptr: at, elem: from.elem };
        let to = cg.at(to, Elem::F32, cg.mul(t, row));
        load_row(cg, cg.target.lanes, line, to, from.width);
    });
    Source { ptr: to, elem: Elem::F32, row, width: from.width, rows: None }
}

/// `to[d, lane] = factor · from[lane, d]`, both in scratch; `from` has rows `stride` apart, and the
/// padding after `width` is moved too.
pub fn to_lanes<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    (from, stride): (Val<'c>, u32),
    to: Val<'c>,
    width: u32,
    factor: Option<Val<'c>>,
) {
    let n = tile.lanes;
    each_square(cg, tile, width, |d, lane| {
        let from = cg.at(from, Elem::F32, cg.add(cg.mul(lane, i64::from(stride)), d));
        let to = cg.at(to, Elem::F32, cg.add(cg.mul(d, i64::from(tile.width())), lane));
        let row = |i: u32| cg.load_aligned(Elem::F32.x(n), at(cg, from, i * stride), 4 * n);
        let rows: Vec<Val> = (0..n).map(row).collect();
        for (i, x) in cg.transpose(&rows).into_iter().enumerate() {
            let x = factor.map_or(x, |f| cg.mul(x, cg.splat(f, n)));
            cg.store_aligned(x, at(cg, to, i as u32 * tile.width()), 4 * n);
        }
    });
}

/// `to[lane, d] = from[d, lane]`, both in scratch; `to` has rows `stride` apart, and the padding
/// after `width` is moved too.
pub fn from_lanes<'c>(
    cg: &Cg<'c>,
    tile: &Tile,
    from: Val<'c>,
    (to, stride): (Val<'c>, u32),
    width: u32,
) {
    let n = tile.lanes;
    each_square(cg, tile, width, |d, lane| {
        let from = cg.at(from, Elem::F32, cg.add(cg.mul(d, i64::from(tile.width())), lane));
        let to = cg.at(to, Elem::F32, cg.add(cg.mul(lane, i64::from(stride)), d));
        let row = |i: u32| tile.load_one(cg, Elem::F32, at(cg, from, i * tile.width()), 0);
        let rows: Vec<Val> = (0..n).map(row).collect();
        for (i, x) in cg.transpose(&rows).into_iter().enumerate() {
            cg.store_aligned(x, at(cg, to, i as u32 * stride), 4 * n);
        }
    });
}

/// The squares of a vector's lanes that cover `width` by the tile: a loop, since a transposition is
/// some hundred instructions.
fn each_square<'c>(cg: &Cg<'c>, tile: &Tile, width: u32, body: impl FnOnce(Val<'c>, Val<'c>)) {
    let n = i64::from(tile.lanes);
    let zero = cg.i64(0);
    cg.for_each(zero, cg.i64(width.into()), n, |d| {
        cg.for_each(zero, cg.i64(tile.width().into()), n, |lane| body(d, lane));
    });
}

/// Brings the rows' q into scratch, once row by row (rows `stride` apart) and once transposed,
/// times `scale / ln 2`, which makes scores exponents of 2. Gives each part's transposed q.
pub fn load_queries<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    unit: &Unit<'c>,
    (tile, rows): (&Tile, &RowTile<'c>),
    (by_row, stride): (Val<'c>, u32),
    transposed: Val<'c>,
) -> Vec<Val<'c>> {
    let firsts = shape.q_firsts();
    rows.each_lane(cg, shape, unit, tile, |row| {
        let to = cg.at(by_row, Elem::F32, cg.mul(row.lane, i64::from(stride)));
        for ((q, part), first) in args.q.iter().zip(&shape.parts).zip(&firsts) {
            load_row(cg, tile.lanes, row_of(cg, unit, q, &row), at(cg, to, *first), part.width);
        }
    });
    let scale = cg.mul(args.scale, std::f32::consts::LOG2_E);
    to_lanes(cg, tile, (by_row, stride), transposed, shape.q_width(), Some(scale));
    firsts.iter().map(|first| at(cg, transposed, first * tile.width())).collect()
}

/// Fills `n` f32 (whole vectors) of scratch with zero.
pub fn clear<'c>(cg: &Cg<'c>, lanes: u32, ptr: Val<'c>, n: u32) {
    let zero = cg.zero(Elem::F32.x(lanes));
    cg.for_each(cg.i64(0), cg.i64(n.into()), i64::from(lanes), |i| {
        cg.store_aligned(zero, cg.at(ptr, Elem::F32, i), 4 * lanes);
    });
}
