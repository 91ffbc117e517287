//! Combines what pieces of the keys gave: of each the output as if there were no other, f32
//! `[pieces, batch, queries, heads, width]`, and the log2 of its softmax's denominator.
//!
//! A warp does a head of a query, a lane elements 32 apart; pieces are added in order. A piece that
//! begins behind the last key that the query sees was not written, and is not read.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, Val, WARP};
use weft_codegen::object::KernelSource;
use weft_codegen::region::scalar;
use weft_graph::Scalar;
use weft_ir::ty::DType;
use weft_lower::describe::attention::{Attention, Buffer, Launch};

use super::{WARPS, named, warp_kernel};
use crate::ptx::convert::{exp2, log2};

/// What the code depends on.
#[derive(Clone, Copy)]
struct Shape {
    heads: i64,
    width: i64,
    chunk: i64,
    causal: bool,
    offset: bool,
}

/// Plans it from the two workspaces into o, which is bf16, and the statistics.
pub fn launch(of: &Attention, chunk: i64, from: [Buffer; 2], label: &str) -> Launch {
    let (heads, width) = (of.parts[0].q.heads, of.v.width);
    let shape = Shape { heads, width, chunk, causal: of.causal, offset: of.offset };
    let masks = [(of.causal, "_causal"), (of.offset, "_offset")];
    let masks: String = masks.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let name = named(&format!("combine_{heads}x{width}_{chunk}{masks}"));
    let emitted = name.clone();
    let mut buffers = from.to_vec();
    buffers.extend([Buffer::O, Buffer::Lse]);
    buffers.extend(of.offset.then_some(Buffer::Start));
    let mut scalars = vec![of.batch.clone(), of.queries.clone(), of.keys.clone()];
    scalars.extend(of.o.strides.iter().cloned());
    let lines = of.batch.clone() * of.queries.clone() * heads;
    let read = lines.clone() * of.keys.clone().ceil_div(chunk) * width;
    Launch {
        kernel: KernelSource::new(name, label, move |cg: &Cg| emit(cg, &emitted, shape))
            .with_threads(WARPS * WARP),
        scratch_bytes: 0,
        buffers,
        scalars: scalars.into_iter().map(Scalar::Dim).collect(),
        grid: lines.clone().ceil_div(WARPS.into()),
        flops: read.clone() * 2,
        bytes: read * 4 + lines * (width * 2),
    }
}

fn emit<'c>(cg: &Cg<'c>, name: &str, shape: Shape) {
    let Shape { heads, width, chunk, .. } = shape;
    warp_kernel(cg, name, 4 + usize::from(shape.offset), 6, |k, warp| {
        let [batch, queries, keys] = [0, 1, 2].map(|i| k.scalars[i]);
        let lines = cg.mul(cg.mul(batch, queries), heads);
        cg.when(cg.cmp(Cmp::Lt, warp.index, lines), || {
            let (request, head) = (cg.div(warp.index, heads), cg.rem(warp.index, heads));
            let (b, query) = (cg.div(request, queries), cg.rem(request, queries));
            let mut end = keys;
            if shape.causal {
                let mut last = query;
                if shape.offset {
                    let start = cg.load(Ty::I32, cg.at(k.buffers[4], Elem::I32, b));
                    last = cg.add(last, cg.cast(start, Elem::I64));
                }
                end = cg.min(cg.add(last, 1), keys);
            }
            // The first one always says something.
            let pieces = cg.max(cg.div_ceil(cg.max(end, 0), chunk), 1);
            let place = |piece: Val<'c>| cg.add(cg.mul(piece, lines), warp.index);
            let lse = |piece: Val<'c>| cg.at(k.buffers[1], Elem::F32, place(piece));
            let none = cg.f32(f32::NEG_INFINITY);
            let top = cg.for_(cg.i64(0), pieces, 1, &[none], |piece, top| {
                vec![cg.max(top[0], cg.load(Ty::F32, lse(piece)))]
            })[0];
            // Where nothing was seen weights are 2^-inf, not NaN.
            let blind = cg.cmp(Cmp::Eq, top, none);
            let base = cg.select(blind, cg.f32(0.0), top);
            let n_held = (width as usize).div_ceil(WARP as usize);
            // Beyond the width it is the last element, which is not stored.
            let element = |i: usize| {
                let at = cg.add(warp.lane, i as i64 * i64::from(WARP));
                (at, cg.min(at, width - 1))
            };
            let start = vec![cg.f32(0.0); 1 + n_held];
            let sums = cg.for_(cg.i64(0), pieces, 1, &start, |piece, sums| {
                let weight = exp2(cg, cg.sub(cg.load(Ty::F32, lse(piece)), base));
                let line = cg.mul(place(piece), width);
                let mut next = vec![cg.add(sums[0], weight)];
                next.extend((0..n_held).map(|i| {
                    let at = cg.at(k.buffers[0], Elem::F32, cg.add(line, element(i).1));
                    cg.fma(weight, cg.load(Ty::F32, at), sums[1 + i])
                }));
                next
            });
            let total = cg.select(blind, cg.f32(1.0), sums[0]);
            let [sb, sq, sh] = [3, 4, 5].map(|i| k.scalars[i]);
            let to = cg.add(cg.mul(b, sb), cg.add(cg.mul(query, sq), cg.mul(head, sh)));
            for i in 0..n_held {
                let (at, _) = element(i);
                cg.when(cg.cmp(Cmp::Lt, at, width), || {
                    let v = scalar::narrow(cg, cg.div(sums[1 + i], total), DType::Bf16);
                    cg.store(v, cg.at(k.buffers[2], Elem::BF16, cg.add(to, at)));
                });
            }
            let natural = cg.mul(cg.add(base, log2(cg, sums[0])), std::f32::consts::LN_2);
            let at = cg.add(cg.mul(cg.add(cg.mul(b, heads), head), queries), query);
            cg.when(cg.cmp(Cmp::Eq, warp.lane, 0), || {
                cg.store(natural, cg.at(k.buffers[3], Elem::F32, at));
            });
        });
    });
}
