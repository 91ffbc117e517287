//! From attention as lowering describes it to a launch over shared latents, where that is what it
//! is: all heads share every k, and v is the first of them. Pages of other than whole blocks of
//! keys are left to plain threads.

use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_lower::describe::attention::{self, Buffer, Heads, Launch, Planned};

use super::{BLOCK_KEYS, Decode, TILE_HEADS};
use crate::flash::plan::{common_buffer, common_scalar, copied};
use crate::flash::signature::Argument;
use crate::flash::template::Template;
use crate::gemm::select::Budget;
use crate::simt::combine;

/// Shorter pieces would write more than they read.
const CHUNK_MIN: i64 = 256;

/// Plans it; `None` leaves it to other kernels.
pub fn plan(
    of: &attention::Attention,
    budget: Budget,
    dims: &[DimDecl],
    label: &str,
) -> Option<Planned> {
    let q = of.parts.iter().map(|p| &p.q);
    let k = of.parts.iter().map(|p| &p.k);
    let shared = k.clone().all(|k| k.heads == 1) && of.v_is_k;
    if of.dtype != DType::Bf16 || !of.aligned || of.scale <= 0.0 || of.segments || !shared {
        return None;
    }
    let whole_blocks = |page: i64| page % i64::from(BLOCK_KEYS) == 0;
    if of.pages.as_ref().is_some_and(|pages| !whole_blocks(pages.size)) {
        return None;
    }
    if !q.chain(k).all(copied) || !of.o.strides.iter().all(|s| s.is_multiple_of(2)) {
        return None;
    }
    let most = |e: &DimExpr| e.range(dims).map(|(_, most)| most.max(1));
    let heads = of.parts[0].q.heads;
    let tiles = most(&of.batch)?
        .checked_mul(most(&of.queries)?)?
        .checked_mul((heads as u64).div_ceil(TILE_HEADS.into()) as i64)?;
    let chunk = chunk(most(&of.keys)?, tiles, budget);
    let width = |w: i64| u32::try_from(w).ok();
    let kernel = Decode {
        parts: of.parts.iter().map(|p| width(p.q.width)).collect::<Option<_>>()?,
        causal: of.causal,
        offset: of.offset,
        split: most(&of.keys)? > chunk,
        paged: of.pages.is_some(),
    };
    kernel.check().ok()?;

    let mut planned = Planned { launches: vec![], workspaces: vec![] };
    let pieces = if kernel.split { of.keys.clone().ceil_div(chunk) } else { 1.into() };
    let mut first = launch(of, &kernel, chunk, pieces.clone(), label);
    first.kernel.cta.grid_max = Some(budget.sms);
    planned.launches.push(first);
    if kernel.split {
        let lines = pieces * of.batch.clone() * of.queries.clone() * heads;
        let width = i64::from(kernel.v_width());
        planned.workspaces = vec![lines.clone() * (width * 4), lines * 4];
        let from = [Buffer::Workspace(0), Buffer::Workspace(1)];
        planned.launches.push(combine::launch(of, chunk, from, label));
    }
    Some(planned)
}

/// Keys of a piece: whole pairs of blocks, so that there are as many pieces as multiprocessors at
/// the bounds of all sizes. It depends on bounds alone, so that the sizes of a call do not change a
/// row's sums.
fn chunk(keys: i64, tiles: i64, budget: Budget) -> i64 {
    let pieces = (i64::from(budget.sms) / tiles).max(1);
    let keys = (keys as u64).div_ceil(pieces as u64);
    (keys.next_multiple_of((2 * BLOCK_KEYS).into()) as i64).max(CHUNK_MIN)
}

fn launch(
    of: &attention::Attention,
    kernel: &Decode,
    chunk: i64,
    pieces: DimExpr,
    label: &str,
) -> Launch {
    let signature = kernel.signature();
    let buffer = |argument: &Argument| match argument {
        Argument::PartialO => Some(Buffer::Workspace(0)),
        Argument::PartialLse => Some(Buffer::Workspace(1)),
        _ => common_buffer(argument),
    };
    let scalar = |argument: &Argument| match argument {
        Argument::Chunk => Some(Scalar::Dim(chunk.into())),
        _ => common_scalar(of, None, argument),
    };
    let source = kernel.source(label);
    let heads = of.parts[0].q.heads;
    let width: i64 = of.parts.iter().map(|p| p.q.width).sum();
    let v_width = i64::from(kernel.v_width());
    let queries = of.batch.clone() * of.queries.clone();
    let bytes = |h: &Heads, rows: &DimExpr| of.batch.clone() * rows.clone() * (h.heads * h.width);
    let mut moved = bytes(&of.o, &of.queries);
    for part in &of.parts {
        moved = moved + bytes(&part.q, &of.queries) + bytes(&part.k, &of.keys);
    }
    let tiles = (heads as u64).div_ceil(TILE_HEADS.into()) as i64;
    Launch {
        kernel: source,
        scratch_bytes: 0,
        buffers: signature.arguments().iter().filter_map(buffer).collect(),
        scalars: signature.arguments().iter().filter_map(scalar).collect(),
        grid: queries.clone() * pieces * tiles,
        flops: queries * of.keys.clone() * (heads * 2 * (width + v_width)),
        bytes: moved * i64::from(of.dtype.bits() / 8),
    }
}
