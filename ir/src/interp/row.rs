//! Ops on the last dim: norms, softmax, rotary embedding, cross entropy.

use super::{Cx, Fault, Tensor};

pub(super) fn rms_norm(cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let (x, g, eps) = (xs[0].floats()?, xs[1].floats()?, cx.float("eps"));
    let (mut y, mut rs) = (vec![], vec![]);
    for x in x.chunks(g.len().max(1)) {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + eps).sqrt();
        y.extend(x.iter().zip(g).map(|(x, g)| g * x * r));
        rs.push(r);
    }
    Ok(vec![cx.floats(0, y)?, cx.floats(1, rs)?])
}

pub(super) fn rms_norm_grad(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (x, g, r, dy) = (xs[0].floats()?, xs[1].floats()?, xs[2].floats()?, xs[3].floats()?);
    let n = g.len();
    let mut out = vec![];
    for (i, r) in r.iter().enumerate() {
        let (x, dy) = (&x[i * n..(i + 1) * n], &dy[i * n..(i + 1) * n]);
        let mean = (0..n).map(|d| g[d] * dy[d] * x[d]).sum::<f64>() / n as f64;
        out.extend((0..n).map(|d| r * (g[d] * dy[d] - x[d] * r * r * mean)));
    }
    cx.floats(0, out)
}

/// The largest of `row` and `Σ e^(x - largest)`.
fn exp_sum(row: &[f64]) -> (f64, f64) {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, super::pointwise::max);
    (top, row.iter().map(|x| (x - top).exp()).sum())
}

pub(super) fn softmax(cx: &Cx, x: &Tensor) -> Result<Tensor, Fault> {
    let mut out = vec![];
    for row in x.floats()?.chunks(x.last().max(1)) {
        let (top, sum) = exp_sum(row);
        out.extend(row.iter().map(|x| (x - top).exp() / sum));
    }
    cx.floats(0, out)
}

pub(super) fn rotary(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (x, positions, freq) = (xs[0].floats()?, xs[1].ints()?, xs[2].floats()?);
    let (heads, d_len) = (xs[0].dims[2], xs[0].dims[3]);
    let direction = if cx.flag("inverse") { -1.0 } else { 1.0 };
    let mut out = vec![0.0; x.len()];
    for (row, position) in positions.iter().enumerate() {
        for (i, freq) in freq.iter().enumerate() {
            let (sin, cos) = (direction * cx.f32(*position as f64 * freq)).sin_cos();
            let pair = if cx.flag("interleaved") { (2 * i, 2 * i + 1) } else { (i, i + d_len / 2) };
            for h in 0..heads {
                let at = (row * heads + h) * d_len;
                let (a, b) = (x[at + pair.0], x[at + pair.1]);
                out[at + pair.0] = a * cos - b * sin;
                out[at + pair.1] = a * sin + b * cos;
            }
        }
    }
    cx.floats(0, out)
}

/// The target as a place in the row; `None` if negative.
fn target(id: i64, n: usize) -> Result<Option<usize>, Fault> {
    match usize::try_from(id) {
        Err(_) => Ok(None),
        Ok(i) if i < n => Ok(Some(i)),
        Ok(_) => Err(format!("the target {id} is not below {n}")),
    }
}

pub(super) fn cross_entropy(cx: &Cx, xs: &[&Tensor]) -> Result<Vec<Tensor>, Fault> {
    let (logits, ids, n) = (xs[0].floats()?, xs[1].ints()?, xs[0].last());
    let (mut loss, mut lse) = (vec![], vec![]);
    for (row, id) in logits.chunks(n.max(1)).zip(ids) {
        let (top, sum) = exp_sum(row);
        let log_sum = top + sum.ln();
        loss.push(target(*id, n)?.map_or(0.0, |t| log_sum - row[t]));
        lse.push(log_sum);
    }
    Ok(vec![cx.floats(0, loss)?, cx.floats(1, lse)?])
}

pub(super) fn cross_entropy_grad(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (logits, ids, n) = (xs[0].floats()?, xs[1].ints()?, xs[0].last());
    let (lse, dloss) = (xs[2].floats()?, xs[3].floats()?);
    let mut out = vec![0.0; logits.len()];
    for (i, id) in ids.iter().enumerate() {
        let Some(t) = target(*id, n)? else { continue };
        for j in 0..n {
            let hit = if j == t { 1.0 } else { 0.0 };
            out[i * n + j] = dloss[i] * ((logits[i * n + j] - lse[i]).exp() - hit);
        }
    }
    cx.floats(0, out)
}
