//! f16, bf16 and their pairs: computed in f32 rounded to odd, so that the result is rounded once.

use super::float::comparisons;
use super::{Compare, Ty};
use crate::numeric::{bf16_of, bits_bf16, bits_f16, f16_of, fma_odd, odd_f32};
use crate::program::{Fn1, Fn2, Fn3};

/// An expression over f32 values for each of the four types.
macro_rules! narrow {
    (@ $read:path, $write:path, $f:ty, [$($a:ident),+], $e:expr) => {
        (|$($a: u64),+| { $(let $a = $read($a);)+ $write($e) }) as $f
    };
    (@pair $read:path, $write:path, $f:ty, [$($a:ident),+], $e:expr) => {
        (|$($a: u64),+| {
            let low = { $(let $a = $read($a);)+ $write($e) };
            let high = { $(let $a = $read($a >> 16);)+ $write($e) };
            low | high << 16
        }) as $f
    };
    ($ty:expr, $f:ty, |$($a:ident),+| $e:expr) => {
        match $ty {
            Ty::F16 => Some(narrow!(@ f16_of, bits_f16, $f, [$($a),+], $e)),
            Ty::Bf16 => Some(narrow!(@ bf16_of, bits_bf16, $f, [$($a),+], $e)),
            Ty::F16x2 => Some(narrow!(@pair f16_of, bits_f16, $f, [$($a),+], $e)),
            Ty::Bf16x2 => Some(narrow!(@pair bf16_of, bits_bf16, $f, [$($a),+], $e)),
            _ => None,
        }
    };
}

pub fn add(ty: Ty) -> Option<Fn2> {
    narrow!(ty, Fn2, |a, b| odd_f32(f64::from(a) + f64::from(b)))
}

pub fn sub(ty: Ty) -> Option<Fn2> {
    narrow!(ty, Fn2, |a, b| odd_f32(f64::from(a) - f64::from(b)))
}

pub fn mul(ty: Ty) -> Option<Fn2> {
    narrow!(ty, Fn2, |a, b| odd_f32(f64::from(a) * f64::from(b)))
}

pub fn fma(ty: Ty, relu: bool) -> Option<Fn3> {
    fn clamp(value: f32) -> f32 {
        if value < 0.0 { 0.0 } else { value }
    }
    if relu {
        narrow!(ty, Fn3, |a, b, c| clamp(fma_odd(a, b, c)))
    } else {
        narrow!(ty, Fn3, |a, b, c| fma_odd(a, b, c))
    }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a == b { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

fn larger(a: f32, b: f32) -> f32 {
    if a == b { if a.is_sign_negative() { b } else { a } } else { a.max(b) }
}

pub fn min(ty: Ty, nan: bool) -> Option<Fn2> {
    if nan {
        narrow!(ty, Fn2, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { smaller(a, b) })
    } else {
        narrow!(ty, Fn2, |a, b| smaller(a, b))
    }
}

pub fn max(ty: Ty, nan: bool) -> Option<Fn2> {
    if nan {
        narrow!(ty, Fn2, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { larger(a, b) })
    } else {
        narrow!(ty, Fn2, |a, b| larger(a, b))
    }
}

pub fn neg(ty: Ty) -> Option<Fn1> {
    Some(match ty {
        Ty::F16 | Ty::Bf16 => |a| (a ^ 0x8000) & 0xffff,
        Ty::F16x2 | Ty::Bf16x2 => |a| (a ^ 0x8000_8000) & 0xffff_ffff,
        _ => return None,
    })
}

pub fn abs(ty: Ty) -> Option<Fn1> {
    Some(match ty {
        Ty::F16 | Ty::Bf16 => |a| a & 0x7fff,
        Ty::F16x2 | Ty::Bf16x2 => |a| a & 0x7fff_7fff,
        _ => return None,
    })
}

pub fn ex2(ty: Ty) -> Option<Fn1> {
    narrow!(ty, Fn1, |a| odd_f32(f64::from(a).exp2()))
}

pub fn tanh(ty: Ty) -> Option<Fn1> {
    narrow!(ty, Fn1, |a| odd_f32(f64::from(a).tanh()))
}

pub fn compare(ty: Ty, how: Compare) -> Option<Fn2> {
    Some(match ty {
        Ty::F16 => comparisons!(how, f16_of),
        Ty::Bf16 => comparisons!(how, bf16_of),
        _ => return None,
    })
}
