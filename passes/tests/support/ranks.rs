//! What each of several ranks has of a whole value.

use weft_ir::interp::{Data, Tensor};
use weft_ir::module::Module;
use weft_ir::ty::AxisId;

/// What rank `rank` has of a value whose dims are cut.
pub fn cut_for(m: &Module, name: &str, whole: &Tensor, rank: usize) -> Tensor {
    let Some(store) = m.stores.get(name) else { return whole.clone() };
    let mut own = whole.clone();
    for (dim, axis) in store.ty.axes.iter().enumerate() {
        let Some(axis) = axis else { continue };
        own = part(&own, dim, place(m, *axis, rank), m.axes[axis.0 as usize].size as usize);
    }
    own
}

/// The whole value of which each rank has a part, by rank: dims are cut along one axis at most.
pub fn whole_of(m: &Module, name: &str, parts: &[Tensor]) -> Tensor {
    let cut = |s: &weft_ir::module::Store| s.ty.axes.iter().position(Option::is_some);
    let Some(dim) = m.stores.get(name).and_then(cut) else { return parts[0].clone() };
    let inner: usize = parts[0].dims[dim..].iter().product();
    let own: Vec<_> = parts.iter().map(|p| p.numbers()).collect();
    let n_blocks = own[0].len() / inner.max(1);
    let of = |i: usize| own.iter().flat_map(move |p| p[i * inner..(i + 1) * inner].to_vec());
    let all = (0..n_blocks).flat_map(of).collect();
    let mut dims = parts[0].dims.clone();
    dims[dim] *= parts.len();
    Tensor { dims, data: Data::Float(all), ..parts[0].clone() }
}

fn place(m: &Module, axis: AxisId, rank: usize) -> usize {
    rank / m.stride(axis) as usize % m.axes[axis.0 as usize].size as usize
}

/// Of `n` equal parts along a dim the one at `place`.
pub fn part(whole: &Tensor, dim: usize, place: usize, n: usize) -> Tensor {
    let inner: usize = whole.dims[dim..].iter().product();
    let block = |b: &[f64]| b[place * inner / n..(place + 1) * inner / n].to_vec();
    let numbers = whole.numbers();
    let own = numbers.chunks(inner).flat_map(block);
    let data = match &whole.data {
        Data::Int(_) => Data::Int(own.map(|x| x as i64).collect()),
        _ => Data::Float(own.collect()),
    };
    let mut dims = whole.dims.clone();
    dims[dim] /= n;
    Tensor { dims, data, ..whole.clone() }
}
