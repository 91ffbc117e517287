//! Types: what a value is. Element type, dims, and, where a pass has decided them, the group scales
//! of a quantized value and the mesh axis each dim is cut along.

use crate::dim::Dim;

/// Element types. Sub-byte and 8-bit floats carry their scales in [`Quant`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum DType {
    F32,
    Bf16,
    E4m3,
    E5m2,
    /// 12 bits: sign, 5 exponent bits (bias 15), 6 mantissa bits.
    E5m6,
    /// A power of two, 8 exponent bits; scales only.
    Ue8m0,
    I32,
    I64,
    Bool,
}

impl DType {
    pub const ALL: &[DType] = &[
        DType::F32,
        DType::Bf16,
        DType::E4m3,
        DType::E5m2,
        DType::E5m6,
        DType::Ue8m0,
        DType::I32,
        DType::I64,
        DType::Bool,
    ];

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::E4m3 => "e4m3",
            DType::E5m2 => "e5m2",
            DType::E5m6 => "e5m6",
            DType::Ue8m0 => "ue8m0",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::Bool => "bool",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|d| d.name() == name)
    }

    pub fn is_float(self) -> bool {
        !self.is_int() && self != DType::Bool
    }

    pub fn is_int(self) -> bool {
        matches!(self, DType::I32 | DType::I64)
    }

    /// Storage of one element; E5M6 packs two values into three bytes, a bool takes a byte.
    pub fn bits(self) -> u64 {
        match self {
            DType::F32 | DType::I32 => 32,
            DType::I64 => 64,
            DType::Bf16 => 16,
            DType::E5m6 => 12,
            DType::E4m3 | DType::E5m2 | DType::Ue8m0 | DType::Bool => 8,
        }
    }
}

/// In which order a quantized value's scales lie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ScaleLayout {
    /// As the blocks lie in the value.
    RowMajor,
    /// The two last block dims swapped: what a K-blocked GEMM reads a column at a time.
    ColMajor,
}

/// Group scales of a quantized value: one scale for each block of `group` elements of the two last
/// dims.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Quant {
    pub group: [u32; 2],
    pub scale: DType,
    pub layout: ScaleLayout,
}

/// A mesh axis of the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AxisId(pub u32);

/// A value's type. `axes` is empty (nothing is cut) or as long as `dims`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    pub dtype: DType,
    pub dims: Vec<Dim>,
    pub quant: Option<Quant>,
    pub axes: Vec<Option<AxisId>>,
    /// A state value lives in storage that its consumer takes over: it may be consumed once (see
    /// `verify.rs`).
    pub state: bool,
    /// On its way between ranks: made by a collective's `_start`, taken by one `done`.
    pub flight: bool,
}

impl Type {
    pub fn new(dtype: DType, dims: impl Into<Vec<Dim>>) -> Type {
        Type { dtype, dims: dims.into(), quant: None, axes: vec![], state: false, flight: false }
    }

    pub fn f32(dims: impl Into<Vec<Dim>>) -> Type {
        Type::new(DType::F32, dims)
    }

    pub fn i32(dims: impl Into<Vec<Dim>>) -> Type {
        Type::new(DType::I32, dims)
    }

    /// A scalar of `dtype`.
    pub fn scalar(dtype: DType) -> Type {
        Type::new(dtype, vec![])
    }

    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    pub fn with_dims(&self, dims: impl Into<Vec<Dim>>) -> Type {
        Type { dims: dims.into(), axes: vec![], state: false, flight: false, ..self.clone() }
    }

    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, quant: None, state: false, flight: false, ..self.clone() }
    }

    pub fn as_state(&self) -> Type {
        Type { state: true, ..self.clone() }
    }

    /// The same type as an ordinary value.
    pub fn as_value(&self) -> Type {
        Type { state: false, flight: false, ..self.clone() }
    }

    /// The same type on its way between ranks.
    pub fn in_flight(&self) -> Type {
        Type { flight: true, ..self.as_value() }
    }

    pub fn last(&self) -> Option<Dim> {
        self.dims.last().copied()
    }

    /// Number of elements; `None` on overflow.
    pub fn elements(&self) -> Option<Dim> {
        crate::dim::product(&self.dims)
    }
}
