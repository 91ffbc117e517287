//! Contractions. `M`, `K`, `N` are the rows, the summed dim and the columns.

use super::{Cx, Fault, Tensor};

/// `out[m, n] = Σ_k x(m, k) y(k, n)`; a matrix is given with its strides along `(m, k)` and `(k, n)`.
fn product(
    out: &mut [f64],
    (x, x_strides): (&[f64], (usize, usize)),
    (y, y_strides): (&[f64], (usize, usize)),
    (m_len, k_len, n_len): (usize, usize, usize),
) {
    for m in 0..m_len {
        let row = &mut out[m * n_len..(m + 1) * n_len];
        if y_strides.0 == 1 {
            for (n, out) in row.iter_mut().enumerate() {
                let column = &y[n * y_strides.1..n * y_strides.1 + k_len];
                let x_at = |k: usize| x[m * x_strides.0 + k * x_strides.1];
                *out = column.iter().enumerate().map(|(k, y)| x_at(k) * y).sum();
            }
        } else {
            for k in 0..k_len {
                let a = x[m * x_strides.0 + k * x_strides.1];
                let y_row = &y[k * y_strides.0..];
                row.iter_mut().enumerate().for_each(|(n, out)| *out += a * y_row[n * y_strides.1]);
            }
        }
    }
}

/// Strides `(row, column)` of a row-major matrix whose stored last dim is `width`, read swapped or not.
fn matrix_strides(width: usize, swap: bool) -> (usize, usize) {
    if swap { (1, width) } else { (width, 1) }
}

pub(super) fn matmul(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (tx, ty) = (cx.flag("tx"), cx.flag("ty"));
    let (x, y) = (xs[0].floats()?, xs[1].floats()?);
    let (rank, y_rank) = (xs[0].dims.len(), xs[1].dims.len());
    let (x_rows, x_cols) = (xs[0].dims[rank - 2], xs[0].dims[rank - 1]);
    let (y_rows, y_cols) = (xs[1].dims[y_rank - 2], xs[1].dims[y_rank - 1]);
    let (m_len, k_len) = if tx { (x_cols, x_rows) } else { (x_rows, x_cols) };
    let n_len = if ty { y_rows } else { y_cols };
    let batch: usize = xs[0].dims[..rank - 2].iter().product();
    let shared = y_rank == 2;
    let mut out = vec![0.0; batch * m_len * n_len];
    for b in 0..batch {
        let y_at = if shared { 0 } else { b * k_len * n_len };
        product(
            &mut out[b * m_len * n_len..(b + 1) * m_len * n_len],
            (&x[b * m_len * k_len..(b + 1) * m_len * k_len], matrix_strides(x_cols, tx)),
            (&y[y_at..y_at + k_len * n_len], matrix_strides(y_cols, ty)),
            (m_len, k_len, n_len),
        );
    }
    cx.floats(0, out)
}

/// The segments' rows: `offsets` ascends from 0 to the number of rows.
fn segments(offsets: &Tensor, rows: usize) -> Result<Vec<(usize, usize)>, Fault> {
    let o = offsets.ints()?;
    let ascends = o.windows(2).all(|w| w[0] <= w[1]);
    if o.first() != Some(&0) || o.last() != Some(&(rows as i64)) || !ascends {
        return Err(format!("offsets do not ascend from 0 to the {rows} rows"));
    }
    Ok(o.windows(2).map(|w| (w[0] as usize, w[1] as usize)).collect())
}

pub(super) fn grouped_matmul(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let ty = cx.flag("ty");
    let (x, w) = (xs[0].floats()?, xs[1].floats()?);
    let (rows, k_len) = (xs[0].dims[0], xs[0].dims[1]);
    let w_cols = xs[1].dims[2];
    let n_len = if ty { xs[1].dims[1] } else { w_cols };
    let mut out = vec![0.0; rows * n_len];
    for (e, (from, to)) in segments(xs[2], rows)?.into_iter().enumerate() {
        product(
            &mut out[from * n_len..to * n_len],
            (&x[from * k_len..to * k_len], (k_len, 1)),
            (&w[e * k_len * n_len..(e + 1) * k_len * n_len], matrix_strides(w_cols, ty)),
            (to - from, k_len, n_len),
        );
    }
    cx.floats(0, out)
}

pub(super) fn grouped_outer(cx: &Cx, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let (x, y) = (xs[0].floats()?, xs[1].floats()?);
    let (rows, m_len, n_len) = (xs[0].dims[0], xs[0].dims[1], xs[1].dims[1]);
    let segments = segments(xs[2], rows)?;
    let mut out = vec![0.0; segments.len() * m_len * n_len];
    for (e, (from, to)) in segments.into_iter().enumerate() {
        product(
            &mut out[e * m_len * n_len..(e + 1) * m_len * n_len],
            (&x[from * m_len..to * m_len], (1, m_len)),
            (&y[from * n_len..to * n_len], (n_len, 1)),
            (m_len, to - from, n_len),
        );
    }
    cx.floats(0, out)
}
