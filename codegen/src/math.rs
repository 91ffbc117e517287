//! Elementary functions of f32 lanes, as polynomials of our own.
//!
//! LLVM calls a scalar library for these and we link none. Each function works on any number of
//! lanes, handles zeros, infinities, NaN and denormals as C's does, and is tested against f64 over
//! its whole range. Largest errors measured, in units in the last place (ulp) of f32:
//!
//! | exp | ln | tanh | sigmoid | softplus | sin, cos | erf | rsqrt |
//! |---|---|---|---|---|---|---|---|
//! | 1.0 | 0.8 | 1.2 | 2.0 | 2.5 | 1.5 | 3.0 | 1.5 |
//!
//! Coefficients are Chebyshev fits made in 40 digits, rounded to f32.

use crate::emit::{Cg, Cmp, Elem, Val};

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, which the sum's low bits then
/// hold: no float-to-integer conversion, whose result for NaN is not defined.
const ROUNDER: f32 = 12_582_912.0;
const ROUNDER_BITS: i32 = 0x4b40_0000;

/// `coefficients` (highest power first) at `x`, by Horner's rule with fused steps.
pub fn polynomial<'c>(cg: &Cg<'c>, x: Val<'c>, coefficients: &[f64]) -> Val<'c> {
    let first = cg.float(x.ty, coefficients[0]);
    coefficients[1..].iter().fold(first, |p, &c| cg.fma(p, x, c))
}

/// e^x. Overflows to infinity above 88.72, rounds to zero below -103.97.
pub fn exp<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let f = |v: f32| cg.float(x.ty, v.into());
    // Written so that NaN passes both tests and stays.
    let x = cg.select(cg.cmp(Cmp::Lt, x, -104.5f32), f(-104.5), x);
    let x = cg.select(cg.cmp(Cmp::Gt, x, 89.5f32), f(89.5), x);
    let shifted = cg.fma(x, f(std::f32::consts::LOG2_E), ROUNDER);
    let n = cg.sub(shifted, ROUNDER);
    // ln 2 in two parts: the first has 15 zero bits at its end, so n times it is exact.
    let r = cg.fma(n, f(-0.693_145_75), x);
    let r = cg.fma(n, f(-1.428_606_8e-6), r);
    let q = polynomial(cg, r, &EXP_TAIL);
    let r2 = cg.mul(r, r);
    let p = cg.add(cg.fma(q, r2, r), 1.0f32);
    // 2^n in two factors, since n reaches -151 and 129.
    let n = cg.sub(cg.bitcast(shifted, x.ty.with(Elem::I32)), ROUNDER_BITS);
    let half = cg.ashr(n, 1);
    let p = cg.mul(p, exp2_int(cg, half));
    cg.mul(p, exp2_int(cg, cg.sub(n, half)))
}

/// (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2.
const EXP_TAIL: [f64; 6] =
    [0.000198910799, 0.00139337312, 0.00833331048, 0.041666463, 0.166666672, 0.5];

/// 2^n of lanes of i32 within -126..=127.
fn exp2_int<'c>(cg: &Cg<'c>, n: Val<'c>) -> Val<'c> {
    cg.bitcast(cg.shl(cg.add(n, 127), 23), n.ty.with(Elem::F32))
}

