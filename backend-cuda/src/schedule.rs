//! How a nest is cut into blocks: each a warp's, whose lanes run along the rows of memory.
//!
//! A warp does a row, or a piece of one where nothing is folded along it, so every access of a
//! contiguous operand is a line of 128 bytes (of f32). Where a row is long enough a lane takes
//! neighbours that are 16 bytes together, as far as buffers and strides allow. What a row needs
//! folded is folded by its warp alone, in registers: nothing waits for other warps. But where rows
//! are long, and so few that warps of their own would leave multiprocessors without work (a decode
//! step's), a CTA has each.

use std::collections::BTreeSet;

use weft_codegen::region::emit::{ALIGNED_BYTES, Schedule, Vector};
use weft_codegen::region::graph::NodeId;
use weft_codegen::region::index::{Atom, Ix, Var};
use weft_codegen::region::scalar;
use weft_codegen::region::trace::{Expr, ExprId, Nest, Root};
use weft_ir::dim::Dim;
use weft_lower::region::schedule::{Folds, Scheduled, lanes_fit, parts, repeated};

/// Warps of a CTA: enough CTAs of them fill a multiprocessor, and few are idle at the end.
const WARPS: u32 = 4;
/// Warps of a CTA that has one row.
const WARPS_TOGETHER: u32 = 8;
/// A row is long from here on: each thread of such a CTA has some elements.
const TOGETHER_MIN: u64 = 1024;
/// A longer row is folded by several CTAs, each a part.
pub const SHARED_ROW_MAX: u64 = 1 << 16;
/// Rows are few up to here: eight CTAs of them fill each of an H100's 132 multiprocessors.
const TOGETHER_ROWS_MAX: u64 = 8 * 132;
/// Elements of a piece of a row: eight for each lane, so that loads overlap.
const PIECE: i64 = 256;
/// The same where each lane folds by itself, which is work enough.
const FOLDED_PIECE: i64 = 32;
/// Neighbours that a lane takes at once at most: of a piece every lane has some.
const MOST: u32 = 8;
/// A fold of up to so many elements, the same for all blocks, is done again by each.
const PER_BLOCK_MAX: u64 = 16;

/// A schedule, or the node of a fold that has to be stored by a launch before.
pub fn schedule(nest: &Nest, max: &dyn Fn(Dim) -> u64) -> Result<Scheduled, NodeId> {
    let extent = |v: &Var| max(nest.vars.extent(*v)).max(1);
    let mut grid: Vec<Var> = nest.main.iter().copied().filter(|v| Some(*v) != nest.part).collect();
    let lanes = grid.last().copied().filter(|v| lanes_fit(nest, *v));
    if lanes.is_some() {
        grid.pop();
    }
    let order: Vec<Var> = lanes.into_iter().collect();
    let folds = Folds::of(nest);
    let in_lanes = |v: Var| {
        let depends = |(e, _): &(ExprId, Vec<Var>)| nest.exprs[e.0 as usize].deps.contains(&v);
        (folds.all.iter().any(depends), folds.all.iter().any(|f| !depends(f)))
    };
    let chunk = lanes.and_then(|v| {
        let (by_lane, of_row) = in_lanes(v);
        let piece = if by_lane { FOLDED_PIECE } else { PIECE };
        (!of_row && extent(&v) > piece as u64).then_some(piece)
    });
    let apart = lanes.is_some_and(|v| in_lanes(v).0);
    let vector = if apart { None } else { vector(nest, lanes, &folds) };
    let rows = grid.iter().map(extent).fold(1, u64::saturating_mul);
    let long = folds.all.iter().any(|(e, vars)| {
        let of_row = lanes.is_none_or(|v| !nest.exprs[e.0 as usize].deps.contains(&v));
        of_row && vars.last().is_some_and(|v| extent(v) >= TOGETHER_MIN)
    });
    let few = rows <= TOGETHER_ROWS_MAX && nest.part.is_none();
    let together = few && long && chunk.is_none() && !apart;
    grid.splice(0..0, nest.part);
    let chunked = chunk.and(lanes);
    // A value that is the same for several blocks is not theirs to store.
    let blocks = grid.iter().chain(&chunked);
    let shared = |r: &&Root| blocks.clone().any(|v| !r.deps.contains(v));
    if let Some(root) = nest.roots.iter().find(shared) {
        return Err(root.node);
    }
    let path: Vec<Var> = grid.iter().chain(&order).copied().collect();
    if let Some(node) = repeated(nest, &path, chunked, PER_BLOCK_MAX, &extent) {
        return Err(node);
    }
    Ok(Scheduled {
        grid: grid.iter().map(|v| nest.vars.extent(*v)).collect(),
        chunked: chunked.zip(chunk).map(|(v, n)| (nest.vars.extent(v), n)),
        scratch_bytes: 0,
        schedule: Schedule {
            grid,
            chunk,
            order,
            lanes,
            unroll: 1,
            parts: parts(nest),
            warps: Some(if together { WARPS_TOGETHER } else { WARPS }),
            together,
            vector,
            ..Schedule::default()
        },
    })
}

/// Neighbours that fill an access of the widest element that is contiguous along a loop of lanes.
/// More of narrower ones would part what is wider into two.
fn vector(nest: &Nest, lanes: Option<Var>, folds: &Folds) -> Option<Vector> {
    let along: Vec<Var> =
        folds.all.iter().filter_map(|(_, vars)| vars.last().copied()).chain(lanes).collect();
    let contiguous =
        |ix: &Ix| along.iter().any(|v| ix.coefficient(Atom::Var(*v)).as_constant() == Some(1));
    let loads = nest.exprs.iter().filter_map(|e| match &e.expr {
        Expr::Load { at, .. } if contiguous(at) => Some(e.dtype),
        _ => None,
    });
    let stores = nest.roots.iter().filter(|r| contiguous(&r.at)).map(|r| r.dtype);
    let widest = loads.chain(stores).map(|dtype| scalar::memory(dtype).bytes()).max()?;
    let most = (ALIGNED_BYTES / widest).min(MOST);
    (most > 1).then(|| Vector { most, unaligned: BTreeSet::new() })
}
