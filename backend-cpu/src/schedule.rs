//! How a nest is cut into blocks and loops.

use weft_codegen::region::emit::Schedule;
use weft_codegen::region::graph::NodeId;
use weft_codegen::region::index::Var;
use weft_codegen::region::trace::{ExprId, Nest, Root};
use weft_ir::dim::Dim;
use weft_lower::region::schedule::{
    Folds, LANES_MAX, Scheduled, kept, lanes_fit, parts, repeated, sink,
};

/// Elements of a block, about: some microseconds of work.
const BLOCK_ELEMENTS: u64 = 4096;
/// A fold of up to so many elements may be done by each call of a kernel.
const PER_CALL_MAX: u64 = 1024;

/// A schedule, or the node of a fold that has to be stored by a launch before.
pub fn schedule(nest: &Nest, max: &dyn Fn(Dim) -> u64) -> Result<Scheduled, NodeId> {
    let extent = |v: &Var| max(nest.vars.extent(*v)).max(1);
    let main: Vec<Var> = nest.main.iter().copied().filter(|v| Some(*v) != nest.part).collect();
    let lanes = main.last().copied().filter(|v| lanes_fit(nest, *v));
    let folds = Folds::of(nest);
    let work = |vars: &[Var]| {
        let product = vars.iter().map(&extent).fold(1u64, u64::saturating_mul);
        let inside = |e: &ExprId| match lanes {
            Some(v) => nest.exprs[e.0 as usize].deps.contains(&v),
            None => true,
        };
        let of_fold = |(e, vars): &(ExprId, Vec<Var>)| {
            if !inside(e) {
                return 1;
            }
            vars.iter().map(&extent).fold(1, u64::saturating_mul)
        };
        product.saturating_mul(folds.all.iter().map(of_fold).max().unwrap_or(1))
    };
    let row_folds = folds
        .all
        .iter()
        .any(|(e, _)| lanes.is_some_and(|v| !nest.exprs[e.0 as usize].deps.contains(&v)));
    let mut split = main.len().saturating_sub(1);
    while split > 0 && work(&main[split..]) < BLOCK_ELEMENTS {
        split -= 1;
    }
    let (mut grid, mut order) = (main[..split].to_vec(), main[split..].to_vec());
    let mut chunk = None;
    if let Some(first) = order.first().copied() {
        let inner = work(&order[1..]).max(1);
        let whole_row = lanes == Some(first) && row_folds;
        let mut n = BLOCK_ELEMENTS.div_ceil(inner).max(1);
        if lanes == Some(first) {
            n = n.next_multiple_of(LANES_MAX * 4);
        }
        if !whole_row && n < extent(&first) {
            chunk = Some(n as i64);
        }
    }
    if let Some(index) = nest.part {
        grid.insert(0, index);
    }
    sink(nest, lanes, chunk.is_some(), &mut order);
    let planned_order: Vec<Var> = grid.iter().chain(&order).copied().collect();
    // A value that is the same for several blocks is not theirs to store.
    let blocks = grid.iter().chain(chunk.map(|_| &order[0]));
    let shared = |r: &&Root| blocks.clone().any(|v| !r.deps.contains(v));
    if let Some(root) = nest.roots.iter().find(shared) {
        return Err(root.node);
    }
    let chunked = chunk.map(|_| order[0]);
    if let Some(node) = repeated(nest, &planned_order, chunked, PER_CALL_MAX, &extent) {
        return Err(node);
    }
    let kept = kept(nest, &folds, lanes, &extent);
    let scratch_bytes = kept.1 * 4;
    let lane_folds = folds
        .all
        .iter()
        .any(|(e, _)| lanes.is_some_and(|v| nest.exprs[e.0 as usize].deps.contains(&v)));
    let sizes = grid.iter().map(|v| nest.vars.extent(*v)).collect();
    let chunked = chunk.map(|n| (nest.vars.extent(order[0]), n));
    let unroll = if lane_folds { 4 } else { 1 };
    let kept = kept.0;
    let parts = parts(nest);
    let schedule =
        Schedule { grid, chunk, order, lanes, unroll, parts, kept, ..Schedule::default() };
    Ok(Scheduled { schedule, grid: sizes, chunked, scratch_bytes })
}
