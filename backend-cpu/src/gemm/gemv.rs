//! At most a few rows: a matrix-vector product at the speed of memory, nothing packed.
//!
//! With B contiguous along k (a weight stored `[n, k]`) a block takes 32 columns, and a step some
//! columns at a time: one vector of partial sums for each, added up at the end in a fixed tree.
//! With B contiguous along n a block takes a stripe of 128 columns and runs down k, one chain a
//! column. Rows are taken up to 4 at a time so that B is read once for them.
//!
//! Envelope: `n k` elements of B are read once; from the second-level cache it is bound by loads.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Ty, Val};

use super::micro::{self, Packing};
use super::{Args, Group, Shape, Unit};

/// Columns of a block. A stripe is wide, since each row of it is a jump in memory.
pub fn block_cols(shape: &Shape) -> u32 {
    if is_dots(shape) { 32 } else { 128 }
}

/// Both operands are contiguous along k.
fn is_dots(shape: &Shape) -> bool {
    shape.b_unit == Unit::Row && shape.a_unit == Unit::Col
}

/// Emits the kernel for up to `rows` rows at a time.
pub fn emit(cg: &Cg, name: &str, shape: &Shape, rows: u32) {
    shape.kernel(cg, name, |kernel, args| {
        let step = i64::from(block_cols(shape));
        cg.for_each(cg.i64(0), args.groups, 1, |index| {
            let group = shape.group(cg, args, index);
            cg.for_each(cg.i64(0), group.m, i64::from(rows), |row| {
                columns(cg, shape, args, kernel, &group, (row, rows), step);
            });
        });
    });
}

fn columns<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    kernel: &Kernel<'c>,
    group: &Group<'c>,
    rows: (Val<'c>, u32),
    step: i64,
) {
    let first = cg.mul(kernel.begin, step);
    let last = cg.min(cg.mul(kernel.end, step), args.n);
    let p = Packing::new(&cg.target, shape);
    if is_dots(shape) {
        // Eight chains at least, so that the latency of an FMA is hidden.
        let width = if rows.1 == 1 { 8 } else { 4 };
        cg.for_each(first, last, i64::from(width), |col| {
            let sums = dots(cg, &p, shape, args, group, rows, (col, width));
            store(cg, shape, args, group, rows, (col, last), &sums);
        });
    } else {
        // As many chains as registers keep: 8 vectors of one row, 4 of several.
        let vectors = if rows.1 == 1 { 8 } else { p.cols / p.lanes * 2 };
        cg.for_each(first, last, i64::from(vectors * p.lanes), |col| {
            let sums = chains(cg, &p, shape, args, group, rows, (col, last), vectors);
            for (v, sums) in sums.iter().enumerate() {
                let col = cg.add(col, i64::from(p.lanes) * v as i64);
                store(cg, shape, args, group, rows, (col, last), sums);
            }
        });
    }
}

/// Row `row + i`, or the last one.
fn row_at<'c>(cg: &Cg<'c>, group: &Group<'c>, row: Val<'c>, i: u32) -> Val<'c> {
    cg.min(cg.add(row, i64::from(i)), cg.sub(group.m, 1))
}

/// For each row a vector of `width` sums.
fn dots<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    (row, rows): (Val<'c>, u32),
    (col, width): (Val<'c>, u32),
) -> Vec<Val<'c>> {
    let elements = p.lanes * p.k_per_word;
    let last_col = cg.sub(args.n, 1);
    let a: Vec<Val> = (0..rows)
        .map(|i| cg.at(group.a, shape.a, cg.mul(row_at(cg, group, row, i), args.a_strides[0])))
        .collect();
    let b: Vec<Val> = (0..width)
        .map(|i| {
            let col = cg.min(cg.add(col, i64::from(i)), last_col);
            cg.at(group.b, shape.b, cg.mul(col, args.b_strides[1]))
        })
        .collect();
    let load = |elem: Elem, at: Val<'c>, mask| {
        let v = cg.load_tail(elem.x(elements), at, mask);
        if p.k_per_word == 2 { cg.bitcast(v, Elem::I32.x(p.lanes)) } else { cg.cast(v, Elem::F32) }
    };
    let step = |k: Val<'c>, acc: &[Val<'c>], mask: Option<Val<'c>>| -> Vec<Val<'c>> {
        let a: Vec<Val> = a.iter().map(|&a| load(shape.a, cg.at(a, shape.a, k), mask)).collect();
        let b: Vec<Val> = b.iter().map(|&b| load(shape.b, cg.at(b, shape.b, k), mask)).collect();
        let product = |(i, &acc): (usize, &Val<'c>)| {
            micro::multiply_add(cg, p, a[i / width as usize], b[i % width as usize], acc)
        };
        acc.iter().enumerate().map(product).collect()
    };
    let zero = vec![cg.zero(Elem::F32.x(p.lanes)); (rows * width) as usize];
    let whole = cg.sub(group.k, cg.rem(group.k, i64::from(elements)));
    let acc = cg.for_(cg.i64(0), whole, i64::from(elements), &zero, |k, acc| step(k, acc, None));
    let acc = cg.if_else(
        cg.cmp(Cmp::Lt, whole, group.k),
        || step(whole, &acc, Some(cg.mask_below(cg.sub(group.k, whole), elements))),
        || acc.clone(),
    );
    acc.chunks(width as usize).map(|sums| reduce_each(cg, sums)).collect()
}

