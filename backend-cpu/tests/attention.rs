//! Attention and its gradients against the interpreter, on every CPU variant this machine runs: odd
//! sizes, score parts, shared heads, masks, layouts; the same bits however blocks are dealt out and
//! whatever else is in the batch.
//!
//! B batch, S queries, T keys, H heads, D width.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{LazyLock, Mutex};

use half::bf16;
use weft_backend_cpu::attention::{
    Attention, Buffer, Gradients, Heads, Part, Planned, backward, forward, takes_codes,
};
use weft_backend_cpu::target::target;
use weft_codegen::object::{KernelSource, compile};
use weft_codegen::row_codes::RowCodes;
use weft_graph::{CpuVariant, DType, DimDecl, DimExpr, DimId, Scalar};
use weft_ir::attr::Attrs;
use weft_ir::builder::Builder;
use weft_ir::dim::Dim;
use weft_ir::formats::{Format, encode_ue8m0, round};
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::Module;
use weft_ir::op::Op;
use weft_ir::ty::{self as ir, Type};
use weft_runtime::elf::{Code, KernelFn};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    RowMajor,
    /// Slices of wider arrays; every stride is known when compiling.
    Sliced,
    /// The same, with row strides that only the launch knows.
    Dynamic,
    /// Heads before rows.
    HeadsFirst,
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    b: usize,
    s: usize,
    t: usize,
    /// Bound of s.
    s_max: i64,
    h: usize,
    /// Width and heads of each k, then of v.
    parts: Vec<(usize, usize)>,
    v: (usize, usize),
    causal: bool,
    start: Option<Vec<i64>>,
    /// Ids change every so many positions.
    segments: Option<usize>,
    layout: Layout,
    /// Multiplies the scores.
    sharpness: f64,
    /// What rows of o become, and whether they are written too.
    codes: Vec<RowCodes>,
    keeps_o: bool,
}

/// An operand `[B, rows, heads, width]` as the kernel gets it.
#[derive(Clone)]
struct Operand {
    dims: [usize; 4],
    strides: [usize; 3],
    data: Vec<f32>,
}

/// What nothing may read or write.
/// A bf16 too.
const OUTSIDE: f32 = -805_306_368.0;

impl Operand {
    fn new(dims: [usize; 4], layout: Layout) -> Operand {
        let [b, rows, heads, width] = dims;
        let strides = match layout {
            Layout::RowMajor => [rows * heads * width, heads * width, width],
            Layout::Sliced | Layout::Dynamic => {
                let row = heads * (width + 3) + 5;
                [rows * row + 7, row, width + 3]
            }
            Layout::HeadsFirst => [rows * heads * width, width, rows * width],
        };
        let len = b * strides[0] + heads * strides[2] + rows * strides[1];
        Operand { dims, strides, data: vec![OUTSIDE; len] }
    }

