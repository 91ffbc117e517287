//! Products against sums in f64, on every CPU variant this machine runs: odd sizes, all layouts,
//! batches, groups with empty ones, bf16, accumulation, epilogues; the same bits however blocks are
//! dealt out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use half::bf16;
use weft_backend_cpu::gemm::{Epilogue, Form, Gemm, Matrix, Position, plan};
use weft_backend_cpu::target::target;
use weft_codegen::emit::{Cg, Elem, Val};
use weft_codegen::object::{KernelSource, compile};
use weft_graph::{CpuVariant, DType, DimExpr, Scalar};
use weft_runtime::elf::{Code, KernelFn};

/// A case in plain numbers. Strides follow from `a`, `b`, `c`: 'n' row by row, 't' column by
/// column, 's' with two elements between neighbours.
#[derive(Clone)]
struct Case {
    variant: CpuVariant,
    m: i64,
    n: i64,
    k: i64,
    dtypes: [DType; 3],
    layouts: [char; 3],
    kind: Kind,
    accumulate: bool,
    epilogue: Option<Arc<dyn Epilogue>>,
}

#[derive(Clone)]
enum Kind {
    Dense,
    Batch(i64),
    Rows(Vec<i32>),
    Inner(Vec<i32>),
}

struct Data {
    values: Vec<f64>,
    bytes: Vec<u8>,
    strides: [i64; 2],
    group_stride: i64,
}

impl Case {
    fn new(m: i64, n: i64, k: i64) -> Case {
        Case {
            variant: CpuVariant::Avx2,
            m,
            n,
            k,
            dtypes: [DType::F32; 3],
            layouts: ['n', 'n', 'n'],
            kind: Kind::Dense,
            accumulate: false,
            epilogue: None,
        }
    }

    fn groups(&self) -> i64 {
        match &self.kind {
            Kind::Dense => 1,
            Kind::Batch(n) => *n,
            Kind::Rows(offsets) | Kind::Inner(offsets) => offsets.len() as i64 - 1,
        }
    }

