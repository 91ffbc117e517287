//! From attention to launches.

use weft_codegen::emit::Elem;
use weft_codegen::object::KernelSource;
use weft_codegen::row_codes::RowCodes;
use weft_graph::{DType, DimDecl, DimExpr, Scalar};

use super::reduce::BLOCK_ROWS;
use super::tile::TILE_ROWS_MAX;
use super::{Attention, Buffer, Gradients, Heads, Keys, Launch, Planned, Shape};
use super::{backward as back, forward as fore, reduce};

/// Plans the forward pass: one launch. `dims` are those its sizes speak of, and `label` names its
/// source.
pub fn forward(attention: &Attention, dims: &[DimDecl], label: &str) -> Planned {
    let shape = shape(attention, dims);
    let n = attention.parts.len();
    let rows = attention.queries.clone() * shape.group;
    let blocks = rows.ceil_div(shape.block_rows.into());
    let mut buffers: Vec<Buffer> = (0..n).map(Buffer::Q).collect();
    buffers.extend((0..n).map(Buffer::K));
    buffers.push(Buffer::V);
    buffers.extend(attention.keeps_o.then_some(Buffer::O));
    buffers.push(Buffer::Lse);
    buffers.extend(masks(attention));
    let codes = 0..attention.codes.len();
    buffers.extend(codes.flat_map(|i| [Buffer::Codes(i), Buffer::Scales(i)]));
    let name = name("attention", &shape);
    let emitted = name.clone();
    let scratch_bytes = fore::scratch_bytes(&shape);
    let units = shape.units() / shape.block_units;
    let launch = Launch {
        scratch_bytes,
        buffers,
        scalars: scalars(attention, &blocks, &operands(attention)),
        grid: attention.batch.clone() * units * blocks,
        flops: pairs(attention) * (widths(attention).0 + widths(attention).1),
        bytes: operand_bytes(attention),
        kernel: KernelSource::new(name, label, move |cg| fore::emit(cg, &emitted, &shape)),
    };
    Planned { launches: vec![launch], workspaces: vec![] }
}

/// Plans the derivatives: one launch, and one for each of k and v that is not f32, or whose heads
/// are shared by more query heads than share all of them.
pub fn backward(
    attention: &Attention,
    gradients: &Gradients,
    dims: &[DimDecl],
    label: &str,
) -> Planned {
    let shape = shape(attention, dims);
    let (n, units) = (attention.parts.len(), shape.units());
    let mut workspaces = vec![];
    let mut sums = vec![];
    // Where the kernel writes: the result, or a workspace with heads of its own.
    let mut target = |to: &Heads, buffer: Buffer| {
        if to.heads == units && !shape.is_narrow() {
            return (to.clone(), buffer);
        }
        let line = attention.keys.clone() * to.width;
        let partial = Heads {
            heads: units,
            width: to.width,
            strides: [line.clone() * units, to.width.into(), line.clone()],
        };
        let workspace = Buffer::Workspace(workspaces.len());
        workspaces.push(attention.batch.clone() * line * units * 4);
        sums.push(sum(attention, shape.elem, to, units, [workspace, buffer], label));
        (partial, workspace)
    };
    let mut written: Vec<(Heads, Buffer)> = vec![];
    for (j, dk) in gradients.dk.iter().enumerate() {
        written.push(target(dk, Buffer::DK(j)));
    }
    written.push(target(&gradients.dv, Buffer::DV));

    let mut buffers: Vec<Buffer> = (0..n).map(Buffer::Q).collect();
    buffers.extend((0..n).map(Buffer::K));
    buffers.extend([Buffer::V, Buffer::O, Buffer::DO]);
    buffers.extend((0..n).map(Buffer::DQ));
    buffers.extend(written.iter().map(|(_, buffer)| *buffer));
    buffers.push(Buffer::Lse);
    buffers.extend(masks(attention));
    let mut views = operands(attention);
    views.push(&gradients.d_o);
    views.extend(&gradients.dq);
    views.extend(written.iter().map(|(heads, _)| heads));
    let name = name("attention_grad", &shape);
    let emitted = name.clone();
    let (d, dv) = widths(attention);
    let launch = Launch {
        scratch_bytes: back::scratch_bytes(&shape),
        buffers,
        scalars: scalars(attention, &1.into(), &views),
        grid: attention.batch.clone() * units,
        flops: pairs(attention) * (3 * d + 2 * dv),
        bytes: operand_bytes(attention) * 2,
        kernel: KernelSource::new(name, label, move |cg| back::emit(cg, &emitted, &shape)),
    };
    Planned { launches: [launch].into_iter().chain(sums).collect(), workspaces }
}

