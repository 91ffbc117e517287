//! What kernels of attention take, in the order of their parameters: tensor maps, buffers, scalars.

use weft_codegen::emit::{Cg, Elem, Param, Ty, Val};
use weft_codegen::object::{Cta, TensorMap};

use crate::tiles::roles::THREADS;
use crate::tiles::shared::{LINE_BYTES, OperandTile};

/// An operand that is copied in boxes: bf16 `[batch, rows, heads, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    /// Of a part of the score.
    Q(usize),
    K(usize),
    V,
    /// The derivative of the output.
    DO,
}

impl Tensor {
    /// Whether its rows are queries, not keys.
    pub fn of_queries(self) -> bool {
        matches!(self, Tensor::Q(_) | Tensor::DO)
    }
}

/// A parameter. Scalars are i64.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// Dims `[width, rows, heads, batch]`, innermost first.
    Map(Tensor, MapSpec),
    /// What the map is of; the kernel itself may not look.
    Data(Tensor),
    O,
    /// f32 `[batch, heads, queries]`.
    Lse,
    /// i32 `[batch]`.
    Start,
    /// i32 `[batch, queries]` and `[batch, keys]`.
    QuerySegments,
    KeySegments,
    /// i32 `[batch, pages of a request]`, where keys lie in pages of a pool, whose rows, one page
    /// after the other, are those of the maps.
    Pages,
    /// Numbers of queries that the derivative's kernels share; see there.
    Statistics,
    /// A derivative, by its place among those the kernel makes.
    Made(usize),
    /// Sums and statistics of pieces of the keys; see the decoding kernel.
    PartialO,
    PartialLse,
    Batch,
    /// Of queries.
    Heads,
    Queries,
    Keys,
    /// Query heads for each head of a k or v.
    HeadsPer(Tensor),
    /// Query heads whose derivatives one tile of keys sums.
    HeadsPerUnit,
    /// Keys of a piece.
    Chunk,
    /// Keys of a page, and pages of a request.
    PageKeys,
    PagesPerRequest,
    /// In elements, from one batch, row and head to the next.
    OStride(usize),
    MadeStride(usize, usize),
    /// The bits of an f32: the scale, and `scale · log2(e)`; positive.
    Scale,
    ScaleLog2,
    /// What the maps say of sizes: a dim, innermost first, and the bytes from one to the next of
    /// dims 1 to 3 (0 to 2).
    MapDim(Tensor, usize),
    MapStride(Tensor, usize),
}

/// Dims of every map.
const RANK: usize = 4;

/// A tensor map's box; lines are permuted within 128 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct MapSpec {
    pub box_dims: Vec<u32>,
    pub swizzle_bytes: u32,
}

impl MapSpec {
    /// Of a tile whose lines are rows.
    pub fn rows(tile: OperandTile) -> MapSpec {
        let [line, lines] = tile.box_dims();
        MapSpec { box_dims: vec![line, lines, 1, 1], swizzle_bytes: LINE_BYTES }
    }

    /// Of a tile whose lines are heads of one row.
    pub fn heads(tile: OperandTile) -> MapSpec {
        let [line, lines] = tile.box_dims();
        MapSpec { box_dims: vec![line, 1, lines, 1], swizzle_bytes: LINE_BYTES }
    }
}

impl Argument {
    fn param(&self) -> Param {
        use Argument::*;
        match self {
            Map(..) => Param::TensorMap,
            Data(_) | O | Lse | Start | QuerySegments | KeySegments | Pages | Statistics
            | Made(_) | PartialO | PartialLse => Param::Buffer,
            _ => Param::I64,
        }
    }
}

/// What a launch needs beside its arguments, on as many CTAs as one likes.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub name: String,
    pub arguments: Vec<Argument>,
    pub threads: u32,
    pub shared_bytes: u32,
}

/// A kernel's parameters: maps, the buffers behind them in the same order, other buffers, scalars,
/// and what the maps say of sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature(Vec<Argument>);

