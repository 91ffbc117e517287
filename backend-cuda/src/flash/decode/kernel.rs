//! The frame of the kernel: its parameters, its shared memory, and which tiles a CTA takes.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val};

use super::{BLOCK_KEYS, Decode, TILE_HEADS};
use crate::flash::backward::kernel::REGISTERS;
use crate::flash::signature::{Argument, Bound, MapSpec, Signature};
use crate::flash::template::Template;
use crate::tiles::ring::{Place, Ring};
use crate::tiles::roles::{self, CONSUMER_WARPS, Reach};

/// 64 heads of a query, over a piece of the keys.
#[derive(Clone, Copy)]
pub struct Tile<'c> {
    pub batch: Val<'c>,
    pub query: Val<'c>,
    pub head: Val<'c>,
    pub piece: Val<'c>,
    /// Its keys: from the first to before the end; whole blocks from the first on.
    pub first: Val<'c>,
    pub end: Val<'c>,
    /// At least one.
    pub n_blocks: Val<'c>,
}

/// The sizes a kernel knows.
#[derive(Clone, Copy)]
pub struct Sizes<'c> {
    pub batch: Val<'c>,
    pub heads: Val<'c>,
    pub queries: Val<'c>,
    pub keys: Val<'c>,
}

/// Queries, and blocks of keys, on their way; and shared memory between the warpgroups.
#[derive(Clone, Copy)]
pub struct Shared<'c> {
    pub q: Ring<'c>,
    /// Of each block the left half of the values and the right one, each let go of by the
    /// warpgroup that multiplies it, 0 or 1. Both are in the same stages, and a block has the same
    /// place in both.
    pub halves: [Ring<'c>; 2],
    pub exchange: Val<'c>,
}

impl<'c> Shared<'c> {
    /// The place of the block after the one at `place`.
    pub fn next(&self, cg: &Cg<'c>, place: Place<'c>) -> Place<'c> {
        self.halves[0].next(cg, place)
    }

    /// The address of a block.
    pub fn stage(&self, cg: &Cg<'c>, place: Place<'c>) -> Val<'c> {
        self.halves[0].stage(cg, place.stage)
    }
}

impl Template for Decode {
    fn name(&self) -> String {
        Decode::name(self)
    }

    fn check(&self) -> Result<(), String> {
        Decode::check(self)
    }

    fn signature(&self) -> Signature {
        use Argument::*;
        let q = self.q_tiles().into_iter().map(|(of, tile)| (of, MapSpec::heads(tile)));
        let k = self.k_tiles().into_iter().map(|(of, tile)| (of, MapSpec::rows(tile)));
        let mut scalars = vec![Batch, Heads, Queries, Keys, ScaleLog2];
        let mut buffers = match self.split {
            true => vec![PartialO, PartialLse],
            false => vec![O, Lse],
        };
        match self.split {
            true => scalars.push(Chunk),
            false => scalars.extend((0..3).map(OStride)),
        }
        buffers.extend(self.offset.then_some(Start));
        if self.paged {
            buffers.push(Pages);
            scalars.extend([PageKeys, PagesPerRequest]);
        }
        Signature::new(q.chain(k), buffers, scalars)
    }

    fn shared_bytes(&self) -> u32 {
        Decode::shared_bytes(self)
    }

    fn body<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>) {
        let shared = self.shared(cg);
        roles::specialised(
            cg,
            Reach::Cta,
            REGISTERS,
            || {
                shared.q.init(cg);
                shared.halves.iter().for_each(|ring| ring.init(cg));
            },
            || self.produce(cg, args, &shared),
            |consumer| self.consume(cg, args, &shared, consumer),
        );
    }
}

