//! Kernels for GPUs through the command line, on the interpreter of PTX: training and generation
//! give the CPU's numbers; the device `cuda` gives the interpreter's, on a driver of the tests'
//! own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use weft_graph::Step;
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

/// The losses of a few steps of training into `out`.
fn losses(device: &str, more: &[&str], out: &Path, library: Option<&Path>) -> Vec<f64> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = root.join("models/nano.model");
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let mut train = weft("train", &model, device, &sets);
    train.args(["--set", "sequence=16", "--set", "batch=2"]).args(more);
    train.arg("--data").arg(&model).arg("--out").arg(out);
    if let Some(folder) = library {
        train.env("LD_LIBRARY_PATH", folder);
    }
    done(train);
    recorded(out)
}

/// The losses that a run wrote.
fn recorded(out: &Path) -> Vec<f64> {
    let rows = metrics::read(&out.join("metrics.jsonl")).expect("metrics were written");
    let loss = |row: &metrics::Record| row.number("total").expect("a step has a loss");
    rows.iter().map(loss).collect()
}

/// What a checkpoint continues three tokens with.
fn continued(device: &str, checkpoint: &Path, library: Option<&Path>) -> String {
    continued_with(device, &[], checkpoint, library)
}

fn continued_with(
    device: &str,
    more: &[&str],
    checkpoint: &Path,
    library: Option<&Path>,
) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let mut generate = weft("generate", &root.join("models/nano.model"), device, &sets);
    generate.args(["--token-ids", "5,6,7", "--max-new", "6", "--greedy", "--context", "16"]);
    generate.args(more).arg("--checkpoint").arg(checkpoint);
    if let Some(folder) = library {
        generate.env("LD_LIBRARY_PATH", folder);
    }
    String::from_utf8_lossy(&done(generate).stdout).into_owned()
}

#[test]
fn nano_trains_and_generates() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (cpu, ptx) = (dir.path().join("cpu"), dir.path().join("ptx"));
    let five = ["--steps", "5"];
    let (expected, found) = (losses("cpu", &five, &cpu, None), losses("ptx", &five, &ptx, None));
    assert_eq!((expected.len(), found.len()), (5, 5));
    for (step, (a, b)) in expected.iter().zip(&found).enumerate() {
        assert!((a - b).abs() <= LOSS_BOUND * a, "step {}: {b} on ptx, {a} on cpu", step + 1);
    }
    let text = continued("ptx", &ptx, None);
    assert_eq!(text, continued("cpu", &ptx, None));

    // What is compiled here runs where there is nothing but `weft-run`.
    let weft = Path::new(env!("CARGO_BIN_EXE_weft"));
    let weft_run = weft.with_file_name("weft-run");
    if !weft_run.exists() {
        println!("skipped: weft-run is not built (cargo test --workspace builds it)");
        return;
    }
    let file = dir.path().join("nano.weft");
    let checkpoint = ptx.join("step-000005");
    let checkpoint = checkpoint.to_str().expect("a name");
    compiled(&["--for", "decode", "--sequence", "16", "--checkpoint", checkpoint], &file);
    let mut alone = Command::new(weft_run);
    alone.arg("generate").arg(&file).args(["--device", "ptx", "--checkpoint", checkpoint]);
    alone.args(["--token-ids", "5,6,7", "--max-new", "6", "--greedy"]);
    assert_eq!(String::from_utf8_lossy(&done(alone).stdout), text);
}

/// The names of the kernels of a graph compiled with `more`.
fn kernels(more: &[&str], file: &Path) -> Vec<String> {
    compiled(more, file).kernels.into_iter().map(|k| k.name).collect()
}

fn compiled(more: &[&str], file: &Path) -> weft_graph::Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let mut compile = weft("compile", &root.join("models/nano.model"), "cuda", &sets);
    compile.args(more).arg("-o").arg(file);
    done(compile);
    weft_graph::Graph::open(file).expect("weft wrote it")
}

fn kernels_of_attention(more: &[&str], file: &Path) -> Vec<String> {
    kernels(more, file).into_iter().filter(|name| name.contains("attention")).collect()
}

