//! Rules of arithmetic. Floats only where a rule is exact for every float, NaN and infinities too.

use weft_ir::attr::Attrs;
use weft_ir::module::ValueId;
use weft_ir::op::Op;
use weft_ir::ty::DType;

use super::{Cx, Node, Rule, when};

#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    // x + 0 = x (and -0 + 0, which is 0, becomes -0)
    (Op::Add, "add.zero", |c, n| when(c.is(n.x[1], 0.0), n.x[0]).or(when(c.is(n.x[0], 0.0), n.x[1]))),
    // x + -y = x - y
    (Op::Add, "add.neg",  |c, n| { let y = c.def(n.x[1], Op::Neg)?.operands[0]; c.binary(Op::Sub, n.x[0], y) }),
    // -x + y = y - x
    (Op::Add, "neg.add",  |c, n| { let x = c.def(n.x[0], Op::Neg)?.operands[0]; c.binary(Op::Sub, n.x[1], x) }),
    // x - 0 = x
    (Op::Sub, "sub.zero", |c, n| when(c.is(n.x[1], 0.0), n.x[0])),
    // x - -y = x + y
    (Op::Sub, "sub.neg",  |c, n| { let y = c.def(n.x[1], Op::Neg)?.operands[0]; c.binary(Op::Add, n.x[0], y) }),
    // 1 x = x
    (Op::Mul, "mul.one",  |c, n| when(c.is(n.x[1], 1.0), n.x[0]).or(when(c.is(n.x[0], 1.0), n.x[1]))),
    // -1 x = -x
    (Op::Mul, "mul.minus",|c, n| { let x = when(c.is(n.x[1], -1.0), n.x[0]).or(when(c.is(n.x[0], -1.0), n.x[1]))?; c.unary(Op::Neg, x) }),
    // -x -y = x y
    (Op::Mul, "mul.negs", |c, n| { let (x, y) = (c.def(n.x[0], Op::Neg)?.operands[0], c.def(n.x[1], Op::Neg)?.operands[0]); c.binary(Op::Mul, x, y) }),
    // x / 1 = x
    (Op::Div, "div.one",  |c, n| when(c.is(n.x[1], 1.0), n.x[0])),
    // x / 2ⁿ = 2⁻ⁿ x, exact for powers of two alone
    (Op::Div, "div.power",|c, n| { let by = power_of_two(c, n.x[1])?; c.binary(Op::Mul, n.x[0], by) }),
    // --x = x
    (Op::Neg, "neg.neg",  |c, n| Some(c.def(n.x[0], Op::Neg)?.operands[0])),
    // -(x - y) = y - x (and -(x - x), which is -0, becomes 0)
    (Op::Neg, "neg.sub",  |c, n| { let s = c.def(n.x[0], Op::Sub)?; c.binary(Op::Sub, s.operands[1], s.operands[0]) }),
    // |-x| = |x|
    (Op::Abs, "abs.neg",  |c, n| { let x = c.def(n.x[0], Op::Neg)?.operands[0]; c.unary(Op::Abs, x) }),
    // not not x = x
    (Op::Not, "not.not",  |c, n| Some(c.def(n.x[0], Op::Not)?.operands[0])),
    // min and max of one value
    (Op::Max, "max.same", |_, n| when(n.x[0] == n.x[1], n.x[0])),
    (Op::Min, "min.same", |_, n| when(n.x[0] == n.x[1], n.x[0])),
    (Op::And, "and.same", |_, n| when(n.x[0] == n.x[1], n.x[0])),
    (Op::Or,  "or.same",  |_, n| when(n.x[0] == n.x[1], n.x[0])),
    // a where c, else a
    (Op::Select, "select.same",  |_, n| when(n.x[1] == n.x[2], n.x[1])),
    (Op::Select, "select.const", |c, n| Some(if c.number(n.x[0])? != 0.0 { n.x[1] } else { n.x[2] })),
    // a where not c, else b = b where c, else a
    (Op::Select, "select.not",   |c, n| { let p = c.def(n.x[0], Op::Not)?.operands[0]; c.make(Op::Select, &[p, n.x[2], n.x[1]], Attrs::new()) }),
    // to the type it has
    (Op::Convert, "convert.same",  |c, n| when(n.attrs.get_dtype("dtype") == Some(c.ty(n.x[0]).dtype), n.x[0])),
    // bf16 -> f32 -> bf16: every bf16 is an f32
    (Op::Convert, "convert.back",  |c, n| { let x = c.def(n.x[0], Op::Convert)?.operands[0]; when(is_back(c, n, x), x) }),
    // stop_gradient twice
    (Op::StopGradient, "stop.stop", |c, n| c.def(n.x[0], Op::StopGradient).map(|_| n.x[0])),
];

/// `v⁻¹` as a constant, where `v` is a power of two and so is its inverse a normal f32.
fn power_of_two(c: &mut Cx, v: ValueId) -> Option<ValueId> {
    let n = c.number(v)?;
    let float = c.ty(v).dtype.is_float();
    let mantissa_zero = n.to_bits() & ((1 << 52) - 1) == 0;
    let exact =
        n.is_normal() && mantissa_zero && n.abs() <= 2f64.powi(120) && n.abs() >= 2f64.powi(-120);
    if !float || !exact {
        return None;
    }
    c.b.constant_like(1.0 / n, v).ok()
}

fn is_back(c: &Cx, n: &Node, x: ValueId) -> bool {
    let (from, via) = (c.ty(x).dtype, c.ty(n.x[0]).dtype);
    let wider = via == DType::F32 && from.is_float() && from.bits() < 32;
    wider && n.attrs.get_dtype("dtype") == Some(from) && c.ty(x).quant.is_none()
}
