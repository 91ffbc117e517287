//! The frame of the kernel: its parameters, its shared memory, and which tiles a CTA takes.

use weft_codegen::emit::{Cg, Cmp, Elem, Param, Ty, Val};
use weft_codegen::object::{Cta, KernelSource, TensorMap};

use super::{Attention, TILE_QUERIES};
use crate::ptx::sync;
use crate::tiles::ring::{Place, Ring};
use crate::tiles::shared::LINE_BYTES;

/// Blocks of keys, and of values, that shared memory holds.
pub const STAGES: u32 = 2;
pub const BARRIERS_BYTES: u32 = 16 * (1 + 2 * STAGES);

const CONSUMER_WARPS: u32 = 8;
const THREADS: u32 = 384;
const PRODUCER_REGISTERS: u32 = 24;
const CONSUMER_REGISTERS: u32 = 240;

const _: () = assert!(128 * PRODUCER_REGISTERS + 256 * CONSUMER_REGISTERS <= 65_536);

/// What an entry takes, in the order of its parameters: tensor maps, buffers, scalars (i64).
/// Elements of all tensors are bf16.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// Dims `[width, rows, heads, batch]`, innermost first.
    MapQ(usize, MapSpec),
    MapK(usize, MapSpec),
    MapV(MapSpec),
    Q(usize),
    K(usize),
    V,
    O,
    /// f32 `[batch, heads, queries]`.
    Lse,
    /// i32 `[batch]`.
    Start,
    /// i32 `[batch, queries]` and `[batch, keys]`.
    QuerySegments,
    KeySegments,
    Batch,
    Heads,
    Queries,
    Keys,
    /// Query heads for each head of a k, or of v.
    HeadsPerK(usize),
    HeadsPerV,
    /// In elements: of o, from one batch, row and head to the next.
    OStride(usize),
    /// The bits of an f32: `scale · log2(e)`, positive.
    ScaleLog2,
    /// What the maps say of sizes; the kernel itself does not look. Of the `n`-th map: a dim,
    /// innermost first, and the bytes from one to the next of dims 1 to 3 (0 to 2).
    MapDim(usize, usize),
    MapStride(usize, usize),
}

/// Dims of every map.
const RANK: usize = 4;

/// A tensor map's box; lines are permuted within 128 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct MapSpec {
    pub box_dims: Vec<u32>,
    pub swizzle_bytes: u32,
}

/// What a launch needs beside its arguments, on as many CTAs as one likes.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub name: String,
    pub arguments: Vec<Argument>,
    pub threads: u32,
    pub shared_bytes: u32,
}

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

impl Attention {
    /// The kernel, to be compiled.
    pub fn source(&self, label: &str) -> KernelSource {
        let (attention, name) = (self.clone(), self.name());
        let source = KernelSource::new(name, label, move |cg: &Cg| attention.emit(cg));
        KernelSource { cta: self.cta(), ..source }
    }

    pub fn launch(&self) -> Launch {
        let [q, k, v] = self.stage_bytes(self.block_keys());
        Launch {
            name: self.name(),
            arguments: self.arguments(),
            threads: THREADS,
            shared_bytes: q + STAGES * (k + v) + BARRIERS_BYTES,
        }
    }

    pub(super) fn arguments(&self) -> Vec<Argument> {
        use Argument::*;
        let map = |[line, lines]: [u32; 2]| MapSpec {
            box_dims: vec![line, lines, 1, 1],
            swizzle_bytes: LINE_BYTES,
        };
        let n = self.parts.len();
        let mut out: Vec<Argument> = vec![];
        out.extend((0..n).map(|i| MapQ(i, map(self.q_tile(i).box_dims()))));
        out.extend((0..n).map(|i| MapK(i, map(self.k_tile(i).box_dims()))));
        out.push(MapV(map(self.v_tile().box_dims())));
        out.extend((0..n).map(Q));
        out.extend((0..n).map(K));
        out.extend([V, O, Lse]);
        out.extend(self.offset.then_some(Start));
        if self.segments {
            out.extend([QuerySegments, KeySegments]);
        }
        out.extend([Batch, Heads, Queries, Keys]);
        out.extend((0..n).map(HeadsPerK));
        out.push(HeadsPerV);
        out.extend((0..3).map(OStride));
        out.push(ScaleLog2);
        for map in 0..2 * n + 1 {
            out.extend((0..RANK).map(|dim| MapDim(map, dim)));
            out.extend((0..RANK - 1).map(|dim| MapStride(map, dim)));
        }
        out
    }

