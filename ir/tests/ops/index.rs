//! Rows by id, elements by id, and the largest.

use crate::one_op::{counting, f, i, run1};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::op::Op;

#[test]
fn gather_gives_zeros_for_negative_ids() {
    let y = run1(Op::Gather, &[counting(&[3, 2]), i(&[2, 2], &[2, -1, 0, 2])], Attrs::new());
    assert_eq!(y, f(&[2, 2, 2], &[4.0, 5.0, 0.0, 0.0, 0.0, 1.0, 4.0, 5.0]));
}

#[test]
fn scatter_add_sums_repeated_rows() {
    let x = f(&[4, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let y = run1(
        Op::ScatterAdd,
        &[x, i(&[4], &[2, 0, -1, 2])],
        Attrs::new().with("rows", Attr::Dim(3.into())),
    );
    assert_eq!(y, f(&[3, 2], &[3.0, 4.0, 0.0, 0.0, 8.0, 10.0]));
}

#[test]
fn take_and_put_work_along_the_last_dim() {
    let ids = i(&[2, 2], &[2, 0, 1, 1]);
    let y = run1(Op::Take, &[counting(&[2, 3]), ids.clone()], Attrs::new());
    assert_eq!(y, f(&[2, 2], &[2.0, 0.0, 4.0, 4.0]));
    let z = run1(Op::Put, &[f(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), ids], Attrs::new().int("size", 3));
    assert_eq!(z, f(&[2, 3], &[2.0, 0.0, 1.0, 0.0, 7.0, 0.0]));
}

#[test]
fn one_hot_of_nothing_is_zeros() {
    let y = run1(Op::OneHot, &[i(&[3], &[1, -1, 2])], Attrs::new().int("size", 2));
    assert_eq!(y, f(&[3, 2], &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
}

#[test]
fn topk_breaks_ties_by_the_lowest_index() {
    let x = f(&[2, 5], &[1.0, 3.0, 3.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0, -1.0]);
    let y = run1(Op::Topk, &[x], Attrs::new().int("k", 3));
    assert_eq!(y, i(&[2, 3], &[1, 2, 4, 0, 1, 2]));
}

fn grouped(x: &[f64], k: i64, groups: i64, kept: i64, score: &str) -> Vec<f64> {
    let attrs = Attrs::new().int("k", k).int("groups", groups).int("kept", kept);
    let x = f(&[1, x.len()], x);
    run1(Op::GroupedTopk, &[x], attrs.word("group_score", score)).numbers()
}

#[test]
fn grouped_topk_keeps_whole_groups() {
    // Groups (5, 0), (3, 3), (4, 1).
    let x = [5.0, 0.0, 3.0, 3.0, 4.0, 1.0];
    assert_eq!(grouped(&x, 3, 3, 2, "max"), [0.0, 4.0, 5.0]);
    assert_eq!(grouped(&x, 3, 3, 2, "top2"), [0.0, 2.0, 3.0]);
    assert_eq!(grouped(&x, 2, 3, 1, "top2"), [2.0, 3.0]);
    assert_eq!(grouped(&x, 3, 3, 3, "max"), [0.0, 4.0, 2.0]);
    // Equal groups: the first.
    assert_eq!(grouped(&[1.0, 2.0, 2.0, 1.0], 2, 2, 1, "top2"), [1.0, 0.0]);
}
