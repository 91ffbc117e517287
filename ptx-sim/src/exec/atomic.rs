//! What `atom` and `red` do to a place in memory.

use crate::program::{AddressSpace, Fn2, Order, Scope};
use crate::scalar::float::{self, Flags};
use crate::scalar::{Ty, int, narrow};

pub struct Atomic {
    pub space: AddressSpace,
    /// Of one element.
    pub bytes: u8,
    pub n: u8,
    pub reduction: Reduction,
    pub order: Order,
    pub scope: Scope,
    pub returns: bool,
}

#[derive(Clone, Copy)]
pub enum Reduction {
    /// From the old value and the operand.
    Two(Fn2),
    /// Old, compared, new.
    Cas,
}

impl Reduction {
    pub fn find(name: &str, ty: Ty) -> Option<Reduction> {
        let narrow_pair = matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2);
        let ftz = Flags::default();
        let is_word = |ty: Ty| !ty.is_float() && ty.bits() >= 32;
        Some(Reduction::Two(match (name, ty) {
            ("cas", Ty::B16 | Ty::B32 | Ty::B64) => return Some(Reduction::Cas),
            ("exch", Ty::B32 | Ty::B64) => |_, b| b,
            ("and", _) if is_word(ty) => int::and(),
            ("or", _) if is_word(ty) => int::or(),
            ("xor", _) if is_word(ty) => int::xor(),
            ("add", _) if narrow_pair => narrow::add(ty)?,
            ("min", _) if narrow_pair => narrow::min(ty, false)?,
            ("max", _) if narrow_pair => narrow::max(ty, false)?,
            ("add", Ty::F32 | Ty::F64) => float::add(ty, ftz)?,
            ("add", Ty::U32 | Ty::S32 | Ty::U64) => int::add(ty)?,
            ("min", Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) => int::min(ty)?,
            ("max", Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64) => int::max(ty)?,
            ("inc", Ty::U32) => |a, b| if a as u32 >= b as u32 { 0 } else { a + 1 },
            ("dec", Ty::U32) => |a, b| {
                let (a, b) = (a as u32, b as u32);
                u64::from(if a == 0 || a > b { b } else { a - 1 })
            },
            _ => return None,
        }))
    }

    pub fn apply(self, old: u64, operand: u64, compared: u64) -> u64 {
        match self {
            Reduction::Two(f) => f(old, operand),
            Reduction::Cas if old == compared => operand,
            Reduction::Cas => old,
        }
    }
}
