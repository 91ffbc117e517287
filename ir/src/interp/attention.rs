//! Attention and its derivative, one query row at a time.
//!
//! B batch, S queries, T keys, H query heads; a part of the score has width D and its keys have
//! heads of their own.

use std::borrow::Cow;

use super::pages::Pages;
use super::{Cx, Fault, Tensor};

/// A tensor `[B, rows, heads, width]`.
#[derive(Clone)]
struct Heads<'a> {
    data: Cow<'a, [f64]>,
    rows: usize,
    heads: usize,
    width: usize,
}

impl<'a> Heads<'a> {
    fn of(x: &'a Tensor) -> Result<Heads<'a>, Fault> {
        let [_, rows, heads, width] = x.dims[..] else { return Err("needs four dims".into()) };
        Ok(Heads { data: x.floats()?.into(), rows, heads, width })
    }

    /// The rows of all requests in the order of their positions, from the pages of a pool. `sees`
    /// says which count: others, which may have no page, are zeros.
    fn in_order(
        self,
        pages: &Pages,
        batch: usize,
        sees: impl Fn(usize, usize) -> bool,
    ) -> Result<Heads<'a>, Fault> {
        let (rows, each) = (pages.positions(), self.heads * self.width);
        let mut data = vec![0.0; batch * rows * each];
        for b in 0..batch {
            for t in (0..rows).filter(|t| sees(b, *t)) {
                let from = pages.row(b, t)? * each;
                let to = (b * rows + t) * each;
                data[to..to + each].copy_from_slice(&self.data[from..from + each]);
            }
        }
        Ok(Heads { data: data.into(), rows, ..self })
    }

    /// Where the vector that query head `h` of `n_heads` reads starts.
    fn at(&self, b: usize, row: usize, h: usize, n_heads: usize) -> usize {
        ((b * self.rows + row) * self.heads + h * self.heads / n_heads) * self.width
    }

    fn vector(&self, b: usize, row: usize, h: usize, n_heads: usize) -> &[f64] {
        let at = self.at(b, row, h, n_heads);
        &self.data[at..at + self.width]
    }
}

struct Operands<'a> {
    q: Vec<Heads<'a>>,
    k: Vec<Heads<'a>>,
    v: Heads<'a>,
    batch: usize,
    scale: f64,
    causal: bool,
    start: Option<&'a [i64]>,
    segments: Option<(&'a [i64], &'a [i64])>,
}

