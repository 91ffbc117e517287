//! The producer: one thread that keeps the ring full.
//!
//! Of an operand that two CTAs share each producer copies its part into both rings. It may, once
//! its own `empty` barrier says that the consumers of both are done with the stage; the bytes that
//! come to a stage are those of all operands, whoever copied them.

use weft_codegen::emit::{Cg, Val};

use super::kernel::Args;
use super::schedule::Tile;
use super::{Gemm, Operand};
use crate::ptx::{bulk, cluster};
use crate::tiles::ring::{Place, Ring};
use crate::tiles::shared::{Major, OperandTile};

impl Gemm {
    pub(super) fn produce<'c>(&self, cg: &Cg<'c>, args: &Args<'c>, ring: &Ring<'c>) {
        let rank = self.shares.map(|_| cluster::rank(cg));
        self.each_tile(cg, args, &Place::first(cg).values(), |tile, place| {
            let (first, end) = self.blocks(cg, &tile);
            cg.for_(first, end, 1, place, |block, place| {
                let place = Place::of(place);
                self.fill(cg, args, ring, rank, &tile, block, place);
                ring.next(cg, place).values().to_vec()
            })
        });
    }

    fn fill<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        ring: &Ring<'c>,
        rank: Option<Val<'c>>,
        tile: &Tile<'c>,
        block: Val<'c>,
        place: Place<'c>,
    ) {
        let (a, b) = (self.a_tile(), self.b_tile());
        let bytes = a.bytes() + self.n_products() as u32 * b.bytes();
        let (stage, full) = ring.acquire(cg, place, bytes);
        let (k, _) = self.terms(cg, tile, block);
        let [a_grouped, b_grouped] = self.grouped_operands();
        let group = |grouped: bool| grouped.then_some(tile.group);
        let part = |operand: Operand| {
            let rank = rank.filter(|_| self.shares == Some(operand));
            rank.map(|rank| OwnPart { rank, of: self.copiers(operand) })
        };
        let part_a = part(Operand::A);
        let a = Source { tile: a, map: args.map_a, part: part_a, group: group(a_grouped) };
        a.copy(cg, stage, full, [tile.row, k]);
        for (p, map) in args.map_b.iter().enumerate() {
            let to_b = cg.add(stage, self.b_offset_bytes(p) as i32);
            let part = part(Operand::B);
            let b = Source { tile: b, map: *map, part, group: group(b_grouped) };
            b.copy(cg, to_b, full, [tile.col, k]);
        }
    }
}

/// What is copied of an operand: the tile, or this CTA's part of it for all that share it.
struct Source<'c> {
    tile: OperandTile,
    map: Val<'c>,
    part: Option<OwnPart<'c>>,
    group: Option<Val<'c>>,
}

#[derive(Clone, Copy)]
struct OwnPart<'c> {
    rank: Val<'c>,
    of: u32,
}

impl<'c> Source<'c> {
    /// Copies the tile at `[row, k]` of the operand.
    fn copy(&self, cg: &Cg<'c>, to: Val<'c>, barrier: Val<'c>, [row, k]: [Val<'c>; 2]) {
        for copy in self.tile.copies() {
            let (row, k) = (cg.add(row, copy.row as i32), cg.add(k, copy.k as i32));
            let [inner, mut line] = match self.tile.major {
                Major::K => [k, row],
                Major::Rows => [row, k],
            };
            let mut to = cg.add(to, copy.bytes as i32);
            if let Some(OwnPart { rank, of }) = self.part {
                let part = self.tile.part(of);
                line = cg.add(line, cg.mul(rank, part.lines as i32));
                to = cg.add(to, cg.mul(rank, part.bytes as i32));
            }
            let at: Vec<Val> = [inner, line].into_iter().chain(self.group).collect();
            match self.part {
                None => bulk::load(cg, to, self.map, barrier, &at),
                Some(part) => {
                    let all = (1 << part.of) - 1;
                    bulk::load_multicast(cg, to, self.map, barrier, &at, all);
                }
            }
        }
    }
}
