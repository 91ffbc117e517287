//! `weft devices` says what there is and why the rest is not, whatever driver it meets.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with a driver's library in it that answers as the environment says.
fn stub(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_stub/cuda.c");
    let library = dir.join("libcuda.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(compiler.status().expect("a C compiler, which Rust links with").success());
    dir.to_owned()
}

fn devices(library: Option<&Path>, env: &[(&str, &str)], args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.arg("devices").args(args).envs(env.iter().copied());
    if let Some(folder) = library {
        command.env("LD_LIBRARY_PATH", folder);
    }
    let output = command.output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_driver_is_answered_with_a_line() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = stub(dir.path());
    let new = ("STUB_VERSION", "13000");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[("STUB_INIT", "100")], "none: there is a CUDA driver, and no GPU that it can see"),
        (&[("STUB_INIT", "34")], "none: libcuda on this machine is the toolkit's stub"),
        (&[("STUB_INIT", "999")], "none: the CUDA driver's cuInit fails with CUDA_ERROR_UNKNOWN"),
        (
            &[("STUB_VERSION", "11080"), ("STUB_COUNT", "1")],
            "none: the CUDA driver is of version 11.8; install one of 12.3 or newer",
        ),
        (&[new], "none: there is a CUDA driver, and no GPU that it can see"),
        (
            &[new, ("STUB_COUNT", "2"), ("STUB_CAPABILITY", "80")],
            "cuda:1  Stub, 80.0 GiB, 132 multiprocessors, driver for CUDA 13.0; unfit: \
             compute capability 8.0; kernels are for 9.0 (Hopper)\n",
        ),
        (
            &[new, ("STUB_COUNT", "1"), ("STUB_CAPABILITY", "90")],
            "cuda:0  Stub, 80.0 GiB, 132 multiprocessors, driver for CUDA 13.0\n",
        ),
    ];
    for (env, expected) in cases {
        let said = devices(Some(&folder), env, &[]);
        assert!(said.contains(expected), "{env:?}: {said}");
    }
}

#[test]
fn a_name_without_an_end_is_cut() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = stub(dir.path());
    let env = [("STUB_VERSION", "13000"), ("STUB_COUNT", "1"), ("STUB_LONG", "1")];
    let said = devices(Some(&folder), &env, &["--json"]);
    let parsed: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(parsed["cuda"]["gpus"][0]["name"].as_str().map(str::len), Some(255));
    assert!(parsed["cpu"]["threads"].as_u64() >= Some(1));
}
