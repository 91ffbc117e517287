//! The packed product: tiles of C, each packed and computed by one thread.
//!
//! Tiles are numbered group by group, in a group column by column of tiles. A call does a run of
//! them, so a packed operand is still there when the next tile needs it again and k is one chunk.
//! In a tile:
//!
//! ```text
//! for each chunk of k:  pack A [rows, chunk], pack B [chunk, cols]
//!     for each panel of B, for each panel of A:  micro-kernel
//! ```
//!
//! Sums of all but the last chunk rest in the scratch.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Val};

use super::micro::{self, CHUNK_WORDS, Packing};
use super::pack::{self, Along, Block};
use super::{Args, Group, Shape, Unit};

/// Largest tile. Rows are a multiple of every panel height, columns of every panel width.
pub const TILE_ROWS_MAX: u32 = 384;
pub const TILE_COLS_MAX: u32 = 512;
/// What rows and columns of tiles are rounded to, the same on every CPU variant.
pub const ROW_STEP: u32 = 12;
pub const COL_STEP: u32 = 32;

/// Bytes of scratch: packed A, packed B, sums. The most any CPU variant needs.
pub const SCRATCH_BYTES: u64 = A_BYTES + B_BYTES + SUM_BYTES;

/// Panels by row have a line more than the chunk to a row; panels by k less than that.
pub const A_BYTES: u64 = TILE_ROWS_MAX as u64 * (CHUNK_WORDS as u64 + 16) * 4;
pub const B_BYTES: u64 = TILE_COLS_MAX as u64 * CHUNK_WORDS as u64 * 4;
pub const SUM_BYTES: u64 = TILE_ROWS_MAX as u64 * TILE_COLS_MAX as u64 * 4;

/// A tile of C within its group.
pub struct Tile<'c> {
    pub row: Val<'c>,
    pub col: Val<'c>,
    pub rows: Val<'c>,
    pub cols: Val<'c>,
}

struct Scratch<'c> {
    a: Val<'c>,
    b: Val<'c>,
    sums: Val<'c>,
}

/// Emits the kernel: its blocks share out all tiles evenly.
pub fn emit(cg: &Cg, name: &str, shape: &Shape) {
    let packing = Packing::new(&cg.target, shape);
    shape.kernel(cg, name, |kernel, args| {
        let total = n_tiles(cg, shape, args);
        let share = |block| cg.div(cg.mul(total, block), cg.max(args.grid, 1));
        let (first, last) = (share(kernel.begin), share(kernel.end));
        // The number of tiles before the group.
        cg.for_(cg.i64(0), args.groups, 1, &[cg.i64(0)], |index, before| {
            let group = shape.group(cg, args, index);
            let (down, across) = tiles_of(cg, args, &group);
            let after = cg.add(before[0], cg.mul(down, across));
            let lo = cg.sub(cg.max(first, before[0]), before[0]);
            let hi = cg.sub(cg.min(last, after), before[0]);
            group_tiles(cg, &packing, shape, args, kernel, &group, (lo, hi));
            vec![after]
        });
    });
}

/// Tiles down and across one group.
pub fn tiles_of<'c>(cg: &Cg<'c>, args: &Args<'c>, group: &Group<'c>) -> (Val<'c>, Val<'c>) {
    (cg.div_ceil(group.m, args.tile_rows), cg.div_ceil(args.n, args.tile_cols))
}

pub fn n_tiles<'c>(cg: &Cg<'c>, shape: &Shape, args: &Args<'c>) -> Val<'c> {
    let of = |index| {
        let (down, across) = tiles_of(cg, args, &shape.group(cg, args, index));
        cg.mul(down, across)
    };
    cg.for_(cg.i64(0), args.groups, 1, &[cg.i64(0)], |i, sum| vec![cg.add(sum[0], of(i))])[0]
}

/// Size of the parts that cover `size` in `parts` nearly even parts, a multiple of `step`.
fn even_part<'c>(cg: &Cg<'c>, size: Val<'c>, parts: Val<'c>, step: u32) -> Val<'c> {
    let steps = cg.div_ceil(size, i64::from(step));
    cg.mul(cg.div_ceil(steps, cg.max(parts, 1)), i64::from(step))
}

