//! Ranks whose values lie on devices of their own, on the interpreter of PTX and through a driver's
//! interface: collectives between devices leave the files that one rank alone leaves.

mod tiny;

use std::path::{Path, PathBuf};
use std::process::Command;

use tiny::TINY;

/// One micro-batch for each of two ranks, or both for one.
const BATCH: [&str; 2] = ["batch=2", "micro_batch=1"];

/// A folder with a libcuda that runs PTX on the interpreter.
fn driver(dir: &Path) -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a file");
    let built = tests.parent().expect("it is in a folder").join("libweft_test_driver.so");
    std::fs::copy(&built, dir.join("libcuda.so")).expect("cargo built the driver");
    dir.to_owned()
}

fn train(out: &Path, more: &[&str]) -> Command {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano.model");
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("train").arg(&model).args(["--steps", "2"]);
    for set in TINY.iter().chain(&BATCH) {
        command.args(["--set", set]);
    }
    command.args(more).arg("--data").arg(&model).arg("--out").arg(out);
    command
}

fn refused(mut command: Command) -> String {
    let output = command.output().expect("weft runs");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn done(mut command: Command) {
    let output = command.output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A training of two steps on two GPUs of the tests' driver.
fn on_two_gpus(out: &Path, library: &Path, more: &[&str]) -> Command {
    let mut command = train(out, &[&["--device", "cuda", "--ranks", "2"], more].concat());
    command.env("LD_LIBRARY_PATH", library).env("DRIVER_GPUS", "2");
    command
}

#[test]
fn ranks_on_devices_write_what_one_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| dir.path().join(name);
    done(train(&folder("one"), &["--device", "ptx"]));
    let same = |name: &str| {
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read = |run: &str| std::fs::read(folder(run).join("step-000002").join(file));
            let [a, b] = ["one", name].map(|run| read(run).expect("a checkpoint was written"));
            assert!(a == b, "{name}: {file} differs");
        }
    };
    let experts = ["--mesh", "data=2,experts=2"];
    let on_ptx = [&["--device", "ptx", "--ranks", "2"], &experts[..]].concat();
    done(train(&folder("experts"), &on_ptx));
    same("experts");
    let library = driver(dir.path());
    done(on_two_gpus(&folder("zero"), &library, &["--zero", "1"]));
    same("zero");

    // NCCL of the tests' own, between the GPUs of their driver: one library has both.
    let nccl = ["--transport", "nccl"];
    let why = refused(on_two_gpus(&folder("no"), &library, &nccl));
    assert!(why.contains("--transport nccl: there is no libnccl.so on this machine"), "{why}");
    std::os::unix::fs::symlink("libcuda.so", library.join("libnccl.so")).expect("a link");
    let more = [&nccl[..], &experts, &["--zero", "1"]].concat();
    done(on_two_gpus(&folder("nccl"), &library, &more));
    same("nccl");
}

#[test]
fn nccl_is_between_gpus() {
    let dir = tempfile::tempdir().expect("a folder");
    let refuse = |command: Command, expected: &str| {
        let why = refused(command);
        assert!(why.contains(expected), "{why}");
    };
    let nccl = ["--transport", "nccl", "--ranks", "2"];
    refuse(train(dir.path(), &nccl), "--transport nccl: it is between GPUs: give --device cuda");
    let mut one = on_two_gpus(dir.path(), &driver(dir.path()), &nccl[..2]);
    one.env("DRIVER_GPUS", "1");
    refuse(one, "--transport nccl: 2 ranks need a GPU each, and 1 fit here");
}

#[test]
fn ranks_on_gpus_go_on_with_texts_as_one_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let library = driver(dir.path());
    std::os::unix::fs::symlink("libcuda.so", library.join("libnccl.so")).expect("a link");
    let generate = |more: &[&str]| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg("generate").arg(root.join("models/deepseek_v3.model"));
        command.arg("--checkpoint").arg(root.join("tests/golden/v3-grouped"));
        command.args(["--token-ids", "5,6,7", "--token-ids", "9,4", "--token-ids", "1"]);
        command.args(["--greedy", "--max-new", "3", "--context", "16", "--device", "cuda"]);
        command.env("LD_LIBRARY_PATH", &library).env("DRIVER_GPUS", "2").args(more);
        command
    };
    let told = |more: &[&str]| {
        let output = generate(more).output().expect("weft runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let one = told(&[]);
    assert_eq!(one.lines().count(), 3, "{one}");
    assert_eq!(told(&["--ranks", "2", "--transport", "nccl"]), one);
    let alone = refused(generate(&["--transport", "nccl"]));
    assert!(alone.contains("--transport nccl: it is between ranks: give --ranks"), "{alone}");
}

/// Where there are GPUs and NCCL, not the tests' own.
#[test]
fn nccl_on_gpus_writes_what_the_host_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut devices = Command::new(env!("CARGO_BIN_EXE_weft"));
    let found = devices.args(["devices", "--json"]).output().expect("weft runs").stdout;
    let found: serde_json::Value = serde_json::from_slice(&found).expect("JSON");
    let n_gpus = found["cuda"]["gpus"].as_array().map_or(0, Vec::len);
    if n_gpus < 2 {
        println!("skipped: NCCL between GPUs (there are {n_gpus} here)");
        return;
    }
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        done(train(&out, &[&["--device", "cuda", "--ranks", "2"], more].concat()));
        std::fs::read(out.join("step-000002/model.safetensors")).expect("a checkpoint")
    };
    assert!(run("host", &[]) == run("nccl", &["--transport", "nccl"]));
}
