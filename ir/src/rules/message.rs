//! The type rules of both ends of a message between two ranks.

use super::{RuleCx, TypeError, Types, one, places};

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
