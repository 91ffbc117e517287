//! Our matrix products beside OpenBLAS (the one numpy brings), in one process, turn by turn.
//!
//! ```text
//! cargo bench -p weft-backend-cpu --bench gemm [-- FILTER]
//! ```
//!
//! OpenBLAS is left to choose its own kernels: what the environment says of them is taken out
//! first, and the line of the head names what it chose.
//!
//! Prints GFLOP/s of both, best of many, with one thread and with two, and their ratio. numpy is
//! installed into a virtual environment under the build directory on the first run. Marks: 0.95
//! from 512 up, 0.85 at 256. On a machine that others use too, repeat: the best of many is what
//! counts.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use weft_backend_cpu::gemm::{Form, Gemm, Matrix, Planned, plan};
use weft_backend_cpu::target::target;
use weft_codegen::object::compile;
use weft_graph::{CpuVariant, DType, Scalar};
use weft_runtime::elf::{Code, KernelFn};
use weft_runtime::pool::Pool;

struct Case {
    m: i64,
    n: i64,
    k: i64,
    /// Whether A and B are stored transposed.
    layouts: &'static str,
    what: &'static str,
}

const fn case(m: i64, n: i64, k: i64, layouts: &'static str, what: &'static str) -> Case {
    Case { m, n, k, layouts, what }
}

const CASES: [Case; 24] = [
    case(64, 64, 64, "nn", "square"),
    case(128, 128, 128, "nn", "square"),
    case(256, 256, 256, "nn", "square"),
    case(512, 512, 512, "nn", "square"),
    case(1024, 1024, 1024, "nn", "square"),
    case(2048, 2048, 2048, "nn", "square"),
    case(256, 256, 256, "nt", "square"),
    case(512, 512, 512, "nt", "square"),
    case(1024, 1024, 1024, "nt", "square"),
    case(512, 512, 512, "tn", "square"),
    case(2048, 256, 256, "nt", "projection"),
    case(2048, 256, 256, "nn", "projection, input gradient"),
    case(256, 256, 2048, "tn", "projection, weight gradient"),
    case(2048, 128, 256, "nt", "low rank"),
    case(2048, 64, 256, "nt", "low rank"),
    case(2048, 512, 256, "nt", "head"),
    case(500, 256, 256, "nt", "expert"),
    case(100, 128, 256, "nt", "expert"),
    case(100, 256, 128, "nt", "expert"),
    case(1, 512, 256, "nt", "decode"),
    case(1, 2048, 2048, "nt", "decode"),
    case(1, 2048, 2048, "nn", "decode"),
    case(4, 2048, 2048, "nt", "decode"),
    case(8, 512, 256, "nt", "decode"),
];

fn main() {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let variant = match CpuVariant::best_here() {
        Some(variant) => variant,
        None => return println!("skipped: no CPU variant runs here"),
    };
    let blas = match OpenBlas::load() {
        Ok(blas) => Some(blas),
        Err(reason) => {
            println!("without OpenBLAS: {reason}");
            None
        }
    };
    let kernels = blas.as_ref().map_or("none".to_string(), |b| b.kernels.clone());
    println!("{variant:?} beside OpenBLAS's {kernels}, GFLOP/s, best of many");
    println!(
        "{:>30} {:>7} {:>9} {:>9} {:>6}   bf16",
        "m x n x k", "threads", "ours", "OpenBLAS", "ratio"
    );
    for case in &CASES {
        let name = format!("{}x{}x{} {}", case.m, case.n, case.k, case.layouts);
        if !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        for threads in [1, 2] {
            run(case, &name, variant, threads, blas.as_ref());
        }
    }
}

