//! Ranks under `mpirun`: the files of one rank, and an end to every failure. Needs the feature
//! `mpi`.
#![cfg(feature = "mpi")]

mod tiny;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tiny::TINY;

/// Four micro-batches.
const BATCH: &[&str] = &["batch=4", "micro_batch=1"];

/// `weft`, by `n` processes if there is more than one.
fn weft(n: usize) -> Command {
    let weft = env!("CARGO_BIN_EXE_weft");
    match n {
        1 => Command::new(weft),
        n => {
            let mut command = Command::new("mpirun");
            command.args(["--allow-run-as-root", "--oversubscribe", "-n", &n.to_string(), weft]);
            command
        }
    }
}

/// `weft train`, by `n` processes if there is more than one.
fn train(n: usize, out: &Path, more: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = weft(n);
    command.arg("train").arg(root.join("models/nano.model"));
    for set in TINY.iter().chain(BATCH) {
        command.args(["--set", set]);
    }
    command.arg("--data").arg(root.join("models")).arg("--out").arg(out);
    command.args(["--steps", "10"]).args(more);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(mut command: Command) -> Output {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

#[test]
fn processes_write_what_one_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let one = dir.path().join("one");
    done(train(1, &one, &[]));
    let experts = ["--mesh", "data=4,experts=2"];
    let pipeline = ["--mesh", "pipeline=2", "--schedule", "dualpipe"];
    let all = ["--mesh", "pipeline=2,data=2,experts=2", "--zero", "1"];
    for (n, more) in [(2, &[][..]), (4, &[]), (4, &experts), (2, &pipeline), (4, &all)] {
        let several = dir.path().join(format!("{n}{}", more.join("-")));
        let said = text(&done(train(n, &several, more)).stdout);
        assert_eq!(said.matches("checkpoint:").count(), 1, "the first alone reports: {said}");
        for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
            let read = |run: &Path| fs::read(run.join("step-000010").join(name)).expect(name);
            assert!(read(&one) == read(&several), "{name} of {n} processes {more:?} differs");
        }
        assert!(
            fs::read(one.join("metrics.jsonl")).ok()
                == fs::read(several.join("metrics.jsonl")).ok()
        );
        assert!(!several.join("ranks").exists(), "a run that finished leaves no last actions");
    }
}

#[test]
fn processes_that_divide_products_write_what_threads_write() {
    let dir = tempfile::tempdir().expect("a folder");
    let dualpipe = ["--schedule", "dualpipe"];
    for (divided, n, mesh, more) in [
        ("tensor=2", 2, "tensor=2", &[][..]),
        ("tensor=2", 4, "pipeline=2,tensor=2", &dualpipe),
        ("tensor=2,sequence=2", 4, "pipeline=2,tensor=2,sequence=2", &[]),
    ] {
        let (threads, processes) =
            (dir.path().join(divided), dir.path().join("by ".to_owned() + mesh));
        if !threads.exists() {
            done(train(1, &threads, &["--ranks", "2", "--mesh", divided]));
        }
        done(train(n, &processes, &[&["--mesh", mesh], more].concat()));
        for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
            let read = |run: &Path| fs::read(run.join("step-000010").join(name)).expect(name);
            assert!(read(&threads) == read(&processes), "{name} of {mesh} differs");
        }
    }
}

