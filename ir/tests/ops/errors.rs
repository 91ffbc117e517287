//! What has no value is an error that says where.

use crate::one_op::{counting, dims, f, i, module_of, try_run};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::interp::{Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::op::Op;
use weft_ir::ty::Type;

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
    let why = "offsets do not ascend from 0 to at most the 3 rows";
    for offsets in [[1, 2, 3], [0, 4, 3]] {
        check(Op::GroupedMatmul, &grouped(&offsets), Attrs::new(), why);
    }
    let outer = [counting(&[3, 1]), counting(&[3, 1]), i(&[3], &[0, 2, 1])];
    check(Op::GroupedOuter, &outer, Attrs::new(), why);
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
    let huge = Type::f32(dims(&[1 << 40, 1 << 40]));
    let attrs = Attrs::new().float("value", 0.0).with("type", Attr::Type(huge));
    let error = try_run(Op::Constant, 0, &[], &attrs, Precision::F64).unwrap_err();
    assert!(error.why.contains("too large"), "{error}");
}

/// Ids drawn from a little more than their range: every run ends in values or in an error.
#[test]
fn no_indices_panic() {
    let ids = |sizes: &[u64]| Type::i32(dims(sizes));
    let x = |sizes: &[u64]| Type::f32(dims(sizes));
    let rows = |n: u64| Attr::Dim(n.into());
    let active = || Attrs::new().int("active", 1);
    let cases = [
        (Op::Gather, vec![x(&[3, 2]), ids(&[2])], Attrs::new()),
        (Op::ScatterAdd, vec![x(&[2, 2]), ids(&[2])], Attrs::new().with("rows", rows(3))),
        (Op::Take, vec![x(&[1, 3]), ids(&[1, 2])], Attrs::new()),
        (Op::Put, vec![x(&[1, 2]), ids(&[1, 2])], Attrs::new().int("size", 3)),
        (Op::Route, vec![ids(&[2, 1])], Attrs::new().int("experts", 3).with("rows", rows(2))),
        (Op::Dispatch, vec![x(&[2, 1]), ids(&[2])], active()),
        (Op::Combine, vec![x(&[2, 1]), ids(&[2])], active().dims("tokens", dims(&[2]))),
        (Op::CombineDot, vec![x(&[2, 1]), ids(&[2]), x(&[2, 1])], active()),
        (Op::GroupedMatmul, vec![x(&[2, 1]), x(&[1, 1, 1]), ids(&[2])], Attrs::new()),
        (Op::GroupedOuter, vec![x(&[2, 1]), x(&[2, 1]), ids(&[2])], Attrs::new()),
        (Op::CrossEntropy, vec![x(&[2, 3]), ids(&[2])], Attrs::new()),
        (Op::CacheAppend, vec![x(&[2, 3, 1]).as_state(), x(&[2, 1, 1]), ids(&[2])], Attrs::new()),
    ];
    for (op, types, attrs) in cases {
        let (m, func) = module_of(&types, &|b, xs| b.emit_all(op, xs, attrs.clone()));
        let run = |seed| {
            let args =
                random_args(&m, func, &Sizes::new(), seed, &|_, _| Range { low: -1.0, high: 4.0 });
            Interp::new(&m, Precision::Stated).run(func, args.unwrap()).is_ok()
        };
        let fine = (0..200).filter(|seed| run(*seed)).count();
        assert!(fine > 0 && fine < 200, "{}: {fine} of 200 have a value", op.name());
    }
}
