//! The frame of the kernel: its parameters, its shared memory, and who does what in a CTA.

use weft_codegen::emit::{Cg, Elem, Param, Ty, Val};
use weft_codegen::object::{Cta, KernelSource, TensorMap};

use super::{Gemm, Grouping, Kind, Operand, Store, TILE_ROWS};
use crate::ptx::cluster;
use crate::tiles::ring::Ring;
use crate::tiles::roles::{self, CONSUMER_WARPS, Reach, Registers, THREADS};
use crate::tiles::shared::{LINE_BYTES, Major, PERIOD_BYTES};

/// A consumer holds `BN` sums (twice as many with scales), what it needs to address them, and
/// scales.
const REGISTERS: Registers = Registers { producer: 40, consumer: 232 };

/// What a CTA may ask of shared memory.
const SHARED_BYTES_MAX: u32 = 227 * 1024;
/// More stages hide no more than the latency of memory.
const STAGES_MAX: u32 = 8;

/// The values of a kernel's parameters.
#[derive(Clone)]
pub struct Args<'c> {
    pub map_a: Val<'c>,
    /// Of each product, as all of B's.
    pub map_b: Vec<Val<'c>>,
    /// C's address, or its tensor map, where it is stored.
    pub c: Vec<Option<Val<'c>>>,
    /// i32: `[groups + 1]` of `Rows` and `Inner`, counts `[groups]` of `Masked`.
    pub offsets: Option<Val<'c>>,
    /// Of A, and of each B; none of numbers without.
    pub scales: Vec<Val<'c>>,
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

/// What an entry takes, in the order of its parameters: tensor maps, buffers, scalars (i64).
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    MapA(MapSpec),
    /// Of a product.
    MapB(usize, MapSpec),
    MapC(MapSpec),
    A,
    B(usize),
    C(usize),
    ScalesA,
    ScalesB(usize),
    /// i32.
    Offsets,
    /// An epilogue's buffer, by position among its parameters.
    ExtraBuffer(usize),
    M,
    N,
    K,
    Groups,
    /// In elements.
    CRowStride,
    CGroupStride,
    /// In scales: of A (0) or B (1), along rows (0), k (1) or groups (2).
    ScaleStride(usize, usize),
    /// What the maps say of sizes; the kernel itself does not look. Of A (0), B (1) or C (2): a
    /// dim, innermost first.
    MapDim(usize, usize),
    /// In bytes, from one to the next of dim 1 (0) or 2 (1).
    MapStride(usize, usize),
    /// An epilogue's scalar.
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
    /// CTAs of a cluster along the grid, which has whole ones.
    pub cluster: u32,
}

impl Gemm {
    /// Stages that fit.
    pub fn n_stages(&self) -> u32 {
        let free = SHARED_BYTES_MAX - PERIOD_BYTES - self.staging_bytes();
        (free / (self.stage_bytes() + 2 * 8)).min(STAGES_MAX)
    }

    pub(super) fn stage_bytes(&self) -> u32 {
        self.b_offset_bytes(self.n_products())
    }

    /// From the start of a stage to product `p`'s B.
    pub(super) fn b_offset_bytes(&self, p: usize) -> u32 {
        self.a_tile().bytes() + p as u32 * self.b_tile().bytes().next_multiple_of(PERIOD_BYTES)
    }

    /// The kernel, to be compiled.
    pub fn source(&self, label: &str) -> KernelSource {
        let (gemm, name) = (self.clone(), self.name());
        let source = KernelSource::new(name, label, move |cg: &Cg| gemm.emit(cg));
        KernelSource { cta: self.cta(), ..source }
    }

    /// How it is launched, on as many CTAs, or clusters of them, as one likes.
    pub fn launch(&self) -> Launch {
        Launch {
            name: self.name(),
            arguments: self.arguments(),
            threads: THREADS,
            shared_bytes: self.barriers_offset_bytes() + Ring::barriers_bytes(self.n_stages()),
            cluster: self.cluster_ctas(),
        }
    }