#[test]
fn failures_end_the_run_and_name_op_and_peer() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = ["--mesh", "data=2"];
    // The first waits for what comes back of its activations, the second for the next of them.
    let pipeline = ["--mesh", "pipeline=2"];
    let silent = "of stage 1, with rank 0, which has been silent for 2.0 s";
    for (mesh, fault, told, after) in [
        (data, "hang:1:20", "rank 1, which has been silent for 2.0 s", "waits for rank 1"),
        (data, "panic:0:20", "with rank 0, which has ended: it panicked", "waits for rank 0"),
        (data, "lose:1:20", "with rank 1, which has ended: it has lost its transport", "rank 1"),
        (data, "abort:1:20", "", "rank 1, step 1: all_reduce grad."),
        (pipeline, "hang:0:12", silent, "rank 1, step 1: recv "),
        (pipeline, "abort:0:12", "", "of stage 1, waits for rank 0"),
    ] {
        let out = dir.path().join(format!("{}-{fault}", mesh[1]).replace(':', "-"));
        let start = Instant::now();
        let mut command = train(2, &out, &[&mesh[..], &["--rank-timeout", "2"]].concat());
        let output = command.env("WEFT_TEST_FAULT", fault).output().expect("mpirun runs");
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{fault}: {said}");
        assert!(start.elapsed() < Duration::from_secs(60), "{fault}: {:?}", start.elapsed());
        assert!(said.contains(told), "{fault}: {said}");
        let again = text(&done(train(1, &out, &[])).stderr);
        assert!(again.contains("broke off; what its ranks did last:"), "{fault}: {again}");
        assert!(again.contains(after) && again.contains("of stage "), "{fault}: {again}");
    }
}

#[test]
fn another_number_of_ranks_than_processes_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = train(2, &dir.path().join("run"), &["--ranks", "4"]).output().expect("mpirun runs");
    let said = text(&out.stderr);
    assert!(said.contains("mpirun started 2 processes, and --ranks is 4"), "{said}");
}

/// `weft generate` with the experts of a reference case, for more texts than two ranks take at a
/// time.
fn generate(n: usize, more: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = weft(n);
    command.arg("generate").arg(root.join("models/deepseek_v3.model"));
    command.arg("--checkpoint").arg(root.join("tests/golden/v3-grouped"));
    for ids in ["5,6,7,8,9", "1,2,3", "9,4", "11", "3,2,1,7"] {
        command.args(["--token-ids", ids]);
    }
    command.args(["--greedy", "--max-new", "8", "--context", "32"]).args(more);
    command
}

#[test]
fn processes_go_on_with_texts_as_threads_and_one_do() {
    let one = text(&done(generate(1, &[])).stdout);
    assert_eq!(one.lines().count(), 5);
    assert_eq!(text(&done(generate(1, &["--ranks", "4"])).stdout), one);
    for (n, more) in [(2, &[][..]), (4, &["--mesh", "experts=4"]), (4, &["--ranks", "4"])] {
        let done = done(generate(n, more));
        assert_eq!(text(&done.stdout), one, "{n} processes {more:?}");
        let told = text(&done.stderr).matches("tokens/s, then").count();
        assert_eq!(told, 5, "the first alone reports: {}", text(&done.stderr));
    }
}

#[test]
fn a_process_that_ends_while_texts_go_on_is_named() {
    for (fault, told) in [
        ("hang:1:9", "with rank 1, which has been silent for 2.0 s"),
        ("panic:0:9", "with rank 0, which has ended: it panicked"),
        ("abort:1:9", ""),
    ] {
        let start = Instant::now();
        let mut command = generate(2, &["--rank-timeout", "2"]);
        let output = command.env("WEFT_TEST_FAULT", fault).output().expect("mpirun runs");
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{fault}: {said}");
        assert!(start.elapsed() < Duration::from_secs(60), "{fault}: {:?}", start.elapsed());
        assert!(said.contains(told), "{fault}: {said}");
        assert_eq!(text(&output.stdout), "", "{fault}");
    }
}

#[test]
fn what_processes_cannot_go_on_with_is_refused() {
    let refused = |n, more: &[&str]| {
        let output = generate(n, more).output().expect("mpirun runs");
        assert!(!output.status.success(), "{}", text(&output.stdout));
        text(&output.stderr)
    };
    let other = refused(2, &["--ranks", "4"]);
    assert!(other.contains("mpirun started 2 processes, and --ranks is 4"), "{other}");
    let fewer = refused(2, &["--mesh", "experts=4"]);
    assert!(fewer.contains("has 4 ranks, and mpirun started 2 processes; start 4"), "{fewer}");
    let nccl = refused(2, &["--transport", "nccl"]);
    assert!(nccl.contains("--transport nccl: it is between GPUs: give --device cuda"), "{nccl}");
    let three = refused(3, &[]);
    assert!(three.contains("the nearest is experts = 2"), "{three}");
}
