//! Checkpoint folders: written and read back, from other makers read, damaged ones refused.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::checkpoint::run_folder::{Latest, find_latest, save, step_folder};
use weft_runtime::checkpoint::tensor_file::{NewTensor, write_tensors};
use weft_runtime::checkpoint::writer::{self, Contents};
use weft_runtime::checkpoint::{CheckpointError, Dtype};

const WEIGHT: &[f32] = &[1.0, 2.0, 3.0, -0.5, 0.25, 1e-8];
const MOMENT: &[f32] = &[9.0];

fn write(folder: &Path, state: &Value) {
    writer::write(folder, &contents(&json!({"model_type": "tiny"}), state)).unwrap();
}

fn contents<'a>(config: &'a Value, state: &'a Value) -> Contents<'a> {
    Contents {
        config,
        weights: vec![NewTensor::f32("a.weight", &[2, 3], WEIGHT)],
        optimizer: vec![NewTensor::f32("a.weight.moment", &[1], MOMENT)],
        state,
        files: vec![("tokenizer.json", b"{}".as_slice())],
    }
}

fn refusal(folder: &Path) -> String {
    CheckpointReader::open(folder).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("step-000007");
    let state = json!({"step": 7, "lr": 0.1 + 0.2, "loader": {"epoch": 1}});
    write(&folder, &state);
    let reader = CheckpointReader::open(&folder).unwrap();
    assert_eq!(reader.config()["model_type"], "tiny");
    assert_eq!(reader.read_f32("a.weight", &[2, 3]).unwrap(), WEIGHT);
    let optimizer = reader.optimizer().unwrap();
    assert_eq!(optimizer.read_f32("a.weight.moment", &[1]).unwrap(), MOMENT);
    assert_eq!(reader.state::<Value>().unwrap(), state);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["step-000007"], "nothing temporary is left");
}

#[test]
fn equal_contents_give_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write(&a, &json!({"step": 1}));
    write(&b, &json!({"step": 1}));
    for name in ["config.json", "model.safetensors", "optimizer.safetensors", "digests.json"] {
        assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_checkpoint_of_the_same_name_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("step-000001");
    write(&folder, &json!({"step": 1, "try": 1}));
    write(&folder, &json!({"step": 1, "try": 2}));
    let reader = CheckpointReader::open(&folder).unwrap();
    assert_eq!(reader.state::<Value>().unwrap()["try"], 2);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn every_file_cut_or_altered_anywhere_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("step-000001");
    write(&folder, &json!({"step": 1}));
    let names = [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "tokenizer.json",
        "digests.json",
    ];
    for name in names {
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        let damaged = |found: &str| {
            let error = refusal(&folder);
            assert!(error.contains("is damaged") && error.contains(name), "{found}: {error}");
            assert!(error.contains(&folder.display().to_string()), "{error}");
        };
        for n_bytes in [0, 1, whole.len() / 2, whole.len() - 2] {
            fs::write(&path, &whole[..n_bytes]).unwrap();
            damaged("cut");
        }
        if name != "digests.json" {
            for at in [0, whole.len() / 2, whole.len() - 1] {
                let mut altered = whole.clone();
                altered[at] ^= 1;
                fs::write(&path, altered).unwrap();
                damaged("altered");
            }
            fs::remove_file(&path).unwrap();
            damaged("removed");
        }
        fs::write(&path, whole).unwrap();
    }
    CheckpointReader::open(&folder).unwrap();
}

#[test]
fn altered_digests_never_pass() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("step-000001");
    write(&folder, &json!({"step": 1}));
    let path = folder.join("digests.json");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to) in [("\"blake3\": \"", "\"blake3\": \"0"), ("state.json", "state.jsom")] {
        fs::write(&path, text.replace(from, to)).unwrap();
        assert!(refusal(&folder).contains("is damaged"));
    }
}

#[test]
fn the_newest_whole_checkpoint_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    assert_eq!(find_latest(&run.join("not-there")).unwrap(), None);
    assert_eq!(find_latest(run).unwrap(), None);
    // As numbers, not as text: 1,000,000 comes after 999,999.
    for step in [5, 1_000_000, 999_999] {
        write(&step_folder(run, step), &json!({ "step": step }));
    }
    fs::create_dir(run.join("step-2000000.tmp-1")).unwrap();
    fs::create_dir(run.join("step-x")).unwrap();
    fs::write(run.join("metrics.jsonl"), "").unwrap();
    let folder = step_folder(run, 1_000_000);
    assert_eq!(find_latest(run).unwrap(), Some(Latest { step: 1_000_000, folder }));
}

#[test]
fn a_damaged_newest_is_refused_not_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    for step in [1, 2] {
        write(&step_folder(dir.path(), step), &json!({ "step": step }));
    }
    fs::write(step_folder(dir.path(), 2).join("model.safetensors"), "x").unwrap();
    let error = find_latest(dir.path()).unwrap_err().to_string();
    assert!(error.contains("step-000002 is damaged: model.safetensors: expected"), "{error}");
    assert!(error.contains("delete the folder and resume from an older one"), "{error}");
    // Nor is a folder without digests, however it came to be.
    fs::create_dir(step_folder(dir.path(), 3)).unwrap();
    let error = find_latest(dir.path()).unwrap_err();
    assert!(matches!(error, CheckpointError::NoDigests { .. }), "{error}");
}