    fn offsets(&self) -> Option<&[i32]> {
        match &self.kind {
            Kind::Rows(offsets) | Kind::Inner(offsets) => Some(offsets),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        let form = match &self.kind {
            Kind::Dense => "dense".into(),
            Kind::Batch(n) => format!("batch {n}"),
            Kind::Rows(o) => format!("rows {o:?}"),
            Kind::Inner(o) => format!("inner {o:?}"),
        };
        let layouts: String = self.layouts.iter().collect();
        format!(
            "{:?} {}x{}x{} {layouts} {:?} {form} accumulate {}",
            self.variant, self.m, self.n, self.k, self.dtypes, self.accumulate
        )
    }

    fn gemm(&self, data: &[Data; 3]) -> Gemm {
        let matrix = |i: usize| Matrix {
            dtype: self.dtypes[i],
            row_stride: data[i].strides[0].into(),
            col_stride: data[i].strides[1].into(),
            group_stride: data[i].group_stride.into(),
            aligned: true,
        };
        let groups: DimExpr = self.groups().into();
        Gemm {
            m: self.m.into(),
            n: self.n.into(),
            k: self.k.into(),
            a: matrix(0),
            b: matrix(1),
            c: matrix(2),
            form: match &self.kind {
                Kind::Dense => Form::Dense,
                Kind::Batch(_) => Form::Batch { count: groups },
                Kind::Rows(_) => Form::Rows { groups },
                Kind::Inner(_) => Form::Inner { groups },
            },
            accumulate: self.accumulate,
            epilogue: self.epilogue.clone(),
        }
    }

    /// Operands with values of a fixed sequence; C too, as what is accumulated onto.
    fn data(&self) -> [Data; 3] {
        let per_group = |i: usize| match (&self.kind, i) {
            (Kind::Batch(n), _) => *n,
            (Kind::Rows(_), 1) | (Kind::Inner(_), 2) => self.groups(),
            _ => 1,
        };
        let sizes = [(self.m, self.k), (self.k, self.n), (self.m, self.n)];
        let operand = |i: usize| {
            let (rows, cols) = sizes[i];
            let strides = match self.layouts[i] {
                'n' => [cols + 3, 1],
                't' => [1, rows + 5],
                _ => [2 * cols * 2 + 1, 2],
            };
            let group_stride = (rows - 1).max(0) * strides[0] + (cols - 1).max(0) * strides[1] + 7;
            let n = (group_stride * per_group(i)).max(1) as usize;
            fill(self.dtypes[i], n, i as u32, strides, group_stride)
        };
        [operand(0), operand(1), operand(2)]
    }

    /// `C[group, row, col]` in f64, and the sum of magnitudes that bounds the rounding.
    fn exact(&self, data: &[Data; 3], g: i64, row: i64, col: i64) -> (f64, f64) {
        let at = |i: usize, g: i64, r: i64, c: i64| {
            let d = &data[i];
            d.values[(g * d.group_stride + r * d.strides[0] + c * d.strides[1]) as usize]
        };
        let (k, group_of) = match &self.kind {
            Kind::Inner(o) => (o[g as usize] as i64..o[g as usize + 1] as i64, [0, 0, g]),
            Kind::Rows(_) => (0..self.k, [0, g, 0]),
            _ => (0..self.k, [g, g, g]),
        };
        let old = if self.accumulate { at(2, group_of[2], row, col) } else { 0.0 };
        k.fold((old, old.abs()), |(sum, size), k| {
            let product = at(0, group_of[0], row, k) * at(1, group_of[1], k, col);
            (sum + product, size + product.abs())
        })
    }

    /// Runs the kernel, the grid cut at `cuts`, and gives the bytes of C.
    fn run(&self, data: &[Data; 3], extra: &mut [Vec<f32>], cuts: &[i64]) -> Vec<u8> {
        let planned = plan(&self.gemm(data), &[], "test");
        let kernel = kernel(self.variant, &planned.kernel);
        let mut c = data[2].bytes.clone();
        let offsets = self.offsets().map(<[i32]>::to_vec);
        let mut buffers = vec![data[0].bytes.as_ptr(), data[1].bytes.as_ptr(), c.as_mut_ptr()];
        buffers.extend(offsets.iter().map(|o| o.as_ptr().cast()));
        buffers.extend(extra.iter().map(|e| e.as_ptr().cast()));
        let buffers: Vec<*mut u8> = buffers.into_iter().map(<*const u8>::cast_mut).collect();
        let scalars: Vec<i64> = planned.scalars.iter().map(scalar).collect();
        let grid = planned.grid.eval(&[]);
        let mut scratch = vec![0f32; planned.scratch_bytes as usize / 4 + 16];
        let aligned = scratch.as_mut_ptr().align_offset(64);
        let mut bounds: Vec<i64> = cuts.iter().map(|c| grid * c / 100).collect();
        bounds.insert(0, 0);
        bounds.push(grid);
        for range in bounds.windows(2) {
            // SAFETY: the kernel ABI, with buffers of the sizes the description states.
            unsafe {
                let scratch = scratch.as_mut_ptr().add(aligned).cast();
                kernel(buffers.as_ptr(), scalars.as_ptr(), range[0], range[1], scratch);
            }
        }
        c
    }

    fn check_here(&self) {
        let data = self.data();
        let out = self.run(&data, &mut [], &[]);
        let (dtype, c) = (self.dtypes[2], &data[2]);
        let mut untouched = vec![true; c.values.len()];
        for g in 0..self.groups() {
            let rows = match &self.kind {
                Kind::Rows(o) => o[g as usize] as i64..o[g as usize + 1] as i64,
                _ => 0..self.m,
            };
            for (row, col) in rows.flat_map(|r| (0..self.n).map(move |c| (r, c))) {
                let group = if matches!(self.kind, Kind::Rows(_)) { 0 } else { g };
                let at =
                    (group * c.group_stride + row * c.strides[0] + col * c.strides[1]) as usize;
                untouched[at] = false;
                let (exact, size) = self.exact(&data, g, row, col);
                let got = read(dtype, &out, at);
                // A chain of k roundings of f32, then one to C's own precision.
                let own = if dtype == DType::Bf16 { 4e-3 * exact.abs() } else { 0.0 };
                let bound = 2e-7 * (4.0 + (self.k as f64).sqrt()) * size + own + 1e-30;
                let off = (got - exact).abs();
                assert!(
                    off <= bound,
                    "{}: C[{g}, {row}, {col}] = {got}, not {exact}",
                    self.describe()
                );
            }
        }
        for (at, _) in untouched.iter().enumerate().filter(|(_, u)| **u) {
            let size = size_of(dtype);
            let bytes = at * size..(at + 1) * size;
            assert_eq!(out[bytes.clone()], c.bytes[bytes], "{}: wrote {at}", self.describe());
        }
        assert_eq!(out, self.run(&data, &mut [], &[13, 50, 51, 77]), "{}", self.describe());
    }

    /// On every variant that runs here.
    fn check(mut self) {
        for variant in CpuVariant::ALL {
            match variant.missing_feature() {
                Some(feature) => println!("{variant:?} skipped: no {feature} here"),
                None => {
                    self.variant = variant;
                    self.check_here();
                }
            }
        }
    }
}

/// The kernel compiled; once for each name, which promises equal code.
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

fn scalar(s: &Scalar) -> i64 {
    match s {
        Scalar::Dim(e) => e.eval(&[]),
        Scalar::F32(bits) => i64::from(*bits),
        Scalar::LoopIndex(_) => 0,
    }
}

fn size_of(dtype: DType) -> usize {
    if dtype == DType::Bf16 { 2 } else { 4 }
}

fn read(dtype: DType, bytes: &[u8], at: usize) -> f64 {
    match dtype {
        DType::Bf16 => bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f64(),
        _ => f32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap()).into(),
    }
}

