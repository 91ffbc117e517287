//! Conversions and functions that the machine has in one instruction.

use weft_codegen::emit::{Cg, Effect, Ty, Val};

/// Two f32 rounded to bf16 in one word, `low` in its low half.
pub fn pack_bf16<'c>(cg: &Cg<'c>, low: Val<'c>, high: Val<'c>) -> Val<'c> {
    cg.asm("cvt.rn.bf16x2.f32 $0, $1, $2;", &[Ty::I32], &[high, low], 0, Effect::Pure)[0]
}

/// `2^x`, to 2 units of the last place; results below the normal range are zero.
pub fn exp2<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    cg.asm("ex2.approx.ftz.f32 $0, $1;", &[Ty::F32], &[x], 0, Effect::Pure)[0]
}

/// `log2(x)`, to 1 unit of the last place.
pub fn log2<'c>(cg: &Cg<'c>, x: Val<'c>) -> Val<'c> {
    cg.asm("lg2.approx.ftz.f32 $0, $1;", &[Ty::F32], &[x], 0, Effect::Pure)[0]
}

/// The larger of two.
pub fn max<'c>(cg: &Cg<'c>, a: Val<'c>, b: Val<'c>) -> Val<'c> {
    cg.asm("max.f32 $0, $1, $2;", &[Ty::F32], &[a, b], 0, Effect::Pure)[0]
}
