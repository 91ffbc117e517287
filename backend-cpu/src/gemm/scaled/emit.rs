//! The packed product of codes: tiles as in `tile.rs`, whose k is done piece by piece.
//!
//! A *piece* is a block, or what of a longer block fits the packed form. A chunk packs as many
//! pieces as fit, each from a whole word on. For each panel of A and B, pieces are summed one by
//! one and folded into sums that rest in the scratch.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Ty, Val};
use weft_codegen::narrow;

use super::super::micro::{self, CHUNK_WORDS, Packing};
use super::super::pack;
use super::super::tile::{
    A_BYTES, B_BYTES, Panel, SUM_BYTES, TILE_COLS_MAX, TILE_ROWS_MAX, Tile, a_block, b_block,
    by_size, n_tiles, resting_place, store_rows, tile_of, tiles_of,
};
use super::super::{Args, Group, Grouping, N_SCALARS, Shape, Unit};
use super::{Coded, ScaledShape, Sum, hopper};

/// Words a piece takes are a multiple of this, so that vectors are stored aligned.
const PIECE_STEP: i64 = 16;
/// Pieces of a chunk, at most.
const PIECES_MAX: i64 = CHUNK_WORDS as i64 / PIECE_STEP;

const A_SCALE_BYTES: u64 = PIECES_MAX as u64 * TILE_ROWS_MAX as u64 * 4;
const B_SCALE_BYTES: u64 = PIECES_MAX as u64 * TILE_COLS_MAX as u64 * 4;
/// A panel pair of zeros: the sums before the first.
const ZERO_BYTES: u64 = 12 * 32 * 4;
/// Packed A and B, sums, partial sums, scales.
pub const SCRATCH_BYTES: u64 =
    A_BYTES + B_BYTES + 2 * SUM_BYTES + A_SCALE_BYTES + B_SCALE_BYTES + ZERO_BYTES;

/// How k is cut.
#[derive(Clone, Copy)]
struct Pieces {
    /// Words from one piece of a chunk to the next.
    words: i64,
    /// Terms of a piece, at most.
    terms: i64,
    per_chunk: i64,
    /// Blocks end at multiples of this.
    unit: Option<i64>,
    ends: Ends,
}

/// When a partial sum starts and is folded.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    EachPiece,
    /// Where a block does.
    EachBlock,
    /// Where k does.
    Once,
}

impl Pieces {
    fn of(s: &ScaledShape, p: &Packing) -> Pieces {
        let per_word = i64::from(p.k_per_word);
        let all = i64::from(CHUNK_WORDS) * per_word;
        let (terms, whole) = match s.unit {
            Some(unit) if unit <= all => (unit, true),
            _ => (all, false),
        };
        let words = ((terms + per_word - 1) / per_word + PIECE_STEP - 1) / PIECE_STEP * PIECE_STEP;
        let ends = match (s.scaled_products || s.unit.is_none(), whole) {
            (true, _) => Ends::Once,
            (false, true) => Ends::EachPiece,
            (false, false) => Ends::EachBlock,
        };
        Pieces { words, terms, per_chunk: i64::from(CHUNK_WORDS) / words, unit: s.unit, ends }
    }
}

/// What one group of the product works with.
pub(super) struct Work<'a, 'c> {
    pub s: &'a ScaledShape,
    pub p: Packing,
    pub group: &'a Group<'c>,
    args: &'a Args<'c>,
    pieces: Pieces,
    /// Where in the array's k the group starts.
    k_first: Val<'c>,
    scales: [Option<ScaleSource<'c>>; 2],
    scratch: Scratch<'c>,
}

#[derive(Clone, Copy)]
struct Scratch<'c> {
    a: Val<'c>,
    b: Val<'c>,
    sums: Val<'c>,
    partials: Val<'c>,
    zeros: Val<'c>,
    /// f32 `[piece, row of the tile]`, `[piece, column of the tile]`.
    scales: [Val<'c>; 2],
}

/// Where an operand's scales lie: the first, and their strides along the free dim and along k.
#[derive(Clone, Copy)]
pub(super) struct ScaleSource<'c> {
    pub ptr: Val<'c>,
    pub free_stride: Val<'c>,
    pub k_stride: Val<'c>,
}