    fn filled(dims: [usize; 4], layout: Layout, seed: u32) -> Operand {
        let mut operand = Operand::new(dims, layout);
        let mut state = 0x9e37_79b9u32 ^ seed.wrapping_mul(0x85eb_ca6b);
        for at in operand.places() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            operand.data[at] = ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 2.0;
        }
        operand
    }

    /// Places in row-major order.
    fn places(&self) -> Vec<usize> {
        let ([b, rows, heads, width], [sb, sr, sh]) = (self.dims, self.strides);
        let mut places = vec![];
        for b in 0..b {
            for r in 0..rows {
                for h in 0..heads {
                    places.extend((0..width).map(|d| b * sb + r * sr + h * sh + d));
                }
            }
        }
        places
    }

    /// Every element as `dtype` holds it.
    fn rounded(mut self, dtype: DType) -> Operand {
        if dtype == DType::Bf16 {
            self.data.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        self
    }

    fn bytes(&self, dtype: DType) -> Vec<u8> {
        let bytes = |x: &f32| match dtype {
            DType::Bf16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        self.data.iter().flat_map(bytes).collect()
    }

    fn read(&mut self, bytes: &[u8], dtype: DType) {
        let float = |b: &[u8]| match *b {
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("an element has 2 or 4 bytes"),
        };
        let each = dtype.bits() as usize / 8;
        self.data = bytes.chunks(each).map(float).collect();
    }

    fn values(&self) -> Vec<f64> {
        self.places().iter().map(|at| f64::from(self.data[*at])).collect()
    }

    fn tensor(&self) -> Tensor {
        Tensor::f32(&self.dims, self.values())
    }

    /// Dim 3 of the launch is the row stride of a dynamic layout, each operand having its own by
    /// its place.
    fn heads(&self, dynamic: Option<u32>) -> Heads {
        let [b, r, h] = self.strides.map(|s| DimExpr::from(s as i64));
        let row = dynamic.map_or(r, |dim| DimId(dim).into());
        let [_, _, heads, width] = self.dims;
        Heads { heads: heads as i64, width: width as i64, strides: [b, row, h] }
    }

    fn outside_untouched(&self) -> bool {
        let mut outside = vec![true; self.data.len()];
        self.places().iter().for_each(|at| outside[*at] = false);
        self.data.iter().zip(outside).all(|(x, outside)| !outside || *x == OUTSIDE)
    }
}

/// Operands and results by what they are; the statistics and ids beside them.
#[derive(Clone)]
struct Data {
    operands: BTreeMap<Buffer, Operand>,
    lse: Vec<f32>,
    ids: BTreeMap<Buffer, Vec<i32>>,
    codes: BTreeMap<Buffer, Vec<u8>>,
}

impl Case {
    /// MLA in training: two parts, the second shared by all heads.
    fn new(b: usize, s: usize, t: usize) -> Case {
        Case {
            dtype: DType::F32,
            b,
            s,
            t,
            s_max: 4096,
            h: 4,
            parts: vec![(12, 4), (8, 1)],
            v: (12, 4),
            causal: true,
            start: None,
            segments: None,
            layout: Layout::RowMajor,
            sharpness: 1.0,
            codes: vec![],
            keeps_o: true,
        }
    }

    fn heads(self, h: usize, parts: &[(usize, usize)], v: (usize, usize)) -> Case {
        Case { h, parts: parts.to_vec(), v, ..self }
    }

    fn scale(&self) -> f64 {
        let width: usize = self.parts.iter().map(|p| p.0).sum();
        self.sharpness / (width as f64).sqrt()
    }

    fn data(&self) -> Data {
        let Case { b, s, t, h, layout, .. } = *self;
        let mut operands = BTreeMap::new();
        for (j, (width, heads)) in self.parts.iter().enumerate() {
            let seed = 2 * j as u32;
            let (q, k) = ([b, s, h, *width], [b, t, *heads, *width]);
            operands.insert(Buffer::Q(j), Operand::filled(q, layout, seed));
            operands.insert(Buffer::K(j), Operand::filled(k, layout, seed + 1));
            operands.insert(Buffer::DQ(j), Operand::new(q, layout));
            operands.insert(Buffer::DK(j), Operand::new(k, layout));
        }
        let (v, o) = ([b, t, self.v.1, self.v.0], [b, s, h, self.v.0]);
        operands.insert(Buffer::V, Operand::filled(v, layout, 90));
        operands.insert(Buffer::DV, Operand::new(v, layout));
        operands.insert(Buffer::O, Operand::new(o, layout));
        operands.insert(Buffer::DO, Operand::filled(o, layout, 91));
        let rounded = |(b, x): (Buffer, Operand)| (b, x.rounded(self.dtype));
        let operands = operands.into_iter().map(rounded).collect();
        let mut ids = BTreeMap::new();
        if let Some(start) = &self.start {
            ids.insert(Buffer::Start, start.iter().map(|x| *x as i32).collect());
        }
        if let Some(every) = self.segments {
            let of =
                |rows: usize| (0..b * rows).map(|i| (i % rows.max(1) / every) as i32).collect();
            ids.insert(Buffer::QuerySegments, of(s));
            ids.insert(Buffer::KeySegments, of(t));
        }
        let (rows, row) = (b * s, h * self.v.0);
        let mut codes = BTreeMap::new();
        for (i, of) in self.codes.iter().enumerate() {
            let groups = rows * row.div_ceil(of.group as usize);
            codes.insert(Buffer::Codes(i), vec![0xee; rows * row * of.code.bits() as usize / 8]);
            codes.insert(Buffer::Scales(i), vec![0xee; groups * of.scale.bits() as usize / 8]);
        }
        Data { operands, lse: vec![OUTSIDE; b * h * s], ids, codes }
    }

    fn describe(&self, data: &Data) -> (Attention, Gradients, Vec<DimDecl>, Vec<i64>) {
        let mut dims = vec![self.b as i64, self.s as i64, self.t as i64];
        let decl = |max: i64| DimDecl { name: "n".into(), max };
        let mut decls = vec![decl(64), decl(self.s_max), decl(4096)];
        let mut heads = |buffer: Buffer| {
            let operand = &data.operands[&buffer];
            let dynamic = (self.layout == Layout::Dynamic).then(|| {
                dims.push(operand.strides[1] as i64);
                decls.push(decl(1 << 20));
                dims.len() as u32 - 1
            });
            operand.heads(dynamic)
        };
        let n = self.parts.len();
        let attention = Attention {
            dtype: self.dtype,
            batch: DimId(0).into(),
            queries: DimId(1).into(),
            keys: DimId(2).into(),
            parts: (0..n)
                .map(|j| Part { q: heads(Buffer::Q(j)), k: heads(Buffer::K(j)) })
                .collect(),
            v: heads(Buffer::V),
            v_is_k: false,
            o: heads(Buffer::O),
            codes: self.codes.clone(),
            keeps_o: self.keeps_o,
            scale: self.scale(),
            causal: self.causal,
            offset: self.start.is_some(),
            segments: self.segments.is_some(),
            pages: None,
            aligned: true,
        };
        let gradients = Gradients {
            d_o: heads(Buffer::DO),
            dq: (0..n).map(|j| heads(Buffer::DQ(j))).collect(),
            dk: (0..n).map(|j| heads(Buffer::DK(j))).collect(),
            dv: heads(Buffer::DV),
        };
        (attention, gradients, decls, dims)
    }

    /// The op in the interpreter, in f64.
    fn interpret(&self, op: Op, args: Vec<Tensor>) -> Vec<Tensor> {
        let attrs = Attrs::new()
            .int("parts", self.parts.len() as i64)
            .float("scale", self.scale())
            .flag("causal", self.causal)
            .flag("offset", self.start.is_some())
            .flag("segments", self.segments.is_some());
        let mut builder = Builder::new("f");
        let params: Vec<_> = args
            .iter()
            .map(|x| {
                let dims: Vec<Dim> = x.dims.iter().map(|d| Dim::fixed(*d as u64)).collect();
                builder.param("x", Type::new(x.dtype, dims))
            })
            .collect();
        let id = builder.op(op, &params, attrs).unwrap();
        let results = builder.func.op(id).results.clone();
        let mut module = Module::default();
        let func = module.add_func(builder.finish(results));
        Interp::new(&module, Precision::F64).run(func, args).unwrap()
    }

    fn expected(&self, data: &mut Data) -> Vec<(Buffer, Vec<f64>)> {
        let n = self.parts.len();
        let of = |data: &Data, b: Buffer| data.operands[&b].tensor();
        let mut args: Vec<Tensor> = (0..n).map(|j| of(data, Buffer::Q(j))).collect();
        args.extend((0..n).map(|j| of(data, Buffer::K(j))));
        args.push(of(data, Buffer::V));
        let masks: Vec<Tensor> = data
            .ids
            .iter()
            .map(|(buffer, ids)| {
                let dims = match buffer {
                    Buffer::Start => vec![self.b],
                    Buffer::QuerySegments => vec![self.b, self.s],
                    _ => vec![self.b, self.t],
                };
                Tensor::i32(&dims, ids.iter().map(|x| i64::from(*x)).collect())
            })
            .collect();
        let results = self.interpret(Op::Attention, args.iter().chain(&masks).cloned().collect());
        let (o, lse) = (results[0].numbers(), results[1].numbers());
        // The derivative starts from what a kernel has: o and lse in f32.
        let place = data.operands.get_mut(&Buffer::O).unwrap();
        for (at, x) in place.places().into_iter().zip(&o) {
            place.data[at] = *x as f32;
        }
        *place = place.clone().rounded(self.dtype);
        data.lse = lse.iter().map(|x| *x as f32).collect();
        args.push(of(data, Buffer::O));
        args.push(results[1].clone());
        args.push(of(data, Buffer::DO));
        args.extend(masks);
        let gradients = self.interpret(Op::AttentionGrad, args);
        let mut all = vec![(Buffer::O, o), (Buffer::Lse, lse)];
        let names = (0..n).map(Buffer::DQ).chain((0..n).map(Buffer::DK)).chain([Buffer::DV]);
        all.extend(names.zip(gradients.iter().map(Tensor::numbers)));
        all
    }

    /// Runs the launches, the grid cut at `cuts` percent.
    fn run(
        &self,
        variant: CpuVariant,
        planned: &Planned,
        dims: &[i64],
        data: &mut Data,
        cuts: &[i64],
    ) {
        let workspaces: Vec<i64> = planned.workspaces.iter().map(|w| w.eval(dims)).collect();
        let mut workspaces: Vec<Vec<f32>> =
            workspaces.iter().map(|bytes| vec![OUTSIDE; *bytes as usize / 4]).collect();
        let mut arrays: BTreeMap<Buffer, Vec<u8>> =
            data.operands.iter().map(|(b, x)| (*b, x.bytes(self.dtype))).collect();
        for launch in &planned.launches {
            let kernel = compiled(variant, &launch.kernel);
            let mut pointer = |buffer: &Buffer| -> *mut u8 {
                match buffer {
                    Buffer::Lse => data.lse.as_mut_ptr().cast(),
                    Buffer::Codes(_) | Buffer::Scales(_) => {
                        data.codes.get_mut(buffer).unwrap().as_mut_ptr()
                    }
                    Buffer::Workspace(i) => workspaces[*i].as_mut_ptr().cast(),
                    Buffer::Start | Buffer::QuerySegments | Buffer::KeySegments => {
                        data.ids.get_mut(buffer).unwrap().as_mut_ptr().cast()
                    }
                    _ => arrays.get_mut(buffer).unwrap().as_mut_ptr(),
                }
            };
            let buffers: Vec<*mut u8> = launch.buffers.iter().map(&mut pointer).collect();
            let scalar = |s: &Scalar| match s {
                Scalar::Dim(e) => e.eval(dims),
                Scalar::F32(bits) => i64::from(*bits),
                Scalar::LoopIndex(_) => 0,
            };
            let scalars: Vec<i64> = launch.scalars.iter().map(scalar).collect();
            let grid = launch.grid.eval(dims);
            // NaN wherever a kernel might read what it has not written.
            let mut scratch = vec![f32::NAN; launch.scratch_bytes as usize / 4 + 16];
            let aligned = scratch.as_mut_ptr().align_offset(64);
            let bounds = [&[0], cuts, &[100]].concat();
            for range in bounds.windows(2) {
                let (begin, end) = (grid * range[0] / 100, grid * range[1] / 100);
                // SAFETY: the kernel ABI, with buffers of the sizes the description states.
                unsafe {
                    let scratch = scratch.as_mut_ptr().add(aligned).cast();
                    kernel(buffers.as_ptr(), scalars.as_ptr(), begin, end, scratch);
                }
            }
        }
        for (buffer, bytes) in arrays {
            data.operands.get_mut(&buffer).unwrap().read(&bytes, self.dtype);
        }
    }

    /// Results of both passes; the backward one starts from the o and lse in `data`.
    fn results(&self, variant: CpuVariant, data: &Data, cuts: &[i64]) -> Vec<(Buffer, Vec<f32>)> {
        let (attention, gradients, decls, dims) = self.describe(data);
        let mut out = data.clone();
        out.lse.fill(OUTSIDE);
        let o = out.operands[&Buffer::O].dims;
        out.operands.insert(Buffer::O, Operand::new(o, self.layout));
        self.run(variant, &forward(&attention, &decls, "test"), &dims, &mut out, cuts);
        let lse = std::mem::replace(&mut out.lse, data.lse.clone());
        let o = out.operands.insert(Buffer::O, data.operands[&Buffer::O].clone()).unwrap();
        let planned = backward(&attention, &gradients, &decls, "test");
        self.run(variant, &planned, &dims, &mut out, cuts);
        out.operands.insert(Buffer::O, o);
        let mut results = vec![(Buffer::Lse, lse)];
        for (buffer, operand) in &out.operands {
            assert!(operand.outside_untouched(), "{variant:?} {self:?}: wrote outside {buffer:?}");
            let values = operand.places().iter().map(|at| operand.data[*at]).collect();
            results.push((*buffer, values));
        }
        results
    }

    /// Codes and scales of each row of `o`, as bytes, one element after the other.
    fn encoded(&self, o: &[f32]) -> BTreeMap<Buffer, Vec<u8>> {
        let mut all = BTreeMap::new();
        for (i, of) in self.codes.iter().enumerate() {
            let format = Format::of(of.code).unwrap();
            let (mut codes, mut scales) = (vec![], vec![]);
            for group in o.chunks(self.h * self.v.0).flat_map(|r| r.chunks(of.group as usize)) {
                let finite = group.iter().map(|x| x.abs()).filter(|x| x.is_finite());
                let top = finite.fold(of.floor as f32, f32::max);
                let ratio = top / format.decode(format.max);
                let ratio = if ratio == 0.0 { 1.0 } else { ratio };
                let scale = round(of.scale, ratio);
                match of.scale {
                    ir::DType::Ue8m0 => scales.push(encode_ue8m0(ratio)),
                    _ => scales.extend(scale.to_le_bytes()),
                }
                codes.extend(group.iter().map(|x| format.encode(x / scale)));
            }
            let bytes = match of.code {
                ir::DType::E5m6 => codes
                    .chunks(2)
                    .flat_map(|c| {
                        (u32::from(c[0]) | u32::from(c[1]) << 12).to_le_bytes()[..3].to_vec()
                    })
                    .collect(),
                _ => codes.iter().map(|c| *c as u8).collect(),
            };
            all.insert(Buffer::Codes(i), bytes);
            all.insert(Buffer::Scales(i), scales);
        }
        all
    }

    /// Codes made where rows are made are those of the rows that the kernel writes beside them, and
    /// those are the rows that it writes without.
    fn check_codes(&self) {
        for variant in variants() {
            let run = |codes: &[RowCodes], keeps_o: bool| {
                let case = Case { codes: codes.to_vec(), keeps_o, ..self.clone() };
                let mut data = case.data();
                let (attention, _, decls, dims) = case.describe(&data);
                assert!(codes.is_empty() || takes_codes(&attention, &decls), "{case:?}");
                let planned = forward(&attention, &decls, "test");
                assert_eq!(planned.launches[0].buffers.contains(&Buffer::O), keeps_o);
                case.run(variant, &planned, &dims, &mut data, &[13, 50, 77]);
                let o = &data.operands[&Buffer::O];
                (o.places().iter().map(|at| o.data[*at]).collect::<Vec<f32>>(), data.codes)
            };
            let (plain, _) = run(&[], true);
            let (o, codes) = run(&self.codes, true);
            assert_eq!(o, plain, "{variant:?} {self:?}: another o");
            assert_eq!(codes, self.encoded(&o), "{variant:?} {self:?}");
            assert_eq!(codes, run(&self.codes, false).1, "{variant:?} {self:?}: without o");
        }
    }

    fn check_on(&self, variant: CpuVariant) {
        let mut data = self.data();
        let expected = self.expected(&mut data);
        let results = self.results(variant, &data, &[]);
        for (buffer, expected) in expected {
            let (_, got) = results.iter().find(|(b, _)| *b == buffer).unwrap();
            let error = relative_error(got, &expected);
            // In bf16 two roundings by half of 2^-8: of weights or slopes, and of the result.
            let exact = self.dtype == DType::F32 || buffer == Buffer::Lse;
            let bound = if exact { 1e-5 } else { 1.0 / 256.0 };
            assert!(error <= bound, "{variant:?} {self:?}: {buffer:?} is off by {error:e}");
        }
        let again = self.results(variant, &data, &[13, 50, 51, 77]);
        let bits = |r: &[(Buffer, Vec<f32>)]| -> Vec<Vec<u32>> {
            r.iter().map(|(_, x)| x.iter().map(|x| x.to_bits()).collect()).collect()
        };
        assert_eq!(bits(&results), bits(&again), "{variant:?} {self:?}: depends on the cut");
    }

    /// In f32 and in bf16 on every variant.
    fn check_everywhere(&self) {
        for variant in variants() {
            self.check_on(variant);
            Case { dtype: DType::Bf16, ..self.clone() }.check_on(variant);
        }
    }

    /// In f32 on one variant and in bf16 on the next; which, the case decides. Variants differ in
    /// how long a vector is, cases in what is done with vectors.
    fn check(&self) {
        let mut digest = DefaultHasher::new();
        format!("{self:?}").hash(&mut digest);
        let (all, first) = (variants(), digest.finish() as usize);
        self.check_on(all[first % all.len()]);
        Case { dtype: DType::Bf16, ..self.clone() }.check_on(all[(first + 1) % all.len()]);
    }
}

/// The kernel's code, compiled once: equal names mean equal code.
fn compiled(variant: CpuVariant, source: &KernelSource) -> KernelFn {
    type Loaded = BTreeMap<(&'static str, String), KernelFn>;
    static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);
    let key = (variant.name(), source.name.clone());
    if let Some(kernel) = LOADED.lock().unwrap().get(&key) {
        return *kernel;
    }
    let object = compile(&target(variant), std::slice::from_ref(source)).unwrap();
    // It stays loaded as long as the tests run.
    let code = Box::leak(Box::new(Code::load("test", &object.bytes).unwrap()));
    let kernel = code.kernel(&source.name).unwrap();
    LOADED.lock().unwrap().insert(key, kernel);
    kernel
}

/// Those of this machine.
fn variants() -> Vec<CpuVariant> {
    let runs = |v: &CpuVariant| match v.missing_feature() {
        Some(feature) => {
            println!("{v:?} skipped: no {feature} here");
            false
        }
        None => true,
    };
    CpuVariant::ALL.into_iter().filter(runs).collect()
}

/// ‖got - expected‖ / ‖expected‖; infinities must agree.
fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let (mut off, mut size) = (0.0, 0.0);
    for (g, e) in got.iter().zip(expected) {
        if e.is_infinite() {
            assert_eq!(f64::from(*g), *e);
            continue;
        }
        off += (f64::from(*g) - e).powi(2);
        size += e.powi(2);
    }
    // All zero: the difference itself.
    if size == 0.0 { off.sqrt() } else { (off / size).sqrt() }
}