/// All products of codes are those of tensor cores, whichever way an operand lies, and train as the
/// CPU's do.
#[test]
fn products_of_codes_are_on_tensor_cores() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let of = ["--precision", "deepseek_fp8"];
    let sizes = ["--set", "sequence=16", "--set", "batch=2"];
    let names = kernels(&[&of[..], &sizes].concat(), &dir.path().join("nano.weft"));
    let codes: Vec<_> = names.iter().filter(|n| n.contains("e4m3") && n.contains("gemm")).collect();
    assert!(codes.iter().all(|name| name.starts_with("sm90a_")), "{codes:?}");
    // Forward, an input's gradient and a weight's, of one expert and of many.
    for made in ["s128_bf16", "rows", "s1_f32", "inner"] {
        assert!(codes.iter().any(|name| name.contains(made)), "{made}: {codes:?}");
    }
    for made in ["sm90_codes_turn", "sm90_codes_turn_single"] {
        assert!(names.iter().any(|name| name == made), "{made}: {names:?}");
    }

    let more = [&["--steps", "2"], &of[..]].concat();
    let (cpu, ptx) = (dir.path().join("cpu"), dir.path().join("ptx"));
    let (expected, found) = (losses("cpu", &more, &cpu, None), losses("ptx", &more, &ptx, None));
    assert_eq!((expected.len(), found.len()), (2, 2));
    for (a, b) in expected.iter().zip(&found) {
        assert!((a - b).abs() <= BF16_BOUND * a, "{b} on ptx, {a} on cpu");
    }
}

/// Sums in 14 bits are what tensor cores make of blocks and segments that end anywhere: the study
/// that has them trains as it does on the CPU, which imitates them.
#[test]
fn a_study_of_sums_in_14_bits_trains_on_tensor_cores() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano_studies.model");
    let sets = TINY.iter().chain(&["sequence=16", "batch=2"]);
    let sets: Vec<&str> = sets.flat_map(|set| ["--set", set]).collect();
    let [expected, found] = ["cpu", "ptx"].map(|device| {
        let out = dir.path().join(device);
        let mut train = weft("train", &model, device, &sets);
        train.args(["--precision", "hopper14", "--steps", "2"]);
        train.arg("--data").arg(&model).arg("--out").arg(&out);
        done(train);
        recorded(&out)
    });
    assert_eq!((expected.len(), found.len()), (2, 2));
    for (a, b) in expected.iter().zip(&found) {
        assert!((a - b).abs() <= BF16_BOUND * a, "{b} on ptx, {a} on cpu");
    }
}

/// Gate and up of experts, SiLU, and codes with their scales are one kernel; so is a product that
/// a residual is added to.
#[test]
fn products_end_in_the_regions_that_read_them() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = dir.path().join("nano.weft");
    let mut compile = weft("compile", &root.join("models/nano.model"), "cuda", &[]);
    // Of fewer rows a pair's wide tiles would leave multiprocessors without work.
    compile.args(["--for", "prefill", "--sequence", "4096", "--precision", "deepseek_fp8", "-o"]);
    compile.arg(&file);
    done(compile);
    let graph = weft_graph::Graph::open(&file).expect("weft wrote it");
    let names: Vec<&str> = graph.kernels.iter().map(|k| k.name.as_str()).collect();
    for made in ["_rows_128x128_pair_convert_sigmoid_mul_encode_", "_128x64_convert_add_"] {
        assert!(names.iter().any(|name| name.contains(made)), "{made}: {names:?}");
    }
}

/// Of bf16, attention and its derivative are products of tensor cores in a whole model, and train
/// and decode as the CPU's do.
#[test]
fn attention_of_bf16_is_on_tensor_cores() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // Widths that TMA can copy.
    let of = ["--precision", "bf16", "--set", "rope=8"];
    let sizes = ["--set", "sequence=16", "--set", "batch=2"];
    let file = dir.path().join("nano.weft");
    let all = kernels(&[&of[..], &sizes].concat(), &file);
    assert!(all.iter().any(|name| name.contains("_pair_kept_convert_sigmoid_mul")), "{all:?}");
    let attends = |name: &String| name.contains("attention");
    let trained: Vec<String> = all.into_iter().filter(attends).collect();
    assert!(trained.iter().all(|name| name.starts_with("sm90a_")), "{trained:?}");
    for made in ["segments", "_dq", "_dkv_wpw"] {
        assert!(trained.iter().any(|n| n.ends_with(made)), "{made}: {trained:?}");
    }
    let decoding = ["--for", "decode", "--sequence", "16"];
    let decoded = kernels_of_attention(&[&of[..], &decoding].concat(), &file);
    assert!(decoded.iter().any(|n| n.contains("latent_attention_16_8")), "{decoded:?}");

    let more = [&["--steps", "2"], &of[..]].concat();
    let (cpu, ptx) = (dir.path().join("cpu"), dir.path().join("ptx"));
    let (expected, found) = (losses("cpu", &more, &cpu, None), losses("ptx", &more, &ptx, None));
    assert_eq!((expected.len(), found.len()), (2, 2));
    for (a, b) in expected.iter().zip(&found) {
        assert!((a - b).abs() <= BF16_BOUND * a, "{b} on ptx, {a} on cpu");
    }
    let next = |device: &str| continued_with(device, &of, &ptx, None);
    assert_eq!(next("ptx"), next("cpu"));
}

