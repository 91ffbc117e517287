//! What is known of a query before its derivative: `-lse · log2 e` and `do · o`.
//!
//! The workspace is f32 `[batch, heads, 2, queries rounded up to tiles]`. Queries that are not
//! there, and those that saw nothing, have -inf and 0: all their weights become 0.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::kernel::{Sizes, Tile};
use super::{Backward, TILE_ROWS};
use crate::flash::signature::{Argument, Bound, Tensor};
use crate::flash::softmax::across;
use crate::ptx::memory;
use crate::tiles::fragment::wide;
use crate::tiles::roles::Consumer;

/// Of a thread's two rows, or of two neighbouring columns.
#[derive(Clone, Copy)]
pub struct Statistics<'c> {
    /// What is added to a scaled score, in units of log2.
    pub less: [Val<'c>; 2],
    pub delta: [Val<'c>; 2],
}

/// Elements of bf16 that one load takes.
const LOADED: u32 = 8;

impl<'c> Sizes<'c> {
    /// Where the workspace has both numbers of a query.
    pub fn statistics(
        &self,
        cg: &Cg<'c>,
        batch: Val<'c>,
        head: Val<'c>,
        query: Val<'c>,
    ) -> [Val<'c>; 2] {
        let tile = TILE_ROWS as i32;
        let padded = cg.mul(cg.div_ceil(self.queries, tile), tile);
        let row = cg.mul(cg.add(cg.mul(batch, self.heads), head), 2);
        let at = cg.add(cg.mul(wide(cg, row), wide(cg, padded)), wide(cg, query));
        [at, cg.add(at, wide(cg, padded))]
    }
}

impl Backward {
    /// Computes the statistics of a thread's rows, and leaves them for the kernels of keys.
    pub(super) fn make_statistics<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
    ) -> Statistics<'c> {
        let first = cg.add(tile.row, cg.add(consumer.first_row, consumer.lanes.row));
        let queries = [0, 8].map(|half| cg.add(first, half));
        let inside = queries.map(|q| cg.cmp(Cmp::Lt, q, sizes.queries));
        let clamped = queries.map(|q| cg.min(q, cg.sub(sizes.queries, 1)));
        let delta = self.delta(cg, args, consumer, tile, clamped);
        let line = cg.add(cg.mul(tile.batch, sizes.heads), tile.head);
        let line = cg.mul(wide(cg, line), wide(cg, sizes.queries));
        let lse = clamped.map(|q| {
            cg.load(Ty::F32, cg.at(args.get(Argument::Lse), Elem::F32, cg.add(line, wide(cg, q))))
        });
        let none = cg.f32(f32::NEG_INFINITY);
        let less = [0, 1].map(|i| {
            let scaled = cg.mul(lse[i], -std::f32::consts::LOG2_E);
            let sees = cg.and(inside[i], cg.cmp(Cmp::Gt, lse[i], none));
            cg.select(sees, scaled, none)
        });
        let delta = [0, 1].map(|i| cg.select(inside[i], delta[i], cg.f32(0.0)));
        let leads = cg.cmp(Cmp::Eq, consumer.lanes.col, 0);
        let base = args.get(Argument::Statistics);
        for i in 0..2 {
            let [at, behind] = sizes.statistics(cg, tile.batch, tile.head, queries[i]);
            memory::store_if(cg, leads, &[less[i]], cg.at(base, Elem::F32, at));
            memory::store_if(cg, leads, &[delta[i]], cg.at(base, Elem::F32, behind));
        }
        Statistics { less, delta }
    }

    /// `do · o` of two queries, each by the four lanes that share a row.
    fn delta<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        queries: [Val<'c>; 2],
    ) -> [Val<'c>; 2] {
        // Strides of do are those of its map, in bytes.
        let strides = |of: &dyn Fn(usize) -> Val<'c>| [2, 0, 1].map(of);
        let of_d = strides(&|dim| args.get(Argument::MapStride(Tensor::DO, dim)));
        let of_o = [0, 1, 2].map(|dim| cg.mul(args.get(Argument::OStride(dim)), 2));
        let rows = |base: Argument, [batch, row, head]: [Val<'c>; 3]| {
            let start = cg.mul(wide(cg, tile.batch), batch);
            let start = cg.add(start, cg.mul(wide(cg, tile.head), head));
            let base = args.get(base);
            queries.map(|q| cg.offset(base, cg.add(start, cg.mul(wide(cg, q), row))))
        };
        let d_o = rows(Argument::Data(Tensor::DO), of_d);
        let o = rows(Argument::O, of_o);
        let first = cg.mul(cg.lshr(consumer.lanes.col, 1), LOADED as i32);
        let (end, step) = (cg.i32(self.of.v_width as i32), 4 * LOADED as i32);
        let sums = cg.for_(first, end, step, &[cg.f32(0.0); 2], |col, sums| {
            let col = wide(cg, col);
            [0, 1].map(|i| dot(cg, sums[i], [d_o[i], o[i]], col)).to_vec()
        });
        [0, 1].map(|i| across(cg, sums[i], |a, b| cg.add(a, b)))
    }
}

/// `sum + a · b` of eight elements from `col` on.
fn dot<'c>(cg: &Cg<'c>, sum: Val<'c>, rows: [Val<'c>; 2], col: Val<'c>) -> Val<'c> {
    let words = Elem::I32.x(LOADED / 2);
    let load = |row: Val<'c>| cg.load_aligned(words, cg.at(row, Elem::BF16, col), 2 * LOADED);
    let both = rows.map(load);
    (0..LOADED / 2).fold(sum, |sum, i| {
        let [a, b] = both.map(|v| {
            let word = cg.lane(v, i);
            [cg.shl(word, 16), cg.and(word, -65_536)].map(|half| cg.bitcast(half, Ty::F32))
        });
        cg.fma(a[1], b[1], cg.fma(a[0], b[0], sum))
    })
}
