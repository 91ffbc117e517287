//! Runs functions of a module on this machine's kernels, as PTX, and in the reference interpreter,
//! and compares.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::Arc;

use half::bf16;
use weft_backend_cpu::compile::{Options, compile};
use weft_backend_cuda::Cuda;
use weft_backend_cuda::compile as cuda;
use weft_graph::{DType, Graph, Role};
use weft_ir::interp::{Data, Interp, Precision, Range, Sizes, Tensor, random_args};
use weft_ir::module::{FuncId, Module, Span};
use weft_ir::ty::Type;
use weft_runtime::device::{Cpu, Device, Ptx};
use weft_runtime::exec::{Program, Session, Store};

/// The module a text describes; ops without a place get one.
pub fn module(text: &str) -> Module {
    let text = format!("weft-ir 1\nmodule Test\n{text}");
    let mut m = match weft_ir::text::parse(&text) {
        Ok(m) => m,
        Err(errors) => panic!("{}\n{text}", errors[0]),
    };
    if m.files.is_empty() {
        m.files.push("test.model".into());
    }
    for func in &mut m.funcs {
        for id in func.body.clone() {
            let op = func.op_mut(id);
            if op.spans.is_empty() {
                op.spans.push(Span { file: 0, line: id.0 + 1, col: 1 });
            }
        }
    }
    if let Err(errors) = weft_ir::verify::verify(&m) {
        panic!("{}\n{text}", errors[0]);
    }
    m
}

/// Floats from `low..high`, integers from `0..ints`.
#[derive(Clone, Copy)]
pub struct Draw {
    pub low: f64,
    pub high: f64,
    pub ints: f64,
}

pub fn arguments(m: &Module, f: FuncId, sizes: &Sizes, seed: u64, draw: Draw) -> Vec<Tensor> {
    let range = |_: usize, ty: &Type| match ty.dtype.is_float() {
        true => Range { low: draw.low, high: draw.high },
        false => Range { low: 0.0, high: draw.ints },
    };
    random_args(m, f, sizes, seed, &range).expect("all sizes are given")
}

pub fn interpret(m: &Module, f: FuncId, args: &[Tensor], sizes: &Sizes) -> Vec<Tensor> {
    match Interp::new(m, Precision::Stated).run_sized(f, args.to_vec(), sizes) {
        Ok(results) => results,
        Err(e) => panic!("{e}\n{}", weft_ir::text::print(m)),
    }
}

pub fn graph(m: &Module, entries: &[&str]) -> Graph {
    match compile(m, entries, &Options::native(2)) {
        Ok(graph) => graph,
        Err(e) => panic!("{e}\n{}", weft_ir::text::print(m)),
    }
}

/// The same for GPUs.
pub fn ptx_graph(m: &Module, entries: &[&str]) -> Graph {
    ptx_graph_of(m, entries, Cuda::WHOLE)
}

/// The same for a GPU of which so much may be used.
pub fn ptx_graph_of(m: &Module, entries: &[&str], machine: Cuda) -> Graph {
    let (source, command) = (String::new(), String::new());
    let options = cuda::Options { threads: 2, machine, source, command };
    match cuda::compile(m, entries, &options, &mut |_| {}) {
        Ok(graph) => graph,
        Err(e) => panic!("{e}\n{}", weft_ir::text::print(m)),
    }
}

/// The results of an entry; the values of what it donates too.
pub fn run(
    device: Arc<dyn Device>,
    graph: &Graph,
    m: &Module,
    f: FuncId,
    args: &[Tensor],
    sizes: &Sizes,
) -> Vec<Tensor> {
    let program = Program::load(graph.clone(), device.clone()).unwrap();
    let store = Store::new(device);
    let func = m.func(f);
    let mut session = Session::new(&program, &func.name, &store).unwrap();
    for (sym, size) in sizes {
        let name = &m.sym(*sym).name;
        if session.entry().find_dim(name).is_some() {
            session.set_dim(name, *size as i64).unwrap();
        }
    }
    // Parameters are the first buffers, results the next.
    let entry = session.entry().clone();
    let name = |i: usize| entry.buffers[i].name.clone();
    for (i, arg) in args.iter().enumerate() {
        write(&mut session, &name(i), entry.buffers[i].dtype, arg);
    }
    session.run().unwrap_or_else(|e| panic!("{e}\n{graph}"));
    let results = func.results.iter().enumerate().map(|(i, _)| {
        let at = func.params.len() + i;
        assert_eq!(entry.buffers[at].role, Role::Output);
        read(&session, &name(at), entry.buffers[at].dtype, &session.shape_of(&name(at)).unwrap())
    });
    results.collect()
}

