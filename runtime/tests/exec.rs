//! Sessions over real kernels: numbers, dims, loops, shared state, errors.

mod kernels;

use kernels::{COLUMNS, LAYERS};
use std::sync::Arc;
use weft_graph::*;
use weft_runtime::device::Cpu;
use weft_runtime::exec::{ExecError, Program, Session, Store};

fn load(graph: Graph, threads: usize) -> (Arc<Program>, Arc<Store>) {
    let program = Program::load(graph, Arc::new(Cpu::new(threads).unwrap())).unwrap();
    let store = Store::new(Arc::clone(program.device()));
    (program, store)
}

fn inputs(batch: i64) -> Vec<f32> {
    (0..batch * COLUMNS).map(|i| 1.0 + (i % 37) as f32 / 8.0).collect()
}

fn weights() -> Vec<f32> {
    (0..LAYERS * COLUMNS).map(|i| 0.5 + (i % 11) as f32 / 16.0).collect()
}

fn expected(x: &[f32], weights: &[f32], reverse: bool) -> Vec<f32> {
    let columns = COLUMNS as usize;
    let mut h = x.to_vec();
    for turn in 0..LAYERS as usize {
        let layer = if reverse { LAYERS as usize - 1 - turn } else { turn };
        for (i, value) in h.iter_mut().enumerate() {
            *value *= 2.0 * weights[layer * columns + i % columns];
        }
    }
    h.chunks(columns).flat_map(|row| row.iter().rev().copied()).collect()
}

fn check(batch: i64, threads: usize, reverse: bool) {
    let (program, store) = load(kernels::graph(vec![kernels::layers("eval", reverse)]), threads);
    let mut session = Session::new(&program, "eval", &store).unwrap();
    store.write("w", &weights()).unwrap();
    session.set_dim("B", batch).unwrap();
    session.write_input("x", &inputs(batch)).unwrap();
    session.run().unwrap();
    let y = session.read_output::<f32>("y").unwrap();
    assert_eq!(y, expected(&inputs(batch), &weights(), reverse));
}

#[test]
fn loops_slices_and_scratch_give_the_right_numbers() {
    for batch in [0, 1, 5, 64] {
        for threads in [1, 2, 5] {
            check(batch, threads, false);
            check(batch, threads, true);
        }
    }
}

#[test]
fn dims_change_between_runs() {
    let (program, store) = load(kernels::graph(vec![kernels::layers("eval", false)]), 2);
    let mut session = Session::new(&program, "eval", &store).unwrap();
    store.write("w", &weights()).unwrap();
    for batch in [3, 64, 1, 2] {
        session.set_dim("B", batch).unwrap();
        assert_eq!(session.shape_of("y").unwrap(), [batch as usize, 16]);
        session.write_input("x", &inputs(batch)).unwrap();
        session.run().unwrap();
        let y = session.read_output::<f32>("y").unwrap();
        assert_eq!(y, expected(&inputs(batch), &weights(), false));
    }
}

#[test]
fn entries_share_weights_and_states() {
    let entries = vec![kernels::layers("train", false), kernels::layers("eval", true)];
    let (program, store) = load(kernels::graph(entries), 2);
    let mut train = Session::new(&program, "train", &store).unwrap();
    let mut eval = Session::new(&program, "eval", &store).unwrap();
    train.run().unwrap();
    eval.run().unwrap();
    train.run().unwrap();
    assert_eq!(store.read::<i64>("runs").unwrap(), [3]);
    assert_eq!(eval.read_output::<i64>("runs.next").unwrap(), [3]);
    store.write("runs", &[40i64]).unwrap();
    eval.run().unwrap();
    assert_eq!(train.read_output::<i64>("runs").unwrap(), [41]);
}