fn fill(dtype: DType, n: usize, seed: u32, strides: [i64; 2], group_stride: i64) -> Data {
    let mut state = 0x9e37_79b9u32 ^ seed.wrapping_mul(0x85eb_ca6b);
    let mut bytes = Vec::new();
    for _ in 0..n {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        match dtype {
            DType::Bf16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
            _ => bytes.extend(x.to_le_bytes()),
        }
    }
    let values = (0..n).map(|i| read(dtype, &bytes, i)).collect();
    Data { values, bytes, strides, group_stride }
}

const BF16: [DType; 3] = [DType::Bf16; 3];

#[test]
fn odd_sizes() {
    for (m, n, k) in [
        (1, 1, 1),
        (5, 7, 3),
        (12, 32, 16),
        (13, 33, 17),
        (64, 16, 300),
        (129, 65, 257),
        (31, 300, 64),
        (200, 40, 513),
        (97, 8, 64),
        (7, 5, 0),
    ] {
        Case::new(m, n, k).check();
    }
}

#[test]
fn layouts() {
    for a in ['n', 't', 's'] {
        for b in ['n', 't', 's'] {
            for c in ['n', 't'] {
                Case { layouts: [a, b, c], ..Case::new(37, 45, 71) }.check();
                Case { layouts: [a, b, c], dtypes: BF16, ..Case::new(37, 45, 71) }.check();
            }
        }
    }
    Case { layouts: ['n', 'n', 's'], accumulate: true, ..Case::new(37, 45, 71) }.check();
}

#[test]
fn bf16_operands() {
    let mixed = [DType::F32, DType::Bf16, DType::F32];
    for dtypes in [BF16, [DType::Bf16, DType::Bf16, DType::F32], mixed] {
        for (m, n, k) in [(13, 33, 17), (100, 64, 1025), (24, 300, 512), (7, 5, 0), (9, 9, 1)] {
            for b in ['n', 't'] {
                let layouts = ['n', b, 'n'];
                Case { dtypes, layouts, ..Case::new(m, n, k) }.check();
                let layouts = ['t', b, 'n'];
                Case { dtypes, layouts, accumulate: true, ..Case::new(m, n, k) }.check();
            }
        }
    }
}

#[test]
fn batches() {
    for dtypes in [[DType::F32; 3], BF16] {
        for layouts in [['n', 't', 'n'], ['t', 'n', 'n']] {
            let case = Case { dtypes, layouts, ..Case::new(33, 50, 40) };
            Case { kind: Kind::Batch(5), ..case.clone() }.check();
            Case { kind: Kind::Batch(3), m: 2, ..case.clone() }.check();
            Case { kind: Kind::Batch(0), ..case }.check();
        }
    }
}

#[test]
fn groups_of_rows() {
    for offsets in [vec![0, 0, 50, 51, 51, 300, 300], vec![0, 3, 3, 7], vec![0, 0, 0]] {
        for dtypes in [[DType::F32; 3], BF16] {
            for b in ['n', 't'] {
                let m = i64::from(*offsets.last().unwrap());
                let kind = Kind::Rows(offsets.clone());
                let case = Case { dtypes, layouts: ['n', b, 'n'], kind, ..Case::new(m, 70, 90) };
                case.clone().check();
                Case { accumulate: true, ..case }.check();
            }
        }
    }
}

