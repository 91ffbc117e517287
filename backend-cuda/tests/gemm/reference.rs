//! The product as its definition says, an element at a time: every sum a chain in the order of k,
//! or in steps of 32 terms as tensor cores sum codes.

use half::bf16;
use weft_backend_cuda::gemm::{Grouping, Output};

use crate::problem::{Operand, Problem, ScaleValues};

/// C, of which `before` was there.
pub fn product(
    p: &Problem,
    a: &Operand,
    b: &Operand,
    scales: &[Option<ScaleValues>; 2],
    before: &[f32],
    c_lead: usize,
) -> Vec<f32> {
    let mut c = before.to_vec();
    for group in 0..p.groups {
        let bound = |i: usize| p.offsets.get(i).map_or(0, |&o| o as usize);
        let rows = match p.gemm.grouping {
            Grouping::Batch | Grouping::Inner => 0..p.m,
            Grouping::Masked => 0..bound(group),
            Grouping::Rows => bound(group)..bound(group + 1),
        };
        let terms = match p.gemm.grouping {
            Grouping::Inner => bound(group)..bound(group + 1),
            _ => 0..p.k,
        };
        let c_start = if p.gemm.grouping == Grouping::Rows { 0 } else { group * p.m * c_lead };
        for row in rows {
            for col in 0..p.n {
                let of = |x: &Operand, row: usize, k: usize| {
                    let group = if x.groups > 1 { group } else { 0 };
                    x.values[(group * x.rows + row) * p.k + k]
                };
                let scale = |side: usize, row: usize, k: usize| {
                    let (Some(s), Some(of)) = (&scales[side], p.gemm.scales) else { return 1.0 };
                    let grouped = s.values.len() > s.rows * s.blocks;
                    let group = if grouped { group } else { 0 };
                    let row = row / of[side].rows as usize;
                    s.values[(group * s.rows + row) * s.blocks + k / 128]
                };
                let (mut sum, mut partial, mut step) = (0f32, 0f32, vec![]);
                for k in terms.clone() {
                    let before_k = partial;
                    partial = of(a, row, k).mul_add(of(b, col, k), partial);
                    let ends = k + 1 == terms.end || (k + 1) % 128 == 0;
                    if p.gemm.hopper14.is_some() {
                        partial = before_k;
                        step.push(f64::from(of(a, row, k)) * f64::from(of(b, col, k)));
                        if ends || step.len() == 32 {
                            partial = fourteen_bits(&step, partial);
                            step.clear();
                        }
                    }
                    if p.gemm.scales.is_some() && ends {
                        let s = scale(0, row, k) * scale(1, col, k);
                        sum = partial.mul_add(s, sum);
                        partial = 0.0;
                    }
                }
                if p.gemm.scales.is_none() {
                    sum = partial;
                }
                let at = c_start + row * c_lead + col;
                if p.gemm.accumulate {
                    sum += c[at];
                }
                c[at] = match p.gemm.output {
                    Output::F32 => sum,
                    Output::Bf16 => bf16::from_f32(sum).to_f32(),
                };
            }
        }
    }
    c
}

/// A step on top of `sum`: all of it cut toward zero to what lies within 2^13 of the leading bit of
/// the largest, and added without rounding.
fn fourteen_bits(products: &[f64], sum: f32) -> f32 {
    let all: Vec<f64> = products.iter().copied().chain([f64::from(sum)]).collect();
    let largest = all.iter().fold(0f64, |most, x| most.max(x.abs()));
    let mut unit = 2f64.powi(-60);
    while largest >= unit * 2f64.powi(14) {
        unit *= 2.0;
    }
    all.iter().map(|x| (x / unit).trunc() * unit).sum::<f64>() as f32
}
