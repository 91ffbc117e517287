//! A few rows of codes times a weight's codes: nothing of the weight is stored again.
//!
//! ```text
//! rows of A decoded into scratch, once a group
//! for each vector of columns:
//!     for each block of k:                      partial sums, a lane a column
//!         for each square of words:             lanes' rows of B, 4 codes a word, transposed:
//!             decode, multiply, add                 each vector is then one step of k
//!         sum = fma(partial, scales, sum)
//! ```
//!
//! Each element is the chain of `mod.rs`, so bits are those of the packed product. Envelope: for 32
//! codes two shuffles, some 11 operations of decoding and a multiply-add a row, none of which waits
//! for memory beyond the codes themselves.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Ty, Val};
use weft_codegen::narrow;
use weft_ir::formats::Format;

use super::super::micro::{self, Packing};
use super::super::{Args, Group, Grouping, N_SCALARS, Unit};
use super::emit::{ScaleSource, packing, scale_sources};
use super::{Grouped, ScaledShape, Sum};

/// Columns of a block: two vectors of the widest.
pub const BLOCK_COLS: i64 = 32;
/// Lanes of the widest vector of any variant.
const LANES_MAX: i64 = 16;
/// Codes of a word of B.
const CODES: u32 = 4;
/// The most that decoded rows may take of scratch.
const SCRATCH_MAX: i64 = 256 * 1024;

/// Has this kernel the product? It sums blocks of whole squares, of codes that lie along k, and
/// columns of a vector share their scales.
pub fn takes(s: &ScaledShape, k_max: i64, rows: i64) -> bool {
    let whole = |n: i64| n % (i64::from(CODES) * LANES_MAX) == 0;
    let along_k = s.shape.a_unit == Unit::Col && s.shape.b_unit == Unit::Row;
    let coded = s.operands().iter().all(|x| x.format.is_some() && x.scales.is_some());
    along_k
        && coded
        && s.sum == Sum::F32
        && s.shape.grouping != Grouping::Inner
        && s.unit.is_some_and(whole)
        && s.b.scales.is_some_and(|g| g.free % LANES_MAX == 0)
        && k_max.checked_mul(4 * rows).is_some_and(|bytes| bytes <= SCRATCH_MAX)
}

pub fn scratch_bytes(k_max: i64, rows: u32) -> u64 {
    4 * u64::from(rows) * row_words(k_max) as u64
}

/// Words of a decoded row, which whole vectors are stored to.
fn row_words(k_max: i64) -> i64 {
    (k_max.max(1) as u64).next_multiple_of(LANES_MAX as u64) as i64
}

/// Emits the kernel for up to `rows` rows at a time.
pub fn emit(cg: &Cg, name: &str, s: &ScaledShape, k_max: i64, rows: u32) {
    let grouped = s.shape.grouping != Grouping::Batch;
    let n_buffers = 5 + usize::from(grouped);
    cg.kernel(name, n_buffers, N_SCALARS + 6, |kernel| {
        let args = Args::of(kernel, grouped.then(|| kernel.buffers[5]));
        let first = cg.mul(kernel.begin, BLOCK_COLS);
        let last = cg.min(cg.mul(kernel.end, BLOCK_COLS), args.n);
        cg.for_each(cg.i64(0), args.groups, 1, |index| {
            let group = s.shape.group(cg, &args, index);
            let [Some(a), Some(b)] = scale_sources(cg, s, kernel, &group) else { return };
            let [Some(a_groups), Some(b_groups)] = s.operands().map(|x| x.scales) else { return };
            let scales = [(a, a_groups), (b, b_groups)];
            let work = Work { s, p: packing(cg, s), args: &args, group, scales, rows, k_max };
            cg.for_each(cg.i64(0), work.group.m, i64::from(rows), |row| {
                work.decode_rows(cg, kernel, row);
                cg.for_each(first, last, i64::from(work.p.lanes), |col| {
                    work.columns(cg, kernel, row, (col, last));
                });
            });
        });
    });
}

