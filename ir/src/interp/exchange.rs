//! Rows to the ranks that have their experts, and back. `E` experts, `n` places along the axis, the
//! same number of experts at each.

use super::collective::{Flight, of_group};
use super::{Data, Fault, Run, Tensor};
use crate::module::OpData;
use crate::op::Op;

pub(super) fn run(
    run: &Run,
    op: &OpData,
    flight: Option<Flight>,
    xs: &[&Tensor],
) -> Result<Tensor, Fault> {
    match op.op {
        Op::ExchangeOffsets => offsets(run, op, xs[0]),
        _ => rows(run, op, flight, xs),
    }
}

fn offsets(run: &Run, op: &OpData, own: &Tensor) -> Result<Tensor, Fault> {
    let (place, all) = of_group(run, op, None, own)?;
    let mut got = vec![0];
    let n_own = (own.len() - 1) / all.len();
    for expert in place * n_own..(place + 1) * n_own {
        for sent in &all {
            let (from, to) = segment(sent, expert)?;
            got.push(got[got.len() - 1] + (to - from) as i64);
        }
    }
    Ok(Tensor::i32(&own.dims, got))
}

/// The rows of segment `i`.
fn segment(offsets: &Tensor, i: usize) -> Result<(usize, usize), Fault> {
    match offsets.ints()?.get(i..i + 2) {
        Some([from, to]) if 0 <= *from && from <= to => Ok((*from as usize, *to as usize)),
        _ => Err(format!("offsets do not ascend at segment {i}")),
    }
}

fn rows(run: &Run, op: &OpData, flight: Option<Flight>, xs: &[&Tensor]) -> Result<Tensor, Fault> {
    let back = op.attrs.get_flag("back");
    let (place, rows) = of_group(run, op, flight, xs[0])?;
    let (_, sent) = of_group(run, op, flight, xs[1])?;
    let (_, got) = of_group(run, op, flight, xs[2])?;
    let n = rows.len();
    let n_own = (xs[1].len() - 1) / n;
    // For each segment that comes here, in order: whose it is, and which of theirs.
    let mut segments = vec![];
    if back {
        // From the place that has the expert: among its rows, those of this source.
        for expert in 0..n_own * n {
            let of = expert / n_own;
            segments.push((of, segment(&got[of], expert % n_own * n + place)?));
        }
    } else {
        for expert in place * n_own..(place + 1) * n_own {
            for (of, sent) in sent.iter().enumerate() {
                segments.push((of, segment(sent, expert)?));
            }
        }
    }
    let room = match op.attrs.get_dim("room") {
        Some(dim) => Some(run.dim(dim)?),
        None => None,
    };
    let n_rows = room.unwrap_or(if back { xs[0].dims[0] / n } else { xs[0].dims[0] * n });
    // What others have sent back before lies in front.
    let before = if back { segment(xs[1], 0)?.0 } else { 0 };
    let of_parts = |part: &dyn Fn(&Tensor) -> Result<Tensor, Fault>| -> Result<Tensor, Fault> {
        let all: Vec<Tensor> = rows.iter().map(part).collect::<Result<_, _>>()?;
        moved(&all, &segments, before, n_rows)
    };
    let mut y = of_parts(&|x| Ok(Tensor { scales: None, ..x.clone() }))?;
    if xs[0].scales.is_some() {
        let scales = |x: &Tensor| x.scales.as_deref().cloned().ok_or("has no scales".to_string());
        y.scales = Some(Box::new(of_parts(&scales)?));
    }
    Ok(y)
}

/// Rows of the segments, one after the other; zeros for those before and behind them.
fn moved(
    rows: &[Tensor],
    segments: &[(usize, (usize, usize))],
    before: usize,
    n_rows: usize,
) -> Result<Tensor, Fault> {
    let width = rows[0].len() / rows[0].dims[0].max(1);
    let mut data = rows[0].data.none();
    zeros(&mut data, before * width);
    for (of, (from, to)) in segments {
        if to * width > rows[*of].len() {
            return Err(format!("offsets lie behind the {} rows", rows[*of].dims[0]));
        }
        data.append(&rows[*of].data, from * width, (to - from) * width)?;
    }
    let missing = (n_rows * width).checked_sub(data.len());
    let missing = missing.ok_or_else(|| format!("more than {n_rows} rows come together"))?;
    zeros(&mut data, missing);
    let mut dims = rows[0].dims.clone();
    dims[0] = n_rows;
    Ok(Tensor { dtype: rows[0].dtype, dims, data, scales: None })
}

fn zeros(data: &mut Data, n: usize) {
    match data {
        Data::Float(v) => v.extend(std::iter::repeat_n(0.0, n)),
        Data::Int(v) => v.extend(std::iter::repeat_n(0, n)),
        Data::Bool(v) => v.extend(std::iter::repeat_n(false, n)),
    }
}
