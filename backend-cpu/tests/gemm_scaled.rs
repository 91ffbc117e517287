//! Products of codes with group scales against a slow reference, bit for bit, on every CPU variant
//! this machine runs: formats, groups (partial last ones too), both kinds of scales, both sums,
//! promotion, layouts, batches and segments.

use std::collections::BTreeMap;
use std::sync::Mutex;

use half::bf16;
use weft_backend_cpu::gemm::scaled::{Operand, ScaledGemm, Scales, Sum, plan};
use weft_backend_cpu::gemm::{Form, Matrix};
use weft_backend_cpu::target::target;
use weft_codegen::object::{KernelSource, compile};
use weft_graph::{CpuVariant, DType, DimExpr, Scalar};
use weft_ir::formats::{self, E4M3, E5M2};
use weft_runtime::elf::{Code, KernelFn};

/// One operand: its type, layout ('n' row by row, 't' column by column) and groups, if it has any.
#[derive(Clone, Copy, Debug)]
struct Side {
    dtype: DType,
    layout: char,
    group: Option<[i64; 2]>,
    scale: DType,
}

const fn side(dtype: DType, layout: char, group: [i64; 2]) -> Side {
    Side { dtype, layout, group: Some(group), scale: DType::F32 }
}

#[derive(Clone, Debug)]
enum Kind {
    Dense,
    Batch(i64),
    Rows(Vec<i32>),
    Inner(Vec<i32>),
}

#[derive(Clone, Debug)]
struct Case {
    m: i64,
    n: i64,
    k: i64,
    a: Side,
    b: Side,
    c: DType,
    kind: Kind,
    accumulate: bool,
    promote: Option<i64>,
    sum: Sum,
    /// Codes of all bits, NaN and infinities among them; else of the finite values near one.
    wild: bool,
}

/// A matrix, or a stack of them.
struct Data {
    values: Vec<f32>,
    bytes: Vec<u8>,
    strides: [i64; 2],
    group_stride: i64,
    scales: Vec<f32>,
    scale_bytes: Vec<u8>,
    /// Scales in a row, and in a matrix.
    scale_row: i64,
    scale_matrix: i64,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as u32
    }

    fn unit(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 31) as f32
    }
}

fn element(dtype: DType, random: &mut Random, wild: bool) -> (f32, Vec<u8>) {
    let x = (random.unit() - 0.5) * 16.0;
    let bits = random.next();
    let rare = bits.is_multiple_of(61);
    match dtype {
        DType::E4m3 | DType::E5m2 => {
            let format = if dtype == DType::E4m3 { E4M3 } else { E5M2 };
            let any = (bits >> 8) as u8;
            // Special codes would drown a sum that all have; a few are enough.
            let special = any & 0x7f > format.max as u8;
            let code = if wild && (!special || rare) { any } else { format.encode(x) as u8 };
            (format.decode(code.into()), vec![code])
        }
        DType::Bf16 => {
            let x = bf16::from_f32(x);
            (x.to_f32(), x.to_le_bytes().to_vec())
        }
        _ => (x, x.to_le_bytes().to_vec()),
    }
}

impl Case {
    fn new(m: i64, n: i64, k: i64) -> Case {
        Case {
            m,
            n,
            k,
            a: side(DType::E4m3, 'n', [1, 128]),
            b: side(DType::E4m3, 't', [128, 128]),
            c: DType::F32,
            kind: Kind::Dense,
            accumulate: false,
            promote: Some(128),
            sum: Sum::F32,
            wild: false,
        }
    }

    fn groups(&self) -> i64 {
        match &self.kind {
            Kind::Dense => 1,
            Kind::Batch(n) => *n,
            Kind::Rows(o) | Kind::Inner(o) => o.len() as i64 - 1,
        }
    }

