//! Kernels of ops that are not "each element from some elements": sorting by id, sums of segments,
//! the largest of a row, appending to a cache.
//!
//! All are deterministic: a kernel either has one block, or its blocks write different places.

use weft_ir::dim::{Dim, SymId};
use weft_ir::ty::DType;

use super::columns::EncodeColumns;
use super::graph::Groups;
use super::{pack12, scalar, warps};
use crate::emit::{Cg, Cmp, Elem, Frame, Kernel, Model, Ty, Val, WARP};

/// A whole op with its sizes; buffers are the operands, then the results.
#[derive(Clone, PartialEq, Debug)]
pub enum WholeKernel {
    Sort {
        n: Dim,
        groups: Dim,
    },
    Invert {
        n: Dim,
    },
    EncodeColumns(EncodeColumns),
    Pack12 {
        n: Dim,
    },
    Unpack12 {
        n: Dim,
    },
    SegmentSum {
        groups: Dim,
        width: Dim,
        dtype: DType,
    },
    Topk {
        rows: Dim,
        n: u64,
        k: u64,
        groups: Option<Groups>,
        dtype: DType,
    },
    /// The buffers are x, start, the pages if there are any, and the cache.
    CacheAppend {
        rows: Dim,
        s: Dim,
        /// Those of a row of the cache, or of a page.
        positions: Dim,
        width: Dim,
        dtype: DType,
        pages: Option<Pages>,
    },
}

/// The pages of a cache that is a pool of them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pages {
    /// Those of a request.
    pub of_request: Dim,
    pub pool: Dim,
}

/// Rows or places of a block.
const BLOCK: i64 = 16;
const PLACES: i64 = 4096;
/// Threads and warps of a CTA, on a target that has them.
const THREADS: u32 = 128;
const WARPS: i64 = (THREADS / WARP) as i64;

