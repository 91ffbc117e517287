//! Arithmetic, comparison, logic, moves and conversions.

use super::form::Form;
use crate::error::Result;
use crate::parse::ast::Operand;
use crate::program::{Fn2, Op};
use crate::scalar::convert::{Convert, Round};
use crate::scalar::float::{self, Approx, Flags};
use crate::scalar::{Compare, Ty, int, narrow};

fn is_narrow(ty: Ty) -> bool {
    matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2)
}

/// `.rn`, the only rounding of arithmetic that is known, and the flags of f32.
fn flags(form: &mut Form) -> Flags {
    form.flag("rn");
    Flags { ftz: form.flag("ftz"), sat: form.flag("sat") }
}

type Typed2 = fn(Ty) -> Option<Fn2>;
type Float2 = fn(Ty, Flags) -> Option<Fn2>;

fn two(form: &mut Form, on_int: Typed2, on_float: Float2, on_narrow: Typed2) -> Result<Op> {
    let ty = form.ty()?;
    let function = if is_narrow(ty) {
        form.flag("rn");
        on_narrow(ty)
    } else if ty.is_float() {
        let flags = flags(form);
        on_float(ty, flags)
    } else {
        on_int(ty)
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Map2(function), 2)
}

pub fn add(form: &mut Form) -> Result<Op> {
    let saturates = form.flag("sat");
    if saturates {
        let ty = form.ty()?;
        let function = if ty.is_float() {
            let flags = Flags { sat: true, ..flags(form) };
            float::add(ty, flags)
        } else {
            int::add_saturating(ty)
        };
        let function = form.known(function, ty)?;
        return form.shape(Op::Map2(function), 2);
    }
    two(form, int::add, float::add, narrow::add)
}

pub fn sub(form: &mut Form) -> Result<Op> {
    two(form, int::sub, float::sub, narrow::sub)
}

pub fn mul(form: &mut Form) -> Result<Op> {
    if form.flag("wide") {
        return two(form, int::mul_wide, |_, _| None, |_| None);
    }
    if form.flag("hi") {
        return two(form, int::mul_high, |_, _| None, |_| None);
    }
    if form.flag("lo") {
        return two(form, int::mul_low, |_, _| None, |_| None);
    }
    two(form, |_| None, float::mul, narrow::mul)
}

pub fn mad(form: &mut Form) -> Result<Op> {
    let part = form.one_of(&[("lo", 0), ("hi", 1), ("wide", 2)]);
    let ty = form.ty()?;
    let function = match part {
        Some(0) => int::mad_low(ty),
        Some(1) => int::mad_high(ty),
        Some(_) => int::mad_wide(ty),
        None => {
            let flags = flags(form);
            float::fma(ty, flags)
        }
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Map3(function), 3)
}

pub fn fma(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = if is_narrow(ty) {
        form.flag("rn");
        let relu = form.flag("relu");
        narrow::fma(ty, relu)
    } else {
        let flags = flags(form);
        float::fma(ty, flags)
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Map3(function), 3)
}

pub fn div(form: &mut Form) -> Result<Op> {
    if form.one_of(&[("approx", ()), ("full", ())]).is_some() {
        let flags = flags(form);
        let ty = form.ty()?;
        let function = form.known((ty == Ty::F32).then(|| float::div_approx(flags)), ty)?;
        return form.shape(Op::Map2(function), 2);
    }
    two(form, int::div, float::div, |_| None)
}

pub fn rem(form: &mut Form) -> Result<Op> {
    two(form, int::rem, |_, _| None, |_| None)
}

fn extreme(
    form: &mut Form,
    on_int: fn(Ty, bool) -> Option<Fn2>,
    on_float: fn(Ty, Flags, bool) -> Option<Fn2>,
    on_narrow: fn(Ty, bool) -> Option<Fn2>,
) -> Result<Op> {
    let ty = form.ty()?;
    let nan = form.flag("NaN");
    let function = if is_narrow(ty) {
        on_narrow(ty, nan)
    } else if ty.is_float() {
        let flags = Flags { ftz: form.flag("ftz"), sat: false };
        on_float(ty, flags, nan)
    } else {
        on_int(ty, form.flag("relu"))
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Map2(function), 2)
}

pub fn min(form: &mut Form) -> Result<Op> {
    extreme(form, int::min_relu, float::min, narrow::min)
}

pub fn max(form: &mut Form) -> Result<Op> {
    extreme(form, int::max_relu, float::max, narrow::max)
}

pub fn abs(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let ftz = form.flag("ftz");
    let flags = Flags { ftz, sat: false };
    let function = int::abs(ty).or(float::abs(ty, flags)).or(narrow::abs(ty));
    let function = form.known(function, ty)?;
    form.shape(Op::Map1(function), 1)
}

