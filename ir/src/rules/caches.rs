//! Caches: one row of positions for each request, or pages of a pool.

use super::{RuleCx, TypeError, Types, state};
use crate::dim::{Dim, product};

pub fn cache_append(cx: &RuleCx) -> Types {
    let (cache, x, start) = (state(cx, 0)?, cx.value(1)?, cx.ids(2)?);
    cx.check(cache.dtype == x.dtype, "the cache and the value have different element types")?;
    cx.check(x.rank() >= 2 && cache.rank() == x.rank(), "both are [B, positions, ..]")?;
    let paged = cx.operands.len() > 3;
    let fits = (paged || cache.dims[0] == x.dims[0]) && cache.dims[2..] == x.dims[2..];
    cx.check(fits, "the cache and the value differ in more than positions")?;
    cx.check(start.dims == [x.dims[0]], "start is i32[B]")?;
    if paged {
        paged_positions(cx, 3, x.dims[0], cache.dims[1])?;
        cx.check(cx.operands.len() == 4, "takes the cache, the value, start and pages")?;
    }
    Ok(vec![cache.as_value(), cache.clone()])
}

/// The positions that operand `i`, the pages of each request, has room for; a page has `page`.
pub(super) fn paged_positions(cx: &RuleCx, i: usize, b: Dim, page: Dim) -> Result<Dim, TypeError> {
    let [of, n] = cx.ids(i)?.dims[..] else { return cx.err("pages are i32[B, n]") };
    cx.check(of == b, "pages are i32[B, n]")?;
    match product(&[n, page]) {
        Some(positions) => Ok(positions),
        None => cx.err("pages have too many positions"),
    }
}
