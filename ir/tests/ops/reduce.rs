//! Reductions.

use crate::one_op::{counting, f, i, run1};
use weft_ir::attr::Attrs;
use weft_ir::op::Op;

#[test]
fn sums_over_some_all_and_no_dims() {
    let over =
        |d: &[i64]| run1(Op::ReduceSum, &[counting(&[2, 3, 2])], Attrs::new().ints("dims", d));
    assert_eq!(over(&[1]), f(&[2, 2], &[6.0, 9.0, 24.0, 27.0]));
    assert_eq!(over(&[0, 2]), f(&[3], &[14.0, 22.0, 30.0]));
    assert_eq!(over(&[0, 1, 2]), f(&[], &[66.0]));
    assert_eq!(over(&[]), counting(&[2, 3, 2]));
}

#[test]
fn maxima_of_negative_numbers() {
    let over = |d: &[i64], x| run1(Op::ReduceMax, &[x], Attrs::new().ints("dims", d));
    assert_eq!(over(&[1], f(&[2, 2], &[-5.0, -3.0, -9.0, -11.0])), f(&[2], &[-3.0, -9.0]));
    assert_eq!(over(&[0], i(&[3], &[-4, -2, -7])), i(&[], &[-2]));
}

#[test]
fn a_batch_of_one_sums_to_itself() {
    assert_eq!(run1(Op::BatchSum, &[counting(&[3])], Attrs::new()), counting(&[3]));
}
