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

fn done(mut command: Command) {
    let output = command.output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
    let experts = ["--device", "ptx", "--ranks", "2", "--mesh", "data=2,experts=2"];
    done(train(&folder("experts"), &experts));
    same("experts");
    let mut zero = train(&folder("zero"), &["--device", "cuda", "--ranks", "2", "--zero", "1"]);
    zero.env("LD_LIBRARY_PATH", driver(dir.path())).env("DRIVER_GPUS", "2");
    done(zero);
    same("zero");
}
