//! The type rules of what ranks do together: collectives, and both ends of a message.

use super::{RuleCx, TypeError, Types, one, segments};
use crate::dim::Dim;
use crate::ty::{DType, Type};

/// The number of places along the attribute `axis`.
fn places(cx: &RuleCx) -> Result<u64, TypeError> {
    let Some(module) = cx.module else { return cx.err("needs the module whose axis it names") };
    let axis = cx.attrs.get_axis("axis").and_then(|a| module.axes.get(a.0 as usize));
    axis.map_or_else(|| cx.err("no such mesh axis"), |a| Ok(a.size))
}

pub fn all_reduce(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    places(cx)?;
    cx.check(x.dtype == DType::F32, "sums over ranks are of f32")?;
    one(x.clone())
}

pub fn spread(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    places(cx)?;
    cx.check(x.dtype.is_float(), "only floats have derivatives to add up")?;
    one(x.clone())
}

pub fn reduce_scatter(cx: &RuleCx) -> Types {
    all_reduce(cx)?;
    part(cx)
}

pub fn part(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let (d, n) = (cx.dim_attr(x)?, places(cx)?);
    let Some(part) = x.dims[d].as_fixed().filter(|size| size.is_multiple_of(n)) else {
        return cx.err("the ranks do not divide the dim");
    };
    let mut dims = x.dims.clone();
    dims[d] = Dim::fixed(part / n);
    one(x.with_dims(dims))
}

pub fn all_gather(cx: &RuleCx) -> Types {
    let x = cx.value(0)?;
    let (d, n) = (cx.dim_attr(x)?, places(cx)?);
    let Some(part) = x.dims[d].as_fixed() else {
        return cx.err("the gathered dim must have a fixed size");
    };
    let Some(whole) = part.checked_mul(n) else { return cx.err("the gathered dim overflows") };
    let mut dims = x.dims.clone();
    dims[d] = Dim::fixed(whole);
    one(x.with_dims(dims))
}

/// Offsets of experts that the ranks along the axis divide: i32[E + 1].
fn expert_offsets(cx: &RuleCx, i: usize) -> Result<u64, TypeError> {
    let n_experts = segments(cx, i)?;
    let n = places(cx)?;
    cx.check(n_experts.is_multiple_of(n), "the ranks do not divide the segments")?;
    Ok(n_experts)
}

pub fn exchange_offsets(cx: &RuleCx) -> Types {
    expert_offsets(cx, 0)?;
    one(cx.operands[0].as_value())
}

pub fn exchange(cx: &RuleCx) -> Types {
    let rows = cx.rows_apart(0)?;
    cx.check(rows.rank() == 2, "rows are [rows, d]")?;
    let same = expert_offsets(cx, 1)? == expert_offsets(cx, 2)?;
    cx.check(same, "both offsets have as many segments as there are experts")?;
    let n = Dim::fixed(places(cx)?);
    let there = match cx.attrs.get_dim("room") {
        Some(room) => Some(room),
        None if cx.flag("back") => rows.dims[0].checked_div(n),
        None => rows.dims[0].checked_mul(n),
    };
    let Some(there) = there else { return cx.err("rows from all ranks are no multiple of theirs") };
    one(rows.with_dims([there, rows.dims[1]]))
}

/// What the whole gives, in flight.
pub fn started(cx: &RuleCx) -> Types {
    let Some(whole) = cx.op.started() else { return cx.err("begins nothing") };
    if let Some(sms) = cx.attrs.get_int("sms") {
        cx.check(sms >= 0, "`sms` is a number of multiprocessors")?;
    }
    let types = (whole.def().rule)(cx)?;
    Ok(types.iter().map(Type::in_flight).collect())
}

pub fn done(cx: &RuleCx) -> Types {
    cx.check(cx.operands[0].flight, "the operand is not in flight")?;
    one(cx.operands[0].as_value())
}

/// A place along the axis that `name` gives.
fn end(cx: &RuleCx, name: &str) -> Result<(), TypeError> {
    let (place, n) = (cx.attrs.get_int(name).unwrap_or(-1), places(cx)?);
    let there = u64::try_from(place).is_ok_and(|p| p < n);
    cx.check(there, &format!("`{name}` is no place along the axis"))
}

pub fn send(cx: &RuleCx) -> Types {
    cx.value(0)?;
    end(cx, "to")?;
    Ok(vec![])
}

pub fn recv(cx: &RuleCx) -> Types {
    end(cx, "from")?;
    let ty = cx.attrs.get_type("type").expect("required by the row");
    cx.check(!ty.state, "what comes is a value")?;
    one(ty.clone())
}
