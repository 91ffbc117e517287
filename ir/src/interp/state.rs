//! States: caches and the optimizer's step. A state's value is the tensor it holds.

use super::pages::Pages;
use super::{Cx, Data, Fault, Tensor};

pub(super) fn cache_append(cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let (cache, x) = (xs[0], xs[1]);
    let pages = xs.get(3).map(|pages| Pages::of(pages, cache)).transpose()?;
    let positions = pages.as_ref().map_or(cache.dims[1], Pages::positions);
    let s_len = x.dims[1];
    let width: usize = x.dims[2..].iter().product();
    // For each row of the cache, [b, t] or [page, row], the row of x that is written there.
    let mut source: Vec<Option<usize>> = vec![None; cache.dims[0] * cache.dims[1]];
    for (b, start) in xs[2].ints()?.iter().enumerate() {
        for s in 0..s_len {
            let at =
                usize::try_from(start.saturating_add(s as i64)).ok().filter(|t| *t < positions);
            let Some(t) = at else {
                return Err(format!("position {start} + {s} is not within 0..{positions}"));
            };
            let row = match &pages {
                None => b * positions + t,
                Some(pages) if pages.page(b, t) < 0 => continue,
                Some(pages) => pages.row(b, t)?,
            };
            source[row] = Some(b * s_len + s);
        }
    }
    let mut data = cache.data.none();
    for (row, from) in source.into_iter().enumerate() {
        match from {
            Some(from) => data.append(&x.data, from * width, width)?,
            None => data.append(&cache.data, row * width, width)?,
        }
    }
    Ok(vec![cx.result(0, data.clone())?, cx.result(1, data)?])
}

pub(super) fn adamw(cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let (w, m, v, g) = (xs[0].floats()?, xs[1].floats()?, xs[2].floats()?, xs[3].floats()?);
    let (lr, t) = (xs[4].floats()?[0], xs[5].floats()?[0]);
    let (beta1, beta2) = (cx.float("beta1"), cx.float("beta2"));
    let (eps, decay) = (cx.float("eps"), cx.float("decay"));
    let (mut w2, mut m2, mut v2) = (vec![], vec![], vec![]);
    for i in 0..w.len() {
        let m = beta1 * m[i] + (1.0 - beta1) * g[i];
        let v = beta2 * v[i] + (1.0 - beta2) * g[i] * g[i];
        let m_hat = m / (1.0 - beta1.powf(t));
        let v_hat = v / (1.0 - beta2.powf(t));
        w2.push(w[i] - lr * (m_hat / (v_hat.sqrt() + eps) + decay * w[i]));
        m2.push(m);
        v2.push(v);
    }
    let all = [w2, m2, v2].into_iter().enumerate();
    all.map(|(i, data)| cx.result(i, Data::Float(data))).collect()
}
