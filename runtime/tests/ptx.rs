//! The interpreter of PTX as a device: numbers, and what a wrong kernel is told.

use std::sync::Arc;

use weft_graph::*;
use weft_runtime::device::{Device, Ptx};
use weft_runtime::exec::{Program, Session, Store};

/// Every thread of 64 writes its place in the grid, `racing` all into one word.
fn module(racing: bool) -> String {
    let place = if racing { "mov.u64 %d2, %d1;" } else { "mad.wide.u32 %d2, %r4, 4, %d1;" };
    format!(
        ".version 8.3
.target sm_90a
.address_size 64
.visible .entry places(.param .u64 out, .param .u64 by)
.reqntid 64
{{
    .reg .b32 %r<7>;
    .reg .b64 %d<4>;
    ld.param.b64 %d1, [out];
    ld.param.b64 %d3, [by];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    cvt.u32.u64 %r5, %d3;
    mul.lo.s32 %r6, %r4, %r5;
    {place}
    st.global.b32 [%d2], %r6;
    ret;
}}
"
    )
}

/// Two launches that write the same words, the second on another stream; they say what they write,
/// or nothing of it.
fn on_two_streams(says: bool) -> Graph {
    let mut graph = graph(module(false));
    let entry = &mut graph.entries[0];
    let mut second = entry.steps[0].clone();
    second.order_mut().stream = 1;
    entry.steps.push(second);
    for step in &mut entry.steps {
        let Step::Launch(launch) = step else { unreachable!() };
        launch.writes = Some(if says { vec![0] } else { vec![] });
    }
    let storage = order::Storage::placed(entry);
    entry.order(&storage);
    graph
}

fn run_on_two_streams(says: bool) -> Result<Vec<i32>, String> {
    let device: Arc<dyn Device> = Arc::new(Ptx::new());
    let program = Program::load(on_two_streams(says), Arc::clone(&device)).unwrap();
    let mut session = Session::new(&program, "toy", &Store::new(device)).unwrap();
    // Turn by turn: what is done at the end is known when the next begins.
    for _ in 0..2 {
        session.run().map_err(|e| e.to_string())?;
    }
    Ok(session.read_output::<i32>("out").unwrap())
}

#[test]
fn streams_are_ordered_by_events() {
    let expected: Vec<i32> = (0..128).map(|i| 3 * i).collect();
    assert_eq!(run_on_two_streams(true).unwrap(), expected);
}

/// Where a step writes what it does not say, no event orders it, and the launch tells.
#[test]
fn a_missing_wait_is_told() {
    let why = run_on_two_streams(false).unwrap_err();
    assert!(why.starts_with("step toy.places (toy.model:7:1): kernel places: "), "{why}");
    let of = "places on stream 1 overwrites";
    assert!(why.contains(of) && why.contains("which places on stream 0 wrote"), "{why}");
}

fn graph(text: String) -> Graph {
    let out = Buffer::new("out", DType::I32, vec![128.into()], Role::Output);
    let launch = Launch {
        scalars: vec![Scalar::Dim(3.into())],
        source: vec!["toy.model:7:1".into()],
        ..Launch::new(KernelId(0), vec![Arg::whole(BufferId(0))], 2.into(), "toy.places")
    };
    let entry = Entry {
        name: "toy".into(),
        buffers: vec![out],
        steps: vec![Step::Launch(launch)],
        ..Entry::default()
    };
    let code = PtxCode {
        object: ObjectId(0),
        threads: 64,
        dynamic_shared_bytes: 0,
        cluster: None,
        begins_early: false,
        hopper14: false,
        maps: vec![],
    };
    Graph {
        entries: vec![entry],
        kernels: vec![Kernel {
            name: "places".into(),
            scratch_bytes: 0,
            variants: vec![],
            ptx: Some(code),
        }],
        objects: vec![text.into_bytes()],
        ..Graph::default()
    }
}

fn session(text: String) -> Session {
    let device: Arc<dyn Device> = Arc::new(Ptx::new());
    let program = Program::load(graph(text), Arc::clone(&device)).unwrap();
    Session::new(&program, "toy", &Store::new(device)).unwrap()
}

#[test]
fn launches_compute() {
    let mut session = session(module(false));
    session.run().unwrap();
    let expected: Vec<i32> = (0..128).map(|i| 3 * i).collect();
    assert_eq!(session.read_output::<i32>("out").unwrap(), expected);
}

/// The step, its place in the model, the kernel and the line of its PTX.
#[test]
fn a_race_is_told_with_its_place() {
    let error = session(module(true)).run().unwrap_err().to_string();
    let line = 1 + module(true).lines().position(|l| l.contains("st.global")).unwrap();
    let start = format!("step toy.places (toy.model:7:1): kernel places: ptx line {line}: ");
    assert!(error.starts_with(&start), "{error}");
}

/// A kernel that asks for clusters gets them, and a grid that they do not divide is refused.
#[test]
fn clusters_are_the_kernels_to_ask_for() {
    let text = module(false).replace("mov.u32 %r1, %ctaid.x;", "mov.u32 %r1, %cluster_ctarank;");
    let run = |cluster: u32| {
        let mut graph = graph(text.clone());
        graph.kernels[0].ptx.as_mut().unwrap().cluster = Some(cluster);
        let device: Arc<dyn Device> = Arc::new(Ptx::new());
        let program = Program::load(graph, Arc::clone(&device)).unwrap();
        let mut session = Session::new(&program, "toy", &Store::new(device)).unwrap();
        session.run().map_err(|e| e.to_string())?;
        Ok::<_, String>(session.read_output::<i32>("out").unwrap())
    };
    assert_eq!(run(2).unwrap(), (0..128).map(|i| 3 * i).collect::<Vec<i32>>());
    // Alone, both CTAs are the first of their cluster, and write the same words.
    assert!(run(1).unwrap_err().contains("ptx line"));
    assert!(run(4).unwrap_err().contains("in clusters of [4, 1, 1]"));
}

#[test]
fn what_is_no_ptx_is_refused_with_the_kernel() {
    let device: Arc<dyn Device> = Arc::new(Ptx::new());
    let text = module(false).replace("mul.lo.s32", "mul.hex.s32");
    let error = Program::load(graph(text), device).unwrap_err().to_string();
    assert!(error.starts_with("kernel places: ptx line ") && error.contains("hex"), "{error}");
}

#[test]
fn a_graph_for_cpus_is_refused() {
    let mut cpu = graph(module(false));
    cpu.kernels[0].ptx = None;
    cpu.kernels[0].variants.push(KernelVariant { cpu: CpuVariant::Avx2, object: ObjectId(0) });
    let error = Program::load(cpu, Arc::new(Ptx::new())).unwrap_err().to_string();
    assert_eq!(
        error,
        "kernel places has no code for the ptx interpreter; \
         compile the model again with the --device that is to run it"
    );
}