/// The sum of the lanes of each vector, as one vector. Each sum is the tree of [`Cg::reduce_add`].
fn reduce_each<'c>(cg: &Cg<'c>, sums: &[Val<'c>]) -> Val<'c> {
    let ty = Elem::F32.x(sums.len() as u32);
    let reduced = sums.iter().map(|&v| cg.reduce_add(v));
    reduced.enumerate().fold(cg.undef(ty), |v, (i, sum)| cg.insert(v, sum, i as u32))
}

/// For each vector of columns and each row a vector of sums.
#[expect(clippy::too_many_arguments, reason = "the levels of one loop nest")]
fn chains<'c>(
    cg: &Cg<'c>,
    p: &Packing,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    (row, rows): (Val<'c>, u32),
    (col, last): (Val<'c>, Val<'c>),
    vectors: u32,
) -> Vec<Vec<Val<'c>>> {
    let ty = Elem::F32.x(p.lanes);
    let left = cg.sub(last, col);
    let masks: Vec<Val> = (0..vectors)
        .map(|v| cg.mask_below(cg.sub(left, i64::from(v * p.lanes)), p.lanes))
        .collect();
    let a: Vec<Val> = (0..rows)
        .map(|i| cg.at(group.a, shape.a, cg.mul(row_at(cg, group, row, i), args.a_strides[0])))
        .collect();
    let unit = shape.b_unit == Unit::Col;
    let column = cg.at(group.b, shape.b, cg.mul(col, args.b_strides[1]));
    let run = |masked: bool| -> Vec<Val<'c>> {
        let zero = vec![cg.zero(ty); (rows * vectors) as usize];
        cg.for_(cg.i64(0), group.k, 1, &zero, |k, acc| {
            let b_row = cg.at(column, shape.b, cg.mul(k, args.b_strides[0]));
            let mut next = acc.to_vec();
            let x: Vec<Val> = a
                .iter()
                .map(|&a| {
                    let at = cg.at(a, shape.a, cg.mul(k, args.a_strides[1]));
                    cg.splat(cg.cast(cg.load(shape.a.x(1), at), Elem::F32), p.lanes)
                })
                .collect();
            for v in 0..vectors {
                let mask = masked.then(|| masks[v as usize]);
                let b = if unit {
                    let at = cg.at(b_row, shape.b, i64::from(v * p.lanes));
                    cg.load_tail(shape.b.x(p.lanes), at, mask)
                } else {
                    gather(cg, shape.b.x(p.lanes), b_row, args.b_strides[1], (v, left))
                };
                let b = cg.cast(b, Elem::F32);
                for r in 0..rows {
                    let at = (v * rows + r) as usize;
                    next[at] = cg.fma(x[r as usize], b, next[at]);
                }
            }
            next
        })
    };
    let whole = cg.cmp(Cmp::Ge, left, i64::from(vectors * p.lanes));
    let acc = if unit { cg.if_else(whole, || run(false), || run(true)) } else { run(true) };
    acc.chunks(rows as usize).map(<[Val]>::to_vec).collect()
}

/// Lanes a stride apart; beyond `left` the first one again.
fn gather<'c>(
    cg: &Cg<'c>,
    ty: Ty,
    start: Val<'c>,
    stride: Val<'c>,
    (vector, left): (u32, Val<'c>),
) -> Val<'c> {
    (0..ty.lanes).fold(cg.undef(ty), |v, lane| {
        let index = cg.i64(i64::from(vector * ty.lanes + lane));
        let index = cg.select(cg.cmp(Cmp::Lt, index, left), index, 0);
        let at = cg.at(start, ty.elem, cg.mul(index, stride));
        cg.insert(v, cg.load(ty.elem.x(1), at), lane)
    })
}

fn store<'c>(
    cg: &Cg<'c>,
    shape: &Shape,
    args: &Args<'c>,
    group: &Group<'c>,
    (row, rows): (Val<'c>, u32),
    (col, last): (Val<'c>, Val<'c>),
    sums: &[Val<'c>],
) {
    for (i, &sum) in (0..rows).zip(sums) {
        let at = cg.add(row, i64::from(i));
        cg.when(cg.cmp(Cmp::Lt, at, group.m), || {
            let mask = cg.mask_below(cg.sub(last, col), sum.ty.lanes);
            shape.finish(cg, args, group, (at, col), Some(mask), sum);
        });
    }
}
