//! A tensor: element type, dims and the elements in row-major order.

use crate::ty::DType;

/// Elements. Floats of every type are `f64` here; what their type can hold is up to
/// [`super::Precision`].
#[derive(Clone, PartialEq, Debug)]
pub enum Data {
    Float(Vec<f64>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub data: Data,
    /// Of a quantized value: `data` holds its codes, and this a scale for each group.
    pub scales: Option<Box<Tensor>>,
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No elements, of the same kind.
    pub(super) fn none(&self) -> Data {
        match self {
            Data::Float(_) => Data::Float(vec![]),
            Data::Int(_) => Data::Int(vec![]),
            Data::Bool(_) => Data::Bool(vec![]),
        }
    }

    /// Append `len` elements of `other` from `start`; both are of one kind.
    pub(super) fn append(&mut self, other: &Data, start: usize, len: usize) -> Result<(), String> {
        let part = start..start + len;
        match (self, other) {
            (Data::Float(to), Data::Float(from)) => to.extend_from_slice(&from[part]),
            (Data::Int(to), Data::Int(from)) => to.extend_from_slice(&from[part]),
            (Data::Bool(to), Data::Bool(from)) => to.extend_from_slice(&from[part]),
            _ => return Err("operands hold different kinds of elements".into()),
        }
        Ok(())
    }

    /// Element `i` of `self` for each `Some(i)`, `fill` for each `None`.
    pub(super) fn pick(&self, places: &[Option<usize>], fill: f64) -> Data {
        fn of<T: Copy>(from: &[T], places: &[Option<usize>], fill: T) -> Vec<T> {
            places.iter().map(|p| p.map_or(fill, |i| from[i])).collect()
        }
        match self {
            Data::Float(v) => Data::Float(of(v, places, fill)),
            Data::Int(v) => Data::Int(of(v, places, fill as i64)),
            Data::Bool(v) => Data::Bool(of(v, places, fill != 0.0)),
        }
    }
}

impl Tensor {
    pub fn float(dtype: DType, dims: &[usize], data: Vec<f64>) -> Tensor {
        Tensor { dtype, dims: dims.to_vec(), data: Data::Float(data), scales: None }
    }

    pub fn f32(dims: &[usize], data: Vec<f64>) -> Tensor {
        Tensor::float(DType::F32, dims, data)
    }

    pub fn i32(dims: &[usize], data: Vec<i64>) -> Tensor {
        Tensor { dtype: DType::I32, dims: dims.to_vec(), data: Data::Int(data), scales: None }
    }

    pub fn bool(dims: &[usize], data: Vec<bool>) -> Tensor {
        Tensor { dtype: DType::Bool, dims: dims.to_vec(), data: Data::Bool(data), scales: None }
    }

    pub fn scalar(x: f64) -> Tensor {
        Tensor::f32(&[], vec![x])
    }

    /// `value` everywhere.
    pub fn full(dtype: DType, dims: &[usize], value: f64) -> Tensor {
        let n = dims.iter().product();
        let data = if dtype.is_float() {
            Data::Float(vec![value; n])
        } else if dtype.is_int() {
            Data::Int(vec![value as i64; n])
        } else {
            Data::Bool(vec![value != 0.0; n])
        };
        Tensor { dtype, dims: dims.to_vec(), data, scales: None }
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    pub fn floats(&self) -> Result<&[f64], String> {
        match &self.data {
            Data::Float(v) => Ok(v),
            Data::Int(_) | Data::Bool(_) => Err(format!("{} holds no floats", self.dtype.name())),
        }
    }

    pub fn ints(&self) -> Result<&[i64], String> {
        match &self.data {
            Data::Int(v) => Ok(v),
            Data::Float(_) | Data::Bool(_) => {
                Err(format!("{} holds no integers", self.dtype.name()))
            }
        }
    }

    pub fn bools(&self) -> Result<&[bool], String> {
        match &self.data {
            Data::Bool(v) => Ok(v),
            Data::Float(_) | Data::Int(_) => Err(format!("{} holds no bools", self.dtype.name())),
        }
    }

    /// The elements as numbers, whatever they are: what a comparison of two tensors reads.
    pub fn numbers(&self) -> Vec<f64> {
        match &self.data {
            Data::Float(v) => v.clone(),
            Data::Int(v) => v.iter().map(|i| *i as f64).collect(),
            Data::Bool(v) => v.iter().map(|b| *b as u8 as f64).collect(),
        }
    }

    /// Do data, dims and element type fit together?
    pub(super) fn well_formed(&self) -> Result<(), String> {
        let kind = match &self.data {
            Data::Float(_) => self.dtype.is_float(),
            Data::Int(_) => self.dtype.is_int(),
            Data::Bool(_) => self.dtype == DType::Bool,
        };
        if !kind {
            return Err(format!("the elements of a {} are of another kind", self.dtype.name()));
        }
        let n: usize = self.dims.iter().product();
        if n != self.len() {
            return Err(format!("dims {:?} hold {n} elements, found {}", self.dims, self.len()));
        }
        Ok(())
    }

    /// The last dim; 1 for a scalar.
    pub(super) fn last(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Slice `i` of the first dim.
    pub(super) fn slice_of_stack(&self, i: usize) -> Result<Tensor, String> {
        let (count, dims) = self.dims.split_first().ok_or("a stack has a first dim")?;
        if i >= *count {
            return Err(format!("slice {i} of {count}"));
        }
        let n = dims.iter().product();
        let mut data = self.data.none();
        data.append(&self.data, i * n, n)?;
        let scales = self.scales.as_ref().map(|s| s.slice_of_stack(i)).transpose()?;
        Ok(Tensor { dtype: self.dtype, dims: dims.to_vec(), data, scales: scales.map(Box::new) })
    }
}

/// The distance in memory between neighbours along each dim.
pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d] * dims[d];
    }
    strides
}

/// Calls `visit` with every index of `dims`, in row-major order.
pub(super) fn each_index(dims: &[usize], mut visit: impl FnMut(&[usize])) {
    let n: usize = dims.iter().product();
    let mut index = vec![0; dims.len()];
    for _ in 0..n {
        visit(&index);
        for d in (0..dims.len()).rev() {
            index[d] += 1;
            if index[d] < dims[d] {
                break;
            }
            index[d] = 0;
        }
    }
}
