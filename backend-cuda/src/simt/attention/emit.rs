//! The kernels' code.

use weft_codegen::emit::{Cg, Cmp, Elem, Kernel, Ty, Val, WARP};
use weft_codegen::math;
use weft_codegen::region::scalar;

use super::super::{Warp, warp_kernel};
use super::{Kind, Shape};

/// Scalars before those of pages and the strides: batch, queries, keys.
const SIZES: usize = 3;

pub fn emit(cg: &Cg, name: &str, shape: &Shape, kind: Kind) {
    let n = shape.parts.len();
    let backward = kind != Kind::Forward;
    let made = match kind {
        Kind::Forward => 0,
        Kind::Queries => n,
        Kind::Keys(_) | Kind::Values => 1,
    };
    // o and lse; then do and `do . o`.
    let saved = if backward { 4 } else { 2 };
    let masks = usize::from(shape.offset) + 2 * usize::from(shape.segments);
    let paged = usize::from(shape.page.is_some());
    let n_buffers = 2 * n + 1 + saved + made + masks + paged;
    let n_places = 2 * n + 1 + saved / 2 + made;
    let sizes = SIZES + 2 * paged;
    warp_kernel(cg, name, n_buffers, sizes + 3 * n_places, |k, warp| {
        let place = |buffer: usize, place: usize| {
            let s = &k.scalars[sizes + 3 * place..];
            Place { ptr: k.buffers[buffer], strides: [s[0], s[1], s[2]] }
        };
        let first = 2 * n + 1;
        let of_made = |i| place(first + saved + i, first + saved / 2 + i);
        let mut used = first + saved + made;
        let mut mask = |on: bool| {
            used += usize::from(on);
            on.then(|| k.buffers[used - 1])
        };
        let work = Work {
            cg,
            shape,
            k,
            lane: warp.lane,
            q: (0..n).map(|i| place(i, i)).collect(),
            keys: (0..n).map(|i| place(n + i, n + i)).collect(),
            v: place(2 * n, 2 * n),
            o: place(first, first),
            lse: k.buffers[first + 1],
            d_o: backward.then(|| place(first + 2, first + 1)),
            delta: backward.then(|| k.buffers[first + 3]),
            made: (0..made).map(of_made).collect(),
            start: mask(shape.offset),
            query_segments: mask(shape.segments),
            key_segments: mask(shape.segments),
            pages: mask(shape.page.is_some()),
        };
        work.run(warp, kind);
    });
}

/// An array `[B, rows, heads, width]`.
#[derive(Clone, Copy)]
struct Place<'c> {
    ptr: Val<'c>,
    strides: [Val<'c>; 3],
}

struct Work<'s, 'c> {
    cg: &'s Cg<'c>,
    shape: &'s Shape,
    k: &'s Kernel<'c>,
    lane: Val<'c>,
    q: Vec<Place<'c>>,
    keys: Vec<Place<'c>>,
    v: Place<'c>,
    o: Place<'c>,
    lse: Val<'c>,
    d_o: Option<Place<'c>>,
    delta: Option<Val<'c>>,
    made: Vec<Place<'c>>,
    start: Option<Val<'c>>,
    query_segments: Option<Val<'c>>,
    key_segments: Option<Val<'c>>,
    /// Those of all requests.
    pages: Option<Val<'c>>,
}

/// A row of a head: of the warp's, or of each lane's own.
#[derive(Clone, Copy)]
struct Row<'c> {
    batch: Val<'c>,
    head: Val<'c>,
    row: Val<'c>,
}

/// 32 rows, one each lane.
struct Block<'c> {
    first: Val<'c>,
    /// The lane's own; the last, where it has none.
    own: Val<'c>,
    /// Whether it has one.
    inside: Val<'c>,
    n: Val<'c>,
}

/// Elements of a row that a lane holds.
fn held(width: i64) -> usize {
    width.unsigned_abs().div_ceil(WARP.into()) as usize
}