pub fn neg(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let ftz = form.flag("ftz");
    let flags = Flags { ftz, sat: false };
    let on_int = if ty.is_float() { None } else { int::neg(ty) };
    let function = on_int.or(float::neg(ty, flags)).or(narrow::neg(ty));
    let function = form.known(function, ty)?;
    form.shape(Op::Map1(function), 1)
}

/// Exact with `.rn`, approximate with `.approx`.
fn root(form: &mut Form, which: Approx) -> Result<Op> {
    let approximate = form.flag("approx");
    let flags = flags(form);
    let ty = form.ty()?;
    let function = match (approximate, which, ty) {
        (true, _, Ty::F32) => Some(float::approx(which, flags)),
        (true, _, Ty::F64) => float::approx64(which),
        (false, Approx::Sqrt, _) => float::sqrt(ty, flags),
        (false, Approx::Rcp, _) => float::rcp(ty, flags),
        _ => None,
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Map1(function), 1)
}

pub fn sqrt(form: &mut Form) -> Result<Op> {
    root(form, Approx::Sqrt)
}

pub fn rcp(form: &mut Form) -> Result<Op> {
    root(form, Approx::Rcp)
}

pub fn rsqrt(form: &mut Form) -> Result<Op> {
    root(form, Approx::Rsqrt)
}

fn approx(form: &mut Form, which: Approx) -> Result<Op> {
    form.need("`.approx`", &[("approx", ())])?;
    let flags = Flags { ftz: form.flag("ftz"), sat: false };
    let ty = form.ty()?;
    let function = match (ty, which) {
        (Ty::F32, _) => Some(float::approx(which, flags)),
        (_, Approx::Ex2) => narrow::ex2(ty),
        (_, Approx::Tanh) => narrow::tanh(ty),
        _ => None,
    };
    let function = form.known(function, ty)?;
    form.shape(Op::Map1(function), 1)
}

pub fn ex2(form: &mut Form) -> Result<Op> {
    approx(form, Approx::Ex2)
}

pub fn lg2(form: &mut Form) -> Result<Op> {
    approx(form, Approx::Lg2)
}

pub fn sin(form: &mut Form) -> Result<Op> {
    approx(form, Approx::Sin)
}

pub fn cos(form: &mut Form) -> Result<Op> {
    approx(form, Approx::Cos)
}

pub fn tanh(form: &mut Form) -> Result<Op> {
    approx(form, Approx::Tanh)
}

pub fn copysign(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = form.known(float::copysign(ty), ty)?;
    form.shape(Op::Map2(function), 2)
}

pub fn testp(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = form.take(|class| float::testp(ty, class));
    let function = form.known(function, ty)?;
    form.shape(Op::Map1(function), 1)
}

fn logic(form: &mut Form, function: Fn2) -> Result<Op> {
    form.ty()?;
    form.shape(Op::Map2(function), 2)
}

pub fn and(form: &mut Form) -> Result<Op> {
    logic(form, int::and())
}

pub fn or(form: &mut Form) -> Result<Op> {
    logic(form, int::or())
}

pub fn xor(form: &mut Form) -> Result<Op> {
    logic(form, int::xor())
}

macro_rules! one_int {
    ($($name:ident)*) => {
        $(pub fn $name(form: &mut Form) -> Result<Op> {
            let ty = form.ty()?;
            let function = form.known(int::$name(ty), ty)?;
            form.shape(Op::Map1(function), 1)
        })*
    };
}

one_int!(not cnot popc clz brev);

pub fn bfind(form: &mut Form) -> Result<Op> {
    let shift_amount = form.flag("shiftamt");
    let ty = form.ty()?;
    let function = form.known(int::bfind(ty, shift_amount), ty)?;
    form.shape(Op::Map1(function), 1)
}

pub fn shl(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = form.known(int::shl(ty), ty)?;
    form.shape(Op::Map2(function), 2)
}

pub fn shr(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = form.known(int::shr(ty), ty)?;
    form.shape(Op::Map2(function), 2)
}

pub fn shf(form: &mut Form) -> Result<Op> {
    let left = form.need("`.l` or `.r`", &[("l", true), ("r", false)])?;
    let wrap = form.need("`.wrap` or `.clamp`", &[("wrap", true), ("clamp", false)])?;
    form.need("`.b32`", &[("b32", ())])?;
    form.shape(Op::Map3(int::shf(left, wrap)), 3)
}

pub fn bfe(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = form.known(int::bfe(ty), ty)?;
    form.shape(Op::Map3(function), 3)
}

pub fn bfi(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let function = form.known(int::bfi(ty), ty)?;
    form.shape(Op::Map4(function), 4)
}

