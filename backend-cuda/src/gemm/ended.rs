//! When a region goes on with a product's sums in registers, and when it runs by itself.
//!
//! Together, what passes between is neither written nor read, and launches are saved. But a tile is
//! then of whole groups of codes, and of two products at once: it is wide, so that of few rows
//! there are few tiles, and while a tile's threads compute the region its tensor cores rest.
//!
//! Both are counted in cycles of the machine ([`cycles`]), with the rates below; estimates, as no
//! GPU has run either. Of gate and up with codes of 7168 terms and 2048 columns they give one
//! kernel for 4,096 rows, and several for 128.

use std::sync::Arc;

use weft_graph::{DimDecl, DimExpr};
use weft_lower::describe::product::{self, Ended, Form, Multiplied, Planned};
use weft_lower::region::fingerprint;

use super::epilogue::Epilogue;
use super::plan::{Template, of_bf16, of_codes};
use super::select::{Budget, cycles, n_waves, select, sharing, widths};
use super::{Gemm, Store, TILE_ROWS};

/// Bytes a cycle between the machine and its memory: 3.35 TB/s at 1.7 GHz.
const MEMORY_BYTES: u64 = 1900;
/// Cycles from the end of a launch to the work of the next one, in a recorded graph.
const LAUNCH_CYCLES: u64 = 1500;
/// Operations a cycle of a multiprocessor's plain threads.
const PLAIN_OPS: u64 = 128;

/// The kernel for both, where there is one and it is the faster way.
pub fn plan(ended: &Ended, budget: Budget, dims: &[DimDecl], label: &str) -> Option<Planned> {
    let template = match &ended.product {
        Multiplied::Plain(gemm) => of_bf16(gemm, dims)?,
        Multiplied::Scaled(gemm) => of_codes(gemm, dims)?,
    };
    let chosen = chosen(ended, &template, budget)?;
    if together(ended, &template, &chosen, budget) > apart(ended, &template, budget, dims) {
        return None;
    }
    let mut planned = template.planned(&sharing(&chosen, template.sizes, budget), budget, label);
    planned.scalars.extend(ended.scalars.iter().cloned());
    let n = ended.keeps.len() as i64;
    planned.flops = planned.flops * n + ended.apart.flops.clone();
    planned.bytes = bytes(ended, &template.gemm);
    Some(planned)
}

/// The kernel with tiles of the best width, if any fits.
fn chosen(ended: &Ended, template: &Template, budget: Budget) -> Option<Gemm> {
    if !matches!(template.gemm.form, Form::Dense | Form::Rows { .. }) {
        return None;
    }
    let hint = ended.apart.kernel.name.rsplit_once('_').map_or("region", |(hint, _)| hint);
    let epilogue = Epilogue {
        region_name: format!("{hint}_{:016x}", fingerprint(&ended.region.code())),
        region: Arc::new(ended.region.clone()),
        keeps: ended.keeps.clone(),
    };
    let store = match template.shape.store {
        Store::Tensor => Store::Paired,
        other => other,
    };
    let shape = Gemm { epilogue: Some(epilogue), store, ..template.shape.clone() };
    let whole = |tile_cols: &u32| template.sizes.n.is_multiple_of(u64::from(*tile_cols));
    let with = |tile_cols: u32| Gemm { tile_cols, ..shape.clone() };
    let all = widths(&shape).into_iter().filter(whole).map(with);
    all.min_by_key(|gemm| together(ended, template, gemm, budget))
}

/// Cycles of one kernel for all.
fn together(ended: &Ended, template: &Template, gemm: &Gemm, budget: Budget) -> u64 {
    let waves = n_waves(gemm, template.sizes, budget);
    let elements = u64::from(TILE_ROWS) * u64::from(gemm.tile_cols);
    cycles(gemm, template.sizes, budget) + waves * elements * ended.region.ops() / PLAIN_OPS
}

/// Cycles of the products and the region as launches of their own.
fn apart(ended: &Ended, template: &Template, budget: Budget, dims: &[DimDecl]) -> u64 {
    let sizes = template.sizes;
    let n = ended.keeps.len() as u64;
    let one = cycles(&select(&template.shape, sizes, budget), sizes, budget);
    let bound = |e: &DimExpr| e.range(dims).map_or(0, |(_, most)| most.max(0) as u64);
    // C of a product that is not kept is written for the region alone.
    let written = ended.keeps.iter().filter(|keeps| !**keeps).count() as i64;
    let moved = bound(&ended.apart.bytes) + bound(&(c_bytes(&template.gemm) * written));
    let ops = sizes.m * sizes.n * ended.region.ops();
    let computes = ops / (PLAIN_OPS * u64::from(budget.sms));
    n * (one + LAUNCH_CYCLES) + (moved / MEMORY_BYTES).max(computes)
}

fn c_bytes(gemm: &product::Gemm) -> DimExpr {
    gemm.m.clone() * gemm.n.clone() * i64::from(gemm.c.dtype.bits() / 8)
}

/// Bytes that are read and written.
fn bytes(ended: &Ended, gemm: &product::Gemm) -> DimExpr {
    let n = ended.keeps.len() as i64;
    let kept = ended.keeps.iter().filter(|keeps| **keeps).count() as i64;
    let a = gemm.m.clone() * gemm.k.clone() * i64::from(gemm.a.dtype.bits() / 8);
    let each = product::bytes(gemm) + a.clone() * -1 + c_bytes(gemm) * -1;
    let region = ended.apart.bytes.clone() + c_bytes(gemm) * -n;
    a + each * n + c_bytes(gemm) * kept + region
}
