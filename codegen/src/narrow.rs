//! The 8- and 12-bit floats on lanes: codes to values and back, with integer arithmetic, or by an
//! instruction that rounds so, so that every target gives the bits of `weft_ir::formats`.
//!
//! A code's magnitude, shifted into place, is a float whose exponent has the wrong bias; one
//! product with a power of two mends that and what is below the normal range too. Where bf16 is
//! wanted, which no machine multiplies, the bias is added and the few codes below the normal range
//! come out of a table.

use weft_ir::formats::{E4M3, E5M2, Format};

use crate::emit::{Cg, Cmp, Elem, Model, Val};

/// Bits of f32's mantissa, and its bias.
const F32_MANTISSA: u32 = 23;
const F32_BIAS: u32 = 127;
const F32_INFINITY: i64 = 0x7f80_0000;
const BF16_MANTISSA: u32 = 7;
const BF16_INFINITY: i64 = 0x7f80;
const BF16_NAN: i64 = 0x7fc0;

fn bias(format: Format) -> u32 {
    (1 << (format.exponent_bits - 1)) - 1
}

fn magnitude_bits(format: Format) -> u32 {
    format.exponent_bits + format.mantissa_bits
}

/// Has the format infinities? Their code follows the largest value's.
fn has_infinity(format: Format) -> bool {
    format.nan != format.max + 1
}

/// 2^n as the f32's bits.
fn power(n: i32) -> f64 {
    2f64.powi(n)
}

/// The f32 that codes in the low bits of i32 lanes stand for.
pub fn decode<'c>(cg: &Cg<'c>, codes: Val<'c>, format: Format) -> Val<'c> {
    let bits = magnitude_bits(format);
    let float = codes.ty.with(Elem::F32);
    let magnitude = cg.and(codes, (1i64 << bits) - 1);
    let placed = cg.shl(magnitude, i64::from(F32_MANTISSA - format.mantissa_bits));
    let scale = power((F32_BIAS - bias(format)) as i32);
    let finite = cg.mul(cg.bitcast(placed, float), scale);
    // Infinity keeps a mantissa of zero, NaN any other.
    let special = if has_infinity(format) {
        cg.bitcast(cg.or(placed, F32_INFINITY), float)
    } else {
        cg.float(float, f64::NAN)
    };
    let is_special = cg.cmp(Cmp::Gt, magnitude, i64::from(format.max));
    let value = cg.bitcast(cg.select(is_special, special, finite), codes.ty);
    let sign = cg.shl(cg.and(codes, 1i64 << bits), i64::from(31 - bits));
    cg.bitcast(cg.or(value, sign), float)
}

/// The bf16 that codes of at most 8 bits, in i8 lanes, stand for.
pub fn decode_bf16<'c>(cg: &Cg<'c>, codes: Val<'c>, format: Format) -> Val<'c> {
    decode_bf16_wide(cg, cg.zext(codes, Elem::I16), format)
}

/// The same of codes in i16 lanes, whose upper bytes are zero.
pub fn decode_bf16_wide<'c>(cg: &Cg<'c>, wide: Val<'c>, format: Format) -> Val<'c> {
    let bits = magnitude_bits(format);
    let magnitude = cg.and(wide, (1i64 << bits) - 1);
    let placed = cg.shl(magnitude, i64::from(BF16_MANTISSA - format.mantissa_bits));
    let rebias = i64::from(F32_BIAS - bias(format)) << BF16_MANTISSA;
    let normal = cg.add(placed, rebias);
    let below = cg.cmp(Cmp::Lt, magnitude, 1i64 << format.mantissa_bits);
    let finite = cg.select(below, subnormal(cg, magnitude, format), normal);
    let special =
        if has_infinity(format) { cg.or(placed, BF16_INFINITY) } else { cg.int(wide.ty, BF16_NAN) };
    let is_special = cg.cmp(Cmp::Gt, magnitude, i64::from(format.max));
    let value = cg.select(is_special, special, finite);
    let sign = cg.shl(cg.and(wide, 1i64 << bits), i64::from(15 - bits));
    cg.bitcast(cg.or(value, sign), wide.ty.with(Elem::BF16))
}