#[test]
fn sizes() {
    for (b, s, t) in [(2, 24, 24), (1, 1, 1), (3, 33, 33), (1, 16, 70), (2, 100, 100), (1, 5, 200)]
    {
        Case::new(b, s, t).check_everywhere();
        Case { causal: false, ..Case::new(b, s, t) }.check_everywhere();
    }
}

#[test]
fn nothing_to_do() {
    Case::new(0, 4, 4).check();
    Case::new(2, 0, 4).check();
    // No keys: o is 0, lse -infinity.
    Case { causal: false, ..Case::new(2, 3, 0) }.check();
}

#[test]
fn widths() {
    for (parts, v) in [
        (vec![(1, 2)], (1, 2)),
        (vec![(7, 2)], (5, 2)),
        (vec![(32, 2), (16, 1)], (32, 2)),
        (vec![(64, 2), (3, 2), (16, 1)], (17, 2)),
        (vec![(128, 2), (64, 1)], (128, 2)),
    ] {
        Case::new(1, 50, 50).heads(2, &parts, v).check();
    }
}

/// Queries of several heads in one tile.
#[test]
fn shared_heads() {
    for (h, parts, v) in [
        (4, vec![(16, 2)], (16, 2)),
        (6, vec![(16, 1)], (8, 1)),
        (8, vec![(64, 1), (16, 1)], (64, 1)),
        (6, vec![(8, 2), (4, 3)], (8, 6)),
        (12, vec![(8, 2), (4, 1)], (8, 4)),
    ] {
        for s in [1, 2, 19] {
            Case { start: Some(vec![3, 30]), ..Case::new(2, s, 40) }.heads(h, &parts, v).check();
        }
    }
}

