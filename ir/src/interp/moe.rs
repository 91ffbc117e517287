//! Tokens to rows ordered by expert, and back.

use super::{Cx, Data, Fault, Tensor};

pub(super) fn route(cx: &Cx, ids: &Tensor) -> Result<Vec<Tensor>, Fault> {
    let experts = cx.count("experts")?;
    let rows = cx.dim_attr("rows")?;
    let ids = ids.ints()?;
    if rows != ids.len() {
        return Err(format!("{} choices do not fill {rows} rows", ids.len()));
    }
    if let Some(id) = ids.iter().find(|id| **id < 0 || **id >= experts as i64) {
        return Err(format!("the expert {id} is not within 0..{experts}"));
    }
    let mut offsets = vec![0];
    let mut order = vec![];
    for e in 0..experts as i64 {
        order.extend((0..ids.len()).filter(|i| ids[*i] == e).map(|i| i as i64));
        offsets.push(order.len() as i64);
    }
    Ok(vec![cx.result(0, Data::Int(offsets))?, cx.result(1, Data::Int(order))?])
}

/// `order`, each entry checked to be one of `places`.
fn places(order: &Tensor, places: usize) -> Result<Vec<usize>, Fault> {
    let place = |p: &i64| match usize::try_from(*p) {
        Ok(i) if i < places => Ok(i),
        _ => Err(format!("the place {p} is not within 0..{places}")),
    };
    order.ints()?.iter().map(place).collect()
}

/// For each place, its row.
fn rows_of(order: &Tensor, n_places: usize) -> Result<Vec<usize>, Fault> {
    let mut rows = vec![None; n_places];
    for (r, p) in places(order, n_places)?.into_iter().enumerate() {
        if rows[p].replace(r).is_some() {
            return Err(format!("the place {p} has two rows"));
        }
    }
    let row = |(p, r): (usize, Option<usize>)| r.ok_or_else(|| format!("the place {p} has no row"));
    rows.into_iter().enumerate().map(row).collect()
}

fn weights_at<'a>(xs: &[&'a Tensor], i: usize) -> Result<Option<&'a [f64]>, Fault> {
    xs.get(i).map(|w| w.floats()).transpose()
}

pub(super) fn dispatch(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (active, weights) = (cx.count("active")?, weights_at(xs, 2)?);
    let rows = |x: &Tensor| -> Result<Vec<f64>, Fault> {
        let (d_len, mut out) = (x.last(), vec![]);
        let (n_tokens, x) = (x.len() / d_len.max(1), x.floats()?);
        for p in places(xs[1], n_tokens * active)? {
            let token = &x[p / active * d_len..(p / active + 1) * d_len];
            let weight = weights.map_or(1.0, |w| w[p]);
            out.extend(token.iter().map(|x| x * weight));
        }
        Ok(out)
    };
    let mut sent = cx.floats(0, rows(xs[0])?)?;
    if let Some(scales) = &xs[0].scales {
        let dims = [sent.dims[0], scales.last()];
        sent.scales = Some(Box::new(Tensor::float(scales.dtype, &dims, rows(scales)?)));
    }
    Ok(sent)
}

pub(super) fn combine(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (rows, active, d_len) = (xs[0].floats()?, cx.count("active")?, xs[0].last());
    let weights = weights_at(xs, 2)?;
    let tokens: usize = cx.dims_attr("tokens")?.iter().product();
    let mut out = vec![0.0; tokens * d_len];
    for (p, r) in rows_of(xs[1], tokens * active)?.into_iter().enumerate() {
        let weight = weights.map_or(1.0, |w| w[p]);
        (0..d_len).for_each(|d| out[p / active * d_len + d] += weight * rows[r * d_len + d]);
    }
    cx.floats(0, out)
}

pub(super) fn combine_dot(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (rows, dy) = (xs[0].floats()?, xs[2].floats()?);
    let (active, d_len) = (cx.count("active")?, xs[0].last());
    let tokens = dy.len() / d_len.max(1);
    let rows_of = rows_of(xs[1], tokens * active)?;
    let dot = |(p, r): (usize, usize)| {
        (0..d_len).map(|d| dy[p / active * d_len + d] * rows[r * d_len + d]).sum()
    };
    cx.floats(0, rows_of.into_iter().enumerate().map(dot).collect())
}
