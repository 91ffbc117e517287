//! f32 and f64 functions. Approximate ones are computed in f64 and rounded: what hardware gives is
//! within a few units in the last place of that, so compare with a tolerance.

use super::{Compare, Ty};
use crate::numeric::{bits_f32, f32_of, f64_of, flush};
use crate::program::{Fn1, Fn2, Fn3};

/// `.ftz` and `.sat` of an f32 opcode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub ftz: bool,
    pub sat: bool,
}

fn enter<const FTZ: bool>(bits: u64) -> f32 {
    let value = f32_of(bits);
    if FTZ { flush(value) } else { value }
}

fn leave<const FTZ: bool, const SAT: bool>(value: f32) -> u64 {
    let value = if FTZ { flush(value) } else { value };
    if value.is_nan() {
        return if SAT { 0 } else { 0x7fff_ffff };
    }
    bits_f32(if SAT { value.clamp(0.0, 1.0) } else { value })
}

/// The four variants of an f32 expression.
macro_rules! f32_fn {
    ($flags:expr, $f:ty, |$($a:ident),+| $e:expr) => {
        match ($flags.ftz, $flags.sat) {
            (false, false) => f32_fn!(@ false, false, $f, [$($a),+], $e),
            (true, false) => f32_fn!(@ true, false, $f, [$($a),+], $e),
            (false, true) => f32_fn!(@ false, true, $f, [$($a),+], $e),
            (true, true) => f32_fn!(@ true, true, $f, [$($a),+], $e),
        }
    };
    (@ $ftz:literal, $sat:literal, $f:ty, [$($a:ident),+], $e:expr) => {
        (|$($a: u64),+| {
            $(let $a = enter::<$ftz>($a);)+
            leave::<$ftz, $sat>($e)
        }) as $f
    };
}

/// f64 keeps its NaN payload canonical as well.
fn out64(value: f64) -> u64 {
    if value.is_nan() { 0x7fff_ffff_ffff_ffff } else { value.to_bits() }
}

macro_rules! both {
    ($ty:expr, $flags:expr, $f:ty, |$($a:ident),+| $e:expr) => {
        match $ty {
            Ty::F32 => Some(f32_fn!($flags, $f, |$($a),+| $e)),
            Ty::F64 => Some((|$($a: u64),+| { $(let $a = f64_of($a);)+ out64($e) }) as $f),
            _ => None,
        }
    };
}

pub fn add(ty: Ty, flags: Flags) -> Option<Fn2> {
    both!(ty, flags, Fn2, |a, b| a + b)
}

pub fn sub(ty: Ty, flags: Flags) -> Option<Fn2> {
    both!(ty, flags, Fn2, |a, b| a - b)
}

pub fn mul(ty: Ty, flags: Flags) -> Option<Fn2> {
    both!(ty, flags, Fn2, |a, b| a * b)
}

pub fn div(ty: Ty, flags: Flags) -> Option<Fn2> {
    both!(ty, flags, Fn2, |a, b| a / b)
}

pub fn fma(ty: Ty, flags: Flags) -> Option<Fn3> {
    both!(ty, flags, Fn3, |a, b, c| a.mul_add(b, c))
}

pub fn sqrt(ty: Ty, flags: Flags) -> Option<Fn1> {
    both!(ty, flags, Fn1, |a| a.sqrt())
}

pub fn rcp(ty: Ty, flags: Flags) -> Option<Fn1> {
    both!(ty, flags, Fn1, |a| 1.0 / a)
}

/// Sign bits are changed without looking at the number: NaNs keep their payload.
pub fn neg(ty: Ty, flags: Flags) -> Option<Fn1> {
    Some(match (ty, flags.ftz) {
        (Ty::F32, false) => |a| (a ^ 0x8000_0000) & 0xffff_ffff,
        (Ty::F32, true) => |a| bits_f32(-flush(f32_of(a))),
        (Ty::F64, _) => |a| a ^ (1 << 63),
        _ => return None,
    })
}

pub fn abs(ty: Ty, flags: Flags) -> Option<Fn1> {
    Some(match (ty, flags.ftz) {
        (Ty::F32, false) => |a| a & 0x7fff_ffff,
        (Ty::F32, true) => |a| bits_f32(flush(f32_of(a)).abs()),
        (Ty::F64, _) => |a| a & !(1 << 63),
        _ => return None,
    })
}

/// The number of two if one is NaN; -0 is below +0.
fn min32(a: f32, b: f32) -> f32 {
    if a == b { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

fn max32(a: f32, b: f32) -> f32 {
    if a == b { if a.is_sign_negative() { b } else { a } } else { a.max(b) }
}

fn min32_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { min32(a, b) }
}

fn max32_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { max32(a, b) }
}

pub fn min(ty: Ty, flags: Flags, nan: bool) -> Option<Fn2> {
    match (ty, nan) {
        (Ty::F32, false) => Some(f32_fn!(flags, Fn2, |a, b| min32(a, b))),
        (Ty::F32, true) => Some(f32_fn!(flags, Fn2, |a, b| min32_nan(a, b))),
        (Ty::F64, false) => Some(|a, b| out64(f64_of(a).min(f64_of(b)))),
        _ => None,
    }
}