/// One token at a time: small tiles.
#[test]
fn decode() {
    for (h, kv) in [(8, 1), (8, 2), (8, 8), (16, 1), (20, 1), (40, 1)] {
        let case = Case { s_max: 1, start: Some(vec![299, 0, 77]), ..Case::new(3, 1, 300) };
        case.heads(h, &[(64, kv), (16, kv)], (64, kv)).check();
    }
}

#[test]
fn masks() {
    let case = Case::new(2, 45, 45);
    for causal in [false, true] {
        for segments in [None, Some(1), Some(10), Some(100)] {
            for start in [None, Some(vec![0, 4]), Some(vec![-20, 60]), Some(vec![-100, -3])] {
                let t = if start.is_some() { 111 } else { 45 };
                Case { causal, segments, start, t, ..case.clone() }.check();
            }
        }
    }
}

#[test]
fn layouts() {
    for layout in [Layout::Sliced, Layout::Dynamic, Layout::HeadsFirst] {
        for (h, parts, v) in [(4, vec![(12, 4), (8, 1)], (12, 4)), (4, vec![(32, 2)], (16, 2))] {
            Case { layout, start: Some(vec![5, 0]), ..Case::new(2, 37, 60) }
                .heads(h, &parts, v)
                .check();
        }
    }
}

