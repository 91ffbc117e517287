//! Compute at compile time what is one number everywhere.
//!
//! ```text
//! %1 = constant {value = 2, type = f32[]} : f32[]
//! %2 = exp %1 : f32[]                                   =>   %3 = constant {value = 7.389.., type = f32[8]} : f32[8]
//! %3 = broadcast %2 {shape = [8], dims = []} : f32[8]
//! ```
//!
//! Why: cotangents start as ones and zeros, and settings of a model end as numbers in its formulas.
//! A number is what the reference interpreter computes for it, unrounded, so that a constant is
//! rounded once. What is not one number everywhere, such as an `iota`, stays.
//! Cost: one walk, one interpreted scalar for each op that folds.

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{DType, Type};

use crate::rewrite::{constant_value, each_func, rebuild};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "fold", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, _: &PassCx) -> Result<Stats, PassError> {
    let mut folded = 0;
    each_func(module, |_, func| {
        rebuild(func, |b, op| {
            let Some((value, ty)) = number(b, op) else { return Ok(None) };
            folded += 1;
            Ok(Some(vec![b.constant(value, ty)?]))
        })
    })?;
    Ok(Stats::one("folded", folded))
}

/// The number that stands everywhere in the result of `op`, and the result's type.
fn number(b: &Builder, op: &OpData) -> Option<(f64, Type)> {
    if op.op == Op::Constant {
        return None;
    }
    let types = weft_ir::builder::infer(None, &b.func, op.op, &op.operands, &op.attrs).ok()?;
    let [ty] = &types[..] else { return None };
    if op.op == Op::Extent {
        return Some((op.attrs.get_dim("of")?.as_fixed()? as f64, ty.clone()));
    }
    if op.operands.is_empty() {
        return None;
    }
    let xs: Vec<f64> = op.operands.iter().map(|x| constant(b, *x)).collect::<Option<_>>()?;
    let same = |fill: f64| xs.iter().all(|x| x.to_bits() == fill.to_bits());
    let value = match op.op {
        Op::Pad => same(0.0).then_some(0.0),
        Op::Shift => same(op.attrs.get_float("fill")?).then_some(xs[0]),
        Op::ReduceSum => sum(b, op, xs[0]),
        moved if moved.has(Trait::Movement) => same(xs[0]).then_some(xs[0]),
        scalar if scalar.has(Trait::Pointwise) => interpret(b, op, &xs),
        _ => None,
    }?;
    Some((value, ty.clone()))
}

fn constant(b: &Builder, v: ValueId) -> Option<f64> {
    constant_value(&b.func, b.func.op(b.func.def_op(v)?))
}

/// `n x`, where the summed dims have fixed sizes.
fn sum(b: &Builder, op: &OpData, x: f64) -> Option<f64> {
    let dims = b.dims(op.operands[0]);
    let gone = op.attrs.get_ints("dims")?.iter().map(|d| dims[*d as usize].as_fixed());
    Some(gone.collect::<Option<Vec<u64>>>()?.iter().product::<u64>() as f64 * x)
}

/// A pointwise op on scalars. Only a conversion rounds, since that is what it is for.
fn interpret(b: &Builder, op: &OpData, xs: &[f64]) -> Option<f64> {
    let precision = if op.op == Op::Convert { Precision::Stated } else { Precision::F64 };
    let mut one = Builder::new("one");
    let mut args = vec![];
    for (x, value) in op.operands.iter().zip(xs) {
        let dtype = b.ty(*x).dtype;
        one.param("x", Type::scalar(dtype));
        args.push(scalar(dtype, *value));
    }
    let params = one.func.params.clone();
    let attrs =
        op.attrs.iter().fold(Attrs::new(), |all, (n, v): (_, &Attr)| all.with(n, v.clone()));
    let y = one.emit(op.op, &params, attrs).ok()?;
    let mut module = Module::default();
    let func = module.add_func(one.finish(vec![y]));
    let results = Interp::new(&module, precision).run(func, args).ok()?;
    results.first()?.numbers().first().copied()
}

fn scalar(dtype: DType, x: f64) -> Tensor {
    match dtype {
        DType::Bool => Tensor::bool(&[], vec![x != 0.0]),
        _ => Tensor::full(dtype, &[], x),
    }
}
