//! The narrow floating-point formats: exact decoding, and rounding to nearest even.
//!
//! bf16 overflows to infinity, as IEEE 754 does. The 8- and 12-bit formats saturate: what is too
//! large, and infinity, becomes the largest finite value; NaN stays. E4M3 is the variant without
//! infinities (largest value 448). E5M6 has the bias, infinities and NaNs of an IEEE format with 5
//! exponent bits.

use crate::ty::DType;

/// A format with a sign bit, then the exponent, then the mantissa.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub exponent_bits: u32,
    pub mantissa_bits: u32,
    /// The code of the largest finite value.
    pub max: u16,
    /// The code of NaN that encoding gives.
    pub nan: u16,
    pub saturates: bool,
}

pub const BF16: Format =
    Format { exponent_bits: 8, mantissa_bits: 7, max: 0x7f7f, nan: 0x7fc0, saturates: false };
pub const E4M3: Format =
    Format { exponent_bits: 4, mantissa_bits: 3, max: 0x7e, nan: 0x7f, saturates: true };
pub const E5M2: Format =
    Format { exponent_bits: 5, mantissa_bits: 2, max: 0x7b, nan: 0x7f, saturates: true };
pub const E5M6: Format =
    Format { exponent_bits: 5, mantissa_bits: 6, max: 0x7bf, nan: 0x7ff, saturates: true };

impl Format {
    /// The format of an element type; `None` for those without a sign, and those that are not
    /// narrow.
    pub fn of(dtype: DType) -> Option<Format> {
        match dtype {
            DType::Bf16 => Some(BF16),
            DType::E4m3 => Some(E4M3),
            DType::E5m2 => Some(E5M2),
            DType::E5m6 => Some(E5M6),
            DType::F32 | DType::Ue8m0 | DType::I32 | DType::I64 | DType::Bool => None,
        }
    }

