//! Runs a compiled region and holds it against the reference interpreter: on every CPU variant this
//! machine runs, the grid dealt out whole and block by block in reverse, which must give the same
//! bits; and as PTX, which the interpreter of `ptx-sim` runs and looks for races.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use half::bf16;
use ptx_sim::{Arg, Device, Launch, Module as Ptx};
use weft_backend_cpu::Cpu;
use weft_backend_cpu::target::target;
use weft_backend_cuda::Cuda;
use weft_backend_cuda::target::hopper;
use weft_codegen::object::compile;
use weft_codegen::region::graph::Buf;
use weft_graph::{CpuVariant, DimExpr, DimId, Scalar};
use weft_ir::builder::infer;
use weft_ir::dim::{Dim, SymId};
use weft_ir::formats::{self, E4M3, E5M2, E5M6};
use weft_ir::interp::{Data, Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{Func, Module};
use weft_ir::ty::{DType, Type};
use weft_lower::Backend;
use weft_lower::region::{self, Region};
use weft_runtime::elf::Code;

/// Memory whose start is a multiple of 64.
pub struct Aligned {
    words: Vec<[u64; 8]>,
    pub size_bytes: usize,
}

impl Aligned {
    pub fn new(size_bytes: usize) -> Aligned {
        // Filled with a pattern, so that what is not written shows; and longer, so that an overrun
        // does too.
        let words = vec![[0x7fc1_2345_7fc1_2345; 8]; size_bytes / 64 + 2];
        Aligned { words, size_bytes }
    }

    fn start(&self) -> usize {
        (self.words.as_ptr() as usize).next_multiple_of(64) - self.words.as_ptr() as usize
    }

    pub fn ptr(&mut self) -> *mut u8 {
        let start = self.start();
        // SAFETY: `start` is below 64 and the words are at least 128 bytes.
        unsafe { self.words.as_mut_ptr().cast::<u8>().add(start) }
    }

    fn all(&self) -> &[u8] {
        let n = self.words.len() * 64;
        // SAFETY: the words are plain bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), n) }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.all()[self.start()..self.start() + self.size_bytes]
    }

    fn check_end(&self) {
        let end = self.start() + self.size_bytes;
        let pattern = 0x7fc1_2345_7fc1_2345u64.to_le_bytes();
        for (i, b) in self.all().iter().enumerate().skip(end) {
            assert_eq!(*b, pattern[i % 8], "a kernel wrote {} bytes behind its buffer", i - end);
        }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let start = self.start();
        let n = self.words.len() * 64;
        // SAFETY: the words are plain bytes, borrowed alone.
        let all = unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), n) };
        let all: &mut [u8] = all;
        all[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

pub fn encode(t: &Tensor) -> Vec<u8> {
    match &t.data {
        Data::Float(v) if t.dtype == DType::E5m6 => {
            let code = |x: &f64| u32::from(E5M6.encode(*x as f32));
            v.chunks(2)
                .flat_map(|pair| {
                    let word = code(&pair[0]) | pair.get(1).map_or(0, code) << 12;
                    word.to_le_bytes()[..if pair.len() == 2 { 3 } else { 2 }].to_vec()
                })
                .collect()
        }
        Data::Float(v) => v
            .iter()
            .flat_map(|x| match t.dtype {
                DType::Bf16 => bf16::from_f32(*x as f32).to_le_bytes().to_vec(),
                DType::E4m3 => vec![E4M3.encode(*x as f32) as u8],
                DType::E5m2 => vec![E5M2.encode(*x as f32) as u8],
                DType::Ue8m0 => vec![formats::encode_ue8m0(*x as f32)],
                _ => (*x as f32).to_le_bytes().to_vec(),
            })
            .collect(),
        Data::Int(v) => v
            .iter()
            .flat_map(|x| match t.dtype {
                DType::I64 => x.to_le_bytes().to_vec(),
                _ => (*x as i32).to_le_bytes().to_vec(),
            })
            .collect(),
        Data::Bool(v) => v.iter().map(|b| *b as u8).collect(),
    }
}

pub fn decode(bytes: &[u8], dtype: DType) -> Vec<f64> {
    let four = |c: &[u8]| [c[0], c[1], c[2], c[3]];
    match dtype {
        DType::F32 => bytes.chunks(4).map(|c| f32::from_le_bytes(four(c)) as f64).collect(),
        DType::Bf16 => {
            bytes.chunks(2).map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f64()).collect()
        }
        DType::I32 => bytes.chunks(4).map(|c| i32::from_le_bytes(four(c)) as f64).collect(),
        DType::Bool => bytes.iter().map(|b| *b as f64).collect(),
        DType::E4m3 => bytes.iter().map(|b| E4M3.decode(u16::from(*b)).into()).collect(),
        DType::E5m2 => bytes.iter().map(|b| E5M2.decode(u16::from(*b)).into()).collect(),
        DType::Ue8m0 => bytes.iter().map(|b| formats::decode_ue8m0(*b).into()).collect(),
        DType::E5m6 => bytes
            .chunks(3)
            .flat_map(|c| {
                let word = c.iter().rev().fold(0u32, |w, b| w << 8 | u32::from(*b));
                let codes = [word & 0xfff, word >> 12];
                let n = if c.len() == 3 { 2 } else { 1 };
                codes[..n].iter().map(|c| E5M6.decode(*c as u16).into()).collect::<Vec<f64>>()
            })
            .collect(),
        other => panic!("{} is not stored in these tests", other.name()),
    }
}