#[test]
fn groups_of_the_sum() {
    for offsets in [vec![0, 0, 51, 52, 52, 600, 601], vec![0, 3, 3, 7], vec![0, 0, 0]] {
        for dtypes in [[DType::F32; 3], BF16, [DType::Bf16, DType::Bf16, DType::F32]] {
            let k = i64::from(*offsets.last().unwrap());
            let kind = Kind::Inner(offsets.clone());
            let case = Case { dtypes, layouts: ['t', 'n', 'n'], kind, ..Case::new(40, 70, k) };
            case.clone().check();
            Case { accumulate: true, ..case }.check();
        }
    }
}

#[test]
fn a_few_rows() {
    for m in 1..=4 {
        for dtypes in [[DType::F32; 3], BF16] {
            for layouts in [['n', 'n', 'n'], ['n', 't', 'n'], ['n', 's', 'n'], ['t', 't', 's']] {
                for (n, k) in [(1, 1), (37, 70), (100, 64), (64, 129)] {
                    Case { dtypes, layouts, ..Case::new(m, n, k) }.check();
                }
                Case { dtypes, layouts, accumulate: true, ..Case::new(m, 45, 99) }.check();
            }
        }
    }
}

/// A row's bits are the same whether it comes alone or with others.
#[test]
fn a_row_does_not_depend_on_the_others() {
    for variant in CpuVariant::ALL.into_iter().filter(|v| v.missing_feature().is_none()) {
        for (few, many, dtypes) in
            [(1, 4, [DType::F32; 3]), (5, 230, BF16), (8, 300, [DType::F32; 3])]
        {
            let case =
                |m| Case { variant, dtypes, layouts: ['n', 't', 'n'], ..Case::new(m, 90, 700) };
            let data = case(many).data();
            let all = case(many).run(&data, &mut [], &[]);
            let some = case(few).run(&data, &mut [], &[]);
            for row in 0..few {
                let size = size_of(dtypes[2]) as i64;
                let start = row * data[2].strides[0] * size;
                let bytes = start as usize..(start + 90 * size) as usize;
                assert_eq!(all[bytes.clone()], some[bytes], "{variant:?} row {row}");
            }
        }
    }
}

/// `max(acc + bias[col], 0) * row`.
struct BiasRelu;

impl Epilogue for BiasRelu {
    fn name(&self) -> String {
        "bias_relu".into()
    }

    fn n_buffers(&self) -> usize {
        1
    }

    fn n_scalars(&self) -> usize {
        0
    }

    fn apply<'c>(&self, cg: &Cg<'c>, at: &Position<'c>, acc: Val<'c>) -> Val<'c> {
        let bias = cg.at(at.buffers[0], Elem::F32, at.col);
        let sum = cg.add(acc, cg.load_tail(acc.ty, bias, at.mask));
        let row = cg.splat(cg.cast(at.row, Elem::F32), acc.ty.lanes);
        cg.mul(cg.max(sum, 0.0f32), row)
    }
}

#[test]
fn an_epilogue_sees_its_place() {
    for variant in CpuVariant::ALL.into_iter().filter(|v| v.missing_feature().is_none()) {
        for (m, kind) in [(50, Kind::Dense), (3, Kind::Dense), (40, Kind::Rows(vec![0, 9, 40]))] {
            let epilogue: Option<Arc<dyn Epilogue>> = Some(Arc::new(BiasRelu));
            let case = Case { variant, epilogue, kind, ..Case::new(m, 77, 30) };
            let data = case.data();
            let bias: Vec<f32> = (0..77).map(|i| i as f32 / 77.0 - 0.5).collect();
            let out = case.run(&data, &mut [bias.clone()], &[]);
            for row in 0..m {
                let g = match &case.kind {
                    Kind::Rows(o) => {
                        o[1..].iter().position(|&end| row < end.into()).unwrap() as i64
                    }
                    _ => 0,
                };
                for col in 0..77 {
                    let sum = case.exact(&data, g, row, col).0 + f64::from(bias[col as usize]);
                    let expected = sum.max(0.0) * row as f64;
                    let got = read(DType::F32, &out, (row * data[2].strides[0] + col) as usize);
                    assert!(
                        (got - expected).abs() < 1e-4,
                        "{}: {got}, not {expected}",
                        case.describe()
                    );
                }
            }
        }
    }
}