    fn operand(&self, i: usize) -> Data {
        let (rows, cols) = [(self.m, self.k), (self.k, self.n), (self.m, self.n)][i];
        let plain = Side { dtype: self.c, layout: 'n', group: None, scale: DType::F32 };
        let side = [self.a, self.b, plain][i];
        let count = match (&self.kind, i) {
            (Kind::Batch(n), _) => *n,
            (Kind::Rows(_), 1) | (Kind::Inner(_), 2) => self.groups(),
            _ => 1,
        };
        let strides = if side.layout == 'n' { [cols + 3, 1] } else { [1, rows + 5] };
        let group_stride = (rows - 1).max(0) * strides[0] + (cols - 1).max(0) * strides[1] + 7;
        let mut random = Random(i as u64 + 1 + 10 * u64::from(self.wild));
        let (mut values, mut bytes) = (vec![], vec![]);
        for _ in 0..(group_stride * count).max(1) {
            let (value, code) = element(side.dtype, &mut random, self.wild);
            values.push(value);
            bytes.extend(code);
        }
        let [gr, gc] = side.group.unwrap_or([i64::MAX, i64::MAX]);
        let scale_row = (cols.max(1) - 1) / gc + 1;
        let scale_matrix = ((rows.max(1) - 1) / gr + 1) * scale_row;
        let (mut scales, mut scale_bytes) = (vec![], vec![]);
        for _ in 0..scale_matrix * count {
            let power = 2f32.powi(random.next() as i32 % 12 - 6);
            match side.scale {
                DType::Ue8m0 => {
                    let code = formats::encode_ue8m0(power);
                    scales.push(formats::decode_ue8m0(code));
                    scale_bytes.push(code);
                }
                _ => {
                    let scale = power * (0.5 + random.unit());
                    scales.push(scale);
                    scale_bytes.extend(scale.to_le_bytes());
                }
            }
        }
        Data { values, bytes, strides, group_stride, scales, scale_bytes, scale_row, scale_matrix }
    }

    fn gemm(&self, data: &[Data; 3]) -> ScaledGemm {
        let matrix = |i: usize, dtype: DType| Matrix {
            dtype,
            row_stride: data[i].strides[0].into(),
            col_stride: data[i].strides[1].into(),
            group_stride: data[i].group_stride.into(),
            aligned: true,
        };
        let operand = |i: usize, side: Side| Operand {
            codes: matrix(i, side.dtype),
            scales: side.group.map(|group| Scales {
                dtype: side.scale,
                group,
                row_stride: data[i].scale_row.into(),
                col_stride: 1.into(),
                group_stride: data[i].scale_matrix.into(),
            }),
        };
        let groups: DimExpr = self.groups().into();
        ScaledGemm {
            m: self.m.into(),
            n: self.n.into(),
            k: self.k.into(),
            a: operand(0, self.a),
            b: operand(1, self.b),
            c: matrix(2, self.c),
            form: match &self.kind {
                Kind::Dense => Form::Dense,
                Kind::Batch(_) => Form::Batch { count: groups },
                Kind::Rows(_) => Form::Rows { groups },
                Kind::Inner(_) => Form::Inner { groups },
            },
            accumulate: self.accumulate,
            promote: self.promote,
            sum: self.sum,
        }
    }

    /// Terms of k between two places where a sum may be cut.
    fn unit(&self) -> i64 {
        let groups = [self.a.group.map(|g| g[1]), self.b.group.map(|g| g[0])];
        groups.into_iter().flatten().chain(self.promote).min().unwrap_or(i64::MAX)
    }

