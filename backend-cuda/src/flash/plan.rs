//! From attention as lowering describes it to a launch on tensor cores, where they can do it.
//!
//! They take bf16 that TMA can read. Few queries (decoding) would leave most of a tile empty, and
//! keys in pages are those of decoding: those, and all else, are `None`, for plain threads.

use weft_graph::{DType, DimDecl, DimExpr, Scalar};
use weft_lower::describe::attention::{self, Buffer, Heads, Planned};

use super::signature::{Argument, Tensor};
use super::template::Template;
use super::{Attention, TILE_QUERIES};
use crate::gemm::select::Budget;

/// Fewer queries are not worth a tile.
pub const QUERIES_MIN: i64 = 16;
const BF16_BYTES: i64 = 2;

/// What the kernels' code depends on; `None` where tensor cores or TMA cannot do it.
pub fn shape(of: &attention::Attention, dims: &[DimDecl]) -> Option<Attention> {
    let most = of.queries.range(dims).map_or(i64::MAX, |(_, most)| most);
    if of.dtype != DType::Bf16 || !of.aligned || of.scale <= 0.0 || most < QUERIES_MIN {
        return None;
    }
    if of.pages.is_some() {
        return None;
    }
    let q = of.parts.iter().map(|p| &p.q);
    if !q.chain(of.parts.iter().map(|p| &p.k)).chain([&of.v]).all(copied) {
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
    shape.check().ok().map(|()| shape)
}

/// TMA reads in steps of 16 bytes.
pub fn copied(heads: &Heads) -> bool {
    heads.strides.iter().all(|s| s.is_multiple_of(16 / BF16_BYTES))
}

/// Plans the forward pass; `dims` are those its sizes speak of, and `label` names its source.
pub fn plan(
    of: &attention::Attention,
    budget: Budget,
    dims: &[DimDecl],
    label: &str,
) -> Option<Planned> {
    let shape = shape(of, dims)?;
    if !of.o.strides.iter().all(|s| s.is_multiple_of(2)) {
        return None;
    }
    let heads = of.parts[0].q.heads;
    let mut kernel = shape.source(label);
    kernel.cta.grid_max = Some(budget.sms);
    let signature = shape.signature();
    let arguments = signature.arguments();
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
        buffers: arguments.iter().filter_map(common_buffer).collect(),
        scalars: arguments.iter().filter_map(|a| common_scalar(of, None, a)).collect(),
        grid: of.queries.clone().ceil_div(TILE_QUERIES.into()) * of.batch.clone() * heads,
        flops: pairs * (2 * widths),
        bytes: moved,
    };
    Some(Planned { launches: vec![launch], workspaces: vec![] })
}

/// The buffers that every kernel of attention knows.
pub fn common_buffer(argument: &Argument) -> Option<Buffer> {
    Some(match argument {
        Argument::Data(Tensor::Q(i)) => Buffer::Q(*i),
        Argument::Data(Tensor::K(i)) => Buffer::K(*i),
        Argument::Data(Tensor::V) => Buffer::V,
        Argument::Data(Tensor::DO) => Buffer::DO,
        Argument::O => Buffer::O,
        Argument::Lse => Buffer::Lse,
        Argument::Start => Buffer::Start,
        Argument::QuerySegments => Buffer::QuerySegments,
        Argument::KeySegments => Buffer::KeySegments,
        Argument::Pages => Buffer::Pages,
        _ => return None,
    })
}

/// The scalars that every kernel of attention knows; `d_o` is how the output's derivative lies.
pub fn common_scalar(
    of: &attention::Attention,
    d_o: Option<&Heads>,
    argument: &Argument,
) -> Option<Scalar> {
    let heads = of.parts[0].q.heads;
    let tensor = |t: Tensor| match t {
        Tensor::Q(i) => &of.parts[i].q,
        Tensor::K(i) => &of.parts[i].k,
        Tensor::V => &of.v,
        Tensor::DO => d_o.unwrap_or(&of.o),
    };
    let pages = of.pages.as_ref();
    let in_pages = |t: Tensor| pages.is_some() && !t.of_queries();
    let rows = |t: Tensor| match pages {
        _ if t.of_queries() => of.queries.clone(),
        Some(pages) => pages.pool.clone() * pages.size,
        None => of.keys.clone(),
    };
    let f32 = |x: f64| Scalar::F32((x as f32).to_bits());
    let dim = match argument {
        Argument::Batch => of.batch.clone(),
        Argument::Heads => heads.into(),
        Argument::Queries => of.queries.clone(),
        Argument::Keys => of.keys.clone(),
        Argument::HeadsPer(t) => (heads / tensor(*t).heads).into(),
        Argument::OStride(i) => of.o.strides[*i].clone(),
        Argument::Scale => return Some(f32(of.scale)),
        Argument::ScaleLog2 => return Some(f32(of.scale * std::f64::consts::LOG2_E)),
        Argument::MapDim(t, dim) => match dim {
            0 => tensor(*t).width.into(),
            1 => rows(*t),
            2 => tensor(*t).heads.into(),
            _ if in_pages(*t) => 1.into(),
            _ => of.batch.clone(),
        },
        Argument::MapStride(t, dim) => {
            let [batch, row, head] = &tensor(*t).strides;
            // Of one batch that has all the pool's rows.
            let batch = if in_pages(*t) { rows(*t) * row.clone() } else { batch.clone() };
            [row.clone(), head.clone(), batch][*dim].clone() * BF16_BYTES
        }
        Argument::PageKeys => of.pages.as_ref()?.size.into(),
        Argument::PagesPerRequest => of.pages.as_ref()?.of_request.clone(),
        _ => return None,
    };
    Some(Scalar::Dim(dim))
}
