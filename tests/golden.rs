//! Published checkpoints give the numbers that Hugging Face's implementation gives: `weft eval` on
//! every reference case.
//!
//! Bounds are on ‖got − expected‖ / ‖expected‖ per tensor: 1e-5 for logits and losses, 1e-4 for
//! gradients; choices of experts are equal.

use std::path::{Path, PathBuf};
use std::process::Command;

use weft_runtime::checkpoint::tensor_file::TensorFile;

const LOGITS_BOUND: f64 = 1e-5;
const GRADIENT_BOUND: f64 = 1e-4;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Run `weft eval` on a case; returns the file it wrote.
fn eval(case: &str, model: &str, device: &str, grads: bool, dir: &Path) -> PathBuf {
    let folder = root().join("tests/golden").join(case);
    let out = dir.join(format!("{case}-{device}.safetensors"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("eval").arg(root().join("models").join(model));
    command.arg("--checkpoint").arg(&folder);
    command.arg("--tokens").arg(folder.join("expected.safetensors"));
    command.args(["--device", device, "-o"]).arg(&out);
    if grads {
        command.arg("--grads");
    }
    let run = command.output().expect("weft runs");
    assert!(run.status.success(), "{case}: {}", String::from_utf8_lossy(&run.stderr));
    out
}

fn distance(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 =
        got.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}

fn check(case: &str, model: &str, device: &str, grads: bool) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = eval(case, model, device, grads, dir.path());
    let got = TensorFile::open(&out).expect("weft wrote it");
    let path = root().join("tests/golden").join(case).join("expected.safetensors");
    let expected = TensorFile::open(&path).expect("the case is there");
    let mut compared = 0;
    for info in expected.tensors() {
        let name = info.name.as_str();
        if name == "tokens" || name == "greedy" || (name.starts_with("grad.") && !grads) {
            continue;
        }
        let shape = &got.info(name).unwrap_or_else(|| panic!("{case}: no `{name}`")).shape;
        assert_eq!(*shape, info.shape, "{case}: shape of `{name}`");
        if name.starts_with("router.") {
            let (a, b) = (got.read_i32(name), expected.read_i32(name));
            assert_eq!(a.expect("integers"), b.expect("integers"), "{case}: `{name}`");
        } else {
            let (a, b) = (got.read_f32(name, shape), expected.read_f32(name, shape));
            let d = distance(&a.expect("floats"), &b.expect("floats"));
            let bound = if name.starts_with("grad.") { GRADIENT_BOUND } else { LOGITS_BOUND };
            assert!(
                d <= bound,
                "{case} on {device}: `{name}` is off by {d:.2e}, bound {bound:.0e}"
            );
        }
        compared += 1;
    }
    assert!(compared >= 2, "{case}: nothing was compared");
}

/// On compiled kernels and on the interpreter.
fn both(case: &str, model: &str, grads: bool) {
    check(case, model, "interp", grads);
    check(case, model, "cpu", grads);
}

#[test]
fn v3_with_query_lora_groups_and_bias() {
    both("v3-grouped", "deepseek_v3.model", true);
}

/// The kernels for GPUs, on the interpreter of PTX.
#[test]
fn kernels_for_gpus() {
    check("v3-mtp", "deepseek_v3.model", "ptx", true);
    check("v3-grouped", "deepseek_v3.model", "ptx", true);
    check("v2-softmax", "deepseek_v2_lite.model", "ptx", true);
    check("llama", "llama.model", "ptx", true);
}

#[test]
fn v3_with_a_direct_query_projection() {
    both("v3-no-q-lora", "deepseek_v3.model", true);
}

#[test]
fn v3_with_yarn() {
    both("v3-yarn", "deepseek_v3.model", true);
}

#[test]
fn v3_with_a_prediction_module() {
    both("v3-mtp", "deepseek_v3.model", true);
}

#[test]
fn v3_with_two_prediction_modules() {
    both("v3-mtp2", "deepseek_v3.model", true);
}

#[test]
fn v3_stored_in_fp8_and_dequantized() {
    both("v3-fp8", "deepseek_v3.model", false);
}

#[test]
fn v2_with_softmax_scores() {
    both("v2-softmax", "deepseek_v2_lite.model", true);
}

#[test]
fn llama_with_grouped_queries() {
    both("llama", "llama.model", true);
}

/// A copy of a case whose `config.json` counts a prediction module that is not stored.
fn without_its_module(dir: &Path) -> PathBuf {
    let case = root().join("tests/golden/v3-no-q-lora");
    for file in ["model.safetensors", "expected.safetensors"] {
        std::fs::copy(case.join(file), dir.join(file)).expect("copied");
    }
    let config = std::fs::read_to_string(case.join("config.json")).expect("read");
    let (none, one) = ("\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1");
    assert!(config.contains(none));
    std::fs::write(dir.join("config.json"), config.replace(none, one)).expect("written");
    dir.to_owned()
}

#[test]
fn a_module_that_is_not_stored_is_left_out_when_asked() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = without_its_module(dir.path());
    let run = |subcommand: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.arg(subcommand).arg(root().join("models/deepseek_v3.model"));
        command.arg("--checkpoint").arg(&folder).args(more);
        command.output().expect("weft runs")
    };
    let (tokens, out) = (folder.join("expected.safetensors"), folder.join("out.safetensors"));
    let files = ["--tokens", tokens.to_str().unwrap(), "-o", out.to_str().unwrap()];
    let refused = run("eval", &files);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        said.contains("found no weight of `mtp`; `--set mtp_depth=0` leaves `mtp` out"),
        "{said}"
    );
    let left_out = ["--set", "mtp_depth=0"];
    assert!(run("eval", &[&files[..], &left_out].concat()).status.success());
    let ids = ["--token-ids", "1,2,3", "--max-new", "2", "--greedy"];
    let generated = run("generate", &[&ids[..], &left_out].concat());
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
}
