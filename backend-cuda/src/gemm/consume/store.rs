//! From sums to C: what was there before, rounding, and the stores.

use weft_codegen::emit::{Cg, Cmp, Elem, Val};

use super::Gemm;
use crate::gemm::kernel::{Args, strided};
use crate::gemm::schedule::Tile;
use crate::gemm::{Output, Store};
use crate::ptx::memory;
use crate::tiles::fragment::{pairs, wide};
use crate::tiles::roles::Consumer;

impl Gemm {
    pub(super) fn store<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        c: Val<'c>,
        consumer: &Consumer<'c>,
        tile: &Tile<'c>,
        sums: &[Val<'c>],
    ) {
        let elem = match self.output {
            Output::F32 => Elem::F32,
            Output::Bf16 => Elem::BF16,
        };
        let row = cg.add(tile.row, cg.add(consumer.first_row, consumer.lanes.row));
        let col = cg.add(tile.col, consumer.lanes.col);
        let group = cg.at(c, elem, strided(cg, tile.group, args.c_group_stride));
        let rows = [0, 8].map(|half| {
            let row = cg.add(row, half);
            let start = cg.at(group, elem, strided(cg, row, args.c_row_stride));
            (cg.cmp(Cmp::Lt, row, tile.row_end), cg.at(start, elem, wide(cg, col)))
        });
        for pair in pairs(self.tile_cols) {
            let (row_inside, start) = rows[pair.half];
            let col = cg.add(col, pair.col as i32);
            let inside = |c: Val<'c>| cg.and(row_inside, cg.cmp(Cmp::Lt, c, args.n));
            let inside = [inside(col), inside(cg.add(col, 1))];
            let address = cg.at(start, elem, i64::from(pair.col));
            let pair = [sums[pair.index], sums[pair.index + 1]];
            self.store_pair(cg, inside, elem, address, pair);
        }
    }

    fn store_pair<'c>(
        &self,
        cg: &Cg<'c>,
        inside: [Val<'c>; 2],
        elem: Elem,
        address: Val<'c>,
        sums: [Val<'c>; 2],
    ) {
        // A pair goes together where both are inside; a lone first one by itself.
        let lone = cg.and(inside[0], cg.not(inside[1]));
        let second = cg.at(address, elem, 1);
        let mut sums = sums;
        if self.accumulate {
            let zeros = [cg.zero(elem.x(1)); 2];
            let old = if self.store != Store::Single {
                let both = memory::load_if(cg, inside[1], address, &zeros);
                let first = memory::load_if(cg, lone, address, &both[..1]);
                [first[0], both[1]]
            } else {
                let first = memory::load_if(cg, inside[0], address, &zeros[..1]);
                let second = memory::load_if(cg, inside[1], second, &zeros[1..]);
                [first[0], second[0]]
            };
            sums = [0, 1].map(|i| cg.add(cg.cast(old[i], Elem::F32), sums[i]));
        }
        let out = sums.map(|v| cg.cast(v, elem));
        if self.store != Store::Single {
            memory::store_if(cg, inside[1], &out, address);
            memory::store_if(cg, lone, &out[..1], address);
        } else {
            memory::store_if(cg, inside[0], &out[..1], address);
            memory::store_if(cg, inside[1], &out[1..], second);
        }
    }
}
