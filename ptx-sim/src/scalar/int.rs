//! Integer and logic functions by type.

use super::{Compare, Ty};
use crate::program::{Fn1, Fn2, Fn3, Fn4};

/// One function for each width and sign, from an expression over `$t` values.
macro_rules! by_type {
    (@one $t:ty, $u:ty, $a:ident, $e:expr) => {
        (|x: u64| { let $a = x as $t; let r: $t = $e; u64::from(r as $u) }) as Fn1
    };
    (@two $t:ty, $u:ty, $a:ident, $b:ident, $e:expr) => {
        (|x: u64, y: u64| {
            let ($a, $b) = (x as $t, y as $t);
            let r: $t = $e;
            u64::from(r as $u)
        }) as Fn2
    };
    ($ty:expr, |$a:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(by_type!(@one u16, u16, $a, $e)),
            Ty::S16 => Some(by_type!(@one i16, u16, $a, $e)),
            Ty::U32 | Ty::B32 => Some(by_type!(@one u32, u32, $a, $e)),
            Ty::S32 => Some(by_type!(@one i32, u32, $a, $e)),
            Ty::U64 | Ty::B64 => Some(by_type!(@one u64, u64, $a, $e)),
            Ty::S64 => Some(by_type!(@one i64, u64, $a, $e)),
            _ => None,
        }
    };
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(by_type!(@two u16, u16, $a, $b, $e)),
            Ty::S16 => Some(by_type!(@two i16, u16, $a, $b, $e)),
            Ty::U32 | Ty::B32 => Some(by_type!(@two u32, u32, $a, $b, $e)),
            Ty::S32 => Some(by_type!(@two i32, u32, $a, $b, $e)),
            Ty::U64 | Ty::B64 => Some(by_type!(@two u64, u64, $a, $b, $e)),
            Ty::S64 => Some(by_type!(@two i64, u64, $a, $b, $e)),
            _ => None,
        }
    };
}

pub fn add(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| a.wrapping_add(b))
}

pub fn add_saturating(ty: Ty) -> Option<Fn2> {
    (ty == Ty::S32).then_some((|x, y| (x as i32).saturating_add(y as i32) as u32 as u64) as Fn2)
}

pub fn sub(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| a.wrapping_sub(b))
}

pub fn mul_low(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| a.wrapping_mul(b))
}

pub fn mul_high(ty: Ty) -> Option<Fn2> {
    Some(match ty {
        Ty::U16 => |x, y| ((x & 0xffff) * (y & 0xffff)) >> 16,
        Ty::S16 => |x, y| u64::from(((i32::from(x as i16) * i32::from(y as i16)) >> 16) as u16),
        Ty::U32 => |x, y| ((x & 0xffff_ffff) * (y & 0xffff_ffff)) >> 32,
        Ty::S32 => |x, y| u64::from(((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32),
        Ty::U64 => |x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64,
        Ty::S64 => |x, y| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64,
        _ => return None,
    })
}

pub fn mul_wide(ty: Ty) -> Option<Fn2> {
    Some(match ty {
        Ty::U16 => |x, y| (x & 0xffff) * (y & 0xffff),
        Ty::S16 => |x, y| u64::from((i32::from(x as i16) * i32::from(y as i16)) as u32),
        Ty::U32 => |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff),
        Ty::S32 => |x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64,
        _ => return None,
    })
}

pub fn mad_low(ty: Ty) -> Option<Fn3> {
    Some(match ty.bits() {
        16 => |x, y, z| u64::from((x as u16).wrapping_mul(y as u16).wrapping_add(z as u16)),
        32 => |x, y, z| u64::from((x as u32).wrapping_mul(y as u32).wrapping_add(z as u32)),
        64 => |x, y, z| x.wrapping_mul(y).wrapping_add(z),
        _ => return None,
    })
}

pub fn mad_wide(ty: Ty) -> Option<Fn3> {
    Some(match ty {
        Ty::U16 => {
            |x, y, z| u64::from(((x & 0xffff) as u32 * (y & 0xffff) as u32).wrapping_add(z as u32))
        }
        Ty::S16 => |x, y, z| {
            let product = i32::from(x as i16) * i32::from(y as i16);
            u64::from((product as u32).wrapping_add(z as u32))
        },
        Ty::U32 => |x, y, z| ((x & 0xffff_ffff) * (y & 0xffff_ffff)).wrapping_add(z),
        Ty::S32 => |x, y, z| ((i64::from(x as i32) * i64::from(y as i32)) as u64).wrapping_add(z),
        _ => return None,
    })
}

pub fn mad_high(ty: Ty) -> Option<Fn3> {
    Some(match ty {
        Ty::U32 => |x, y, z| {
            let high = ((x & 0xffff_ffff) * (y & 0xffff_ffff)) >> 32;
            u64::from((high as u32).wrapping_add(z as u32))
        },
        Ty::S32 => |x, y, z| {
            let high = (i64::from(x as i32) * i64::from(y as i32)) >> 32;
            u64::from((high as u32).wrapping_add(z as u32))
        },
        _ => return None,
    })
}

/// Division by zero gives all ones, as the hardware happens to; PTX leaves it open.
pub fn div(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| if b == 0 { !0 } else { a.wrapping_div(b) })
}

