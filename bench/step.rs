//! What a compiled module costs: time to compile, launches of a run, and where the time of a run
//! goes.
//!
//!     weft compile models/nano.model --dump DIR
//!     cargo bench -p weft-backend-cpu --bench step -- DIR/00-lower.ir [--entry train_step]
//!         [--runs 5] [--variant avx2] [--kernels] [--text] [--check] [--planned]
//!
//! `--planned` takes the module as it is, which is then the last of the dump: what a precision
//! block asks of products is in there, and nowhere else.
//! `--check` holds the entry's results against the interpreter's instead.

#[path = "../lower/tests/machines/mod.rs"]
mod machines;

use std::sync::Arc;
use std::time::Instant;

use machines::{distance, interpret, run};
use weft_backend_cpu::compile::{Options, compile};
use weft_graph::{CpuVariant, Graph, Step};
use weft_ir::interp::{Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module};
use weft_ir::text;
use weft_passes::{PassCx, Sums, Train, run_pipeline};
use weft_runtime::device::Cpu;
use weft_runtime::exec::{Program, Session, Store};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option =
        |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let Some(path) = args.first().filter(|a| !a.starts_with("--")) else {
        println!("no module given: see the head of bench/step.rs");
        return;
    };
    let entry = option("--entry").unwrap_or("train_step".into());
    let runs: u32 = option("--runs").and_then(|n| n.parse().ok()).unwrap_or(5);
    let module = if flag("--planned") { read(path) } else { planned(path) };
    let mut options = Options::native(Cpu::threads_here());
    if let Some(variant) = option("--variant").and_then(|v| CpuVariant::from_name(&v)) {
        options.variants = vec![variant];
    }
    let start = Instant::now();
    let graph = match compile(&module, &[&entry], &options) {
        Ok(graph) => graph,
        Err(e) => panic!("{e}"),
    };
    let time = start.elapsed().as_secs_f64();
    let launches: (usize, i64) = count(&graph.entries[0].steps);
    println!(
        "compiled in {time:.2} s: {} kernels, {} bytes of code, arena {} bytes",
        graph.kernels.len(),
        graph.objects.iter().map(Vec::len).sum::<usize>(),
        graph.entries[0].arena_bytes,
    );
    println!("{} steps, {} carried out in a run", launches.0, launches.1);
    if flag("--text") {
        println!("{graph}");
    }
    let f = module.find(&entry).expect("it was compiled");
    match flag("--check") {
        true => check(&graph, &module, f),
        false => measure(&graph, &module, f, runs, flag("--kernels")),
    }
}

fn read(path: &str) -> Module {
    let text = std::fs::read_to_string(path).expect("the module can be read");
    text::parse(&text).unwrap_or_else(|e| panic!("{}", e[0]))
}

fn planned(path: &str) -> Module {
    let mut module = read(path);
    let (beta1, beta2, eps, decay, clip) = (0.9, 0.95, 1e-8, 0.1, Some(1.0));
    let moments = weft_ir::ty::DType::F32;
    let train =
        Some(Train { micro_batches: 1, sums: Sums::Tree, beta1, beta2, eps, decay, clip, moments });
    let cx = PassCx { gradients: true, train, ..PassCx::default() };
    let start = Instant::now();
    run_pipeline(&mut module, &cx, &mut |step, _| println!("{step}")).expect("the passes run");
    println!("passes: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    module
}

/// Steps, and how many are carried out.
fn count(steps: &[Step]) -> (usize, i64) {
    steps.iter().fold((0, 0), |(n, done), step| match step {
        Step::Launch(_) | Step::Copy(_) | Step::Collective(_) | Step::Message(_) => {
            (n + 1, done + 1)
        }
        Step::Loop(repeat) => {
            let (inner, each) = count(&repeat.body);
            (n + inner, done + each * repeat.count.as_constant().unwrap_or(1))
        }
    })
}

/// Floats near zero, token ids, one segment.
fn drawn(m: &Module, f: FuncId) -> Vec<Tensor> {
    let func = m.func(f);
    let range = |i: usize, ty: &weft_ir::ty::Type| {
        let name = func.value(func.params[i]).name.as_deref().unwrap_or("");
        let scalar = ty.rank() == 0;
        match (ty.dtype.is_float(), name) {
            (true, "step") => Range { low: 1.0, high: 1.0 },
            (true, n) if n.ends_with(".v") || n.ends_with("norm.weight") => {
                Range { low: 0.5, high: 1.5 }
            }
            (true, _) if scalar => Range { low: 1e-3, high: 1e-3 },
            (true, _) => Range { low: -0.05, high: 0.05 },
            (false, "segments") => Range { low: 0.0, high: 1.0 },
            (false, _) => Range { low: 0.0, high: 500.0 },
        }
    };
    random_args(m, f, &Sizes::new(), 7, &range).expect("sizes are fixed")
}

fn check(graph: &Graph, m: &Module, f: FuncId) {
    let args = drawn(m, f);
    let sizes = Sizes::new();
    let cpu = Arc::new(Cpu::new(Cpu::threads_here()).expect("threads start"));
    let found = run(cpu, graph, m, f, &args, &sizes);
    let start = Instant::now();
    let expected = interpret(m, f, &args, &sizes);
    println!("interpreted in {:.1} s", start.elapsed().as_secs_f64());
    let mut all: Vec<(f64, String)> = vec![];
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        let name = m.func(f).result_names.get(i).cloned().unwrap_or_default();
        all.push((distance(a, b), name));
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (off, name) in all.iter().take(20) {
        println!("{off:9.2e}  {name}");
    }
    assert!(all.iter().all(|(off, _)| *off < 1e-3), "results differ");
}

fn measure(graph: &Graph, m: &Module, f: FuncId, runs: u32, by_kernel: bool) {
    let device = Arc::new(Cpu::new(Cpu::threads_here()).expect("threads start"));
    let program = Program::load(graph.clone(), device.clone()).expect("it loads");
    let store = Store::new(device);
    let mut session = Session::new(&program, &m.func(f).name, &store).expect("memory");
    let entry = session.entry().clone();
    for (i, arg) in drawn(m, f).iter().enumerate() {
        let buffer = &entry.buffers[i];
        machines::write(&mut session, &buffer.name, buffer.dtype, arg);
    }
    session.run().expect("it runs");
    let start = Instant::now();
    for _ in 0..runs {
        session.run().expect("it runs");
    }
    println!("{:.2} ms a run", start.elapsed().as_secs_f64() * 1e3 / f64::from(runs));
    session.start_profile();
    session.run().expect("it runs");
    if let Some(profile) = session.take_profile() {
        println!("{}", if by_kernel { profile.by_kernel() } else { profile });
    }
}