impl WholeKernel {
    pub fn name(&self) -> &'static str {
        match self {
            WholeKernel::Sort { .. } => "sort_ids",
            WholeKernel::Invert { .. } => "invert_order",
            WholeKernel::EncodeColumns(_) => "encode_columns",
            WholeKernel::Pack12 { .. } => "pack_e5m6",
            WholeKernel::Unpack12 { .. } => "unpack_e5m6",
            WholeKernel::SegmentSum { .. } => "segment_sum",
            WholeKernel::Topk { .. } => "topk",
            WholeKernel::CacheAppend { .. } => "cache_append",
        }
    }

    pub fn n_buffers(&self) -> usize {
        match self {
            WholeKernel::Sort { .. } => 3,
            WholeKernel::EncodeColumns(e) => e.n_operands() + 2,
            WholeKernel::CacheAppend { pages, .. } => 3 + usize::from(pages.is_some()),
            WholeKernel::Invert { .. }
            | WholeKernel::Topk { .. }
            | WholeKernel::Pack12 { .. }
            | WholeKernel::Unpack12 { .. } => 2,
            WholeKernel::SegmentSum { .. } => 4,
        }
    }

    /// The sizes it is told.
    fn dims(&self) -> Vec<Dim> {
        match self {
            WholeKernel::Sort { n, groups } => vec![*n, *groups],
            WholeKernel::Invert { n } | WholeKernel::Pack12 { n } | WholeKernel::Unpack12 { n } => {
                vec![*n]
            }
            WholeKernel::SegmentSum { groups, width, .. } => vec![*groups, *width],
            WholeKernel::Topk { rows, .. } => vec![*rows],
            WholeKernel::EncodeColumns(e) => vec![e.lead],
            WholeKernel::CacheAppend { rows, s, positions, width, pages, .. } => {
                let of_pages = pages.iter().flat_map(|p| [p.of_request, p.pool]);
                [*rows, *s, *positions, *width].into_iter().chain(of_pages).collect()
            }
        }
    }

    /// Symbol products its scalars hold.
    pub fn scalars(&self) -> Vec<Vec<SymId>> {
        let dims = self.dims().into_iter();
        let mut all: Vec<Vec<SymId>> =
            dims.map(|d| d.symbols().collect()).filter(|s: &Vec<SymId>| !s.is_empty()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// On a target with threads: the units of work there are, how many of them a CTA does, and its
    /// threads. A warp does a unit, or each thread some by itself.
    pub fn cta_grid(&self) -> (Dim, i64, u32) {
        let units = match self {
            WholeKernel::Sort { groups, .. } => *groups,
            _ => self.grid().0,
        };
        let per_cta = match self.is_for_warps() {
            true => WARPS,
            false => self.thread_units() * i64::from(THREADS),
        };
        (units, per_cta, THREADS)
    }

    fn is_for_warps(&self) -> bool {
        match self {
            WholeKernel::Sort { .. }
            | WholeKernel::EncodeColumns(_)
            | WholeKernel::SegmentSum { .. }
            | WholeKernel::CacheAppend { .. } => true,
            WholeKernel::Invert { .. }
            | WholeKernel::Pack12 { .. }
            | WholeKernel::Unpack12 { .. }
            | WholeKernel::Topk { .. } => false,
        }
    }

    fn thread_units(&self) -> i64 {
        match self {
            // Codes lie in pairs.
            WholeKernel::Pack12 { .. } | WholeKernel::Unpack12 { .. } => 2,
            _ => 1,
        }
    }

    /// How many units of work there are, and how many of them a block does.
    pub fn grid(&self) -> (Dim, i64) {
        match self {
            WholeKernel::Sort { .. } => (Dim::fixed(1), 1),
            WholeKernel::Invert { n } => (*n, PLACES),
            WholeKernel::Pack12 { n } | WholeKernel::Unpack12 { n } => (*n, pack12::BLOCK),
            WholeKernel::SegmentSum { groups, .. } => (*groups, BLOCK),
            WholeKernel::Topk { rows, .. } => (*rows, BLOCK),
            WholeKernel::EncodeColumns(e) => (e.units().unwrap_or(Dim::fixed(1)), 1),
            WholeKernel::CacheAppend { rows, .. } => (*rows, BLOCK),
        }
    }

    pub fn scratch_bytes(&self) -> u64 {
        match self {
            // One key for each element and group, rounded up to the widest vector.
            WholeKernel::Topk { n, groups, .. } => {
                let padded = |n: u64| n.next_multiple_of(PAD) * 4;
                padded(*n) + groups.map_or(0, |g| padded(g.count))
            }
            _ => 0,
        }
    }

    pub fn emit(&self, cg: &Cg, name: &str) {
        let symbols = self.scalars();
        let by_warp = cg.target.model == Model::Simt && self.is_for_warps();
        let frame = match by_warp {
            true => Frame::ctas(THREADS),
            false => Frame::threads(THREADS, self.scratch_bytes()),
        };
        let per = match cg.target.model {
            Model::Cpu => self.grid().1,
            Model::Simt => self.thread_units(),
        };
        cg.framed_kernel(name, frame, self.n_buffers(), symbols.len(), |k| {
            let size = |d: Dim| {
                let of: Vec<SymId> = d.symbols().collect();
                match symbols.iter().position(|s| *s == of) {
                    None => cg.i64(d.coeff() as i64),
                    Some(i) => cg.mul(k.scalars[i], d.coeff() as i64),
                }
            };
            match self {
                _ if by_warp => {
                    let n = size(self.cta_grid().0);
                    warps::units(cg, k, n, WARPS, |unit, lane| {
                        self.of_warp(cg, k, &size, (unit, lane));
                    });
                }
                WholeKernel::Sort { n, groups } => {
                    units(cg, k, cg.i64(1), per, |_| sort(cg, k, size(*n), size(*groups)));
                }
                WholeKernel::Invert { n } => {
                    let n = size(*n);
                    units(cg, k, n, per, |i| invert(cg, k, n, i));
                }
                WholeKernel::EncodeColumns(e) => {
                    let n = e.units().unwrap_or(Dim::fixed(1));
                    units(cg, k, size(n), per, |unit| e.unit(cg, k, unit, None));
                }
                WholeKernel::Pack12 { n } | WholeKernel::Unpack12 { n } => {
                    let n = size(*n);
                    let first = cg.mul(k.begin, per);
                    let end = cg.min(cg.mul(k.end, per), n);
                    match self {
                        WholeKernel::Pack12 { .. } => pack12::pack(cg, k, (first, end)),
                        _ => pack12::unpack(cg, k, (first, end)),
                    }
                }
                WholeKernel::SegmentSum { groups, width, dtype } => {
                    let cols = size(*width);
                    units(cg, k, size(*groups), per, |g| {
                        segment_sum(cg, k, cols, *dtype, g);
                    });
                }
                WholeKernel::Topk { rows, n, k: count, groups, dtype } => {
                    let top = Topk { cg, kernel: k, n: *n, k: *count, dtype: *dtype };
                    units(cg, k, size(*rows), per, |r| top.row(r, *groups));
                }
                WholeKernel::CacheAppend { rows, .. } => {
                    let cache = self.cache(&size);
                    units(cg, k, size(*rows), per, |r| append(cg, k, r, &cache));
                }
            }
        });
    }
}

impl WholeKernel {
    /// A unit of the kernels that warps do.
    fn of_warp<'c>(
        &self,
        cg: &Cg<'c>,
        k: &Kernel<'c>,
        size: &dyn Fn(Dim) -> Val<'c>,
        at: (Val<'c>, Val<'c>),
    ) {
        match self {
            WholeKernel::Sort { n, groups } => {
                warps::sort_group(cg, k, (size(*n), size(*groups)), at);
            }
            WholeKernel::EncodeColumns(e) => e.unit(cg, k, at.0, Some(at.1)),
            WholeKernel::SegmentSum { width, dtype, .. } => {
                warps::segment_sum(cg, k, size(*width), *dtype, at);
            }
            WholeKernel::CacheAppend { .. } => warps::append(cg, k, &self.cache(size), at),
            WholeKernel::Invert { .. }
            | WholeKernel::Pack12 { .. }
            | WholeKernel::Unpack12 { .. }
            | WholeKernel::Topk { .. } => unreachable!("a thread does a unit of {}", self.name()),
        }
    }
}

