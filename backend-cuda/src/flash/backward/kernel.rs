//! The frame of the kernel: its parameters, its shared memory, and which tiles a CTA takes.

use weft_codegen::emit::{Cg, Elem, Ty, Val};

use super::{Backward, TILE_ROWS};
use crate::flash::sight::Masks;
use crate::flash::signature::{Argument, Bound, MapSpec, Signature, Tensor};
use crate::flash::template::Template;
use crate::tiles::ring::Ring;
use crate::tiles::roles::{self, CONSUMER_WARPS, Reach, Registers};

pub const REGISTERS: Registers = Registers { producer: 40, consumer: 232 };

const _: () = assert!(REGISTERS.fit());

/// 128 queries, or keys, of a unit of heads.
#[derive(Clone, Copy)]
pub struct Tile<'c> {
    pub batch: Val<'c>,
    pub unit: Val<'c>,
    pub row: Val<'c>,
    /// Heads of q that meet it: from the first, so many.
    pub head: Val<'c>,
    pub n_heads: Val<'c>,
    /// What is added to a query's number to give the last key it sees.
    pub start: Val<'c>,
    /// Blocks of columns that it meets.
    pub blocks: [Val<'c>; 2],
}

/// The sizes a kernel always knows.
#[derive(Clone, Copy)]
pub struct Sizes<'c> {
    pub batch: Val<'c>,
    pub heads: Val<'c>,
    pub queries: Val<'c>,
    pub keys: Val<'c>,
    pub heads_per_unit: Val<'c>,
}

/// The kept tile, and blocks of what is moved, on their way.
#[derive(Clone, Copy)]
pub struct Rings<'c> {
    pub kept: Ring<'c>,
    pub moved: Ring<'c>,
}

impl Template for Backward {
    fn name(&self) -> String {
        Backward::name(self)
    }

    fn check(&self) -> Result<(), String> {
        Backward::check(self)
    }

    fn signature(&self) -> Signature {
        use Argument::*;
        let columns = self.columns();
        let maps = self.kept().into_iter().chain(self.moved(columns));
        let maps = maps.map(|(of, tile)| (of, MapSpec::rows(tile)));
        let mut buffers = vec![Statistics];
        let mut scalars = vec![Batch, Heads, Queries, Keys, Scale, ScaleLog2];
        scalars.extend((0..self.of.parts.len()).map(|i| HeadsPer(Tensor::K(i))));
        scalars.push(HeadsPer(Tensor::V));
        match self.keeps_keys() {
            true => scalars.push(HeadsPerUnit),
            false => {
                buffers.extend([O, Lse]);
                scalars.extend((0..3).map(OStride));
            }
        }
        for i in 0..self.made_widths().len() {
            buffers.push(Made(i));
            scalars.extend((0..3).map(|dim| MadeStride(i, dim)));
        }
        buffers.extend(self.of.masks());
        Signature::new(maps, buffers, scalars)
    }

    fn shared_bytes(&self) -> u32 {
        Backward::shared_bytes(self)
    }

    fn body<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>) {
        let rings = self.rings(cg);
        roles::specialised(
            cg,
            Reach::Cta,
            REGISTERS,
            || [rings.kept, rings.moved].iter().for_each(|ring| ring.init(cg)),
            || self.produce(cg, args, &rings),
            |consumer| self.consume(cg, args, &rings, consumer),
        );
    }
}

impl Backward {
    fn rings<'c>(&self, cg: &Cg<'c>) -> Rings<'c> {
        let shared = cg.dynamic_shared();
        let (columns, kept) = (self.columns(), self.kept_bytes());
        let (n_stages, stage) = (self.n_stages(columns), self.stage_bytes(columns));
        let barriers = kept + n_stages * stage;
        let ring = |at: u32, barriers: u32, n_stages: u32, stage_bytes: u32| Ring {
            stages: cg.add(shared, at as i32),
            barriers: cg.add(shared, barriers as i32),
            n_stages,
            stage_bytes,
            consumers: CONSUMER_WARPS,
            peer_barriers: None,
        };
        Rings {
            kept: ring(0, barriers, 1, kept),
            moved: ring(kept, barriers + Ring::barriers_bytes(1), n_stages, stage),
        }
    }

    pub(super) fn sizes<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>) -> Sizes<'c> {
        let heads_per_unit = match self.keeps_keys() {
            true => args.size(Argument::HeadsPerUnit),
            false => cg.i32(1),
        };
        Sizes {
            batch: args.size(Argument::Batch),
            heads: args.size(Argument::Heads),
            queries: args.size(Argument::Queries),
            keys: args.size(Argument::Keys),
            heads_per_unit,
        }
    }

    pub(super) fn tile_masks<'c>(
        &self,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        tile: &Tile<'c>,
    ) -> Masks<'c> {
        let of = |of: Argument| args.get(of);
        let segments =
            self.of.segments.then(|| [Argument::QuerySegments, Argument::KeySegments].map(of));
        let start = self.of.causal.then_some(tile.start);
        Masks { start, segments, batch: tile.batch, queries: sizes.queries, keys: sizes.keys }
    }

    /// Runs `body` for each tile of this CTA. Those of a unit follow each other, which then share
    /// what is moved in the second-level cache; of a causal one the longest come first.
    pub(super) fn each_tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        init: &[Val<'c>],
        body: impl FnOnce(&Sizes<'c>, Tile<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) {
        let sizes = self.sizes(cg, args);
        let step = cg.intrinsic("llvm.nvvm.read.ptx.sreg.nctaid.x", &[], &[], Ty::I32);
        let rows = if self.keeps_keys() { sizes.keys } else { sizes.queries };
        let per_unit = cg.div_ceil(rows, TILE_ROWS as i32);
        let units = cg.div(sizes.heads, sizes.heads_per_unit);
        let total = cg.mul(cg.mul(sizes.batch, units), per_unit);
        cg.for_(cg.cta_index(), total, step, init, |t, carried| {
            let (rest, n) = (cg.div(t, per_unit), cg.rem(t, per_unit));
            let (batch, unit) = (cg.div(rest, units), cg.rem(rest, units));
            let n = if self.keeps_keys() { n } else { cg.sub(cg.sub(per_unit, 1), n) };
            let row = cg.mul(n, TILE_ROWS as i32);
            let start = args.find(Argument::Start).map_or(cg.i32(0), |start| {
                cg.load(Ty::I32, cg.at(start, Elem::I32, cg.cast(batch, Elem::I64)))
            });
            let (head, n_heads) = (cg.mul(unit, sizes.heads_per_unit), sizes.heads_per_unit);
            let blocks = self.blocks(cg, &sizes, row, start);
            body(&sizes, Tile { batch, unit, row, head, n_heads, start, blocks }, carried)
        });
    }

    /// Blocks that some row of the tile sees.
    fn blocks<'c>(
        &self,
        cg: &Cg<'c>,
        sizes: &Sizes<'c>,
        row: Val<'c>,
        start: Val<'c>,
    ) -> [Val<'c>; 2] {
        let columns = self.columns() as i32;
        let (mut first, mut end) = (cg.i32(0), sizes.keys);
        if self.keeps_keys() {
            end = sizes.queries;
            if self.of.causal {
                first = cg.div(cg.max(cg.sub(row, start), 0), columns);
            }
        } else if self.of.causal {
            let last = cg.min(cg.add(row, TILE_ROWS as i32), sizes.queries);
            end = cg.max(cg.min(cg.add(last, start), sizes.keys), 0);
        }
        [first, cg.div_ceil(end, columns)]
    }
}
