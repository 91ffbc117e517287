//! A case compiled, run, compared with the reference interpreter, and timed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use half::bf16;
use weft_backend_cuda::Cuda;
use weft_backend_cuda::compile::{Options, compile};
use weft_graph::{Buffer, DType, Role};
use weft_ir::interp::{Data, Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module, Span};
use weft_passes::{PassCx, by_name, run_pass};
use weft_runtime::device::Device;
use weft_runtime::exec::{Program, Session, Store};

use super::cases::{self, Case, Problem};

/// The entry of every problem.
const ENTRY: &str = "f";

/// What is left of the pipeline for a function that is not a model.
const PASSES: [&str; 4] = ["split_quantized", "cse", "dce", "fuse"];

/// More than a GPU keeps of what it read last.
const FLUSHED_ELEMENTS: usize = 64 << 20;

/// What a problem took, over the runs.
pub struct Measured {
    /// In order.
    pub launches: Vec<Timed>,
    /// All launches of a run together.
    pub total: Times,
}

/// One launch.
pub struct Timed {
    pub kernel: String,
    pub flops: f64,
    pub bytes: f64,
    pub times: Times,
}

/// One for each run, the shortest first.
pub struct Times(Vec<Duration>);

impl Times {
    fn new(mut all: Vec<Duration>) -> Times {
        all.sort();
        Times(all)
    }

    pub fn median(&self) -> Duration {
        self.tenth(5)
    }

    /// The time that `n` tenths of the runs do not exceed.
    pub fn tenth(&self, n: usize) -> Duration {
        self.0[(self.0.len() - 1) * n / 10]
    }
}

/// Where kernels run, and what of it they may use.
pub struct Bench {
    pub device: Arc<dyn Device>,
    pub machine: Cuda,
}

/// How far the worst result is off at the small sizes.
pub fn check(case: &Case, on: &Bench) -> Result<f64> {
    let module = module(&case.small)?;
    let f = entry(&module)?;
    let args = arguments(&module, f, &case.small)?;
    let interpreter = Interp::new(&module, Precision::Stated);
    let expected = interpreter.run_sized(f, args.clone(), &Sizes::new())?;
    let mut session = session(module, on)?;
    let buffers = session.entry().buffers.clone();
    for (buffer, arg) in buffers.iter().filter(|b| is_parameter(b)).zip(&args) {
        write(&mut session, &buffer.name, buffer.dtype, &arg.numbers())?;
    }
    session.run()?;
    let mut worst = 0f64;
    for (buffer, expected) in buffers.iter().filter(|b| b.role == Role::Output).zip(&expected) {
        let found = read(&session, &buffer.name, buffer.dtype)?;
        worst = worst.max(distance(&found, &expected.numbers()));
    }
    Ok(worst)
}

/// How times are taken.
#[derive(Clone, Copy)]
pub struct Timing {
    pub runs: usize,
    /// Whether caches are emptied before each run.
    pub flushes: bool,
}

/// Times a problem.
pub fn time(case: &Case, problem: &Problem, on: &Bench, how: Timing) -> Result<Measured> {
    let what = || format!("{} {}", case.name, problem.sizes);
    let mut timed = session(module(problem)?, on).with_context(what)?;
    for buffer in timed.entry().buffers.clone() {
        if is_parameter(&buffer) {
            let given = problem.ints.iter().find(|(name, _)| *name == buffer.name);
            let n = timed.len_of(&buffer.name)?;
            match given {
                Some((_, values)) => {
                    let values: Vec<f64> = values.iter().map(|v| *v as f64).collect();
                    write(&mut timed, &buffer.name, buffer.dtype, &values)?;
                }
                None => {
                    let positive = problem.positive.iter().any(|name| *name == buffer.name);
                    let low = if positive { 0.0 } else { -1.0 };
                    write(&mut timed, &buffer.name, buffer.dtype, &noise(n, low))?;
                }
            }
        }
    }
    let flush = || session(module(&cases::flush(FLUSHED_ELEMENTS))?, on);
    let mut flush = how.flushes.then(flush).transpose()?;
    // Once to bring clocks and code up.
    timed.run()?;
    let mut profiles = vec![];
    for _ in 0..how.runs {
        if let Some(flush) = &mut flush {
            flush.run()?;
        }
        timed.start_profile();
        timed.run().with_context(what)?;
        profiles.push(timed.take_profile().ok_or_else(|| anyhow!("nothing was measured"))?);
    }
    let first = profiles.first().context("a problem is run at least once")?;
    let launch = |i: usize| {
        let row = &first.rows[i];
        Timed {
            kernel: row.kernel.clone(),
            flops: row.flops,
            bytes: row.bytes,
            times: Times::new(profiles.iter().map(|profile| profile.rows[i].time).collect()),
        }
    };
    let totals = profiles.iter().map(|profile| profile.rows.iter().map(|row| row.time).sum());
    Ok(Measured {
        launches: (0..first.rows.len()).map(launch).collect(),
        total: Times::new(totals.collect()),
    })
}