impl<'a> Operands<'a> {
    /// `masks` is the place of the first operand after v, or after do.
    fn of(cx: &Cx, xs: &[&'a Tensor], masks: usize) -> Result<Operands<'a>, Fault> {
        let n = cx.count("parts")?;
        let mut rest = xs[masks..].iter();
        let mut ids = || rest.next().ok_or("too few operands")?.ints();
        let start = if cx.flag("offset") { Some(ids()?) } else { None };
        let segments = if cx.flag("segments") { Some((ids()?, ids()?)) } else { None };
        let mut at = Operands {
            q: xs[..n].iter().map(|x| Heads::of(x)).collect::<Result<_, _>>()?,
            k: xs[n..2 * n].iter().map(|x| Heads::of(x)).collect::<Result<_, _>>()?,
            v: Heads::of(xs[2 * n])?,
            batch: xs[0].dims[0],
            scale: cx.float("scale"),
            causal: cx.flag("causal"),
            start,
            segments,
        };
        if cx.flag("pages") {
            let pages = Pages::of(xs[xs.len() - 1], xs[2 * n])?;
            at.v.rows = pages.positions();
            let seen = |b: usize, t: usize| (0..at.q[0].rows).any(|s| at.visible(b, s, t));
            let in_order = |x: &Heads<'a>| x.clone().in_order(&pages, at.batch, seen);
            let k = at.k.iter().map(in_order).collect::<Result<_, _>>()?;
            let v = in_order(&at.v)?;
            (at.k, at.v) = (k, v);
        }
        Ok(at)
    }

    fn heads(&self) -> usize {
        self.q[0].heads
    }

    fn visible(&self, b: usize, s: usize, t: usize) -> bool {
        let start = self.start.map_or(0, |start| start[b]);
        let before = !self.causal || t as i64 <= s as i64 + start;
        let together = self
            .segments
            .is_none_or(|(of_q, of_k)| of_q[b * self.q[0].rows + s] == of_k[b * self.v.rows + t]);
        before && together
    }

    fn score(&self, b: usize, h: usize, s: usize, t: usize) -> f64 {
        let n = self.heads();
        let parts = self.q.iter().zip(&self.k);
        let sum: f64 = parts.map(|(q, k)| dot(q.vector(b, s, h, n), k.vector(b, t, h, n))).sum();
        self.scale * sum
    }

    /// Every query row `(b, h, s)`.
    fn each_row(&self, mut visit: impl FnMut(usize, usize, usize)) {
        for b in 0..self.batch {
            for h in 0..self.heads() {
                (0..self.q[0].rows).for_each(|s| visit(b, h, s));
            }
        }
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `to[at..] += a x`.
fn add_scaled(to: &mut [f64], at: usize, a: f64, x: &[f64]) {
    to[at..at + x.len()].iter_mut().zip(x).for_each(|(to, x)| *to += a * x);
}

pub(super) fn forward(cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let at = Operands::of(cx, xs, 2 * cx.count("parts")? + 1)?;
    let (n, rows, width) = (at.heads(), at.q[0].rows, at.v.width);
    let dtype = xs[0].dtype;
    let mut o = vec![0.0; at.batch * rows * n * width];
    let mut lse = vec![];
    at.each_row(|b, h, s| {
        let seen: Vec<usize> = (0..at.v.rows).filter(|t| at.visible(b, s, *t)).collect();
        let scores: Vec<f64> = seen.iter().map(|t| at.score(b, h, s, *t)).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, super::pointwise::max);
        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
        let mut weighed = vec![0.0; width];
        for (t, score) in seen.iter().zip(&scores) {
            let p = cx.narrow((score - top).exp(), dtype);
            add_scaled(&mut weighed, 0, p, at.v.vector(b, *t, h, n));
        }
        if !seen.is_empty() {
            add_scaled(&mut o, ((b * rows + s) * n + h) * width, 1.0 / sum, &weighed);
        }
        lse.push(if seen.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() });
    });
    Ok(vec![cx.floats(0, o)?, cx.floats(1, lse)?])
}

pub(super) fn grad(cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let parts = cx.count("parts")?;
    let at = Operands::of(cx, xs, 2 * parts + 4)?;
    let (o, d_o) = (Heads::of(xs[2 * parts + 1])?, Heads::of(xs[2 * parts + 3])?);
    let lse = xs[2 * parts + 2].floats()?;
    let (n, rows, dtype) = (at.heads(), at.q[0].rows, xs[0].dtype);
    let mut dq: Vec<Vec<f64>> = at.q.iter().map(|q| vec![0.0; q.data.len()]).collect();
    let mut dk: Vec<Vec<f64>> = at.k.iter().map(|k| vec![0.0; k.data.len()]).collect();
    let mut dv = vec![0.0; at.v.data.len()];
    at.each_row(|b, h, s| {
        let d_o = d_o.vector(b, s, h, n);
        let delta = dot(d_o, o.vector(b, s, h, n));
        for t in (0..at.v.rows).filter(|t| at.visible(b, s, *t)) {
            let p = (at.score(b, h, s, t) - lse[(b * n + h) * rows + s]).exp();
            let d_score = at.scale * p * (dot(d_o, at.v.vector(b, t, h, n)) - delta);
            let (p, d_score) = (cx.narrow(p, dtype), cx.narrow(d_score, dtype));
            add_scaled(&mut dv, at.v.at(b, t, h, n), p, d_o);
            for (i, (q, k)) in at.q.iter().zip(&at.k).enumerate() {
                add_scaled(&mut dq[i], q.at(b, s, h, n), d_score, k.vector(b, t, h, n));
                add_scaled(&mut dk[i], k.at(b, t, h, n), d_score, q.vector(b, s, h, n));
            }
        }
    });
    let all = dq.into_iter().chain(dk).chain([dv]).enumerate();
    all.map(|(i, data)| cx.floats(i, data)).collect()
}
