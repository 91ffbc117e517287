//! Regions: nanoseconds, GB/s and compile time, on one thread.
//!
//!     cargo bench -p weft-backend-cpu --bench region [-- FILTER]
//!
//! Bytes are those of operands read once and results written once. The roof is the machine's copy
//! bandwidth, printed first for arrays of the same size: from the second-level cache for the small
//! ones, from memory for the large.

use std::time::{Duration, Instant};

use weft_backend_cpu::region::compile;
use weft_backend_cpu::target::target;
use weft_codegen::object;
use weft_codegen::region::graph::Buf;
use weft_graph::{CpuVariant, DimExpr};
use weft_ir::dim::Dim;
use weft_ir::module::Module;
use weft_lower::region::Region;
use weft_runtime::elf::{Code, KernelFn};

/// Name, and a function of `N` rows.
const CASES: [(&str, &str); 13] = [
    (
        "add",
        "func @f(%x: f32[N, 256], %y: f32[N, 256]) -> (f32[N, 256]) {
          %z = add %x, %y : f32[N, 256]
          return %z }",
    ),
    (
        "swiglu",
        "func @f(%g: f32[N, 256], %u: f32[N, 256]) -> (f32[N, 256]) {
          %s = sigmoid %g : f32[N, 256]
          %a = mul %g, %s : f32[N, 256]
          %y = mul %a, %u : f32[N, 256]
          return %y }",
    ),
    (
        "swiglu_bf16",
        "func @f(%g: bf16[N, 256], %u: bf16[N, 256]) -> (bf16[N, 256]) {
          %s = sigmoid %g : bf16[N, 256]
          %a = mul %g, %s : bf16[N, 256]
          %y = mul %a, %u : bf16[N, 256]
          return %y }",
    ),
    (
        "residual_rms_norm",
        "func @f(%x: f32[N, 256], %y: f32[N, 256], %g: f32[256])
          -> (f32[N, 256], f32[N, 256], f32[N]) {
          %s = add %x, %y : f32[N, 256]
          %n, %r = rms_norm %s, %g {eps = 1e-6} : f32[N, 256], f32[N]
          return %s, %n, %r }",
    ),
    (
        "rms_norm_grad",
        "func @f(%x: f32[N, 256], %g: f32[256], %r: f32[N], %dy: f32[N, 256]) -> (f32[N, 256]) {
          %d = rms_norm_grad %x, %g, %r, %dy : f32[N, 256]
          return %d }",
    ),
    (
        "gain_grad",
        "func @f(%x: f32[N, 256], %dy: f32[N, 256]) -> (f32[256]) {
          %p = mul %x, %dy : f32[N, 256]
          %s = reduce_sum %p {dims = [0]} : f32[256]
          return %s }",
    ),
    (
        "softmax",
        "func @f(%x: f32[N, 256]) -> (f32[N, 256]) {
          %y = softmax %x : f32[N, 256]
          return %y }",
    ),
    (
        "cross_entropy",
        "func @f(%x: f32[N, 512], %t: i32[N]) -> (f32[N], f32[N]) {
          %l, %e = cross_entropy %x, %t : f32[N], f32[N]
          return %l, %e }",
    ),
    (
        "cross_entropy_grad",
        "func @f(%x: f32[N, 512], %t: i32[N], %e: f32[N], %d: f32[N]) -> (f32[N, 512]) {
          %g = cross_entropy_grad %x, %t, %e, %d : f32[N, 512]
          return %g }",
    ),
    (
        "rotary",
        "func @f(%x: f32[1, N, 8, 32], %p: i32[1, N], %f: f32[16]) -> (f32[1, N, 8, 32]) {
          %y = rotary %x, %p, %f : f32[1, N, 8, 32]
          return %y }",
    ),
    (
        "rotary_interleaved",
        "func @f(%x: f32[1, N, 8, 32], %p: i32[1, N], %f: f32[16]) -> (f32[1, N, 8, 32]) {
          %y = rotary %x, %p, %f {interleaved = true} : f32[1, N, 8, 32]
          return %y }",
    ),
    (
        "transpose",
        "func @f(%x: f32[N, 8, 32]) -> (f32[8, N, 32]) {
          %y = transpose %x {perm = [1, 0, 2]} : f32[8, N, 32]
          return %y }",
    ),
    (
        "topk",
        "func @f(%x: f32[N, 16]) -> (i32[N, 4]) {
          %y = topk %x {k = 4} : i32[N, 4]
          return %y }",
    ),
];

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let variant = CpuVariant::best_here().expect("this machine runs a variant");
    println!("{:22} {:>8} {:>10} {:>8} {:>8} {:>9}", "", "rows", "ns", "GB/s", "copy", "compile");
    for (name, text) in CASES.iter().filter(|(name, _)| name.contains(&filter)) {
        for rows in [64, 2048, 65536] {
            run(name, text, rows, variant);
        }
    }
}

