//! `weft export --fp8`: the codes and scales of a published FP8 checkpoint come out as they were,
//! and those of any other are as near as e4m3 is.

use std::path::Path;
use std::process::{Command, Output};

use weft_runtime::checkpoint::Dtype;
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::checkpoint::tensor_file::TensorFile;

fn golden(case: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn export(case: &str, out: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["export", "models/deepseek_v3.model", "--fp8", "--checkpoint"])
        .arg(golden(case))
        .arg("-o")
        .arg(out)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("weft runs")
}

fn exported(case: &str, out: &Path) -> CheckpointReader {
    let output = export(case, out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    CheckpointReader::open(out).expect("a checkpoint")
}

#[test]
fn codes_and_scales_of_a_published_checkpoint_come_out_as_they_were() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let reader = exported("v3-fp8", &out);
    let open = |folder: &Path| TensorFile::open(&folder.join("model.safetensors")).expect("a file");
    let (theirs, ours) = (open(&golden("v3-fp8")), open(&out));
    let mut n_codes = 0;
    for info in theirs.tensors() {
        let own = ours.info(&info.name).expect(&info.name);
        assert_eq!(own.shape, info.shape, "{}", info.name);
        if info.dtype == Dtype::F8_E4M3 {
            let codes = |f: &TensorFile| {
                f.bytes(&info.name, Dtype::F8_E4M3, &info.shape).expect("codes").to_vec()
            };
            assert!(codes(&theirs) == codes(&ours), "{}", info.name);
            let scale = format!("{}_scale_inv", info.name);
            let shape = &theirs.info(&scale).expect(&scale).shape;
            let scales = |f: &TensorFile| f.read_f32(&scale, shape).expect("scales");
            assert_eq!(scales(&theirs), scales(&ours), "{scale}");
            n_codes += 1;
        } else if !info.name.ends_with("_scale_inv") {
            let bias = info.name.ends_with("e_score_correction_bias");
            assert_eq!(own.dtype, if bias { Dtype::F32 } else { Dtype::BF16 }, "{}", info.name);
        }
    }
    assert_eq!((n_codes, theirs.tensors().count()), (28, ours.tensors().count()));
    let quantized = &reader.config()["quantization_config"];
    assert_eq!(
        quantized,
        &CheckpointReader::open(&golden("v3-fp8")).expect("it").config()["quantization_config"]
    );
    let again = export("v3-fp8", &out);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("is there already"), "{said}");
}

#[test]
fn any_checkpoint_is_as_near_as_its_codes_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let reader = exported("v3-mtp", &dir.path().join("out"));
    let original = CheckpointReader::open(&golden("v3-mtp")).expect("a checkpoint");
    let mut n_codes = 0;
    for info in original.tensors() {
        let read = |c: &CheckpointReader| c.read_f32(&info.name, &info.shape).expect("floats");
        let (was, is) = (read(&original), read(&reader));
        let coded = reader.info(&info.name).expect(&info.name).dtype == Dtype::F8_E4M3;
        n_codes += usize::from(coded);
        let amax = was.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (x, y) in was.iter().zip(&is) {
            // Half a step of 3 bits, of the least step of the block's scale, or of bf16.
            let bound =
                if coded { (x.abs() / 16.0).max(amax / 448.0 / 1024.0) } else { x.abs() / 256.0 };
            assert!((x - y).abs() <= bound * 1.000001, "{}: {x} became {y}", info.name);
        }
    }
    assert!(n_codes > 20, "{n_codes}");
    // The stored copies of the embedding and the head are written too.
    let copy = "model.layers.2.shared_head.head.weight";
    assert!(reader.info(copy).is_some());
}
