//! What a tile leaves in memory.

use weft_codegen::emit::{Cg, Cmp, Elem, Val};

use super::Decode;
use super::consume::Kept;
use super::kernel::{Sizes, Tile};
use crate::flash::signature::{Argument, Bound};
use crate::flash::softmax::Rows;
use crate::ptx::convert::{log2, pack_bf16};
use crate::ptx::memory;
use crate::tiles::fragment::{pairs, wide};

impl Decode {
    /// Divides by the sum and writes the warpgroup's columns of o, and the log of the softmax's
    /// denominator: in units of log2 for a piece, natural for the whole.
    pub(super) fn store<'c>(
        &self,
        kept: &Kept<'_, 'c>,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        rows: Rows<'c>,
        total: [Val<'c>; 2],
        o: &[Val<'c>],
    ) {
        let Kept { cg, consumer, tile, .. } = kept;
        let inverse = total.map(|sum| {
            let nothing = cg.cmp(Cmp::Eq, sum, 0.0f32);
            cg.select(nothing, cg.f32(0.0), cg.div(cg.f32(1.0), sum))
        });
        let heads = [0, 8].map(|half| cg.add(tile.head, cg.add(consumer.lanes.row, half)));
        let inside = heads.map(|h| cg.cmp(Cmp::Lt, h, sizes.heads));
        let first_col = cg.mul(consumer.warpgroup, self.half_width() as i32);
        let first_col = cg.add(first_col, consumer.lanes.col);
        let elem = if self.split { Elem::F32 } else { Elem::BF16 };
        let base = args.get(if self.split { Argument::PartialO } else { Argument::O });
        let lines = heads.map(|h| {
            let start = match self.split {
                true => cg.mul(self.line(cg, sizes, tile, h), i64::from(self.v_width())),
                false => {
                    let [batch, row, head] = [0, 1, 2].map(|i| args.get(Argument::OStride(i)));
                    let start = cg.mul(wide(cg, tile.batch), batch);
                    let start = cg.add(start, cg.mul(wide(cg, tile.query), row));
                    cg.add(start, cg.mul(wide(cg, h), head))
                }
            };
            cg.at(base, elem, cg.add(start, wide(cg, first_col)))
        });
        for pair in pairs(self.half_width()) {
            let both = [0, 1].map(|i| cg.mul(o[pair.index + i], inverse[pair.half]));
            let column = cg.add(first_col, pair.col as i32);
            let is = cg.cmp(Cmp::Lt, column, self.v_width() as i32);
            let is = cg.and(is, inside[pair.half]);
            let address = cg.at(lines[pair.half], elem, i64::from(pair.col));
            match self.split {
                true => memory::store_if(cg, is, &both, address),
                false => memory::store_if(cg, is, &[pack_bf16(cg, both[0], both[1])], address),
            }
        }
        // One thread of each row, of the first warpgroup.
        let leads =
            cg.and(cg.cmp(Cmp::Eq, consumer.lanes.col, 0), cg.cmp(Cmp::Eq, consumer.warpgroup, 0));
        for half in 0..2 {
            let top = cg.mul(rows.largest[half], kept.scale_log2);
            let lse = cg.add(top, log2(cg, total[half]));
            let (lse, base, at) = match self.split {
                true => {
                    let at = self.line(cg, sizes, tile, heads[half]);
                    (lse, args.get(Argument::PartialLse), at)
                }
                false => {
                    let line = cg.add(cg.mul(tile.batch, sizes.heads), heads[half]);
                    let line = cg.mul(wide(cg, line), wide(cg, sizes.queries));
                    let natural = cg.mul(lse, cg.f32(std::f32::consts::LN_2));
                    (natural, args.get(Argument::Lse), cg.add(line, wide(cg, tile.query)))
                }
            };
            let is = cg.and(leads, inside[half]);
            memory::store_if(cg, is, &[lse], cg.at(base, Elem::F32, at));
        }
    }

    /// Where a head's numbers are among those of `[pieces, batch, queries, heads]`.
    fn line<'c>(&self, cg: &Cg<'c>, sizes: &Sizes<'c>, tile: &Tile<'c>, head: Val<'c>) -> Val<'c> {
        let at = cg.add(cg.mul(wide(cg, tile.piece), wide(cg, sizes.batch)), wide(cg, tile.batch));
        let at = cg.add(cg.mul(at, wide(cg, sizes.queries)), wide(cg, tile.query));
        cg.add(cg.mul(at, wide(cg, sizes.heads)), wide(cg, head))
    }
}