/// Scores of some hundreds: nothing overflows, and most weights are 0.
#[test]
fn sharp_scores() {
    Case { sharpness: 100.0, ..Case::new(1, 60, 60) }.heads(2, &[(16, 2)], (16, 2)).check();
}

/// A training step's shape.
#[test]
fn training() {
    Case::new(1, 256, 256).heads(2, &[(32, 2), (16, 1)], (32, 2)).check_everywhere();
}

/// One head holds a group, several do, all do and the last is not full; heads that share keys;
/// tiles that are not full; no rows that see anything.
#[test]
fn rows_that_end_as_codes() {
    let codes = |code, scale, group, floor| RowCodes { code, scale, group, floor };
    let e4m3 = codes(ir::DType::E4m3, ir::DType::F32, 128, 0.0);
    let saved = codes(ir::DType::E5m6, ir::DType::Ue8m0, 128, 0.0);
    let small = codes(ir::DType::E5m2, ir::DType::Ue8m0, 20, 1e-2);
    for (h, parts, v, codes) in [
        (2, vec![(16, 2), (8, 1)], (128, 2), vec![e4m3.clone(), saved.clone()]),
        (8, vec![(8, 8), (4, 1)], (32, 8), vec![e4m3.clone(), saved.clone()]),
        (5, vec![(8, 5)], (38, 5), vec![e4m3.clone(), saved.clone()]),
        (6, vec![(8, 2)], (40, 2), vec![saved, small.clone()]),
        (4, vec![(8, 4)], (10, 4), vec![small]),
        (40, vec![(4, 8)], (16, 8), vec![e4m3]),
    ] {
        let case = Case { dtype: DType::Bf16, codes, ..Case::new(2, 37, 37) };
        case.heads(h, &parts, v).check_codes();
    }
    // In f32, and small tiles.
    let case = Case { codes: vec![codes_of_nothing()], ..Case::new(1, 64, 20) };
    case.heads(8, &[(8, 8)], (32, 8)).check_codes();
    let case = Case { codes: vec![codes_of_nothing()], s_max: 1, ..Case::new(3, 1, 9) };
    case.heads(4, &[(8, 2)], (32, 2)).check_codes();
    // All that a row sees is elsewhere: zeros, whose scale is 1.
    let codes = vec![codes_of_nothing()];
    Case { codes, start: Some(vec![-40]), ..Case::new(1, 35, 35) }.check_codes();
}