impl<'c> Work<'_, 'c> {
    fn run(&self, warp: &Warp<'c>, kind: Kind) {
        let (cg, s) = (self.cg, &self.k.scalars);
        let [batch, queries, keys] = [s[0], s[1], s[2]];
        let (rows, heads) = match kind {
            Kind::Forward | Kind::Queries => (queries, self.shape.heads),
            Kind::Keys(i) => (keys, self.shape.parts[i].0),
            Kind::Values => (keys, self.shape.v.0),
        };
        // Neighbouring warps do neighbouring rows of one head.
        let (rest, row) = (cg.div(warp.index, rows), cg.rem(warp.index, rows));
        let at = Row { batch: cg.div(rest, heads), head: cg.rem(rest, heads), row };
        cg.when(cg.cmp(Cmp::Lt, at.batch, batch), || match kind {
            Kind::Forward => self.forward(at),
            Kind::Queries => self.queries(at),
            Kind::Keys(i) => self.key(at, self.shape.heads / heads, Some(i)),
            Kind::Values => self.key(at, self.shape.heads / heads, None),
        });
    }

    /// Where a row starts, in elements.
    fn start_of(&self, x: Place<'c>, at: Row<'c>) -> Val<'c> {
        let cg = self.cg;
        let [b, r, h] = x.strides;
        cg.add(cg.add(cg.mul(at.batch, b), cg.mul(at.row, r)), cg.mul(at.head, h))
    }

    /// The row of a key in an operand of `heads` heads, for a head of q.
    fn key_row(&self, q: Row<'c>, key: Val<'c>, heads: i64) -> Row<'c> {
        let row = self.pool_row(q.batch, key);
        Row { head: self.cg.div(q.head, self.shape.heads / heads), row, ..q }
    }

    /// The row where a key lies: its own, or that in a pool of pages. A page outside the pool
    /// counts as its nearest.
    fn pool_row(&self, batch: Val<'c>, key: Val<'c>) -> Val<'c> {
        let (Some(table), Some(page)) = (self.pages, self.shape.page) else { return key };
        let (cg, s) = (self.cg, &self.k.scalars[SIZES..]);
        let (of_request, last) = (s[0], cg.sub(s[1], 1));
        let place = cg.add(cg.mul(batch, of_request), cg.div(key, page));
        let id = cg.cast(self.load_i32(table, place), Elem::I64);
        let id = cg.min(cg.max(id, 0), last);
        cg.add(cg.mul(id, page), cg.rem(key, page))
    }

    fn load(&self, x: Place<'c>, row: Val<'c>, i: Val<'c>) -> Val<'c> {
        let cg = self.cg;
        let elem = scalar::memory(self.shape.dtype);
        let v = cg.load(elem.x(1), cg.at(x.ptr, elem, cg.add(row, i)));
        scalar::widen(cg, v, self.shape.dtype)
    }

    fn load_i32(&self, ptr: Val<'c>, i: Val<'c>) -> Val<'c> {
        self.cg.load(Ty::I32, self.cg.at(ptr, Elem::I32, i))
    }

    fn load_f32(&self, ptr: Val<'c>, i: Val<'c>) -> Val<'c> {
        self.cg.load(Ty::F32, self.cg.at(ptr, Elem::F32, i))
    }

    /// `acc + x · y`, of rows of `width`.
    fn dot(
        &self,
        acc: Val<'c>,
        x: (Place<'c>, Val<'c>),
        y: (Place<'c>, Val<'c>),
        width: i64,
    ) -> Val<'c> {
        let cg = self.cg;
        let sum = cg.for_(cg.i64(0), cg.i64(width), 1, &[acc], |i, sum| {
            vec![cg.fma(self.load(x.0, x.1, i), self.load(y.0, y.1, i), sum[0])]
        });
        sum[0]
    }

    /// The scaled score of a query and a key.
    fn score(&self, q: Row<'c>, key: Val<'c>) -> Val<'c> {
        let cg = self.cg;
        let mut sum = cg.f32(0.0);
        for (i, (heads, width)) in self.shape.parts.iter().enumerate() {
            let of_q = self.start_of(self.q[i], q);
            let of_k = self.start_of(self.keys[i], self.key_row(q, key, *heads));
            sum = self.dot(sum, (self.q[i], of_q), (self.keys[i], of_k), *width);
        }
        cg.mul(sum, self.shape.scale as f32)
    }

    /// How many keys stand before the first query.
    fn starts_at(&self, batch: Val<'c>) -> Val<'c> {
        match self.start {
            Some(start) => self.cg.cast(self.load_i32(start, batch), Elem::I64),
            None => self.cg.i64(0),
        }
    }

    /// Does the query see the key? Both are inside the arrays.
    fn sees(&self, q: Row<'c>, key: Val<'c>) -> Val<'c> {
        let cg = self.cg;
        let mut sees = cg.i1(true);
        if self.shape.causal {
            let last = cg.add(q.row, self.starts_at(q.batch));
            sees = cg.cmp(Cmp::Le, key, last);
        }
        if let (Some(of_q), Some(of_k)) = (self.query_segments, self.key_segments) {
            let [queries, keys] = [self.k.scalars[1], self.k.scalars[2]];
            let mine = self.load_i32(of_q, cg.add(cg.mul(q.batch, queries), q.row));
            let other = self.load_i32(of_k, cg.add(cg.mul(q.batch, keys), key));
            sees = cg.and(sees, cg.cmp(Cmp::Eq, mine, other));
        }
        sees
    }

    /// The end of the keys that a query may see.
    fn keys_end(&self, q: Row<'c>) -> Val<'c> {
        let (cg, keys) = (self.cg, self.k.scalars[2]);
        if !self.shape.causal {
            return keys;
        }
        cg.min(cg.add(cg.add(q.row, self.starts_at(q.batch)), 1), keys)
    }

    fn blocks(
        &self,
        (lo, hi): (Val<'c>, Val<'c>),
        init: &[Val<'c>],
        body: impl FnOnce(&Block<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let cg = self.cg;
        cg.for_(lo, hi, i64::from(WARP), init, |first, carried| {
            let own = cg.add(first, self.lane);
            let block = Block {
                first,
                own: cg.min(own, cg.sub(hi, 1)),
                inside: cg.cmp(Cmp::Lt, own, hi),
                n: cg.min(cg.sub(hi, first), i64::from(WARP)),
            };
            body(&block, carried)
        })
    }

    /// `acc[i] + Σ_j weight_j x[row_j][lane + 32 i]` over a block, whose lane `j` has `weight_j`.
    fn weigh(
        &self,
        acc: &[Val<'c>],
        (x, width): (Place<'c>, i64),
        weight: Val<'c>,
        block: &Block<'c>,
        row: impl Fn(Val<'c>) -> Row<'c>,
    ) -> Vec<Val<'c>> {
        let cg = self.cg;
        cg.for_(cg.i64(0), block.n, 1, acc, |j, acc| {
            let w = cg.shuffle_from(weight, cg.cast(j, Elem::I32));
            let row = self.start_of(x, row(cg.add(block.first, j)));
            let sums = acc.iter().enumerate().map(|(i, sum)| {
                let at = cg.add(self.lane, i as i64 * i64::from(WARP));
                // Beyond the width it is the last element's sum, which is not stored.
                let at = cg.min(at, width - 1);
                cg.fma(w, self.load(x, row, at), *sum)
            });
            sums.collect()
        })
    }

    /// Stores what the lanes hold of a row.
    fn store_row(&self, x: Place<'c>, width: i64, at: Row<'c>, held: &[Val<'c>]) {
        let cg = self.cg;
        let elem = scalar::memory(self.shape.dtype);
        let row = self.start_of(x, at);
        for (i, v) in held.iter().enumerate() {
            let at = cg.add(self.lane, i as i64 * i64::from(WARP));
            cg.when(cg.cmp(Cmp::Lt, at, width), || {
                let v = scalar::narrow(cg, *v, self.shape.dtype);
                cg.store(v, cg.at(x.ptr, elem, cg.add(row, at)));
            });
        }
    }

    /// Where the statistics of a query lie.
    fn statistic(&self, q: Row<'c>) -> Val<'c> {
        let (cg, queries) = (self.cg, self.k.scalars[1]);
        let row = cg.add(cg.mul(q.batch, self.shape.heads), q.head);
        cg.add(cg.mul(row, queries), q.row)
    }

    fn store_once(&self, v: Val<'c>, ptr: Val<'c>, at: Val<'c>) {
        let cg = self.cg;
        cg.when(cg.cmp(Cmp::Eq, self.lane, 0), || cg.store(v, cg.at(ptr, Elem::F32, at)));
    }

    fn forward(&self, q: Row<'c>) {
        let cg = self.cg;
        let (heads, width) = self.shape.v;
        let none = cg.f32(f32::NEG_INFINITY);
        let mut start = vec![none, cg.f32(0.0)];
        start.resize(2 + held(width), cg.f32(0.0));
        let range = (cg.i64(0), self.keys_end(q));
        let end = self.blocks(range, &start, |block, carried| {
            let (max, sum, o) = (carried[0], carried[1], &carried[2..]);
            let seen = cg.and(block.inside, self.sees(q, block.own));
            let score = cg.select(seen, self.score(q, block.own), none);
            let top = cg.max(max, cg.reduce_warp(score, |a, b| cg.max(a, b)));
            // Where nothing is seen yet all weights are e^-inf, not NaN.
            let base = cg.select(cg.cmp(Cmp::Eq, top, none), cg.f32(0.0), top);
            let shrunk = math::exp(cg, cg.sub(max, base));
            let weight = math::exp(cg, cg.sub(score, base));
            let all = cg.reduce_warp(weight, |a, b| cg.add(a, b));
            let o: Vec<Val> = o.iter().map(|o| cg.mul(*o, shrunk)).collect();
            let mut next = vec![top, cg.fma(sum, shrunk, all)];
            let row = |key| self.key_row(q, key, heads);
            next.extend(self.weigh(&o, (self.v, width), weight, block, row));
            next
        });
        let (max, sum) = (end[0], end[1]);
        let blind = cg.cmp(Cmp::Eq, max, none);
        let base = cg.select(blind, cg.f32(0.0), max);
        let lse = cg.add(base, math::ln(cg, sum));
        self.store_once(lse, self.lse, self.statistic(q));
        let sum = cg.select(blind, cg.f32(1.0), sum);
        let o: Vec<Val> = end[2..].iter().map(|o| cg.div(*o, sum)).collect();
        self.store_row(self.o, width, q, &o);
    }

    /// The weight of a pair, zero where it is not seen.
    fn weight(&self, q: Row<'c>, key: Val<'c>, inside: Val<'c>) -> Val<'c> {
        let cg = self.cg;
        let lse = self.load_f32(self.lse, self.statistic(q));
        let seen = cg.and(inside, self.sees(q, key));
        let weight = math::exp(cg, cg.sub(self.score(q, key), lse));
        cg.select(seen, weight, cg.f32(0.0))
    }

    /// The derivative of a pair's score.
    fn d_score(&self, q: Row<'c>, key: Val<'c>, weight: Val<'c>, delta: Val<'c>) -> Val<'c> {
        let cg = self.cg;
        let (heads, width) = self.shape.v;
        let d_o = self.d_o.expect("a derivative has do");
        let of_o = self.start_of(d_o, q);
        let of_v = self.start_of(self.v, self.key_row(q, key, heads));
        let d_weight = self.dot(cg.f32(0.0), (d_o, of_o), (self.v, of_v), width);
        cg.mul(cg.mul(weight, cg.sub(d_weight, delta)), self.shape.scale as f32)
    }

    fn queries(&self, q: Row<'c>) {
        let cg = self.cg;
        let delta = self.delta(q);
        self.store_once(delta, self.delta.expect("a derivative has it"), self.statistic(q));
        let n_held: usize = self.shape.parts.iter().map(|(_, width)| held(*width)).sum();
        let start = vec![cg.f32(0.0); n_held];
        let range = (cg.i64(0), self.keys_end(q));
        let end = self.blocks(range, &start, |block, carried| {
            let weight = self.weight(q, block.own, block.inside);
            let d_score = self.d_score(q, block.own, weight, delta);
            let (mut next, mut rest) = (vec![], carried);
            for (i, (heads, width)) in self.shape.parts.iter().enumerate() {
                let (own, others) = rest.split_at(held(*width));
                let row = |key| self.key_row(q, key, *heads);
                next.extend(self.weigh(own, (self.keys[i], *width), d_score, block, row));
                rest = others;
            }
            next
        });
        let mut rest = &end[..];
        for (to, (_, width)) in self.made.iter().zip(&self.shape.parts) {
            let (own, others) = rest.split_at(held(*width));
            self.store_row(*to, *width, q, own);
            rest = others;
        }
    }

    /// `do · o` of a query, by the whole warp.
    fn delta(&self, q: Row<'c>) -> Val<'c> {
        let cg = self.cg;
        let d_o = self.d_o.expect("a derivative has do");
        let (of_d, of_o) = (self.start_of(d_o, q), self.start_of(self.o, q));
        let (width, step) = (cg.i64(self.shape.v.1), i64::from(WARP));
        let own = cg.for_(self.lane, width, step, &[cg.f32(0.0)], |i, sum| {
            vec![cg.fma(self.load(d_o, of_d, i), self.load(self.o, of_o, i), sum[0])]
        });
        cg.reduce_warp(own[0], |a, b| cg.add(a, b))
    }

    /// dk of a part, or dv: over the query heads that share the head, and the queries that see the
    /// key, a lane a query.
    fn key(&self, at: Row<'c>, shared: i64, part: Option<usize>) {
        let (cg, key) = (self.cg, at.row);
        let width = part.map_or(self.shape.v.1, |i| self.shape.parts[i].1);
        let start = vec![cg.f32(0.0); held(width)];
        let queries = self.k.scalars[1];
        let first = match self.shape.causal {
            false => cg.i64(0),
            true => cg.max(cg.sub(key, self.starts_at(at.batch)), 0),
        };
        let sums = cg.for_(cg.i64(0), cg.i64(shared), 1, &start, |h, sums| {
            let head = cg.add(cg.mul(at.head, shared), h);
            self.blocks((first, queries), sums, |block, sums| {
                let q = Row { batch: at.batch, head, row: block.own };
                let weight = self.weight(q, key, block.inside);
                let (x, weight) = match part {
                    None => (self.d_o.expect("a derivative has do"), weight),
                    Some(i) => {
                        let delta = self.delta.expect("a derivative has it");
                        let delta = self.load_f32(delta, self.statistic(q));
                        (self.q[i], self.d_score(q, key, weight, delta))
                    }
                };
                self.weigh(sums, (x, width), weight, block, |row| Row { row, ..q })
            })
        });
        self.store_row(self.made[0], width, at, &sums);
    }
}