/// The launch that adds up a workspace.
fn sum(
    attention: &Attention,
    elem: Elem,
    to: &Heads,
    units: i64,
    buffers: [Buffer; 2],
    label: &str,
) -> Launch {
    let blocks = attention.keys.clone().ceil_div(BLOCK_ROWS);
    let (heads, width) = (to.heads, code_width(to.width));
    let name = format!("{}_attention_sum_h{units}to{heads}x{width}", element(elem));
    let emitted = name.clone();
    let mut scalars = vec![attention.keys.clone(), blocks.clone()];
    scalars.extend(to.strides.clone());
    let elements = attention.batch.clone() * attention.keys.clone() * to.width;
    Launch {
        kernel: KernelSource::new(name, label, move |cg| {
            reduce::emit(cg, &emitted, elem, (units, heads), width);
        }),
        scratch_bytes: 0,
        buffers: buffers.to_vec(),
        scalars: scalars.into_iter().map(Scalar::Dim).collect(),
        grid: attention.batch.clone() * blocks,
        flops: elements.clone() * units,
        bytes: elements * (4 * units + i64::from(elem.bytes()) * heads),
    }
}

/// Do the groups of all codes lie within what a block may hold?
pub fn takes_codes(attention: &Attention, dims: &[DimDecl]) -> bool {
    plain_shape(attention, dims).cut_for_codes(&attention.o)
}

fn shape(attention: &Attention, dims: &[DimDecl]) -> Shape {
    let mut shape = plain_shape(attention, dims);
    if !shape.codes.is_empty() {
        assert!(shape.cut_for_codes(&attention.o), "codes that `takes_codes` refuses");
    }
    shape
}

