//! `cvt`: between integers, floats and the narrow formats.

use super::Ty;
use crate::numeric::{
    Fp8, bf16_of, bits_bf16, bits_f16, bits_f32, f16_of, f32_of, f64_of, flush, odd_f32,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero.
    Away,
}

/// One conversion; two sources for the pairs made of two f32.
#[derive(Clone, Copy, Debug)]
pub struct Convert {
    pub to: Ty,
    pub from: Ty,
    pub round: Option<Round>,
    /// To an integer of the value: `.rni` and its like.
    pub to_integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

impl Convert {
    /// Whether two registers are packed into a pair.
    pub fn is_pair_of_f32(&self) -> bool {
        self.from == Ty::F32 && matches!(self.to, Ty::F16x2 | Ty::Bf16x2 | Ty::E4m3x2 | Ty::E5m2x2)
    }

    /// Whether [`apply`](Self::apply) or [`apply_pair`](Self::apply_pair) knows it.
    pub fn is_known(&self) -> bool {
        let integral = |ty: Ty| {
            ty.bits() <= 64 && !ty.is_float() && !matches!(ty, Ty::E4m3x2 | Ty::E5m2x2 | Ty::Pred)
        };
        let scalar = |ty: Ty| matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64);
        let rounds = matches!(self.round, Some(Round::Nearest | Round::Zero));
        match (self.to, self.from) {
            (Ty::F16x2 | Ty::Bf16x2, Ty::F32) => rounds && !self.sat,
            (Ty::E4m3x2 | Ty::E5m2x2, Ty::F32 | Ty::F16x2) => {
                self.round == Some(Round::Nearest) && self.sat
            }
            (Ty::F16x2, Ty::E4m3x2 | Ty::E5m2x2) => self.round == Some(Round::Nearest),
            (Ty::Tf32, Ty::F32) => matches!(self.round, Some(Round::Away)),
            (to, from) if integral(to) && integral(from) => self.round.is_none(),
            (to, from) if integral(to) && scalar(from) => self.to_integral,
            (to, from) if scalar(to) && integral(from) => rounds,
            (to, from) if scalar(to) && scalar(from) => {
                let widens = to.bits() > from.bits();
                widens || to == from || self.round.is_some()
            }
            _ => false,
        }
    }

    pub fn apply_pair(&self, high: u64, low: u64) -> u64 {
        let one = |bits: u64| {
            let value = f32_of(bits);
            let value = if self.relu && value < 0.0 { 0.0 } else { value };
            match self.to {
                Ty::F16x2 => to_f16(f64::from(value), self.round),
                Ty::Bf16x2 => to_bf16(f64::from(value), self.round),
                Ty::E4m3x2 => u64::from(Fp8::E4m3.encode(value)),
                _ => u64::from(Fp8::E5m2.encode(value)),
            }
        };
        let shift = self.to.bits() / 2;
        one(high) << shift | one(low)
    }

    pub fn apply(&self, bits: u64) -> u64 {
        match (self.to, self.from) {
            (Ty::F16x2, Ty::E4m3x2 | Ty::E5m2x2) => {
                let table = if self.from == Ty::E4m3x2 { Fp8::E4m3 } else { Fp8::E5m2 }.table();
                let one = |code: u64| {
                    let value = table[code as u8 as usize];
                    bits_f16(if self.relu && value < 0.0 { 0.0 } else { value })
                };
                one(bits) | one(bits >> 8) << 16
            }
            (Ty::E4m3x2 | Ty::E5m2x2, _) => {
                let format = if self.to == Ty::E4m3x2 { Fp8::E4m3 } else { Fp8::E5m2 };
                let one = |half: u64| {
                    let value = f16_of(half);
                    u64::from(format.encode(if self.relu && value < 0.0 { 0.0 } else { value }))
                };
                one(bits) | one(bits >> 16) << 8
            }
            (Ty::Tf32, _) => {
                // Ten mantissa bits, ties away from zero.
                let value = bits as u32;
                let rounded =
                    if f32_of(bits).is_finite() { value.wrapping_add(0x1000) } else { value };
                u64::from(rounded & !0x1fff)
            }
            (to, from) if from.is_float() && to.is_float() => self.float_to_float(bits),
            (to, from) if from.is_float() => self.float_to_int(to, bits),
            (to, from) if to.is_float() => self.int_to_float(from, bits),
            (to, from) => int_to_int(to, from, bits, self.sat),
        }
    }

