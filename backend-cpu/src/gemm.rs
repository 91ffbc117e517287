//! Matrix products, `C[m, n] (+)= Σ_k A[m, k] · B[k, n]`, summed in f32.
//!
//! Operands are f32 or bf16 with any row and column stride, so that a transposed operand needs no
//! copy. A product may be a batch, or grouped by i32 offsets `[groups + 1]` that are data:
//! [`Form::Rows`] segments the rows of A and C, each with its own B (the experts of a mixture);
//! [`Form::Inner`] segments the sum, each segment giving its own C (their weight gradients). Empty
//! segments are fine.
//!
//! Every element of C is one chain of fused multiply-adds in the order of k (in the `gemv` of a
//! k-contiguous B: one chain a lane, lanes added pairwise). So a row does not depend on how many
//! rows there are, on tiles, or on threads. With `bf16_dot` a step of the chain is a pair of
//! products.
//!
//! Envelope: `2 m n k` flops; the roof is 2 vector FMAs a cycle. Tiles of at most 384 x 512 are
//! packed into the calling thread's scratch, 256 words of k at a time, so that the micro-kernel (12
//! x 2 vectors of AVX-512, 6 x 2 of AVX2) reads A from the second-level cache and B from the first.
//! A tile of R rows and C columns copies an element of A for each C and one of B for each R
//! multiply-adds; packing is not shared between tiles, which saves a pass over memory and a
//! barrier. At most 4 rows run as `gemv`, at the speed of memory, unpacked.
//!
//! Measured with `bench/gemm.rs` on one core of a Zen 5 (64 flops a cycle in f32), in GFLOP/s,
//! beside numpy's OpenBLAS, which takes its AVX-512 kernels there (docs/measurements/cpu.md has
//! more):
//!
//! | m x n x k | f32 | bf16 | OpenBLAS |
//! |---|---|---|---|
//! | 256 x 256 x 256 | 250 | 502 | 244 |
//! | 512 x 512 x 512 | 247 | 515 | 259 |
//! | 1024 x 1024 x 1024 | 250 | 504 | 244 |
//! | 2048 x 2048 x 2048 | 232 | 469 | 244 |
//! | 500 x 256 x 256, B transposed | 252 | 506 | 238 |
//! | 1 x 2048 x 2048, B transposed | 35 | 58 | 5 |

mod gemv;
mod micro;
mod pack;
mod plan;
pub mod scaled;
mod tile;

use std::sync::Arc;

use weft_codegen::emit::{Cg, Elem, Val};

pub use plan::plan;
pub use weft_lower::describe::product::{Epilogue, Form, Gemm, Matrix, Planned, Position};

/// Which stride of an operand is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Unit {
    /// Elements of a row are consecutive.
    Col,
    /// Elements of a column are consecutive.
    Row,
    Neither,
}

/// What a kernel's code depends on: all else comes as scalars.
#[derive(Clone)]
pub(crate) struct Shape {
    pub a: Elem,
    pub b: Elem,
    pub c: Elem,
    pub a_unit: Unit,
    pub b_unit: Unit,
    pub c_unit: Unit,
    pub grouping: Grouping,
    pub accumulate: bool,
    pub epilogue: Option<Arc<dyn Epilogue>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// Also a single product: a batch of one.
    Batch,
    Rows,
    Inner,
}

/// The arguments of every kernel here, by name.
pub(crate) struct Args<'c> {
    pub a: Val<'c>,
    pub b: Val<'c>,
    pub c: Val<'c>,
    /// i32 `[groups + 1]`; absent from a batch.
    pub offsets: Option<Val<'c>>,
    pub m: Val<'c>,
    pub n: Val<'c>,
    pub k: Val<'c>,
    /// Row and column strides, in elements.
    pub a_strides: [Val<'c>; 2],
    pub b_strides: [Val<'c>; 2],
    pub c_strides: [Val<'c>; 2],
    pub groups: Val<'c>,
    /// Strides from group to group of A, B, C.
    pub group_strides: [Val<'c>; 3],
    /// Largest tile.
    pub tile_rows: Val<'c>,
    pub tile_cols: Val<'c>,
    /// Blocks of the launch.
    pub grid: Val<'c>,
    pub extra_buffers: Vec<Val<'c>>,
    pub extra_scalars: Vec<Val<'c>>,
}

pub(crate) const N_SCALARS: usize = 16;

impl<'c> Args<'c> {
    /// Those of a kernel whose first buffers are A, B and C, without an epilogue's.
    pub fn of(kernel: &weft_codegen::emit::Kernel<'c>, offsets: Option<Val<'c>>) -> Args<'c> {
        let s = &kernel.scalars;
        Args {
            a: kernel.buffers[0],
            b: kernel.buffers[1],
            c: kernel.buffers[2],
            offsets,
            m: s[0],
            n: s[1],
            k: s[2],
            a_strides: [s[3], s[4]],
            b_strides: [s[5], s[6]],
            c_strides: [s[7], s[8]],
            groups: s[9],
            group_strides: [s[10], s[11], s[12]],
            tile_rows: s[13],
            tile_cols: s[14],
            grid: s[15],
            extra_buffers: vec![],
            extra_scalars: vec![],
        }
    }
}

impl Shape {
    pub fn n_buffers(&self) -> usize {
        3 + usize::from(self.grouping != Grouping::Batch)
    }

    /// Emits the kernel's frame around `body`.
    pub fn kernel<'c>(
        &self,
        cg: &Cg<'c>,
        name: &str,
        body: impl FnOnce(&weft_codegen::emit::Kernel<'c>, &Args<'c>),
    ) {
        let (extra_buffers, extra_scalars) =
            self.epilogue.as_ref().map_or((0, 0), |e| (e.n_buffers(), e.n_scalars()));
        let n_buffers = self.n_buffers();
        cg.kernel(name, n_buffers + extra_buffers, N_SCALARS + extra_scalars, |k| {
            let offsets = (n_buffers == 4).then(|| k.buffers[3]);
            let args = Args {
                extra_buffers: k.buffers[n_buffers..].to_vec(),
                extra_scalars: k.scalars[N_SCALARS..].to_vec(),
                ..Args::of(k, offsets)
            };
            body(k, &args);
        });
    }
}

/// One product of the batch or of the groups: sizes and where it starts.
#[derive(Clone, Copy)]
pub(crate) struct Group<'c> {
    pub index: Val<'c>,
    pub m: Val<'c>,
    pub k: Val<'c>,
    pub a: Val<'c>,
    pub b: Val<'c>,
    pub c: Val<'c>,
    /// Row of C that the group's row 0 is, for the epilogue.
    pub first_row: Val<'c>,
}

