//! Costs, up to the published count of a training step.

use crate::one_op::{dims, module_of};
use weft_ir::attr::{Attr, Attrs};
use weft_ir::builder::Builder;
use weft_ir::cost::{Cost, of_func};
use weft_ir::dim::{Dim, SymKind};
use weft_ir::module::{FuncId, Module, ValueId};
use weft_ir::op::Op;
use weft_ir::rules::TypeError;
use weft_ir::ty::{DType, Quant, ScaleLayout, Type};

fn cost(op: Op, types: &[Type], attrs: Attrs) -> Cost {
    let (m, f) = module_of(types, &|b, xs| b.emit_all(op, xs, attrs.clone()));
    of_func(&m, f, &|_| None).unwrap()
}

fn f32(sizes: &[u64]) -> Type {
    Type::f32(dims(sizes))
}

#[test]
fn matmul_counts_two_for_each_product() {
    let c = cost(Op::Matmul, &[f32(&[2, 3, 5]), f32(&[5, 7])], Attrs::new());
    assert_eq!((c.flops, c.matmul_flops), (2 * 2 * 3 * 5 * 7, 2 * 2 * 3 * 5 * 7));
    assert_eq!((c.bytes_read, c.bytes_written), (4 * (30 + 35), 4 * 42));
    let c = cost(
        Op::Matmul,
        &[f32(&[5, 3]), f32(&[7, 5])],
        Attrs::new().flag("tx", true).flag("ty", true),
    );
    assert_eq!(c.flops, 2 * 3 * 5 * 7);
}

#[test]
fn grouped_matmul_counts_rows_not_segments() {
    let offsets = Type::i32(dims(&[5]));
    let c =
        cost(Op::GroupedMatmul, &[f32(&[9, 3]), f32(&[4, 3, 7]), offsets.clone()], Attrs::new());
    assert_eq!(c.matmul_flops, 2 * 9 * 3 * 7);
    let c = cost(Op::GroupedOuter, &[f32(&[9, 3]), f32(&[9, 7]), offsets], Attrs::new());
    assert_eq!(c.matmul_flops, 2 * 9 * 3 * 7);
}

#[test]
fn pointwise_ops_and_renamings() {
    let c = cost(Op::Add, &[f32(&[4, 5]), f32(&[4, 5])], Attrs::new());
    assert_eq!(c, Cost { flops: 20, bytes_read: 160, bytes_written: 80, ..Cost::default() });
    let c = cost(Op::Reshape, &[f32(&[4, 5])], Attrs::new().dims("shape", dims(&[20])));
    assert_eq!(c, Cost::default());
    let c = cost(Op::Gather, &[f32(&[1000, 5]), Type::i32(dims(&[3]))], Attrs::new());
    assert_eq!((c.bytes_read, c.bytes_written), (60 + 12, 60));
}

#[test]
fn bytes_of_quantized_values_include_scales() {
    let mut ty = Type::new(DType::E4m3, dims(&[3, 200]));
    ty.quant = Some(Quant { group: [1, 128], scale: DType::F32, layout: ScaleLayout::RowMajor });
    let c = cost(Op::Dequantize, &[ty], Attrs::new().with("dtype", Attr::DType(DType::F32)));
    assert_eq!(c.bytes_read, 600 + 4 * 3 * 2);
    // Two values of 12 bits in three bytes.
    assert_eq!(cost(Op::Neg, &[Type::new(DType::E5m6, dims(&[5]))], Attrs::new()).bytes_read, 8);
}

fn attention_cost(op: Op, s: u64, t: u64, attrs: Attrs) -> Cost {
    let (b, h) = (2, 4);
    let mut types = vec![
        f32(&[b, s, h, 3]),
        f32(&[b, s, h, 1]),
        f32(&[b, t, h, 3]),
        f32(&[b, t, 1, 1]),
        f32(&[b, t, 2, 5]),
    ];
    if op == Op::AttentionGrad {
        types.extend([f32(&[b, s, h, 5]), f32(&[b, h, s]), f32(&[b, s, h, 5])]);
    }
    if attrs.get_flag("offset") {
        types.push(Type::i32(dims(&[b])));
    }
    cost(op, &types, attrs.int("parts", 2).float("scale", 1.0))
}

