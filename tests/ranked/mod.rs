//! Training of the tiny `nano` in eight micro-batches: several ranks are held against one.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::tiny::TINY;

const BATCH: &[&str] = &["batch=8", "micro_batch=1", "checkpoint_every=50"];

pub fn train(out: &Path, steps: u64, more: &[&str]) -> Command {
    train_with(&[], out, steps, more)
}

/// As `train`, with other dims: `wide` replaces those of the same names.
pub fn train_with(wide: &[&str], out: &Path, steps: u64, more: &[&str]) -> Command {
    let name = |set: &&&str| set.split('=').next().unwrap_or("").to_owned();
    let replaced: Vec<String> = wide.iter().map(|set| name(&set)).collect();
    let own = TINY.iter().filter(|set| !replaced.contains(&name(set)));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("train").arg(root.join("models/nano.model"));
    for set in own.chain(wide).chain(BATCH) {
        command.args(["--set", set]);
    }
    command.arg("--data").arg(root.join("models")).arg("--out").arg(out);
    command.args(["--steps", &steps.to_string()]).args(more);
    command
}

pub fn done(mut command: Command) -> Output {
    let output = command.output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn refused(mut command: Command) -> String {
    let output = command.output().expect("weft runs");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Metrics, weights, moments and where the data stands, byte for byte.
pub fn assert_same(a: &Path, b: &Path, step: &str) {
    let files = ["model.safetensors", "optimizer.safetensors", "state.json"];
    let files = files.map(|f| format!("{step}/{f}"));
    for name in files.iter().map(String::as_str).chain(["metrics.jsonl"]) {
        let read = |run: &Path| fs::read(run.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(read(a) == read(b), "{name} of {} and {} differ", a.display(), b.display());
    }
}