impl Shape {
    pub fn group<'c>(&self, cg: &Cg<'c>, args: &Args<'c>, index: Val<'c>) -> Group<'c> {
        let moved = |ptr, elem, count, stride| cg.at(ptr, elem, cg.mul(count, stride));
        let [a_group, b_group, c_group] = args.group_strides;
        let b = moved(args.b, self.b, index, b_group);
        let c = moved(args.c, self.c, index, c_group);
        let zero = cg.i64(0);
        let bounds = args.offsets.map(|offsets| {
            let at = |i| {
                cg.cast(
                    cg.load(weft_codegen::emit::Ty::I32, cg.at(offsets, Elem::I32, i)),
                    Elem::I64,
                )
            };
            let first = at(index);
            (first, cg.sub(at(cg.add(index, 1)), first))
        });
        match (self.grouping, bounds) {
            (Grouping::Rows, Some((first, m))) => Group {
                index,
                m,
                k: args.k,
                a: moved(args.a, self.a, first, args.a_strides[0]),
                b,
                c: moved(args.c, self.c, first, args.c_strides[0]),
                first_row: first,
            },
            (Grouping::Inner, Some((first, k))) => Group {
                index,
                m: args.m,
                k,
                a: moved(args.a, self.a, first, args.a_strides[1]),
                b: moved(args.b, self.b, first, args.b_strides[0]),
                c,
                first_row: zero,
            },
            _ => Group {
                index,
                m: args.m,
                k: args.k,
                a: moved(args.a, self.a, index, a_group),
                b,
                c,
                first_row: zero,
            },
        }
    }

    /// Adds C's old value, applies the epilogue and stores the columns from `col` on of one row.
    pub fn finish<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        group: &Group<'c>,
        (row, col): (Val<'c>, Val<'c>),
        mask: Option<Val<'c>>,
        acc: Val<'c>,
    ) {
        let [row_stride, col_stride] = args.c_strides;
        let ty = acc.ty.with(self.c);
        let start = cg.at(group.c, self.c, cg.mul(row, row_stride));
        let lane_at = |lane: u32| {
            let column = cg.add(col, i64::from(lane));
            cg.at(start, self.c, cg.mul(column, col_stride))
        };
        let in_lanes = |lane: u32, f: &dyn Fn()| match mask {
            Some(mask) => cg.when(cg.lane(mask, lane), f),
            None => f(),
        };
        let unit = self.c_unit == Unit::Col;
        let at = cg.at(start, self.c, col);
        let mut acc = acc;
        if self.accumulate {
            let old = if unit {
                cg.load_tail(ty, at, mask)
            } else {
                (0..ty.lanes).fold(cg.zero(ty), |v, lane| {
                    let inside = mask.map_or(cg.i1(true), |m| cg.lane(m, lane));
                    cg.if_else(
                        inside,
                        || vec![cg.insert(v, cg.load(self.c.x(1), lane_at(lane)), lane)],
                        || vec![v],
                    )[0]
                })
            };
            acc = cg.add(cg.cast(old, Elem::F32), acc);
        }
        if let Some(epilogue) = &self.epilogue {
            let position = Position {
                row: cg.add(group.first_row, row),
                col,
                group: group.index,
                mask,
                buffers: args.extra_buffers.clone(),
                scalars: args.extra_scalars.clone(),
            };
            acc = epilogue.apply(cg, &position, acc);
        }
        let out = cg.cast(acc, self.c);
        if unit {
            return cg.store_tail(out, at, mask);
        }
        for lane in 0..ty.lanes {
            in_lanes(lane, &|| cg.store(cg.lane(out, lane), lane_at(lane)));
        }
    }
}
