//! Attention with its sizes, what its operands are, and how kernels are run on them.

use half::bf16;
use ptx_sim::{
    Arg, Completion, Device, Element, Error, ErrorKind, Launch, Module, Swizzle, TensorMap,
};
use weft_backend_cuda::flash::Attention;
use weft_backend_cuda::flash::signature::{self, Argument, MapSpec, Tensor as Operand};
use weft_backend_cuda::target::hopper;
use weft_codegen::object::{KernelSource, compile};

pub const RANDOM: Completion = Completion::Random { seed: 11, delay_max: 60 };

/// Attention with its sizes.
#[derive(Clone)]
pub struct Problem {
    pub attention: Attention,
    pub batch: usize,
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    /// Heads of each k, and of v.
    pub k_heads: Vec<usize>,
    pub v_heads: usize,
    pub starts: Vec<i32>,
    pub query_segments: Vec<i32>,
    pub key_segments: Vec<i32>,
    /// What a key's k is times; a power of two.
    pub k_scale: fn(usize) -> f64,
    pub grid: u32,
}

pub fn plain(parts: &[u32], v_width: u32) -> Attention {
    let (causal, offset, segments) = (false, false, false);
    Attention { parts: parts.to_vec(), v_width, causal, offset, segments }
}

pub fn problem(attention: Attention, [batch, heads, queries, keys]: [usize; 4]) -> Problem {
    Problem {
        k_heads: vec![heads; attention.parts.len()],
        v_heads: heads,
        attention,
        batch,
        heads,
        queries,
        keys,
        starts: vec![],
        query_segments: vec![],
        key_segments: vec![],
        k_scale: |_| 1.0,
        grid: 2,
    }
}

/// `[batch, rows, heads, width]`, and what the numbers are.
pub struct Tensor {
    pub rows: usize,
    pub heads: usize,
    pub width: usize,
    pub values: Vec<f64>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(shape: [usize; 4], seed: u64) -> Tensor {
        Tensor::scaled(shape, seed, |_| 1.0)
    }

    /// With each row times a power of two.
    fn scaled(
        [batch, rows, heads, width]: [usize; 4],
        seed: u64,
        scale: fn(usize) -> f64,
    ) -> Tensor {
        let mut state = seed * 0x9e37_79b9 + 12345;
        let mut tensor = Tensor { rows, heads, width, values: vec![], bytes: vec![] };
        for i in 0..batch * rows * heads * width {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let x = (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0;
            let x = bf16::from_f32(x * scale(i / heads / width % rows) as f32);
            tensor.bytes.extend(x.to_le_bytes());
            tensor.values.push(x.to_f64());
        }
        tensor
    }

    pub fn at(&self, batch: usize, row: usize, head: usize) -> &[f64] {
        let start = ((batch * self.rows + row) * self.heads + head) * self.width;
        &self.values[start..][..self.width]
    }

    pub fn map(&self, spec: &MapSpec, batch: usize, address: u64) -> Arg {
        assert_eq!(spec.swizzle_bytes, 128);
        let row = self.heads * self.width;
        let [width, rows, heads] = [self.width, self.rows, self.heads].map(|n| n as u64);
        let strides = [row, self.width, self.rows * row];
        Arg::TensorMap(TensorMap {
            element: Element::Bf16,
            address,
            dims: vec![width, rows, heads, batch as u64],
            strides_bytes: strides.iter().map(|n| 2 * *n as u64).collect(),
            box_dims: spec.box_dims.clone(),
            swizzle: Swizzle::B128,
            fills_nan: false,
        })
    }
}

/// What is wrong with a kernel.
#[derive(Debug)]
pub enum Wrong {
    Stopped(Error),
    Numbers(String),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Wrong {
        Wrong::Stopped(error)
    }
}

impl Problem {
    pub fn sees(&self, batch: usize, query: usize, key: usize) -> bool {
        let of = &self.attention;
        let start = if of.offset { self.starts[batch] as i64 } else { 0 };
        let past = !of.causal || key as i64 <= query as i64 + start;
        let same = !of.segments
            || self.query_segments[batch * self.queries + query]
                == self.key_segments[batch * self.keys + key];
        past && same
    }

    pub fn scale(&self) -> f64 {
        1.0 / f64::from(self.attention.parts.iter().sum::<u32>()).sqrt()
    }

