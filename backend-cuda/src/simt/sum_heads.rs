//! Adds up what units of heads contributed to a result that they share: f32 `[B, rows, units,
//! width]` to `[B, rows, heads, width]`, in the order of the units.
//!
//! A warp does a row of a head, a lane elements 32 apart. Reads are whole lines; nothing is read
//! twice, so it runs at the speed of memory.

use weft_codegen::emit::{Cg, Cmp, Elem, Ty, WARP};
use weft_codegen::object::KernelSource;
use weft_codegen::region::scalar;
use weft_graph::{DimExpr, Scalar};
use weft_ir::ty::DType;
use weft_lower::describe::attention::{Buffer, Heads, Launch};

use super::{WARPS, named, warp_kernel};

/// Plans the sum from the first buffer into the second, which lies as `to` and is bf16.
pub fn launch(
    [batch, rows]: [DimExpr; 2],
    units: i64,
    to: &Heads,
    buffers: [Buffer; 2],
    label: &str,
) -> Launch {
    let (heads, width) = (to.heads, to.width);
    let name = named(&format!("sum_heads_{units}_{heads}x{width}"));
    let emitted = name.clone();
    let emit = move |cg: &Cg| emit(cg, &emitted, [units, heads, width]);
    let mut scalars = vec![batch.clone(), rows.clone()];
    scalars.extend(to.strides.iter().cloned());
    let lines = batch * rows;
    Launch {
        kernel: KernelSource::new(name, label, emit).with_threads(WARPS * WARP),
        scratch_bytes: 0,
        buffers: buffers.to_vec(),
        scalars: scalars.into_iter().map(Scalar::Dim).collect(),
        grid: (lines.clone() * heads).ceil_div(WARPS.into()),
        flops: lines.clone() * (units * width),
        bytes: lines * (units * width * 4 + heads * width * 2),
    }
}

fn emit(cg: &Cg, name: &str, [units, heads, width]: [i64; 3]) {
    warp_kernel(cg, name, 2, 5, |k, warp| {
        let (batch, rows) = (k.scalars[0], k.scalars[1]);
        let (line, head) = (cg.div(warp.index, heads), cg.rem(warp.index, heads));
        cg.when(cg.cmp(Cmp::Lt, line, cg.mul(batch, rows)), || {
            let per_head = units / heads;
            let first = cg.add(cg.mul(line, units), cg.mul(head, per_head));
            let [b, r, h] = [k.scalars[2], k.scalars[3], k.scalars[4]];
            let to = cg.add(cg.mul(cg.div(line, rows), b), cg.mul(cg.rem(line, rows), r));
            let to = cg.add(to, cg.mul(head, h));
            cg.for_each(warp.lane, cg.i64(width), i64::from(WARP), |i| {
                let sum = cg.for_(cg.i64(0), cg.i64(per_head), 1, &[cg.f32(0.0)], |unit, sum| {
                    let at = cg.add(cg.mul(cg.add(first, unit), width), i);
                    vec![cg.add(sum[0], cg.load(Ty::F32, cg.at(k.buffers[0], Elem::F32, at)))]
                });
                let rounded = scalar::narrow(cg, sum[0], DType::Bf16);
                cg.store(rounded, cg.at(k.buffers[1], Elem::BF16, cg.add(to, i)));
            });
        });
    });
}