    /// One element of C, in the order that the module states.
    fn reference(&self, data: &[Data; 3], variant: CpuVariant, at: [i64; 3]) -> f32 {
        let [g, row, col] = at;
        let of = match &self.kind {
            Kind::Rows(_) => [0, g],
            Kind::Inner(_) => [0, 0],
            _ => [g, g],
        };
        let value = |i: usize, r: i64, c: i64| {
            let d = &data[i];
            d.values[(of[i] * d.group_stride + r * d.strides[0] + c * d.strides[1]) as usize]
        };
        let scale = |i: usize, side: Side, r: i64, c: i64| {
            let Some([gr, gc]) = side.group else { return 1.0 };
            let d = &data[i];
            d.scales[(of[i] * d.scale_matrix + r / gr * d.scale_row + c / gc) as usize]
        };
        let scales = |k: i64| scale(0, self.a, row, k) * scale(1, self.b, k, col);
        let (start, end) = match &self.kind {
            Kind::Inner(o) => (i64::from(o[g as usize]), i64::from(o[g as usize + 1])),
            _ => (0, self.k),
        };
        let unit = self.unit();
        let narrow = self.a.dtype != DType::F32 && self.b.dtype != DType::F32;
        let pairs = variant == CpuVariant::Avx512Bf16 && narrow;
        let scaled_products = self.sum == Sum::Hopper14 && self.promote.is_none();
        let (mut sum, mut acc) = (0.0f32, 0.0f32);
        let mut k = start;
        while k < end {
            let stop = end.min((k / unit + 1).saturating_mul(unit));
            let terms: Vec<(f32, f32)> =
                (k..stop).map(|k| (value(0, row, k), value(1, k, col))).collect();
            match self.sum {
                Sum::F32 if pairs => {
                    for pair in terms.chunks(2) {
                        if let [_, (a, b)] = pair {
                            acc = a.mul_add(*b, acc);
                        }
                        acc = pair[0].0.mul_add(pair[0].1, acc);
                    }
                }
                Sum::F32 => acc = terms.iter().fold(acc, |acc, (a, b)| a.mul_add(*b, acc)),
                Sum::Hopper14 => {
                    let by = if scaled_products { scales(k) } else { 1.0 };
                    let products: Vec<f32> = terms.iter().map(|(a, b)| a * b * by).collect();
                    acc = products.chunks(32).fold(acc, hopper_step);
                }
            }
            if !scaled_products && self.promote.is_some() || self.has_scales() && !scaled_products {
                sum = acc.mul_add(scales(k), sum);
                acc = 0.0;
            }
            k = stop;
        }
        sum + acc
    }

    fn has_scales(&self) -> bool {
        self.a.group.is_some() || self.b.group.is_some()
    }

    /// Runs the kernel, the grid cut at `cuts`, and gives the bytes of C.
    fn run(&self, data: &[Data; 3], variant: CpuVariant, cuts: &[i64]) -> Vec<u8> {
        let planned = plan(&self.gemm(data), &[], "test").unwrap();
        let kernel = kernel(variant, &planned.kernel);
        let mut c = data[2].bytes.clone();
        let mut buffers = vec![data[0].bytes.as_ptr(), data[1].bytes.as_ptr(), c.as_mut_ptr()];
        for (data, side) in data.iter().zip([self.a, self.b]) {
            if side.group.is_some() {
                buffers.push(data.scale_bytes.as_ptr());
            }
        }
        if let Kind::Rows(offsets) | Kind::Inner(offsets) = &self.kind {
            buffers.push(offsets.as_ptr().cast());
        }
        let buffers: Vec<*mut u8> = buffers.into_iter().map(<*const u8>::cast_mut).collect();
        let scalar = |s: &Scalar| match s {
            Scalar::Dim(e) => e.eval(&[]),
            Scalar::F32(bits) => i64::from(*bits),
            Scalar::LoopIndex(_) => 0,
        };
        let scalars: Vec<i64> = planned.scalars.iter().map(scalar).collect();
        let grid = planned.grid.eval(&[]);
        let mut scratch = vec![f32::NAN; planned.scratch_bytes as usize / 4 + 16];
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
        c
    }

    fn check_on(&self, variant: CpuVariant) {
        let data = [self.operand(0), self.operand(1), self.operand(2)];
        let out = self.run(&data, variant, &[]);
        let c = &data[2];
        for g in 0..self.groups() {
            let rows = match &self.kind {
                Kind::Rows(o) => o[g as usize] as i64..o[g as usize + 1] as i64,
                _ => 0..self.m,
            };
            for (row, col) in rows.flat_map(|r| (0..self.n).map(move |c| (r, c))) {
                let group = if matches!(self.kind, Kind::Rows(_)) { 0 } else { g };
                let at =
                    (group * c.group_stride + row * c.strides[0] + col * c.strides[1]) as usize;
                let mut want = self.reference(&data, variant, [g, row, col]);
                if self.accumulate {
                    want += c.values[at];
                }
                let got = if self.c == DType::Bf16 {
                    want = bf16::from_f32(want).to_f32();
                    bf16::from_le_bytes([out[2 * at], out[2 * at + 1]]).to_f32()
                } else {
                    f32::from_le_bytes(out[4 * at..4 * at + 4].try_into().unwrap())
                };
                let same = got == want || got.is_nan() && want.is_nan();
                assert!(same, "{variant:?} {self:?}: C[{g}, {row}, {col}] = {got:e}, not {want:e}");
            }
        }
        let again = self.run(&data, variant, &[13, 50, 51, 77]);
        assert_eq!(out, again, "{variant:?} {self:?}: depends on the cut");
    }

