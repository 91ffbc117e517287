//! Indexing: rows of tables, elements of rows, and the largest of a row.

use super::{Cx, Data, Fault, Tensor};

/// `id` as an index below `n`.
fn within(id: i64, n: usize) -> Result<usize, Fault> {
    match usize::try_from(id) {
        Ok(i) if i < n => Ok(i),
        _ => Err(format!("the index {id} is not within 0..{n}")),
    }
}

/// `within`, where a negative id means nothing.
fn row_of(id: i64, n: usize) -> Result<Option<usize>, Fault> {
    if id < 0 { Ok(None) } else { within(id, n).map(Some) }
}

pub(super) fn gather(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (rows, d_len) = (xs[0].dims[0], xs[0].dims[1]);
    let mut places = vec![];
    for id in xs[1].ints()? {
        let row = row_of(*id, rows)?;
        places.extend((0..d_len).map(|d| row.map(|r| r * d_len + d)));
    }
    cx.result(0, xs[0].data.pick(&places, 0.0))
}

pub(super) fn scatter_add(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let x = xs[0].floats()?;
    let (rows, d_len) = (cx.dim_attr("rows")?, xs[0].last());
    let mut out = vec![0.0; rows * d_len];
    for (i, id) in xs[1].ints()?.iter().enumerate() {
        if let Some(row) = row_of(*id, rows)? {
            (0..d_len).for_each(|d| out[row * d_len + d] += x[i * d_len + d]);
        }
    }
    cx.floats(0, out)
}

pub(super) fn take(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (n, k) = (xs[0].last(), xs[1].last());
    let mut places = vec![];
    for (i, id) in xs[1].ints()?.iter().enumerate() {
        places.push(Some(i / k * n + within(*id, n)?));
    }
    cx.result(0, xs[0].data.pick(&places, 0.0))
}

pub(super) fn put(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let x = xs[0].floats()?;
    let (size, k) = (cx.count("size")?, xs[0].last());
    let mut out = vec![0.0; x.len() / k.max(1) * size];
    for (i, id) in xs[1].ints()?.iter().enumerate() {
        out[i / k * size + within(*id, size)?] += x[i];
    }
    cx.floats(0, out)
}

pub(super) fn one_hot(cx: &Cx, ids: &Tensor) -> Result<Tensor, Fault> {
    let size = cx.count("size")? as i64;
    let row = |id: i64| (0..size).map(move |j| if id == j { 1.0 } else { 0.0 });
    cx.floats(0, ids.ints()?.iter().flat_map(|id| row(*id)).collect())
}

/// Indices of the `k` largest of `row`, largest first, ties to the lowest index.
fn largest(row: &[f64], k: usize) -> Vec<usize> {
    let mut chosen: Vec<usize> = vec![];
    for _ in 0..k {
        let mut best: Option<usize> = None;
        for i in (0..row.len()).filter(|i| !chosen.contains(i)) {
            if best.is_none_or(|b| row[i] > row[b]) {
                best = Some(i);
            }
        }
        chosen.extend(best);
    }
    chosen
}

/// The elements, NaN as -inf.
fn numbers(x: &Tensor) -> Result<Vec<f64>, Fault> {
    let number = |x: &f64| if x.is_nan() { f64::NEG_INFINITY } else { *x };
    Ok(x.floats()?.iter().map(number).collect())
}

pub(super) fn topk(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let k = cx.count("k")?;
    let x_numbers = numbers(x)?;
    let rows = x_numbers.chunks(x.last());
    cx.result(0, Data::Int(rows.flat_map(|r| largest(r, k)).map(|i| i as i64).collect()))
}

pub(super) fn grouped_topk(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let (k, groups, kept) = (cx.count("k")?, cx.count("groups")?, cx.count("kept")?);
    let best = if cx.attrs.get_word("group_score") == Some("top2") { 2 } else { 1 };
    let width = x.last() / groups;
    let mut out = vec![];
    for row in numbers(x)?.chunks(x.last()) {
        let score = |g: &[f64]| largest(g, best.min(width)).iter().map(|i| g[*i]).sum::<f64>();
        let scores: Vec<f64> = row.chunks(width).map(score).collect();
        let winners = largest(&scores, kept);
        let seen = |i: usize| winners.contains(&(i / width));
        let masked = (0..row.len()).map(|i| if seen(i) { row[i] } else { f64::NEG_INFINITY });
        let masked: Vec<f64> = masked.collect();
        out.extend(largest(&masked, k).into_iter().map(|i| i as i64));
    }
    cx.result(0, Data::Int(out))
}
