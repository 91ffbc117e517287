//! Compute products on codes with group scales, as the precision block's recipes say.
//!
//! ```text
//! %1 = convert %w {dtype = bf16}
//! %y = matmul %x, %1 {site = q_proj}
//! =>
//! %1 = quantize %w {dtype = e4m3, group = [128, 128], scale = f32}
//! %2 = quantize %x {dtype = e4m3, group = [1, 128], scale = f32}
//! %y = matmul %2, %1 {dtype = bf16, promote = 128, site = q_proj}
//! ```
//!
//! Why: 8-bit products run at twice the rate of bf16, and their operands take half the bytes. Each
//! product names its `site` and `role`; a recipe says the format of each operand, what is summed
//! how, and nothing is chosen here. A weight is quantized from its f32 master. Equal quantizations
//! of one value are one op after `cse`. Rows that `dispatch` makes for a product are rounded before
//! it to the format they travel in, whether or not they leave the device: a run's numbers do not
//! depend on how many ranks share it. Where a product takes rows as codes, tokens are encoded, once
//! each, and `dispatch` moves codes, unless the recipe has rows travel plain. Cost: an op for each
//! operand of a product.
//! Requires: derivatives, so that all three products of a linear map are there.

use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::module::{Def, Module, OpData, ValueId};
use weft_ir::op::{Op, Trait};
use weft_ir::ty::{DType, Quant, Type};

use crate::policy::{Format, Product, Recipe};
use crate::rewrite::{rebuild, whole};
use crate::{Pass, PassCx, PassError, Stats};

pub const PASS: Pass = Pass { name: "quantize", requires: &[], establishes: &[], run };

pub fn run(module: &mut Module, cx: &PassCx) -> Result<Stats, PassError> {
    if cx.policy.is_empty() {
        return Ok(Stats::default());
    }
    let mut products = 0;
    for i in 0..module.funcs.len() {
        module.funcs[i] = rebuild(&module.funcs[i], |b, op| {
            let Some(recipe) = recipe(cx, op)? else { return Ok(None) };
            let mut op = op.clone();
            if let Some(format) = &recipe.dispatched {
                dispatched(b, &mut op, format)?;
            }
            let product = recipe.product(op.attrs.get_word("role"));
            let Some(formats) = product.operands else {
                return Ok(Some(b.emit_all(op.op, &op.operands, op.attrs)?));
            };
            products += 1;
            Ok(Some(vec![quantized(b, &op, product, formats, recipe.dispatched_plain)?]))
        })?;
    }
    Ok(Stats::one("products quantized", products))
}

/// What is said of an op, if it is a product with a site.
fn recipe<'a>(cx: &'a PassCx, op: &OpData) -> Result<Option<&'a Recipe>, PassError> {
    let site = op.attrs.get_word("site").filter(|_| op.op.has(Trait::Contraction));
    let Some(site) = site else { return Ok(None) };
    match cx.policy.get(site) {
        Some(recipe) => Ok(Some(recipe)),
        None => Err(PassError::new(format!("no recipe for the product `{site}`"))),
    }
}

/// Rows that come to `op` from other tokens' places travel as codes.
fn dispatched(b: &mut Builder, op: &mut OpData, format: &Format) -> Result<(), PassError> {
    for x in &mut op.operands {
        *x = rounded_rows(b, *x, format)?;
    }
    Ok(())
}

/// Rows that `dispatch` makes, of tokens rounded to `format`; any other value as it is.
pub fn rounded_rows(b: &mut Builder, x: ValueId, format: &Format) -> Result<ValueId, PassError> {
    let Some(mut dispatch) = made_by(b, x, Op::Dispatch) else { return Ok(x) };
    let codes = quantize(b, dispatch.operands[0], format)?;
    let to = Attrs::new().with("dtype", Attr::DType(b.ty(x).dtype));
    dispatch.operands[0] = b.emit(Op::Dequantize, &[codes], to)?;
    Ok(b.emit(Op::Dispatch, &dispatch.operands, dispatch.attrs)?)
}

fn made_by(b: &Builder, x: ValueId, op: Op) -> Option<OpData> {
    b.func.def_op(x).map(|id| b.func.op(id)).filter(|o| o.op == op).cloned()
}

fn quantized(
    b: &mut Builder,
    op: &OpData,
    product: &Product,
    formats: [Format; 2],
    plain_rows: bool,
) -> Result<ValueId, PassError> {
    let mut operands = op.operands.clone();
    let plain = b.ty(operands[0]).dtype;
    for (x, format) in operands.iter_mut().zip(formats) {
        *x = if plain_rows { encode(b, *x, &format)? } else { quantize(b, *x, &format)? };
    }
    let sums = op.attrs.get_dtype("dtype").unwrap_or(plain);
    let mut attrs = op.attrs.clone().with("dtype", Attr::DType(sums));
    if let Some(n) = product.promote {
        attrs = attrs.int("promote", n.into());
    }
    if product.hopper14 {
        attrs = attrs.word("accumulate", "hopper14");
    }
    Ok(b.emit(op.op, &operands, attrs)?)
}

/// `x` as codes; where rows are copies of tokens and have scales of their own, copies of the
/// tokens' codes.
pub fn quantize(b: &mut Builder, x: ValueId, format: &Format) -> Result<ValueId, PassError> {
    if let Some(mut copied) = made_by(b, x, Op::Dispatch)
        && copied.operands.len() == 2
        && format.group[0] == 1
    {
        copied.operands[0] = quantize(b, copied.operands[0], format)?;
        return Ok(b.emit(Op::Dispatch, &copied.operands, copied.attrs)?);
    }
    encode(b, x, format)
}

/// `x` as codes: those that it was made of, if they are of this format.
pub fn encode(b: &mut Builder, x: ValueId, format: &Format) -> Result<ValueId, PassError> {
    if let Some(decoded) = made_by(b, x, Op::Dequantize)
        && is_of(b.ty(decoded.operands[0]), format)
    {
        return Ok(decoded.operands[0]);
    }
    let mut attrs = Attrs::new()
        .with("dtype", Attr::DType(format.dtype))
        .ints("group", format.group.map(i64::from))
        .with("scale", Attr::DType(format.scale));
    if format.floor > 0.0 {
        attrs = attrs.float("floor", format.floor);
    }
    let odd = b.dims(x).last().and_then(|n| n.as_fixed()).filter(|n| n % 2 == 1);
    if let (DType::E5m6, Some(n)) = (format.dtype, odd) {
        return Err(PassError::new(format!(
            "rows of {n} values cannot be kept as e5m6, of which two take three bytes: an even \
             number can, or e4m3"
        )));
    }
    let source = master(b, x).unwrap_or(x);
    Ok(b.emit(Op::Quantize, &[source], attrs)?)
}

/// Are codes of that type those of a format?
fn is_of(ty: &Type, format: &Format) -> bool {
    let same = |q: &Quant| q.group == format.group && q.scale == format.scale;
    ty.dtype == format.dtype && ty.quant.as_ref().is_some_and(same)
}

/// The f32 parameter that a value is rounded from, or a layer of it.
fn master(b: &Builder, x: ValueId) -> Option<ValueId> {
    let op = b.func.op(b.func.def_op(x)?);
    let source = *op.operands.first()?;
    let is_param = matches!(b.func.value(whole(&b.func, source)).def, Def::Param(_));
    let f32 = b.ty(source).dtype == DType::F32;
    (op.op == Op::Convert && is_param && f32).then_some(source)
}