impl Signature {
    pub fn new(
        maps: impl IntoIterator<Item = (Tensor, MapSpec)>,
        buffers: impl IntoIterator<Item = Argument>,
        scalars: impl IntoIterator<Item = Argument>,
    ) -> Signature {
        let maps: Vec<(Tensor, MapSpec)> = maps.into_iter().collect();
        let mut all: Vec<Argument> =
            maps.iter().map(|(of, spec)| Argument::Map(*of, spec.clone())).collect();
        all.extend(maps.iter().map(|(of, _)| Argument::Data(*of)));
        all.extend(buffers);
        all.extend(scalars);
        for (tensor, _) in maps {
            all.extend((0..RANK).map(|dim| Argument::MapDim(tensor, dim)));
            all.extend((0..RANK - 1).map(|dim| Argument::MapStride(tensor, dim)));
        }
        Signature(all)
    }

    pub fn launch(&self, name: String, shared_bytes: u32) -> Launch {
        Launch { name, arguments: self.0.clone(), threads: THREADS, shared_bytes }
    }

    pub fn arguments(&self) -> &[Argument] {
        &self.0
    }

    pub fn params(&self) -> Vec<Param> {
        self.0.iter().map(Argument::param).collect()
    }

    /// What the launch must know of the CTAs.
    pub fn cta(&self, shared_bytes: u32) -> Cta {
        let first = self.0.iter().position(|a| a.param() == Param::I64).unwrap_or(self.0.len());
        let scalar = |wanted: Argument| (self.place(&wanted) - first) as u32;
        let maps = self.0.iter().filter_map(|a| match a {
            Argument::Map(tensor, spec) => Some((*tensor, spec)),
            _ => None,
        });
        let map = |(i, (tensor, spec)): (usize, (Tensor, &MapSpec))| TensorMap {
            buffer: i as u32,
            is_bytes: false,
            dims: (0..RANK).map(|dim| scalar(Argument::MapDim(tensor, dim))).collect(),
            strides_bytes: (0..RANK - 1)
                .map(|dim| scalar(Argument::MapStride(tensor, dim)))
                .collect(),
            box_dims: spec.box_dims.clone(),
            swizzle_bytes: spec.swizzle_bytes,
        };
        Cta {
            threads: THREADS,
            dynamic_shared_bytes: shared_bytes,
            grid_max: None,
            cluster: None,
            begins_early: false,
            hopper14: false,
            maps: maps.enumerate().map(map).collect(),
        }
    }

    /// The parameters' values, to be asked for by name.
    pub fn bind<'s, 'c>(&'s self, cg: &'s Cg<'c>, values: &'s [Val<'c>]) -> Bound<'s, 'c> {
        Bound { signature: self, cg, values }
    }

    fn place(&self, wanted: &Argument) -> usize {
        let at = self.0.iter().position(|a| a == wanted);
        at.unwrap_or_else(|| panic!("no parameter {wanted:?}"))
    }
}

/// A kernel's parameters inside the kernel.
pub struct Bound<'s, 'c> {
    signature: &'s Signature,
    cg: &'s Cg<'c>,
    values: &'s [Val<'c>],
}

impl<'c> Bound<'_, 'c> {
    pub fn get(&self, wanted: Argument) -> Val<'c> {
        self.values[self.signature.place(&wanted)]
    }

    pub fn find(&self, wanted: Argument) -> Option<Val<'c>> {
        let at = self.signature.0.iter().position(|a| *a == wanted);
        at.map(|i| self.values[i])
    }

    pub fn map(&self, of: Tensor) -> Val<'c> {
        let is = |a: &Argument| matches!(a, Argument::Map(tensor, _) if *tensor == of);
        let at = self.signature.0.iter().position(is);
        self.values[at.unwrap_or_else(|| panic!("no map of {of:?}"))]
    }

    /// A size that fits 32 bits.
    pub fn size(&self, wanted: Argument) -> Val<'c> {
        self.cg.cast(self.get(wanted), Elem::I32)
    }

    pub fn f32(&self, wanted: Argument) -> Val<'c> {
        self.cg.bitcast(self.size(wanted), Ty::F32)
    }
}
