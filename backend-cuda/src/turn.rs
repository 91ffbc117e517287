//! Copies of codes that are contiguous along k, for products whose operands are not: tensor cores
//! multiply codes in no other order. Those are the weights of an input's gradient, and both
//! operands of a weight's.
//!
//! A CTA turns a square of 128 by 128 codes. It goes through shared memory in lines of 128 bytes,
//! whose pieces of 16 are permuted so that lanes meet no bank twice on either side:
//!
//! ```text
//! in     a thread has piece c of line t      at  t * 128 + (c ^ t / 16) * 16
//! out    a thread has 16 terms of row r      its lines are c * 16 .., its byte r of each
//! ```
//!
//! Envelope: a byte read and a byte written for each code, in pieces of 16 bytes, lines of 128 in
//! both memories; of shared memory a byte a thread at a time, 512 accesses of a warp for a square
//! where the memory behind takes about 2,200 cycles. Never timed: no GPU has run it.

use weft_codegen::emit::{Cg, Cmp, Elem, Frame, Kernel, Val};
use weft_codegen::object::{Cta, KernelSource};
use weft_graph::{DimDecl, DimExpr, Scalar};
use weft_lower::describe::product::{Form, Matrix, ScaledGemm, Turned};

use crate::gemm::plan::{STEP_BYTES, plan_scaled, reads};
use crate::gemm::select::Budget;
use crate::ptx::{memory, sync};

/// Rows and terms of a square.
const SIDE: i64 = 128;
/// Codes that a thread has at once.
const PIECE: i64 = STEP_BYTES;
/// Pieces of a line.
const PIECES: i64 = SIDE / PIECE;
const THREADS: u32 = 128;
/// Lines that the CTA's threads reach at once.
const AT_ONCE: i64 = THREADS as i64 / PIECES;

/// How the codes lie that are read.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    /// Rows follow one another, in pieces that begin at multiples of 16 bytes.
    Pieces,
    /// Any strides.
    Single,
}

/// The copies that bring a product to tensor cores; none where it is there already, or where they
/// would not.
pub fn turned(
    gemm: &ScaledGemm,
    budget: Budget,
    dims: &[DimDecl],
    label: &str,
) -> [Option<Turned>; 2] {
    if plan_scaled(gemm, budget, dims, label).is_some() {
        return [None, None];
    }
    let of =
        |side: usize, codes: &Matrix| (!reads(codes, side)).then(|| turn(gemm, side, codes, label));
    let both = [of(0, &gemm.a.codes), of(1, &gemm.b.codes)];
    let mut then = gemm.clone();
    for (side, turned) in both.iter().enumerate() {
        let operand = if side == 0 { &mut then.a } else { &mut then.b };
        if let Some(turned) = turned {
            // What no kernel multiplies stays what it is.
            let dtype = operand.codes.dtype;
            operand.codes = Matrix { dtype, ..turned.matrix(side) };
        }
    }
    match plan_scaled(&then, budget, dims, label) {
        Some(_) => both,
        None => [None, None],
    }
}

fn turn(gemm: &ScaledGemm, side: usize, codes: &Matrix, label: &str) -> Turned {
    let (lines, strides) = match side {
        0 => (&gemm.m, [&codes.row_stride, &codes.col_stride]),
        _ => (&gemm.n, [&codes.col_stride, &codes.row_stride]),
    };
    let matrices = match (&gemm.form, side) {
        (Form::Batch { count }, _) => count.clone(),
        (Form::Rows { groups }, 1) => groups.clone(),
        _ => 1.into(),
    };
    let [along_rows, along_k] = strides;
    let whole = |stride: &DimExpr| stride.is_multiple_of(PIECE);
    let in_pieces = codes.aligned
        && along_rows.as_constant() == Some(1)
        && whole(along_k)
        && whole(&codes.group_stride);
    let source = if in_pieces { Source::Pieces } else { Source::Single };
    let name = match source {
        Source::Pieces => "sm90_codes_turn",
        Source::Single => "sm90_codes_turn_single",
    };
    let line_stride = gemm.k.clone().round_up(PIECE);
    let squares = |n: &DimExpr| n.clone().ceil_div(SIDE);
    let all = matrices.clone() * lines.clone() * gemm.k.clone();
    let scalars =
        [lines, &gemm.k, along_rows, along_k, &codes.group_stride, &line_stride].map(Clone::clone);
    let kernel = KernelSource::new(name, label, move |cg: &Cg| emit(cg, name, source));
    let cta =
        Cta { threads: THREADS, dynamic_shared_bytes: (SIDE * SIDE) as u32, ..Cta::default() };
    Turned {
        kernel: KernelSource { cta, ..kernel },
        scalars: scalars.into_iter().map(Scalar::Dim).collect(),
        grid: matrices.clone() * squares(lines) * squares(&gemm.k),
        bytes: all * 2,
        matrices,
        lines: lines.clone(),
        line_stride,
    }
}

