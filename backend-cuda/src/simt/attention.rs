//! Attention of any shape: a warp does a query of a head, or in the derivative a key of one.
//!
//! A lane scores one of 32 keys; what the weights then sum (values, keys, queries) is held an
//! element a lane, 32 elements apart, and a weight goes around the warp. No array of queries by
//! keys exists. Sums are f32; only results are rounded.
//!
//! The derivative computes scores again from the statistics: once for dq, with `do · o` for each
//! query kept in a workspace, then for each k and for v, a launch each. Query heads that share a
//! head of k are summed by the one warp that writes it, in order.

mod emit;

use weft_codegen::emit::{Cg, WARP};
use weft_codegen::object::KernelSource;
use weft_graph::{DType, Scalar};
use weft_ir::ty;
use weft_lower::describe::attention::{Attention, Buffer, Gradients, Heads, Launch, Planned};

use super::{WARPS, named};

/// What a kernel's code depends on: all else comes as scalars.
#[derive(Clone, Debug, PartialEq)]
struct Shape {
    dtype: ty::DType,
    heads: i64,
    /// Of q, and of k: heads and width.
    parts: Vec<(i64, i64)>,
    v: (i64, i64),
    scale: f64,
    causal: bool,
    offset: bool,
    segments: bool,
    /// Positions of a page, where keys and values lie in pages.
    page: Option<i64>,
}

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// o and the statistics.
    Forward,
    /// dq of all parts, and `do · o`.
    Queries,
    /// dk of a part.
    Keys(usize),
    /// dv.
    Values,
}

pub fn forward(attention: &Attention, label: &str) -> Planned {
    let shape = shape(attention);
    let buffers = vec![Buffer::O, Buffer::Lse];
    let flops = (widths(attention).0 + widths(attention).1) * 2;
    let lies = vec![attention.o.clone()];
    let launch = launch(attention, &shape, Kind::Forward, (buffers, lies), flops, label);
    Planned { launches: vec![launch], workspaces: vec![] }
}

pub fn backward(attention: &Attention, gradients: &Gradients, label: &str) -> Planned {
    let shape = shape(attention);
    let n = attention.parts.len();
    let (d, dv) = widths(attention);
    let delta = Buffer::Workspace(0);
    let given = || vec![Buffer::O, Buffer::Lse, Buffer::DO, delta];
    let lies = || vec![attention.o.clone(), gradients.d_o.clone()];
    let mut launches = vec![];
    let mut add = |kind, made: Vec<(Buffer, &Heads)>, flops: i64| {
        let (mut buffers, mut places) = (given(), lies());
        buffers.extend(made.iter().map(|(b, _)| *b));
        places.extend(made.iter().map(|(_, h)| (*h).clone()));
        launches.push(launch(attention, &shape, kind, (buffers, places), flops, label));
    };
    let dq = gradients.dq.iter().enumerate().map(|(i, h)| (Buffer::DQ(i), h)).collect();
    add(Kind::Queries, dq, 2 * (2 * d + dv));
    for i in 0..n {
        add(Kind::Keys(i), vec![(Buffer::DK(i), &gradients.dk[i])], 2 * (d + dv));
    }
    add(Kind::Values, vec![(Buffer::DV, &gradients.dv)], 2 * (d + dv));
    let rows = attention.batch.clone() * attention.queries.clone() * shape.heads;
    Planned { launches, workspaces: vec![rows * 4] }
}

fn shape(attention: &Attention) -> Shape {
    let k = |p: &weft_lower::describe::attention::Part| (p.k.heads, p.k.width);
    Shape {
        dtype: match attention.dtype {
            DType::Bf16 => ty::DType::Bf16,
            _ => ty::DType::F32,
        },
        heads: attention.parts[0].q.heads,
        parts: attention.parts.iter().map(k).collect(),
        v: (attention.v.heads, attention.v.width),
        scale: attention.scale,
        causal: attention.causal,
        offset: attention.offset,
        segments: attention.segments,
        page: attention.pages.as_ref().map(|p| p.size),
    }
}

