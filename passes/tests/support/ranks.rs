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