#[test]
fn causal_attention_counts_half() {
    let widths = 2 * 2 * 4 * (3 + 1 + 5);
    let full = attention_cost(Op::Attention, 6, 6, Attrs::new());
    assert_eq!((full.flops, full.attention_flops), (widths * 36, widths * 36));
    let causal = Attrs::new().flag("causal", true);
    assert_eq!(attention_cost(Op::Attention, 6, 6, causal.clone()).attention_flops, widths * 18);
    // A query at the end of seven positions sees them all, but for half a pair.
    let decode = attention_cost(Op::Attention, 1, 7, causal.flag("offset", true));
    assert_eq!(2 * decode.attention_flops, widths * 13);
}

#[test]
fn attention_reads_the_pages_of_its_requests_alone() {
    // Two requests have three pages of six positions each, of a hundred.
    let pages = |pool: u64| {
        let mut types = vec![f32(&[2, 1, 4, 3]), f32(&[pool, 6, 1, 3]), f32(&[pool, 6, 1, 5])];
        types.push(Type::i32(dims(&[2, 3])));
        let attrs = Attrs::new().int("parts", 1).float("scale", 1.0).flag("pages", true);
        cost(Op::Attention, &types, attrs)
    };
    let rows = 2 * 18;
    assert_eq!(pages(100).bytes_read, 4 * (2 * 4 * 3 + rows * (3 + 5) + 2 * 3));
    assert_eq!(pages(100).flops, 2 * rows * 4 * (3 + 5));
    assert_eq!(pages(7), pages(100));
}

#[test]
fn the_gradient_of_attention_counts_twice_and_runs_the_scores_again() {
    let pairs = 2 * 2 * 4 * 36;
    let c = attention_cost(Op::AttentionGrad, 6, 6, Attrs::new());
    assert_eq!(c.attention_flops, 2 * pairs * (4 + 5));
    assert_eq!(c.flops, c.attention_flops + pairs * 4);
}

#[test]
fn a_dim_without_a_size_is_an_error() {
    let mut m = Module::default();
    let s = Dim::sym(m.add_sym("S", SymKind::Bounded { max: 8 }));
    let mut b = Builder::new("f");
    let x = b.param("x", Type::f32([s]));
    let y = b.unary(Op::Neg, x).unwrap();
    let f = m.add_func(b.finish(vec![y]));
    assert!(of_func(&m, f, &|_| None).is_err());
    assert_eq!(of_func(&m, f, &|_| Some(3)).unwrap().flops, 3);
}

// --- DeepSeek-V3 ---------------------------------------------------------------------------------

/// B batch, S sequence, D hidden, H heads; widths of section 4.2 of the DeepSeek-V3 report.
struct Shape {
    b: Dim,
    s: Dim,
    rows: Dim,
}

const D: u64 = 7168;
const H: u64 = 128;

impl Shape {
    fn with(&self, tail: &[u64]) -> Vec<Dim> {
        [&[self.b, self.s], &dims(tail)[..]].concat()
    }
}

/// `x` through a weight that exists for its shape alone.
fn linear(b: &mut Builder, x: ValueId, out: u64) -> Result<ValueId, TypeError> {
    let weight = Type::f32([Dim::fixed(out), b.ty(x).last().unwrap()]);
    let w = b.constant(0.0, weight)?;
    b.emit(Op::Matmul, &[x, w], Attrs::new().flag("ty", true))
}

fn mla(b: &mut Builder, x: ValueId, at: &Shape) -> Result<ValueId, TypeError> {
    let q = linear(b, x, 1536)?;
    let q = linear(b, q, H * 192)?;
    let q = b.reshape(q, &at.with(&[H, 192]))?;
    let latent = linear(b, x, 512 + 64)?;
    let part = |b: &mut Builder, x, dim: i64, start, len| {
        b.emit(Op::Slice, &[x], Attrs::new().int("dim", dim).int("start", start).int("len", len))
    };
    let (c, k_rope) = (part(b, latent, 2, 0, 512)?, part(b, latent, 2, 512, 64)?);
    let kv = linear(b, c, H * 256)?;
    let kv = b.reshape(kv, &at.with(&[H, 256]))?;
    let operands = [
        part(b, q, 3, 0, 128)?,
        part(b, q, 3, 128, 64)?,
        part(b, kv, 3, 0, 128)?,
        b.reshape(k_rope, &at.with(&[1, 64]))?,
        part(b, kv, 3, 128, 128)?,
    ];
    let attrs = Attrs::new().int("parts", 2).float("scale", 1.0).flag("causal", true);
    let o = b.emit_all(Op::Attention, &operands, attrs)?[0];
    let o = b.reshape(o, &at.with(&[H * 128]))?;
    linear(b, o, D)
}