fn run(case: &Case, name: &str, variant: CpuVariant, threads: usize, blas: Option<&OpenBlas>) {
    let flops = 2.0 * (case.m * case.n * case.k) as f64;
    let f32s = Product::new(case, variant, DType::F32);
    let bf16s = Product::new(case, variant, DType::Bf16);
    let pool = Pool::new(threads).expect("threads start");
    let scratch = f32s.planned.scratch_bytes.max(bf16s.planned.scratch_bytes);
    pool.reserve_scratch(scratch as usize).expect("scratch is there");
    let mut best = [f64::INFINITY; 3];
    let start = Instant::now();
    let mut rounds = 0;
    // Turn by turn, so that noise from elsewhere meets all alike.
    while start.elapsed() < Duration::from_millis(1500) || rounds < 5 {
        let repeat = (2e6 / flops).ceil() as u32;
        best[0] = best[0].min(timed(repeat, || f32s.run(&pool)));
        if let Some(blas) = blas {
            blas.set_threads(threads);
            best[1] = best[1].min(timed(repeat, || blas.sgemm(case, &f32s)));
        }
        best[2] = best[2].min(timed(repeat, || bf16s.run(&pool)));
        rounds += 1;
    }
    let rate = |seconds: f64| flops / seconds / 1e9;
    println!(
        "{name:>30} {threads:>7} {:>9.1} {:>9.1} {:>6.2} {:>8.1}   {} ({:.0} ms to compile)",
        rate(best[0]),
        if blas.is_some() { rate(best[1]) } else { 0.0 },
        best[1] / best[0],
        rate(best[2]),
        case.what,
        f32s.compile_ms,
    );
}

/// Seconds of one call, after one that brings the operands near: it does not matter who ran before.
fn timed(repeat: u32, mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    (0..repeat).for_each(|_| f());
    start.elapsed().as_secs_f64() / f64::from(repeat)
}

/// A product with its operands and code.
struct Product {
    planned: Planned,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    leading: [i64; 2],
    scalars: Vec<i64>,
    grid: i64,
    kernel: KernelFn,
    compile_ms: f64,
    _code: Code,
}

impl Product {
    fn new(case: &Case, variant: CpuVariant, dtype: DType) -> Product {
        let matrix = |rows: i64, cols: i64, transposed: bool| {
            let (row_stride, col_stride) = if transposed { (1, rows) } else { (cols, 1) };
            Matrix {
                dtype,
                row_stride: row_stride.into(),
                col_stride: col_stride.into(),
                group_stride: 0.into(),
                aligned: true,
            }
        };
        let transposed = |i: usize| case.layouts.as_bytes()[i] == b't';
        let gemm = Gemm {
            m: case.m.into(),
            n: case.n.into(),
            k: case.k.into(),
            a: matrix(case.m, case.k, transposed(0)),
            b: matrix(case.k, case.n, transposed(1)),
            c: matrix(case.m, case.n, false),
            form: Form::Dense,
            accumulate: false,
            epilogue: None,
        };
        let planned = plan(&gemm, &[], "bench");
        let start = Instant::now();
        let object = compile(&target(variant), std::slice::from_ref(&planned.kernel));
        let code = Code::load("bench", &object.expect("the kernel compiles").bytes);
        let code = code.expect("the object loads");
        let compile_ms = start.elapsed().as_secs_f64() * 1e3;
        let kernel = code.kernel(&planned.kernel.name).expect("the kernel is in it");
        let scalars = planned.scalars.iter().map(|s| match s {
            Scalar::Dim(e) => e.eval(&[]),
            Scalar::F32(bits) => i64::from(*bits),
            Scalar::LoopIndex(_) => 0,
        });
        Product {
            scalars: scalars.collect(),
            grid: planned.grid.eval(&[]),
            a: values(case.m * case.k, dtype),
            b: values(case.k * case.n, dtype),
            c: vec![0.0; (case.m * case.n) as usize],
            leading: [
                if transposed(0) { case.m } else { case.k },
                if transposed(1) { case.k } else { case.n },
            ],
            kernel,
            compile_ms,
            _code: code,
            planned,
        }
    }

    fn run(&self, pool: &Pool) {
        let buffers: [usize; 3] =
            [self.a.as_ptr() as usize, self.b.as_ptr() as usize, self.c.as_ptr() as usize];
        let body = |begin: i64, end: i64, worker: usize| {
            let scratch = pool.scratch(worker);
            // SAFETY: the kernel ABI; buffers have the sizes of the case, scratch what the plan
            // asks.
            unsafe {
                (self.kernel)(buffers.as_ptr().cast(), self.scalars.as_ptr(), begin, end, scratch)
            }
        };
        pool.run(self.grid, pool.chunk_for(self.grid), &body);
    }
}