struct Work<'a, 'c> {
    s: &'a ScaledShape,
    p: Packing,
    args: &'a Args<'c>,
    group: Group<'c>,
    scales: [(ScaleSource<'c>, Grouped); 2],
    rows: u32,
    k_max: i64,
}

impl<'c> Work<'_, 'c> {
    fn row_at(&self, cg: &Cg<'c>, row: Val<'c>, i: u32) -> Val<'c> {
        cg.min(cg.add(row, i64::from(i)), cg.sub(self.group.m, 1))
    }

    /// Where decoded row `i` lies.
    fn decoded(&self, cg: &Cg<'c>, kernel: &Kernel<'c>, i: u32) -> Val<'c> {
        cg.at(kernel.scratch, Elem::F32, i64::from(i) * row_words(self.k_max))
    }

    /// An element of decoded A.
    fn element(&self) -> Elem {
        if self.p.k_per_word == 2 { Elem::BF16 } else { Elem::F32 }
    }

    /// Rows of A from `row` on into scratch; zeros follow them.
    fn decode_rows(&self, cg: &Cg<'c>, kernel: &Kernel<'c>, row: Val<'c>) {
        let lanes = self.p.lanes;
        let Some(format) = self.s.a.format else { return };
        for i in 0..self.rows {
            let from = cg.mul(self.row_at(cg, row, i), self.args.a_strides[0]);
            let from = cg.at(self.group.a, Elem::I8, from);
            let to = self.decoded(cg, kernel, i);
            cg.for_each(cg.i64(0), self.group.k, i64::from(lanes), |k| {
                let mask = cg.mask_below(cg.sub(self.group.k, k), lanes);
                let codes = cg.masked_load(Elem::I8.x(lanes), cg.at(from, Elem::I8, k), mask);
                let x = narrow::decode(cg, cg.zext(codes, Elem::I32), format);
                cg.store(cg.cast(x, self.element()), cg.at(to, self.element(), k));
            });
        }
    }

    /// A vector of columns of all rows.
    fn columns(
        &self,
        cg: &Cg<'c>,
        kernel: &Kernel<'c>,
        row: Val<'c>,
        (col, last): (Val<'c>, Val<'c>),
    ) {
        let (Some(unit), lanes) = (self.s.unit, self.p.lanes) else { return };
        let last_col = cg.sub(self.args.n, 1);
        let b: Vec<Val> = (0..lanes)
            .map(|lane| {
                let col = cg.min(cg.add(col, i64::from(lane)), last_col);
                cg.at(self.group.b, Elem::I8, cg.mul(col, self.args.b_strides[1]))
            })
            .collect();
        let a: Vec<Val> = (0..self.rows).map(|i| self.decoded(cg, kernel, i)).collect();
        let zeros = vec![cg.zero(Elem::F32.x(lanes)); self.rows as usize];
        let sums = cg.for_(cg.i64(0), self.group.k, unit, &zeros, |first, sums| {
            let end = cg.min(cg.add(first, unit), self.group.k);
            let partials = self.block(cg, &a, &b, (first, end), &zeros);
            let fold = |(i, (sum, partial)): (u32, (&Val<'c>, &Val<'c>))| {
                let scale = self.scale(cg, (self.row_at(cg, row, i), col), first);
                cg.fma(*partial, cg.splat(scale, lanes), *sum)
            };
            (0..).zip(sums.iter().zip(&partials)).map(fold).collect()
        });
        for (i, sum) in (0..).zip(sums) {
            let at = cg.add(row, i64::from(i));
            cg.when(cg.cmp(Cmp::Lt, at, self.group.m), || {
                let mask = cg.mask_below(cg.sub(last, col), lanes);
                self.s.shape.finish(cg, self.args, &self.group, (at, col), Some(mask), sum);
            });
        }
    }

    /// The product of the scales of a row and of the vector of columns that starts at `col`.
    fn scale(&self, cg: &Cg<'c>, (row, col): (Val<'c>, Val<'c>), k: Val<'c>) -> Val<'c> {
        let row = cg.add(self.group.first_row, row);
        let [a, b] = [row, col];
        let of = |(source, groups): &(ScaleSource<'c>, Grouped), free: Val<'c>| {
            let free = cg.mul(cg.div(free, groups.free), source.free_stride);
            let at = cg.add(free, cg.mul(cg.div(k, groups.k), source.k_stride));
            let scale = cg.load(groups.elem.x(1), cg.at(source.ptr, groups.elem, at));
            match groups.elem {
                Elem::I8 => narrow::decode_scale(cg, cg.zext(scale, Elem::I32)),
                _ => scale,
            }
        };
        cg.mul(of(&self.scales[0], a), of(&self.scales[1], b))
    }

    /// The sums of one block.
    fn block(
        &self,
        cg: &Cg<'c>,
        a: &[Val<'c>],
        b: &[Val<'c>],
        (first, end): (Val<'c>, Val<'c>),
        zeros: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let (lanes, Some(format)) = (self.p.lanes, self.s.b.format) else { return zeros.to_vec() };
        let square = i64::from(lanes * CODES);
        let whole = cg.sub(end, cg.rem(cg.sub(end, first), square));
        let per_word = i64::from(self.p.k_per_word);
        let acc = cg.for_(first, whole, square, zeros, |k, acc| {
            let rows: Vec<Val> =
                b.iter().map(|b| cg.load(Elem::I32.x(lanes), cg.at(*b, Elem::I8, k))).collect();
            let steps = cg.transpose(&rows).into_iter().flat_map(|w| self.words(cg, w, format));
            let mut acc = acc.to_vec();
            for (i, word) in steps.enumerate() {
                let k = cg.add(k, i as i64 * per_word);
                acc = self.step(cg, a, k, word, &acc);
            }
            acc
        });
        // What fills no square, a step at a time.
        cg.for_(whole, end, per_word, &acc, |k, acc| {
            let word = (0..lanes).fold(cg.zero(Elem::I32.x(lanes)), |v, lane| {
                let b = b[lane as usize];
                let code = |k| cg.zext(cg.load(Elem::I8.x(1), cg.at(b, Elem::I8, k)), Elem::I32);
                let mut word = code(k);
                if per_word == 2 {
                    let next = cg.add(k, 1);
                    let inside = cg.cmp(Cmp::Lt, next, end);
                    let high = cg.if_else(inside, || vec![code(next)], || vec![cg.i32(0)])[0];
                    word = cg.or(word, cg.shl(high, 8));
                }
                cg.insert(v, word, lane)
            });
            let words = self.words(cg, word, format);
            self.step(cg, a, k, words[0], acc)
        })
    }

    /// Adds the products of one word of B, from term `k` on, with each row's.
    fn step(
        &self,
        cg: &Cg<'c>,
        a: &[Val<'c>],
        k: Val<'c>,
        word: Val<'c>,
        acc: &[Val<'c>],
    ) -> Vec<Val<'c>> {
        let each = |(a, acc): (&Val<'c>, &Val<'c>)| {
            let x = cg.load(Ty { lanes: 1, ..word.ty }, cg.at(*a, self.element(), k));
            micro::multiply_add(cg, &self.p, cg.splat(x, self.p.lanes), word, *acc)
        };
        a.iter().zip(acc).map(each).collect()
    }

    /// The values of four codes a lane as words, in the order of k.
    fn words(&self, cg: &Cg<'c>, codes: Val<'c>, format: Format) -> Vec<Val<'c>> {
        let byte = |i: u32| cg.lshr(codes, i64::from(8 * i));
        if self.p.k_per_word == 1 {
            return (0..CODES).map(|i| narrow::decode(cg, byte(i), format)).collect();
        }
        let pair = |i: u32| {
            let two = byte(i);
            let apart = cg.or(cg.and(two, 0xff), cg.and(cg.shl(two, 8), 0x00ff_0000));
            let wide = cg.bitcast(apart, Elem::I16.x(2 * self.p.lanes));
            cg.bitcast(narrow::decode_bf16_wide(cg, wide, format), codes.ty)
        };
        vec![pair(0), pair(2)]
    }
}
