//! Where a value lies: a place in a buffer and, for each dim, a stride.
//!
//! Reshape, transpose, slice and broadcast of what lies somewhere lie there too, with other
//! strides; what cannot be said with strides is the caller's to copy.

use weft_graph::{Arg, DimExpr};
use weft_ir::attr::Attrs;
use weft_ir::dim::Dim;
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::dims::Dims;

#[derive(Clone, Debug)]
pub struct View {
    pub at: Arg,
    pub dtype: DType,
    pub dims: Vec<Dim>,
    /// In elements.
    pub strides: Vec<DimExpr>,
}

impl View {
    /// A whole array in row-major order from `at` on.
    pub fn row_major(cx: &Dims, at: Arg, dtype: DType, dims: &[Dim]) -> View {
        View { at, dtype, strides: row_major(cx, dims), dims: dims.to_vec() }
    }

    /// Whether neighbours in row-major order are neighbours in memory.
    pub fn is_row_major(&self, cx: &Dims) -> bool {
        let wanted = row_major(cx, &self.dims);
        let dims = self.dims.iter().zip(self.strides.iter().zip(wanted));
        dims.filter(|(d, _)| !d.is_one()).all(|(_, (have, want))| *have == want)
    }

    /// One dim that runs over all of `dims[from..to]`: its size and stride.
    pub fn merged(&self, cx: &Dims, from: usize, to: usize) -> Option<(DimExpr, DimExpr)> {
        let mut long = (from..to).filter(|d| !self.dims[*d].is_one()).rev();
        let Some(last) = long.next() else { return Some((1.into(), 0.into())) };
        let mut size = cx.expr(self.dims[last]);
        for d in long {
            if self.strides[d] != self.strides[last].clone() * size.clone() {
                return None;
            }
            size = size * cx.expr(self.dims[d]);
        }
        Some((size, self.strides[last].clone()))
    }

    /// The result of a movement op on this view, where strides can say it.
    pub fn moved(&self, cx: &Dims, op: Op, attrs: &Attrs, dims: &[Dim]) -> Option<View> {
        let strides = match op {
            Op::Reshape => self.reshaped(cx, dims)?,
            Op::Transpose => {
                let perm = attrs.get_ints("perm")?;
                perm.iter().map(|d| self.strides[*d as usize].clone()).collect()
            }
            Op::Slice => {
                let (dim, start) = (attrs.get_int("dim")? as usize, attrs.get_int("start")?);
                let by = whole_bytes(self.strides[dim].clone() * start, self.dtype)?;
                let byte_offset = self.at.byte_offset.clone() + by;
                let at = Arg { byte_offset, ..self.at.clone() };
                return Some(View { at, dims: dims.to_vec(), ..self.clone() });
            }
            Op::Broadcast => {
                let mut strides = vec![DimExpr::zero(); dims.len()];
                for (i, d) in attrs.get_ints("dims")?.iter().enumerate() {
                    let d = *d as usize;
                    if self.dims[i] == dims[d] {
                        strides[d] = self.strides[i].clone();
                    }
                }
                strides
            }
            _ => return None,
        };
        Some(View { dims: dims.to_vec(), strides, ..self.clone() })
    }

    /// The strides under other dims of the same product: runs of dims with one product are each
    /// merged and cut again.
    fn reshaped(&self, cx: &Dims, to: &[Dim]) -> Option<Vec<DimExpr>> {
        if self.is_row_major(cx) {
            return Some(row_major(cx, to));
        }
        let from = &self.dims;
        let mut strides = vec![DimExpr::zero(); to.len()];
        let (mut f, mut t) = (0, 0);
        while f < from.len() && t < to.len() {
            let (f_start, t_start) = (f, t);
            let (mut have, mut want) = (from[f], to[t]);
            (f, t) = (f + 1, t + 1);
            while have != want {
                if f < from.len() && (want.checked_div(have).is_some() || t == to.len()) {
                    have = have.checked_mul(from[f])?;
                    f += 1;
                } else {
                    want = want.checked_mul(*to.get(t)?)?;
                    t += 1;
                }
            }
            let (_, stride) = self.merged(cx, f_start, f)?;
            let inner = row_major(cx, &to[t_start..t]);
            for (d, by) in inner.into_iter().enumerate() {
                strides[t_start + d] = by * stride.clone();
            }
        }
        // What is left over are dims of one element.
        Some(strides)
    }

    /// What follows `n` slices of a stack.
    pub fn behind(mut self, cx: &Dims, n: i64) -> View {
        if n > 0 {
            let bytes = size_bytes(cx, &self.dims[1..], self.dtype);
            self.at.byte_offset = self.at.byte_offset + bytes * n;
        }
        self
    }

    /// The slice of the first dim that belongs to the index of a loop; from the last, if `back`
    /// says how many there are.
    pub fn slice_of_stack(&self, cx: &Dims, loop_depth: u32, back: Option<i64>) -> View {
        let size = self.dims[1..].to_vec();
        let bytes = size_bytes(cx, &size, self.dtype);
        let at = slice_at(self.at.clone(), loop_depth, bytes, back);
        View { at, dtype: self.dtype, dims: size, strides: self.strides[1..].to_vec() }
    }
}

/// Where the slice of `bytes` begins that belongs to the index of a loop, as in `slice_of_stack`.
pub fn slice_at(mut at: Arg, loop_depth: u32, bytes: DimExpr, back: Option<i64>) -> Arg {
    let bytes = match back {
        None => bytes,
        Some(count) => {
            at.byte_offset = at.byte_offset + bytes.clone() * (count - 1);
            bytes * -1
        }
    };
    at.strides.push(weft_graph::LoopStride { loop_depth, bytes });
    at
}

/// Row-major strides in elements.
pub fn row_major(cx: &Dims, dims: &[Dim]) -> Vec<DimExpr> {
    let mut strides = vec![DimExpr::constant(1); dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d].clone() * cx.expr(dims[d]);
    }
    strides
}

/// Bytes of a row-major array.
pub fn size_bytes(cx: &Dims, dims: &[Dim], dtype: DType) -> DimExpr {
    let elements = DimExpr::product(cx.exprs(dims));
    (elements * dtype.bits() as i64).ceil_div(8)
}

/// Bytes of so many elements, if they are whole for sure: elements may share a byte.
fn whole_bytes(elements: DimExpr, dtype: DType) -> Option<DimExpr> {
    match dtype.bits() as i64 {
        bits if bits % 8 == 0 => Some(elements * (bits / 8)),
        bits => {
            let bits = elements.as_constant()? * bits;
            (bits % 8 == 0).then(|| DimExpr::constant(bits / 8))
        }
    }
}
