//! A product with its operands: launched on the interpreter, compared with the reference.

use half::bf16;
use ptx_sim::{
    Accumulate, Arg, Completion, Device, Element, Error, Launch, Module, Stats, Swizzle, TensorMap,
};
use weft_backend_cuda::gemm::{
    Argument, Gemm, Grouping, Kind, MapElement, MapSpec, Output, ScaleType, Scales, Store,
};
use weft_backend_cuda::target::hopper;
use weft_backend_cuda::tiles::shared::Major;
use weft_codegen::object::compile;

use crate::reference;

/// bf16 along k, f32 out.
pub fn bf16(tile_cols: u32) -> Gemm {
    Gemm {
        kind: Kind::Bf16,
        a_major: Major::K,
        b_major: Major::K,
        scales: None,
        hopper14: None,
        output: Output::F32,
        grouping: Grouping::Batch,
        accumulate: false,
        tile_cols,
        store: Store::Paired,
        epilogue: None,
        shares: None,
    }
}

/// Codes with scales of f32, those of B for `rows` columns each.
pub fn e4m3(tile_cols: u32, rows: u32) -> Gemm {
    let scale = |rows| Scales { dtype: ScaleType::F32, rows };
    Gemm { kind: Kind::E4m3, scales: Some([scale(1), scale(rows)]), ..bf16(tile_cols) }
}

/// What is wrong with a kernel.
#[derive(Debug)]
pub enum Wrong {
    /// The interpreter stopped it.
    Stopped(Error),
    /// It ran to its end and the numbers are others.
    Numbers(String),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Wrong {
        Wrong::Stopped(error)
    }
}

/// A product to be run. Leading dims are padded to what TMA can address.
#[derive(Clone)]
pub struct Problem {
    pub gemm: Gemm,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub groups: usize,
    /// Offsets or counts of a grouped product.
    pub offsets: Vec<i32>,
    pub grid: u32,
    /// Columns of C beyond the last.
    pub c_padding: usize,
}

/// An operand as it lies in memory, and its values: `[group][row][k]`.
pub struct Operand {
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
    /// Elements from line to line.
    pub lead: usize,
    pub groups: usize,
    pub rows: usize,
}

/// Scales of an operand, `[group][row or group of rows][block]`.
pub struct ScaleValues {
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
    pub rows: usize,
    pub blocks: usize,
}

/// Numbers that look random and are the same each time.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn unit(&mut self) -> f32 {
        (self.next() % 4096) as f32 / 2048.0 - 1.0
    }
}

/// What an e4m3 code stands for, by the format's definition.
fn decode(code: u8) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        e => (1.0 + mantissa / 8.0) * 2f32.powi(e - 7),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

impl Problem {
    pub fn of(gemm: Gemm, [m, n, k]: [usize; 3]) -> Problem {
        let (groups, offsets) = (1, vec![]);
        Problem { gemm, m, n, k, groups, offsets, grid: 4, c_padding: n % 2 }
    }

    fn operand(&self, rows: usize, grouped: bool, major: Major, seed: u64) -> Operand {
        let element = self.gemm.kind.element_bytes() as usize;
        let groups = if grouped { self.groups } else { 1 };
        let (line, lines) = match major {
            Major::K => (self.k, rows),
            Major::Rows => (rows, self.k),
        };
        let lead = line.next_multiple_of(16 / element);
        let mut numbers = Numbers(seed);
        let mut bytes = vec![0u8; groups * lines * lead * element];
        // What lies beyond the lines must not be read: NaN.
        bytes.fill(0xff);
        let mut values = vec![0f32; groups * rows * self.k];
        for (i, value) in values.iter_mut().enumerate() {
            let (g, row, k) = (i / self.k / rows, i / self.k % rows, i % self.k);
            let (line, at) = match major {
                Major::K => (row, k),
                Major::Rows => (k, row),
            };
            let at = ((g * lines + line) * lead + at) * element;
            match self.gemm.kind {
                Kind::Bf16 => {
                    let x = bf16::from_f32(numbers.unit());
                    bytes[at..at + 2].copy_from_slice(&x.to_le_bytes());
                    *value = x.to_f32();
                }
                Kind::E4m3 => {
                    let code = (numbers.next() % 0x60) as u8 | (numbers.next() % 2 << 7) as u8;
                    bytes[at] = code;
                    *value = decode(code);
                }
            }
        }
        Operand { bytes, values, lead, groups, rows }
    }