/// Natural logarithm; -infinity at zero, NaN below.
pub fn ln<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let f = |v: f32| cg.float(x.ty, v.into());
    let int = x.ty.with(Elem::I32);
    // Denormals are scaled into the normal range.
    let tiny = cg.cmp(Cmp::Lt, x, f32::MIN_POSITIVE);
    let scaled = cg.select(tiny, cg.mul(x, 8_388_608.0f32), x);
    let bias = cg.select(tiny, cg.int(int, -23), cg.int(int, 0));
    // Subtracting the bits of sqrt(1/2) puts the mantissa into [sqrt(1/2), sqrt(2)).
    let bits = cg.bitcast(scaled, int);
    let exponent = cg.ashr(cg.sub(bits, 0x3f35_04f3), 23);
    let m = cg.bitcast(cg.sub(bits, cg.shl(exponent, 23)), x.ty);
    let e = cg.cast(cg.add(exponent, bias), Elem::F32);
    let t = cg.sub(m, 1.0f32);
    let t2 = cg.mul(t, t);
    let tail = cg.mul(polynomial(cg, t, &LN_TAIL), cg.mul(t, t2));
    let low = cg.fma(e, f(1.428_606_8e-6), tail);
    let low = cg.fma(t2, f(-0.5), low);
    let y = cg.fma(e, f(0.693_145_75), cg.add(low, t));
    let y = cg.select(cg.cmp(Cmp::Eq, x, f32::INFINITY), x, y);
    let y = cg.select(cg.cmp(Cmp::Eq, x, 0.0f32), f(f32::NEG_INFINITY), y);
    // NaN compares false with everything: this sends it, and what is below zero, to NaN.
    cg.select(cg.cmp(Cmp::Ge, x, 0.0f32), y, f(f32::NAN))
}

/// (ln(1 + t) - t + t^2 / 2) / t^3 on [sqrt(1/2) - 1, sqrt(2) - 1].
const LN_TAIL: [f64; 9] = [
    0.0697161183,
    -0.114797339,
    0.116854198,
    -0.124256872,
    0.142490581,
    -0.166678026,
    0.200007156,
    -0.24999997,
    0.333333313,
];

/// Hyperbolic tangent.
pub fn tanh<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let a = cg.abs(x);
    let x2 = cg.mul(x, x);
    let small = cg.fma(cg.mul(polynomial(cg, x2, &TANH_TAIL), x2), x, x);
    // 1 - 2 / (e^2a + 1), where a is large enough that the difference keeps its digits.
    let e = exp(cg, cg.add(a, a));
    let ratio = cg.div(cg.float(x.ty, 2.0), cg.add(e, 1.0f32));
    let large = cg.copysign(cg.sub(cg.float(x.ty, 1.0), ratio), x);
    cg.select(cg.cmp(Cmp::Lt, a, 0.625f32), small, large)
}

/// (tanh(x) - x) / x^3 in x^2, on |x| <= 0.625.
const TANH_TAIL: [f64; 6] =
    [0.00229274482, -0.00834394526, 0.0217689183, -0.0539592579, 0.133333042, -0.333333343];

/// 1 / (1 + e^-x), accurate in both tails.
pub fn sigmoid<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let e = exp(cg, cg.neg(cg.abs(x)));
    let one = cg.float(x.ty, 1.0);
    // NaN takes the second numerator, itself NaN.
    let top = cg.select(cg.cmp(Cmp::Ge, x, 0.0f32), one, e);
    cg.div(top, cg.add(e, one))
}

/// x * sigmoid(x).
pub fn silu<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    cg.mul(x, sigmoid(cg, x))
}

/// ln(1 + e^x), without overflow.
pub fn softplus<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let e = exp(cg, cg.neg(cg.abs(x)));
    let u = cg.add(e, 1.0f32);
    // ln(1 + e) lost the low digits of e in the sum; e / (u - 1) puts them back (e itself when u is
    // 1).
    let one = cg.cmp(Cmp::Eq, u, 1.0f32);
    let quotient = cg.div(e, cg.select(one, u, cg.sub(u, 1.0f32)));
    let log1p = cg.select(one, e, cg.mul(ln(cg, u), quotient));
    let positive = cg.select(cg.cmp(Cmp::Lt, x, 0.0f32), cg.zero(x.ty), x);
    cg.add(positive, log1p)
}

/// 1 / sqrt(x), from the machine's correctly rounded root and quotient.
pub fn rsqrt<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    cg.div(cg.float(x.ty, 1.0), cg.sqrt(x))
}

