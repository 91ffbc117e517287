//! The frame of the kernel: its parameters, its shared memory, and who does what in a CTA.

use weft_codegen::emit::{Cg, Cmp, Elem, Param, Val};
use weft_codegen::object::KernelSource;

use super::{Gemm, Grouping, Kind, Store, TILE_ROWS};
use crate::ptx::sync;
use crate::tiles::ring::Ring;
use crate::tiles::shared::{LINE_BYTES, Major, OperandTile, PERIOD_BYTES};

/// Two warpgroups that multiply, and one of which a thread copies.
const CONSUMER_WARPS: u32 = 8;
pub const THREADS: u32 = 384;

/// Registers of a thread: 65,536 are shared by 384. A consumer holds `BN` sums (twice as many
/// with scales), what it needs to address them, and scales.
const PRODUCER_REGISTERS: u32 = 40;
const CONSUMER_REGISTERS: u32 = 232;

/// What a CTA may ask of shared memory.
const SHARED_BYTES_MAX: u32 = 227 * 1024;
/// More stages hide no more than the latency of memory.
const STAGES_MAX: u32 = 8;

/// The values of a kernel's parameters.
#[derive(Clone)]
pub struct Args<'c> {
    pub map_a: Val<'c>,
    pub map_b: Val<'c>,
    /// C's address, or its tensor map.
    pub c: Val<'c>,
    /// i32: `[groups + 1]` of `Rows` and `Inner`, counts `[groups]` of `Masked`.
    pub offsets: Option<Val<'c>>,
    /// Of A and B.
    pub scales: Option<[Val<'c>; 2]>,
    pub m: Val<'c>,
    pub n: Val<'c>,
    pub k: Val<'c>,
    pub groups: Val<'c>,
    /// In elements of C.
    pub c_row_stride: Val<'c>,
    pub c_group_stride: Val<'c>,
    /// In scales, of A and B: from row (or group of rows) to the next, from block of k to the next,
    /// from group to group.
    pub scale_strides: Option<[[Val<'c>; 3]; 2]>,
    pub extra: Vec<Val<'c>>,
}

/// What a launch passes, in the order of the parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    MapA(MapSpec),
    MapB(MapSpec),
    /// C, by address or by tensor map.
    C,
    MapC(MapSpec),
    Offsets,
    ScalesA,
    ScalesB,
    /// i32.
    M,
    N,
    K,
    Groups,
    /// i64, in elements.
    CRowStride,
    CGroupStride,
    /// i64, in scales: of A (0) or B (1), along rows (0), k (1) or groups (2).
    ScaleStride(usize, usize),
    /// The epilogue's own, by position.
    Extra(usize),
}

/// A tensor map: what the launch must say of the tensor. Dims innermost first.
#[derive(Clone, Debug, PartialEq)]
pub struct MapSpec {
    pub element: MapElement,
    /// Whether the inner dim is k (then rows) or rows (then k); of C its columns are k.
    pub major: Major,
    /// A third dim counts groups.
    pub grouped: bool,
    /// One for each dim.
    pub box_dims: Vec<u32>,
    /// Bytes within which 16-byte chunks are permuted: of a line of the box.
    pub swizzle_bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapElement {
    Byte,
    Bf16,
}

/// What a launch of the kernel needs beside its arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub name: String,
    pub arguments: Vec<Argument>,
    pub threads: u32,
    pub shared_bytes: u32,
}

impl Gemm {
    /// Stages that fit.
    pub fn n_stages(&self) -> u32 {
        let free = SHARED_BYTES_MAX - PERIOD_BYTES - self.staging_bytes();
        (free / (self.stage_bytes() + 2 * 8)).min(STAGES_MAX)
    }

    pub(super) fn stage_bytes(&self) -> u32 {
        self.a_tile().bytes() + self.b_tile().bytes().next_multiple_of(PERIOD_BYTES)
    }

    /// The kernel, to be compiled.
    pub fn source(&self, label: &str) -> KernelSource {
        let (gemm, name) = (self.clone(), self.name());
        KernelSource::new(name, label, move |cg: &Cg| gemm.emit(cg))
    }

    /// How it is launched, on as many CTAs as one likes.
    pub fn launch(&self) -> Launch {
        Launch {
            name: self.name(),
            arguments: self.arguments(),
            threads: THREADS,
            shared_bytes: self.barriers_offset_bytes() + Ring::barriers_bytes(self.n_stages()),
        }
    }

    fn map(&self, tile: OperandTile, grouped: bool) -> MapSpec {
        let mut box_dims = tile.box_dims().to_vec();
        box_dims.extend(grouped.then_some(1));
        let element = match tile.kind {
            Kind::Bf16 => MapElement::Bf16,
            Kind::E4m3 => MapElement::Byte,
        };
        MapSpec { element, major: tile.major, grouped, box_dims, swizzle_bytes: LINE_BYTES }
    }

    /// From the start of shared memory, behind the stages and C's staging.
    fn barriers_offset_bytes(&self) -> u32 {
        self.n_stages() * self.stage_bytes() + self.staging_bytes()
    }

    /// Whether A's and B's tensors have a dim of groups.
    pub(super) fn grouped_operands(&self) -> [bool; 2] {
        match self.grouping {
            Grouping::Batch | Grouping::Masked => [true, true],
            Grouping::Rows => [false, true],
            Grouping::Inner => [false, false],
        }
    }

    fn arguments(&self) -> Vec<Argument> {
        use Argument::*;
        let [a, b] = self.grouped_operands();
        let c = match self.store {
            Store::Tensor => MapC(self.c_map()),
            Store::Single | Store::Paired => C,
        };
        let mut out = vec![MapA(self.map(self.a_tile(), a)), MapB(self.map(self.b_tile(), b)), c];
        if self.grouping != Grouping::Batch {
            out.push(Offsets);
        }
        if self.scales.is_some() {
            out.extend([ScalesA, ScalesB]);
        }
        out.extend([M, N, K, Groups, CRowStride, CGroupStride]);
        if self.scales.is_some() {
            out.extend((0..6).map(|i| ScaleStride(i / 3, i % 3)));
        }
        let n_extra = self.epilogue.as_ref().map_or(0, |e| e.params().len());
        out.extend((0..n_extra).map(Extra));
        out
    }

    fn params(&self) -> Vec<Param> {
        let extra = self.epilogue.as_ref().map(|e| e.params()).unwrap_or_default();
        let param = |a: &Argument| match a {
            Argument::MapA(_) | Argument::MapB(_) | Argument::MapC(_) => Param::TensorMap,
            Argument::C | Argument::Offsets | Argument::ScalesA | Argument::ScalesB => {
                Param::Buffer
            }
            Argument::M | Argument::N | Argument::K | Argument::Groups => Param::I32,
            Argument::CRowStride | Argument::CGroupStride | Argument::ScaleStride(..) => Param::I64,
            Argument::Extra(i) => extra[*i],
        };
        self.arguments().iter().map(param).collect()
    }

    fn args<'c>(&self, values: &[Val<'c>]) -> Args<'c> {
        let mut values = values.iter().copied();
        let mut next = || values.next().expect("a value for each parameter");
        let (map_a, map_b, c) = (next(), next(), next());
        let offsets = (self.grouping != Grouping::Batch).then(&mut next);
        let scales = self.scales.map(|_| [next(), next()]);
        let (m, n, k, groups) = (next(), next(), next(), next());
        let (c_row_stride, c_group_stride) = (next(), next());
        let scale_strides =
            self.scales.map(|_| [[next(), next(), next()], [next(), next(), next()]]);
        Args {
            map_a,
            map_b,
            c,
            offsets,
            scales,
            m,
            n,
            k,
            groups,
            c_row_stride,
            c_group_stride,
            scale_strides,
            extra: values.collect(),
        }
    }

    fn emit(&self, cg: &Cg<'_>) {
        if let Err(why) = self.check() {
            panic!("{why}");
        }
        cg.device_kernel(&self.name(), THREADS, &self.params(), |values| {
            self.body(cg, &self.args(values));
        });
    }

    fn body<'c>(&self, cg: &Cg<'c>, args: &Args<'c>) {
        let stages = cg.dynamic_shared();
        let (n_stages, stage_bytes) = (self.n_stages(), self.stage_bytes());
        let ring = Ring {
            stages,
            barriers: cg.add(stages, self.barriers_offset_bytes() as i32),
            n_stages,
            stage_bytes,
            consumers: CONSUMER_WARPS,
        };
        let thread = cg.thread_index();
        let warp = sync::uniform(cg, cg.lshr(thread, 5));
        cg.when(cg.cmp(Cmp::Eq, thread, 0), || {
            ring.init(cg);
            sync::fence_init(cg);
        });
        sync::cta_barrier(cg);
        let produces = cg.cmp(Cmp::Ge, warp, CONSUMER_WARPS as i32);
        cg.if_else(
            produces,
            || {
                sync::release_registers(cg, PRODUCER_REGISTERS);
                cg.when(cg.cmp(Cmp::Eq, warp, CONSUMER_WARPS as i32), || {
                    cg.when(sync::elect(cg), || self.produce(cg, args, &ring));
                });
                vec![]
            },
            || {
                sync::take_registers(cg, CONSUMER_REGISTERS);
                let staging = cg.add(stages, (n_stages * stage_bytes) as i32);
                self.consume(cg, args, &ring, staging, thread, warp);
                vec![]
            },
        );
    }

    /// Terms of k in a stage.
    pub(super) fn stage_k(&self) -> i32 {
        self.a_tile().k as i32
    }

    /// Blocks of a stage's terms that a tile needs, counted from the start of the array.
    pub(super) fn blocks<'c>(
        &self,
        cg: &Cg<'c>,
        tile: &super::schedule::Tile<'c>,
    ) -> (Val<'c>, Val<'c>) {
        let k = self.stage_k();
        (cg.div(tile.k_begin, k), cg.div_ceil(tile.k_end, k))
    }
}

/// A thread's lane.
pub fn lane<'c>(cg: &Cg<'c>, thread: Val<'c>) -> Val<'c> {
    cg.and(thread, 31)
}

/// An i32 count times an i64 stride.
pub fn strided<'c>(cg: &Cg<'c>, count: Val<'c>, stride: Val<'c>) -> Val<'c> {
    cg.mul(cg.cast(count, Elem::I64), stride)
}

const _: () = assert!(TILE_ROWS == CONSUMER_WARPS * 16);
const _: () = assert!(128 * PRODUCER_REGISTERS + 256 * CONSUMER_REGISTERS <= 65_536);
