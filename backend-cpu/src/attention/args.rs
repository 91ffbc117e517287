//! The arguments of the kernels by name, and what one kv head of one batch sees of them.
//!
//! Buffers: q, k (one for each part), v, o if it is written or read; backward do, dq, dk, dv; then
//! lse, the masks' operands, pages, and for each of o's codes those and their scales. Scalars:
//! queries, keys, blocks in a unit, scale, with pages those of a request and of the pool, then
//! three strides for each buffer up to lse.

use weft_codegen::emit::{Cg, Elem, Kernel, Ty, Val};

use super::Shape;

/// An operand `[B, rows, heads, width]`, strides in elements.
#[derive(Clone, Copy)]
pub struct View<'c> {
    pub ptr: Val<'c>,
    pub elem: Elem,
    pub batch: Val<'c>,
    pub row: Val<'c>,
    pub head: Val<'c>,
}

impl<'c> View<'c> {
    /// Row 0 of one head of one batch.
    pub fn of(&self, cg: &Cg<'c>, batch: Val<'c>, head: Val<'c>) -> Val<'c> {
        let first = cg.add(cg.mul(batch, self.batch), cg.mul(head, self.head));
        cg.at(self.ptr, self.elem, first)
    }
}

pub struct Args<'c> {
    pub queries: Val<'c>,
    pub keys: Val<'c>,
    /// Blocks of query rows in a unit.
    pub blocks: Val<'c>,
    pub scale: Val<'c>,
    pub q: Vec<View<'c>>,
    pub k: Vec<View<'c>>,
    pub v: View<'c>,
    /// Where the forward pass writes it; absent where only codes of it are wanted.
    pub o: Option<View<'c>>,
    /// Codes and scales of o.
    pub codes: Vec<(Val<'c>, Val<'c>)>,
    /// Absent forward.
    pub gradients: Option<GradientArgs<'c>>,
    pub lse: Val<'c>,
    pub start: Option<Val<'c>>,
    pub query_segments: Option<Val<'c>>,
    pub key_segments: Option<Val<'c>>,
    pub pages: Option<PagesArgs<'c>>,
}

/// The pages of all requests.
#[derive(Clone, Copy)]
pub struct PagesArgs<'c> {
    pub table: Val<'c>,
    /// Of a request.
    pub n: Val<'c>,
    pub pool: Val<'c>,
}

pub struct GradientArgs<'c> {
    pub o: View<'c>,
    pub d_o: View<'c>,
    pub dq: Vec<View<'c>>,
    pub dk: Vec<View<'c>>,
    pub dv: View<'c>,
}

/// Scalars before the strides, and before those of pages.
const FIXED_SCALARS: usize = 4;
const SCALE: usize = 3;

impl Shape {
    fn n_views(&self, gradients: bool) -> usize {
        let n = self.parts.len();
        2 * n + 1 + usize::from(self.keeps_o) + if gradients { 2 * n + 2 } else { 0 }
    }

    /// Emits the kernel's frame around what one block does.
    pub fn kernel<'c>(
        &self,
        cg: &Cg<'c>,
        name: &str,
        gradients: bool,
        block: impl FnOnce(&Kernel<'c>, &Args<'c>, Val<'c>),
    ) {
        let n_views = self.n_views(gradients);
        let masks = usize::from(self.offset) + 2 * usize::from(self.segments);
        let masks = masks + usize::from(self.page.is_some());
        let n_scalars = self.first_stride() + 3 * n_views;
        let n_buffers = n_views + 1 + masks + 2 * self.codes.len();
        cg.kernel(name, n_buffers, n_scalars, |k| {
            let args = self.args(cg, k, gradients);
            cg.for_each(k.begin, k.end, 1, |i| block(k, &args, i));
        });
    }

    /// The scalar that is the first stride.
    fn first_stride(&self) -> usize {
        FIXED_SCALARS + 2 * usize::from(self.page.is_some())
    }