fn plain_shape(attention: &Attention, dims: &[DimDecl]) -> Shape {
    let heads = attention.parts[0].q.heads;
    let keys = |of: &Heads| Keys {
        width: code_width(of.width),
        heads: of.heads,
        row_stride: of.strides[1].as_constant(),
    };
    let shared = attention.parts.iter().map(|p| &p.k).chain([&attention.v]);
    // Consecutive heads share what every operand lets them share.
    let group = shared.map(|of| heads / of.heads).fold(0, gcd);
    let rows = attention.queries.range(dims).map_or(i64::MAX, |(_, max)| max);
    let rows = rows.saturating_mul(group);
    Shape {
        elem: match attention.dtype {
            DType::F32 => Elem::F32,
            DType::Bf16 => Elem::BF16,
            other => panic!("attention of {other}"),
        },
        parts: attention.parts.iter().map(|p| keys(&p.k)).collect(),
        v: keys(&attention.v),
        heads,
        group,
        causal: attention.causal,
        offset: attention.offset,
        segments: attention.segments,
        page: attention.pages.as_ref().map(|p| p.size),
        // A vector of AVX2, a vector of AVX-512, or two.
        block_rows: match rows {
            ..=8 => 8,
            9..=16 => 16,
            _ => TILE_ROWS_MAX,
        },
        block_units: 1,
        codes: attention.codes.clone(),
        keeps_o: attention.keeps_o,
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn code_width(width: i64) -> u32 {
    u32::try_from(width).unwrap_or_else(|_| panic!("attention of width {width}"))
}

fn operands(attention: &Attention) -> Vec<&Heads> {
    let q = attention.parts.iter().map(|p| &p.q);
    let k = attention.parts.iter().map(|p| &p.k);
    q.chain(k).chain([&attention.v]).chain(attention.keeps_o.then_some(&attention.o)).collect()
}

fn masks(attention: &Attention) -> Vec<Buffer> {
    let start = attention.offset.then_some(Buffer::Start);
    let segments = [Buffer::QuerySegments, Buffer::KeySegments];
    let segments = segments.into_iter().filter(|_| attention.segments);
    let pages = attention.pages.as_ref().map(|_| Buffer::Pages);
    start.into_iter().chain(segments).chain(pages).collect()
}

fn scalars(attention: &Attention, blocks: &DimExpr, views: &[&Heads]) -> Vec<Scalar> {
    let sizes = [attention.queries.clone(), attention.keys.clone(), blocks.clone()];
    let mut scalars: Vec<Scalar> = sizes.into_iter().map(Scalar::Dim).collect();
    scalars.push(Scalar::F32((attention.scale as f32).to_bits()));
    if let Some(pages) = &attention.pages {
        scalars.extend([pages.of_request.clone(), pages.pool.clone()].map(Scalar::Dim));
    }
    scalars.extend(views.iter().flat_map(|v| v.strides.clone()).map(Scalar::Dim));
    scalars
}

/// Widths of the score and of v.
fn widths(attention: &Attention) -> (i64, i64) {
    (attention.parts.iter().map(|p| p.k.width).sum(), attention.v.width)
}

/// Flops for each element of the widths: 2 for a query, head and key, half of that under causality.
fn pairs(attention: &Attention) -> DimExpr {
    let each = if attention.causal { 1 } else { 2 };
    let queries = attention.batch.clone() * attention.queries.clone();
    queries * attention.keys.clone() * (attention.parts[0].q.heads * each)
}

fn operand_bytes(attention: &Attention) -> DimExpr {
    let each = i64::from(attention.dtype.bits() / 8);
    let size = |of: &Heads, rows: &DimExpr| rows.clone() * (each * of.heads * of.width);
    let (s, t) = (&attention.queries, &attention.keys);
    let parts = attention.parts.iter().map(|p| size(&p.q, s) + size(&p.k, t));
    let mut values = size(&attention.v, t);
    if attention.keeps_o {
        values = values + size(&attention.o, s);
    }
    for codes in &attention.codes {
        values = values
            + s.clone() * (attention.o.heads * attention.o.width * codes.code.bits() as i64 / 8);
    }
    attention.batch.clone() * parts.fold(values, |sum, x| sum + x)
}

fn element(elem: Elem) -> &'static str {
    if elem == Elem::BF16 { "bf16" } else { "f32" }
}

/// `f32_attention_h8_k8x32r256_k1x16r16_v8x32r256_causal_m32`: heads, then heads, width and row
/// stride of the keys, masks, positions of a page where there are pages, rows of a block; and where
/// o ends as codes, groups of heads of a block, the codes, and whether there is nothing else.
fn name(op: &str, shape: &Shape) -> String {
    let keys = |letter: char, k: &Keys| {
        let stride = k.row_stride.map_or("s".into(), |r| format!("r{r}"));
        format!("{letter}{}x{}{stride}", k.heads, k.width)
    };
    let mut parts = vec![format!("{}_{op}_h{}", element(shape.elem), shape.heads)];
    parts.extend(shape.parts.iter().map(|k| keys('k', k)));
    parts.push(keys('v', &shape.v));
    let flags = [("causal", shape.causal), ("offset", shape.offset), ("segments", shape.segments)];
    parts.extend(flags.iter().filter(|(_, on)| *on).map(|(word, _)| word.to_string()));
    parts.extend(shape.page.map(|page| format!("pages{page}")));
    parts.push(format!("m{}", shape.block_rows));
    if !shape.codes.is_empty() {
        parts.push(format!("u{}", shape.block_units));
        parts.extend(shape.codes.iter().map(RowCodes::name));
        parts.extend((!shape.keeps_o).then(|| "codes".to_string()));
    }
    parts.join("_")
}