/// A parameter of the entry's function; its buffers are the first, in order.
fn is_parameter(buffer: &Buffer) -> bool {
    matches!(buffer.role, Role::Input | Role::State)
}

/// The module that a text describes, with a place for each op.
fn module(problem: &Problem) -> Result<Module> {
    let text = format!("weft-ir 1\nmodule Bench\n{}", problem.text);
    let mut module = weft_ir::text::parse(&text).map_err(|e| anyhow!("{}", e[0]))?;
    module.files.push("bench".into());
    for func in &mut module.funcs {
        for id in func.body.clone() {
            func.op_mut(id).spans.push(Span { file: 0, line: id.0 + 1, col: 1 });
        }
    }
    weft_ir::verify::verify(&module).map_err(|e| anyhow!("{}", e[0]))?;
    Ok(module)
}

fn entry(module: &Module) -> Result<FuncId> {
    module.find(ENTRY).context("a problem has an entry")
}

fn session(mut module: Module, on: &Bench) -> Result<Session> {
    for (i, name) in PASSES.into_iter().enumerate() {
        let pass = by_name(name).with_context(|| format!("there is no pass {name}"))?;
        run_pass(i + 1, pass, &mut module, &PassCx::default())?;
    }
    let options =
        Options { threads: 1, machine: on.machine, source: "bench".into(), command: String::new() };
    let graph = compile(&module, &[ENTRY], &options, &mut |_| {})?;
    let program = Program::load(graph, Arc::clone(&on.device))?;
    Ok(Session::new(&program, ENTRY, &Store::new(Arc::clone(&on.device)))?)
}

fn arguments(module: &Module, f: FuncId, problem: &Problem) -> Result<Vec<Tensor>> {
    let func = module.func(f);
    let is_positive = |i: usize| {
        let name = func.params.get(i).and_then(|p| func.value(*p).name.as_deref());
        name.is_some_and(|name| problem.positive.contains(&name))
    };
    let range = |i: usize, _: &weft_ir::ty::Type| Range {
        low: if is_positive(i) { 0.0 } else { -1.0 },
        high: 1.0,
    };
    let drawn = random_args(module, f, &Sizes::new(), 1, &range);
    let mut args = drawn.map_err(|e| anyhow!(e))?;
    for (p, arg) in func.params.iter().zip(&mut args) {
        let name = &func.value(*p).name;
        let given = problem.ints.iter().find(|(given, _)| name.as_deref() == Some(*given));
        if let Some((_, values)) = given {
            arg.data = Data::Int(values.clone());
        }
    }
    Ok(args)
}

fn write(session: &mut Session, name: &str, dtype: DType, values: &[f64]) -> Result<()> {
    match dtype {
        DType::F32 => {
            session.write_input(name, &values.iter().map(|v| *v as f32).collect::<Vec<_>>())?;
        }
        DType::Bf16 => {
            let values: Vec<bf16> = values.iter().map(|v| bf16::from_f64(*v)).collect();
            session.write_input(name, &values)?;
        }
        DType::I32 => {
            session.write_input(name, &values.iter().map(|v| *v as i32).collect::<Vec<_>>())?;
        }
        other => bail!("{name} is of {other}, which no case has"),
    }
    Ok(())
}

fn read(session: &Session, name: &str, dtype: DType) -> Result<Vec<f64>> {
    Ok(match dtype {
        DType::F32 => session.read_output::<f32>(name)?.into_iter().map(f64::from).collect(),
        DType::Bf16 => session.read_output::<bf16>(name)?.into_iter().map(f64::from).collect(),
        other => bail!("{name} is of {other}, which no case has"),
    })
}

/// Numbers in `low..1` that no clock is spared by.
fn noise(n: usize, low: f64) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        low + (1.0 - low) * (state >> 40) as f64 / f64::from(1u32 << 24)
    };
    (0..n).map(|_| next()).collect()
}

/// `‖a - b‖ / ‖b‖`; infinite where their lengths differ.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let norm = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut a.iter().zip(b).map(|(a, b)| if a == b { 0.0 } else { a - b }));
    if off == 0.0 { 0.0 } else { off / norm(&mut b.iter().copied()).max(1e-12) }
}