    fn read(&self, bits: u64) -> f64 {
        match self.from {
            Ty::F16 => f64::from(f16_of(bits)),
            Ty::Bf16 => f64::from(bf16_of(bits)),
            Ty::F64 => f64_of(bits),
            _ if self.ftz => f64::from(flush(f32_of(bits))),
            _ => f64::from(f32_of(bits)),
        }
    }

    fn float_to_float(&self, bits: u64) -> u64 {
        let mut value = self.read(bits);
        if self.to_integral {
            value = integral(value, self.round);
        }
        if self.relu && value < 0.0 {
            value = 0.0;
        }
        if self.sat {
            value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) };
        }
        write(self.to, value, self.round, self.ftz)
    }

    fn float_to_int(&self, to: Ty, bits: u64) -> u64 {
        let value = self.read(bits);
        if value.is_nan() {
            return if to.bits() == 64 { 1 << 63 } else { 0 };
        }
        let value = integral(value, self.round);
        let (low, high) = range(to);
        // Saturates, as conversions to integers do.
        let whole = (value as i128).clamp(low, high);
        whole as u64 & mask(to)
    }

    fn int_to_float(&self, from: Ty, bits: u64) -> u64 {
        let whole = extend(from, bits);
        if self.to == Ty::F64 {
            return (whole as f64).to_bits();
        }
        let exact = whole as f64;
        // 64-bit integers do not fit f64: keep what is lost as the last bit.
        let lost = whole - exact as i128;
        let exact = if lost != 0 && exact.to_bits() & 1 == 0 {
            let away = (lost > 0) == (exact > 0.0);
            f64::from_bits(if away { exact.to_bits() + 1 } else { exact.to_bits() - 1 })
        } else {
            exact
        };
        write(self.to, exact, self.round, false)
    }
}

fn write(to: Ty, value: f64, round: Option<Round>, ftz: bool) -> u64 {
    match to {
        Ty::F16 => to_f16(value, round),
        Ty::Bf16 => to_bf16(value, round),
        Ty::F64 => value.to_bits(),
        _ => {
            let narrow = directed(value, value as f32, round);
            let narrow = if ftz { flush(narrow) } else { narrow };
            if narrow.is_nan() { 0x7fff_ffff } else { bits_f32(narrow) }
        }
    }
}

/// `near` moved to the side that `round` asks for.
fn directed(value: f64, near: f32, round: Option<Round>) -> f32 {
    let back = f64::from(near);
    match round {
        Some(Round::Zero) if back.abs() > value.abs() => f32::from_bits(near.to_bits() - 1),
        Some(Round::Down) if back > value => near.next_down(),
        Some(Round::Up) if back < value => near.next_up(),
        _ => near,
    }
}

fn to_f16(value: f64, round: Option<Round>) -> u64 {
    let near = bits_f16(odd_f32(value));
    if round == Some(Round::Zero) && f64::from(f16_of(near)).abs() > value.abs() {
        near - 1
    } else {
        near
    }
}

fn to_bf16(value: f64, round: Option<Round>) -> u64 {
    let near = bits_bf16(odd_f32(value));
    if round == Some(Round::Zero) && f64::from(bf16_of(near)).abs() > value.abs() {
        near - 1
    } else {
        near
    }
}

fn integral(value: f64, round: Option<Round>) -> f64 {
    match round {
        Some(Round::Zero) => value.trunc(),
        Some(Round::Down) => value.floor(),
        Some(Round::Up) => value.ceil(),
        Some(Round::Away) => value.round(),
        Some(Round::Nearest) | None => value.round_ties_even(),
    }
}

fn mask(ty: Ty) -> u64 {
    u64::MAX >> (64 - ty.bits())
}

fn extend(ty: Ty, bits: u64) -> i128 {
    let unused = 64 - u32::from(ty.bits());
    if ty.is_signed() {
        i128::from((bits << unused) as i64 >> unused)
    } else {
        i128::from(bits & mask(ty))
    }
}

fn range(ty: Ty) -> (i128, i128) {
    let bits = u32::from(ty.bits());
    if ty.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// Keeps sign-extension to 64 bits: the register that is written takes what it holds.
fn int_to_int(to: Ty, from: Ty, bits: u64, sat: bool) -> u64 {
    let whole = extend(from, bits);
    if sat {
        let (low, high) = range(to);
        return whole.clamp(low, high) as u64;
    }
    // A narrow destination is extended by its own sign when the register is wider.
    extend(to, whole as u64) as u64
}
