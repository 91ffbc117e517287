//! Results: scaled, and rounded where they are not sums that a later launch adds up.

use weft_codegen::emit::{Cg, Cmp, Elem, Val};

use super::Backward;
use super::kernel::{Sizes, Tile};
use crate::flash::signature::{Argument, Bound};
use crate::ptx::convert::pack_bf16;
use crate::ptx::memory;
use crate::tiles::fragment::{n_sums, pairs, wide};
use crate::tiles::roles::Consumer;

impl Backward {
    /// Stores dx of the parts, and dy.
    #[expect(clippy::too_many_arguments, reason = "the state of one tile")]
    pub(super) fn store<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        x: &[Val<'c>],
        y: &[Val<'c>],
    ) {
        let scale = args.f32(Argument::Scale);
        let scaled: Vec<Val> = x.iter().map(|sum| cg.mul(*sum, scale)).collect();
        let rows = if self.keeps_keys() { sizes.keys } else { sizes.queries };
        let mut rest = &[scaled, y.to_vec()].concat()[..];
        for (i, width) in self.made_widths().into_iter().enumerate() {
            let (own, others) = rest.split_at(n_sums(width));
            self.store_one(cg, args, consumer, tile, rows, (i, width), own);
            rest = others;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one result")]
    fn store_one<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        rows: Val<'c>,
        (made, width): (usize, u32),
        sums: &[Val<'c>],
    ) {
        let elem = if self.partial[made] { Elem::F32 } else { Elem::BF16 };
        let [batch, row, head] = [0, 1, 2].map(|dim| args.get(Argument::MadeStride(made, dim)));
        let start = cg.add(cg.mul(wide(cg, tile.batch), batch), cg.mul(wide(cg, tile.unit), head));
        let first = cg.add(tile.row, cg.add(consumer.first_row, consumer.lanes.row));
        let own = [0, 8].map(|half| cg.add(first, half));
        let inside = own.map(|r| cg.cmp(Cmp::Lt, r, rows));
        let base = args.get(Argument::Made(made));
        let lines = own.map(|r| {
            let at = cg.add(start, cg.mul(wide(cg, r), row));
            cg.at(base, elem, cg.add(at, wide(cg, consumer.lanes.col)))
        });
        for pair in pairs(width) {
            let both = [sums[pair.index], sums[pair.index + 1]];
            let address = cg.at(lines[pair.half], elem, i64::from(pair.col));
            match self.partial[made] {
                true => memory::store_if(cg, inside[pair.half], &both, address),
                false => {
                    let packed = pack_bf16(cg, both[0], both[1]);
                    memory::store_if(cg, inside[pair.half], &[packed], address);
                }
            }
        }
    }
}
