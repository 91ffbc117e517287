//! `weft compare`: two precisions of a model beside each other, and the value where they part.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use weft_runtime::checkpoint::tensor_file::{NewTensor, write_tensors};

fn compare(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .arg("compare")
        .args(args)
        .arg("--json")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn bf16_is_near_f32_and_nothing_strays() {
    let case = "tests/golden/v3-yarn";
    let tokens = format!("{case}/expected.safetensors");
    let model = "models/deepseek_v3.model";
    let report = compare(&[model, "f32", "bf16", "--checkpoint", case, "--tokens", &tokens]);
    let loss = report["losses"].as_array().expect("losses").iter().find(|l| l["name"] == "loss");
    let relative = loss.expect("a loss")["relative"].as_f64().expect("a number");
    assert!(relative != 0.0 && relative.abs() < 5e-3, "{relative}");
    assert!(report["compared"].as_u64().expect("a count") > 50, "{report}");
    // An expert that two precisions do not agree on is no rounding; nothing else strays here.
    for value in report["beyond"].as_array().expect("a list") {
        let name = value["value"].as_str().expect("a name");
        assert!(["choice", "chosen"].contains(&name), "{value}");
    }
    let same = compare(&[model, "bf16", "bf16", "--checkpoint", case, "--tokens", &tokens]);
    assert_eq!(same["losses"][0]["relative"], 0.0);
    assert_eq!(same["beyond"], Value::Array(vec![]));
}

/// `near` is what is left of `far` when its large part is taken away again.
const CANCELS: &str = "weft 1
model Cancels {
  vocab = 16  hidden = 8
  config { vocab = vocab_size }
  weight table : [vocab, hidden]
  precision f32 { compute = f32 }
  precision bf16 { compute = bf16 }
  forward(tokens: i32[B, S]) -> [B, S, vocab] {
    x    = gather(table, tokens)
    far  = x + 1000
    near = far - 1000
    far_again = near * 3
    matmul(far_again, transpose(table))
  }
  loss { loss = cross_entropy(result, next(tokens)) loss }
}
";

#[test]
fn a_difference_that_cancels_is_where_precisions_part() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    fs::write(path("cancels.model"), CANCELS).expect("written");
    fs::write(path("config.json"), "{\"vocab_size\": 16}").expect("written");
    let table: Vec<f32> = (0..128).map(|i| ((i * 37 % 100) as f32 - 50.0) / 40.0).collect();
    let table = NewTensor::f32("table", &[16, 8], &table);
    write_tensors(&path("model.safetensors"), &[table]).expect("written");
    let ids: Vec<i64> = (0..12).map(|i| i * 5 % 16).collect();
    let tokens = NewTensor::i64("tokens", &[1, 12], &ids);
    write_tensors(&path("tokens.safetensors"), &[tokens]).expect("written");
    let text = |p: &Path| p.to_str().expect("a name").to_string();
    let (model, folder) = (text(&path("cancels.model")), text(dir.path()));
    let report = compare(&[
        &model,
        "f32",
        "bf16",
        "--checkpoint",
        &folder,
        "--tokens",
        &text(&path("tokens.safetensors")),
    ]);
    let beyond = report["beyond"].as_array().expect("a list");
    let names: Vec<&str> = beyond.iter().filter_map(|b| b["value"].as_str()).collect();
    assert_eq!(names.first(), Some(&"near"), "{report}");
    // What is made of it only hands the difference on.
    assert!(!names.contains(&"far_again") && !names.contains(&"far"), "{names:?}");
}