pub fn prmt(form: &mut Form) -> Result<Op> {
    form.need("`.b32`", &[("b32", ())])?;
    form.shape(Op::Map3(int::prmt()), 3)
}

pub fn lop3(form: &mut Form) -> Result<Op> {
    form.need("`.b32`", &[("b32", ())])?;
    form.shape(Op::Map4(int::lop3()), 4)
}

const COMPARE: &[(&str, Compare)] = &[
    ("eq", Compare::Eq),
    ("ne", Compare::Ne),
    ("lt", Compare::Lt),
    ("le", Compare::Le),
    ("gt", Compare::Gt),
    ("ge", Compare::Ge),
    ("lo", Compare::Lt),
    ("ls", Compare::Le),
    ("hi", Compare::Gt),
    ("hs", Compare::Ge),
    ("equ", Compare::Equ),
    ("neu", Compare::Neu),
    ("ltu", Compare::Ltu),
    ("leu", Compare::Leu),
    ("gtu", Compare::Gtu),
    ("geu", Compare::Geu),
    ("num", Compare::Num),
    ("nan", Compare::Nan),
];

pub fn setp(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let how = form.need("the comparison", COMPARE)?;
    let ftz = form.flag("ftz");
    let function =
        int::compare(ty, how).or(float::compare(ty, how, ftz)).or(narrow::compare(ty, how));
    let function = form.known(function, ty)?;
    let join: Option<Fn2> =
        form.one_of(&[("and", int::and()), ("or", int::or()), ("xor", int::xor())]);
    if let Some(join) = join {
        return form.shape(Op::SetpJoin(function, join), 3);
    }
    if let Some(Operand::Pair(first, second)) = form.peek() {
        form.operand()?;
        let pair = [form.dst_of(first)?, form.dst_of(second)?];
        form.dst.extend(pair);
        form.add_srcs(2)?;
        return Ok(Op::SetpPair(function));
    }
    form.shape(Op::Map2(function), 2)
}

pub fn selp(form: &mut Form) -> Result<Op> {
    form.ty()?;
    form.shape(Op::Map3(|a, b, p| if p & 1 == 1 { a } else { b }), 3)
}

pub fn mov(form: &mut Form) -> Result<Op> {
    let ty = form.ty()?;
    let first = form.operand()?;
    let second = form.operand()?;
    let parts = |v: &[Operand]| matches!(v.len(), 2 | 4) && usize::from(ty.bits()) <= 64;
    let vector = [first, second].into_iter().find_map(|o| match o {
        Operand::Vector(v) => Some(parts(v)),
        _ => None,
    });
    if vector == Some(false) {
        return Err(form.unsupported("this number of parts"));
    }
    match (first, second) {
        (Operand::Vector(parts), source) => {
            for part in parts {
                let dst = form.dst_of(part)?;
                form.dst.push(dst);
            }
            let src = form.src_of(source)?;
            form.src.push(src);
            Ok(Op::Unpack(ty.bits() / parts.len() as u8))
        }
        (target, Operand::Vector(parts)) => {
            let dst = form.dst_of(target)?;
            form.dst.push(dst);
            for part in parts {
                let src = form.src_of(part)?;
                form.src.push(src);
            }
            Ok(Op::Pack(ty.bits() / parts.len() as u8))
        }
        (target, source) => {
            if ty.bits() == 128 {
                return Err(form.unsupported("a register of 128 bits"));
            }
            let dst = form.dst_of(target)?;
            let src = form.src_of(source)?;
            form.dst.push(dst);
            form.src.push(src);
            Ok(Op::Map1(|a| a))
        }
    }
}

pub fn cvt(form: &mut Form) -> Result<Op> {
    let from = form.ty()?;
    let to = form.ty()?;
    let integral = form.one_of(&[
        ("rni", Round::Nearest),
        ("rzi", Round::Zero),
        ("rmi", Round::Down),
        ("rpi", Round::Up),
    ]);
    let round = form.one_of(&[
        ("rn", Round::Nearest),
        ("rz", Round::Zero),
        ("rm", Round::Down),
        ("rp", Round::Up),
        ("rna", Round::Away),
    ]);
    let ftz = form.flag("ftz");
    let sat = form.one_of(&[("sat", ()), ("satfinite", ())]).is_some();
    let relu = form.flag("relu");
    let to_integral = integral.is_some();
    let convert = Convert { to, from, round: integral.or(round), to_integral, ftz, sat, relu };
    if !convert.is_known() {
        return Err(form.unsupported(&format!("the conversion from {from:?} to {to:?}")));
    }
    let n = if convert.is_pair_of_f32() { 2 } else { 1 };
    form.shape(Op::Convert(convert), n)
}