/// Where a CTA's square begins, and what there is of it.
struct Square<'c> {
    from: Val<'c>,
    to: Val<'c>,
    row: Val<'c>,
    term: Val<'c>,
    rows: Val<'c>,
    terms: Val<'c>,
    row_stride: Val<'c>,
    term_stride: Val<'c>,
    line_stride: Val<'c>,
}

fn emit(cg: &Cg, name: &str, source: Source) {
    cg.framed_kernel(name, Frame::ctas(THREADS), 2, 6, |k| {
        let square = square(cg, k);
        let shared = cg.dynamic_shared();
        let thread = cg.thread_index();
        let (piece, line) = (cg.rem(thread, PIECES), cg.div(thread, PIECES));
        for i in 0..PIECES {
            let term = cg.add(line, i * AT_ONCE);
            let codes = square.read(cg, source, cg.mul(piece, PIECE), term);
            let at = cg.mul(cg.xor(piece, i), PIECE);
            let at = cg.add(cg.add(shared, at), cg.mul(term, SIDE));
            memory::store_shared_four(cg, codes, at);
        }
        sync::cta_barrier(cg);
        for i in 0..PIECES {
            let row = cg.add(line, i * AT_ONCE);
            // The row's byte in the first of the piece's lines.
            let at = cg.mul(cg.xor(piece, i), PIECE);
            let at = cg.add(cg.add(at, line), cg.mul(piece, PIECE * SIDE));
            let at = cg.add(shared, at);
            let byte = |j: i64| memory::load_shared_byte(cg, cg.add(at, j * SIDE));
            square.write(cg, row, cg.mul(piece, PIECE), packed(cg, byte));
        }
    });
}

/// Sixteen bytes as four words, the first lowest.
fn packed<'c>(cg: &Cg<'c>, byte: impl Fn(i64) -> Val<'c>) -> [Val<'c>; 4] {
    [0, 1, 2, 3].map(|word| {
        let bytes = (0..4).map(|i| cg.shl(byte(4 * word + i), 8 * i));
        bytes.reduce(|a, b| cg.or(a, b)).expect("four bytes")
    })
}

fn square<'c>(cg: &Cg<'c>, k: &Kernel<'c>) -> Square<'c> {
    let [rows, terms, row_stride, term_stride, matrix_stride, line_stride] =
        [0, 1, 2, 3, 4, 5].map(|i| k.scalars[i]);
    let (down, across) = (cg.div_ceil(rows, SIDE), cg.div_ceil(terms, SIDE));
    let of_matrix = cg.mul(down, across);
    let (matrix, at) = (cg.div(k.begin, of_matrix), cg.rem(k.begin, of_matrix));
    let (row, term) = (cg.div(at, across), cg.rem(at, across));
    Square {
        from: cg.at(k.buffers[0], Elem::I8, cg.mul(matrix, matrix_stride)),
        to: cg.at(k.buffers[1], Elem::I8, cg.mul(cg.mul(matrix, rows), line_stride)),
        row: cg.mul(row, SIDE),
        term: cg.mul(term, SIDE),
        rows,
        terms,
        row_stride,
        term_stride,
        line_stride,
    }
}

impl<'c> Square<'c> {
    /// A piece of rows of one term. Beyond the edge it is what is at the edge, which is not
    /// written, or where no product looks.
    fn read(&self, cg: &Cg<'c>, source: Source, row: Val<'c>, term: Val<'c>) -> [Val<'c>; 4] {
        let term = cg.add(self.term, cg.cast(term, Elem::I64));
        let term = cg.min(term, cg.sub(self.terms, 1));
        let line = cg.at(self.from, Elem::I8, cg.mul(term, self.term_stride));
        let row = cg.add(self.row, cg.cast(row, Elem::I64));
        let last = cg.sub(self.rows, 1);
        match source {
            Source::Pieces => {
                let row = cg.min(row, cg.and(last, -PIECE));
                let at = cg.at(line, Elem::I8, row);
                let four = cg.load_aligned(Elem::I32.x(4), at, PIECE as u32);
                [0, 1, 2, 3].map(|i| cg.lane(four, i))
            }
            Source::Single => packed(cg, |i| {
                let row = cg.min(cg.add(row, i), last);
                let at = cg.at(line, Elem::I8, cg.mul(row, self.row_stride));
                cg.zext(cg.load(Elem::I8.x(1), at), Elem::I32)
            }),
        }
    }

    /// A piece of terms of one row, if the row is there; a line has room for whole pieces.
    fn write(&self, cg: &Cg<'c>, row: Val<'c>, term: Val<'c>, codes: [Val<'c>; 4]) {
        let row = cg.add(self.row, cg.cast(row, Elem::I64));
        let term = cg.add(self.term, cg.cast(term, Elem::I64));
        let row_inside = cg.cmp(Cmp::Lt, row, self.rows);
        let inside = cg.and(row_inside, cg.cmp(Cmp::Lt, term, self.terms));
        let at = cg.add(cg.mul(row, self.line_stride), term);
        memory::store_if(cg, inside, &codes, cg.at(self.to, Elem::I8, at));
    }
}

const _: () = assert!(AT_ONCE == PIECE);
