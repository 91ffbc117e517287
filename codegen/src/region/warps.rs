//! Whole ops on a target with threads, a unit of work a warp: what a CPU does in one pass over all,
//! or in vectors along a row, is here shared out to lanes.

use weft_ir::ty::DType;

use super::scalar;
use super::whole::Cache;
use crate::emit::{Cg, Cmp, Elem, Kernel, Ty, Val, WARP};

const STEP: i64 = WARP as i64;

/// Runs over `n` units, a warp each; `warps` are those of a CTA. The body gets the unit and the
/// thread's lane.
pub fn units<'c>(
    cg: &Cg<'c>,
    k: &Kernel<'c>,
    n: Val<'c>,
    warps: i64,
    body: impl FnOnce(Val<'c>, Val<'c>),
) {
    let thread = cg.cast(cg.thread_index(), Elem::I64);
    let in_cta = cg.lshr(thread, i64::from(WARP.trailing_zeros()));
    let unit = cg.add(cg.mul(k.begin, warps), in_cta);
    let lane = cg.and(thread, STEP - 1);
    cg.when(cg.cmp(Cmp::Lt, unit, n), || body(unit, lane));
}

fn load_i32<'c>(cg: &Cg<'c>, ptr: Val<'c>, at: Val<'c>) -> Val<'c> {
    cg.cast(cg.load(Ty::I32, cg.at(ptr, Elem::I32, at)), Elem::I64)
}

fn store_i32<'c>(cg: &Cg<'c>, v: Val<'c>, ptr: Val<'c>, at: Val<'c>) {
    cg.store(cg.cast(v, Elem::I32), cg.at(ptr, Elem::I32, at));
}

/// A group of a sort by id. Its warp counts the ids below it, which is where it starts, and then
/// puts down the places of its own, in order: a lane's place is behind those of the lanes before
/// it.
pub fn sort_group<'c>(
    cg: &Cg<'c>,
    k: &Kernel<'c>,
    (n, groups): (Val<'c>, Val<'c>),
    (group, lane): (Val<'c>, Val<'c>),
) {
    let [ids, offsets, order] = [k.buffers[0], k.buffers[1], k.buffers[2]];
    let zero = cg.i64(0);
    // Over 32 ids at a time: the id of the lane, if it has one, and the lanes that pass a test.
    let chosen = |first: Val<'c>, test: &dyn Fn(Val<'c>) -> Val<'c>| {
        let own = cg.add(first, lane);
        let id = load_i32(cg, ids, cg.min(own, cg.sub(n, 1)));
        let passes = cg.and(cg.cmp(Cmp::Lt, own, n), test(id));
        (own, passes, cg.ballot(passes))
    };
    let count = |lanes: Val<'c>| cg.zext(cg.count_ones(lanes), Elem::I64);
    let below = |id: Val<'c>| cg.and(cg.cmp(Cmp::Ge, id, 0), cg.cmp(Cmp::Lt, id, group));
    let start = cg.for_(zero, n, STEP, &[zero], |first, sum| {
        let (_, _, lanes) = chosen(first, &below);
        vec![cg.add(sum[0], count(lanes))]
    });
    let lane32 = cg.cast(lane, Elem::I32);
    let before = cg.sub(cg.shl(cg.i32(1), lane32), 1);
    let end = cg.for_(zero, n, STEP, &start, |first, place| {
        let (own, passes, lanes) = chosen(first, &|id| cg.cmp(Cmp::Eq, id, group));
        cg.when(passes, || {
            let rank = count(cg.and(lanes, before));
            store_i32(cg, own, order, cg.add(place[0], rank));
        });
        vec![cg.add(place[0], count(lanes))]
    });
    cg.when(cg.cmp(Cmp::Eq, lane, 0), || {
        store_i32(cg, start[0], offsets, group);
        let next = cg.add(group, 1);
        cg.when(cg.cmp(Cmp::Eq, next, groups), || store_i32(cg, end[0], offsets, next));
    });
}

/// The sum of a segment's rows, in order; lanes run along the columns.
pub fn segment_sum<'c>(
    cg: &Cg<'c>,
    k: &Kernel<'c>,
    cols: Val<'c>,
    dtype: DType,
    (group, lane): (Val<'c>, Val<'c>),
) {
    let [x, offsets, order, out] = [k.buffers[0], k.buffers[1], k.buffers[2], k.buffers[3]];
    let (first, last) = (load_i32(cg, offsets, group), load_i32(cg, offsets, cg.add(group, 1)));
    let elem = scalar::memory(dtype);
    cg.for_each(lane, cols, STEP, |col| {
        let sum = cg.for_(first, last, 1, &[cg.f32(0.0)], |i, acc| {
            let row = cg.mul(load_i32(cg, order, i), cols);
            let v = cg.load(elem.x(1), cg.at(x, elem, cg.add(row, col)));
            vec![cg.add(acc[0], scalar::widen(cg, v, dtype))]
        });
        let at = cg.at(out, elem, cg.add(cg.mul(group, cols), col));
        cg.store(scalar::narrow(cg, sum[0], dtype), at);
    });
}

/// A row of `x` to its place in the cache, if it has one.
pub fn append<'c>(cg: &Cg<'c>, k: &Kernel<'c>, cache: &Cache<'c>, (row, lane): (Val<'c>, Val<'c>)) {
    let (x, width) = (k.buffers[0], cache.width);
    cache.place(cg, k, row, |to, cache_at| {
        let to = cg.mul(to, width);
        let from = cg.mul(row, width);
        let elem = scalar::memory(cache.dtype);
        cg.for_each(lane, width, STEP, |i| {
            let v = cg.load(elem.x(1), cg.at(x, elem, cg.add(from, i)));
            cg.store(v, cg.at(cache_at, elem, cg.add(to, i)));
        });
    });
}
