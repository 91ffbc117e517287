//! Arithmetic, comparison, selection and conversion: lane by lane, scalars and vectors alike.

use inkwell::values::{BasicValueEnum, FloatValue, IntValue, VectorValue};
use inkwell::{FloatPredicate, IntPredicate};

use super::{Cg, Elem, Model, Ty, Val, built};

/// The right-hand side of a binary operation: a value, or a literal that takes the left side's
/// type.
pub trait Operand<'c> {
    fn val(self, cg: &Cg<'c>, like: Ty) -> Val<'c>;
}

impl<'c> Operand<'c> for Val<'c> {
    fn val(self, _: &Cg<'c>, _: Ty) -> Val<'c> {
        self
    }
}

impl<'c> Operand<'c> for i64 {
    fn val(self, cg: &Cg<'c>, like: Ty) -> Val<'c> {
        cg.int(like, self)
    }
}

impl<'c> Operand<'c> for i32 {
    fn val(self, cg: &Cg<'c>, like: Ty) -> Val<'c> {
        cg.int(like, self.into())
    }
}

impl<'c> Operand<'c> for f32 {
    fn val(self, cg: &Cg<'c>, like: Ty) -> Val<'c> {
        cg.float(like, self.into())
    }
}

impl<'c> Operand<'c> for f64 {
    fn val(self, cg: &Cg<'c>, like: Ty) -> Val<'c> {
        cg.float(like, self)
    }
}

/// Comparisons: signed for integers; for floats false when a side is NaN, except `Ne`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Cmp {
    fn int(self) -> IntPredicate {
        match self {
            Cmp::Eq => IntPredicate::EQ,
            Cmp::Ne => IntPredicate::NE,
            Cmp::Lt => IntPredicate::SLT,
            Cmp::Le => IntPredicate::SLE,
            Cmp::Gt => IntPredicate::SGT,
            Cmp::Ge => IntPredicate::SGE,
        }
    }

    fn float(self) -> FloatPredicate {
        match self {
            Cmp::Eq => FloatPredicate::OEQ,
            Cmp::Ne => FloatPredicate::UNE,
            Cmp::Lt => FloatPredicate::OLT,
            Cmp::Le => FloatPredicate::OLE,
            Cmp::Gt => FloatPredicate::OGT,
            Cmp::Ge => FloatPredicate::OGE,
        }
    }
}

/// Builds `$int` or `$float` on two values of one type.
macro_rules! binary {
    ($cg:expr, $name:literal, $a:expr, $b:expr, $int:ident, $float:ident) => {{
        let (a, b) = $cg.same($name, $a, $b);
        let raw = if a.ty.elem.is_float() {
            binary!(@ $cg, a, b, $float, FloatValue)
        } else {
            binary!(@ $cg, a, b, $int, IntValue)
        };
        Val { ty: a.ty, raw }
    }};
    ($cg:expr, $name:literal, $a:expr, $b:expr, $int:ident) => {{
        let (a, b) = $cg.same($name, $a, $b);
        assert!(a.ty.elem.is_int(), "{} of {}", $name, a.ty);
        Val { ty: a.ty, raw: binary!(@ $cg, a, b, $int, IntValue) }
    }};
    (@ $cg:expr, $a:ident, $b:ident, $build:ident, $kind:ident) => {
        match ($a.raw, $b.raw) {
            (BasicValueEnum::VectorValue(x), BasicValueEnum::VectorValue(y)) => {
                BasicValueEnum::from(built($cg.builder.$build(x, y, "")))
            }
            (BasicValueEnum::$kind(x), BasicValueEnum::$kind(y)) => {
                BasicValueEnum::from(built($cg.builder.$build(x, y, "")))
            }
            _ => panic!("{} and {} in one operation", $a.ty, $b.ty),
        }
    };
}

/// Builds a conversion to `$ty`.
macro_rules! convert {
    ($cg:expr, $v:expr, $ty:expr, $build:ident, $value:ident, $type:ident) => {{
        let raw = match ($v.raw, $cg.llvm_type($ty)) {
            (BasicValueEnum::VectorValue(x), inkwell::types::BasicTypeEnum::VectorType(t)) => {
                BasicValueEnum::from(built($cg.builder.$build(x, t, "")))
            }
            (BasicValueEnum::$value(x), inkwell::types::BasicTypeEnum::$type(t)) => {
                BasicValueEnum::from(built($cg.builder.$build(x, t, "")))
            }
            _ => panic!("conversion of {} to {}", $v.ty, $ty),
        };
        Val { ty: $ty, raw }
    }};
}

impl<'c> Cg<'c> {
    fn same(&self, what: &str, a: Val<'c>, b: impl Operand<'c>) -> (Val<'c>, Val<'c>) {
        let b = b.val(self, a.ty);
        assert_eq!(a.ty, b.ty, "`{what}` of {} and {}", a.ty, b.ty);
        let computes = a.ty.elem != Elem::BF16 || what == "select";
        assert!(computes, "`{what}` of bf16: cast to f32 first");
        (a, b)
    }