/// Tile `y` down and `x` across.
pub fn tile_of<'c>(
    cg: &Cg<'c>,
    args: &Args<'c>,
    group: &Group<'c>,
    (y, x): (Val<'c>, Val<'c>),
) -> Tile<'c> {
    let (down, across) = tiles_of(cg, args, group);
    let tile_rows = even_part(cg, group.m, down, ROW_STEP);
    let tile_cols = even_part(cg, args.n, across, COL_STEP);
    let (row, col) = (cg.mul(y, tile_rows), cg.mul(x, tile_cols));
    Tile {
        row,
        col,
        rows: cg.min(cg.sub(group.m, row), tile_rows),
        cols: cg.min(cg.sub(args.n, col), tile_cols),
    }
}

impl<'c> Tile<'c> {
    /// Rounding up may leave the last tile of a row or column nothing to do.
    pub fn has_some(&self, cg: &Cg<'c>) -> Val<'c> {
        cg.and(cg.cmp(Cmp::Gt, self.rows, 0), cg.cmp(Cmp::Gt, self.cols, 0))
    }
}

fn group_tiles<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    kernel: &Kernel<'c>,
    group: &Group<'c>,
    (lo, hi): (Val<'c>, Val<'c>),
) {
    let (down, _) = tiles_of(cg, args, group);
    let scratch = Scratch {
        a: kernel.scratch,
        b: cg.offset(kernel.scratch, A_BYTES as i64),
        sums: cg.offset(kernel.scratch, (A_BYTES + B_BYTES) as i64),
    };
    let chunk = i64::from(CHUNK_WORDS * p.k_per_word);
    let single = cg.cmp(Cmp::Le, group.k, chunk);
    let none = cg.i64(-1);
    cg.for_(lo, hi, 1, &[none, none], |t, packed| {
        let (x, y) = (cg.div(t, down), cg.rem(t, down));
        let tile = tile_of(cg, args, group, (y, x));
        let some = tile.has_some(cg);
        let stale = |last: Val<'c>, now: Val<'c>| cg.or(cg.not(single), cg.cmp(Cmp::Ne, last, now));
        let pack = [stale(packed[0], y), stale(packed[1], x)];
        cg.if_else(
            some,
            || {
                chunks(cg, p, shape, args, group, &tile, &scratch, pack);
                vec![y, x]
            },
            || packed.to_vec(),
        )
    });
}

#[expect(clippy::too_many_arguments, reason = "the levels of one loop nest")]
fn chunks<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    tile: &Tile<'c>,
    scratch: &Scratch<'c>,
    pack: [Val<'c>; 2],
) {
    let chunk = i64::from(CHUNK_WORDS * p.k_per_word);
    // At least once, since a sum of nothing is stored too.
    cg.do_while(cg.i1(true), &[cg.i64(0)], |k0| {
        let k0 = k0[0];
        let k = cg.min(cg.sub(group.k, k0), chunk);
        let next = cg.add(k0, chunk);
        cg.when(pack[0], || {
            let block = a_block(cg, shape, args, group, (tile.row, tile.rows), (k0, k));
            pack::pack_a(cg, p, &block, scratch.a);
        });
        cg.when(pack[1], || {
            let block = b_block(cg, shape, args, group, (tile.col, tile.cols), (k0, k));
            pack::pack_b(cg, p, &block, scratch.b);
        });
        let is_first = cg.cmp(Cmp::Eq, k0, 0);
        let is_last = cg.cmp(Cmp::Ge, next, group.k);
        let words = cg.div_ceil(k, i64::from(p.k_per_word));
        panels(cg, p, shape, args, group, tile, scratch, &Chunk { words, is_first, is_last });
        (cg.cmp(Cmp::Lt, next, group.k), vec![next])
    });
}

