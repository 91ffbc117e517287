//! The meaning of pointwise ops on lanes.
//!
//! In registers a narrow float is an f32 that its type can hold, a bool a bit; [`round`] makes the
//! first so.

use weft_ir::formats::{E4M3, E5M2, E5M6, Format};
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::graph::Scalar;
use crate::emit::{Cg, Cmp, Elem, Ty, Val};
use crate::{math, narrow as codes};

/// What a value of `dtype` is in a register.
pub fn register(dtype: DType) -> Elem {
    match dtype {
        DType::I32 => Elem::I32,
        DType::I64 => Elem::I64,
        DType::Bool => Elem::I1,
        DType::F32 | DType::Bf16 | DType::E4m3 | DType::E5m2 | DType::E5m6 | DType::Ue8m0 => {
            Elem::F32
        }
    }
}

/// What a value of `dtype` is in memory.
pub fn memory(dtype: DType) -> Elem {
    match dtype {
        DType::Bf16 => Elem::BF16,
        // E5M6 is packed and unpacked by a kernel of its own (`pack12.rs`).
        DType::Bool | DType::E4m3 | DType::E5m2 | DType::Ue8m0 => Elem::I8,
        other => register(other),
    }
}

/// From memory to register.
pub fn widen<'c>(cg: &Cg<'c>, v: Val<'c>, dtype: DType) -> Val<'c> {
    match dtype {
        DType::Bool => cg.cmp(Cmp::Ne, v, 0),
        DType::Ue8m0 => codes::decode_scale(cg, cg.zext(v, Elem::I32)),
        _ if code(dtype).is_some() => decoded(cg, cg.zext(v, Elem::I32), dtype),
        _ => cg.cast(v, register(dtype)),
    }
}

/// From register to memory.
pub fn narrow<'c>(cg: &Cg<'c>, v: Val<'c>, dtype: DType) -> Val<'c> {
    match dtype {
        DType::Bool => cg.zext(v, Elem::I8),
        DType::Ue8m0 => cg.cast(codes::encode_scale(cg, v), Elem::I8),
        _ if code(dtype).is_some() => cg.cast(encoded(cg, v, dtype), Elem::I8),
        _ => cg.cast(v, memory(dtype)),
    }
}

/// Rounds a result to what `dtype` can hold.
pub fn round<'c>(cg: &Cg<'c>, v: Val<'c>, dtype: DType) -> Val<'c> {
    match dtype {
        DType::Bf16 => cg.cast(cg.cast(v, Elem::BF16), Elem::F32),
        DType::Ue8m0 => codes::decode_scale(cg, codes::encode_scale(cg, v)),
        _ if code(dtype).is_some() => decoded(cg, encoded(cg, v, dtype), dtype),
        _ => v,
    }
}

/// The format of a type whose values are codes in memory.
fn code(dtype: DType) -> Option<Format> {
    match dtype {
        DType::E4m3 => Some(E4M3),
        DType::E5m2 => Some(E5M2),
        DType::E5m6 => Some(E5M6),
        DType::F32 | DType::Bf16 | DType::Ue8m0 | DType::I32 | DType::I64 | DType::Bool => None,
    }
}

fn decoded<'c>(cg: &Cg<'c>, v: Val<'c>, dtype: DType) -> Val<'c> {
    code(dtype).map_or(v, |format| codes::decode(cg, v, format))
}

fn encoded<'c>(cg: &Cg<'c>, v: Val<'c>, dtype: DType) -> Val<'c> {
    code(dtype).map_or(v, |format| codes::encode(cg, v, format))
}

pub fn constant<'c>(cg: &Cg<'c>, value: f64, dtype: DType) -> Val<'c> {
    let ty = register(dtype).x(1);
    match dtype {
        DType::Bool => cg.i1(value != 0.0),
        DType::I32 => cg.int(ty, i64::from(value as i32)),
        DType::I64 => cg.int(ty, value as i64),
        _ => round(cg, cg.float(ty, value), dtype),
    }
}

/// Is this worth a load and a store to do once instead of twice?
pub fn is_expensive(scalar: Scalar) -> bool {
    match scalar {
        Scalar::OneMinusPow(_) => true,
        Scalar::Round | Scalar::Nearest(_) => false,
        Scalar::Ir(op) => {
            matches!(op, Op::Exp | Op::Log | Op::Sigmoid | Op::Tanh | Op::Sin | Op::Cos | Op::Erf)
        }
    }
}

