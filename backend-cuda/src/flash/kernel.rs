//! The frame of the kernel: its parameters, its shared memory, and which tiles a CTA takes.

use weft_codegen::emit::{Cg, Elem, Ty, Val};

use super::signature::{Argument, Bound, MapSpec, Signature, Tensor};
use super::template::Template;
use super::{Attention, TILE_QUERIES};
use crate::tiles::ring::{Place, Ring};
use crate::tiles::roles::{self, CONSUMER_WARPS, Reach, Registers};

/// Blocks of keys, and of values, that shared memory holds.
pub const STAGES: u32 = 2;
pub const BARRIERS_BYTES: u32 = 16 * (1 + 2 * STAGES);

pub const REGISTERS: Registers = Registers { producer: 24, consumer: 240 };

/// The values of a kernel's parameters.
pub struct Args<'c> {
    pub map_q: Vec<Val<'c>>,
    pub map_k: Vec<Val<'c>>,
    pub map_v: Val<'c>,
    pub o: Val<'c>,
    pub lse: Val<'c>,
    pub start: Option<Val<'c>>,
    /// Of queries and of keys.
    pub segments: Option<[Val<'c>; 2]>,
    pub batch: Val<'c>,
    pub heads: Val<'c>,
    pub queries: Val<'c>,
    pub keys: Val<'c>,
    pub heads_per_k: Vec<Val<'c>>,
    pub heads_per_v: Val<'c>,
    pub o_strides: [Val<'c>; 3],
    pub scale_log2: Val<'c>,
}

/// 128 queries of a head.
#[derive(Clone, Copy)]
pub struct Tile<'c> {
    pub batch: Val<'c>,
    pub head: Val<'c>,
    pub query: Val<'c>,
    /// What is added to a query's number to give the last key it sees.
    pub start: Val<'c>,
    /// Blocks of keys, at least one.
    pub n_blocks: Val<'c>,
}

/// Queries, keys and values on their way.
#[derive(Clone, Copy)]
pub struct Rings<'c> {
    pub q: Ring<'c>,
    pub k: Ring<'c>,
    pub v: Ring<'c>,
}

/// Where producer or consumer is in each.
#[derive(Clone, Copy)]
pub struct Places<'c> {
    pub q: Place<'c>,
    pub k: Place<'c>,
    pub v: Place<'c>,
}

pub const N_PLACES: usize = 6;

impl<'c> Places<'c> {
    pub fn first(cg: &Cg<'c>) -> Places<'c> {
        let first = Place::first(cg);
        Places { q: first, k: first, v: first }
    }

    pub fn of(values: &[Val<'c>]) -> Places<'c> {
        Places {
            q: Place::of(values),
            k: Place::of(&values[2..]),
            v: Place::of(&values[4..N_PLACES]),
        }
    }

    pub fn values(self) -> Vec<Val<'c>> {
        [self.q, self.k, self.v].iter().flat_map(|p| p.values()).collect()
    }
}

impl Template for Attention {
    fn name(&self) -> String {
        Attention::name(self)
    }

    fn check(&self) -> Result<(), String> {
        Attention::check(self)
    }

    fn signature(&self) -> Signature {
        use Argument::*;
        let n = self.parts.len();
        let q = (0..n).map(|i| (Tensor::Q(i), self.q_tile(i)));
        let k = (0..n).map(|i| (Tensor::K(i), self.k_tile(i)));
        let maps = q.chain(k).chain([(Tensor::V, self.v_tile())]);
        let maps = maps.map(|(of, tile)| (of, MapSpec::rows(tile)));
        let mut buffers = vec![O, Lse];
        buffers.extend(self.masks());
        let mut scalars = vec![Batch, Heads, Queries, Keys];
        scalars.extend((0..n).map(|i| HeadsPer(Tensor::K(i))));
        scalars.push(HeadsPer(Tensor::V));
        scalars.extend((0..3).map(OStride));
        scalars.push(ScaleLog2);
        Signature::new(maps, buffers, scalars)
    }

    fn shared_bytes(&self) -> u32 {
        let [q, k, v] = self.stage_bytes(self.block_keys());
        q + STAGES * (k + v) + BARRIERS_BYTES
    }

    fn body<'c>(&self, cg: &Cg<'c>, args: &Bound<'_, 'c>) {
        self.attend(cg, &self.args(args));
    }
}

impl Attention {
    /// The buffers that say which keys a query sees.
    pub(super) fn masks(&self) -> Vec<Argument> {
        let mut out = vec![];
        out.extend(self.offset.then_some(Argument::Start));
        if self.segments {
            out.extend([Argument::QuerySegments, Argument::KeySegments]);
        }
        out
    }

