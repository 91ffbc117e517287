//! The type rules of codes with scales of groups: what makes them, and what reads them.

use super::{RuleCx, Types, grid, one};
use crate::ty::{DType, Quant, ScaleLayout, Type};

pub fn quantize(cx: &RuleCx) -> Types {
    groups(cx, cx.float(0)?)
}

fn groups(cx: &RuleCx, x: &Type) -> Types {
    let dtype = cx.attrs.get_dtype("dtype").expect("required by the row");
    let scale = cx.attrs.get_dtype("scale").expect("required by the row");
    let small = matches!(dtype, DType::E4m3 | DType::E5m2 | DType::E5m6);
    cx.check(small, "codes are e4m3, e5m2 or e5m6")?;
    cx.check(matches!(scale, DType::F32 | DType::Ue8m0), "scales are f32 or ue8m0")?;
    let sides: Option<Vec<u32>> = cx
        .attrs
        .get_ints("group")
        .and_then(|g| g.iter().map(|n| u32::try_from(*n).ok().filter(|n| *n > 0)).collect());
    let Some([rows, cols]) = sides.as_deref() else {
        return cx.err("`group` has rows and columns");
    };
    cx.check(x.rank() >= 2, "a group has more sides than the value dims")?;
    cx.check(cx.attrs.get_float("floor").unwrap_or(0.0) >= 0.0, "`floor` is at least 0")?;
    let quant = Quant { group: [*rows, *cols], scale, layout: ScaleLayout::RowMajor };
    one(Type { quant: Some(quant), ..x.with_dtype(dtype) })
}

pub fn encode(cx: &RuleCx) -> Types {
    cx.float(0)?;
    coded(cx)
}

pub fn recode(cx: &RuleCx) -> Types {
    let [codes, scales] = [0, 1].map(|i| cx.operands[i]);
    cx.check(matches!(codes.dtype, DType::E4m3 | DType::E5m2), "codes are e4m3 or e5m2")?;
    cx.check(codes.quant.is_none() && codes.rank() >= 2, "codes are plain, of two dims at least")?;
    let through = cx.attrs.get_dtype("through").expect("required by the row");
    cx.check(matches!(through, DType::F32 | DType::Bf16), "codes are read as f32 or bf16")?;
    let group = cx.attrs.get_ints("x_group").unwrap_or(&[]);
    let [rows, cols] = group[..] else { return cx.err("`x_group` has rows and columns") };
    cx.check(rows > 0 && cols > 0, "sides of `x_group` are 1 at least")?;
    let grid = grid(&codes.dims, [rows as u64, cols as u64]);
    cx.check(grid.as_ref() == Some(&scales.dims), "a scale for each group of the codes")?;
    cx.check(matches!(scales.dtype, DType::F32 | DType::Ue8m0), "scales are f32 or ue8m0")?;
    coded(cx)
}

fn coded(cx: &RuleCx) -> Types {
    let whole = groups(cx, cx.operands[0])?.remove(0);
    let Some(quant) = &whole.quant else { return cx.err("codes have scales") };
    let Some(dims) = grid(&whole.dims, quant.group.map(u64::from)) else {
        let [rows, cols] = quant.group;
        return cx.err(format!(
            "groups of {rows}x{cols} cut a dim of no fixed size; give batch and sequence as \
             numbers, or groups within what is fixed, such as 1x{}",
            rows.max(cols)
        ));
    };
    let scales = Type::new(quant.scale, dims);
    Ok(vec![Type { quant: None, ..whole }, scales])
}

pub fn dequantize(cx: &RuleCx) -> Types {
    let x = cx.factor(0)?;
    let dtype = cx.attrs.get_dtype("dtype").expect("required by the row");
    cx.check(x.quant.is_some(), "needs a quantized operand")?;
    cx.check(matches!(dtype, DType::F32 | DType::Bf16), "codes are read as f32 or bf16")?;
    one(x.with_dtype(dtype))
}
