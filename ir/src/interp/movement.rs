//! Movement ops: each says from where an element of the result comes.

use super::tensor::{each_index, strides};
use super::{Cx, Fault, Tensor};

/// The result whose element at an index is the element of `x` at memory place `source(index)`, or
/// `fill`.
fn moved(
    cx: &Cx,
    x: &Tensor,
    fill: f64,
    source: impl Fn(&[usize]) -> Option<usize>,
) -> Result<Tensor, Fault> {
    let dims = cx.run.dims(&cx.types[0].dims)?;
    let mut places = Vec::with_capacity(dims.iter().product());
    each_index(&dims, |i| places.push(source(i)));
    if places.iter().flatten().any(|p| *p >= x.len()) {
        return Err("reads outside its operand".into());
    }
    cx.result(0, x.data.pick(&places, fill))
}

pub(super) fn transpose(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let perm = cx.ints("perm");
    let stride = strides(&x.dims);
    moved(cx, x, 0.0, |i| Some(perm.iter().zip(i).map(|(p, i)| stride[*p] * i).sum()))
}

pub(super) fn broadcast(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let map = cx.ints("dims");
    let stride = strides(&x.dims);
    moved(cx, x, 0.0, |i| {
        let place = |d: usize| if x.dims[d] == 1 { 0 } else { i[map[d]] * stride[d] };
        Some((0..map.len()).map(place).sum())
    })
}

/// `moved`, where only the place along `dim` changes: it becomes `at(place)`, and outside `x` there
/// is `fill`.
fn moved_along(cx: &Cx, x: &Tensor, fill: f64, at: impl Fn(i64) -> i64) -> Result<Tensor, Fault> {
    let dim = cx.count("dim")?;
    let stride = strides(&x.dims);
    moved(cx, x, fill, |i| {
        let place = usize::try_from(at(i[dim] as i64)).ok().filter(|p| *p < x.dims[dim])?;
        let others = (0..i.len()).filter(|d| *d != dim).map(|d| i[d] * stride[d]);
        Some(others.sum::<usize>() + place * stride[dim])
    })
}

pub(super) fn slice(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let start = cx.int("start");
    moved_along(cx, x, 0.0, |i| i + start)
}

pub(super) fn pad(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let low = cx.int("low");
    moved_along(cx, x, 0.0, |i| i - low)
}

pub(super) fn shift(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let by = cx.int("by");
    moved_along(cx, x, cx.float("fill"), |i| i.saturating_add(by))
}

pub(super) fn concat(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let dim = cx.count("dim")?;
    let outer: usize = xs[0].dims[..dim].iter().product();
    let mut data = xs[0].data.none();
    for o in 0..outer {
        for x in xs {
            let run: usize = x.dims[dim..].iter().product();
            data.append(&x.data, o * run, run)?;
        }
    }
    cx.result(0, data)
}