pub fn max(ty: Ty, flags: Flags, nan: bool) -> Option<Fn2> {
    match (ty, nan) {
        (Ty::F32, false) => Some(f32_fn!(flags, Fn2, |a, b| max32(a, b))),
        (Ty::F32, true) => Some(f32_fn!(flags, Fn2, |a, b| max32_nan(a, b))),
        (Ty::F64, false) => Some(|a, b| out64(f64_of(a).max(f64_of(b)))),
        _ => None,
    }
}

/// Sign of the first operand, magnitude of the second.
pub fn copysign(ty: Ty) -> Option<Fn2> {
    Some(match ty {
        Ty::F32 => |a, b| (a & 0x8000_0000) | (b & 0x7fff_ffff),
        Ty::F64 => |a, b| (a & (1 << 63)) | (b & !(1 << 63)),
        _ => return None,
    })
}

/// 1 where the number is of the class.
pub fn testp(ty: Ty, class: &str) -> Option<Fn1> {
    if ty != Ty::F32 {
        return None;
    }
    Some(match class {
        "finite" => |a| u64::from(f32_of(a).is_finite()),
        "infinite" => |a| u64::from(f32_of(a).is_infinite()),
        "number" => |a| u64::from(!f32_of(a).is_nan()),
        "notanumber" => |a| u64::from(f32_of(a).is_nan()),
        "normal" => |a| u64::from(f32_of(a).is_normal()),
        "subnormal" => |a| u64::from(f32_of(a).is_subnormal()),
        _ => return None,
    })
}

/// Functions of one f32 that hardware approximates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approx {
    Ex2,
    Lg2,
    Rcp,
    Rsqrt,
    Sqrt,
    Sin,
    Cos,
    Tanh,
}

pub fn approx(which: Approx, flags: Flags) -> Fn1 {
    macro_rules! through_f64 {
        (|$x:ident| $e:expr) => {
            f32_fn!(flags, Fn1, |a| {
                let $x = f64::from(a);
                $e as f32
            })
        };
    }
    match which {
        Approx::Ex2 => through_f64!(|x| x.exp2()),
        Approx::Lg2 => through_f64!(|x| x.log2()),
        Approx::Rcp => through_f64!(|x| 1.0 / x),
        Approx::Rsqrt => through_f64!(|x| 1.0 / x.sqrt()),
        Approx::Sqrt => through_f64!(|x| x.sqrt()),
        Approx::Sin => through_f64!(|x| x.sin()),
        Approx::Cos => through_f64!(|x| x.cos()),
        Approx::Tanh => through_f64!(|x| x.tanh()),
    }
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx.f64`.
pub fn approx64(which: Approx) -> Option<Fn1> {
    Some(match which {
        Approx::Rcp => |a| out64(1.0 / f64_of(a)),
        Approx::Rsqrt => |a| out64(1.0 / f64_of(a).sqrt()),
        _ => return None,
    })
}

pub fn div_approx(flags: Flags) -> Fn2 {
    f32_fn!(flags, Fn2, |a, b| (f64::from(a) / f64::from(b)) as f32)
}

macro_rules! comparisons {
    (@ $read:path, $pattern:pat) => {
        (|x, y| u64::from(matches!($read(x).partial_cmp(&$read(y)), $pattern))) as Fn2
    };
    ($how:expr, $read:path) => {{
        use std::cmp::Ordering::{Equal, Greater, Less};
        // `None`: one of the two is NaN.
        match $how {
            Compare::Eq => comparisons!(@ $read, Some(Equal)),
            Compare::Ne => comparisons!(@ $read, Some(Less | Greater)),
            Compare::Lt => comparisons!(@ $read, Some(Less)),
            Compare::Le => comparisons!(@ $read, Some(Less | Equal)),
            Compare::Gt => comparisons!(@ $read, Some(Greater)),
            Compare::Ge => comparisons!(@ $read, Some(Greater | Equal)),
            Compare::Equ => comparisons!(@ $read, Some(Equal) | None),
            Compare::Neu => comparisons!(@ $read, Some(Less | Greater) | None),
            Compare::Ltu => comparisons!(@ $read, Some(Less) | None),
            Compare::Leu => comparisons!(@ $read, Some(Less | Equal) | None),
            Compare::Gtu => comparisons!(@ $read, Some(Greater) | None),
            Compare::Geu => comparisons!(@ $read, Some(Greater | Equal) | None),
            Compare::Num => |x, y| u64::from(!$read(x).is_nan() && !$read(y).is_nan()),
            Compare::Nan => |x, y| u64::from($read(x).is_nan() || $read(y).is_nan()),
        }
    }};
}
pub(super) use comparisons;

pub fn compare(ty: Ty, how: Compare, ftz: bool) -> Option<Fn2> {
    match (ty, ftz) {
        (Ty::F32, false) => Some(comparisons!(how, f32_of)),
        (Ty::F32, true) => compare_ftz(how),
        (Ty::F64, _) => compare64(how),
        _ => None,
    }
}

fn compare_ftz(how: Compare) -> Option<Fn2> {
    fn read(bits: u64) -> f32 {
        flush(f32_of(bits))
    }
    Some(comparisons!(how, read))
}

fn compare64(how: Compare) -> Option<Fn2> {
    Some(comparisons!(how, f64_of))
}