/// The sizes of an append.
pub(super) struct Cache<'c> {
    s: Val<'c>,
    positions: Val<'c>,
    pub width: Val<'c>,
    pub dtype: DType,
    /// Of a request, and of the pool.
    pages: Option<[Val<'c>; 2]>,
}

impl WholeKernel {
    fn cache<'c>(&self, size: &dyn Fn(Dim) -> Val<'c>) -> Cache<'c> {
        let WholeKernel::CacheAppend { s, positions, width, dtype, pages, .. } = self else {
            unreachable!("{} appends to no cache", self.name())
        };
        Cache {
            s: size(*s),
            positions: size(*positions),
            width: size(*width),
            dtype: *dtype,
            pages: pages.map(|p| [size(p.of_request), size(p.pool)]),
        }
    }
}

impl<'c> Cache<'c> {
    /// What `row` of x becomes, where it has a place: `write` gets the row of the cache, and the
    /// cache itself.
    pub fn place(
        &self,
        cg: &Cg<'c>,
        k: &Kernel<'c>,
        row: Val<'c>,
        write: impl FnOnce(Val<'c>, Val<'c>),
    ) {
        let start = k.buffers[1];
        let (b, at) = (cg.div(row, self.s), cg.rem(row, self.s));
        let position = cg.add(load_i32(cg, start, b), at);
        let Some([of_request, pool]) = self.pages else {
            return cg.when(within(cg, position, self.positions), || {
                write(cg.add(cg.mul(b, self.positions), position), k.buffers[2]);
            });
        };
        let (table, cache) = (k.buffers[2], k.buffers[3]);
        cg.when(within(cg, position, cg.mul(of_request, self.positions)), || {
            let nth = cg.div(position, self.positions);
            let page = load_i32(cg, table, cg.add(cg.mul(b, of_request), nth));
            cg.when(within(cg, page, pool), || {
                let first = cg.mul(page, self.positions);
                write(cg.add(first, cg.rem(position, self.positions)), cache);
            });
        });
    }
}

