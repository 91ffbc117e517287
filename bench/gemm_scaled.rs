//! Products of e4m3 codes with group scales beside the same product of bf16 and of f32, on one
//! thread, and what Hopper's 14-bit sums cost and lose.
//!
//! ```text
//! cargo bench -p weft-backend-cpu --bench gemm_scaled [-- error]
//! ```
//!
//! Prints GFLOP/s, best of many, turn by turn. With `error`: max |C - exact| / rms(exact) at
//! K = 4096 instead, of products whose operands are codes already, so that it is the sum's error
//! alone.

use std::time::{Duration, Instant};

use weft_backend_cpu::gemm::scaled::{self, Operand, ScaledGemm, Scales, Sum};
use weft_backend_cpu::gemm::{self, Form, Gemm, Matrix, Planned};
use weft_backend_cpu::target::target;
use weft_codegen::object::compile;
use weft_graph::{CpuVariant, DType, Scalar};
use weft_ir::formats::E4M3;
use weft_runtime::elf::{Code, KernelFn};

/// `m n k`, and whether A and B are stored transposed.
struct Case(i64, i64, i64, &'static str, &'static str);

const CASES: [Case; 8] = [
    Case(512, 512, 512, "nt", "square"),
    Case(1024, 1024, 1024, "nt", "square"),
    Case(2048, 256, 256, "nt", "projection"),
    Case(2048, 256, 256, "nn", "projection, input gradient"),
    Case(256, 256, 2048, "tn", "projection, weight gradient"),
    Case(2048, 128, 256, "nt", "low rank"),
    Case(500, 256, 256, "nt", "expert"),
    Case(256, 256, 500, "tn", "expert, weight gradient"),
];

fn main() {
    let Some(variant) = CpuVariant::best_here() else {
        return println!("skipped: no CPU variant runs here");
    };
    if std::env::args().any(|a| a == "error") {
        return errors(variant);
    }
    println!("{variant:?}, GFLOP/s, one thread, best of many");
    println!(
        "{:>20} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "m x n x k", "f32", "bf16", "e4m3", "/ bf16", "hopper14"
    );
    for Case(m, n, k, layouts, what) in CASES {
        let plain = |dtype| Product::plain([m, n, k], layouts, dtype, variant);
        let scaled = |sum| Product::scaled([m, n, k], layouts, (sum, Some(128)), variant);
        let all = [plain(DType::F32), plain(DType::Bf16), scaled(Sum::F32), scaled(Sum::Hopper14)];
        let mut best = [f64::INFINITY; 4];
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(2500) {
            for (best, product) in best.iter_mut().zip(&all) {
                let from = Instant::now();
                product.run();
                *best = best.min(from.elapsed().as_secs_f64());
            }
        }
        let rate = best.map(|s| 2.0 * (m * n * k) as f64 / s / 1e9);
        println!(
            "{:>20} {:>8.1} {:>8.1} {:>8.1} {:>8.2} {:>10.1}   {what}",
            format!("{m}x{n}x{k} {layouts}"),
            rate[0],
            rate[1],
            rate[2],
            rate[2] / rate[1],
            rate[3],
        );
    }
}

/// A product with its operands and code.
struct Product {
    buffers: Vec<Vec<u8>>,
    scalars: Vec<i64>,
    grid: i64,
    scratch: Vec<f32>,
    kernel: KernelFn,
    _code: Code,
}

fn matrix(rows: i64, cols: i64, transposed: bool, dtype: DType) -> Matrix {
    let (row_stride, col_stride) = if transposed { (1, rows) } else { (cols, 1) };
    Matrix {
        dtype,
        row_stride: row_stride.into(),
        col_stride: col_stride.into(),
        group_stride: 0.into(),
        aligned: true,
    }
}

impl Product {
    fn plain([m, n, k]: [i64; 3], layouts: &str, dtype: DType, variant: CpuVariant) -> Product {
        let transposed = |i: usize| layouts.as_bytes()[i] == b't';
        let gemm = Gemm {
            m: m.into(),
            n: n.into(),
            k: k.into(),
            a: matrix(m, k, transposed(0), dtype),
            b: matrix(k, n, transposed(1), dtype),
            c: matrix(m, n, false, DType::F32),
            form: Form::Dense,
            accumulate: false,
            epilogue: None,
        };
        let bytes = |n: i64| vec![0x3cu8; (n * i64::from(dtype.bits()) / 8) as usize];
        let buffers = vec![bytes(m * k), bytes(k * n), vec![0; (4 * m * n) as usize]];
        Product::new(gemm::plan(&gemm, &[], "bench"), buffers, variant)
    }