    pub fn bits(self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn sign_bit(self) -> u16 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The value of a code; bits above the format's are ignored.
    pub fn decode(self, code: u16) -> f32 {
        let magnitude = code & (self.sign_bit() - 1);
        let value = if magnitude <= self.max {
            self.magnitude(magnitude)
        } else if magnitude == self.max + 1 && self.nan != self.max + 1 {
            f64::INFINITY
        } else {
            f64::NAN
        };
        let negative = code & self.sign_bit() != 0;
        (if negative { -value } else { value }) as f32
    }

    fn magnitude(self, code: u16) -> f64 {
        let mantissa = (code & ((1 << self.mantissa_bits) - 1)) as f64;
        let exponent = (code >> self.mantissa_bits) as i32;
        let unit = self.unit(exponent.max(1));
        let implicit = if exponent == 0 { 0.0 } else { 2f64.powi(self.mantissa_bits as i32) };
        (implicit + mantissa) * unit
    }

    /// The distance between neighbours at a biased exponent from 1.
    fn unit(self, exponent: i32) -> f64 {
        2f64.powi(exponent - self.bias() - self.mantissa_bits as i32)
    }

    /// The code nearest to `x`, ties to the even one.
    pub fn encode(self, x: f32) -> u16 {
        if x.is_nan() {
            return self.nan;
        }
        let sign = if x.is_sign_negative() { self.sign_bit() } else { 0 };
        let largest = if self.saturates { self.max } else { self.max + 1 };
        if x.is_infinite() {
            return sign | largest;
        }
        // Every finite f32 but zero is a normal f64, so its exponent can be read off.
        let size = (x as f64).abs();
        let exponent = ((size.to_bits() >> 52) as i32 - 1023 + self.bias()).max(1);
        // Exact: the unit is a power of two.
        let units = (size / self.unit(exponent)).round_ties_even() as u64;
        // The implicit bit in `units` counts one exponent, and so does a carry out of the mantissa.
        let code = (((exponent - 1) as u64) << self.mantissa_bits) + units;
        sign | code.min(largest as u64) as u16
    }
}

/// The power of two that a ue8m0 code stands for; 255 is NaN.
pub fn decode_ue8m0(code: u8) -> f32 {
    if code == 255 { f32::NAN } else { 2f64.powi(code as i32 - 127) as f32 }
}

/// The least power of two that is not below `x`, as `2^ceil(log2 x)` of a scale wants it; the ends
/// of the range saturate, and what has no logarithm is NaN but for 0, which is the least.
pub fn encode_ue8m0(x: f32) -> u8 {
    if x.is_nan() || x < 0.0 {
        return 255;
    }
    (0..254).find(|code| decode_ue8m0(*code) >= x).unwrap_or(254)
}

/// `x` rounded to `dtype`, which is a float.
pub fn round(dtype: DType, x: f32) -> f32 {
    match Format::of(dtype) {
        Some(format) => format.decode(format.encode(x)),
        None if dtype == DType::Ue8m0 => decode_ue8m0(encode_ue8m0(x)),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All codes decode to different values and come back; so does every f32 between two
    /// neighbours, to the nearer.
    fn check(format: Format, infinite: bool) {
        let mut finite = 0;
        for code in 0..1u32 << format.bits() {
            let code = code as u16;
            let x = format.decode(code);
            if x.is_finite() {
                finite += 1;
                assert_eq!(format.encode(x), code, "{code:#x} is {x}");
            } else if x.is_infinite() {
                assert!(infinite);
            }
        }
        assert_eq!(finite, 2 * (format.max as u32 + 1));
        for code in 0..format.max {
            let (low, high) = (format.decode(code), format.decode(code + 1));
            assert!(low < high);
            let middle = ((low as f64 + high as f64) / 2.0) as f32;
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(format.encode(middle), even, "between {low} and {high}");
            assert_eq!(format.encode(middle.next_down()), code);
            assert_eq!(format.encode(middle.next_up()), code + 1);
            assert_eq!(format.encode(-middle), even | format.sign_bit());
        }
        assert_eq!(format.encode(f32::NAN), format.nan);
        assert!(format.decode(format.nan).is_nan());
    }

    #[test]
    fn codes_and_values_agree() {
        check(BF16, true);
        check(E4M3, false);
        check(E5M2, true);
        check(E5M6, true);
    }

    #[test]
    fn the_largest_values_are_the_formats() {
        assert_eq!(E4M3.decode(E4M3.max), 448.0);
        assert_eq!(E5M2.decode(E5M2.max), 57344.0);
        assert_eq!(E5M6.decode(E5M6.max), 65024.0);
        assert_eq!(BF16.decode(BF16.max), f32::from_bits(0x7f7f_0000));
    }

    #[test]
    fn narrow_formats_saturate_and_bf16_overflows() {
        for format in [E4M3, E5M2, E5M6] {
            let max = format.decode(format.max);
            for x in [max * 1.01, max * 100.0, f32::MAX, f32::INFINITY] {
                assert_eq!(format.decode(format.encode(x)), max);
                assert_eq!(format.decode(format.encode(-x)), -max);
            }
        }
        assert_eq!(round(DType::Bf16, f32::MAX), f32::INFINITY);
    }

    #[test]
    fn bf16_is_the_half_crates() {
        // Every exponent and sign, with the mantissas around each rounding decision.
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits((high as u32) << 16 | low);
                let (ours, theirs) = (round(DType::Bf16, x), half::bf16::from_f32(x).to_f32());
                assert_eq!(ours.is_nan(), theirs.is_nan());
                assert!(ours.is_nan() || ours.to_bits() == theirs.to_bits(), "{x:e}");
            }
        }
    }

    #[test]
    fn scales_are_powers_of_two_not_below() {
        for code in 0..255 {
            let x = decode_ue8m0(code);
            assert_eq!(encode_ue8m0(x), code);
            if code < 254 {
                assert_eq!(encode_ue8m0(x.next_up()), code + 1);
            }
        }
        assert_eq!((encode_ue8m0(0.0), encode_ue8m0(f32::INFINITY)), (0, 254));
        assert_eq!((encode_ue8m0(f32::NAN), encode_ue8m0(-1.0)), (255, 255));
        assert!(decode_ue8m0(255).is_nan());
    }
}