/// One piece: its place in the chunk and its terms, counted in the group.
#[derive(Clone, Copy)]
pub(super) struct Piece<'c> {
    pub index: Val<'c>,
    first: Val<'c>,
    end: Val<'c>,
}

/// Where a panel of A meets a panel of B.
#[derive(Clone, Copy)]
pub(super) struct Meeting<'c> {
    pub panel: Panel<'c>,
    pub partials: Val<'c>,
    /// Row and column in the tile.
    row: Val<'c>,
    col: Val<'c>,
}

pub fn emit(cg: &Cg, name: &str, s: &ScaledShape) {
    let grouped = s.shape.grouping != Grouping::Batch;
    let n_scales = s.operands().iter().filter(|x| x.scales.is_some()).count();
    let n_buffers = 3 + n_scales + usize::from(grouped);
    cg.kernel(name, n_buffers, N_SCALARS + 3 * n_scales, |kernel| {
        let offsets = grouped.then(|| kernel.buffers[3 + n_scales]);
        let args = Args::of(kernel, offsets);
        let packing = packing(cg, s);
        each_group_tile(cg, &s.shape, &args, kernel, |group, tile| {
            let work = Work {
                s,
                p: packing,
                group,
                args: &args,
                pieces: Pieces::of(s, &packing),
                k_first: first_term(cg, s, &args, group),
                scales: scale_sources(cg, s, kernel, group),
                scratch: scratch(cg, kernel),
            };
            work.tile(cg, tile);
        });
    });
}

/// Shares out the tiles of all groups evenly to blocks, and runs `body` on those of this call.
fn each_group_tile<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    kernel: &Kernel<'c>,
    body: impl FnOnce(&Group<'c>, &Tile<'c>),
) {
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
        cg.for_each(lo, hi, 1, |t| {
            let tile = tile_of(cg, args, &group, (cg.rem(t, down), cg.div(t, down)));
            cg.when(tile.has_some(cg), || body(&group, &tile));
        });
        vec![after]
    });
}

pub(super) fn packing(cg: &Cg, s: &ScaledShape) -> Packing {
    let pairs = cg.target.bf16_dot && s.is_narrow() && s.sum == Sum::F32;
    Packing { k_per_word: if pairs { 2 } else { 1 }, ..Packing::new(&cg.target, &s.shape) }
}

fn scratch<'c>(cg: &Cg<'c>, kernel: &Kernel<'c>) -> Scratch<'c> {
    let mut used = 0;
    let mut take = |bytes: u64| {
        let at = cg.offset(kernel.scratch, used as i64);
        used += bytes;
        at
    };
    Scratch {
        a: take(A_BYTES),
        b: take(B_BYTES),
        sums: take(SUM_BYTES),
        partials: take(SUM_BYTES),
        scales: [take(A_SCALE_BYTES), take(B_SCALE_BYTES)],
        zeros: take(ZERO_BYTES),
    }
}

/// The term of the whole array that is the group's first.
fn first_term<'c>(cg: &Cg<'c>, s: &ScaledShape, args: &Args<'c>, group: &Group<'c>) -> Val<'c> {
    match (s.shape.grouping, args.offsets) {
        (Grouping::Inner, Some(offsets)) => {
            cg.cast(cg.load(Ty::I32, cg.at(offsets, Elem::I32, group.index)), Elem::I64)
        }
        _ => cg.i64(0),
    }
}

/// Scales of an operand that the form segments are those of the whole array.
pub(super) fn scale_sources<'c>(
    cg: &Cg<'c>,
    s: &ScaledShape,
    kernel: &Kernel<'c>,
    group: &Group<'c>,
) -> [Option<ScaleSource<'c>>; 2] {
    let moves = match s.shape.grouping {
        Grouping::Batch => [true, true],
        Grouping::Rows => [false, true],
        Grouping::Inner => [false, false],
    };
    let mut n = 0;
    let [a, b] = s.operands();
    [(a, moves[0], 1), (b, moves[1], 0)].map(|(x, moves, k_dim)| {
        let grouped = x.scales?;
        let strides = &kernel.scalars[N_SCALARS + 3 * n..];
        let (free_stride, k_stride) = (strides[1 - k_dim], strides[k_dim]);
        let base = kernel.buffers[3 + n];
        n += 1;
        let by = if moves { cg.mul(group.index, strides[2]) } else { cg.i64(0) };
        Some(ScaleSource { ptr: cg.at(base, grouped.elem, by), free_stride, k_stride })
    })
}