#[test]
fn only_the_last_checkpoints_and_no_leftovers_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    // A process id above the kernel's limit cannot be alive.
    fs::create_dir_all(run.join("step-000002.tmp-99999999")).unwrap();
    let config = json!({});
    for step in [10, 20, 30, 40] {
        save(run, step, &contents(&config, &json!({ "step": step })), 2).unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["step-000030", "step-000040"]);
}

/// A folder as one fetched from elsewhere: no digests.
fn foreign(config: Value, tensors: &[NewTensor<'_>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write_tensors(&dir.path().join("model.safetensors"), tensors).unwrap();
    dir
}

#[test]
fn e4m3_weights_are_multiplied_with_their_block_scales() {
    // 3x2 in blocks of 2x1: two block rows, the second partial, and two block columns.
    let codes: &[u8] = &[0x38, 0x40, 0xb8, 0x38, 0x30, 0x38];
    let dir = foreign(
        json!({"quantization_config": {"weight_block_size": [2, 1]}}),
        &[
            NewTensor::new("w.weight", Dtype::F8_E4M3, &[3, 2], codes),
            NewTensor::f32("w.weight_scale_inv", &[2, 2], &[10.0, 100.0, 1000.0, 0.5]),
            NewTensor::f32("alone_scale_inv", &[1], &[1.0]),
        ],
    );
    let reader = CheckpointReader::open(dir.path()).unwrap();
    let weight = reader.read_f32("w.weight", &[3, 2]).unwrap();
    assert_eq!(weight, [10.0, 200.0, -10.0, 100.0, 500.0, 0.5]);
    let names: Vec<_> = reader.tensors().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["alone_scale_inv", "w.weight"]);
}

#[test]
fn e4m3_weights_with_wrong_or_missing_scales_are_refused() {
    let codes: &[u8] = &[0x38; 4];
    let weight = || NewTensor::new("w", Dtype::F8_E4M3, &[2, 2], codes);
    let error = |tensors: &[NewTensor<'_>], shape: &[u64]| {
        let dir = foreign(json!({}), tensors);
        let reader = CheckpointReader::open(dir.path()).unwrap();
        reader.read_f32("w", shape).unwrap_err().to_string()
    };
    let missing = error(&[weight()], &[2, 2]);
    assert!(missing.contains("expected tensor `w_scale_inv`, found none"), "{missing}");
    let scales = NewTensor::f32("w_scale_inv", &[2, 1], &[1.0, 1.0]);
    let wrong = error(&[weight(), scales], &[2, 2]);
    assert!(wrong.contains("`w_scale_inv`: expected [1, 1], found [2, 1]"), "{wrong}");
    let flat = error(&[NewTensor::new("w", Dtype::F8_E4M3, &[4], codes)], &[4]);
    assert!(flat.contains("`w`: expected a matrix"), "{flat}");
}

#[test]
fn the_golden_fp8_weights_have_the_deviation_they_were_drawn_with() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/v3-fp8");
    let reader = CheckpointReader::open(&golden).unwrap();
    let mut n_quantized = 0;
    let quantized: Vec<_> =
        reader.tensors().filter(|t| t.dtype == Dtype::F8_E4M3).cloned().collect();
    for info in quantized {
        let weight = reader.read_f32(&info.name, &info.shape).unwrap();
        // `initializer_range` of its config: a wrong scale or block would show.
        let sum: f64 = weight.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let deviation = (sum / weight.len() as f64).sqrt();
        assert!((0.055..0.065).contains(&deviation), "{}: {deviation}", info.name);
        n_quantized += 1;
    }
    assert!(n_quantized > 10, "{n_quantized}");
}

#[test]
fn shards_are_found_through_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("config.json"), "{}").unwrap();
    let shard = |name: &str, tensor: &str, x: f32| {
        write_tensors(&at(name), &[NewTensor::f32(tensor, &[1], &[x])]).unwrap();
    };
    shard("model-00001-of-00002.safetensors", "a", 1.0);
    shard("model-00002-of-00002.safetensors", "b", 2.0);
    let mut index = json!({"metadata": {"total_size": 8}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
    let path = at("model.safetensors.index.json");
    fs::write(&path, index.to_string()).unwrap();
    let reader = CheckpointReader::open(dir.path()).unwrap();
    assert_eq!(reader.read_f32("b", &[1]).unwrap(), [2.0]);
    let missing = reader.read_f32("c", &[1]).unwrap_err().to_string();
    assert!(missing.contains("index.json: expected tensor `c`, found none"), "{missing}");

    index["weight_map"]["b"] = "model-00001-of-00002.safetensors".into();
    fs::write(&path, index.to_string()).unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("00001-of-00002.safetensors: expected tensor `b`"), "{error}");
    index["weight_map"]["b"] = "../model.safetensors".into();
    fs::write(&path, index.to_string()).unwrap();
    assert!(refusal(dir.path()).contains("expected a plain file name, found `../model"));
}

#[test]
fn a_folder_that_is_no_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(dir.path()).contains("config.json"));
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let error = refusal(dir.path());
    assert!(
        error.contains("expected model.safetensors or model.safetensors.index.json"),
        "{error}"
    );
    fs::write(dir.path().join("config.json"), "{").unwrap();
    assert!(refusal(dir.path()).contains("config.json is not the JSON expected"));
}