    fn check(self) {
        for variant in CpuVariant::ALL {
            match variant.missing_feature() {
                Some(feature) => println!("{variant:?} skipped: no {feature} here"),
                None => self.check_on(variant),
            }
        }
    }
}

/// A tensor core's step in integers: multiples of the unit, cut off toward zero.
fn hopper_step(acc: f32, products: &[f32]) -> f32 {
    let all: Vec<f64> = products.iter().chain([&acc]).map(|x| f64::from(*x)).collect();
    if all.iter().any(|x| !x.is_finite()) {
        return all.iter().sum::<f64>() as f32;
    }
    let exponent = |x: &f64| if *x == 0.0 { -100 } else { x.abs().log2().floor() as i32 };
    let largest = all.iter().map(exponent).max().unwrap_or(-100).max(-100);
    let unit = 2f64.powi(largest - 13);
    let total: i64 = all.iter().map(|x| (x / unit).trunc() as i64).sum();
    (total as f64 * unit) as f32
}

fn kernel(variant: CpuVariant, source: &KernelSource) -> KernelFn {
    static CODE: Mutex<BTreeMap<(CpuVariant, String), Code>> = Mutex::new(BTreeMap::new());
    let key = (variant, source.name.clone());
    if let Some(code) = CODE.lock().unwrap().get(&key) {
        return code.kernel(&source.name).unwrap();
    }
    let object = compile(&target(variant), std::slice::from_ref(source)).unwrap();
    let code = Code::load(&source.name, &object.bytes).unwrap();
    // The code stays where it is until the process ends, also if two threads compiled it.
    let mut all = CODE.lock().unwrap();
    all.entry(key).or_insert(code).kernel(&source.name).unwrap()
}

#[test]
fn odd_sizes() {
    for (m, n, k) in [
        (1, 1, 1),
        (13, 33, 127),
        (5, 7, 129),
        (64, 300, 384),
        (200, 40, 300),
        (97, 65, 1100),
        (7, 5, 0),
    ] {
        Case::new(m, n, k).check();
    }
}

/// Few rows, with and without words and vectors that are not full; one kernel has them all in it.
#[test]
fn few_rows() {
    for (m, n, k) in [(1, 80, 256), (2, 33, 300), (3, 5, 129), (4, 40, 1000), (1, 1, 1)] {
        let case = Case::new(m, n, k);
        let data = [case.operand(0), case.operand(1), case.operand(2)];
        let planned = plan(&case.gemm(&data), &[], "test").unwrap();
        assert!(planned.kernel.name.contains("gemv"), "{}", planned.kernel.name);
        case.clone().check();
        Case { wild: true, c: DType::Bf16, ..case }.check();
    }
    let mut mixed = Case { accumulate: true, ..Case::new(2, 50, 200) };
    (mixed.a.dtype, mixed.a.scale, mixed.b.scale) = (DType::E5m2, DType::Ue8m0, DType::Ue8m0);
    mixed.check();
    Case { kind: Kind::Batch(3), ..Case::new(1, 40, 200) }.check();
    let kind = Kind::Rows(vec![0, 0, 3, 4, 4, 12]);
    let mut rows = Case { kind, ..Case::new(12, 40, 200) };
    rows.clone().check();
    rows.b.group = Some([128, 16]);
    rows.check();
    // Sums of other kinds go through the kernel for many rows.
    for promote in [Some(32), None] {
        let mut other = Case { promote, ..Case::new(1, 40, 200) };
        other.a.group = Some([1, 32]);
        other.check();
    }
}

#[test]
fn layouts() {
    for (a, b) in [('n', 'n'), ('t', 'n'), ('n', 't'), ('t', 't')] {
        let mut case = Case::new(29, 45, 200);
        (case.a.layout, case.b.layout) = (a, b);
        case.check();
    }
}

/// The three products of a linear layer's training step, in e4m3.
#[test]
fn roles() {
    let forward = Case::new(40, 150, 256);
    let input = Case { b: side(DType::E4m3, 'n', [128, 128]), ..forward.clone() };
    let weight = Case {
        a: side(DType::E4m3, 't', [1, 128]),
        b: side(DType::E4m3, 'n', [128, 1]),
        ..Case::new(70, 90, 333)
    };
    for case in [forward, input, weight] {
        Case { c: DType::Bf16, ..case.clone() }.check();
        Case { accumulate: true, ..case.clone() }.check();
        Case { wild: true, ..case }.check();
    }
}

