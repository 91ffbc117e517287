//! Sources and pointwise ops.

use crate::one_op::{close, dims, f, i, run1, try_run};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::interp::{Precision, Tensor};
use weft_ir::op::Op;
use weft_ir::ty::{DType, Type};

#[test]
fn sources_fill_their_type() {
    let of = |ty| Attrs::new().with("type", Attr::Type(ty));
    let three = run1(Op::Constant, &[], of(Type::f32(dims(&[2, 2]))).float("value", 3.0));
    assert_eq!(three, f(&[2, 2], &[3.0; 4]));
    let rows = run1(Op::Iota, &[], of(Type::i32(dims(&[3, 2]))).int("dim", 0));
    assert_eq!(rows, i(&[3, 2], &[0, 0, 1, 1, 2, 2]));
    let columns = run1(Op::Iota, &[], of(Type::f32(dims(&[2, 3]))).int("dim", 1));
    assert_eq!(columns, f(&[2, 3], &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]));
    let n = run1(Op::Extent, &[], Attrs::new().with("of", Attr::Dim(7.into())));
    assert_eq!(n, Tensor::scalar(7.0));
}

#[test]
fn arithmetic_on_floats() {
    let (x, y) = (f(&[4], &[-2.0, 0.5, 3.0, -7.5]), f(&[4], &[4.0, 0.5, -1.0, 2.0]));
    let two = |op| run1(op, &[x.clone(), y.clone()], Attrs::new());
    close(&two(Op::Add), &[2.0, 1.0, 2.0, -5.5]);
    close(&two(Op::Sub), &[-6.0, 0.0, 4.0, -9.5]);
    close(&two(Op::Mul), &[-8.0, 0.25, -3.0, -15.0]);
    close(&two(Op::Div), &[-0.5, 1.0, -3.0, -3.75]);
    close(&two(Op::Max), &[4.0, 0.5, 3.0, 2.0]);
    close(&two(Op::Min), &[-2.0, 0.5, -1.0, -7.5]);
    close(&two(Op::Eq), &[0.0, 1.0, 0.0, 0.0]);
    close(&two(Op::Lt), &[1.0, 0.0, 0.0, 1.0]);
    close(&two(Op::Le), &[1.0, 1.0, 0.0, 1.0]);
    let one = |op| run1(op, std::slice::from_ref(&x), Attrs::new());
    close(&one(Op::Neg), &[2.0, -0.5, -3.0, 7.5]);
    close(&one(Op::Abs), &[2.0, 0.5, 3.0, 7.5]);
    close(&one(Op::Sign), &[-1.0, 1.0, 1.0, -1.0]);
    close(&one(Op::Floor), &[-2.0, 0.0, 3.0, -8.0]);
    close(&run1(Op::Sign, &[f(&[1], &[0.0])], Attrs::new()), &[0.0]);
}

#[test]
fn functions_of_floats() {
    let x = f(&[2], &[0.25, 1.0]);
    let of = |op| run1(op, std::slice::from_ref(&x), Attrs::new());
    let e = std::f64::consts::E;
    close(&of(Op::Exp), &[1.2840254166877414, e]);
    close(&of(Op::Log), &[-1.3862943611198906, 0.0]);
    close(&of(Op::Sqrt), &[0.5, 1.0]);
    close(&of(Op::Rsqrt), &[2.0, 1.0]);
    close(&of(Op::Sigmoid), &[0.5621765008857981, e / (1.0 + e)]);
    close(&of(Op::Tanh), &[0.24491866240370913, 0.7615941559557649]);
    close(&of(Op::Sin), &[0.24740395925452294, 0.8414709848078965]);
    close(&of(Op::Cos), &[0.9689124217106447, 0.5403023058681398]);
    // Values of the error function from Abramowitz and Stegun, table 7.1.
    let x = f(&[5], &[0.0, 0.5, -1.0, 2.0, 7.0]);
    let want = [0.0, 0.5204998778130465, -0.8427007929497149, 0.9953222650189527, 1.0];
    close(&run1(Op::Erf, &[x], Attrs::new()), &want);
}

#[test]
fn integers_truncate_wrap_and_stay_whole() {
    let two =
        |op, x: &[i64], y: &[i64]| run1(op, &[i(&[x.len()], x), i(&[y.len()], y)], Attrs::new());
    assert_eq!(two(Op::Div, &[7, -7, 7], &[2, 2, -2]), i(&[3], &[3, -3, -3]));
    assert_eq!(two(Op::Add, &[i32::MAX as i64], &[1]), i(&[1], &[i32::MIN as i64]));
    assert_eq!(two(Op::Max, &[3, -4], &[-3, 4]), i(&[2], &[3, 4]));
    let by_zero = [i(&[1], &[1]), i(&[1], &[0])];
    let error = try_run(Op::Div, 0, &by_zero, &Attrs::new(), Precision::F64).unwrap_err();
    assert_eq!(error.to_string(), "case.model:1:1: @case: div: an integer is divided by zero");
}

#[test]
fn bools_and_selection() {
    let (a, b) = (
        Tensor::bool(&[4], vec![false, false, true, true]),
        Tensor::bool(&[4], vec![false, true, false, true]),
    );
    let both = [a.clone(), b];
    close(&run1(Op::And, &both, Attrs::new()), &[0.0, 0.0, 0.0, 1.0]);
    close(&run1(Op::Or, &both, Attrs::new()), &[0.0, 1.0, 1.0, 1.0]);
    close(&run1(Op::Not, std::slice::from_ref(&a), Attrs::new()), &[1.0, 1.0, 0.0, 0.0]);
    let chosen = [a, i(&[4], &[1, 2, 3, 4]), i(&[4], &[5, 6, 7, 8])];
    assert_eq!(run1(Op::Select, &chosen, Attrs::new()), i(&[4], &[5, 6, 3, 4]));
}

#[test]
fn conversions_round_to_even_and_truncate_to_integers() {
    let x = f(&[6], &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -2.75, 2.75, f64::NAN, 1e20]);
    let to = |dtype, precision| {
        let attrs = Attrs::new().with("dtype", Attr::DType(dtype));
        try_run(Op::Convert, 0, std::slice::from_ref(&x), &attrs, precision).unwrap().remove(0)
    };
    let narrow = to(DType::Bf16, Precision::Stated);
    assert_eq!(narrow.dtype, DType::Bf16);
    assert_eq!(narrow.floats().unwrap()[..4], [1.0, 1.015625, -2.75, 2.75]);
    assert_eq!(to(DType::Bf16, Precision::F64).floats().unwrap()[0], 1.0 + 1.0 / 256.0);
    assert_eq!(to(DType::I32, Precision::Stated), i(&[6], &[1, 1, -2, 2, 0, i32::MAX as i64]));
    close(&to(DType::Bool, Precision::Stated), &[1.0; 6]);
    let coarse = to(DType::E4m3, Precision::Stated);
    assert_eq!(coarse.floats().unwrap()[2..4], [-2.75, 2.75]);
    assert_eq!(coarse.floats().unwrap()[5], 448.0);
}

#[test]
fn stated_results_are_those_of_f32_arithmetic() {
    let (x, y) = (0.1f32, 0.7f32);
    let xs = [f(&[1], &[x as f64]), f(&[1], &[y as f64])];
    for (op, want) in [(Op::Add, x + y), (Op::Mul, x * y), (Op::Div, x / y)] {
        let found = try_run(op, 0, &xs, &Attrs::new(), Precision::Stated).unwrap();
        assert_eq!(found[0].floats().unwrap(), [want as f64]);
    }
}