pub fn a_block<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    (row, rows): (Val<'c>, Val<'c>),
    (k0, k): (Val<'c>, Val<'c>),
) -> Block<'c> {
    let [row_stride, col_stride] = args.a_strides;
    let first = cg.add(cg.mul(row, row_stride), cg.mul(k0, col_stride));
    Block {
        elem: shape.a,
        code: None,
        along: match shape.a_unit {
            Unit::Col => Along::K,
            Unit::Row => Along::Free,
            Unit::Neither => Along::Neither,
        },
        start: cg.at(group.a, shape.a, first),
        free_stride: row_stride,
        k_stride: col_stride,
        free: rows,
        k,
    }
}

pub fn b_block<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    (col, cols): (Val<'c>, Val<'c>),
    (k0, k): (Val<'c>, Val<'c>),
) -> Block<'c> {
    let [row_stride, col_stride] = args.b_strides;
    let first = cg.add(cg.mul(k0, row_stride), cg.mul(col, col_stride));
    Block {
        elem: shape.b,
        code: None,
        along: match shape.b_unit {
            Unit::Col => Along::Free,
            Unit::Row => Along::K,
            Unit::Neither => Along::Neither,
        },
        start: cg.at(group.b, shape.b, first),
        free_stride: col_stride,
        k_stride: row_stride,
        free: cols,
        k,
    }
}

struct Chunk<'c> {
    words: Val<'c>,
    is_first: Val<'c>,
    is_last: Val<'c>,
}

#[expect(clippy::too_many_arguments, reason = "the levels of one loop nest")]
fn panels<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    tile: &Tile<'c>,
    scratch: &Scratch<'c>,
    chunk: &Chunk<'c>,
) {
    let (height, width) = (i64::from(p.rows), i64::from(p.cols));
    let panels_down = cg.div_ceil(tile.rows, height);
    let only = cg.and(chunk.is_first, chunk.is_last);
    cg.for_each(cg.i64(0), cg.div_ceil(tile.cols, width), 1, |x| {
        let b = cg.at(scratch.b, Elem::F32, cg.mul(x, i64::from(p.b_panel_words())));
        let col = cg.mul(x, width);
        cg.for_each(cg.i64(0), panels_down, 1, |y| {
            let a = cg.at(scratch.a, Elem::F32, cg.mul(y, i64::from(p.a_panel_words())));
            let row = cg.mul(y, height);
            // Sums that need not rest between chunks pass through one place, near in the cache.
            let at = cg.add(cg.mul(x, panels_down), y);
            let at = cg.select(only, cg.i64(0), at);
            let sums = cg.at(scratch.sums, Elem::F32, cg.mul(at, height * width));
            let left = (cg.sub(tile.rows, row), cg.sub(tile.cols, col));
            let corner = (cg.add(tile.row, row), cg.add(tile.col, col));
            let panel = Panel { a, b, sums, left, corner };
            panel_pair(cg, p, shape, args, group, chunk, &panel);
        });
    });
}

/// Where a panel of A meets a panel of B.
#[derive(Clone, Copy)]
pub struct Panel<'c> {
    pub a: Val<'c>,
    pub b: Val<'c>,
    pub sums: Val<'c>,
    /// Rows and columns of the tile from here on.
    pub left: (Val<'c>, Val<'c>),
    /// Row and column in C.
    pub corner: (Val<'c>, Val<'c>),
}