    pub fn operands(&self) -> Operands {
        let of = &self.attention;
        let tensors = |rows: usize, heads: &[usize], seed: u64, scale| -> Vec<Tensor> {
            let shape = |i: usize| [self.batch, rows, heads[i], of.parts[i] as usize];
            (0..of.parts.len()).map(|i| Tensor::scaled(shape(i), seed + i as u64, scale)).collect()
        };
        Operands {
            q: tensors(self.queries, &vec![self.heads; of.parts.len()], 1, |_| 1.0),
            k: tensors(self.keys, &self.k_heads, 20, self.k_scale),
            v: Tensor::new([self.batch, self.keys, self.v_heads, of.v_width as usize], 40),
            d_o: Tensor::new([self.batch, self.queries, self.heads, of.v_width as usize], 50),
        }
    }

    /// Every batch, head and query.
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (heads, queries) = (self.heads, self.queries);
        let all = 0..self.batch * heads * queries;
        all.map(move |i| (i / queries / heads, i / queries % heads, i % queries))
    }

    /// Scaled scores of a query with the keys that it sees, and those keys.
    pub fn scores(&self, x: &Operands, [batch, query, head]: [usize; 3]) -> (Vec<usize>, Vec<f64>) {
        let score = |key: usize| -> f64 {
            let part = |i: usize| -> f64 {
                let own = head * x.k[i].heads / self.heads;
                let (q, k) = (x.q[i].at(batch, query, head), x.k[i].at(batch, key, own));
                q.iter().zip(k).map(|(a, b)| a * b).sum()
            };
            self.scale() * (0..x.q.len()).map(part).sum::<f64>()
        };
        let seen: Vec<usize> = (0..self.keys).filter(|k| self.sees(batch, query, *k)).collect();
        let scores = seen.iter().map(|k| score(*k)).collect();
        (seen, scores)
    }
}

/// The largest score, the sum of weights beside it, and the log of the softmax's denominator.
pub fn softmax(scores: &[f64]) -> (f64, f64, f64) {
    let top = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    (top, sum, if scores.is_empty() { top } else { top + sum.ln() })
}

pub struct Operands {
    pub q: Vec<Tensor>,
    pub k: Vec<Tensor>,
    pub v: Tensor,
    pub d_o: Tensor,
}

impl Operands {
    pub fn of(&self, operand: Operand) -> &Tensor {
        match operand {
            Operand::Q(i) => &self.q[i],
            Operand::K(i) => &self.k[i],
            Operand::V => &self.v,
            Operand::DO => &self.d_o,
        }
    }
}

/// A problem's operands on a device.
pub struct Bench<'p> {
    problem: &'p Problem,
    pub operands: Operands,
    pub device: Device,
    completion: Completion,
    /// Every q, every k, v, do.
    addresses: Vec<u64>,
    starts: u64,
    query_segments: u64,
    key_segments: u64,
}