    fn scales(&self, side: usize, rows: usize, grouped: bool) -> Option<ScaleValues> {
        let scales = self.gemm.scales?[side];
        let rows = rows.div_ceil(scales.rows as usize);
        let blocks = self.k.div_ceil(128);
        let groups = if grouped { self.groups } else { 1 };
        let mut numbers = Numbers(91 + side as u64);
        let (mut bytes, mut values) = (vec![], vec![]);
        for _ in 0..groups * rows * blocks {
            match scales.dtype {
                ScaleType::F32 => {
                    let x = 0.5 + numbers.next() as f32 % 97.0 / 64.0;
                    bytes.extend(x.to_le_bytes());
                    values.push(x);
                }
                ScaleType::Ue8m0 => {
                    let code = 124 + (numbers.next() % 6) as u8;
                    bytes.push(code);
                    values.push(2f32.powi(i32::from(code) - 127));
                }
            }
        }
        Some(ScaleValues { bytes, values, rows, blocks })
    }

    /// Whether A and B hold all groups in a dim of their own.
    fn grouped(&self) -> [bool; 2] {
        match self.gemm.grouping {
            Grouping::Batch | Grouping::Masked => [true, true],
            Grouping::Rows => [false, true],
            Grouping::Inner => [false, false],
        }
    }

    fn map(&self, spec: &MapSpec, operand: &Operand, address: u64) -> Arg {
        let (rows, k) = (operand.rows as u64, self.k as u64);
        let dims = if spec.major == Major::K { [k, rows] } else { [rows, k] };
        tensor_map(spec, dims, operand.groups, operand.lead, address)
    }

    pub fn text(&self) -> String {
        let object = compile(&hopper(), &[self.gemm.source("test")]).unwrap();
        String::from_utf8(object.bytes).unwrap()
    }

    /// Runs the kernel and compares.
    pub fn run(&self, completion: Completion) -> Result<Stats, Wrong> {
        self.run_text(&self.text(), completion)
    }