/// Sums a panel pair over the chunk, and after the last chunk stores the sums in C.
fn panel_pair<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    chunk: &Chunk<'c>,
    panel: &Panel<'c>,
) {
    let (rows_left, cols_left) = panel.left;
    let sum = |rows: u32, vectors: u32| {
        let acc = sums(cg, p, chunk, panel, (rows, vectors));
        for (i, &sum) in (0..).zip(&acc) {
            let at = resting_place(cg, p, panel, (i / vectors, i % vectors));
            cg.store_aligned(sum, at, 4 * p.lanes);
        }
    };
    let rest_then_store = || {
        by_size(cg, p, panel.left, sum);
        cg.when(chunk.is_last, || {
            store_rows(cg, p, shape, args, group, panel);
        });
    };
    // What needs no look at edges, and little code, goes to C from registers.
    let plain = shape.epilogue.is_none() && shape.c_unit == Unit::Col;
    if !plain {
        return rest_then_store();
    }
    let whole = cg.and(
        cg.cmp(Cmp::Ge, rows_left, i64::from(p.rows)),
        cg.cmp(Cmp::Ge, cols_left, i64::from(p.cols)),
    );
    cg.if_else(
        cg.and(whole, chunk.is_last),
        || {
            let vectors = p.cols / p.lanes;
            let (row, col) = panel.corner;
            for (i, &sum) in (0..).zip(&sums(cg, p, chunk, panel, (p.rows, vectors))) {
                let row = cg.add(row, i64::from(i / vectors));
                let col = cg.add(col, i64::from(i % vectors * p.lanes));
                shape.finish(cg, args, group, (row, col), None, sum);
            }
            vec![]
        },
        || {
            rest_then_store();
            vec![]
        },
    );
}

/// The sums of the first `rows` and `vectors` up to and with this chunk, in registers.
fn sums<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    chunk: &Chunk<'c>,
    panel: &Panel<'c>,
    (rows, vectors): (u32, u32),
) -> Vec<Val<'c>> {
    let ty = Elem::F32.x(p.lanes);
    let n_sums = rows * vectors;
    let load = |i: u32| {
        let at = resting_place(cg, p, panel, (i / vectors, i % vectors));
        cg.load_aligned(ty, at, 4 * p.lanes)
    };
    let acc = cg.if_else(
        chunk.is_first,
        || vec![cg.zero(ty); n_sums as usize],
        || (0..n_sums).map(load).collect(),
    );
    micro::accumulate(cg, p, (rows, vectors), (panel.a, panel.b), chunk.words, &acc)
}

/// Where a vector of sums rests between chunks.
pub fn resting_place<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    panel: &Panel<'c>,
    (row, vector): (u32, u32),
) -> Val<'c> {
    cg.at(panel.sums, Elem::F32, i64::from(row * p.cols + vector * p.lanes))
}

/// Stores what rests of a panel pair.
pub fn store_rows<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    panel: &Panel<'c>,
) {
    let rows = cg.min(panel.left.0, i64::from(p.rows));
    cg.for_each(cg.i64(0), rows, 1, |r| store_row(cg, p, shape, args, group, panel, r));
}

/// Stores what rests of one row, `r`, of a panel pair.
fn store_row<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    panel: &Panel<'c>,
    r: Val<'c>,
) {
    let (row, col) = panel.corner;
    let sums = cg.at(panel.sums, Elem::F32, cg.mul(r, i64::from(p.cols)));
    cg.for_each(cg.i64(0), cg.min(panel.left.1, i64::from(p.cols)), i64::from(p.lanes), |x| {
        let mask = cg.mask_below(cg.sub(panel.left.1, x), p.lanes);
        let at = cg.at(sums, Elem::F32, x);
        let sum = cg.load_aligned(Elem::F32.x(p.lanes), at, 4 * p.lanes);
        shape.finish(cg, args, group, (cg.add(row, r), cg.add(col, x)), Some(mask), sum);
    });
}

/// Runs `body` for the smallest number of rows and vectors that has room for what is left.
pub fn by_size<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    (rows_left, cols_left): (Val<'c>, Val<'c>),
    body: impl Fn(u32, u32),
) {
    let third = p.rows / 3;
    let fits = |rows: u32| cg.cmp(Cmp::Le, rows_left, i64::from(rows));
    let run = |rows: u32, vectors: u32| {
        body(rows, vectors);
        vec![]
    };
    let few = || cg.if_else(fits(third), || run(third, 2), || run(2 * third, 2));
    let wide = || cg.if_else(fits(2 * third), few, || run(p.rows, 2));
    let narrow = cg.cmp(Cmp::Le, cols_left, i64::from(p.lanes));
    cg.if_else(narrow, || run(p.rows, 1), wide);
}
