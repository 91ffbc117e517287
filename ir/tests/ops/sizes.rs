//! Symbols get their sizes from the arguments.

use crate::one_op::{f, i};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::dim::{Dim, SymKind};
use weft_ir::interp::{Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::Module;
use weft_ir::op::Op;
use weft_ir::ty::Type;

/// Symbols B, S and the ragged R of `2*B*S` rows; a function that reads `[B*S]` rows and choices
/// `[B, S, 2]`.
fn module() -> Module {
    let mut m = Module::default();
    let b = Dim::sym(m.add_sym("B", SymKind::Bounded { max: 4 }));
    let s = Dim::sym(m.add_sym("S", SymKind::Bounded { max: 8 }));
    let tokens = b.checked_mul(s).unwrap();
    let total = tokens.checked_mul(Dim::fixed(2)).unwrap();
    let r = Dim::sym(m.add_sym("R", SymKind::Ragged { segments: 3, total }));
    let mut f = Builder::new("rows");
    let x = f.param("x", Type::f32([tokens, Dim::fixed(1)]));
    let x = f.reshape(x, &[b, s, Dim::fixed(1)]).unwrap();
    let ids = f.param("ids", Type::i32([b, s, Dim::fixed(2)]));
    let attrs = Attrs::new().int("experts", 3).with("rows", Attr::Dim(r));
    let routed = f.emit_all(Op::Route, &[ids], attrs).unwrap();
    let rows = f.emit(Op::Dispatch, &[x, routed[1]], Attrs::new().int("active", 2)).unwrap();
    let n = f.emit(Op::Extent, &[], Attrs::new().with("of", Attr::Dim(r))).unwrap();
    m.add_func(f.finish(vec![rows, n]));
    m
}

#[test]
fn ragged_dims_have_their_total() {
    let m = module();
    let rows = m.find("rows").unwrap();
    let run = |args| Interp::new(&m, Precision::Stated).run(rows, args);
    // B*S = 2 alone tells neither; [B, S, 2] tells both.
    let ys = run(vec![f(&[2, 1], &[5.0, 6.0]), i(&[1, 2, 2], &[2, 0, 0, 1])]).unwrap();
    assert_eq!(ys, [f(&[4, 1], &[5.0, 6.0, 6.0, 5.0]), Tensor::scalar(4.0)]);
    let mismatch = run(vec![f(&[3, 1], &[0.0; 3]), i(&[1, 2, 2], &[0; 4])]).unwrap_err();
    assert_eq!(mismatch.to_string(), "@rows: argument 0: expected f32[2, 1], found f32[3, 1]");
    let large = run(vec![f(&[9, 1], &[0.0; 9]), i(&[1, 9, 2], &[0; 18])]).unwrap_err();
    assert_eq!(large.why, "S = 9 is not within 1..8");
}

#[test]
fn random_arguments_fit_and_repeat() {
    let m = module();
    let rows = m.find("rows").unwrap();
    let sizes: Sizes = [("B", 3), ("S", 5)].map(|(n, v)| (m.find_sym(n).unwrap(), v)).into();
    let draw = |seed| {
        let range = |_, ty: &Type| match ty.dtype.is_int() {
            true => Range { low: 0.0, high: 3.0 },
            false => Range { low: -1.0, high: 1.0 },
        };
        random_args(&m, rows, &sizes, seed, &range).unwrap()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let ids = draw(1)[1].ints().unwrap().to_vec();
    assert!((0..3).all(|e| ids.contains(&e)) && ids.iter().all(|e| (0..3).contains(e)));
    Interp::new(&m, Precision::F64).run(rows, draw(1)).unwrap();
}
