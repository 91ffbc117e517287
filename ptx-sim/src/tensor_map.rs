//! Tensor maps: what TMA knows of a tensor, in 128 bytes.
//!
//! The driver's encoding is not public, so this is one of our own, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `WTM1` |
//! | 4, 5, 6, 7 | rank, element, swizzle, fill (0 zeros, 1 NaN) |
//! | 8..16 | address |
//! | 16..36 | five sizes less one, u32, innermost first |
//! | 40..72 | four strides in bytes, u64: of the second dimension on |
//! | 72..82 | five sizes of the box, u16 |
//! | 82..87 | five element strides, u8 |

use crate::error::{Error, ErrorKind, Result};
use crate::scalar::Ty;
use crate::swizzle::Swizzle;

pub const TENSOR_MAP_BYTES: usize = 128;
const MAGIC: &[u8; 4] = b"WTM1";

/// Element types in the order of the values that `tensormap.replace` gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F32Ftz,
    F64,
    Bf16,
}

const ELEMENTS: [Element; 11] = [
    Element::U8,
    Element::U16,
    Element::U32,
    Element::S32,
    Element::U64,
    Element::S64,
    Element::F16,
    Element::F32,
    Element::F32Ftz,
    Element::F64,
    Element::Bf16,
];

impl Element {
    pub fn bytes(self) -> u64 {
        match self {
            Element::U8 => 1,
            Element::U16 | Element::F16 | Element::Bf16 => 2,
            Element::U32 | Element::S32 | Element::F32 | Element::F32Ftz => 4,
            Element::U64 | Element::S64 | Element::F64 => 8,
        }
    }

    pub(crate) fn ty(self) -> Ty {
        match self {
            Element::U8 => Ty::U8,
            Element::U16 => Ty::U16,
            Element::U32 => Ty::U32,
            Element::S32 => Ty::S32,
            Element::U64 => Ty::U64,
            Element::S64 => Ty::S64,
            Element::F16 => Ty::F16,
            Element::F32 | Element::F32Ftz => Ty::F32,
            Element::F64 => Ty::F64,
            Element::Bf16 => Ty::Bf16,
        }
    }
}

/// A tensor in global memory and the box that is copied at once. Innermost dimension first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub element: Element,
    pub address: u64,
    pub dims: Vec<u64>,
    /// Of the second dimension on: one fewer than dims.
    pub strides_bytes: Vec<u64>,
    pub box_dims: Vec<u32>,
    pub swizzle: Swizzle,
    /// Elements out of bounds are NaN instead of zero.
    pub fills_nan: bool,
}

impl TensorMap {
    /// Bytes of the whole box.
    pub fn box_bytes(&self) -> u64 {
        self.box_dims.iter().map(|&d| u64::from(d)).product::<u64>() * self.element.bytes()
    }