/// The dim of the entry that a dim of the module is: symbol `i` is dim `i`.
pub fn size(module: &Module, dim: Dim) -> DimExpr {
    dim.symbols().fold(DimExpr::constant(dim.coeff() as i64), |n, s| {
        n * match &module.sym(s).kind {
            weft_ir::dim::SymKind::Bounded { .. } => DimExpr::dim(DimId(s.0)),
            weft_ir::dim::SymKind::Ragged { total, .. } => size(module, *total),
        }
    })
}

pub struct Runner<'a> {
    pub module: &'a Module,
    pub func: &'a Func,
    pub region: Region,
    sizes: Vec<i64>,
}

thread_local! {
    static CODE: Mutex<HashMap<(CpuVariant, String), Code>> = Mutex::new(HashMap::new());
}

thread_local! {
    /// Where a test has many cases of the same kernels, some are enough for the slower machine.
    pub static ON_PTX: Cell<bool> = const { Cell::new(true) };
}

impl<'a> Runner<'a> {
    pub fn new(
        backend: &dyn Backend,
        module: &'a Module,
        func: &'a Func,
        sizes: &Sizes,
    ) -> Runner<'a> {
        let dim = |d| size(module, d);
        let region = region::compile(backend, module, func, "test", "test.model:1", &dim);
        let region = region.unwrap_or_else(|e| panic!("@{}: {e}", func.name));
        let of = |i| sizes.get(&SymId(i)).map_or(1, |n| *n as i64);
        let sizes = (0..module.syms.len() as u32).map(of).collect();
        Runner { module, func, region, sizes }
    }

    /// Where a buffer lies: results may share storage with operands.
    fn storage(&self, buf: Buf) -> Buf {
        match buf {
            Buf::Result(r) => {
                let alias = self.region.aliases.iter().find(|(x, _)| *x == r);
                alias.map_or(buf, |(_, p)| Buf::Operand(*p))
            }
            other => other,
        }
    }

    /// The results' bytes, of the region as PTX.
    pub fn run_ptx(&self, args: &[Tensor]) -> Vec<Vec<u8>> {
        let mut device = Device::new();
        let mut memory: BTreeMap<Buf, (u64, usize)> = BTreeMap::new();
        let mut place = |device: &mut Device, buf: Buf, bytes: &[u8]| {
            memory.entry(buf).or_insert_with(|| (device.alloc_from(bytes), bytes.len()));
        };
        for (i, arg) in args.iter().enumerate() {
            place(&mut device, Buf::Operand(i as u32), &encode(arg));
        }
        // What is not written shows.
        let unwritten = |n: usize| vec![0x7f; n];
        for (r, v) in self.func.results.iter().enumerate() {
            let ty = self.func.ty(*v);
            let bytes = (self.len(ty) * ty.dtype.bits() as usize).div_ceil(8);
            place(&mut device, self.storage(Buf::Result(r as u32)), &unwritten(bytes));
        }
        for (w, n) in self.region.workspaces.iter().enumerate() {
            let bytes = n.eval(&self.sizes) as usize;
            place(&mut device, Buf::Workspace(w as u32), &unwritten(bytes));
        }
        for launch in &self.region.launches {
            let object = compile(&hopper(), std::slice::from_ref(&launch.kernel));
            let text = String::from_utf8(object.unwrap_or_else(|e| panic!("{e}")).bytes).unwrap();
            let module = Ptx::load(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let buffers = launch.args.iter().map(|a| Arg::Ptr(memory[&self.storage(*a)].0));
            let scalars = launch.scalars.iter().map(|s| match s {
                Scalar::Dim(d) => Arg::I64(d.eval(&self.sizes)),
                other => panic!("no region has a scalar {other:?}"),
            });
            let args: Vec<Arg> = buffers.chain(scalars).collect();
            let grid = launch.grid.eval(&self.sizes) as u32;
            if grid == 0 {
                continue;
            }
            let mut frame = Launch::new(grid, launch.kernel.cta.threads);
            frame.dynamic_shared_bytes = launch.kernel.cta.dynamic_shared_bytes;
            let run = device.launch(&module, &launch.kernel.name, &frame, &args);
            run.unwrap_or_else(|e| panic!("{e}\n{text}"));
        }
        let results = (0..self.func.results.len() as u32).map(Buf::Result);
        let bytes = |buf: Buf| {
            let (address, n) = memory[&self.storage(buf)];
            device.read(address, n).unwrap().to_vec()
        };
        results.map(bytes).collect()
    }

    fn len(&self, ty: &Type) -> usize {
        let n = ty.dims.iter().fold(DimExpr::constant(1), |n, d| n * size(self.module, *d));
        n.eval(&self.sizes) as usize
    }

    /// The results' bytes.
    pub fn run(&self, variant: CpuVariant, args: &[Tensor], backward: bool) -> Vec<Vec<u8>> {
        let mut memory: BTreeMap<Buf, Aligned> = BTreeMap::new();
        for (i, arg) in args.iter().enumerate() {
            let bytes = encode(arg);
            let mut buffer = Aligned::new(bytes.len());
            buffer.write(&bytes);
            memory.insert(Buf::Operand(i as u32), buffer);
        }
        let storage = |buf| self.storage(buf);
        for (r, v) in self.func.results.iter().enumerate() {
            let ty = self.func.ty(*v);
            let bytes = (self.len(ty) * ty.dtype.bits() as usize).div_ceil(8);
            memory.entry(storage(Buf::Result(r as u32))).or_insert_with(|| Aligned::new(bytes));
        }
        for (w, n) in self.region.workspaces.iter().enumerate() {
            let bytes = n.eval(&self.sizes) as usize;
            memory.insert(Buf::Workspace(w as u32), Aligned::new(bytes));
        }
        for launch in &self.region.launches {
            let mut scratch = Aligned::new(launch.scratch_bytes as usize);
            let buffers: Vec<*mut u8> = launch
                .args
                .iter()
                .map(|a| memory.get_mut(&storage(*a)).expect("a buffer of the region").ptr())
                .collect();
            let scalars: Vec<i64> = launch
                .scalars
                .iter()
                .map(|s| match s {
                    Scalar::Dim(d) => d.eval(&self.sizes),
                    other => panic!("no region has a scalar {other:?}"),
                })
                .collect();
            let grid = launch.grid.eval(&self.sizes);
            let kernel = load(variant, &launch.kernel);
            let ranges: Vec<(i64, i64)> = if backward {
                (0..grid).rev().map(|b| (b, b + 1)).collect()
            } else {
                vec![(0, grid)]
            };
            for (begin, end) in ranges {
                // SAFETY: the buffers are as large as the region says and live across the call.
                unsafe {
                    kernel(buffers.as_ptr(), scalars.as_ptr(), begin, end, scratch.ptr());
                }
            }
            scratch.check_end();
        }
        memory.values().for_each(Aligned::check_end);
        let results = 0..self.func.results.len() as u32;
        results.map(|r| memory[&storage(Buf::Result(r))].bytes().to_vec()).collect()
    }
}