/// Sine, for |x| below 10^9.
pub fn sin<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let (r, quadrant) = reduce_half_pi(cg, x);
    quarter_wave(cg, r, quadrant)
}

/// Cosine, for |x| below 10^9.
pub fn cos<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let (r, quadrant) = reduce_half_pi(cg, x);
    quarter_wave(cg, r, cg.add(quadrant, 1))
}

/// The distance to the nearest multiple of pi/2, and that multiple. In f64, where two fused steps
/// keep the digits that f32 would need five constants for.
fn reduce_half_pi<'c>(cg: &Cg<'c>, x: Val<'c>) -> (Val<'c>, Val<'c>) {
    let wide = cg.cast(x, Elem::F64);
    let f = |v: f64| cg.float(wide.ty, v);
    // 1.5 * 2^52: the sum's low bits are the integer.
    let rounder = 6_755_399_441_055_744.0;
    let shifted = cg.fma(wide, f(std::f64::consts::FRAC_2_PI), rounder);
    let n = cg.sub(shifted, rounder);
    let r = cg.fma(n, f(-std::f64::consts::FRAC_PI_2), wide);
    let r = cg.fma(n, f(-6.123_233_995_736_766e-17), r);
    let quadrant = cg.cast(cg.bitcast(shifted, wide.ty.with(Elem::I64)), Elem::I32);
    (cg.cast(r, Elem::F32), quadrant)
}

/// sin(r + quadrant * pi / 2) for |r| <= pi / 4.
fn quarter_wave<'c>(cg: &Cg<'c>, r: Val<'c>, quadrant: Val<'c>) -> Val<'c> {
    let r2 = cg.mul(r, r);
    let sine = cg.fma(cg.mul(polynomial(cg, r2, &SIN_TAIL), r2), r, r);
    let cosine = polynomial(cg, r2, &COS);
    let is_cosine = cg.cmp(Cmp::Ne, cg.and(quadrant, 1), 0);
    let negative = cg.cmp(Cmp::Ne, cg.and(quadrant, 2), 0);
    let y = cg.select(is_cosine, cosine, sine);
    cg.select(negative, cg.neg(y), y)
}

/// (sin(x) / x - 1) / x^2 in x^2, on |x| <= pi / 4.
const SIN_TAIL: [f64; 4] = [2.72493139e-06, -0.000198400827, 0.00833333191, -0.166666672];

/// cos(x) in x^2, on |x| <= pi / 4.
const COS: [f64; 5] = [2.45474366e-05, -0.00138883002, 0.0416666642, -0.5, 1.0];

/// The error function.
pub fn erf<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let a = cg.abs(x);
    let small = cg.mul(polynomial(cg, cg.mul(x, x), &ERF_SMALL), x);
    // 1 - erfc(a), with ln erfc a polynomial; from 4 on the result rounds to 1.
    let capped = cg.select(cg.cmp(Cmp::Gt, a, 4.0f32), cg.float(x.ty, 4.0), a);
    let erfc = exp(cg, polynomial(cg, capped, &LN_ERFC));
    let large = cg.copysign(cg.sub(cg.float(x.ty, 1.0), erfc), x);
    cg.select(cg.cmp(Cmp::Lt, a, 1.0f32), small, large)
}

/// erf(x) / x in x^2, on |x| <= 1.
const ERF_SMALL: [f64; 8] = [
    -9.66704465e-06,
    0.000112659589,
    -0.000848408032,
    0.00522103161,
    -0.0268654302,
    0.112837821,
    -0.376126379,
    1.12837923,
];

/// ln(erfc(x)) on [1, 4].
const LN_ERFC: [f64; 10] = [
    -7.58268186e-08,
    3.32168452e-06,
    -6.22983498e-05,
    0.000685836654,
    -0.00506494706,
    0.0270995237,
    -0.111055017,
    -0.630953014,
    -1.1306752,
    0.000416329218,
];

#[cfg(test)]
mod tests;
