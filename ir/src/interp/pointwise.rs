//! Sources and pointwise ops.

use super::tensor::each_index;
use super::{Cx, Data, Fault, Tensor};

pub(super) fn constant(cx: &Cx) -> Result<Tensor, Fault> {
    let ty = cx.attrs.get_type("type").ok_or("needs `type`")?;
    Ok(Tensor::full(ty.dtype, &cx.run.dims(&ty.dims)?, cx.float("value")))
}

pub(super) fn iota(cx: &Cx) -> Result<Tensor, Fault> {
    let ty = cx.attrs.get_type("type").ok_or("needs `type`")?;
    let dims = cx.run.dims(&ty.dims)?;
    let dim = cx.count("dim")?;
    let mut along = vec![];
    each_index(&dims, |i| along.push(i[dim]));
    if ty.dtype.is_float() {
        cx.floats(0, along.into_iter().map(|i| i as f64).collect())
    } else {
        cx.result(0, Data::Int(along.into_iter().map(|i| i as i64).collect()))
    }
}

/// An op on floats alone.
pub(super) fn float(cx: &Cx, xs: &[&Tensor], f: fn(f64) -> f64) -> Result<Tensor, Fault> {
    cx.floats(0, xs[0].floats()?.iter().map(|x| f(*x)).collect())
}

/// An op on floats or integers.
pub(super) fn number(
    cx: &Cx,
    xs: &[&Tensor],
    f: fn(f64) -> f64,
    i: fn(i64) -> i64,
) -> Result<Tensor, Fault> {
    match &xs[0].data {
        Data::Float(x) => cx.floats(0, x.iter().map(|x| f(*x)).collect()),
        Data::Int(x) => cx.result(0, Data::Int(x.iter().map(|x| i(*x)).collect())),
        Data::Bool(_) => Err("needs numbers".into()),
    }
}

/// An op on two tensors of floats or integers.
pub(super) fn numbers(
    cx: &Cx,
    xs: &[&Tensor],
    f: fn(f64, f64) -> f64,
    i: fn(i64, i64) -> i64,
) -> Result<Tensor, Fault> {
    match (&xs[0].data, &xs[1].data) {
        (Data::Float(x), Data::Float(y)) => {
            cx.floats(0, x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect())
        }
        (Data::Int(x), Data::Int(y)) => {
            cx.result(0, Data::Int(x.iter().zip(y).map(|(x, y)| i(*x, *y)).collect()))
        }
        _ => Err("needs numbers of one kind".into()),
    }
}

pub(super) fn div(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    if let Data::Int(y) = &xs[1].data
        && y.contains(&0)
    {
        return Err("an integer is divided by zero".into());
    }
    numbers(cx, xs, |x, y| x / y, i64::wrapping_div)
}

pub(super) fn compare(
    cx: &Cx,
    xs: &[&Tensor],
    f: fn(f64, f64) -> bool,
    i: fn(i64, i64) -> bool,
) -> Result<Tensor, Fault> {
    let truth: Vec<bool> = match (&xs[0].data, &xs[1].data) {
        (Data::Float(x), Data::Float(y)) => x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect(),
        (Data::Int(x), Data::Int(y)) => x.iter().zip(y).map(|(x, y)| i(*x, *y)).collect(),
        _ => return Err("needs numbers of one kind".into()),
    };
    cx.result(0, Data::Bool(truth))
}

pub(super) fn logic(cx: &Cx, xs: &[&Tensor], f: fn(&[bool]) -> bool) -> Result<Tensor, Fault> {
    let xs: Vec<&[bool]> = xs.iter().map(|x| x.bools()).collect::<Result<_, _>>()?;
    let row = |i| xs.iter().map(|x| x[i]).collect::<Vec<bool>>();
    cx.result(0, Data::Bool((0..xs[0].len()).map(|i| f(&row(i))).collect()))
}

pub(super) fn select(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    fn of<T: Copy>(c: &[bool], a: &[T], b: &[T]) -> Vec<T> {
        c.iter().zip(a.iter().zip(b)).map(|(c, (a, b))| if *c { *a } else { *b }).collect()
    }
    let c = xs[0].bools()?;
    let data = match (&xs[1].data, &xs[2].data) {
        (Data::Float(a), Data::Float(b)) => Data::Float(of(c, a, b)),
        (Data::Int(a), Data::Int(b)) => Data::Int(of(c, a, b)),
        (Data::Bool(a), Data::Bool(b)) => Data::Bool(of(c, a, b)),
        _ => return Err("the branches are of different kinds".into()),
    };
    cx.result(0, data)
}

pub(super) fn convert(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let to = cx.attrs.get_dtype("dtype").ok_or("needs `dtype`")?;
    if let Data::Int(v) = &xs[0].data
        && to.is_int()
    {
        return cx.result(0, Data::Int(v.clone()));
    }
    let numbers = xs[0].numbers();
    let data = if to.is_float() {
        Data::Float(numbers)
    } else if to.is_int() {
        // `as` truncates toward zero, keeps to the ends of the range and turns NaN into 0.
        Data::Int(match to {
            crate::ty::DType::I32 => numbers.iter().map(|x| *x as i32 as i64).collect(),
            _ => numbers.iter().map(|x| *x as i64).collect(),
        })
    } else {
        Data::Bool(numbers.iter().map(|x| *x != 0.0).collect())
    };
    cx.result(0, data)
}

pub(super) fn sign(x: f64) -> f64 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x * 0.0
    }
}

/// The larger; NaN if one is.
pub(super) fn max(x: f64, y: f64) -> f64 {
    if x.is_nan() || x >= y { x } else { y }
}

/// The smaller; NaN if one is.
pub(super) fn min(x: f64, y: f64) -> f64 {
    if x.is_nan() || x <= y { x } else { y }
}

/// `2/√π e^(-x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!`: terms of one sign, so nothing cancels. 1 - erf(6) is
/// 2e-17.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > sum.abs() * 1e-18 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