pub fn rem(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| if b == 0 { a } else { a.wrapping_rem(b) })
}

pub fn min(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| a.min(b))
}

pub fn max(ty: Ty) -> Option<Fn2> {
    by_type!(ty, |a, b| a.max(b))
}

/// The lesser, or 0 if that is negative and `relu`, which s32 alone has.
pub fn min_relu(ty: Ty, relu: bool) -> Option<Fn2> {
    match (ty, relu) {
        (_, false) => min(ty),
        (Ty::S32, true) => Some(|a, b| (a as i32).min(b as i32).max(0) as u64),
        _ => None,
    }
}

/// The greater, with `relu` as [`min_relu`].
pub fn max_relu(ty: Ty, relu: bool) -> Option<Fn2> {
    match (ty, relu) {
        (_, false) => max(ty),
        (Ty::S32, true) => Some(|a, b| (a as i32).max(b as i32).max(0) as u64),
        _ => None,
    }
}

pub fn abs(ty: Ty) -> Option<Fn1> {
    Some(match ty {
        Ty::S16 => |x| u64::from((x as i16).wrapping_abs() as u16),
        Ty::S32 => |x| u64::from((x as i32).wrapping_abs() as u32),
        Ty::S64 => |x| (x as i64).wrapping_abs() as u64,
        _ => return None,
    })
}

pub fn neg(ty: Ty) -> Option<Fn1> {
    by_type!(ty, |a| a.wrapping_neg())
}

pub fn not(ty: Ty) -> Option<Fn1> {
    if ty == Ty::Pred {
        return Some(|x| x ^ 1);
    }
    by_type!(ty, |a| !a)
}

pub fn cnot(ty: Ty) -> Option<Fn1> {
    by_type!(ty, |a| (a == 0).into())
}

pub fn and() -> Fn2 {
    |x, y| x & y
}

pub fn or() -> Fn2 {
    |x, y| x | y
}

pub fn xor() -> Fn2 {
    |x, y| x ^ y
}

/// The amount is a u32, clamped to the width.
pub fn shl(ty: Ty) -> Option<Fn2> {
    Some(match ty.bits() {
        16 => |x, n| if n as u32 > 15 { 0 } else { u64::from((x as u16) << n as u32) },
        32 => |x, n| if n as u32 > 31 { 0 } else { u64::from((x as u32) << n as u32) },
        64 => |x, n| if n as u32 > 63 { 0 } else { x << n as u32 },
        _ => return None,
    })
}

pub fn shr(ty: Ty) -> Option<Fn2> {
    Some(match (ty.bits(), ty.is_signed()) {
        (16, false) => |x, n| if n as u32 > 15 { 0 } else { u64::from((x as u16) >> n as u32) },
        (32, false) => |x, n| if n as u32 > 31 { 0 } else { u64::from((x as u32) >> n as u32) },
        (64, false) => |x, n| if n as u32 > 63 { 0 } else { x >> n as u32 },
        (16, true) => |x, n| u64::from(((x as i16) >> (n as u32).min(15)) as u16),
        (32, true) => |x, n| u64::from(((x as i32) >> (n as u32).min(31)) as u32),
        (64, true) => |x, n| ((x as i64) >> (n as u32).min(63)) as u64,
        _ => return None,
    })
}

/// Funnel shift of `hi:lo`; operands come as lo, hi, amount.
pub fn shf(left: bool, wrap: bool) -> Fn3 {
    fn amount(n: u64, wrap: bool) -> u32 {
        if wrap { n as u32 & 31 } else { (n as u32).min(32) }
    }
    fn pair(lo: u64, hi: u64) -> u64 {
        (hi << 32) | (lo & 0xffff_ffff)
    }
    match (left, wrap) {
        (true, true) => |lo, hi, n| ((pair(lo, hi) << amount(n, true)) >> 32) & 0xffff_ffff,
        (true, false) => |lo, hi, n| ((pair(lo, hi) << amount(n, false)) >> 32) & 0xffff_ffff,
        (false, true) => |lo, hi, n| (pair(lo, hi) >> amount(n, true)) & 0xffff_ffff,
        (false, false) => |lo, hi, n| (pair(lo, hi) >> amount(n, false)) & 0xffff_ffff,
    }
}

pub fn popc(ty: Ty) -> Option<Fn1> {
    by_type!(ty, |a| a).map(|_| (|x: u64| u64::from(x.count_ones())) as Fn1)
}