/// `scalar` on operands of as many lanes each; rounded to `dtype`.
pub fn apply<'c>(cg: &Cg<'c>, scalar: Scalar, xs: &[Val<'c>], dtype: DType) -> Val<'c> {
    round(cg, unrounded(cg, scalar, xs, dtype), dtype)
}

/// The same before it is rounded.
pub fn unrounded<'c>(cg: &Cg<'c>, scalar: Scalar, xs: &[Val<'c>], dtype: DType) -> Val<'c> {
    match scalar {
        Scalar::Round => xs[0],
        Scalar::Nearest(narrow) => round(cg, xs[0], narrow),
        Scalar::OneMinusPow(base) => one_minus_pow(cg, base, xs[0]),
        Scalar::Ir(op) => op_value(cg, op, xs, dtype),
    }
}

fn op_value<'c>(cg: &Cg<'c>, op: Op, xs: &[Val<'c>], dtype: DType) -> Val<'c> {
    let x = xs[0];
    let float = x.ty.elem.is_float();
    match op {
        Op::Neg => cg.neg(x),
        Op::Abs if float => cg.abs(x),
        Op::Abs => cg.select(cg.cmp(Cmp::Lt, x, 0), cg.neg(x), x),
        Op::Sign => sign(cg, x),
        Op::Floor if float => cg.intrinsic("llvm.floor", &[x.ty], &[x], x.ty),
        Op::Floor => x,
        Op::Exp => math::exp(cg, x),
        Op::Log => math::ln(cg, x),
        Op::Sqrt => cg.sqrt(x),
        Op::Rsqrt => math::rsqrt(cg, x),
        Op::Sigmoid => math::sigmoid(cg, x),
        Op::Tanh => math::tanh(cg, x),
        Op::Sin => math::sin(cg, x),
        Op::Cos => math::cos(cg, x),
        Op::Erf => math::erf(cg, x),
        Op::Add => cg.add(x, xs[1]),
        Op::Sub => cg.sub(x, xs[1]),
        Op::Mul => cg.mul(x, xs[1]),
        Op::Div if float => cg.div(x, xs[1]),
        Op::Div => int_div(cg, x, xs[1]),
        Op::Max => max(cg, x, xs[1]),
        Op::Min => picked(cg, Cmp::Le, x, xs[1]),
        Op::Eq => cg.cmp(Cmp::Eq, x, xs[1]),
        Op::Lt => cg.cmp(Cmp::Lt, x, xs[1]),
        Op::Le => cg.cmp(Cmp::Le, x, xs[1]),
        Op::And => cg.and(x, xs[1]),
        Op::Or => cg.or(x, xs[1]),
        Op::Not => cg.not(x),
        Op::Select => cg.select(x, xs[1], xs[2]),
        Op::Convert => convert(cg, x, dtype),
        other => unreachable!("{} is no scalar op: `lower` makes no such node", other.name()),
    }
}

/// The larger; NaN if one is.
pub fn max<'c>(cg: &Cg<'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    picked(cg, Cmp::Ge, x, y)
}

/// `x` where it is NaN or compares so with `y`, else `y`.
fn picked<'c>(cg: &Cg<'c>, by: Cmp, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    let first = cg.cmp(by, x, y);
    if !x.ty.elem.is_float() {
        return cg.select(first, x, y);
    }
    cg.select(cg.or(first, cg.cmp(Cmp::Ne, x, x)), x, y)
}

fn sign<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    let number = |v: i64| {
        if x.ty.elem.is_float() { cg.float(x.ty, v as f64) } else { cg.int(x.ty, v) }
    };
    let zero = cg.zero(x.ty);
    // `0 x` keeps NaN.
    let rest = cg.select(cg.cmp(Cmp::Lt, x, zero), number(-1), cg.mul(x, zero));
    cg.select(cg.cmp(Cmp::Gt, x, zero), number(1), rest)
}

/// Rounded toward zero; 0 where the machine would stop the program (a zero divisor).
fn int_div<'c>(cg: &Cg<'c>, x: Val<'c>, y: Val<'c>) -> Val<'c> {
    let zero = cg.cmp(Cmp::Eq, y, 0);
    let minus = cg.cmp(Cmp::Eq, y, -1);
    let safe = cg.select(cg.or(zero, minus), cg.int(y.ty, 1), y);
    let quotient = cg.div(x, safe);
    let quotient = cg.select(minus, cg.neg(x), quotient);
    cg.select(zero, cg.zero(x.ty), quotient)
}

fn convert<'c>(cg: &Cg<'c>, x: Val<'c>, to: DType) -> Val<'c> {
    let elem = register(to);
    match (x.ty.elem, elem) {
        (Elem::I1, Elem::I1) => x,
        (_, Elem::I1) => cg.cmp(Cmp::Ne, x, cg.zero(x.ty)),
        // Keeps to the ends of the range; NaN becomes 0.
        (Elem::F32, Elem::I32 | Elem::I64) => {
            let ty = x.ty.with(elem);
            cg.intrinsic("llvm.fptosi.sat", &[ty, x.ty], &[x], ty)
        }
        _ => cg.cast(x, elem),
    }
}

/// `1 - base^x`, in f64: for a base of 0.999 and small `x` an f32 difference keeps four digits.
fn one_minus_pow<'c>(cg: &Cg<'c>, base: f64, x: Val<'c>) -> Val<'c> {
    let x = cg.cast(x, Elem::F64);
    let f = |v: f64| cg.float(x.ty, v);
    if base <= 0.0 {
        let at_zero = cg.cmp(Cmp::Eq, x, 0.0f64);
        return cg.cast(cg.select(at_zero, f(0.0), f(1.0)), Elem::F32);
    }
    // base^x = 2^n e^r, |r| <= ln 2 / 2; the exponent of a power that matters is within f64's.
    let y = cg.mul(x, base.ln());
    let y = cg.select(cg.cmp(Cmp::Lt, y, -700.0f64), f(-700.0), y);
    let y = cg.select(cg.cmp(Cmp::Gt, y, 700.0f64), f(700.0), y);
    let n = cg.round_even(cg.mul(y, std::f64::consts::LOG2_E));
    let r = cg.fma(n, f(-std::f64::consts::LN_2), y);
    // e^r - 1 by its series; 14 terms reach 1e-17 at the ends.
    let series =
        (2..=14).rev().fold(f(1.0), |sum, k| cg.fma(cg.mul(r, 1.0 / f64::from(k)), sum, 1.0f64));
    let less_one = cg.mul(r, series);
    let bits = cg.cast(n, Elem::I64);
    let power = cg.bitcast(cg.shl(cg.add(bits, 1023), 52), Ty { elem: Elem::F64, ..x.ty });
    // 1 - 2^n (1 + e) = (1 - 2^n) - 2^n e: exact where n is zero.
    let whole = cg.sub(f(1.0), power);
    cg.cast(cg.sub(whole, cg.mul(power, less_one)), Elem::F32)
}