fn codes_of_nothing() -> RowCodes {
    RowCodes { code: ir::DType::E4m3, scale: ir::DType::F32, group: 128, floor: 0.0 }
}

/// Queries of more heads than a block has rows cannot be a block's, nor can rows of odd length be
/// packed.
#[test]
fn codes_that_a_block_cannot_make() {
    let takes = |case: Case| {
        let (attention, _, decls, _) = case.describe(&case.data());
        takes_codes(&attention, &decls)
    };
    let e4m3 = codes_of_nothing();
    let case = |of: RowCodes| Case { codes: vec![of], ..Case::new(1, 40, 40) };
    assert!(takes(case(e4m3.clone()).heads(32, &[(4, 1)], (16, 1))));
    assert!(!takes(case(e4m3.clone()).heads(40, &[(4, 1)], (16, 1))));
    let packed = RowCodes { code: ir::DType::E5m6, ..e4m3.clone() };
    assert!(!takes(case(packed).heads(3, &[(4, 3)], (5, 3))));
    // 64 heads of 100: no fewer than all hold whole groups of 127.
    let odd = RowCodes { group: 127, ..e4m3 };
    assert!(!takes(case(odd).heads(64, &[(4, 64)], (100, 64))));
}

/// A query's bits are the same alone and among others, in a batch or not, and whatever keys lie
/// behind those it sees.
#[test]
fn a_row_does_not_depend_on_the_others() {
    for variant in variants() {
        let start = |s: i64, n: usize| Some(vec![s; n]);
        for dtype in [DType::F32, DType::Bf16] {
            let many = Case { dtype, start: start(50, 3), ..Case::new(3, 90, 200) };
            let data = many.data();
            let all = many.results(variant, &data, &[]);
            for row in [0usize, 17, 89] {
                for (t, s_max) in [(200, 1), (200, 4096), (51 + row, 64)] {
                    let one = Case {
                        dtype,
                        s_max,
                        start: start(50 + row as i64, 1),
                        ..Case::new(1, 1, t)
                    };
                    let mut alone = one.data();
                    for j in 0..2 {
                        take_row(&data, &mut alone, Buffer::Q(j), row);
                        take_row(&data, &mut alone, Buffer::K(j), 0);
                    }
                    take_row(&data, &mut alone, Buffer::V, 0);
                    let got = one.results(variant, &alone, &[]);
                    let o = |r: &[(Buffer, Vec<f32>)]| {
                        r.iter().find(|(b, _)| *b == Buffer::O).map(|(_, x)| x.clone()).unwrap()
                    };
                    let width = 4 * 12;
                    assert_eq!(
                        o(&got),
                        o(&all)[row * width..(row + 1) * width],
                        "{variant:?} {row}"
                    );
                }
            }
        }
    }
}

/// Copies rows of the first batch, from `row` on, as many as there is room for.
fn take_row(from: &Data, to: &mut Data, buffer: Buffer, row: usize) {
    let from = &from.operands[&buffer];
    let to = to.operands.get_mut(&buffer).unwrap();
    let first = row * from.strides[1];
    let len = to.dims[1] * to.strides[1];
    to.data[..len].copy_from_slice(&from.data[first..first + len]);
}