pub fn load(
    variant: CpuVariant,
    kernel: &weft_codegen::object::KernelSource,
) -> weft_runtime::elf::KernelFn {
    CODE.with(|code| {
        let mut code = code.lock().expect("no test panics while it holds this");
        let key = (variant, kernel.name.clone());
        let loaded = code.entry(key).or_insert_with(|| {
            let object = compile(&target(variant), std::slice::from_ref(kernel));
            let object = object.unwrap_or_else(|e| panic!("{e}"));
            Code::load(&kernel.name, &object.bytes).unwrap_or_else(|e| panic!("{e}"))
        });
        loaded.kernel(&kernel.name).unwrap_or_else(|e| panic!("{e}"))
    })
}

pub fn variants() -> impl Iterator<Item = CpuVariant> {
    CpuVariant::ALL.into_iter().filter(|v| v.missing_feature().is_none())
}

/// What a comparison allows: relative to the element, and to the largest of the result.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub relative: f64,
    pub of_largest: f64,
}

pub const TIGHT: Tolerance = Tolerance { relative: 2e-6, of_largest: 1e-6 };

pub fn sizes(module: &Module, given: &[(&str, u64)]) -> Sizes {
    given.iter().map(|(n, s)| (module.find_sym(n).expect("a symbol of the test"), *s)).collect()
}

/// Compiles and runs the last function of a module in text form on random arguments.
pub fn check(text: &str, given: &[(&str, u64)]) {
    check_with(text, given, &|_, ty| default_range(ty), TIGHT);
}

pub fn default_range(ty: &Type) -> Range {
    if ty.dtype.is_int() { Range { low: 0.0, high: 4.0 } } else { Range { low: -2.0, high: 2.0 } }
}

