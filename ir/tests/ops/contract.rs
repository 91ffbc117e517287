//! Matmul with every flag, and segments of rows.

use crate::one_op::{close, counting, f, i, run1};
use weft_ir::attr::Attrs;
use weft_ir::op::Op;

#[test]
fn matmul_swaps_what_its_flags_say() {
    // [1 2; 3 4; 5 6] [1 0 2; 0 1 3]
    let want = [1.0, 2.0, 8.0, 3.0, 4.0, 18.0, 5.0, 6.0, 28.0];
    let x =
        [f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), f(&[2, 3], &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0])];
    let y =
        [f(&[2, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, 3.0]), f(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, 3.0])];
    for (tx, ty) in [(false, false), (false, true), (true, false), (true, true)] {
        let xs = [x[tx as usize].clone(), y[ty as usize].clone()];
        let z = run1(Op::Matmul, &xs, Attrs::new().flag("tx", tx).flag("ty", ty));
        assert_eq!(z, f(&[3, 3], &want), "tx {tx} ty {ty}");
    }
}

#[test]
fn matmul_of_batches_shares_or_pairs() {
    let x = counting(&[2, 1, 2]);
    let shared = run1(Op::Matmul, &[x.clone(), counting(&[2, 2])], Attrs::new());
    assert_eq!(shared, f(&[2, 1, 2], &[2.0, 3.0, 6.0, 11.0]));
    let paired = run1(Op::Matmul, &[x, counting(&[2, 2, 2])], Attrs::new());
    assert_eq!(paired, f(&[2, 1, 2], &[2.0, 3.0, 26.0, 31.0]));
}

#[test]
fn a_single_column_and_a_single_row() {
    let column = run1(Op::Matmul, &[counting(&[2, 3]), counting(&[3, 1])], Attrs::new());
    assert_eq!(column, f(&[2, 1], &[5.0, 14.0]));
    let row =
        run1(Op::Matmul, &[counting(&[1, 3]), counting(&[1, 3])], Attrs::new().flag("ty", true));
    assert_eq!(row, f(&[1, 1], &[5.0]));
}

/// Segments of 2, 0 and 1 rows.
fn offsets() -> weft_ir::interp::Tensor {
    i(&[4], &[0, 2, 2, 3])
}

#[test]
fn grouped_matmul_uses_each_segments_weights() {
    let x = f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    // One row of [k, n] = [2, 2] each: doubling, junk, swapping.
    let w = [2.0, 0.0, 0.0, 2.0, 9.0, 9.0, 9.0, 9.0, 0.0, 1.0, 1.0, 0.0];
    let y = run1(Op::GroupedMatmul, &[x.clone(), f(&[3, 2, 2], &w), offsets()], Attrs::new());
    close(&y, &[2.0, 4.0, 6.0, 8.0, 6.0, 5.0]);
    // Stored [n, k] = [1, 2].
    let w = f(&[3, 1, 2], &[1.0, 10.0, 9.0, 9.0, 10.0, 1.0]);
    let y = run1(Op::GroupedMatmul, &[x, w, offsets()], Attrs::new().flag("ty", true));
    assert_eq!(y, f(&[3, 1], &[21.0, 43.0, 56.0]));
}

#[test]
fn grouped_outer_is_zero_for_an_empty_segment() {
    let (x, y) = (f(&[3, 1], &[1.0, 2.0, 3.0]), f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let z = run1(Op::GroupedOuter, &[x, y, offsets()], Attrs::new());
    assert_eq!(z, f(&[3, 1, 2], &[7.0, 10.0, 0.0, 0.0, 15.0, 18.0]));
}
