//! Codes and scales of weights, made when they are loaded.
//!
//! The arithmetic is that of the IR's `quantize`, written apart: of each group amax over its finite
//! values; scale = amax / max in f32, or the power of two from there up, 1 where amax is 0; code =
//! value / scale in f32, rounded to the nearest, ties to even, infinities and what is beyond max to
//! max, NaN kept.

use weft_graph::{Coded, DType, Part};

/// An 8-bit float: sign, exponent, mantissa, with subnormals.
struct Narrow {
    mantissa_bits: i32,
    /// The exponent of the smallest normal.
    exponent_min: i32,
    max: f32,
    max_code: u8,
    nan_code: u8,
}

const E4M3: Narrow =
    Narrow { mantissa_bits: 3, exponent_min: -6, max: 448.0, max_code: 0x7e, nan_code: 0x7f };
const E5M2: Narrow =
    Narrow { mantissa_bits: 2, exponent_min: -14, max: 57344.0, max_code: 0x7b, nan_code: 0x7f };

impl Narrow {
    fn of(dtype: DType) -> &'static Narrow {
        if dtype == DType::E5m2 { &E5M2 } else { &E4M3 }
    }

    fn code(&self, x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let x = x.abs();
        if x.is_nan() {
            return self.nan_code;
        }
        if x >= self.max {
            return sign | self.max_code;
        }
        let bits_exponent = (x.to_bits() >> 23) as i32 - 127;
        let exponent = bits_exponent.max(self.exponent_min);
        // In units of the last mantissa bit: exact, since only the exponent changes.
        let units = x * ((self.mantissa_bits - exponent) as f32).exp2();
        // A mantissa that rounds up to the next power of two carries into the exponent.
        let steps = (exponent - self.exponent_min) << self.mantissa_bits;
        let code = steps + units.round_ties_even() as i32;
        sign | (code as u8).min(self.max_code)
    }
}

/// The bytes of the part of `values`, matrices one after another, that a buffer holds.
pub fn part(coded: &Coded, values: &[f32]) -> Vec<u8> {
    let narrow = Narrow::of(coded.codes);
    let [.., rows, cols] = coded.dims[..] else { return vec![] };
    let (rows, cols) = (rows as usize, cols as usize);
    let [group_rows, group_cols] = coded.group.map(|n| n as usize);
    let (n_rows, n_cols) = (rows.div_ceil(group_rows), cols.div_ceil(group_cols));
    let mut bytes = vec![];
    for matrix in values.chunks(rows * cols) {
        let mut amax = vec![0f32; n_rows * n_cols];
        let place = |r: usize, c: usize| r / group_rows * n_cols + c / group_cols;
        for (r, row) in matrix.chunks(cols).enumerate() {
            for (c, x) in row.iter().enumerate().filter(|(_, x)| x.is_finite()) {
                let amax = &mut amax[place(r, c)];
                *amax = amax.max(x.abs());
            }
        }
        // A group of zeros, or of values too small for a quotient, is divided by 1.
        let ratio = |amax: &f32| Some(amax / narrow.max).filter(|r| *r > 0.0).unwrap_or(1.0);
        let ratios: Vec<f32> = amax.iter().map(ratio).collect();
        match (coded.part, coded.scale) {
            (Part::Scales, DType::Ue8m0) => bytes.extend(ratios.iter().map(|r| power_above(*r))),
            (Part::Scales, _) => bytes.extend(ratios.iter().flat_map(|r| r.to_le_bytes())),
            (Part::Codes, scale) => {
                let scale = |r: &f32| match scale {
                    DType::Ue8m0 => (f32::from(power_above(*r)) - 127.0).exp2(),
                    _ => *r,
                };
                let scales: Vec<f32> = ratios.iter().map(scale).collect();
                for (r, row) in matrix.chunks(cols).enumerate() {
                    let codes = row.iter().enumerate();
                    bytes.extend(codes.map(|(c, x)| narrow.code(x / scales[place(r, c)])));
                }
            }
        }
    }
    bytes
}

/// The exponent, with bias 127, of the smallest power of two that is not below `x`.
fn power_above(x: f32) -> u8 {
    let bits = x.to_bits();
    let (exponent, mantissa) = (bits >> 23 & 0xff, bits & 0x7f_ffff);
    match exponent {
        // 2^-127 is a power that ue8m0 has: what is not above it is rounded up to it.
        0 => u8::from(mantissa > 0x40_0000),
        _ => (exponent + u32::from(mantissa > 0)).min(254) as u8,
    }
}