/// Half a unit of the last place of bf16.
const BF16_BOUND: f64 = 1.0 / 512.0;

/// A folder with a libcuda that runs PTX on the interpreter.
fn driver(dir: &Path) -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a file");
    let built = tests.parent().expect("it is in a folder").join("libweft_test_driver.so");
    std::fs::copy(&built, dir.join("libcuda.so")).expect("cargo built the driver");
    dir.to_owned()
}

/// Modules, memory, tensor maps, launches and recorded steps through the driver's interface: what
/// the interpreter gives without it, to the last bit.
#[test]
fn the_cuda_device_does_what_the_interpreter_does() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let library = driver(dir.path());
    let (ptx, cuda) = (dir.path().join("ptx"), dir.path().join("cuda"));
    let more = ["--steps", "2", "--precision", "bf16"];
    let expected = losses("ptx", &more, &ptx, None);
    let found = losses("cuda", &more, &cuda, Some(&library));
    assert_eq!(expected.len(), 2);
    assert_eq!(expected, found);
    assert_eq!(continued("cuda", &cuda, Some(&library)), continued("ptx", &ptx, None));
}

/// Narrow kernels run beside each other where nothing orders them, and the interpreter finds no two
/// that touch the same bytes; the numbers are those of one stream. So they are through the driver's
/// interface, where the streams are captured together.
#[test]
fn kernels_run_on_several_streams() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let library = driver(dir.path());
    let streams = ["--streams", "3"];
    let graph =
        compiled(&[&streams[..], &["--set", "sequence=16"]].concat(), &dir.path().join("n.weft"));
    let steps = &graph.entries[0].steps;
    assert_eq!(weft_graph::order::n_streams(steps), 4, "two beside the first, and transfers'");

    let folder = |name: &str| dir.path().join(name);
    let more = [&["--steps", "1", "--precision", "bf16"], &streams[..]].concat();
    let expected = losses("ptx", &more[..4], &folder("one"), None);
    assert_eq!(expected, losses("ptx", &more, &folder("ptx"), None));
    assert_eq!(expected, losses("cuda", &more, &folder("cuda"), Some(&library)));
    let next = |device: &str, library| continued_with(device, &streams, &folder("ptx"), library);
    assert_eq!(next("ptx", None), continued("ptx", &folder("ptx"), None));
    assert_eq!(next("cuda", Some(&library)), next("ptx", None));
}

/// The multiprocessors of persistent kernels' steps.
fn budgets(steps: &[Step]) -> Vec<u32> {
    let of = |step: &Step| match step {
        Step::Launch(launch) => launch.sms.into_iter().collect(),
        Step::Loop(repeat) => budgets(&repeat.body),
        Step::Copy(_) | Step::Collective(_) | Step::Message(_) => vec![],
    };
    steps.iter().flat_map(of).collect()
}