impl<'p> Bench<'p> {
    pub fn new(problem: &'p Problem, completion: Completion) -> Bench<'p> {
        let operands = problem.operands();
        let mut device = Device::new();
        let all = operands.q.iter().chain(&operands.k).chain([&operands.v, &operands.d_o]);
        let addresses = all.map(|t| device.alloc_from(&t.bytes)).collect();
        let mut ints = |values: &[i32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            device.alloc_from(&bytes)
        };
        let starts = ints(&problem.starts);
        let query_segments = ints(&problem.query_segments);
        let key_segments = ints(&problem.key_segments);
        Bench {
            problem,
            operands,
            device,
            completion,
            addresses,
            starts,
            query_segments,
            key_segments,
        }
    }

    fn address(&self, operand: Operand) -> u64 {
        let n = self.operands.q.len();
        match operand {
            Operand::Q(i) => self.addresses[i],
            Operand::K(i) => self.addresses[n + i],
            Operand::V => self.addresses[2 * n],
            Operand::DO => self.addresses[2 * n + 1],
        }
    }

    /// What every kernel knows; the rest comes from `own`.
    fn arg(&self, argument: &Argument, own: &dyn Fn(&Argument) -> Option<Arg>) -> Arg {
        let p = self.problem;
        let size = |n: usize| Arg::I64(n as i64);
        let bits = |x: f64| Arg::I64(i64::from((x as f32).to_bits()));
        if let Some(arg) = own(argument) {
            return arg;
        }
        match argument {
            Argument::Map(of, spec) => self.operands.of(*of).map(spec, p.batch, self.address(*of)),
            Argument::Data(of) => Arg::Ptr(self.address(*of)),
            // The maps are made above; of do the kernel asks itself.
            Argument::MapDim(..) => Arg::I64(0),
            Argument::MapStride(of, dim) => {
                let t = self.operands.of(*of);
                let row = t.heads * t.width;
                size(2 * [row, t.width, t.rows * row][*dim])
            }
            Argument::Start => Arg::Ptr(self.starts),
            Argument::QuerySegments => Arg::Ptr(self.query_segments),
            Argument::KeySegments => Arg::Ptr(self.key_segments),
            Argument::Batch => size(p.batch),
            Argument::Heads => size(p.heads),
            Argument::Queries => size(p.queries),
            Argument::Keys => size(p.keys),
            Argument::HeadsPer(of) => size(p.heads / self.operands.of(*of).heads),
            Argument::OStride(i) => {
                let width = p.attention.v_width as usize;
                let line = p.heads * width;
                size([p.queries * line, line, width][*i])
            }
            Argument::Scale => bits(p.scale()),
            Argument::ScaleLog2 => bits(p.scale() * std::f64::consts::LOG2_E),
            other => panic!("{other:?} is not known"),
        }
    }

    pub fn launch(
        &mut self,
        text: &str,
        launch: &signature::Launch,
        grid: u32,
        own: &dyn Fn(&Argument) -> Option<Arg>,
    ) -> Result<(), Wrong> {
        let module = Module::load(text)?;
        let args: Vec<Arg> = launch.arguments.iter().map(|a| self.arg(a, own)).collect();
        let mut sim = Launch::new(grid, launch.threads);
        sim.dynamic_shared_bytes = launch.shared_bytes;
        sim.completion = self.completion;
        sim.instructions_max = 1 << 25;
        self.device.launch(&module, &launch.name, &sim, &args)?;
        Ok(())
    }

    pub fn bf16(&self, address: u64, n: usize) -> Result<Vec<f64>, Wrong> {
        let bytes = self.device.read(address, 2 * n)?;
        let of = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]).to_f64();
        Ok(bytes.chunks_exact(2).map(of).collect())
    }

    pub fn f32(&self, address: u64, n: usize) -> Result<Vec<f32>, Wrong> {
        let bytes = self.device.read(address, 4 * n)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

pub fn text(source: KernelSource) -> String {
    let object = compile(&hopper(), &[source]).unwrap();
    String::from_utf8(object.bytes).unwrap()
}

/// The interpreter's error: the numbers alone would depend on how late work completes.
pub fn stopped(wrong: Wrong) -> Error {
    match wrong {
        Wrong::Stopped(error) => error,
        Wrong::Numbers(what) => panic!("noticed by its numbers alone: {what}"),
    }
}

/// The text without its `n`-th line that holds `what`.
pub fn without(text: &str, what: &str, n: usize) -> String {
    let hits = text.lines().enumerate().filter(|(_, line)| line.contains(what));
    let at = hits.map(|(i, _)| i).nth(n).unwrap_or_else(|| panic!("no `{what}` {n}"));
    let kept = text.lines().enumerate().filter(|(i, _)| *i != at);
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// What is said of a text that was changed on purpose, by the first order of completion that
/// notices.
pub fn fault(
    text: &str,
    what: &str,
    change: impl Fn(&str) -> String,
    run: impl Fn(&str, Completion) -> Result<(), Wrong>,
) -> Wrong {
    let changed = change(text);
    assert_ne!(text, changed, "nothing was changed");
    for completion in [Completion::Lazy, RANDOM] {
        if let Err(wrong) = run(&changed, completion) {
            return wrong;
        }
    }
    panic!("the fault was not noticed: {what}");
}

/// Takes every line away that holds `what`, one after the other but for those of `spare`, and sees
/// to it that each is missed in one of `kinds`.
pub fn each_is_needed(
    text: &str,
    what: &str,
    kinds: &[ErrorKind],
    spare: &[usize],
    run: impl Fn(&str, Completion) -> Result<(), Wrong>,
) {
    for which in (0..text.matches(what).count()).filter(|i| !spare.contains(i)) {
        let name = format!("{what} {which}");
        let error = stopped(fault(text, &name, |text| without(text, what, which), &run));
        assert!(kinds.contains(&error.kind), "{name}: {error}");
    }
}