/// Elements of a query, and of a value.
fn widths(attention: &Attention) -> (i64, i64) {
    (attention.parts.iter().map(|p| p.q.width).sum(), attention.v.width)
}

/// The launch of a kernel on q, k, v, the buffers given, and the masks.
fn launch(
    attention: &Attention,
    shape: &Shape,
    kind: Kind,
    (given, places): (Vec<Buffer>, Vec<Heads>),
    flops: i64,
    label: &str,
) -> Launch {
    let n = attention.parts.len();
    let mut buffers: Vec<Buffer> = (0..n).map(Buffer::Q).chain((0..n).map(Buffer::K)).collect();
    buffers.push(Buffer::V);
    buffers.extend(given);
    if shape.offset {
        buffers.push(Buffer::Start);
    }
    if shape.segments {
        buffers.extend([Buffer::QuerySegments, Buffer::KeySegments]);
    }
    if shape.page.is_some() {
        buffers.push(Buffer::Pages);
    }
    let q = attention.parts.iter().map(|p| &p.q);
    let operands = q.chain(attention.parts.iter().map(|p| &p.k)).chain([&attention.v]);
    let mut sizes =
        vec![attention.batch.clone(), attention.queries.clone(), attention.keys.clone()];
    if let Some(pages) = &attention.pages {
        sizes.extend([pages.of_request.clone(), pages.pool.clone()]);
    }
    for heads in operands.chain(&places) {
        sizes.extend(heads.strides.iter().cloned());
    }
    let rows = match kind {
        Kind::Forward | Kind::Queries => attention.queries.clone() * shape.heads,
        Kind::Keys(i) => attention.keys.clone() * shape.parts[i].0,
        Kind::Values => attention.keys.clone() * shape.v.0,
    };
    let pairs = attention.batch.clone() * attention.queries.clone() * attention.keys.clone();
    let pairs = pairs * shape.heads;
    let name = name(shape, kind);
    let emitted = name.clone();
    let code = shape.clone();
    let source =
        KernelSource::new(name, label, move |cg: &Cg| emit::emit(cg, &emitted, &code, kind));
    let (d, dv) = widths(attention);
    let bytes = i64::from(attention.dtype.bits() / 8);
    let moved = (attention.queries.clone() + attention.keys.clone()) * (d + dv);
    Launch {
        kernel: source.with_threads(WARPS * WARP),
        scratch_bytes: 0,
        buffers,
        scalars: sizes.into_iter().map(Scalar::Dim).collect(),
        grid: (attention.batch.clone() * rows).ceil_div(WARPS.into()),
        flops: pairs * flops,
        bytes: attention.batch.clone() * moved * (shape.heads * bytes),
    }
}

/// `sm90_simt_bf16_attention_16_k16x64_k1x32_v16x64_causal_4a3`, the last the bits of the scale.
fn name(shape: &Shape, kind: Kind) -> String {
    let what = match kind {
        Kind::Forward => "attention".to_string(),
        Kind::Queries => "attention_dq".into(),
        Kind::Keys(i) => format!("attention_dk{i}"),
        Kind::Values => "attention_dv".into(),
    };
    let mut parts = vec![shape.dtype.name().to_string(), what, shape.heads.to_string()];
    parts.extend(shape.parts.iter().map(|(heads, width)| format!("k{heads}x{width}")));
    parts.push(format!("v{}x{}", shape.v.0, shape.v.1));
    let masks = [(shape.causal, "causal"), (shape.offset, "offset"), (shape.segments, "segments")];
    parts.extend(masks.iter().filter(|(on, _)| *on).map(|(_, name)| name.to_string()));
    parts.extend(shape.page.map(|page| format!("pages{page}")));
    parts.push(format!("{:x}", (shape.scale as f32).to_bits()));
    named(&parts.join("_"))
}