    fn args<'c>(&self, of: &Bound<'_, 'c>) -> Args<'c> {
        use Argument::*;
        let n = self.parts.len();
        Args {
            map_q: (0..n).map(|i| of.map(Tensor::Q(i))).collect(),
            map_k: (0..n).map(|i| of.map(Tensor::K(i))).collect(),
            map_v: of.map(Tensor::V),
            o: of.get(O),
            lse: of.get(Lse),
            start: of.find(Start),
            segments: self.segments.then(|| [of.get(QuerySegments), of.get(KeySegments)]),
            batch: of.size(Batch),
            heads: of.size(Heads),
            queries: of.size(Queries),
            keys: of.size(Keys),
            heads_per_k: (0..n).map(|i| of.size(HeadsPer(Tensor::K(i)))).collect(),
            heads_per_v: of.size(HeadsPer(Tensor::V)),
            o_strides: [0, 1, 2].map(|i| of.get(OStride(i))),
            scale_log2: of.f32(ScaleLog2),
        }
    }

    fn rings<'c>(&self, cg: &Cg<'c>) -> Rings<'c> {
        let shared = cg.dynamic_shared();
        let [q, k, v] = self.stage_bytes(self.block_keys());
        let (at_k, at_v) = (q, q + STAGES * k);
        let barriers = at_v + STAGES * v;
        let (after_q, after_k) = (Ring::barriers_bytes(1), Ring::barriers_bytes(STAGES));
        let ring = |at: u32, barriers: u32, n_stages: u32, stage_bytes: u32| Ring {
            stages: cg.add(shared, at as i32),
            barriers: cg.add(shared, barriers as i32),
            n_stages,
            stage_bytes,
            consumers: CONSUMER_WARPS,
            peer_barriers: None,
        };
        Rings {
            q: ring(0, barriers, 1, q),
            k: ring(at_k, barriers + after_q, STAGES, k),
            v: ring(at_v, barriers + after_q + after_k, STAGES, v),
        }
    }

    fn attend<'c>(&self, cg: &Cg<'c>, args: &Args<'c>) {
        let rings = self.rings(cg);
        let init = || [rings.q, rings.k, rings.v].iter().for_each(|ring| ring.init(cg));
        roles::specialised(
            cg,
            Reach::Cta,
            REGISTERS,
            init,
            || self.produce(cg, args, &rings),
            |consumer| self.consume(cg, args, &rings, consumer),
        );
    }

    /// Runs `body` for each tile of this CTA. Those of a head follow each other, which then share
    /// keys and values in the second-level cache; of a causal head the longest come first.
    pub fn each_tile<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        init: &[Val<'c>],
        body: impl FnOnce(Tile<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) {
        let step = cg.intrinsic("llvm.nvvm.read.ptx.sreg.nctaid.x", &[], &[], Ty::I32);
        let per_head = cg.div_ceil(args.queries, TILE_QUERIES as i32);
        let total = cg.mul(cg.mul(args.batch, args.heads), per_head);
        cg.for_(cg.cta_index(), total, step, init, |t, carried| {
            let (unit, back) = (cg.div(t, per_head), cg.rem(t, per_head));
            let (batch, head) = (cg.div(unit, args.heads), cg.rem(unit, args.heads));
            let n = cg.sub(cg.sub(per_head, 1), back);
            let query = cg.mul(n, TILE_QUERIES as i32);
            let start = args.start.map_or(cg.i32(0), |start| {
                cg.load(Ty::I32, cg.at(start, Elem::I32, cg.cast(batch, Elem::I64)))
            });
            let n_blocks = self.n_blocks(cg, args, query, start);
            body(Tile { batch, head, query, start, n_blocks }, carried)
        });
    }

    fn n_blocks<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        query: Val<'c>,
        start: Val<'c>,
    ) -> Val<'c> {
        let end = if self.causal {
            let last = cg.min(cg.add(query, TILE_QUERIES as i32), args.queries);
            cg.max(cg.min(cg.add(last, start), args.keys), 1)
        } else {
            args.keys
        };
        cg.div_ceil(end, self.block_keys() as i32)
    }
}
