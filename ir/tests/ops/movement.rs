//! Ops that move elements.

use crate::one_op::{counting, dims, f, i, run1};
use weft_ir::attr::Attrs;
use weft_ir::interp::Tensor;
use weft_ir::op::Op;

#[test]
fn reshape_keeps_the_order() {
    let y = run1(Op::Reshape, &[counting(&[2, 3])], Attrs::new().dims("shape", dims(&[3, 1, 2])));
    assert_eq!(y, counting(&[3, 1, 2]));
}

#[test]
fn transpose_permutes_dims() {
    let y = run1(Op::Transpose, &[counting(&[2, 3, 2])], Attrs::new().ints("perm", [2, 0, 1]));
    let want = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0];
    assert_eq!(y, f(&[2, 2, 3], &want));
}

#[test]
fn broadcast_repeats_new_dims_and_stretches_ones() {
    let to = |x: Tensor, shape: &[u64], map: &[i64]| {
        run1(Op::Broadcast, &[x], Attrs::new().dims("shape", dims(shape)).ints("dims", map))
    };
    assert_eq!(to(f(&[], &[5.0]), &[2, 2], &[]), f(&[2, 2], &[5.0; 4]));
    let rows = to(f(&[2], &[1.0, 2.0]), &[2, 3], &[0]);
    assert_eq!(rows, f(&[2, 3], &[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]));
    let stretched = to(i(&[2, 1], &[7, 8]), &[2, 2, 2], &[0, 2]);
    assert_eq!(stretched, i(&[2, 2, 2], &[7, 7, 7, 7, 8, 8, 8, 8]));
}

#[test]
fn slice_and_pad_undo_each_other() {
    let x = counting(&[2, 4]);
    let part = Attrs::new().int("dim", 1).int("start", 1).int("len", 2);
    let y = run1(Op::Slice, &[x], part);
    assert_eq!(y, f(&[2, 2], &[1.0, 2.0, 5.0, 6.0]));
    let z = run1(Op::Pad, &[y], Attrs::new().int("dim", 1).int("low", 1).int("high", 1));
    assert_eq!(z, f(&[2, 4], &[0.0, 1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 0.0]));
}

#[test]
fn concat_joins_along_any_dim() {
    let (x, y) = (counting(&[2, 1]), f(&[2, 2], &[7.0, 8.0, 9.0, 10.0]));
    let z = run1(Op::Concat, &[x, y], Attrs::new().int("dim", 1));
    assert_eq!(z, f(&[2, 3], &[0.0, 7.0, 8.0, 1.0, 9.0, 10.0]));
    let tall = run1(Op::Concat, &[i(&[1], &[4]), i(&[2], &[5, 6])], Attrs::new().int("dim", 0));
    assert_eq!(tall, i(&[3], &[4, 5, 6]));
}

#[test]
fn shift_reads_ahead_and_behind() {
    let x = i(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let by = |by, dim| {
        run1(
            Op::Shift,
            std::slice::from_ref(&x),
            Attrs::new().int("dim", dim).int("by", by).float("fill", -1.0),
        )
    };
    assert_eq!(by(1, 1), i(&[2, 3], &[2, 3, -1, 5, 6, -1]));
    assert_eq!(by(-2, 1), i(&[2, 3], &[-1, -1, 1, -1, -1, 4]));
    assert_eq!(by(1, 0), i(&[2, 3], &[4, 5, 6, -1, -1, -1]));
    assert_eq!(by(i64::MAX, 1), i(&[2, 3], &[-1; 6]));
}