/// The units of this call's blocks, `per` a block.
fn units<'c>(cg: &Cg<'c>, k: &Kernel<'c>, n: Val<'c>, per: i64, body: impl FnOnce(Val<'c>)) {
    let end = cg.min(cg.mul(k.end, per), n);
    cg.for_each(cg.mul(k.begin, per), end, 1, body);
}

fn load_i32<'c>(cg: &Cg<'c>, ptr: Val<'c>, at: Val<'c>) -> Val<'c> {
    cg.cast(cg.load(Ty::I32, cg.at(ptr, Elem::I32, at)), Elem::I64)
}

fn store_i32<'c>(cg: &Cg<'c>, v: Val<'c>, ptr: Val<'c>, at: Val<'c>) {
    cg.store(cg.cast(v, Elem::I32), cg.at(ptr, Elem::I32, at));
}

/// `0 <= i < n`.
fn within<'c>(cg: &Cg<'c>, i: Val<'c>, n: Val<'c>) -> Val<'c> {
    cg.and(cg.cmp(Cmp::Ge, i, 0), cg.cmp(Cmp::Lt, i, n))
}

/// Counting sort. Counts stand two places up, so that filling a group moves its start to the next
/// one's.
fn sort<'c>(cg: &Cg<'c>, k: &Kernel<'c>, n: Val<'c>, groups: Val<'c>) {
    let [ids, offsets, order] = [k.buffers[0], k.buffers[1], k.buffers[2]];
    let zero = cg.i64(0);
    cg.for_each(zero, cg.add(groups, 1), 1, |g| store_i32(cg, cg.i64(0), offsets, g));
    cg.for_each(zero, n, 1, |i| {
        let id = load_i32(cg, ids, i);
        cg.when(within(cg, id, cg.sub(groups, 1)), || {
            let at = cg.add(id, 2);
            store_i32(cg, cg.add(load_i32(cg, offsets, at), 1), offsets, at);
        });
    });
    cg.for_(cg.i64(2), cg.add(groups, 1), 1, &[zero], |g, sum| {
        let sum = cg.add(sum[0], load_i32(cg, offsets, g));
        store_i32(cg, sum, offsets, g);
        vec![sum]
    });
    cg.for_each(zero, n, 1, |i| {
        let id = load_i32(cg, ids, i);
        cg.when(within(cg, id, groups), || {
            let at = cg.add(id, 1);
            let place = load_i32(cg, offsets, at);
            store_i32(cg, i, order, place);
            store_i32(cg, cg.add(place, 1), offsets, at);
        });
    });
}

fn invert<'c>(cg: &Cg<'c>, k: &Kernel<'c>, n: Val<'c>, i: Val<'c>) {
    let place = load_i32(cg, k.buffers[0], i);
    cg.when(within(cg, place, n), || store_i32(cg, i, k.buffers[1], place));
}

/// Vectors of a row that are summed side by side.
const SUMS: u32 = 4;

fn segment_sum<'c>(cg: &Cg<'c>, k: &Kernel<'c>, cols: Val<'c>, dtype: DType, group: Val<'c>) {
    let [x, offsets, order, out] = [k.buffers[0], k.buffers[1], k.buffers[2], k.buffers[3]];
    let (first, last) = (load_i32(cg, offsets, group), load_i32(cg, offsets, cg.add(group, 1)));
    let elem = scalar::memory(dtype);
    let columns = |col: Val<'c>, lanes: u32, mask: Option<Val<'c>>| {
        let sum = cg.for_(first, last, 1, &[cg.zero(Elem::F32.x(lanes))], |i, acc| {
            let row = cg.mul(load_i32(cg, order, i), cols);
            let at = cg.at(x, elem, cg.add(row, col));
            let v = scalar::widen(cg, cg.load_tail(elem.x(lanes), at, mask), dtype);
            vec![cg.add(acc[0], v)]
        });
        let at = cg.at(out, elem, cg.add(cg.mul(group, cols), col));
        cg.store_tail(scalar::narrow(cg, sum[0], dtype), at, mask);
    };
    let lanes = cg.target.lanes * SUMS;
    let whole = cg.sub(cols, cg.and(cols, i64::from(lanes) - 1));
    cg.for_each(cg.i64(0), whole, i64::from(lanes), |col| columns(col, lanes, None));
    cg.when(cg.cmp(Cmp::Lt, whole, cols), || {
        columns(whole, lanes, Some(cg.mask_below(cg.sub(cols, whole), lanes)));
    });
}