    /// Checks what `cuTensorMapEncodeTiled` checks.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(ErrorKind::Operand, format!("tensor map: {what}")));
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) {
            return bad(format!("rank {rank}, not in 1..=5"));
        }
        if self.strides_bytes.len() != rank - 1 || self.box_dims.len() != rank {
            return bad(format!("rank {rank} needs {} strides and {rank} box sizes", rank - 1));
        }
        if !self.address.is_multiple_of(16) {
            return bad(format!("the address {:#x} is not a multiple of 16", self.address));
        }
        if let Some(dim) = self.dims.iter().find(|d| **d == 0 || **d > 1 << 32) {
            return bad(format!("a size of {dim}, not in 1..=2^32"));
        }
        if let Some(s) = self.strides_bytes.iter().find(|s| !s.is_multiple_of(16) || **s >= 1 << 40)
        {
            return bad(format!("a stride of {s} bytes, not a multiple of 16 below 2^40"));
        }
        if let Some(d) = self.box_dims.iter().find(|d| !(1..=256).contains(*d)) {
            return bad(format!("a box size of {d}, not in 1..=256"));
        }
        let inner_bytes = u64::from(self.box_dims[0]) * self.element.bytes();
        if !inner_bytes.is_multiple_of(16) {
            return bad(format!("{inner_bytes} bytes along the box, not a multiple of 16"));
        }
        let span = u64::from(self.swizzle.span_bytes());
        if self.swizzle != Swizzle::None && inner_bytes != span {
            return bad(format!(
                "{inner_bytes} bytes along the box with a swizzle of {span}; only equal ones are \
                 supported"
            ));
        }
        Ok(())
    }

    /// The 128 bytes that a kernel gets.
    pub fn encode(&self) -> Result<[u8; TENSOR_MAP_BYTES]> {
        self.check()?;
        let mut out = [0; TENSOR_MAP_BYTES];
        out[..4].copy_from_slice(MAGIC);
        let swizzle = self.swizzle as u8;
        out[4..8].copy_from_slice(&[
            self.dims.len() as u8,
            self.element as u8,
            swizzle,
            u8::from(self.fills_nan),
        ]);
        out[8..16].copy_from_slice(&self.address.to_le_bytes());
        for (i, dim) in self.dims.iter().enumerate() {
            out[16 + 4 * i..][..4].copy_from_slice(&((dim - 1) as u32).to_le_bytes());
        }
        for (i, stride) in self.strides_bytes.iter().enumerate() {
            out[40 + 8 * i..][..8].copy_from_slice(&stride.to_le_bytes());
        }
        for (i, dim) in self.box_dims.iter().enumerate() {
            out[72 + 2 * i..][..2].copy_from_slice(&(*dim as u16).to_le_bytes());
            out[82 + i] = 1;
        }
        Ok(out)
    }

    pub fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<TensorMap> {
        let bad = |what: &str| Err(Error::new(ErrorKind::Operand, format!("tensor map: {what}")));
        if &bytes[..4] != MAGIC {
            return bad("the 128 bytes are not one");
        }
        let rank = usize::from(bytes[4]);
        let Some(&element) = ELEMENTS.get(usize::from(bytes[5])) else {
            return bad("an element type that is not supported");
        };
        if !(1..=5).contains(&rank) {
            return bad("a rank that is not in 1..=5");
        }
        if bytes[82..82 + rank].iter().any(|s| *s != 1) {
            return bad("an element stride other than 1 is not supported");
        }
        let word = |at: usize, n: usize| {
            let mut word = [0; 8];
            word[..n].copy_from_slice(&bytes[at..at + n]);
            u64::from_le_bytes(word)
        };
        let map = TensorMap {
            element,
            address: word(8, 8),
            dims: (0..rank).map(|i| word(16 + 4 * i, 4) + 1).collect(),
            strides_bytes: (1..rank).map(|i| word(32 + 8 * i, 8)).collect(),
            box_dims: (0..rank).map(|i| word(72 + 2 * i, 2) as u32).collect(),
            swizzle: match bytes[6] {
                0 => Swizzle::None,
                1 => Swizzle::B32,
                2 => Swizzle::B64,
                3 => Swizzle::B128,
                _ => return bad("an unknown swizzle"),
            },
            fills_nan: bytes[7] == 1,
        };
        map.check()?;
        Ok(map)
    }
}

/// What `tensormap.replace` writes; the number is the dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    GlobalAddress,
    Rank,
    BoxDim(u8),
    GlobalDim(u8),
    /// Of the dimension after this one.
    GlobalStride(u8),
    ElementStride(u8),
    Element,
    Interleave,
    SwizzleMode,
    FillMode,
}

impl Field {
    /// Replaces the field in an encoded map.
    pub fn replace(self, map: &mut [u8; TENSOR_MAP_BYTES], value: u64) -> Result<()> {
        let mut put = |at: usize, n: usize, value: u64| {
            map[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        };
        match self {
            Field::GlobalAddress => put(8, 8, value),
            Field::Rank => put(4, 1, (value & 0xff) + 1),
            Field::BoxDim(i) => put(72 + 2 * usize::from(i), 2, value),
            Field::GlobalDim(i) => put(16 + 4 * usize::from(i), 4, value.wrapping_sub(1)),
            Field::GlobalStride(i) => put(40 + 8 * usize::from(i), 8, value),
            Field::ElementStride(i) => put(82 + usize::from(i), 1, value),
            Field::Element => put(5, 1, value),
            Field::Interleave if value == 0 => {}
            Field::Interleave => {
                let message = "tensor map: an interleaved layout is not supported";
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            Field::SwizzleMode => put(6, 1, value),
            Field::FillMode => put(7, 1, value),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            element: Element::Bf16,
            address: 0x7000_0000_0100,
            dims: vec![200, 70, 3],
            strides_bytes: vec![400, 28000],
            box_dims: vec![64, 16, 1],
            swizzle: Swizzle::B128,
            fills_nan: false,
        }
    }

    #[test]
    fn an_encoded_map_comes_back() {
        let encoded = map().encode().expect("a good map");
        assert_eq!(TensorMap::decode(&encoded), Ok(map()));
    }

    #[test]
    fn replaced_fields_are_read_back() {
        let mut encoded = map().encode().expect("a good map");
        Field::GlobalAddress.replace(&mut encoded, 0x7000_0000_0200).expect("known");
        Field::GlobalDim(1).replace(&mut encoded, 5).expect("known");
        Field::GlobalStride(0).replace(&mut encoded, 416).expect("known");
        let back = TensorMap::decode(&encoded).expect("still good");
        assert_eq!((back.address, back.dims[1], back.strides_bytes[0]), (0x7000_0000_0200, 5, 416));
    }

    #[test]
    fn a_stride_off_16_bytes_is_refused() {
        let bad = TensorMap { strides_bytes: vec![404, 28000], ..map() };
        assert!(bad.encode().is_err_and(|e| e.message.contains("404 bytes")));
    }
}
