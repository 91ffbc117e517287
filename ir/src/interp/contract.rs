//! Contractions. `M`, `K`, `N` are the rows, the summed dim and the columns.

use super::scaled::{self, Coded, scales_len, scales_of};
use super::{Cx, Fault, Tensor};

/// `x y` for `x` of `K` columns and `y` of `N`, row by row of `y` so that memory is read in its
/// order.
fn product(x: &[f64], y: &[f64], k_len: usize, n_len: usize) -> Vec<f64> {
    let m_len = x.len() / k_len.max(1);
    let mut out = vec![0.0; m_len * n_len];
    for m in 0..m_len {
        let row = &mut out[m * n_len..(m + 1) * n_len];
        for k in 0..k_len {
            let (a, y_row) = (x[m * k_len + k], &y[k * n_len..(k + 1) * n_len]);
            row.iter_mut().zip(y_row).for_each(|(out, y)| *out += a * y);
        }
    }
    out
}

/// The matrix of `width` columns, transposed if `swap`.
fn matrix(x: &[f64], width: usize, swap: bool) -> Vec<f64> {
    if !swap {
        return x.to_vec();
    }
    let rows = x.len() / width.max(1);
    (0..width).flat_map(|c| (0..rows).map(move |r| x[r * width + c])).collect()
}

pub(super) fn matmul(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (tx, ty) = (cx.flag("tx"), cx.flag("ty"));
    let (x, y) = (xs[0].floats()?, xs[1].floats()?);
    let (rank, y_rank) = (xs[0].dims.len(), xs[1].dims.len());
    let (x_rows, x_cols) = (xs[0].dims[rank - 2], xs[0].dims[rank - 1]);
    let (y_rows, y_cols) = (xs[1].dims[y_rank - 2], xs[1].dims[y_rank - 1]);
    let k_len = if tx { x_rows } else { x_cols };
    let n_len = if ty { y_rows } else { y_cols };
    let batch: usize = xs[0].dims[..rank - 2].iter().product();
    if let (Some((xs_of, x_group)), Some((ys_of, y_group))) =
        (scales_of(cx, xs, 0, 2)?, scales_of(cx, xs, 1, 2)?)
    {
        let m_len = if tx { x_cols } else { x_rows };
        let (x_grid, y_grid) =
            (scales_len(x_rows, x_cols, x_group), scales_len(y_rows, y_cols, y_group));
        let mut out = vec![];
        for b in 0..batch {
            let own = if y_rank == 2 { 0 } else { b };
            let (codes, scales) = (&x[b * x_rows * x_cols..], &xs_of[b * x_grid..]);
            let x = Coded { codes, scales, cols: x_cols, group: x_group, swap: tx };
            let (codes, scales) = (&y[own * y_rows * y_cols..], &ys_of[own * y_grid..]);
            let y = Coded { codes, scales, cols: y_cols, group: y_group, swap: ty };
            out.extend(scaled::product(cx, &x, &y, (m_len, n_len), 0..k_len));
        }
        return cx.floats(0, out);
    }
    let shared = if y_rank == 2 { matrix(y, y_cols, ty) } else { vec![] };
    let mut out = vec![];
    for b in 0..batch {
        let x = matrix(&x[b * x_rows * x_cols..(b + 1) * x_rows * x_cols], x_cols, tx);
        if y_rank == 2 {
            out.extend(product(&x, &shared, k_len, n_len));
        } else {
            let y = &y[b * y_rows * y_cols..(b + 1) * y_rows * y_cols];
            out.extend(product(&x, &matrix(y, y_cols, ty), k_len, n_len));
        }
    }
    cx.floats(0, out)
}

/// The segments' rows: `offsets` ascends from 0 to the number of rows, or some are left.
fn segments(offsets: &Tensor, rows: usize) -> Result<Vec<(usize, usize)>, Fault> {
    let o = offsets.ints()?;
    let ascends = o.windows(2).all(|w| w[0] <= w[1]);
    if o.first() != Some(&0) || o.last().is_none_or(|last| *last > rows as i64) || !ascends {
        return Err(format!("offsets do not ascend from 0 to at most the {rows} rows"));
    }
    Ok(o.windows(2).map(|w| (w[0] as usize, w[1] as usize)).collect())
}

pub(super) fn grouped_matmul(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let ty = cx.flag("ty");
    let (x, w) = (xs[0].floats()?, xs[1].floats()?);
    let (rows, k_len) = (xs[0].dims[0], xs[0].dims[1]);
    let w_cols = xs[1].dims[2];
    let n_len = if ty { xs[1].dims[1] } else { w_cols };
    if let (Some((xs_of, x_group)), Some((ws_of, w_group))) =
        (scales_of(cx, xs, 0, 3)?, scales_of(cx, xs, 1, 3)?)
    {
        let (w_rows, x_grid) = (xs[1].dims[1], k_len.div_ceil(x_group[1] as usize));
        let w_grid = scales_len(w_rows, w_cols, w_group);
        let mut out = vec![];
        for (e, (from, to)) in segments(xs[2], rows)?.into_iter().enumerate() {
            // A row's place among groups of rows is that in the whole array.
            for row in from..to {
                let scales = &xs_of[row / x_group[0] as usize * x_grid..];
                let group = [1, x_group[1]];
                let codes = &x[row * k_len..];
                let x = Coded { codes, scales, cols: k_len, group, swap: false };
                let (codes, scales) = (&w[e * w_rows * w_cols..], &ws_of[e * w_grid..]);
                let w = Coded { codes, scales, cols: w_cols, group: w_group, swap: ty };
                out.extend(scaled::product(cx, &x, &w, (1, n_len), 0..k_len));
            }
        }
        out.resize(rows * n_len, 0.0);
        return cx.floats(0, out);
    }
    let mut out = vec![];
    for (e, (from, to)) in segments(xs[2], rows)?.into_iter().enumerate() {
        let w = matrix(&w[e * k_len * n_len..(e + 1) * k_len * n_len], w_cols, ty);
        out.extend(product(&x[from * k_len..to * k_len], &w, k_len, n_len));
    }
    out.resize(rows * n_len, 0.0);
    cx.floats(0, out)
}

pub(super) fn grouped_outer(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (x, y) = (xs[0].floats()?, xs[1].floats()?);
    let (rows, m_len, n_len) = (xs[0].dims[0], xs[0].dims[1], xs[1].dims[1]);
    let mut out = vec![];
    if let (Some((scales, group)), Some((y_scales, y_group))) =
        (scales_of(cx, xs, 0, 3)?, scales_of(cx, xs, 1, 3)?)
    {
        let x = Coded { codes: x, scales, cols: m_len, group, swap: true };
        let y = Coded { codes: y, scales: y_scales, cols: n_len, group: y_group, swap: false };
        for (from, to) in segments(xs[2], rows)? {
            out.extend(scaled::product(cx, &x, &y, (m_len, n_len), from..to));
        }
        return cx.floats(0, out);
    }
    for (from, to) in segments(xs[2], rows)? {
        let x = matrix(&x[from * m_len..to * m_len], m_len, true);
        // A segment of no rows has a product of zeros, whose size its operands do not tell.
        if from == to {
            out.extend(vec![0.0; m_len * n_len]);
        } else {
            out.extend(product(&x, &y[from * n_len..to * n_len], to - from, n_len));
        }
    }
    cx.floats(0, out)
}