    fn params(&self) -> Vec<Param> {
        use Argument::*;
        let param = |a: &Argument| match a {
            MapQ(..) | MapK(..) | MapV(_) => Param::TensorMap,
            Q(_) | K(_) | V | O | Lse | Start | QuerySegments | KeySegments => Param::Buffer,
            _ => Param::I64,
        };
        self.arguments().iter().map(param).collect()
    }

    /// What the launch must know of the CTAs.
    fn cta(&self) -> Cta {
        let arguments = self.arguments();
        let params = self.params();
        let first = params.iter().position(|p| *p == Param::I64).unwrap_or(params.len());
        let scalar = |wanted: Argument| {
            let at = arguments.iter().position(|a| *a == wanted).unwrap_or(first);
            (at - first) as u32
        };
        let specs = arguments.iter().filter_map(|a| match a {
            Argument::MapQ(_, spec) | Argument::MapK(_, spec) | Argument::MapV(spec) => Some(spec),
            _ => None,
        });
        let map = |(i, spec): (usize, &MapSpec)| TensorMap {
            // q, k and v are the first buffers, in the order of their maps.
            buffer: i as u32,
            is_bytes: false,
            dims: (0..RANK).map(|dim| scalar(Argument::MapDim(i, dim))).collect(),
            strides_bytes: (0..RANK - 1).map(|dim| scalar(Argument::MapStride(i, dim))).collect(),
            box_dims: spec.box_dims.clone(),
            swizzle_bytes: spec.swizzle_bytes,
        };
        Cta {
            threads: THREADS,
            dynamic_shared_bytes: self.launch().shared_bytes,
            grid_max: None,
            maps: specs.enumerate().map(map).collect(),
        }
    }

    fn args<'c>(&self, cg: &Cg<'c>, values: &[Val<'c>]) -> Args<'c> {
        use Argument::*;
        let arguments = self.arguments();
        let named = |wanted: Argument| {
            let at = arguments.iter().position(|a| *a == wanted);
            values[at.unwrap_or_else(|| panic!("no parameter {wanted:?}"))]
        };
        let size = |wanted: Argument| cg.cast(named(wanted), Elem::I32);
        let n = self.parts.len();
        Args {
            map_q: values[..n].to_vec(),
            map_k: values[n..2 * n].to_vec(),
            map_v: values[2 * n],
            o: named(O),
            lse: named(Lse),
            start: self.offset.then(|| named(Start)),
            segments: self.segments.then(|| [named(QuerySegments), named(KeySegments)]),
            batch: size(Batch),
            heads: size(Heads),
            queries: size(Queries),
            keys: size(Keys),
            heads_per_k: (0..n).map(|i| size(HeadsPerK(i))).collect(),
            heads_per_v: size(HeadsPerV),
            o_strides: [0, 1, 2].map(|i| named(OStride(i))),
            scale_log2: cg.bitcast(size(ScaleLog2), Ty::F32),
        }
    }

    fn emit(&self, cg: &Cg<'_>) {
        if let Err(why) = self.check() {
            panic!("{why}");
        }
        cg.device_kernel(&self.name(), THREADS, &self.params(), |values| {
            self.body(cg, &self.args(cg, values));
        });
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
        };
        Rings {
            q: ring(0, barriers, 1, q),
            k: ring(at_k, barriers + after_q, STAGES, k),
            v: ring(at_v, barriers + after_q + after_k, STAGES, v),
        }
    }

    fn body<'c>(&self, cg: &Cg<'c>, args: &Args<'c>) {
        let rings = self.rings(cg);
        let thread = cg.thread_index();
        let warp = sync::uniform(cg, cg.lshr(thread, 5));
        cg.when(cg.cmp(Cmp::Eq, thread, 0), || {
            rings.q.init(cg);
            rings.k.init(cg);
            rings.v.init(cg);
            sync::fence_init(cg);
        });
        sync::cta_barrier(cg);
        cg.if_else(
            cg.cmp(Cmp::Ge, warp, CONSUMER_WARPS as i32),
            || {
                sync::release_registers(cg, PRODUCER_REGISTERS);
                cg.when(cg.cmp(Cmp::Eq, warp, CONSUMER_WARPS as i32), || {
                    cg.when(sync::elect(cg), || self.produce(cg, args, &rings));
                });
                vec![]
            },
            || {
                sync::take_registers(cg, CONSUMER_REGISTERS);
                self.consume(cg, args, &rings, thread, warp);
                vec![]
            },
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