fn append<'c>(cg: &Cg<'c>, k: &Kernel<'c>, row: Val<'c>, cache: &Cache<'c>) {
    let (x, width) = (k.buffers[0], cache.width);
    cache.place(cg, k, row, |to, cache_at| {
        // Moved as bits.
        let elem = match scalar::memory(cache.dtype) {
            Elem::BF16 => Elem::I16,
            elem => elem,
        };
        let from = cg.at(x, elem, cg.mul(row, width));
        let to = cg.at(cache_at, elem, cg.mul(to, width));
        let lanes = cg.target.lanes;
        let whole = cg.sub(width, cg.and(width, i64::from(lanes) - 1));
        let ty = elem.x(lanes);
        cg.for_each(cg.i64(0), whole, i64::from(lanes), |i| {
            cg.store(cg.load(ty, cg.at(from, elem, i)), cg.at(to, elem, i));
        });
        let mask = cg.mask_below(cg.sub(width, whole), lanes);
        let v = cg.masked_load(ty, cg.at(from, elem, whole), mask);
        cg.masked_store(v, cg.at(to, elem, whole), mask);
    });
}

/// Keys are padded to a multiple of this, the widest vector of any target.
const PAD: u64 = 64;
/// Below the key of every float.
const TAKEN: i64 = i32::MIN as i64;

/// The largest of rows. A float's key is an i32 that compares as it does, so "taken" is a key below
/// all others.
struct Topk<'a, 'c> {
    cg: &'a Cg<'c>,
    kernel: &'a Kernel<'c>,
    n: u64,
    k: u64,
    dtype: DType,
}

