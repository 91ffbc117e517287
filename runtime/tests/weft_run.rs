//! The binary `weft-run`.

mod kernels;

use std::process::{Command, Output};

fn weft_run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-run")).args(args).output().unwrap()
}

#[test]
fn info_prints_entries_buffers_and_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.weft");
    kernels::graph(vec![kernels::layers("eval", true)]).save(&path).unwrap();
    let path = path.to_str().unwrap();
    let text = String::from_utf8(weft_run(&["info", path]).stdout).unwrap();
    let expected = "
entry eval(B <= 64), arena 4224 bytes
  input    x: f32[B, 16]
  weight   w: f32[3, 16] as layers.{i}.w from [0]
  temp     h: f32[B, 16] at 128
  output   y: f32[B, 16]
  output   runs.next: i64[] in place of runs
  state    runs: i64[]
  bytes at the bounds: arena 4224, inputs 4096, outputs 4096, weights 192, states 8

kernels
  f32_scale: avx2 in object 0; scratch 4096 bytes
";
    assert!(text.contains(expected), "{text}");
    let steps = String::from_utf8(weft_run(&["info", path, "--steps"]).stdout).unwrap();
    let expected = "
  loop layers, 3 times, last to first {
    layers.scale = f32_scale(h, w[64*i0], h; 16, 2.0f), grid B
  }
";
    assert!(steps.contains(expected), "{steps}");
}

#[test]
fn a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.weft");
    let mut bytes = kernels::graph(vec![kernels::layers("eval", true)]).to_bytes();
    *bytes.last_mut().unwrap() ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let output = weft_run(&["info", path.to_str().unwrap()]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        error,
        format!(
            "error: {}: section 1 (object) is damaged; compile it again with \
             `weft compile test.model`\n",
            path.display()
        )
    );
    assert_eq!(output.status.code(), Some(1));
}