fn run(name: &str, text: &str, rows: i64, variant: CpuVariant) {
    let module = weft_ir::text::parse(&format!("dims {{ N <= 65536 }}\n{text}\n"));
    let module = module.unwrap_or_else(|e| panic!("{name}: {e:?}"));
    let size = |d: Dim| {
        let symbols = d.symbols().count() as u32;
        DimExpr::constant(d.coeff() as i64 * rows.pow(symbols))
    };
    let func = &module.funcs[0];
    let started = Instant::now();
    let region =
        compile(&module, func, name, name, &size).unwrap_or_else(|e| panic!("{name}: {e}"));
    let kernels: Vec<(Code, String)> = region
        .launches
        .iter()
        .map(|l| {
            let object = object::compile(&target(variant), std::slice::from_ref(&l.kernel));
            let object = object.unwrap_or_else(|e| panic!("{name}: {e}"));
            (Code::load(name, &object.bytes).expect("the object loads"), l.kernel.name.clone())
        })
        .collect();
    let compiling = started.elapsed().as_secs_f64() * 1e3 / kernels.len() as f64;
    let kernels: Vec<KernelFn> =
        kernels.iter().map(|(c, n)| c.kernel(n).expect("the kernel is there")).collect();
    let mut buffers = Buffers::new(&module, &region, &size);
    let seconds = best(|| {
        for (launch, kernel) in region.launches.iter().zip(&kernels) {
            let args: Vec<*mut u8> = launch.args.iter().map(|a| buffers.ptr(*a)).collect();
            let scalars: Vec<i64> = launch.scalars.iter().map(|_| rows).collect();
            let grid = launch.grid.eval(&[]);
            let scratch = buffers.scratch.as_mut_ptr();
            // SAFETY: the buffers are as large as the region says.
            unsafe { kernel(args.as_ptr(), scalars.as_ptr(), 0, grid, scratch.cast()) };
        }
    });
    let bytes: i64 = region.launches.iter().map(|l| l.bytes.eval(&[])).sum();
    let n = bytes as usize / 2;
    let (from, mut to) = (vec![1u8; n], vec![0u8; n]);
    let copy = best(|| {
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
    });
    println!(
        "{name:22} {rows:8} {:10.0} {:8.1} {:8.1} {compiling:6.1} ms",
        seconds * 1e9,
        bytes as f64 / seconds / 1e9,
        bytes as f64 / copy / 1e9
    );
}

struct Buffers {
    memory: Vec<(Buf, Vec<[f32; 16]>)>,
    scratch: Vec<[f32; 16]>,
}

impl Buffers {
    fn new(module: &Module, region: &Region, size: &dyn Fn(Dim) -> DimExpr) -> Buffers {
        let func = &module.funcs[0];
        let mut memory = vec![];
        let mut add = |buf, bytes: i64| {
            let words = (0..bytes / 64 + 2).map(|i| {
                // Both halves of the word are a plain bf16, about 1.1 to 2.2.
                let half = 0x3f90 + (i as u32 % 17) * 8;
                [f32::from_bits(half << 16 | half); 16]
            });
            memory.push((buf, words.collect::<Vec<_>>()));
        };
        let of = |v| {
            let ty = func.ty(v);
            let n = DimExpr::product(ty.dims.iter().map(|d| size(*d))).eval(&[]);
            (n * ty.dtype.bits() as i64 / 8, ty.dtype)
        };
        for (i, p) in func.params.iter().enumerate() {
            add(Buf::Operand(i as u32), of(*p).0);
        }
        for (i, r) in func.results.iter().enumerate() {
            add(Buf::Result(i as u32), of(*r).0);
        }
        for (i, w) in region.workspaces.iter().enumerate() {
            add(Buf::Workspace(i as u32), w.eval(&[]));
        }
        for (i, p) in func.params.iter().enumerate() {
            if of(*p).1.is_int() {
                memory[i].1.iter_mut().for_each(|w| *w = [f32::from_bits(3); 16]);
            }
        }
        let scratch = region.launches.iter().map(|l| l.scratch_bytes as usize / 64 + 1).max();
        Buffers { memory, scratch: vec![[0.0; 16]; scratch.unwrap_or(1)] }
    }

    fn ptr(&mut self, buf: Buf) -> *mut u8 {
        let found = self.memory.iter_mut().find(|(b, _)| *b == buf);
        found.expect("a buffer of the region").1.as_mut_ptr().cast()
    }
}

/// Seconds of the fastest of many runs.
fn best(mut f: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut best = f64::MAX;
    let mut runs = 0;
    while runs < 5 || started.elapsed() < Duration::from_millis(150) {
        let at = Instant::now();
        f();
        best = best.min(at.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}
