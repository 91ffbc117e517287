//! A pool of pages in the order of a request's positions.

use crate::attr::{Attr, Attrs};
use crate::builder::Builder;
use crate::dim::{Dim, product};
use crate::module::ValueId;
use crate::op::Op;
use crate::rules::TypeError;
use crate::ty::Type;

/// `[B, n N, ..]`: the rows of `pool[P, N, ..]` that `pages`, i32[B, n], name, one page after the
/// other; zeros for a page below 0.
pub fn in_order(b: &mut Builder, pool: ValueId, pages: ValueId) -> Result<ValueId, TypeError> {
    let few = || TypeError("a pool is [pages, positions, ..], and pages are i32[B, n]".into());
    let many = || TypeError("a pool has too many rows".into());
    let (of_pool, of_pages) = (b.dims(pool), b.dims(pages));
    let ([count, size, rest @ ..], [batch, n]) = (&of_pool[..], &of_pages[..]) else {
        return Err(few());
    };
    let rows = product(&[*count, *size]).ok_or_else(many)?;
    let width = product(rest).ok_or_else(many)?;
    let positions = product(&[*n, *size]).ok_or_else(many)?;
    // Row t mod N of page `pages[b, t / N]`, for each [b, t / N, t mod N].
    let by_page = [*batch, *n, *size];
    let ty = Type::i32(by_page);
    let first = Attrs::new().dims("shape", by_page).ints("dims", [0, 1]);
    let first = b.emit(Op::Broadcast, &[pages], first)?;
    let positions_of_page = size.as_fixed().ok_or_else(few)? as f64;
    let each = b.constant(positions_of_page, ty.clone())?;
    let first = b.binary(Op::Mul, first, each)?;
    let attrs = Attrs::new().int("dim", 2).with("type", Attr::Type(ty));
    let behind = b.emit(Op::Iota, &[], attrs)?;
    let ids = b.binary(Op::Add, first, behind)?;
    let ids = b.reshape(ids, &[*batch, positions])?;
    let table = b.reshape(pool, &[rows, width])?;
    let flat = b.emit(Op::Gather, &[table, ids], Attrs::new())?;
    let dims: Vec<Dim> = [*batch, positions].into_iter().chain(rest.iter().copied()).collect();
    b.reshape(flat, &dims)
}