impl<'c> Topk<'_, 'c> {
    fn row(&self, row: Val<'c>, groups: Option<Groups>) {
        let cg = self.cg;
        let keys = self.kernel.scratch;
        let elem = scalar::memory(self.dtype);
        let x = cg.at(self.kernel.buffers[0], elem, cg.mul(row, self.n as i64));
        let lanes = cg.target.lanes;
        let n = cg.i64(self.n as i64);
        self.over(self.n, |i| {
            let mask = cg.mask_below(cg.sub(n, i), lanes);
            let v = cg.masked_load(elem.x(lanes), cg.at(x, elem, i), mask);
            let key = self.key(self.number(scalar::widen(cg, v, self.dtype)));
            let key = cg.select(mask, key, cg.int(key.ty, TAKEN));
            cg.store(key, cg.at(keys, Elem::I32, i));
        });
        if let Some(groups) = groups.filter(|g| g.kept < g.count) {
            self.drop_groups(x, elem, groups);
        }
        let out = cg.at(self.kernel.buffers[1], Elem::I32, cg.mul(row, self.k as i64));
        cg.for_each(cg.i64(0), cg.i64(self.k as i64), 1, |j| {
            let best = self.take_best(keys, self.n);
            store_i32(cg, best, out, j);
        });
    }

    /// Runs over vectors of keys; the last may reach into the padding.
    fn over(&self, n: u64, body: impl FnOnce(Val<'c>)) {
        let lanes = i64::from(self.cg.target.lanes);
        self.cg.for_each(self.cg.i64(0), self.cg.i64(n as i64), lanes, body);
    }

    /// NaN counts as -inf.
    fn number(&self, v: Val<'c>) -> Val<'c> {
        let low = self.cg.float(v.ty, f64::NEG_INFINITY);
        self.cg.select(self.cg.cmp(Cmp::Eq, v, v), v, low)
    }

    /// `-0` counts as `0`.
    fn key(&self, v: Val<'c>) -> Val<'c> {
        let cg = self.cg;
        let bits = cg.bitcast(cg.add(v, 0.0f32), v.ty.with(Elem::I32));
        cg.xor(bits, cg.and(cg.ashr(bits, 31), 0x7fff_ffff))
    }

    /// The place of the largest key, the lowest of equals; it becomes taken.
    fn take_best(&self, keys: Val<'c>, n: u64) -> Val<'c> {
        let cg = self.cg;
        let ty = Elem::I32.x(cg.target.lanes);
        let start = [cg.int(ty, TAKEN), cg.zero(ty)];
        let lanes = i64::from(cg.target.lanes);
        let (lo, hi) = (cg.i64(0), cg.i64(n as i64));
        let best = cg.for_(lo, hi, lanes, &start, |i, best| {
            let key = cg.load(ty, cg.at(keys, Elem::I32, i));
            let here = cg.add(cg.splat(cg.cast(i, Elem::I32), ty.lanes), cg.iota(ty));
            let larger = cg.cmp(Cmp::Gt, key, best[0]);
            vec![cg.select(larger, key, best[0]), cg.select(larger, here, best[1])]
        });
        let top = cg.reduce(best[0], |a, b| cg.max(a, b));
        let is_top = cg.cmp(Cmp::Eq, best[0], cg.splat(top, ty.lanes));
        let place = cg.select(is_top, best[1], cg.int(ty, i64::from(i32::MAX)));
        let place = cg.cast(cg.reduce(place, |a, b| cg.min(a, b)), Elem::I64);
        cg.store(cg.int(Ty::I32, TAKEN), cg.at(keys, Elem::I32, place));
        place
    }

    /// Gives the elements of all but the best groups the key of -inf.
    fn drop_groups(&self, x: Val<'c>, elem: Elem, groups: Groups) {
        let cg = self.cg;
        let width = self.n / groups.count;
        let keys = self.kernel.scratch;
        let of_groups = cg.offset(keys, (self.n.next_multiple_of(PAD) * 4) as i64);
        let ty = Elem::I32.x(cg.target.lanes);
        self.over(groups.count, |g| {
            cg.store(cg.int(ty, TAKEN), cg.at(of_groups, Elem::I32, g));
        });
        let low = cg.f32(f32::NEG_INFINITY);
        cg.for_each(cg.i64(0), cg.i64(groups.count as i64), 1, |g| {
            let first = cg.mul(g, width as i64);
            let last = cg.add(first, width as i64);
            let best = cg.for_(first, last, 1, &[low, low], |i, best| {
                let v = cg.load(elem.x(1), cg.at(x, elem, i));
                let v = self.number(scalar::widen(cg, v, self.dtype));
                let second = cg.max(best[1], cg.min(v, best[0]));
                vec![cg.max(v, best[0]), second]
            });
            let score = if groups.pair { cg.add(best[0], best[1]) } else { best[0] };
            cg.store(self.key(score), cg.at(of_groups, Elem::I32, g));
        });
        cg.for_each(cg.i64(0), cg.i64(groups.kept as i64), 1, |_| {
            self.take_best(of_groups, groups.count);
        });
        let out = self.key(low);
        cg.for_each(cg.i64(0), cg.i64(groups.count as i64), 1, |g| {
            let key = cg.load(Ty::I32, cg.at(of_groups, Elem::I32, g));
            cg.when(cg.cmp(Cmp::Ne, key, TAKEN), || {
                let first = cg.mul(g, width as i64);
                cg.for_each(first, cg.add(first, width as i64), 1, |i| {
                    cg.store(out, cg.at(keys, Elem::I32, i));
                });
            });
        });
    }
}