impl<'c> Work<'_, 'c> {
    fn tile(&self, cg: &Cg<'c>, tile: &Tile<'c>) {
        let words = i64::from(self.p.rows * self.p.cols);
        self.clear(cg, self.scratch.zeros, cg.i64(words));
        let down = cg.div_ceil(tile.rows, i64::from(self.p.rows));
        let panels = cg.mul(down, cg.div_ceil(tile.cols, i64::from(self.p.cols)));
        let nothing = cg.cmp(Cmp::Eq, self.group.k, 0);
        let rest = self.pieces.ends != Ends::EachPiece;
        cg.when(cg.or(nothing, cg.i1(rest)), || {
            self.clear(cg, self.scratch.sums, cg.mul(panels, words));
        });
        let some_left = |first: &[Val<'c>]| cg.cmp(Cmp::Lt, first[0], self.group.k);
        cg.while_(&[cg.i64(0)], some_left, |first| {
            let next = self.pack(cg, tile, first[0]);
            self.panels(cg, tile, |meeting| {
                self.each_piece(cg, first[0], |piece| self.sum(cg, meeting, &piece));
            });
            vec![next]
        });
        cg.when(nothing, || self.panels(cg, tile, |meeting| self.store(cg, &meeting.panel)));
    }

    fn store(&self, cg: &Cg<'c>, panel: &Panel<'c>) {
        store_rows(cg, &self.p, &self.s.shape, self.args, self.group, panel);
    }

    fn clear(&self, cg: &Cg<'c>, ptr: Val<'c>, words: Val<'c>) {
        let zero = cg.zero(Elem::F32.x(self.p.lanes));
        cg.for_each(cg.i64(0), words, i64::from(self.p.lanes), |i| {
            cg.store_aligned(zero, cg.at(ptr, Elem::F32, i), 4 * self.p.lanes);
        });
    }

    /// The pieces of the chunk that starts at `first`; gives the next chunk's start.
    fn each_piece(&self, cg: &Cg<'c>, first: Val<'c>, body: impl FnOnce(Piece<'c>)) -> Val<'c> {
        let count = cg.i64(self.pieces.per_chunk);
        cg.for_(cg.i64(0), count, 1, &[first], |index, k| {
            let first = k[0];
            let end = self.piece_end(cg, first);
            cg.when(cg.cmp(Cmp::Lt, first, self.group.k), || body(Piece { index, first, end }));
            vec![end]
        })[0]
    }

    fn piece_end(&self, cg: &Cg<'c>, first: Val<'c>) -> Val<'c> {
        let end = cg.min(cg.add(first, self.pieces.terms), self.group.k);
        let Some(unit) = self.pieces.unit else { return end };
        let place = cg.add(self.k_first, first);
        let left = cg.sub(cg.i64(unit), cg.rem(place, unit));
        cg.min(end, cg.add(first, left))
    }

    /// Packs operands and scales of a chunk.
    fn pack(&self, cg: &Cg<'c>, tile: &Tile<'c>, first: Val<'c>) -> Val<'c> {
        let (shape, args) = (&self.s.shape, self.args);
        self.each_piece(cg, first, |piece| {
            let k = (piece.first, cg.sub(piece.end, piece.first));
            let mut a = a_block(cg, shape, args, self.group, (tile.row, tile.rows), k);
            a.code = self.s.a.format;
            let mut b = b_block(cg, shape, args, self.group, (tile.col, tile.cols), k);
            b.code = self.s.b.format;
            pack::pack_a(cg, &self.p, &a, self.in_a(cg, self.scratch.a, &piece));
            pack::pack_b(cg, &self.p, &b, self.in_b(cg, self.scratch.b, &piece));
            let row = cg.add(self.group.first_row, tile.row);
            self.pack_scales(cg, 0, &piece, (row, tile.rows), TILE_ROWS_MAX);
            self.pack_scales(cg, 1, &piece, (tile.col, tile.cols), TILE_COLS_MAX);
        })
    }

    /// A piece in A packed at `ptr`, all of it or a panel.
    fn in_a(&self, cg: &Cg<'c>, ptr: Val<'c>, piece: &Piece<'c>) -> Val<'c> {
        let step = if self.p.a_by_row { 1 } else { i64::from(self.p.rows) };
        cg.at(ptr, Elem::F32, cg.mul(piece.index, self.pieces.words * step))
    }

    fn in_b(&self, cg: &Cg<'c>, ptr: Val<'c>, piece: &Piece<'c>) -> Val<'c> {
        let step = i64::from(self.p.cols);
        cg.at(ptr, Elem::F32, cg.mul(piece.index, self.pieces.words * step))
    }

    /// The scales of a piece, one for each row of the tile or each column.
    fn pack_scales(
        &self,
        cg: &Cg<'c>,
        operand: usize,
        piece: &Piece<'c>,
        (first, n): (Val<'c>, Val<'c>),
        room: u32,
    ) {
        let coded: &Coded = self.s.operands()[operand];
        let (Some(grouped), Some(source)) = (coded.scales, self.scales[operand]) else { return };
        let k_group = cg.div(cg.add(self.k_first, piece.first), grouped.k);
        let from = cg.at(source.ptr, grouped.elem, cg.mul(k_group, source.k_stride));
        let to = cg.mul(piece.index, i64::from(room));
        let to = cg.at(self.scratch.scales[operand], Elem::F32, to);
        cg.for_each(cg.i64(0), n, 1, |i| {
            let group = cg.div(cg.add(first, i), grouped.free);
            let at = cg.at(from, grouped.elem, cg.mul(group, source.free_stride));
            let scale = cg.load(grouped.elem.x(1), at);
            let scale = match grouped.elem {
                Elem::I8 => narrow::decode_scale(cg, cg.zext(scale, Elem::I32)),
                _ => scale,
            };
            cg.store(scale, cg.at(to, Elem::F32, i));
        });
    }

    /// Where panels of the tile meet, with the place of their partial sums.
    fn panels(&self, cg: &Cg<'c>, tile: &Tile<'c>, body: impl FnOnce(&Meeting<'c>)) {
        let (height, width) = (i64::from(self.p.rows), i64::from(self.p.cols));
        let down = cg.div_ceil(tile.rows, height);
        cg.for_each(cg.i64(0), cg.div_ceil(tile.cols, width), 1, |x| {
            cg.for_each(cg.i64(0), down, 1, |y| {
                let at = cg.mul(cg.add(cg.mul(x, down), y), height * width);
                let (row, col) = (cg.mul(y, height), cg.mul(x, width));
                let a = cg.mul(y, i64::from(self.p.a_panel_words()));
                let b = cg.mul(x, i64::from(self.p.b_panel_words()));
                let panel = Panel {
                    a: cg.at(self.scratch.a, Elem::F32, a),
                    b: cg.at(self.scratch.b, Elem::F32, b),
                    sums: cg.at(self.scratch.sums, Elem::F32, at),
                    left: (cg.sub(tile.rows, row), cg.sub(tile.cols, col)),
                    corner: (cg.add(tile.row, row), cg.add(tile.col, col)),
                };
                let partials = cg.at(self.scratch.partials, Elem::F32, at);
                body(&Meeting { panel, partials, row, col });
            });
        });
    }

    /// Sums a piece of a panel pair.
    fn sum(&self, cg: &Cg<'c>, meeting: &Meeting<'c>, piece: &Piece<'c>) {
        let panel = &meeting.panel;
        let panel =
            Panel { a: self.in_a(cg, panel.a, piece), b: self.in_b(cg, panel.b, piece), ..*panel };
        let at = &Meeting { panel, ..*meeting };
        let last = cg.cmp(Cmp::Ge, piece.end, self.group.k);
        if self.s.sum == Sum::Hopper14 {
            hopper::sum(cg, self, at, piece);
            return cg.when(last, || self.store(cg, &panel));
        }
        let whole = self.is_whole(cg, &panel);
        let terms = cg.sub(piece.end, piece.first);
        let words = cg.div_ceil(terms, i64::from(self.p.k_per_word));
        by_size(cg, &self.p, panel.left, |rows, vectors| {
            let ty = Elem::F32.x(self.p.lanes);
            let n = (rows * vectors) as usize;
            let partial = Panel { sums: meeting.partials, ..panel };
            let rest = |i: u32| resting_place(cg, &self.p, &partial, (i / vectors, i % vectors));
            let bytes = 4 * self.p.lanes;
            let zeros = || vec![cg.zero(ty); n];
            let acc = match self.opens(cg, piece) {
                None => zeros(),
                Some(opens) => {
                    let resting = || {
                        (0..rows * vectors).map(|i| cg.load_aligned(ty, rest(i), bytes)).collect()
                    };
                    cg.if_else(opens, zeros, resting)
                }
            };
            let acc =
                micro::accumulate(cg, &self.p, (rows, vectors), (panel.a, panel.b), words, &acc);
            let place = |i: u32| (cg.i64((i / vectors).into()), i % vectors);
            let fold = || {
                for (i, x) in (0..).zip(&acc) {
                    self.fold(cg, at, piece, place(i), *x);
                }
            };
            // The last sums of a whole panel pair go to C from registers.
            let finish = || {
                let (row, col) = panel.corner;
                for (i, x) in (0..).zip(&acc) {
                    let sum = self.folded(cg, at, piece, place(i), *x);
                    let row = cg.add(row, i64::from(i / vectors));
                    let col = cg.add(col, i64::from(i % vectors * self.p.lanes));
                    self.s.shape.finish(cg, self.args, self.group, (row, col), None, sum);
                }
            };
            let all = rows == self.p.rows && vectors * self.p.lanes == self.p.cols;
            match self.closes(cg, piece) {
                None if all => either(cg, cg.and(last, whole), finish, fold),
                None => fold(),
                Some(closes) => {
                    let store = || {
                        for (i, x) in (0..).zip(&acc) {
                            cg.store_aligned(*x, rest(i), bytes);
                        }
                    };
                    either(cg, closes, fold, store);
                }
            }
        });
        let stored = match self.pieces.ends {
            Ends::EachPiece => whole,
            Ends::EachBlock | Ends::Once => cg.i1(false),
        };
        cg.when(cg.and(last, cg.not(stored)), || self.store(cg, &panel));
    }

    /// Does a panel pair lie in C as a rectangle of vectors?
    fn is_whole(&self, cg: &Cg<'c>, panel: &Panel<'c>) -> Val<'c> {
        let (rows, cols) = panel.left;
        let fits = cg.and(
            cg.cmp(Cmp::Ge, rows, i64::from(self.p.rows)),
            cg.cmp(Cmp::Ge, cols, i64::from(self.p.cols)),
        );
        cg.and(fits, cg.i1(self.s.shape.c_unit == Unit::Col))
    }

    /// Does a partial sum start with the piece? `None` is always.
    pub fn opens(&self, cg: &Cg<'c>, piece: &Piece<'c>) -> Option<Val<'c>> {
        let start = cg.cmp(Cmp::Eq, piece.first, 0);
        match (self.pieces.ends, self.pieces.unit) {
            (Ends::EachPiece, _) => None,
            (Ends::EachBlock, Some(unit)) => Some(cg.or(start, self.at_end(cg, piece.first, unit))),
            _ => Some(start),
        }
    }

    /// Is it folded after the piece? `None` is always.
    pub fn closes(&self, cg: &Cg<'c>, piece: &Piece<'c>) -> Option<Val<'c>> {
        let end = cg.cmp(Cmp::Ge, piece.end, self.group.k);
        match (self.pieces.ends, self.pieces.unit) {
            (Ends::EachPiece, _) => None,
            (Ends::EachBlock, Some(unit)) => Some(cg.or(end, self.at_end(cg, piece.end, unit))),
            _ => Some(end),
        }
    }

    /// Does a block end at term `k` of the group?
    fn at_end(&self, cg: &Cg<'c>, k: Val<'c>, unit: i64) -> Val<'c> {
        cg.cmp(Cmp::Eq, cg.rem(cg.add(self.k_first, k), unit), 0)
    }

    /// The product of the scales of a row and a vector of columns of a panel; `None` is 1.
    pub fn scale(
        &self,
        cg: &Cg<'c>,
        at: &Meeting<'c>,
        piece: &Piece<'c>,
        (row, vector): (Val<'c>, u32),
    ) -> Option<Val<'c>> {
        let place = |operand: usize, room: u32, free: Val<'c>| {
            let at = cg.add(cg.mul(piece.index, i64::from(room)), free);
            cg.at(self.scratch.scales[operand], Elem::F32, at)
        };
        let a = self.s.a.scales.map(|_| {
            let from = place(0, TILE_ROWS_MAX, cg.add(at.row, row));
            cg.splat(cg.load(Ty::F32, from), self.p.lanes)
        });
        let b = self.s.b.scales.map(|_| {
            let col = cg.add(at.col, i64::from(vector * self.p.lanes));
            let from = place(1, TILE_COLS_MAX, col);
            cg.load_aligned(Elem::F32.x(self.p.lanes), from, 4 * self.p.lanes)
        });
        match (a, b) {
            (Some(a), Some(b)) => Some(cg.mul(a, b)),
            (a, b) => a.or(b),
        }
    }

    /// Adds a partial sum, scaled, to the sum of a row and a vector of columns.
    pub fn fold(
        &self,
        cg: &Cg<'c>,
        at: &Meeting<'c>,
        piece: &Piece<'c>,
        place: (Val<'c>, u32),
        partial: Val<'c>,
    ) {
        let sum = self.folded(cg, at, piece, place, partial);
        cg.store_aligned(sum, self.sum_at(cg, at.panel.sums, place), 4 * self.p.lanes);
    }

    /// Where a row's vector of sums is in those of a panel pair.
    fn sum_at(&self, cg: &Cg<'c>, sums: Val<'c>, (row, vector): (Val<'c>, u32)) -> Val<'c> {
        let row = cg.at(sums, Elem::F32, cg.mul(row, i64::from(self.p.cols)));
        cg.at(row, Elem::F32, i64::from(vector * self.p.lanes))
    }

    fn folded(
        &self,
        cg: &Cg<'c>,
        at: &Meeting<'c>,
        piece: &Piece<'c>,
        (row, vector): (Val<'c>, u32),
        partial: Val<'c>,
    ) -> Val<'c> {
        let sums = match self.pieces.ends {
            Ends::EachPiece => {
                let first = cg.cmp(Cmp::Eq, piece.first, 0);
                cg.select(first, self.scratch.zeros, at.panel.sums)
            }
            Ends::EachBlock | Ends::Once => at.panel.sums,
        };
        let from = self.sum_at(cg, sums, (row, vector));
        let sum = cg.load_aligned(partial.ty, from, 4 * self.p.lanes);
        let scale =
            if self.s.scaled_products { None } else { self.scale(cg, at, piece, (row, vector)) };
        match scale {
            Some(scale) => cg.fma(partial, scale, sum),
            None => cg.add(partial, sum),
        }
    }

    /// Terms of a piece.
    pub fn terms(&self, cg: &Cg<'c>, piece: &Piece<'c>) -> Val<'c> {
        cg.sub(piece.end, piece.first)
    }

    /// The address of an f32 of packed A: term `k` of a row of the panel.
    pub fn a_at(&self, cg: &Cg<'c>, panel: &Panel<'c>, row: Val<'c>, k: Val<'c>) -> Val<'c> {
        let p = &self.p;
        let at = if p.a_by_row {
            cg.add(cg.mul(row, i64::from(p.a_row_words())), k)
        } else {
            cg.add(cg.mul(k, i64::from(p.rows)), row)
        };
        cg.at(panel.a, Elem::F32, at)
    }
}

/// Runs one of two bodies that give nothing.
pub(super) fn either<'c>(cg: &Cg<'c>, cond: Val<'c>, then: impl FnOnce(), other: impl FnOnce()) {
    cg.if_else(
        cond,
        || {
            then();
            vec![]
        },
        || {
            other();
            vec![]
        },
    );
}
