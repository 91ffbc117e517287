//! Element types, with their size in bits.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a buffer's elements, little-endian where larger than a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    Bf16,
    F16,
    E4m3,
    E5m2,
    /// 12 bits: two elements in three bytes.
    E5m6,
    /// A power of two, the scale of a group.
    Ue8m0,
    I32,
    I64,
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    pub const ALL: [DType; 11] = [
        DType::F32,
        DType::Bf16,
        DType::F16,
        DType::E4m3,
        DType::E5m2,
        DType::E5m6,
        DType::Ue8m0,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::Bool,
    ];

    pub const fn bits(self) -> u32 {
        match self {
            DType::I64 => 64,
            DType::F32 | DType::I32 => 32,
            DType::Bf16 | DType::F16 => 16,
            DType::E5m6 => 12,
            DType::E4m3 | DType::E5m2 | DType::Ue8m0 | DType::U8 | DType::Bool => 8,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::E4m3 => "e4m3",
            DType::E5m2 => "e5m2",
            DType::E5m6 => "e5m6",
            DType::Ue8m0 => "ue8m0",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