    fn scaled(
        [m, n, k]: [i64; 3],
        layouts: &str,
        (sum, promote): (Sum, Option<i64>),
        variant: CpuVariant,
    ) -> Product {
        let transposed = |i: usize| layouts.as_bytes()[i] == b't';
        let operand = |rows: i64, cols: i64, transposed: bool, group: [i64; 2]| {
            let in_row = (cols - 1) / group[1] + 1;
            Operand {
                codes: matrix(rows, cols, transposed, DType::E4m3),
                scales: Some(Scales {
                    dtype: DType::F32,
                    group,
                    row_stride: in_row.into(),
                    col_stride: 1.into(),
                    group_stride: 0.into(),
                }),
            }
        };
        // A weight gradient's operands are both grouped along k.
        let b_group = if layouts == "tn" { [128, 1] } else { [128, 128] };
        let gemm = ScaledGemm {
            m: m.into(),
            n: n.into(),
            k: k.into(),
            a: operand(m, k, transposed(0), [1, 128]),
            b: operand(k, n, transposed(1), b_group),
            c: matrix(m, n, false, DType::F32),
            form: Form::Dense,
            accumulate: false,
            promote,
            sum,
        };
        let planned = scaled::plan(&gemm, &[], "bench").expect("the groups fit");
        let ones = |n: i64| 1f32.to_le_bytes().repeat(n as usize);
        let codes = |n: i64| vec![0x3cu8; n as usize];
        let k_groups = (k - 1) / 128 + 1;
        let buffers = vec![
            codes(m * k),
            codes(k * n),
            vec![0; (4 * m * n) as usize],
            ones(m * k_groups),
            ones(k_groups * ((n - 1) / b_group[1] + 1)),
        ];
        Product::new(planned, buffers, variant)
    }

    fn new(planned: Planned, buffers: Vec<Vec<u8>>, variant: CpuVariant) -> Product {
        let object = compile(&target(variant), std::slice::from_ref(&planned.kernel));
        let code = Code::load("bench", &object.expect("the kernel compiles").bytes);
        let code = code.expect("the object loads");
        let scalars = planned.scalars.iter().map(|s| match s {
            Scalar::Dim(e) => e.eval(&[]),
            Scalar::F32(bits) => i64::from(*bits),
            Scalar::LoopIndex(_) => 0,
        });
        Product {
            buffers,
            scalars: scalars.collect(),
            grid: planned.grid.eval(&[]),
            scratch: vec![0.0; planned.scratch_bytes as usize / 4 + 16],
            kernel: code.kernel(&planned.kernel.name).expect("the kernel is in it"),
            _code: code,
        }
    }

    fn run(&self) {
        let buffers: Vec<*const u8> = self.buffers.iter().map(|b| b.as_ptr()).collect();
        let aligned = self.scratch.as_ptr().align_offset(64);
        // SAFETY: the kernel ABI, with buffers of the sizes of the case; nothing else uses the
        // scratch.
        unsafe {
            let scratch = self.scratch.as_ptr().add(aligned).cast_mut().cast();
            (self.kernel)(buffers.as_ptr().cast(), self.scalars.as_ptr(), 0, self.grid, scratch);
        }
    }

    fn result(&self) -> Vec<f32> {
        let word = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        self.buffers[2].chunks(4).map(word).collect()
    }
}

fn errors(variant: CpuVariant) {
    let (m, n, k) = (256, 256, 4096);
    println!("{m} x {n} x {k}: max |C - exact| / rms(exact)");
    for (name, normal) in [("N(0, 1)", true), ("U[0, 1)", false)] {
        let mut state = 7u64;
        let mut unit = || {
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            ((state >> 40) as f64 + 0.5) / (1u64 << 24) as f64
        };
        let mut draw = || match normal {
            true => (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos(),
            false => unit(),
        };
        let mut codes =
            |n: i64| -> Vec<u8> { (0..n).map(|_| E4M3.encode(draw() as f32) as u8).collect() };
        let (a, b) = (codes(m * k), codes(k * n));
        let value = |c: u8| f64::from(E4M3.decode(c.into()));
        // B is stored transposed.
        let exact = |i: usize| -> f64 {
            let (row, col) = (i / n as usize, i % n as usize);
            let k = k as usize;
            let pairs = a[row * k..(row + 1) * k].iter().zip(&b[col * k..(col + 1) * k]);
            pairs.map(|(a, b)| value(*a) * value(*b)).sum()
        };
        let exact: Vec<f64> = (0..(m * n) as usize).map(exact).collect();
        let rms = (exact.iter().map(|x| x * x).sum::<f64>() / exact.len() as f64).sqrt();
        for (what, sum, promote) in [
            ("f32, promoted every 128", Sum::F32, Some(128)),
            ("hopper14, promoted every 128", Sum::Hopper14, Some(128)),
            ("hopper14, never promoted", Sum::Hopper14, None),
        ] {
            let mut product = Product::scaled([m, n, k], "nt", (sum, promote), variant);
            (product.buffers[0], product.buffers[1]) = (a.clone(), b.clone());
            product.run();
            let result = product.result();
            let off = result.iter().zip(&exact).map(|(x, e)| (f64::from(*x) - e).abs());
            let worst = off.fold(0.0, f64::max);
            println!("{name:>8} {what:<30} {:.4} %", 100.0 * worst / rms);
        }
    }
}