#[test]
fn a_session_reads_what_another_wrote_into_bound_memory() {
    let entries = vec![kernels::layers("first", false), kernels::layers("second", false)];
    let (program, store) = load(kernels::graph(entries), 2);
    let mut first = Session::new(&program, "first", &store).unwrap();
    let mut second = Session::new(&program, "second", &store).unwrap();
    store.write("w", &weights()).unwrap();
    second.bind("x", first.memory("y").unwrap()).unwrap();
    first.write_input("x", &inputs(64)).unwrap();
    first.run().unwrap();
    second.run().unwrap();
    let between = expected(&inputs(64), &weights(), false);
    assert_eq!(second.read_output::<f32>("y").unwrap(), expected(&between, &weights(), false));
}

#[test]
fn the_store_says_how_weights_are_stored() {
    let (program, store) = load(kernels::graph(vec![kernels::layers("eval", false)]), 1);
    let _session = Session::new(&program, "eval", &store).unwrap();
    let (name, kept) = &store.list()[0];
    let stored: Vec<_> =
        kept.weight.as_ref().unwrap().stored_names(&kept.dims).map(|(name, _)| name).collect();
    assert_eq!((name.as_str(), stored.join(" ")), ("w", "layers.0.w layers.1.w layers.2.w".into()));
    let mut row = [0u8; 4];
    store.write_bytes("w", 4, &7f32.to_le_bytes()).unwrap();
    store.read_bytes("w", 4, &mut row).unwrap();
    assert_eq!((f32::from_le_bytes(row), store.read::<f32>("w").unwrap()[1]), (7.0, 7.0));
}

#[test]
fn a_profile_has_a_row_per_step() {
    let (program, store) = load(kernels::graph(vec![kernels::layers("eval", false)]), 2);
    let mut session = Session::new(&program, "eval", &store).unwrap();
    session.start_profile();
    session.run().unwrap();
    session.run().unwrap();
    let profile = session.take_profile().unwrap();
    let rows: Vec<_> = profile
        .rows
        .iter()
        .map(|row| (row.label.as_str(), row.kernel.as_str(), row.count))
        .collect();
    assert_eq!(
        rows,
        [
            ("h", "copy", 2),
            ("layers.scale", "f32_scale", 6),
            ("turn", "f32_reverse", 2),
            ("count", "i64_add", 2)
        ]
    );
    assert_eq!(profile.rows[1].flops, (6 * 64 * 2 * COLUMNS) as f64);
    assert_eq!(profile.by_kernel().time(), profile.time());
    assert!(profile.to_string().contains("f32_scale  layers.scale"), "{profile}");
}

#[test]
fn constants_are_read() {
    let mut entry = kernels::layers("eval", false);
    entry.buffers.push(Buffer::new(
        "table",
        DType::F32,
        vec![COLUMNS.into()],
        Role::Constant(ConstantId(0)),
    ));
    entry.steps = vec![Step::Launch(Launch {
        scalars: vec![Scalar::Dim(COLUMNS.into())],
        ..Launch::new(
            kernels::REVERSE,
            vec![Arg::whole(BufferId(6)), Arg::whole(BufferId(3))],
            1.into(),
            "constant",
        )
    })];
    let mut graph = kernels::graph(Vec::new());
    graph.entries.push(entry);
    graph.constants = vec![(0..COLUMNS).flat_map(|i| (i as f32).to_le_bytes()).collect()];
    graph.verify().unwrap();
    let (program, store) = load(graph, 1);
    let mut session = Session::new(&program, "eval", &store).unwrap();
    session.set_dim("B", 1).unwrap();
    session.run().unwrap();
    let y = session.read_output::<f32>("y").unwrap();
    assert!(y.iter().copied().eq((0..COLUMNS).rev().map(|i| i as f32)));
}

