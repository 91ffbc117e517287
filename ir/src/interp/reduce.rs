//! Reductions. Elements are taken in row-major order.

use super::pointwise;
use super::tensor::{each_index, strides};
use super::{Cx, Data, Fault, Tensor};

pub(super) fn sum(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    folded(cx, x, (0.0, 0), |a, b| a + b, i64::wrapping_add)
}

pub(super) fn max(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    folded(cx, x, (f64::NEG_INFINITY, i64::MIN), pointwise::max, i64::max)
}

fn folded(
    cx: &Cx,
    x: &Tensor,
    start: (f64, i64),
    f: fn(f64, f64) -> f64,
    i: fn(i64, i64) -> i64,
) -> Result<Tensor, Fault> {
    fn of<T: Copy>(v: &[T], n: usize, start: T, targets: &[usize], f: fn(T, T) -> T) -> Vec<T> {
        let mut out = vec![start; n];
        v.iter().zip(targets).for_each(|(v, t)| out[*t] = f(out[*t], *v));
        out
    }
    let gone = cx.ints("dims");
    let kept: Vec<usize> = (0..x.dims.len()).filter(|d| !gone.contains(d)).collect();
    let dims: Vec<usize> = kept.iter().map(|d| x.dims[*d]).collect();
    let stride = strides(&dims);
    let mut targets = Vec::with_capacity(x.len());
    each_index(&x.dims, |at| {
        targets.push(kept.iter().zip(&stride).map(|(d, s)| at[*d] * s).sum::<usize>());
    });
    let n = dims.iter().product();
    let data = match &x.data {
        Data::Float(v) => Data::Float(of(v, n, start.0, &targets, f)),
        Data::Int(v) => Data::Int(of(v, n, start.1, &targets, i)),
        Data::Bool(_) => return Err("needs numbers".into()),
    };
    cx.result(0, data)
}