/// The bf16 bits of magnitudes below the normal range. A magnitude between 2^j and 2^(j + 1) is
/// normal in bf16 with the exponent that j says.
fn subnormal<'c>(cg: &Cg<'c>, magnitude: Val<'c>, format: Format) -> Val<'c> {
    let lanes = magnitude.ty.lanes;
    if cg.target.bf16_dot && matches!(lanes, 8 | 16 | 32) {
        let bits = |lane: u32| format.decode((lane % (1 << format.mantissa_bits)) as u16).to_bits();
        let table = cg.lanes_of(magnitude.ty, |lane| i64::from(bits(lane) >> 16));
        return cg.permute_i16(table, magnitude);
    }
    let least = F32_BIAS + 1 - bias(format) - format.mantissa_bits;
    (0..format.mantissa_bits).fold(cg.zero(magnitude.ty), |found, j| {
        let rest = cg.sub(magnitude, 1i64 << j);
        let mantissa = cg.shl(rest, i64::from(BF16_MANTISSA - j));
        let bits = cg.add(mantissa, i64::from(least + j) << BF16_MANTISSA);
        cg.select(cg.cmp(Cmp::Ge, magnitude, 1i64 << j), bits, found)
    })
}

/// The codes, in i32 lanes, nearest to f32 lanes: ties to even, too large and infinite to the
/// largest value, NaN to the format's.
pub fn encode<'c>(cg: &Cg<'c>, x: Val<'c>, format: Format) -> Val<'c> {
    assert!(format.saturates, "a format that overflows is no code of a group");
    if let (Model::Simt, Some(pair)) = (cg.target.model, pair(format)) {
        return cg.zext(cg.narrowed_by_pairs(x, pair, Elem::I8), Elem::I32);
    }
    let int = x.ty.with(Elem::I32);
    let (mantissa, bias) = (format.mantissa_bits, bias(format));
    let bits = cg.bitcast(x, int);
    let size = cg.and(bits, 0x7fff_ffff);
    let is_nan = cg.cmp(Cmp::Gt, size, F32_INFINITY);
    let largest = i64::from(format.decode(format.max).to_bits());
    let size = cg.min(size, largest);
    let dropped = i64::from(F32_MANTISSA - mantissa);
    // Half of what is dropped, less one where the last bit kept is even, carries when it must.
    let odd = cg.and(cg.lshr(size, dropped), 1);
    let carried = cg.add(cg.add(size, (1i64 << (dropped - 1)) - 1), odd);
    let rebias = i64::from(F32_BIAS - bias) << mantissa;
    let normal = cg.sub(cg.lshr(carried, dropped), rebias);
    // A sum with this has its last bit where the smallest code is.
    let unit = 1 - bias as i32 - mantissa as i32;
    let anchor = power(unit + F32_MANTISSA as i32);
    let sum = cg.add(cg.bitcast(size, x.ty), anchor);
    let subnormal = cg.sub(cg.bitcast(sum, int), i64::from((anchor as f32).to_bits()));
    let least_normal = i64::from((power(1 - bias as i32) as f32).to_bits());
    let code = cg.select(cg.cmp(Cmp::Lt, size, least_normal), subnormal, normal);
    let above = 31 - magnitude_bits(format);
    let sign = cg.and(cg.lshr(bits, i64::from(above)), 1i64 << magnitude_bits(format));
    let signed = cg.or(code, sign);
    cg.select(is_nan, cg.int(int, i64::from(format.nan)), signed)
}

/// What PTX calls two codes of a format that it rounds to.
fn pair(format: Format) -> Option<&'static str> {
    match format {
        E4M3 => Some("satfinite.e4m3x2"),
        E5M2 => Some("satfinite.e5m2x2"),
        _ => None,
    }
}

/// The power of two of ue8m0 codes in the low byte of i32 lanes; 255 is NaN.
pub fn decode_scale<'c>(cg: &Cg<'c>, codes: Val<'c>) -> Val<'c> {
    // Code 0 is 2^-127, below f32's normal range.
    let least = cg.int(codes.ty, 0x0040_0000);
    let bits = cg.select(cg.cmp(Cmp::Eq, codes, 0), least, cg.shl(codes, i64::from(F32_MANTISSA)));
    let nan = cg.int(codes.ty, 0x7fc0_0000);
    let bits = cg.select(cg.cmp(Cmp::Eq, codes, 255), nan, bits);
    cg.bitcast(bits, codes.ty.with(Elem::F32))
}

/// The ue8m0 codes, in i32 lanes, of the least powers of two not below `x`; 255 where `x` is NaN or
/// negative, and the ends of the range saturate.
pub fn encode_scale<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let int = x.ty.with(Elem::I32);
    let bits = cg.and(cg.bitcast(x, int), 0x7fff_ffff);
    let up = cg.lshr(cg.add(bits, 0x007f_ffff), i64::from(F32_MANTISSA));
    let code = cg.min(up, 254);
    let code = cg.select(cg.cmp(Cmp::Le, bits, 0x0040_0000), cg.zero(int), code);
    // Written so that NaN fails.
    cg.select(cg.cmp(Cmp::Ge, x, 0.0f32), code, cg.int(int, 255))
}

#[cfg(test)]
mod tests;