#[test]
fn loop_indices_arrive_as_scalars() {
    let mut entry = kernels::layers("eval", false);
    let add = Launch {
        scalars: vec![Scalar::LoopIndex(1)],
        ..Launch::new(kernels::ADD, vec![Arg::whole(BufferId(4))], 1.into(), "count")
    };
    let inner = Loop {
        order: Order::default(),
        count: 5.into(),
        reverse: false,
        left: None,
        body: vec![Step::Launch(add)],
        label: "inner".into(),
    };
    entry.steps = vec![Step::Loop(Loop {
        order: Order::default(),
        count: DimExpr::dim(kernels::BATCH),
        reverse: true,
        left: None,
        body: vec![Step::Loop(inner)],
        label: "outer".into(),
    })];
    let (program, store) = load(kernels::graph(vec![entry]), 2);
    let mut session = Session::new(&program, "eval", &store).unwrap();
    session.set_dim("B", 4).unwrap();
    session.run().unwrap();
    assert_eq!(store.read::<i64>("runs").unwrap(), [4 * (1 + 2 + 3 + 4)]);
}

#[test]
fn a_wrong_graph_is_not_loaded() {
    let mut graph = kernels::graph(Vec::new());
    graph.kernels[0].variants[0].object = ObjectId(9);
    let error = error_of(Program::load(graph, Arc::new(Cpu::new(1).unwrap())));
    assert_eq!(error, "the graph is wrong: kernel f32_scale: names object 9 of 1");
}

fn error_of(result: Result<impl Sized, ExecError>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn wrong_use_is_an_error() {
    let (program, store) = load(kernels::graph(vec![kernels::layers("eval", false)]), 1);
    let none = Session::new(&program, "train", &store);
    assert_eq!(error_of(none), "the graph has no entry train; it has eval");
    let mut session = Session::new(&program, "eval", &store).unwrap();
    assert_eq!(error_of(session.set_dim("S", 1)), "entry eval has no dim S");
    assert_eq!(error_of(session.set_dim("B", 65)), "B = 65 is outside 0..=64");
    assert_eq!(error_of(session.write_input("x", &[0f32; 3])), "x has 1024 elements, not 3");
    assert_eq!(error_of(session.write_input("x", &[0i64; 1024])), "x is f32, not i64");
    assert_eq!(error_of(session.read_output::<f32>("z")), "entry eval has no buffer z");
    assert_eq!(
        error_of(session.read_output::<f32>("h")),
        "h is a temp, not an input, output, weight or state"
    );
    assert_eq!(error_of(store.read::<f32>("m")), "the store has no buffer m");
}

/// Right at the bounds, which the verifier asks about, and wrong below them.
#[test]
fn an_argument_outside_its_buffer_is_an_error_at_the_dims_of_the_run() {
    let mut entry = kernels::layers("eval", false);
    let Step::Launch(turn) = &mut entry.steps[2] else { unreachable!() };
    turn.args[0].byte_offset = DimExpr::constant(4000) - DimExpr::dim(kernels::BATCH);
    let (program, store) = load(kernels::graph(vec![entry]), 1);
    let mut session = Session::new(&program, "eval", &store).unwrap();
    session.set_dim("B", 8).unwrap();
    assert_eq!(error_of(session.run()), "step turn: bytes 3992..3992 of h, which has 512");
}

#[test]
fn a_store_keeps_one_shape_per_name() {
    let (program, store) = load(kernels::graph(vec![kernels::layers("eval", false)]), 1);
    let _session = Session::new(&program, "eval", &store).unwrap();
    let mut other = kernels::layers("eval", false);
    other.buffers[1].dtype = DType::I32;
    let (other, _) = load(kernels::graph(vec![other]), 1);
    assert_eq!(error_of(Session::new(&other, "eval", &store)), "w is f32[3, 16], not i32[3, 16]");
}

#[test]
fn a_kernel_without_code_for_the_cpu_is_named() {
    let mut graph = kernels::graph(Vec::new());
    graph.kernels[3].variants[0].cpu = CpuVariant::Avx512Bf16;
    let cpu = Cpu::with_variant(1, CpuVariant::Avx2).unwrap();
    let error = error_of(Program::load(graph, Arc::new(cpu)));
    assert_eq!(
        error,
        "kernel empty has no code for cpu avx2, 1 threads; \
         compile the model again with the --device that is to run it"
    );
}
