//! Attention of the Hopper template on the interpreter, with its checks on, against sums in f64
//! written apart.

use half::bf16;
use ptx_sim::{
    Arg, Completion, Device, Element, Error, ErrorKind, Launch, Module, Swizzle, TensorMap,
};
use weft_backend_cuda::flash::{Argument, Attention, MapSpec};
use weft_backend_cuda::target::hopper;
use weft_codegen::object::compile;

const RANDOM: Completion = Completion::Random { seed: 11, delay_max: 60 };

/// Attention with its sizes.
#[derive(Clone)]
struct Problem {
    attention: Attention,
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    /// Heads of each k, and of v.
    k_heads: Vec<usize>,
    v_heads: usize,
    starts: Vec<i32>,
    query_segments: Vec<i32>,
    key_segments: Vec<i32>,
    grid: u32,
}

fn plain(parts: &[u32], v_width: u32) -> Attention {
    let (causal, offset, segments) = (false, false, false);
    Attention { parts: parts.to_vec(), v_width, causal, offset, segments }
}

fn problem(attention: Attention, [batch, heads, queries, keys]: [usize; 4]) -> Problem {
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
        grid: 2,
    }
}

/// `[batch, rows, heads, width]`, and what the numbers are.
struct Tensor {
    rows: usize,
    heads: usize,
    width: usize,
    values: Vec<f64>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new([batch, rows, heads, width]: [usize; 4], seed: u64) -> Tensor {
        let mut state = seed * 0x9e37_79b9 + 12345;
        let mut tensor = Tensor { rows, heads, width, values: vec![], bytes: vec![] };
        for _ in 0..batch * rows * heads * width {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let x = bf16::from_f32((state >> 40) as f32 / (1u64 << 22) as f32 - 2.0);
            tensor.bytes.extend(x.to_le_bytes());
            tensor.values.push(x.to_f64());
        }
        tensor
    }

    fn at(&self, batch: usize, row: usize, head: usize) -> &[f64] {
        let start = ((batch * self.rows + row) * self.heads + head) * self.width;
        &self.values[start..][..self.width]
    }