    pub fn add(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "add", a, b, build_int_add, build_float_add)
    }

    pub fn sub(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "sub", a, b, build_int_sub, build_float_sub)
    }

    pub fn mul(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "mul", a, b, build_int_mul, build_float_mul)
    }

    /// Quotient; of integers rounded toward zero.
    pub fn div(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "div", a, b, build_int_signed_div, build_float_div)
    }

    /// Remainder with the sign of `a`.
    pub fn rem(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "rem", a, b, build_int_signed_rem)
    }

    /// `(a + b - 1) / b` of non-negative integers.
    pub fn div_ceil(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let b = b.val(self, a.ty);
        let up = self.add(a, self.sub(b, 1));
        self.div(up, b)
    }

    /// `a / by` of an integer that is a multiple of the power of two `by`.
    pub fn div_exact(&self, a: Val<'c>, by: u32) -> Val<'c> {
        assert!(by.is_power_of_two(), "{by} is no power of two");
        if by == 1 { a } else { self.ashr(a, i64::from(by.trailing_zeros())) }
    }

    pub fn and(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "and", a, b, build_and)
    }

    pub fn or(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "or", a, b, build_or)
    }

    pub fn xor(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "xor", a, b, build_xor)
    }

    pub fn not(&self, a: Val<'c>) -> Val<'c> {
        self.xor(a, -1)
    }

    pub fn shl(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        binary!(self, "shl", a, b, build_left_shift)
    }

    /// Logical shift right.
    pub fn lshr(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let (a, b) = self.same("lshr", a, b);
        self.shift_right(a, b, false)
    }

    /// Arithmetic shift right.
    pub fn ashr(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let (a, b) = self.same("ashr", a, b);
        self.shift_right(a, b, true)
    }

    fn shift_right(&self, a: Val<'c>, b: Val<'c>, signed: bool) -> Val<'c> {
        let raw = match (a.raw, b.raw) {
            (BasicValueEnum::VectorValue(x), BasicValueEnum::VectorValue(y)) => {
                built(self.builder.build_right_shift(x, y, signed, "")).into()
            }
            (BasicValueEnum::IntValue(x), BasicValueEnum::IntValue(y)) => {
                built(self.builder.build_right_shift(x, y, signed, "")).into()
            }
            _ => panic!("shift of {}", a.ty),
        };
        Val { ty: a.ty, raw }
    }

    /// `a * b + c` with one rounding.
    pub fn fma(&self, a: Val<'c>, b: Val<'c>, c: impl Operand<'c>) -> Val<'c> {
        let c = c.val(self, a.ty);
        assert!(a.ty == b.ty && b.ty == c.ty, "fma of {}, {}, {}", a.ty, b.ty, c.ty);
        self.intrinsic("llvm.fma", &[a.ty], &[a, b, c], a.ty)
    }

    /// `acc + low(a) · low(b) + high(a) · high(b)`, where the i32 lanes of `a` and `b` are pairs of
    /// bf16: the machine's own operation, for targets with `bf16_dot`. Denormals count as zero.
    pub fn dot_bf16(&self, a: Val<'c>, b: Val<'c>, acc: Val<'c>) -> Val<'c> {
        assert!(self.target.bf16_dot, "{} has no dot product of bf16", self.target.name);
        let native = self.ctx.bf16_type().vec_type(2 * a.ty.lanes);
        let pairs = |v: Val<'c>| {
            let raw = built(self.builder.build_bit_cast(v.raw, native, ""));
            Val { ty: Elem::BF16.x(2 * v.ty.lanes), raw }
        };
        let name = format!("llvm.x86.avx512bf16.dpbf16ps.{}", 32 * a.ty.lanes);
        self.intrinsic(&name, &[], &[acc, pairs(a), pairs(b)], acc.ty)
    }

    pub fn neg(&self, a: Val<'c>) -> Val<'c> {
        if a.ty.elem.is_int() {
            return self.sub(self.zero(a.ty), a);
        }
        let raw = match a.raw {
            BasicValueEnum::VectorValue(x) => built(self.builder.build_float_neg(x, "")).into(),
            BasicValueEnum::FloatValue(x) => built(self.builder.build_float_neg(x, "")).into(),
            _ => panic!("negation of {}", a.ty),
        };
        Val { ty: a.ty, raw }
    }

    /// Magnitude of a float.
    pub fn abs(&self, a: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.fabs", &[a.ty], &[a], a.ty)
    }

    /// Correctly rounded square root; NaN below zero.
    pub fn sqrt(&self, a: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.sqrt", &[a.ty], &[a], a.ty)
    }

    /// Nearest integer as a float, ties to even.
    pub fn round_even(&self, a: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.roundeven", &[a.ty], &[a], a.ty)
    }

    /// Magnitude of `a` with the sign of `b`.
    pub fn copysign(&self, a: Val<'c>, b: Val<'c>) -> Val<'c> {
        self.intrinsic("llvm.copysign", &[a.ty], &[a, b], a.ty)
    }

    /// The smaller; `b` when a side is NaN.
    pub fn min(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let b = b.val(self, a.ty);
        self.select(self.cmp(Cmp::Lt, a, b), a, b)
    }

    /// The larger; `b` when a side is NaN.
    pub fn max(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let b = b.val(self, a.ty);
        self.select(self.cmp(Cmp::Gt, a, b), a, b)
    }

    /// The larger; NaN when a side is NaN.
    pub fn max_nan(&self, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let b = b.val(self, a.ty);
        let larger = self.select(self.cmp(Cmp::Gt, a, b), a, b);
        self.select(self.cmp(Cmp::Ne, a, a), a, larger)
    }

    pub fn cmp(&self, predicate: Cmp, a: Val<'c>, b: impl Operand<'c>) -> Val<'c> {
        let (a, b) = self.same("cmp", a, b);
        let (int, float) = (predicate.int(), predicate.float());
        let is_float = a.ty.elem.is_float();
        let raw = match (a.raw, b.raw) {
            (BasicValueEnum::IntValue(x), BasicValueEnum::IntValue(y)) => {
                built(self.builder.build_int_compare::<IntValue>(int, x, y, "")).into()
            }
            (BasicValueEnum::FloatValue(x), BasicValueEnum::FloatValue(y)) => {
                built(self.builder.build_float_compare::<FloatValue>(float, x, y, "")).into()
            }
            (BasicValueEnum::VectorValue(x), BasicValueEnum::VectorValue(y)) if is_float => {
                built(self.builder.build_float_compare::<VectorValue>(float, x, y, "")).into()
            }
            (BasicValueEnum::VectorValue(x), BasicValueEnum::VectorValue(y)) => {
                built(self.builder.build_int_compare::<VectorValue>(int, x, y, "")).into()
            }
            _ => panic!("comparison of {}", a.ty),
        };
        Val { ty: a.ty.with(Elem::I1), raw }
    }

    /// `then` where `cond`, else `otherwise`. A scalar condition chooses a whole vector.
    pub fn select(&self, cond: Val<'c>, then: Val<'c>, otherwise: impl Operand<'c>) -> Val<'c> {
        let (then, otherwise) = self.same("select", then, otherwise);
        assert_eq!(cond.ty.elem, Elem::I1, "select on {}", cond.ty);
        let raw = match cond.raw {
            BasicValueEnum::IntValue(c) => {
                built(self.builder.build_select(c, then.raw, otherwise.raw, ""))
            }
            BasicValueEnum::VectorValue(c) => {
                assert_eq!(cond.ty.lanes, then.ty.lanes, "select {} by {}", then.ty, cond.ty);
                built(self.builder.build_select(c, then.raw, otherwise.raw, ""))
            }
            _ => panic!("select on {}", cond.ty),
        };
        Val { ty: then.ty, raw }
    }

    /// Lane by lane conversion of value: integers sign-extend (booleans zero-extend) or truncate,
    /// floats truncate toward zero to integers, bf16 rounds to nearest even.
    pub fn cast(&self, v: Val<'c>, to: Elem) -> Val<'c> {
        let from = v.ty.elem;
        let ty = v.ty.with(to);
        match (from, to) {
            _ if from == to => v,
            (Elem::BF16, Elem::F32) => self.bf16_to_f32(v),
            (Elem::F32, Elem::BF16) => self.f32_to_bf16(v),
            (Elem::BF16, _) => self.cast(self.bf16_to_f32(v), to),
            (_, Elem::BF16) => self.f32_to_bf16(self.cast(v, Elem::F32)),
            (Elem::F32, Elem::F64) => {
                convert!(self, v, ty, build_float_ext, FloatValue, FloatType)
            }
            (Elem::F64, Elem::F32) => {
                convert!(self, v, ty, build_float_trunc, FloatValue, FloatType)
            }
            (Elem::I1, _) if to.is_float() => self.cast(self.cast(v, Elem::I32), to),
            _ if from.is_int() && to.is_float() => {
                convert!(self, v, ty, build_signed_int_to_float, IntValue, FloatType)
            }
            _ if from.is_float() && to.is_int() => {
                convert!(self, v, ty, build_float_to_signed_int, FloatValue, IntType)
            }
            _ if from.is_int() && to.is_int() && to.bytes() > from.bytes() || from == Elem::I1 => {
                if from == Elem::I1 {
                    convert!(self, v, ty, build_int_z_extend, IntValue, IntType)
                } else {
                    convert!(self, v, ty, build_int_s_extend, IntValue, IntType)
                }
            }
            _ if from.is_int() && to.is_int() => {
                convert!(self, v, ty, build_int_truncate, IntValue, IntType)
            }
            _ => panic!("no conversion of {} to {ty}", v.ty),
        }
    }

    /// Integers widened with zeros.
    pub fn zext(&self, v: Val<'c>, to: Elem) -> Val<'c> {
        convert!(self, v, v.ty.with(to), build_int_z_extend, IntValue, IntType)
    }

    /// The same bits seen as another type of the same size.
    pub fn bitcast(&self, v: Val<'c>, to: Ty) -> Val<'c> {
        assert_eq!(v.ty.bytes(), to.bytes(), "bits of {} as {to}", v.ty);
        Val { ty: to, raw: built(self.builder.build_bit_cast(v.raw, self.llvm_type(to), "")) }
    }

    /// Exact.
    fn bf16_to_f32(&self, v: Val<'c>) -> Val<'c> {
        let bits = self.zext(self.bitcast(v, v.ty.with(Elem::I16)), Elem::I32);
        self.bitcast(self.shl(bits, 16), v.ty.with(Elem::F32))
    }

    /// Round to nearest, ties to even; NaN stays NaN (made quiet).
    fn f32_to_bf16(&self, v: Val<'c>) -> Val<'c> {
        let to = v.ty.with(Elem::BF16);
        // Of a single one the assembler is known to read a product's sum before it is there.
        if self.target.model == Model::Simt && v.ty.lanes > 1 {
            return self.bitcast(self.narrowed_by_pairs(v, "bf16x2", Elem::I16), to);
        }
        if self.target.bf16_convert && v.ty.lanes >= 4 {
            let native = self.ctx.bf16_type().vec_type(v.ty.lanes);
            let BasicValueEnum::VectorValue(x) = v.raw else { panic!("{} is no vector", v.ty) };
            let rounded = built(self.builder.build_float_trunc(x, native, ""));
            let bits = built(self.builder.build_bit_cast(rounded, self.llvm_type(to), ""));
            return Val { ty: to, raw: bits };
        }
        let bits = self.bitcast(v, v.ty.with(Elem::I32));
        // Adding 0x7fff plus the bit that becomes the last one carries exactly when the tail is
        // above one half, or is one half and that bit is odd.
        let odd = self.and(self.lshr(bits, 16), 1);
        let rounded = self.lshr(self.add(self.add(bits, 0x7fff), odd), 16);
        let quiet = self.or(self.lshr(bits, 16), 0x40);
        let is_nan = self.cmp(Cmp::Ne, v, v);
        let code = self.cast(self.select(is_nan, quiet, rounded), Elem::I16);
        self.bitcast(code, to)
    }
}