fn swiglu(b: &mut Builder, x: ValueId, inner: u64) -> Result<ValueId, TypeError> {
    let (gate, up) = (linear(b, x, inner)?, linear(b, x, inner)?);
    let product = b.binary(Op::Mul, gate, up)?;
    linear(b, product, D)
}

/// Eight of 256 experts, and a shared one.
fn moe(b: &mut Builder, x: ValueId, at: &Shape) -> Result<ValueId, TypeError> {
    let scores = linear(b, x, 256)?;
    let ids = b.emit(Op::Topk, &[scores], Attrs::new().int("k", 8))?;
    let attrs = Attrs::new().int("experts", 256).with("rows", Attr::Dim(at.rows));
    let routed = b.emit_all(Op::Route, &[ids], attrs)?;
    let rows = b.emit(Op::Dispatch, &[x, routed[1]], Attrs::new().int("active", 8))?;
    let expert = |b: &mut Builder, x, out, inner| {
        let w = b.constant(0.0, Type::f32(dims(&[256, out, inner])))?;
        b.emit(Op::GroupedMatmul, &[x, w, routed[0]], Attrs::new().flag("ty", true))
    };
    let (gate, up) = (expert(b, rows, 2048, D)?, expert(b, rows, 2048, D)?);
    let product = b.binary(Op::Mul, gate, up)?;
    let rows = expert(b, product, D, 2048)?;
    let attrs = Attrs::new().int("active", 8).dims("tokens", [at.b, at.s]);
    let y = b.emit(Op::Combine, &[rows, routed[1]], attrs)?;
    let shared = swiglu(b, x, 2048)?;
    b.binary(Op::Add, y, shared)
}

/// A block, as a function from `[B, S, D]` to itself.
fn block(m: &mut Module, name: &str, at: &Shape, sparse: bool) -> FuncId {
    let mut b = Builder::new(name);
    let x = b.param("x", Type::f32(at.with(&[D])));
    let h = mla(&mut b, x, at).unwrap();
    let y = if sparse { moe(&mut b, h, at) } else { swiglu(&mut b, h, 18432) };
    let y = y.unwrap();
    m.add_func(b.finish(vec![y]))
}

#[test]
fn deepseek_v3_trains_at_250_gflop_a_token() {
    let mut m = Module::default();
    let b = Dim::sym(m.add_sym("B", SymKind::Bounded { max: 8 }));
    let s = Dim::sym(m.add_sym("S", SymKind::Bounded { max: 4096 }));
    let total = b.checked_mul(s).and_then(|t| t.checked_mul(Dim::fixed(8))).unwrap();
    let rows = Dim::sym(m.add_sym("R", SymKind::Ragged { segments: 256, total }));
    let at = Shape { b, s, rows };
    let (dense, sparse) = (block(&mut m, "dense", &at, false), block(&mut m, "sparse", &at, true));
    let mut entry = Builder::new("forward");
    let mut x = entry.param("x", Type::f32(at.with(&[D])));
    for (func, count) in [(dense, 3), (sparse, 58)] {
        let attrs =
            Attrs::new().func("func", func).int("count", count).int("carry", 1).int("xs", 0);
        x = entry.emit_calling(&m, Op::Repeat, &[x], attrs).unwrap()[0];
    }
    let logits = linear(&mut entry, x, 129_280).unwrap();
    let forward = m.add_func(entry.finish(vec![logits]));

    let sizes = |sym| if Dim::sym(sym) == b { Some(2) } else { Some(4096) };
    let cost = of_func(&m, forward, &sizes).unwrap();
    let tokens = 2 * 4096;
    assert_eq!(cost.matmul_flops, tokens * 2 * 36_624_596_992);
    assert_eq!(cost.attention_flops, tokens * 61 * 2 * 128 * (192 + 128) * 4096 / 2);
    let per_token = cost.training_flops() / tokens;
    assert_eq!(per_token, 6 * 36_624_596_992 + 3 * 61 * 2 * 128 * (192 + 128) * 4096 / 2);
    assert_eq!(per_token / 100_000_000, 2504);
    assert!(cost.flops > cost.model_flops());
}