/// Where kernels are compiled for the GPU at hand, they take the multiprocessors that it has.
#[test]
fn a_gpus_multiprocessors_are_the_budget() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano.model");
    let sets: Vec<&str> = TINY.iter().flat_map(|set| ["--set", set]).collect();
    let mut train = weft("train", &model, "cuda", &sets);
    train.args(["--set", "depth=1", "--set", "sequence=16", "--set", "batch=2", "--steps", "1"]);
    train.args(["--set", "rope=8", "--precision", "bf16"]);
    train.arg("--data").arg(&model).arg("--out").arg(dir.path().join("run"));
    train.arg("--dump").arg(dir.path().join("dump"));
    train.env("LD_LIBRARY_PATH", driver(dir.path())).env("DRIVER_MULTIPROCESSORS", "24");
    done(train);
    let dump = std::fs::read_dir(dir.path().join("dump")).expect("a dump");
    let graphs = dump.map(|f| f.expect("an entry").path()).filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("graph-"))
    });
    let text: String = graphs.map(|path| std::fs::read_to_string(path).expect("text")).collect();
    assert!(text.contains(" on 24") && !text.contains(" on 132"), "{text}");
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
    compile.args(["--precision", "bf16", "--sm-budget", "20"]);
    compile.arg("--dump").arg(dir.path().join("dump"));
    done(compile);
    let graph = weft_graph::Graph::open(&file).expect("weft wrote it");
    let grids: Vec<u32> = graph.entries.iter().flat_map(|e| budgets(&e.steps)).collect();
    assert!(!grids.is_empty() && grids.iter().all(|most| *most == 20), "{grids:?}");
    assert!(graph.kernels.iter().all(|k| k.ptx.is_some() && k.variants.is_empty()));
    let text = String::from_utf8_lossy(&graph.objects[0]).into_owned();
    assert!(text.contains(".target sm_90a"), "{text}");
    let kernels = std::fs::read_dir(dir.path().join("dump/kernels")).expect("a dump has kernels");
    let ptx = kernels
        .filter(|f| f.as_ref().is_ok_and(|f| f.path().extension().is_some_and(|e| e == "ptx")));
    assert!(ptx.count() > 10);
}

/// Kernels are checked against the reference interpreter wherever PTX runs, and timed by a device's
/// own clock.
#[test]
fn kernels_are_checked_and_timed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bench = |device: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(["bench-gpu", "--device", device]).args(more);
        command.env("LD_LIBRARY_PATH", driver(dir.path()));
        let output = done(command);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let checked = bench("ptx", &[]);
    assert_eq!(checked.matches(": off by ").count(), 16, "{checked}");
    let file = dir.path().join("table.md");
    let small = ["--small", "--runs", "2", "--only", "attention", "-o"];
    let timed = bench("cuda", &[&small[..], &[file.to_str().expect("a name")]].concat());
    let written = std::fs::read_to_string(&file).expect("the table was written");
    for kernel in ["_dq`", "_dkv_wpw`", "latent_attention_64_8_causal_offset_split`", "combine"] {
        let line = written.lines().find(|line| line.contains(kernel));
        let line = line.unwrap_or_else(|| panic!("{kernel}: {written}"));
        assert!(timed.contains(line), "{timed}");
        let micros: f64 = line.split('|').nth(3).and_then(|t| t.trim().parse().ok()).expect("µs");
        assert!(micros > 0.0, "{line}");
    }
}

/// What the driver has assembled is found again; what is damaged is assembled again.
#[test]
fn assembled_modules_are_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let cache = dir.path().join("cache");
    let check = |assembles: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(["bench-gpu", "--check", "--only", "rotary"]).env("WEFT_CACHE", &cache);
        command.env("LD_LIBRARY_PATH", driver(dir.path()));
        if !assembles {
            command.env("DRIVER_ASSEMBLES_NOTHING", "1");
        }
        let output = command.output().expect("weft runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    let why = check(false).expect_err("nothing is kept yet");
    assert!(why.contains("the driver does not take its module"), "{why}");
    assert!(why.contains("nothing is assembled here"), "{why}");
    check(true).expect("it is assembled");
    check(false).expect("it is found");

    let modules = std::fs::read_dir(cache.join("modules")).expect("modules are kept");
    let files: Vec<PathBuf> = modules.map(|f| f.expect("an entry").path()).collect();
    assert!(!files.is_empty() && files.iter().all(|f| f.extension().is_some_and(|e| e == "cubin")));
    let whole = std::fs::read(&files[0]).expect("a file");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("it has bytes") ^= 4;
    std::fs::write(&files[0], &damaged).expect("it is ours");
    check(false).expect_err("what is damaged is not used");
    check(true).expect("it is assembled again");
    assert_eq!(std::fs::read(&files[0]).expect("a file"), whole);
}

/// Without a GPU the reason is the whole answer.
#[test]
fn nothing_is_timed_without_a_gpu() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("bench-gpu").env("LD_LIBRARY_PATH", dir.path());
    let output = command.output().expect("weft runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // On a machine with a GPU there is nothing to see here.
    if output.status.success() {
        println!("skipped: there is a GPU here");
        return;
    }
    assert!(said.contains("nothing was checked or timed"), "{said}");
}
