//! Kernels for GPUs through the command line, on the interpreter of PTX: training and generation
//! give the CPU's numbers.

use std::path::Path;
use std::process::{Command, Output};

use weft_runtime::train::metrics;

/// `nano` with every part and few of each.
const TINY: &[&str] = &[
    "hidden=32",
    "depth=2",
    "heads=2",
    "q_rank=16",
    "kv_rank=16",
    "nope=8",
    "rope=4",
    "value=8",
    "inner=48",
    "expert_inner=16",
    "n_experts=4",
    "groups=2",
    "kept_groups=1",
];

/// The machines' order of summation differs; over a few steps a loss moves by its last digits.
const LOSS_BOUND: f64 = 1e-5;

fn weft(subcommand: &str, model: &Path, device: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg(subcommand).arg(model).args(["--device", device]).args(more);
    command
}

fn done(mut command: Command) -> Output {
    let output = command.output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn nano_trains_and_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("models/nano.model");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let run = |device: &str| {
        let out = dir.path().join(device);
        let mut train = weft("train", &model, device, &sets);
        train.args(["--set", "sequence=16", "--set", "batch=2", "--steps", "5"]);
        train.arg("--data").arg(root.join("models/nano.model")).arg("--out").arg(&out);
        done(train);
        out
    };
    let (cpu, ptx) = (run("cpu"), run("ptx"));
    let losses = |out: &Path| {
        let rows = metrics::read(&out.join("metrics.jsonl")).expect("metrics were written");
        let loss = |row: &metrics::Record| row.number("total").expect("a step has a loss");
        rows.iter().map(loss).collect::<Vec<f64>>()
    };
    let (expected, found) = (losses(&cpu), losses(&ptx));
    assert_eq!((expected.len(), found.len()), (5, 5));
    for (step, (a, b)) in expected.iter().zip(&found).enumerate() {
        assert!((a - b).abs() <= LOSS_BOUND * a, "step {}: {b} on ptx, {a} on cpu", step + 1);
    }
    let ids = |device: &str| {
        let mut generate = weft("generate", &model, device, &sets);
        generate.args(["--token-ids", "5,6,7", "--max-new", "6", "--greedy", "--context", "16"]);
        generate.arg("--checkpoint").arg(&ptx);
        String::from_utf8_lossy(&done(generate).stdout).into_owned()
    };
    assert_eq!(ids("ptx"), ids("cpu"));
}

/// A graph for GPUs is a file like any other; a CPU says that it cannot run it.
#[test]
fn graphs_hold_ptx() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("models/nano.model");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let file = dir.path().join("nano.weft");
    let mut compile = weft("compile", &model, "cuda", &sets);
    compile.args(["--for", "decode", "--sequence", "16", "-o"]).arg(&file);
    compile.arg("--dump").arg(dir.path().join("dump"));
    done(compile);
    let graph = weft_graph::Graph::open(&file).expect("weft wrote it");
    assert!(graph.kernels.iter().all(|k| k.ptx.is_some() && k.variants.is_empty()));
    let text = String::from_utf8_lossy(&graph.objects[0]).into_owned();
    assert!(text.contains(".target sm_90a"), "{text}");
    let kernels = std::fs::read_dir(dir.path().join("dump/kernels")).expect("a dump has kernels");
    let ptx = kernels
        .filter(|f| f.as_ref().is_ok_and(|f| f.path().extension().is_some_and(|e| e == "ptx")));
    assert!(ptx.count() > 10);
}