impl Decode {
    fn shared<'c>(&self, cg: &Cg<'c>) -> Shared<'c> {
        let shared = cg.dynamic_shared();
        let at = |bytes: u32| cg.add(shared, bytes as i32);
        let (q, k) = (self.barriers_at(), self.barriers_at() + Ring::barriers_bytes(1));
        let n_stages = self.n_stages();
        let blocks = |barriers: u32| Ring {
            stages: at(self.q_bytes()),
            barriers: at(barriers),
            n_stages,
            stage_bytes: self.stage_bytes(),
            consumers: CONSUMER_WARPS / 2,
            peer_barriers: None,
        };
        Shared {
            q: Ring {
                stages: at(0),
                barriers: at(q),
                n_stages: 1,
                stage_bytes: self.q_bytes(),
                consumers: CONSUMER_WARPS,
                peer_barriers: None,
            },
            halves: [0, Ring::barriers_bytes(n_stages)].map(|right| blocks(k + right)),
            exchange: at(self.exchange_at()),
        }
    }

    pub(super) fn sizes<'c>(&self, args: &Bound<'_, 'c>) -> Sizes<'c> {
        Sizes {
            batch: args.size(Argument::Batch),
            heads: args.size(Argument::Heads),
            queries: args.size(Argument::Queries),
            keys: args.size(Argument::Keys),
        }
    }

    /// Runs `body` for each tile of this CTA that has keys. Tiles of the same keys follow each
    /// other, which then read them from the second-level cache.
    pub(super) fn each_tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        init: &[Val<'c>],
        body: impl FnOnce(&Sizes<'c>, Tile<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) {
        let sizes = self.sizes(args);
        let chunk = match self.split {
            true => args.size(Argument::Chunk),
            false => cg.max(sizes.keys, 1),
        };
        let step = cg.intrinsic("llvm.nvvm.read.ptx.sreg.nctaid.x", &[], &[], Ty::I32);
        let (pieces, tiles) =
            (cg.div_ceil(sizes.keys, chunk), cg.div_ceil(sizes.heads, TILE_HEADS as i32));
        let per_query = cg.mul(pieces, tiles);
        let total = cg.mul(cg.mul(sizes.batch, sizes.queries), per_query);
        cg.for_(cg.cta_index(), total, step, init, |t, carried| {
            let (request, within) = (cg.div(t, per_query), cg.rem(t, per_query));
            let (batch, query) = (cg.div(request, sizes.queries), cg.rem(request, sizes.queries));
            let (piece, tile) = (cg.div(within, tiles), cg.rem(within, tiles));
            let end = self.keys_end(cg, args, &sizes, batch, query);
            let first = cg.mul(piece, chunk);
            let end = cg.min(end, cg.add(first, chunk));
            let n_blocks = cg.max(cg.div_ceil(cg.sub(end, first), BLOCK_KEYS as i32), 1);
            let head = cg.mul(tile, TILE_HEADS as i32);
            let tile = Tile { batch, query, head, piece, first, end, n_blocks };
            // The first piece says that there are none where there are no keys at all.
            let live = cg.or(cg.cmp(Cmp::Lt, first, end), cg.cmp(Cmp::Eq, piece, 0));
            cg.if_else(live, || body(&sizes, tile, carried), || carried.to_vec())
        });
    }

    /// The keys that a query sees are those before this one.
    fn keys_end<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Bound<'_, 'c>,
        sizes: &Sizes<'c>,
        batch: Val<'c>,
        query: Val<'c>,
    ) -> Val<'c> {
        if !self.causal {
            return sizes.keys;
        }
        let start = args.find(Argument::Start).map_or(cg.i32(0), |start| {
            cg.load(Ty::I32, cg.at(start, Elem::I32, cg.cast(batch, Elem::I64)))
        });
        cg.max(cg.min(cg.add(cg.add(query, start), 1), sizes.keys), 0)
    }

    /// The first key of a block.
    pub(super) fn block_key<'c>(&self, cg: &Cg<'c>, tile: &Tile<'c>, block: Val<'c>) -> Val<'c> {
        cg.add(tile.first, cg.mul(block, BLOCK_KEYS as i32))
    }
}