#[test]
fn scales_of_powers_of_two() {
    for (a, b) in [(DType::Ue8m0, DType::F32), (DType::Ue8m0, DType::Ue8m0)] {
        let mut case = Case::new(40, 50, 260);
        (case.a.scale, case.b.scale) = (a, b);
        case.check();
    }
}

#[test]
fn formats_mix() {
    use DType::{Bf16, E4m3, E5m2, F32};
    for (a, b) in [(E5m2, E4m3), (E5m2, E5m2), (Bf16, E4m3), (F32, E4m3), (E4m3, F32)] {
        let mut case = Case::new(30, 40, 260);
        (case.a.dtype, case.b.dtype) = (a, b);
        case.wild = true;
        case.check();
    }
    let mut case = Case::new(30, 40, 260);
    case.b = Side { dtype: Bf16, layout: 't', group: None, scale: F32 };
    case.check();
}

#[test]
fn groups_and_intervals() {
    for (a, b, promote) in [
        ([1, 32], [32, 1], Some(128)),
        ([1, 64], [128, 128], Some(128)),
        ([1, 128], [128, 128], None),
        ([128, 128], [128, 128], Some(128)),
        ([1, 128], [128, 128], Some(32)),
        ([1, 256], [512, 4], Some(1024)),
        ([1, 600], [600, 1], Some(600)),
        ([1, 1200], [1200, 1], None),
        ([3, 24], [48, 5], Some(48)),
    ] {
        let mut case = Case { promote, ..Case::new(30, 40, 1300) };
        (case.a.group, case.b.group) = (Some(a), Some(b));
        case.check();
    }
}

#[test]
fn batches_and_segments() {
    Case { kind: Kind::Batch(3), ..Case::new(20, 40, 200) }.check();
    let offsets = vec![0, 0, 13, 40, 40, 90];
    Case { kind: Kind::Rows(offsets.clone()), ..Case::new(90, 40, 200) }.check();
    let mut rows = Case { kind: Kind::Rows(offsets), ..Case::new(90, 40, 200) };
    rows.a.group = Some([128, 128]);
    rows.check();
    // Groups of 128 terms that segments cut.
    let case = Case {
        a: side(DType::E4m3, 't', [1, 128]),
        b: side(DType::E4m3, 'n', [128, 1]),
        kind: Kind::Inner(vec![0, 77, 77, 130, 400, 401]),
        ..Case::new(25, 70, 401)
    };
    Case { accumulate: true, ..case.clone() }.check();
    case.check();
}

#[test]
fn hopper_keeps_14_bits() {
    let case = Case { sum: Sum::Hopper14, ..Case::new(20, 40, 300) };
    for promote in [Some(128), Some(64), Some(256), None] {
        let mut case = Case { promote, ..case.clone() };
        if promote == Some(256) {
            (case.a.group, case.b.group) = (Some([1, 512]), Some([512, 1]));
        }
        case.clone().check();
        Case { wild: true, ..case }.check();
    }
    // A sum without scales, over more than one packed chunk.
    let plain = |layout| Side { dtype: DType::E4m3, layout, group: None, scale: DType::F32 };
    Case { a: plain('n'), b: plain('n'), promote: None, ..Case { k: 1000, ..case.clone() } }
        .check();
    let inner = Case {
        a: side(DType::E4m3, 't', [1, 128]),
        b: side(DType::E4m3, 'n', [128, 1]),
        kind: Kind::Inner(vec![0, 77, 77, 130, 300]),
        ..case
    };
    inner.check();
}

#[test]
fn what_does_not_fit_is_refused() {
    let message = |case: &Case| {
        let data = [case.operand(0), case.operand(1), case.operand(2)];
        plan(&case.gemm(&data), &[], "test").err().unwrap_or_default()
    };
    let mut case = Case::new(4, 4, 300);
    case.a.group = Some([1, 96]);
    assert_eq!(message(&case), "sums of 96 terms do not fit groups or intervals of 128 terms");
    let mut case = Case::new(4, 4, 300);
    case.promote = Some(0);
    assert_eq!(message(&case), "groups and `promote` are positive, found 0");
}