pub fn write(session: &mut Session, name: &str, dtype: DType, x: &Tensor) {
    let numbers = x.numbers();
    let written = match dtype {
        DType::F32 => {
            session.write_input(name, &numbers.iter().map(|v| *v as f32).collect::<Vec<_>>())
        }
        DType::Bf16 => session
            .write_input(name, &numbers.iter().map(|v| bf16::from_f64(*v)).collect::<Vec<_>>()),
        DType::I32 => {
            session.write_input(name, &numbers.iter().map(|v| *v as i32).collect::<Vec<_>>())
        }
        DType::I64 => {
            session.write_input(name, &numbers.iter().map(|v| *v as i64).collect::<Vec<_>>())
        }
        DType::Bool => {
            session.write_input(name, &numbers.iter().map(|v| *v as u8).collect::<Vec<_>>())
        }
        other => panic!("{other} in a test"),
    };
    written.unwrap();
}

fn read(session: &Session, name: &str, dtype: DType, dims: &[usize]) -> Tensor {
    let floats = |v: Vec<f64>| Data::Float(v);
    let (of, data) = match dtype {
        DType::F32 => {
            let v: Vec<f32> = session.read_output(name).unwrap();
            (weft_ir::ty::DType::F32, floats(v.into_iter().map(f64::from).collect()))
        }
        DType::Bf16 => {
            let v: Vec<bf16> = session.read_output(name).unwrap();
            (weft_ir::ty::DType::Bf16, floats(v.into_iter().map(f64::from).collect()))
        }
        DType::I32 => {
            let v: Vec<i32> = session.read_output(name).unwrap();
            (weft_ir::ty::DType::I32, Data::Int(v.into_iter().map(i64::from).collect()))
        }
        DType::I64 => {
            let v: Vec<i64> = session.read_output(name).unwrap();
            (weft_ir::ty::DType::I64, Data::Int(v))
        }
        DType::Bool => {
            let v: Vec<u8> = session.read_output(name).unwrap();
            (weft_ir::ty::DType::Bool, Data::Bool(v.into_iter().map(|b| b != 0).collect()))
        }
        other => panic!("{other} in a test"),
    };
    Tensor { dtype: of, dims: dims.to_vec(), data, scales: None }
}

/// What can run here, each with the graph that it runs.
pub fn machines(m: &Module, entry: &str) -> Vec<(&'static str, Arc<dyn Device>, Graph)> {
    vec![cpu(m, entry), ptx(m, entry)]
}

pub fn cpu(m: &Module, entry: &str) -> (&'static str, Arc<dyn Device>, Graph) {
    ("cpu", Arc::new(Cpu::new(2).unwrap()), graph(m, &[entry]))
}

pub fn ptx(m: &Module, entry: &str) -> (&'static str, Arc<dyn Device>, Graph) {
    ("ptx", Arc::new(Ptx::new()), ptx_graph(m, &[entry]))
}

/// Whether every machine and the interpreter agree on an entry, to `tolerance` of the norm of each
/// result.
pub fn check(m: &Module, name: &str, given: &[(&str, u64)], draw: Draw, tolerance: f64) {
    let f = m.find(name).expect("the entry");
    let sizes: Sizes =
        given.iter().map(|(n, size)| (m.find_sym(n).expect("a symbol"), *size)).collect();
    let args = arguments(m, f, &sizes, 1, draw);
    let expected = interpret(m, f, &args, &sizes);
    for (machine, device, graph) in machines(m, name) {
        let found = run(device, &graph, m, f, &args, &sizes);
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            let off = distance(a, b);
            let result = m.func(f).result_names.get(i).map_or("", String::as_str);
            assert!(
                off <= tolerance,
                "@{name} on {machine}, result {i} {result}: {off:e}\n{:?}\n{:?}\n{graph}",
                head(a),
                head(b)
            );
        }
    }
}

fn head(x: &Tensor) -> Vec<f64> {
    x.numbers().into_iter().take(16).collect()
}

/// `‖a - b‖ / ‖b‖`; equal infinities are at no distance, and have no length.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims, b.dims);
    let (a, b) = (a.numbers(), b.numbers());
    let square = |it: &mut dyn Iterator<Item = f64>| it.map(|x| x * x).sum::<f64>().sqrt();
    let norm = square(&mut b.iter().copied().filter(|x| !x.is_infinite()));
    let between = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { a - b };
    let off = square(&mut a.iter().zip(&b).map(between));
    if off == 0.0 { 0.0 } else { off / norm.max(1e-12) }
}
