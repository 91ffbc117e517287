//! Codes of o's rows at the end of a block.
//!
//! ```text
//! for each of the block's groups of heads:     as without codes, but o stays in scratch,
//!     for each tile of its query rows              [queries, heads Dv]
//! for each query: for each of its codes: for each group of the row: amax, scale, codes
//! ```
//!
//! A row of o, `[H Dv]`, is of many heads, which blocks of their own would make: a block takes as
//! many as hold whole groups. The row that is encoded is what memory would have held: rounded to
//! the operands' type.

use weft_codegen::emit::{Cg, Elem, Kernel, Val};
use weft_codegen::region::scalar;
use weft_codegen::row_codes::{RowCodes, Target};
use weft_ir::ty::DType;

use super::args::Args;
use super::rows::{self, Line, Row};
use super::tile::{at, padded, rounded};
use super::{Heads, Shape};

/// The most that a block's rows of o may take of scratch.
const ROOM_BYTES: i64 = 128 * 1024;

impl Shape {
    /// Elements of a row that a block encodes.
    fn codes_width(&self) -> u32 {
        self.block_units as u32 * self.group as u32 * self.v.width
    }

    /// f32 of scratch for the rows of o.
    pub fn codes_words(&self) -> u32 {
        if self.codes.is_empty() {
            return 0;
        }
        self.block_rows / self.group as u32 * padded(self.codes_width())
    }

    /// Cut so that a block's rows hold whole groups of every code; false where they cannot.
    pub fn cut_for_codes(&mut self, o: &Heads) -> bool {
        let (row, each) = (o.heads * o.width, self.group * o.width);
        let even = |codes: &RowCodes| {
            let packed = codes.code == DType::E5m6;
            codes.group > 0 && (!packed || codes.group % 2 == 0 && row % 2 == 0)
        };
        let queries = i64::from(self.block_rows) / self.group;
        if queries == 0 || !self.codes.iter().all(even) {
            return false;
        }
        let whole = |units: &i64| {
            let fits = |codes: &RowCodes| units * each % i64::from(codes.group) == 0;
            self.units() % units == 0 && self.codes.iter().all(fits)
        };
        // All heads hold all groups, the last of which need not be full.
        self.block_units = (1..self.units()).find(whole).unwrap_or(self.units());
        self.block_rows = (queries * self.group) as u32;
        4 * i64::from(self.codes_words()) <= ROOM_BYTES
    }
}

/// Rows of o between the groups of heads of a block.
#[derive(Clone, Copy)]
pub struct Kept<'c> {
    /// In scratch.
    pub rows: Val<'c>,
    /// The block's first query and head.
    pub query: Val<'c>,
    pub head: Val<'c>,
}

impl<'c> Kept<'c> {
    /// Keeps a head's part of a row, which lies in scratch at `from`.
    pub fn put(&self, cg: &Cg<'c>, shape: &Shape, lanes: u32, from: Val<'c>, row: &Row<'c>) {
        let width = shape.v.width;
        let line = cg.mul(cg.sub(row.query, self.query), i64::from(padded(shape.codes_width())));
        let col = cg.mul(cg.sub(row.head, self.head), i64::from(width));
        let to = Line { ptr: cg.at(self.rows, Elem::F32, cg.add(line, col)), elem: Elem::F32 };
        for (first, mask) in rows::columns(cg, lanes, width) {
            let x = cg.load_aligned(Elem::F32.x(lanes), at(cg, from, first), 4 * lanes);
            to.store(cg, rounded(cg, x, shape.elem), first, mask);
        }
    }

    /// Encodes the rows of the block's queries.
    pub fn encode(&self, cg: &Cg<'c>, shape: &Shape, args: &Args<'c>, batch: Val<'c>) {
        let width = shape.codes_width();
        let row_width = shape.heads * i64::from(shape.v.width);
        let n = i64::from(shape.block_rows) / shape.group;
        let n = cg.min(cg.sub(args.queries, self.query), n);
        let first = cg.mul(self.head, i64::from(shape.v.width));
        cg.for_each(cg.i64(0), n, 1, |i| {
            let token = cg.add(cg.mul(batch, args.queries), cg.add(self.query, i));
            let row = cg.at(self.rows, Elem::F32, cg.mul(i, i64::from(padded(width))));
            for (codes, (to, scales)) in shape.codes.iter().zip(&args.codes) {
                let group = i64::from(codes.group);
                let groups = (row_width + group - 1) / group;
                let scale = cg.add(cg.mul(token, groups), cg.div(first, group));
                let first = cg.add(cg.mul(token, row_width), first);
                let scales = cg.at(*scales, scalar::memory(codes.scale), scale);
                codes.emit(cg, row, width, Target { codes: *to, first, scales });
            }
        });
    }
}

/// Where the rows of the block with this first row and head are kept.
pub fn kept<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    kernel: &Kernel<'c>,
    (first_row, head): (Val<'c>, Val<'c>),
    at_word: u32,
) -> Option<Kept<'c>> {
    (!shape.codes.is_empty()).then(|| Kept {
        rows: at(cg, kernel.scratch, at_word),
        query: cg.div(first_row, shape.group),
        head,
    })
}