    /// Runs what may have been made of the kernel.
    pub fn run_text(&self, text: &str, completion: Completion) -> Result<Stats, Wrong> {
        let gemm = &self.gemm;
        let [a_grouped, b_grouped] = self.grouped();
        let a = self.operand(self.m, a_grouped, gemm.a_major, 1);
        let b = self.operand(self.n, b_grouped, gemm.b_major, 2);
        let scales = [self.scales(0, self.m, a_grouped), self.scales(1, self.n, b_grouped)];
        let c_lead = self.n + self.c_padding;
        let c_groups = if gemm.grouping == Grouping::Rows { 1 } else { self.groups };
        let mut numbers = Numbers(3);
        let before: Vec<f32> = (0..c_groups * self.m * c_lead)
            .map(|_| bf16::from_f32(numbers.unit()).to_f32())
            .collect();

        let module = Module::load(text)?;
        let mut device = Device::new();
        let (pa, pb) = (device.alloc_from(&a.bytes), device.alloc_from(&b.bytes));
        let c_bytes = encode(&before, gemm.output);
        let pc = device.alloc_from(&c_bytes);
        let offsets: Vec<u8> = self.offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
        let po = device.alloc_from(&offsets);
        let ps = [0, 1].map(|i| {
            let bytes = scales[i].as_ref().map_or(&[][..], |s| &s.bytes);
            device.alloc_from(bytes)
        });
        let scale_stride = |side: usize, which: usize| {
            let s = scales[side].as_ref().expect("a kernel of codes");
            let grouped = [a_grouped, b_grouped][side];
            [s.blocks, 1, if grouped { s.rows * s.blocks } else { 0 }][which] as i64
        };
        let launch = gemm.launch();
        let c_group_stride = if c_groups == 1 { 0 } else { self.m * c_lead };
        let arg = |argument: &Argument| match argument {
            Argument::MapA(spec) => self.map(spec, &a, pa),
            Argument::MapB(_, spec) => self.map(spec, &b, pb),
            Argument::MapC(spec) => {
                let dims = [self.n as u64, self.m as u64];
                tensor_map(spec, dims, c_groups, c_lead, pc)
            }
            Argument::A => Arg::Ptr(pa),
            Argument::B(_) => Arg::Ptr(pb),
            Argument::C(_) => Arg::Ptr(pc),
            Argument::Offsets => Arg::Ptr(po),
            Argument::ScalesA => Arg::Ptr(ps[0]),
            Argument::ScalesB(_) => Arg::Ptr(ps[1]),
            Argument::ExtraBuffer(_) | Argument::Extra(_) => panic!("no region here"),
            Argument::M => Arg::I64(self.m as i64),
            Argument::N => Arg::I64(self.n as i64),
            Argument::K => Arg::I64(self.k as i64),
            Argument::Groups => Arg::I64(self.groups as i64),
            Argument::CRowStride => Arg::I64(c_lead as i64),
            Argument::CGroupStride => Arg::I64(c_group_stride as i64),
            Argument::ScaleStride(side, which) => Arg::I64(scale_stride(*side, *which)),
            // The maps are made above.
            Argument::MapDim(..) | Argument::MapStride(..) => Arg::I64(0),
        };
        let args: Vec<Arg> = launch.arguments.iter().map(arg).collect();
        let mut sim = Launch::new(self.grid, launch.threads);
        sim.cluster = [launch.cluster, 1, 1];
        sim.dynamic_shared_bytes = launch.shared_bytes;
        sim.completion = completion;
        if gemm.hopper14.is_some() {
            sim.accumulate = Accumulate::Hopper14;
        }
        sim.instructions_max = 1 << 24;
        let stats = device.launch(&module, &launch.name, &sim, &args)?;

        let got = decode_all(device.read(pc, c_bytes.len())?, gemm.output);
        let want = reference::product(self, &a, &b, &scales, &before, c_lead);
        let off = got.iter().zip(&want).position(|(g, w)| g.to_bits() != w.to_bits());
        if let Some(i) = off {
            let (row, col) = (i / c_lead, i % c_lead);
            let name = gemm.name();
            let what = format!("C[{row}, {col}] is {}, not {}: {name}", got[i], want[i]);
            return Err(Wrong::Numbers(what));
        }
        Ok(stats)
    }
}

fn tensor_map(spec: &MapSpec, dims: [u64; 2], groups: usize, lead: usize, address: u64) -> Arg {
    let (element, element_bytes) = match spec.element {
        MapElement::Byte => (Element::U8, 1),
        MapElement::Bf16 => (Element::Bf16, 2),
    };
    let mut dims = dims.to_vec();
    let mut strides_bytes = vec![lead as u64 * element_bytes];
    if spec.grouped {
        strides_bytes.push(dims[1] * strides_bytes[0]);
        dims.push(groups as u64);
    }
    let swizzle = match spec.swizzle_bytes {
        32 => Swizzle::B32,
        64 => Swizzle::B64,
        _ => Swizzle::B128,
    };
    Arg::TensorMap(TensorMap {
        element,
        address,
        dims,
        strides_bytes,
        box_dims: spec.box_dims.clone(),
        swizzle,
        fills_nan: false,
    })
}

fn encode(values: &[f32], output: Output) -> Vec<u8> {
    match output {
        Output::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Output::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn decode_all(bytes: &[u8], output: Output) -> Vec<f32> {
    match output {
        Output::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Output::Bf16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
    }
}