pub fn clz(ty: Ty) -> Option<Fn1> {
    Some(match ty.bits() {
        32 => |x| u64::from((x as u32).leading_zeros()),
        64 => |x: u64| u64::from(x.leading_zeros()),
        _ => return None,
    })
}

pub fn brev(ty: Ty) -> Option<Fn1> {
    Some(match ty.bits() {
        32 => |x| u64::from((x as u32).reverse_bits()),
        64 => |x: u64| x.reverse_bits(),
        _ => return None,
    })
}

/// Position of the highest bit that differs from the sign; all ones if there is none.
pub fn bfind(ty: Ty, shift_amount: bool) -> Option<Fn1> {
    Some(match (ty, shift_amount) {
        (Ty::U32, false) => |x| u64::from(31u32.wrapping_sub((x as u32).leading_zeros())),
        (Ty::U32, true) => |x| match (x as u32).leading_zeros() {
            32 => 0xffff_ffff,
            n => u64::from(n),
        },
        (Ty::U64, false) => |x| u64::from(63u32.wrapping_sub(x.leading_zeros())),
        (Ty::S32, false) => |x| {
            let x = x as i32;
            u64::from(31u32.wrapping_sub((if x < 0 { !x } else { x }).leading_zeros()))
        },
        _ => return None,
    })
}

pub fn bfe(ty: Ty) -> Option<Fn3> {
    fn field(x: u64, at: u64, n: u64, width: u64, signed: bool) -> u64 {
        let (at, n) = (at & 0xff, n & 0xff);
        if n == 0 {
            return 0;
        }
        let last = (at + n - 1).min(width - 1);
        let sign = if signed { (x >> last) & 1 } else { 0 };
        let mut out = 0;
        for i in 0..width {
            let from = at + i;
            let bit = if i < n && from < width { (x >> from) & 1 } else { sign };
            out |= bit << i;
        }
        out
    }
    Some(match ty {
        Ty::U32 => |x, at, n| field(x, at, n, 32, false),
        Ty::S32 => |x, at, n| field(x, at, n, 32, true),
        Ty::U64 => |x, at, n| field(x, at, n, 64, false),
        Ty::S64 => |x, at, n| field(x, at, n, 64, true),
        _ => return None,
    })
}

/// Inserts the low `n` bits of `a` into `b` at `at`.
pub fn bfi(ty: Ty) -> Option<Fn4> {
    fn insert(a: u64, b: u64, at: u64, n: u64, width: u64) -> u64 {
        let mut out = b;
        for i in 0..(n & 0xff) {
            let to = (at & 0xff) + i;
            if to < width {
                out = (out & !(1 << to)) | (((a >> i) & 1) << to);
            }
        }
        out
    }
    Some(match ty.bits() {
        32 => |a, b, at, n| insert(a, b, at, n, 32),
        64 => |a, b, at, n| insert(a, b, at, n, 64),
        _ => return None,
    })
}

/// Bytes of `b:a` picked by the nibbles of the selector; bit 3 of a nibble spreads the sign.
pub fn prmt() -> Fn3 {
    |a, b, selector| {
        let bytes = ((b & 0xffff_ffff) << 32) | (a & 0xffff_ffff);
        let mut out = 0;
        for i in 0..4 {
            let nibble = (selector >> (4 * i)) & 0xf;
            let mut byte = (bytes >> (8 * (nibble & 7))) & 0xff;
            if nibble & 8 != 0 {
                byte = if byte & 0x80 != 0 { 0xff } else { 0 };
            }
            out |= byte << (8 * i);
        }
        out
    }
}

/// Any function of three bits: bit `4a + 2b + c` of the table, which comes last.
pub fn lop3() -> Fn4 {
    |a, b, c, table| {
        (0..32).fold(0, |out, i| {
            let index = ((a >> i) & 1) << 2 | ((b >> i) & 1) << 1 | ((c >> i) & 1);
            out | ((table >> index) & 1) << i
        })
    }
}

pub fn compare(ty: Ty, how: Compare) -> Option<Fn2> {
    macro_rules! pick {
        ($t:ty) => {
            match how {
                Compare::Eq => (|x, y| u64::from(x as $t == y as $t)) as Fn2,
                Compare::Ne => |x, y| u64::from(x as $t != y as $t),
                Compare::Lt => |x, y| u64::from((x as $t) < y as $t),
                Compare::Le => |x, y| u64::from(x as $t <= y as $t),
                Compare::Gt => |x, y| u64::from(x as $t > y as $t),
                Compare::Ge => |x, y| u64::from(x as $t >= y as $t),
                _ => return None,
            }
        };
    }
    Some(match ty {
        Ty::B16 | Ty::U16 => pick!(u16),
        Ty::S16 => pick!(i16),
        Ty::B32 | Ty::U32 => pick!(u32),
        Ty::S32 => pick!(i32),
        Ty::B64 | Ty::U64 => pick!(u64),
        Ty::S64 => pick!(i64),
        _ => return None,
    })
}