/// Numbers of both signs; two bf16 to a word where asked.
fn values(n: i64, dtype: DType) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let half = |x: f32| x.to_bits() >> 16;
    let word = |_| match dtype {
        DType::Bf16 => f32::from_bits(half(next()) << 16 | half(next())),
        _ => next(),
    };
    (0..n).map(word).collect()
}

type Sgemm = unsafe extern "C" fn(
    order: c_int,
    transpose_a: c_int,
    transpose_b: c_int,
    m: i64,
    n: i64,
    k: i64,
    alpha: f32,
    a: *const f32,
    lda: i64,
    b: *const f32,
    ldb: i64,
    beta: f32,
    c: *mut f32,
    ldc: i64,
);

struct OpenBlas {
    sgemm: Sgemm,
    set_threads: unsafe extern "C" fn(c_int),
    /// The machine whose kernels it chose, `SkylakeX`.
    kernels: String,
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_NOW: c_int = 2;

impl OpenBlas {
    fn load() -> Result<OpenBlas, String> {
        let library = openblas_path()?;
        for key in ["OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS"] {
            // SAFETY: no other thread has started yet.
            unsafe { std::env::remove_var(key) };
        }
        let path = CString::new(library.to_string_lossy().as_ref()).map_err(|e| e.to_string())?;
        // SAFETY: plain use of the loader; the names' types are those of OpenBLAS with 64-bit
        // integers.
        unsafe {
            let library = dlopen(path.as_ptr(), RTLD_NOW);
            let symbol = |name: &CStr| {
                let found = if library.is_null() { library } else { dlsym(library, name.as_ptr()) };
                if found.is_null() { Err(format!("no {name:?}")) } else { Ok(found) }
            };
            let name: unsafe extern "C" fn() -> *const c_char =
                std::mem::transmute(symbol(c"scipy_openblas_get_corename64_")?);
            Ok(OpenBlas {
                kernels: CStr::from_ptr(name()).to_string_lossy().into_owned(),
                sgemm: std::mem::transmute::<*mut c_void, Sgemm>(symbol(c"scipy_cblas_sgemm64_")?),
                set_threads: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int)>(
                    symbol(c"scipy_openblas_set_num_threads64_")?,
                ),
            })
        }
    }

    fn set_threads(&self, threads: usize) {
        // SAFETY: a setter.
        unsafe { (self.set_threads)(threads as c_int) }
    }

    fn sgemm(&self, case: &Case, x: &Product) {
        let code = |c: u8| if c == b't' { 112 } else { 111 };
        let [a, b] = [0, 1].map(|i| code(case.layouts.as_bytes()[i]));
        let c = x.c.as_ptr().cast_mut();
        let [lda, ldb] = x.leading;
        // SAFETY: operands have the sizes of the case; 101 is row-major.
        unsafe {
            (self.sgemm)(
                101,
                a,
                b,
                case.m,
                case.n,
                case.k,
                1.0,
                x.a.as_ptr(),
                lda,
                x.b.as_ptr(),
                ldb,
                0.0,
                c,
                case.n,
            );
        }
    }
}

/// The OpenBLAS inside numpy, installed where nothing else sees it.
fn openblas_path() -> Result<PathBuf, String> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(target);
    let venv = root.join("bench-numpy");
    let run = |program: &Path, args: &[&str]| {
        let status = Command::new(program).args(args).status();
        let done = status.is_ok_and(|s| s.success());
        if done { Ok(()) } else { Err(format!("{} {} failed", program.display(), args.join(" "))) }
    };
    if !venv.join("bin/pip").exists() {
        run(Path::new("python3"), &["-m", "venv", &venv.to_string_lossy()])?;
    }
    let find = || {
        let lib = std::fs::read_dir(venv.join("lib")).ok()?.flatten().next()?.path();
        let libs = std::fs::read_dir(lib.join("site-packages/numpy.libs")).ok()?;
        libs.flatten().map(|f| f.path()).find(|p| p.to_string_lossy().contains("openblas"))
    };
    if find().is_none() {
        run(&venv.join("bin/pip"), &["install", "--quiet", "numpy"])?;
    }
    find().ok_or_else(|| "numpy brought no OpenBLAS".to_string())
}
