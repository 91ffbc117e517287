//! Adds up what several groups of heads found for the keys they share, and narrows it.
//!
//! ```text
//! to[b, t, head] = Σ_i from[b, head · n + i, t]         n groups to a head, i upward
//! ```

use weft_codegen::emit::{Cg, Elem, Val};

use super::args::View;
use super::rows::{Line, columns};

/// Rows of a block.
pub const BLOCK_ROWS: i64 = 64;

/// Emits the kernel. Buffers: the workspace f32 `[B, units, T, width]`, the result. Scalars: T,
/// blocks of rows, the strides of the result. Its blocks are (batch, block of rows).
pub fn emit(cg: &Cg, name: &str, elem: Elem, (units, heads): (i64, i64), width: u32) {
    cg.grid_kernel(name, 2, 5, |k, block| {
        let (rows, blocks) = (k.scalars[0], k.scalars[1]);
        let (batch, index) = (cg.div(block, blocks), cg.rem(block, blocks));
        let (ptr, s) = (k.buffers[1], &k.scalars);
        let to = View { ptr, elem, batch: s[2], row: s[3], head: s[4] };
        let first = cg.mul(index, BLOCK_ROWS);
        let end = cg.min(cg.add(first, BLOCK_ROWS), rows);
        cg.for_each(cg.i64(0), cg.i64(heads), 1, |head| {
            let target = to.of(cg, batch, head);
            let unit = cg.add(cg.mul(batch, units), cg.mul(head, units / heads));
            let from = cg.at(k.buffers[0], Elem::F32, cg.mul(cg.mul(unit, rows), i64::from(width)));
            let step = cg.mul(rows, i64::from(width));
            cg.for_each(first, end, 1, |row| {
                let from = cg.at(from, Elem::F32, cg.mul(row, i64::from(width)));
                let to = Line { ptr: cg.at(target, elem, cg.mul(row, to.row)), elem };
                sum_row(cg, (from, step), to, units / heads, width);
            });
        });
    });
}

fn sum_row<'c>(cg: &Cg<'c>, (from, step): (Val<'c>, Val<'c>), to: Line<'c>, n: i64, width: u32) {
    let lanes = cg.target.lanes;
    let vector = Elem::F32.x(lanes);
    for (first, mask) in columns(cg, lanes, width) {
        let at = |p: Val<'c>| cg.at(p, Elem::F32, i64::from(first));
        let sum = cg.for_(cg.i64(0), cg.i64(n), 1, &[cg.zero(vector)], |i, sum| {
            let from = at(cg.at(from, Elem::F32, cg.mul(i, step)));
            vec![cg.add(sum[0], cg.load_tail(vector, from, mask))]
        });
        to.store(cg, sum[0], first, mask);
    }
}