    fn map(&self, spec: &MapSpec, batch: usize, address: u64) -> Arg {
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
enum Wrong {
    Stopped(Error),
    Numbers(String),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Wrong {
        Wrong::Stopped(error)
    }
}

impl Problem {
    fn text(&self) -> String {
        let object = compile(&hopper(), &[self.attention.source("test")]).unwrap();
        String::from_utf8(object.bytes).unwrap()
    }

    fn sees(&self, batch: usize, query: usize, key: usize) -> bool {
        let of = &self.attention;
        let start = if of.offset { self.starts[batch] as i64 } else { 0 };
        let past = !of.causal || key as i64 <= query as i64 + start;
        let same = !of.segments
            || self.query_segments[batch * self.queries + query]
                == self.key_segments[batch * self.keys + key];
        past && same
    }

    fn scale(&self) -> f64 {
        1.0 / f64::from(self.attention.parts.iter().sum::<u32>()).sqrt()
    }

    fn run(&self, text: &str, completion: Completion) -> Result<(), Wrong> {
        let of = &self.attention;
        let tensors = |rows: usize, heads: &[usize], seed: u64| -> Vec<Tensor> {
            let shape = |i: usize| [self.batch, rows, heads[i], of.parts[i] as usize];
            (0..of.parts.len()).map(|i| Tensor::new(shape(i), seed + i as u64)).collect()
        };
        let q = tensors(self.queries, &vec![self.heads; of.parts.len()], 1);
        let k = tensors(self.keys, &self.k_heads, 20);
        let v = Tensor::new([self.batch, self.keys, self.v_heads, of.v_width as usize], 40);

        let module = Module::load(text)?;
        let mut device = Device::new();
        let addresses = |device: &mut Device, t: &[Tensor]| -> Vec<u64> {
            t.iter().map(|t| device.alloc_from(&t.bytes)).collect()
        };
        let (pq, pk) = (addresses(&mut device, &q), addresses(&mut device, &k));
        let pv = device.alloc_from(&v.bytes);
        let line = self.heads * of.v_width as usize;
        let o_bytes = 2 * self.batch * self.queries * line;
        let lse_bytes = 4 * self.batch * self.heads * self.queries;
        let (po, pl) = (device.alloc(o_bytes), device.alloc(lse_bytes));
        let ints = |device: &mut Device, values: &[i32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            device.alloc_from(&bytes)
        };
        let starts = ints(&mut device, &self.starts);
        let of_queries = ints(&mut device, &self.query_segments);
        let of_keys = ints(&mut device, &self.key_segments);
        let launch = of.launch();
        let size = |n: usize| Arg::I64(n as i64);
        let arg = |argument: &Argument| match argument {
            Argument::MapQ(i, spec) => q[*i].map(spec, self.batch, pq[*i]),
            Argument::MapK(i, spec) => k[*i].map(spec, self.batch, pk[*i]),
            Argument::MapV(spec) => v.map(spec, self.batch, pv),
            Argument::Q(i) => Arg::Ptr(pq[*i]),
            Argument::K(i) => Arg::Ptr(pk[*i]),
            Argument::V => Arg::Ptr(pv),
            // The maps are made above.
            Argument::MapDim(..) | Argument::MapStride(..) => Arg::I64(0),
            Argument::O => Arg::Ptr(po),
            Argument::Lse => Arg::Ptr(pl),
            Argument::Start => Arg::Ptr(starts),
            Argument::QuerySegments => Arg::Ptr(of_queries),
            Argument::KeySegments => Arg::Ptr(of_keys),
            Argument::Batch => size(self.batch),
            Argument::Heads => size(self.heads),
            Argument::Queries => size(self.queries),
            Argument::Keys => size(self.keys),
            Argument::HeadsPerK(i) => size(self.heads / self.k_heads[*i]),
            Argument::HeadsPerV => size(self.heads / self.v_heads),
            Argument::OStride(i) => {
                Arg::I64([self.queries * line, line, of.v_width as usize][*i] as i64)
            }
            Argument::ScaleLog2 => {
                Arg::I64(i64::from(((self.scale() * std::f64::consts::LOG2_E) as f32).to_bits()))
            }
        };
        let args: Vec<Arg> = launch.arguments.iter().map(arg).collect();
        let mut sim = Launch::new(self.grid, launch.threads);
        sim.dynamic_shared_bytes = launch.shared_bytes;
        sim.completion = completion;
        sim.instructions_max = 1 << 24;
        device.launch(&module, &launch.name, &sim, &args)?;
        let o: Vec<f64> = device
            .read(po, o_bytes)?
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64())
            .collect();
        let lse: Vec<f32> = device
            .read(pl, lse_bytes)?
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        self.compare(&q, &k, &v, &o, &lse).map_err(Wrong::Numbers)
    }

    fn compare(
        &self,
        q: &[Tensor],
        k: &[Tensor],
        v: &Tensor,
        o: &[f64],
        lse: &[f32],
    ) -> Result<(), String> {
        let width = v.width;
        for batch in 0..self.batch {
            for head in 0..self.heads {
                for query in 0..self.queries {
                    let score = |key: usize| -> f64 {
                        let part = |i: usize| -> f64 {
                            let own = head * k[i].heads / self.heads;
                            let (q, k) = (q[i].at(batch, query, head), k[i].at(batch, key, own));
                            q.iter().zip(k).map(|(a, b)| a * b).sum()
                        };
                        self.scale() * (0..q.len()).map(part).sum::<f64>()
                    };
                    let seen: Vec<usize> =
                        (0..self.keys).filter(|k| self.sees(batch, query, *k)).collect();
                    let scores: Vec<f64> = seen.iter().map(|k| score(*k)).collect();
                    let top = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                    let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                    let want = if seen.is_empty() { top } else { top + sum.ln() };
                    let got = lse[(batch * self.heads + head) * self.queries + query];
                    let at = format!("batch {batch}, head {head}, query {query}");
                    let same = f64::from(got) == want;
                    if !same && !((f64::from(got) - want).abs() < 2e-5 * (1.0 + want.abs())) {
                        return Err(format!("{at}: lse is {got}, not {want}"));
                    }
                    for d in 0..width {
                        let (mut want, mut size) = (0.0, 0.0);
                        for (key, s) in seen.iter().zip(&scores) {
                            let of = v.at(batch, *key, head * self.v_heads / self.heads)[d];
                            want += (s - top).exp() / sum * of;
                            size += (s - top).exp() / sum * of.abs();
                        }
                        let i = ((batch * self.queries + query) * self.heads + head) * width + d;
                        // Weights and results are rounded to 8 bits.
                        if !((o[i] - want).abs() <= size * 2f64.powi(-7)) {
                            return Err(format!("{at}: o[{d}] is {}, not {want}", o[i]));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn check(problem: &Problem) {
    let text = problem.text();
    for completion in [Completion::Lazy, RANDOM] {
        problem.run(&text, completion).unwrap_or_else(|e| panic!("{completion:?}: {e:?}"));
    }
}

#[test]
fn several_blocks_of_keys_and_a_partial_one() {
    check(&problem(plain(&[64], 64), [1, 1, 130, 300]));
}

#[test]
fn causal_heads_of_192_and_128_in_two_parts_of_which_one_is_shared() {
    let attention = Attention { causal: true, ..plain(&[128, 64], 128) };
    let base = problem(attention, [1, 2, 200, 200]);
    check(&Problem { k_heads: vec![2, 1], grid: 3, ..base });
}

#[test]
fn widths_that_are_not_whole_lines() {
    check(&problem(plain(&[24, 8], 40), [2, 1, 70, 40]));
}

#[test]
fn wide_values_take_smaller_blocks() {
    let attention = plain(&[256], 256);
    let widest = problem(attention, [1, 1, 66, 130]);
    check(&widest);
}

#[test]
fn starts_and_segments_hide_keys_and_may_hide_all() {
    let attention = Attention { causal: true, offset: true, segments: true, ..plain(&[32], 32) };
    let base = problem(attention, [2, 4, 70, 150]);
    // The second batch begins behind its keys: its first queries see none.
    let problem = Problem {
        k_heads: vec![2],
        v_heads: 1,
        starts: vec![80, -3],
        query_segments: (0..140).map(|i| i % 70 / 30).collect(),
        key_segments: (0..300).map(|i| i % 150 / 65).collect(),
        ..base
    };
    check(&problem);
}

fn fault(change: impl Fn(&str) -> String) -> Wrong {
    let problem = problem(plain(&[64], 64), [1, 1, 256, 700]);
    let problem = Problem { grid: 1, ..problem };
    let text = problem.text();
    let changed = change(&text);
    assert_ne!(text, changed, "nothing was changed");
    for completion in [Completion::Lazy, RANDOM] {
        if let Err(wrong) = problem.run(&changed, completion) {
            return wrong;
        }
    }
    panic!("the fault was not noticed");
}

/// The interpreter's error: the numbers alone would depend on how late work completes.
fn stopped(wrong: Wrong) -> Error {
    match wrong {
        Wrong::Stopped(error) => error,
        Wrong::Numbers(what) => panic!("noticed by its numbers alone: {what}"),
    }
}

/// The text without its `n`-th line that holds `what`.
fn without(text: &str, what: &str, n: usize) -> String {
    let hits = text.lines().enumerate().filter(|(_, line)| line.contains(what));
    let at = hits.map(|(i, _)| i).nth(n).unwrap_or_else(|| panic!("no `{what}` {n}"));
    let kept = text.lines().enumerate().filter(|(i, _)| *i != at);
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

#[test]
fn every_wait_of_producer_and_consumers_is_needed() {
    let problem = problem(plain(&[64], 64), [1, 1, 256, 700]);
    let n = problem.text().matches("@!done bra").count();
    // Queries, keys and values, in the producer's loop and in the consumers', and where the
    // consumers' begins and ends.
    assert!(n >= 6, "{n} waits");
    for which in 0..n {
        let wrong = fault(|text| without(text, "@!done bra", which));
        let error = stopped(wrong);
        let kinds = [ErrorKind::MissingWait, ErrorKind::Barrier];
        assert!(kinds.contains(&error.kind), "wait {which}: {error}");
    }
}

#[test]
fn every_wait_for_products_is_needed() {
    let n = problem(plain(&[64], 64), [1, 1, 1, 1]).text().matches("wait_group").count();
    assert_eq!(n, 4);
    for which in 0..n {
        let wrong = fault(|text| without(text, "wgmma.wait_group", which));
        let error = stopped(wrong);
        assert_eq!(error.kind, ErrorKind::MissingWait, "wait {which}: {error}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let refused = plain(&[576], 512).check().unwrap_err();
    assert!(refused.contains("512 wide, more than 256"), "{refused}");
    let refused = plain(&[20], 64).check().unwrap_err();
    assert!(refused.contains("not a multiple of 8"), "{refused}");
    let refused = plain(&[1024], 64).check().unwrap_err();
    assert!(refused.contains("too wide for shared memory"), "{refused}");
}
