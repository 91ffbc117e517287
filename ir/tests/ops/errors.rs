//! What has no value is an error that says where.

use crate::one_op::{counting, f, i, try_run};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::interp::{Precision, Tensor};
use weft_ir::op::Op;

fn check(op: Op, xs: &[Tensor], attrs: Attrs, why: &str) {
    let error = try_run(op, 0, xs, &attrs, Precision::F64).unwrap_err();
    assert_eq!(error.why, why);
    assert_eq!((error.func.as_str(), error.op), ("case", Some(op.name())));
    assert_eq!(error.place.as_deref(), Some("case.model:1:1"));
}

#[test]
fn indices_out_of_range() {
    let table = counting(&[3, 2]);
    let outside = "the index 3 is not within 0..3";
    check(Op::Gather, &[table.clone(), i(&[1], &[3])], Attrs::new(), outside);
    let rows = Attrs::new().with("rows", Attr::Dim(3.into()));
    check(Op::ScatterAdd, &[counting(&[1, 2]), i(&[1], &[3])], rows, outside);
    let ids = i(&[3, 1], &[0, 1, -1]);
    let negative = "the index -1 is not within 0..2";
    check(Op::Take, &[table, ids.clone()], Attrs::new(), negative);
    check(Op::Put, &[counting(&[3, 1]), ids], Attrs::new().int("size", 2), negative);
    let targets = i(&[1], &[2]);
    check(
        Op::CrossEntropy,
        &[counting(&[1, 2]), targets],
        Attrs::new(),
        "the target 2 is not below 2",
    );
}

#[test]
fn segments_and_places_that_are_none() {
    let grouped = |offsets: &[i64]| [counting(&[3, 1]), counting(&[2, 1, 1]), i(&[3], offsets)];
    let why = "offsets do not ascend from 0 to the 3 rows";
    for offsets in [[0, 2, 2], [1, 2, 3], [0, 4, 3]] {
        check(Op::GroupedMatmul, &grouped(&offsets), Attrs::new(), why);
    }
    let route = Attrs::new().int("experts", 2).with("rows", Attr::Dim(2.into()));
    check(Op::Route, &[i(&[1, 2], &[0, 2])], route.clone(), "the expert 2 is not within 0..2");
    check(Op::Route, &[i(&[2, 2], &[0; 4])], route, "4 choices do not fill 2 rows");
    let active = Attrs::new().int("active", 2);
    let far = [counting(&[1, 1]), i(&[2], &[0, 2])];
    check(Op::Dispatch, &far, active.clone(), "the place 2 is not within 0..2");
    let tokens = active.dims("tokens", [1.into()]);
    let twice = [counting(&[2, 1]), i(&[2], &[1, 1])];
    check(Op::Combine, &twice, tokens.clone(), "the place 1 has two rows");
    check(Op::Combine, &[f(&[1, 1], &[1.0]), i(&[1], &[1])], tokens, "the place 0 has no row");
}

#[test]
fn values_too_large_to_hold() {
    let huge = weft_ir::ty::Type::f32(crate::one_op::dims(&[1 << 40, 1 << 40]));
    let attrs = Attrs::new().float("value", 0.0).with("type", Attr::Type(huge));
    let error = try_run(Op::Constant, 0, &[], &attrs, Precision::F64).unwrap_err();
    assert!(error.why.contains("too large"), "{error}");
}
