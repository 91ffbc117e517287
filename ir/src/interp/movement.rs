//! Movement ops: each says from where an element of the result comes.

use super::tensor::{each_index, strides};
use super::{Cx, Fault, Tensor};

/// The result whose element at an index is the element of `x` at memory place `source(index)`, or `fill`.
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

/// Where `index` lies in `x` when its entry at `dim` becomes `at`.
fn displaced(x: &Tensor, index: &[usize], dim: usize, at: i64) -> Option<usize> {
    if at < 0 || at >= x.dims[dim] as i64 {
        return None;
    }
    let entry = |d: usize| if d == dim { at as usize } else { index[d] };
    Some(strides(&x.dims).iter().enumerate().map(|(d, s)| entry(d) * s).sum())
}

pub(super) fn slice(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let (dim, start) = (cx.count("dim")?, cx.int("start"));
    moved(cx, x, 0.0, |i| displaced(x, i, dim, i[dim] as i64 + start))
}

pub(super) fn pad(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let (dim, low) = (cx.count("dim")?, cx.int("low"));
    moved(cx, x, 0.0, |i| displaced(x, i, dim, i[dim] as i64 - low))
}

pub(super) fn shift(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let (dim, by) = (cx.count("dim")?, cx.int("by"));
    moved(cx, x, cx.float("fill"), |i| displaced(x, i, dim, (i[dim] as i64).saturating_add(by)))
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