    fn args<'c>(&self, cg: &Cg<'c>, k: &Kernel<'c>, gradients: bool) -> Args<'c> {
        let n = self.parts.len();
        let of = |i: usize, elem: Elem| {
            let s = &k.scalars[self.first_stride() + 3 * i..];
            View { ptr: k.buffers[i], elem, batch: s[0], row: s[1], head: s[2] }
        };
        let view = |i: usize| of(i, self.elem);
        // dk and dv are sums.
        let sums = |i: usize| of(i, Elem::F32);
        // A stride known when compiling folds into addresses.
        let keys = |i: usize, stride: Option<i64>| match stride {
            Some(row) => View { row: cg.i64(row), ..view(i) },
            None => view(i),
        };
        let first = 2 * n + 1 + usize::from(self.keeps_o);
        let mut rest = k.buffers[self.n_views(gradients)..].iter().copied();
        let lse = rest.next().expect("the kernel has a buffer for lse");
        let n_codes = 2 * self.codes.len();
        let codes = k.buffers[k.buffers.len() - n_codes..].chunks(2);
        Args {
            queries: k.scalars[0],
            keys: k.scalars[1],
            blocks: k.scalars[2],
            scale: cg.scalar_f32(k, SCALE),
            q: (0..n).map(view).collect(),
            k: (0..n).map(|j| keys(n + j, self.parts[j].row_stride)).collect(),
            v: keys(2 * n, self.v.row_stride),
            o: self.keeps_o.then(|| view(2 * n + 1)),
            codes: codes.map(|pair| (pair[0], pair[1])).collect(),
            gradients: gradients.then(|| GradientArgs {
                o: view(2 * n + 1),
                d_o: view(first),
                dq: (0..n).map(|j| view(first + 1 + j)).collect(),
                dk: (0..n).map(|j| sums(first + 1 + n + j)).collect(),
                dv: sums(first + 1 + 2 * n),
            }),
            lse,
            start: if self.offset { rest.next() } else { None },
            query_segments: if self.segments { rest.next() } else { None },
            key_segments: if self.segments { rest.next() } else { None },
            pages: self.page.and_then(|_| rest.next()).map(|table| {
                let s = &k.scalars[FIXED_SCALARS..];
                PagesArgs { table, n: s[0], pool: s[1] }
            }),
        }
    }
}

/// A source of broadcasts: row 0 of the keys or values, and the distance of rows.
#[derive(Clone, Copy)]
pub struct Source<'c> {
    pub ptr: Val<'c>,
    pub elem: Elem,
    pub row: Val<'c>,
    pub width: u32,
    /// i64, the rows of a pool that the keys are, where they are not one after the other.
    pub rows: Option<Val<'c>>,
}

impl<'c> Source<'c> {
    /// The same from row `t0` on, of rows one after the other.
    pub fn from(&self, cg: &Cg<'c>, t0: Val<'c>) -> Source<'c> {
        Source { ptr: cg.at(self.ptr, self.elem, cg.mul(t0, self.row)), ..*self }
    }

    /// How many elements behind `ptr` key `t` begins.
    pub fn behind(&self, cg: &Cg<'c>, t: Val<'c>) -> Val<'c> {
        let row = match self.rows {
            Some(rows) => cg.load(Ty::I64, cg.at(rows, Elem::I64, t)),
            None => t,
        };
        cg.mul(row, self.row)
    }
}

/// One batch and one group of heads.
pub struct Unit<'c> {
    pub batch: Val<'c>,
    pub first_head: Val<'c>,
    /// Query rows: `group` for each query.
    pub rows: Val<'c>,
    pub k: Vec<Source<'c>>,
    pub v: Source<'c>,
    /// i64; zero without an offset.
    pub start: Val<'c>,
    /// Segments of the keys.
    pub key_segments: Option<Val<'c>>,
}

impl Shape {
    pub fn unit<'c>(
        &self,
        cg: &Cg<'c>,
        args: &Args<'c>,
        batch: Val<'c>,
        index: Val<'c>,
    ) -> Unit<'c> {
        let first_head = cg.mul(index, self.group);
        let source = |view: &View<'c>, keys: &super::Keys| {
            let head = cg.div(first_head, self.heads / keys.heads);
            let ptr = view.of(cg, batch, head);
            Source { ptr, elem: view.elem, row: view.row, width: keys.width, rows: None }
        };
        let start = args.start.map_or(cg.i64(0), |start| {
            cg.cast(cg.load(Ty::I32, cg.at(start, Elem::I32, batch)), Elem::I64)
        });
        let segments = |ptr, n| cg.at(ptr, Elem::I32, cg.mul(batch, n));
        Unit {
            batch,
            first_head,
            rows: cg.mul(args.queries, self.group),
            k: args.k.iter().zip(&self.parts).map(|(k, keys)| source(k, keys)).collect(),
            v: source(&args.v, &self.v),
            start,
            key_segments: args.key_segments.map(|ptr| segments(ptr, args.keys)),
        }
    }

    /// The query and the head of a query row of the unit.
    pub fn place<'c>(&self, cg: &Cg<'c>, unit: &Unit<'c>, row: Val<'c>) -> (Val<'c>, Val<'c>) {
        if self.group == 1 {
            return (row, unit.first_head);
        }
        (cg.div(row, self.group), cg.add(unit.first_head, cg.rem(row, self.group)))
    }
}
