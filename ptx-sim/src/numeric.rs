//! Element formats: bits to numbers and back, rounded once.

use half::{bf16, f16};
use std::sync::OnceLock;

pub fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

pub fn bits_f32(value: f32) -> u64 {
    u64::from(value.to_bits())
}

pub fn f64_of(bits: u64) -> f64 {
    f64::from_bits(bits)
}

pub fn f16_of(bits: u64) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

pub fn bf16_of(bits: u64) -> f32 {
    bf16::from_bits(bits as u16).to_f32()
}

/// NaN becomes the one NaN that PTX writes.
pub fn bits_bf16(value: f32) -> u64 {
    if value.is_nan() { 0x7fff } else { u64::from(bf16::from_f32(value).to_bits()) }
}

pub fn bits_f16(value: f32) -> u64 {
    if value.is_nan() { 0x7fff } else { u64::from(f16::from_f32(value).to_bits()) }
}

/// Subnormals of either sign to a zero of that sign.
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

/// To f32, rounded to odd: a later rounding to 22 bits or fewer is then as if from `value`.
pub fn odd_f32(value: f64) -> f32 {
    let near = value as f32;
    let back = f64::from(near);
    if back == value || near.is_nan() || near.to_bits() & 1 == 1 {
        return near;
    }
    // The neighbour on the other side of `value` has an odd last bit.
    if near.is_infinite() {
        return f32::MAX.copysign(near);
    }
    let away = back.abs() < value.abs();
    f32::from_bits(if away { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

/// `a * b + c` of numbers whose product is exact in f64, rounded to odd.
pub fn fma_odd(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    // Two-sum: `sum + error` is exact.
    let high = sum - product;
    let error = (product - (sum - high)) + (c - high);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return odd_f32(sum);
    }
    let away = (error > 0.0) == (sum > 0.0);
    odd_f32(f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 }))
}

/// The two 8-bit formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp8 {
    E4m3,
    E5m2,
}

impl Fp8 {
    fn decode(self, code: u8) -> f32 {
        let (n_mantissa, bias) = match self {
            Fp8::E4m3 => (3, 7),
            Fp8::E5m2 => (2, 15),
        };
        let exponent = i32::from((code & 0x7f) >> n_mantissa);
        let mantissa = f32::from(code & ((1 << n_mantissa) - 1)) / (1 << n_mantissa) as f32;
        let magnitude = match self {
            Fp8::E4m3 if code & 0x7f == 0x7f => f32::NAN,
            Fp8::E5m2 if exponent == 31 && mantissa == 0.0 => f32::INFINITY,
            Fp8::E5m2 if exponent == 31 => f32::NAN,
            _ if exponent == 0 => mantissa * 2f32.powi(1 - bias),
            _ => (1.0 + mantissa) * 2f32.powi(exponent - bias),
        };
        if code & 0x80 != 0 { -magnitude } else { magnitude }
    }

    /// All 256 codes as f32.
    pub fn table(self) -> &'static [f32; 256] {
        static TABLES: OnceLock<[[f32; 256]; 2]> = OnceLock::new();
        let tables = TABLES.get_or_init(|| {
            let table = |f: Fp8| std::array::from_fn(|code| f.decode(code as u8));
            [table(Fp8::E4m3), table(Fp8::E5m2)]
        });
        &tables[self as usize]
    }

    /// To nearest, ties to even, out of range to the largest finite (`.satfinite`).
    pub fn encode(self, value: f32) -> u8 {
        if value.is_nan() {
            return 0x7f;
        }
        let largest: u8 = match self {
            Fp8::E4m3 => 0x7e,
            Fp8::E5m2 => 0x7b,
        };
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        let magnitude = value.abs();
        let table = self.table();
        // Positive codes are in order of their values.
        let above = table[..=usize::from(largest)].partition_point(|&v| v < magnitude);
        if above > usize::from(largest) {
            return sign | largest;
        }
        if above == 0 || table[above] == magnitude {
            return sign | above as u8;
        }
        let (low, high) = (f64::from(table[above - 1]), f64::from(table[above]));
        let middle = (low + high) / 2.0;
        let value = f64::from(magnitude);
        let up = value > middle || (value == middle && above % 2 == 0);
        sign | if up { above } else { above - 1 } as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fp8_code_comes_back() {
        for format in [Fp8::E4m3, Fp8::E5m2] {
            for code in 0..=255u8 {
                let value = format.table()[usize::from(code)];
                if value.is_finite() {
                    assert_eq!(format.encode(value), code, "{format:?} {code:#x}");
                }
            }
        }
        // Values from the definitions of the formats.
        assert_eq!(Fp8::E4m3.table()[0x7e], 448.0);
        assert_eq!(Fp8::E4m3.table()[0x01], 2f32.powi(-9));
        assert_eq!(Fp8::E5m2.table()[0x7b], 57344.0);
        assert_eq!(Fp8::E4m3.encode(1e9), 0x7e);
        // 17 lies between 16 and 18: to the even mantissa.
        assert_eq!(Fp8::E4m3.encode(17.0), Fp8::E4m3.encode(16.0));
        assert_eq!(Fp8::E4m3.encode(19.0), Fp8::E4m3.encode(20.0));
    }

    #[test]
    fn narrow_fma_rounds_once() {
        // 1 + 2^-8 is a tie in bf16; a tiny third term breaks it upward.
        let (a, b) = (1.0f32 + 1.0 / 128.0, 2f32.powi(-8));
        let tiny = 2f32.powi(-60);
        let exact_up = fma_odd(1.0, a, b * 0.5 + 0.0);
        assert_eq!(bits_bf16(exact_up), bits_bf16(a));
        assert_eq!(bits_bf16(fma_odd(1.0, 1.0, b)), bits_bf16(1.0));
        assert_eq!(bits_bf16(odd_f32(1.0 + 1.0 / 256.0 + f64::from(tiny) * 4096.0)), 0x3f81);
    }
}
