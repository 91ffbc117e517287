//! From attention as lowering describes it to a launch on tensor cores, where they can do it.
//!
//! They take bf16 that TMA can read. Few queries (decoding) would leave most of a tile empty:
//! those, and all else, are `None`, for plain threads.

use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_lower::describe::attention::{self, Buffer, Heads, Planned};

use super::kernel::Argument;
use super::{Attention, TILE_QUERIES};
use crate::gemm::select::Budget;

/// Fewer queries are not worth a tile.
const QUERIES_MIN: i64 = 16;
const BF16_BYTES: i64 = 2;

/// Plans the forward pass; `dims` are those its sizes speak of, and `label` names its source.
pub fn plan(of: &attention::Attention, dims: &[DimDecl], label: &str) -> Option<Planned> {
    let most = of.queries.range(dims).map_or(i64::MAX, |(_, most)| most);
    if of.dtype != DType::Bf16 || !of.aligned || of.scale <= 0.0 || most < QUERIES_MIN {
        return None;
    }
    let tensors = tensors(of);
    // TMA reads in steps of 16 bytes.
    let fits = |heads: &&Heads| heads.strides.iter().all(|s| s.is_multiple_of(16 / BF16_BYTES));
    if !tensors.iter().all(fits) || !of.o.strides.iter().all(|s| s.is_multiple_of(2)) {
        return None;
    }
    let width = |w: i64| u32::try_from(w).ok();
    let shape = Attention {
        parts: of.parts.iter().map(|p| width(p.q.width)).collect::<Option<_>>()?,
        v_width: width(of.v.width)?,
        causal: of.causal,
        offset: of.offset,
        segments: of.segments,
    };
    shape.check().ok()?;
    let heads = of.parts[0].q.heads;
    let mut kernel = shape.source(label);
    kernel.cta.grid_max = Some(Budget::WHOLE.sms);
    let arguments = shape.arguments();
    let widths: i64 = of.parts.iter().map(|p| p.q.width).sum::<i64>() + of.v.width;
    let pairs = of.batch.clone() * of.queries.clone() * of.keys.clone() * heads;
    let bytes = |h: &Heads, rows: &DimExpr| {
        of.batch.clone() * rows.clone() * (h.heads * h.width * BF16_BYTES)
    };
    let mut moved = bytes(&of.o, &of.queries) + bytes(&of.v, &of.keys);
    for part in &of.parts {
        moved = moved + bytes(&part.q, &of.queries) + bytes(&part.k, &of.keys);
    }
    let launch = attention::Launch {
        kernel,
        scratch_bytes: 0,
        buffers: arguments.iter().filter_map(buffer).collect(),
        scalars: arguments.iter().filter_map(|a| scalar(of, &tensors, a)).collect(),
        grid: of.queries.clone().ceil_div(TILE_QUERIES.into()) * of.batch.clone() * heads,
        flops: pairs * (2 * widths),
        bytes: moved,
    };
    Some(Planned { launches: vec![launch], workspaces: vec![] })
}

/// What has a tensor map, in their order: every q, every k, v.
fn tensors(of: &attention::Attention) -> Vec<&Heads> {
    let q = of.parts.iter().map(|p| &p.q);
    q.chain(of.parts.iter().map(|p| &p.k)).chain([&of.v]).collect()
}

fn buffer(argument: &Argument) -> Option<Buffer> {
    Some(match argument {
        Argument::Q(i) => Buffer::Q(*i),
        Argument::K(i) => Buffer::K(*i),
        Argument::V => Buffer::V,
        Argument::O => Buffer::O,
        Argument::Lse => Buffer::Lse,
        Argument::Start => Buffer::Start,
        Argument::QuerySegments => Buffer::QuerySegments,
        Argument::KeySegments => Buffer::KeySegments,
        _ => return None,
    })
}

fn scalar(of: &attention::Attention, tensors: &[&Heads], argument: &Argument) -> Option<Scalar> {
    let heads = of.parts[0].q.heads;
    let dim = match argument {
        Argument::Batch => of.batch.clone(),
        Argument::Heads => heads.into(),
        Argument::Queries => of.queries.clone(),
        Argument::Keys => of.keys.clone(),
        Argument::HeadsPerK(i) => (heads / of.parts[*i].k.heads).into(),
        Argument::HeadsPerV => (heads / of.v.heads).into(),
        Argument::OStride(i) => of.o.strides[*i].clone(),
        Argument::ScaleLog2 => {
            let scale = (of.scale * std::f64::consts::LOG2_E) as f32;
            return Some(Scalar::F32(scale.to_bits()));
        }
        Argument::MapDim(map, dim) => {
            let tensor = tensors[*map];
            let rows = if *map < of.parts.len() { &of.queries } else { &of.keys };
            match dim {
                0 => tensor.width.into(),
                1 => rows.clone(),
                2 => tensor.heads.into(),
                _ => of.batch.clone(),
            }
        }
        Argument::MapStride(map, dim) => {
            let [batch, row, head] = &tensors[*map].strides;
            [row, head, batch][*dim].clone() * BF16_BYTES
        }
        _ => return None,
    };
    Some(Scalar::Dim(dim))
}