pub fn check_with(
    text: &str,
    given: &[(&str, u64)],
    range: &dyn Fn(usize, &Type) -> Range,
    tolerance: Tolerance,
) {
    let module = parse(text);
    let sizes = sizes(&module, given);
    let id = weft_ir::module::FuncId(module.funcs.len() as u32 - 1);
    let args = random_args(&module, id, &sizes, 7, range).expect("arguments for every parameter");
    check_on(&module, &sizes, &args, tolerance);
}

/// A module in text form whose ops leave their result types to inference.
pub fn parse(text: &str) -> Module {
    let typed = |line: &str| match line.split_once(" = ") {
        Some((names, _)) if line.starts_with('%') => {
            let types = vec!["f32[]"; names.split(',').count()];
            format!("{line} : {}\n", types.join(", "))
        }
        _ => match line.split_once("-> (").and_then(|(a, b)| Some((a, b.split_once(')')?))) {
            Some((head, (results, rest))) if line.starts_with("func") => {
                let types = vec!["f32[]"; outside_brackets(results)];
                format!("{head}-> ({}){rest}\n", types.join(", "))
            }
            _ => format!("{line}\n"),
        },
    };
    let text: String = text.lines().map(typed).collect();
    let mut module = weft_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
    for i in 0..module.funcs.len() {
        let mut func = module.funcs[i].clone();
        for id in func.body.clone() {
            let op = func.op(id).clone();
            let types = infer(Some(&module), &func, op.op, &op.operands, &op.attrs);
            let types = types.unwrap_or_else(|e| panic!("{e}\n{text}"));
            for (r, ty) in op.results.iter().zip(types) {
                func.value_mut(*r).ty = ty;
            }
        }
        module.funcs[i] = func;
    }
    module
}

/// The entries of a list of types.
fn outside_brackets(list: &str) -> usize {
    let mut depth = 0;
    let commas = list.chars().filter(|c| {
        depth += i32::from("[<".contains(*c)) - i32::from("]>".contains(*c));
        *c == ',' && depth == 0
    });
    commas.count() + 1
}

/// [`check`] on arguments of one's own.
pub fn check_on(module: &Module, sizes: &Sizes, args: &[Tensor], tolerance: Tolerance) {
    let id = weft_ir::module::FuncId(module.funcs.len() as u32 - 1);
    let func = module.func(id);
    let rounded: Vec<Tensor> = args
        .iter()
        .map(|a| match a.data {
            Data::Float(_) => {
                Tensor { data: Data::Float(decode(&encode(a), a.dtype)), ..a.clone() }
            }
            _ => a.clone(),
        })
        .collect();
    let expected = Interp::new(module, Precision::Stated).run_sized(id, rounded.clone(), sizes);
    let expected = expected.unwrap_or_else(|e| panic!("{e}"));
    let runner = Runner::new(&Cpu, module, func, sizes);
    for variant in variants() {
        let results = runner.run(variant, &rounded, false);
        assert_eq!(results, runner.run(variant, &rounded, true), "@{}: order of blocks", func.name);
        compare_all(&func.name, variant.name(), &results, &expected, tolerance);
    }
    if ON_PTX.get() {
        let results = Runner::new(&Cuda::WHOLE, module, func, sizes).run_ptx(&rounded);
        compare_all(&func.name, "ptx", &results, &expected, tolerance);
    }
}

fn compare_all(
    func: &str,
    machine: &str,
    results: &[Vec<u8>],
    expected: &[Tensor],
    tolerance: Tolerance,
) {
    for (r, (bytes, want)) in results.iter().zip(expected).enumerate() {
        let got = decode(bytes, want.dtype);
        compare(&format!("@{func} result {r} on {machine}"), &got, want, tolerance);
    }
}

fn compare(what: &str, got: &[f64], want: &Tensor, tolerance: Tolerance) {
    let numbers = want.numbers();
    assert_eq!(got.len(), numbers.len(), "{what}: size");
    let finite = numbers.iter().filter(|x| x.is_finite());
    let largest = finite.fold(0.0f64, |m, x| m.max(x.abs()));
    // One unit of the last place of bf16, where the values before rounding differ in the last of
    // f32.
    let last = if want.dtype == DType::Bf16 { 1.0 / 128.0 } else { 0.0 };
    // A code is right or wrong.
    let code = matches!(want.dtype, DType::E4m3 | DType::E5m2 | DType::E5m6 | DType::Ue8m0);
    let exact = !want.dtype.is_float() || code;
    for (i, (g, w)) in got.iter().zip(&numbers).enumerate() {
        let bound = (tolerance.relative + last) * w.abs() + tolerance.of_largest * largest;
        let close = g == w || (g.is_nan() && w.is_nan()) || (!exact && (g - w).abs() <= bound);
        assert!(close, "{what}: element {i} of {:?} is {g}, expected {w}", want.dims);
    }
}