    fn map(&self, operand: Operand, grouped: bool) -> MapSpec {
        let tile = match operand {
            Operand::A => self.a_tile(),
            Operand::B => self.b_tile(),
        };
        let [line, _] = tile.box_dims();
        let mut box_dims = vec![line, tile.part(self.copiers(operand)).lines];
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

    /// The tensor maps: parameter, buffer, what it says of it, and whose sizes it has (A's, B's or
    /// C's).
    fn maps(&self) -> Vec<(Argument, Argument, MapSpec, usize)> {
        use Argument::*;
        let [a, b] = self.grouped_operands();
        let (a, b) = (self.map(Operand::A, a), self.map(Operand::B, b));
        let mut out = vec![(MapA(a.clone()), A, a, 0)];
        out.extend((0..self.n_products()).map(|p| (MapB(p, b.clone()), B(p), b.clone(), 1)));
        if self.store == Store::Tensor {
            let c = self.c_map();
            out.push((MapC(c.clone()), C(0), c, 2));
        }
        out
    }

    fn arguments(&self) -> Vec<Argument> {
        use Argument::*;
        let maps = self.maps();
        let extra = self.epilogue.as_ref().map(|e| e.params()).unwrap_or_default();
        let extra_of = |buffer: bool| {
            let of =
                extra.iter().enumerate().filter(move |(_, p)| (**p == Param::Buffer) == buffer);
            of.map(|(i, _)| i).collect::<Vec<_>>()
        };
        let mut out = vec![];
        let products = 0..self.n_products();
        out.extend(maps.iter().map(|(map, ..)| map.clone()));
        out.push(A);
        out.extend(products.clone().map(B));
        out.extend(products.clone().filter(|p| self.keeps(*p)).map(C));
        if self.scales.is_some() {
            out.push(ScalesA);
            out.extend(products.map(ScalesB));
        }
        out.extend((self.grouping != Grouping::Batch).then_some(Offsets));
        out.extend(extra_of(true).into_iter().map(ExtraBuffer));
        out.extend([M, N, K, Groups, CRowStride, CGroupStride]);
        if self.scales.is_some() {
            out.extend((0..6).map(|i| ScaleStride(i / 3, i % 3)));
        }
        let mut sizes: Vec<(usize, MapSpec)> = vec![];
        for (_, _, spec, of) in maps {
            if sizes.iter().all(|(known, _)| *known != of) {
                sizes.push((of, spec));
            }
        }
        for (of, spec) in sizes {
            let rank = spec.box_dims.len();
            out.extend((0..rank).map(|i| MapDim(of, i)));
            out.extend((1..rank).map(|i| MapStride(of, i - 1)));
        }
        out.extend(extra_of(false).into_iter().map(Extra));
        out
    }

    fn args<'c>(&self, cg: &Cg<'c>, values: &[Val<'c>]) -> Args<'c> {
        let arguments = self.arguments();
        let find = |wanted: &dyn Fn(&Argument) -> bool| {
            arguments.iter().position(wanted).map(|i| values[i])
        };
        let is = |argument: Argument| find(&|a| *a == argument);
        let named = |argument: Argument| {
            let name = format!("{argument:?}");
            is(argument).unwrap_or_else(|| panic!("no parameter {name}"))
        };
        let size = |argument: Argument| cg.cast(named(argument), Elem::I32);
        let map_c = find(&|a| matches!(a, Argument::MapC(_)));
        let products = 0..self.n_products();
        let scales_b = products.clone().filter_map(|p| is(Argument::ScalesB(p)));
        let stride = |side: usize| [0, 1, 2].map(|i| named(Argument::ScaleStride(side, i)));
        let extra = self.epilogue.as_ref().map(|e| e.params()).unwrap_or_default();
        let extra = extra.iter().enumerate().map(|(i, param)| {
            let raw = is(Argument::ExtraBuffer(i)).or_else(|| is(Argument::Extra(i)));
            let raw = raw.unwrap_or_else(|| panic!("no parameter {i} of the epilogue"));
            match param {
                Param::F32 => cg.bitcast(cg.cast(raw, Elem::I32), Ty::F32),
                Param::I32 => cg.cast(raw, Elem::I32),
                Param::I64 | Param::Buffer | Param::TensorMap => raw,
            }
        });
        Args {
            map_a: values[0],
            map_b: products.clone().map(|p| values[1 + p]).collect(),
            c: products.clone().map(|p| map_c.or_else(|| is(Argument::C(p)))).collect(),
            offsets: is(Argument::Offsets),
            scales: is(Argument::ScalesA).into_iter().chain(scales_b).collect(),
            m: size(Argument::M),
            n: size(Argument::N),
            k: size(Argument::K),
            groups: size(Argument::Groups),
            c_row_stride: named(Argument::CRowStride),
            c_group_stride: named(Argument::CGroupStride),
            scale_strides: self.scales.map(|_| [stride(0), stride(1)]),
            extra: extra.collect(),
        }
    }

    fn params(&self) -> Vec<Param> {
        use Argument::*;
        let param = |a: &Argument| match a {
            MapA(_) | MapB(..) | MapC(_) => Param::TensorMap,
            A | B(_) | C(_) | ScalesA | ScalesB(_) | Offsets | ExtraBuffer(_) => Param::Buffer,
            _ => Param::I64,
        };
        self.arguments().iter().map(param).collect()
    }

    /// What the launch must know of the CTAs.
    fn cta(&self) -> Cta {
        let arguments = self.arguments();
        let (n_maps, is_scalar) = (self.maps().len(), |p: &Param| *p == Param::I64);
        let params = self.params();
        let first = params.iter().position(is_scalar).unwrap_or(params.len());
        let scalar = |wanted: Argument| {
            let at = arguments.iter().position(|a| *a == wanted).unwrap_or(first);
            (at - first) as u32
        };
        let buffer = |wanted: &Argument| {
            let at = arguments.iter().position(|a| a == wanted).unwrap_or(n_maps);
            (at - n_maps) as u32
        };
        let map = |(_, of_buffer, spec, of): (Argument, Argument, MapSpec, usize)| TensorMap {
            buffer: buffer(&of_buffer),
            is_bytes: spec.element == MapElement::Byte,
            dims: (0..spec.box_dims.len()).map(|i| scalar(Argument::MapDim(of, i))).collect(),
            strides_bytes: (1..spec.box_dims.len())
                .map(|i| scalar(Argument::MapStride(of, i - 1)))
                .collect(),
            box_dims: spec.box_dims,
            swizzle_bytes: spec.swizzle_bytes,
        };
        debug_assert!(params[..n_maps].iter().all(|p| *p == Param::TensorMap));
        Cta {
            threads: THREADS,
            dynamic_shared_bytes: self.launch().shared_bytes,
            grid_max: None,
            cluster: self.shares.map(|_| self.cluster_ctas()),
            begins_early: false,
            hopper14: self.hopper14.is_some(),
            maps: self.maps().into_iter().map(map).collect(),
        }
    }

    fn emit(&self, cg: &Cg<'_>) {
        if let Err(why) = self.check() {
            panic!("{why}");
        }
        cg.device_kernel(&self.name(), THREADS, &self.params(), |values| {
            if self.shares.is_some() {
                cg.require_clusters(self.cluster_ctas());
            }
            self.body(cg, &self.args(cg, values));
        });
    }

    fn body<'c>(&self, cg: &Cg<'c>, args: &Args<'c>) {
        let stages = cg.dynamic_shared();
        let (n_stages, stage_bytes) = (self.n_stages(), self.stage_bytes());
        let barriers = cg.add(stages, self.barriers_offset_bytes() as i32);
        let in_peer = |at: Val<'c>| cluster::address_in(cg, cg.xor(cluster::rank(cg), 1), at);
        let ring = Ring {
            stages,
            barriers,
            n_stages,
            stage_bytes,
            consumers: CONSUMER_WARPS,
            peer_barriers: self.shares.map(|_| in_peer(barriers)),
        };
        roles::specialised(
            cg,
            if self.shares.is_some() { Reach::Cluster } else { Reach::Cta },
            REGISTERS,
            || ring.init(cg),
            || self.produce(cg, args, &ring),
            |consumer| {
                let staging = cg.add(stages, (n_stages * stage_bytes) as i32);
                self.consume(cg, args, &ring, staging, consumer);
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

    /// Where the tile's terms of a block begin, and how many they are. A stage begins with them.
    pub(super) fn terms<'c>(
        &self,
        cg: &Cg<'c>,
        tile: &super::schedule::Tile<'c>,
        block: Val<'c>,
    ) -> (Val<'c>, Val<'c>) {
        let start = cg.mul(block, self.stage_k());
        let end = cg.min(cg.add(start, self.stage_k()), tile.k_end);
        let first = match self.grouping {
            Grouping::Inner => cg.max(start, tile.k_begin),
            _ => start,
        };
        (first, cg.sub(end, first))
    }
}

/// An i32 count times an i64 stride.
pub fn strided<'c>(cg: &Cg<'c>, count: Val<'c>, stride: Val<'c>) -> Val<'c> {
    cg.mul(cg.cast(count, Elem::I64), stride)
}

const _: () = assert!(TILE_ROWS == CONSUMER_WARPS * 16);
const _: () = assert!(REGISTERS.fit());
