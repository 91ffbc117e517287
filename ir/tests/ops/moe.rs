//! Tokens to experts and back. Three tokens choose two of four experts; nobody chooses expert 1.

use crate::one_op::{f, i, run, run1};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::interp::Tensor;
use weft_ir::op::Op;

fn ids() -> Tensor {
    i(&[3, 2], &[3, 0, 0, 2, 2, 3])
}

fn order() -> Tensor {
    i(&[6], &[1, 2, 3, 4, 0, 5])
}

fn active() -> Attrs {
    Attrs::new().int("active", 2)
}

#[test]
fn route_sorts_by_expert_then_token() {
    let attrs = Attrs::new().int("experts", 4).with("rows", Attr::Dim(6.into()));
    let ys = run(Op::Route, &[ids()], attrs);
    assert_eq!(ys, [i(&[5], &[0, 2, 2, 4, 6]), order()]);
}

#[test]
fn dispatch_copies_a_token_for_each_choice() {
    let x = f(&[3, 1], &[10.0, 20.0, 30.0]);
    let y = run1(Op::Dispatch, &[x.clone(), order()], active());
    assert_eq!(y, f(&[6, 1], &[10.0, 20.0, 20.0, 30.0, 10.0, 30.0]));
    let weights = f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y = run1(Op::Dispatch, &[x, order(), weights], active());
    assert_eq!(y, f(&[6, 1], &[20.0, 60.0, 80.0, 150.0, 10.0, 180.0]));
}

#[test]
fn combine_brings_rows_back_to_their_tokens() {
    let rows = f(&[6, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let attrs = active().dims("tokens", [3.into()]);
    // Token 0 has rows 4 and 0, token 1 rows 1 and 2, token 2 rows 3 and 5.
    let y = run1(Op::Combine, &[rows.clone(), order()], attrs.clone());
    assert_eq!(y, f(&[3, 1], &[6.0, 5.0, 10.0]));
    let weights = f(&[3, 2], &[1.0, 10.0, 1.0, 10.0, 1.0, 10.0]);
    let y = run1(Op::Combine, &[rows, order(), weights], attrs);
    assert_eq!(y, f(&[3, 1], &[15.0, 32.0, 64.0]));
}

#[test]
fn combine_dot_is_the_derivative_for_the_weights() {
    let rows = f(&[6, 2], &[1.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 4.0, 5.0, 5.0, 6.0, 0.0]);
    let dy = f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let y = run1(Op::CombineDot, &[rows, order(), dy], active());
    assert_eq!(y, f(&[3, 2], &[15.0, 3.0, 6.0, 12.0, 44.0, 30.0]));
}
