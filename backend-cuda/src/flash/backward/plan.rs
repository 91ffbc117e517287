//! From the derivative of attention as lowering describes it to launches on tensor cores, where
//! they can do it: the kernel of queries, that of keys (or one for keys and one for values, where
//! both do not fit in registers), and for each result that heads share the sum of its parts.

use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_lower::describe::attention::{self, Buffer, Gradients, Heads, Launch, Planned};

use super::{Backward, Makes, TILE_ROWS};
use crate::flash::plan::{self, common_buffer, common_scalar};
use crate::flash::signature::Argument;
use crate::flash::template::Template;
use crate::gemm::select::Budget;
use crate::simt::sum_heads;

/// Of each query: two numbers of f32.
const STATISTICS: Buffer = Buffer::Workspace(0);

/// Plans the derivative; `None` leaves it to plain threads.
pub fn plan(
    of: &attention::Attention,
    gradients: &Gradients,
    budget: Budget,
    dims: &[DimDecl],
    label: &str,
) -> Option<Planned> {
    let shape = plan::shape(of, dims)?;
    let fits = |heads: &&Heads| plan::copied(heads);
    if ![&gradients.d_o, &of.o].iter().all(fits) {
        return None;
    }
    let pair = |heads: &Heads| heads.strides.iter().all(|s| s.is_multiple_of(2));
    let made = gradients.dq.iter().chain(&gradients.dk).chain([&gradients.dv]);
    if !made.into_iter().all(pair) {
        return None;
    }
    let heads = of.parts[0].q.heads;
    let shares: Vec<i64> = of.parts.iter().map(|p| p.k.heads).chain([of.v.heads]).collect();
    // A tile of keys is of one head of whatever has most.
    let most = shares.iter().copied().max()?;
    let units = if shares.iter().all(|n| most % n == 0) { most } else { heads };
    let n = of.parts.len();
    let backward = |makes: Makes, partial: Vec<bool>| {
        let backward = Backward { of: shape.clone(), makes, partial };
        backward.check().ok().map(|()| backward)
    };
    let dq = backward(Makes::Queries, vec![false; n])?;
    let partial: Vec<bool> = shares.iter().map(|shared| *shared != units).collect();
    let of_keys = match backward(Makes::KeysAndValues, partial.clone()) {
        Some(both) => vec![both],
        None => vec![
            backward(Makes::Keys, partial[..n].to_vec())?,
            backward(Makes::Values, partial[n..].to_vec())?,
        ],
    };

    let tile = i64::from(TILE_ROWS);
    let padded = of.queries.clone().round_up(tile);
    let mut workspaces = vec![of.batch.clone() * padded * (heads * 2 * 4)];
    let results = gradients.dq.iter().enumerate().map(|(i, h)| (Buffer::DQ(i), h.clone()));
    let rows = of.queries.clone().ceil_div(tile) * of.batch.clone() * heads;
    let mut launches = vec![launch(of, gradients, &dq, results.collect(), rows, 1, label)];
    let mut sums = vec![];
    for kernel in &of_keys {
        let first = if kernel.makes == Makes::Values { n } else { 0 };
        let mut results = vec![];
        for (i, partial) in kernel.partial.iter().enumerate() {
            let (buffer, lies) = match gradients.dk.get(first + i) {
                Some(dk) => (Buffer::DK(first + i), dk),
                None => (Buffer::DV, &gradients.dv),
            };
            if !partial {
                results.push((buffer, lies.clone()));
                continue;
            }
            let parts = Heads::row_major(of.keys.clone(), units, lies.width);
            let workspace = Buffer::Workspace(workspaces.len());
            workspaces.push(of.batch.clone() * of.keys.clone() * (units * lies.width * 4));
            let sizes = [of.batch.clone(), of.keys.clone()];
            sums.push(sum_heads::launch(sizes, units, lies, [workspace, buffer], label));
            results.push((workspace, parts));
        }
        let rows = of.keys.clone().ceil_div(tile) * of.batch.clone() * units;
        launches.push(launch(of, gradients, kernel, results, rows, heads / units, label));
    }
    // All of these are persistent.
    launches.iter_mut().for_each(|l| l.kernel.cta.grid_max = Some(budget.sms));
    launches.extend(sums);
    Some(Planned { launches, workspaces })
}

fn launch(
    of: &attention::Attention,
    gradients: &Gradients,
    kernel: &Backward,
    made: Vec<(Buffer, Heads)>,
    grid: DimExpr,
    heads_per_unit: i64,
    label: &str,
) -> Launch {
    let signature = kernel.signature();
    let buffer = |argument: &Argument| match argument {
        Argument::Statistics => Some(STATISTICS),
        Argument::Made(i) => Some(made[*i].0),
        _ => common_buffer(argument),
    };
    let scalar = |argument: &Argument| match argument {
        Argument::HeadsPerUnit => Some(Scalar::Dim(heads_per_unit.into())),
        Argument::MadeStride(i, dim) => Some(Scalar::Dim(made[*i].1.strides[*dim].clone())),
        _ => common_scalar(of, Some(&gradients.d_o), argument),
    };
    let source = kernel.source(label);
    let widths = |width: &u32| i64::from(*width);
    let x: i64 = kernel.of.parts.iter().map(widths).sum();
    let y = i64::from(kernel.of.v_width);
    // Scores, what y gives, and the products of the results.
    let terms = x + if kernel.makes == Makes::Values { 0 } else { y };
    let terms = terms + kernel.made_widths().iter().map(widths).sum::<i64>();
    let heads = of.parts[0].q.heads;
    let rows = of.queries.clone() + of.keys.clone();
    let bytes = i64::from(DType::Bf16.bits() / 8) * heads;
    Launch {
        kernel: source,
        scratch_bytes: 0,
        buffers: signature.arguments().iter().filter_map(buffer).collect(),
        scalars: signature.arguments().iter().filter_map(scalar).collect(),
        grid,
        flops: of.batch.clone() * of.queries.clone() * of.keys.clone() * (heads * 2 * terms),
        bytes: of.batch.clone() * rows * ((x + y) * bytes),
    }
}
