//! `weft schedule` as it is typed: a table out, the same table in, and refusals.

use std::process::{Command, Output};

fn weft(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft")).arg("schedule").args(args).output().expect("weft runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_printed_table_is_read_and_proved() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = weft(&["dualpipe", "--ranks", "4", "--micro-batches", "8", "--csv"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let path = dir.path().join("table.csv");
    let shown = path.display().to_string();
    std::fs::write(&path, &made.stdout).expect("written");
    let checked = text(&weft(&["--check", &shown]).stdout);
    assert!(checked.contains("makespan 26, bubble 2"), "{checked}");

    let svg = dir.path().join("table.svg");
    let drawn = weft(&["--check", &shown, "--svg", &svg.display().to_string()]);
    assert!(drawn.status.success(), "{}", text(&drawn.stderr));
    let picture = std::fs::read_to_string(&svg).expect("a picture");
    // A box for each action: half of 16 chunks' ops on each of 4 stages, one in two parts.
    let n_boxes = picture.matches("<title>").count();
    assert_eq!(n_boxes, text(&made.stdout).matches(['F', 'B', 'I', 'W']).count());

    let swapped = text(&made.stdout).replacen("F0.0,F0.1", "F0.1,F0.0", 1);
    std::fs::write(&path, swapped).expect("written");
    let slower = weft(&["--check", &shown]);
    assert!(slower.status.success(), "{}", text(&slower.stderr));
    let broken = text(&made.stdout).replacen("I1.0,W1.0", "W1.0,I1.0", 1);
    std::fs::write(&path, broken).expect("written");
    let refused = weft(&["--check", &shown]);
    assert!(!refused.status.success());
    let error = text(&refused.stderr);
    assert!(error.contains("table.csv: rank 0, cell 4: W0 of stage 3"), "{error}");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let refuse = |args: &[&str], want: &str| {
        let out = weft(args);
        assert!(!out.status.success(), "{args:?}");
        assert!(text(&out.stderr).contains(want), "{}", text(&out.stderr));
    };
    refuse(&[], "give its name, or a table with --check FILE");
    refuse(&["zb-v", "--ranks", "4"], "zb-v: give --ranks and --micro-batches");
    refuse(&["zigzag", "--ranks", "4", "--micro-batches", "8"], "there is no schedule zigzag");
    refuse(&["dualpipe", "--ranks", "5", "--micro-batches", "20"], "the nearest are 4 and 6");
    refuse(&["--check", "no-such-file.csv"], "cannot read no-such-file.csv");
    let times = ["1f1b", "--ranks", "2", "--micro-batches", "2", "--times", "1,1"];
    refuse(&times, "expected four times");
}

#[test]
fn recorded_loads_become_places() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |text: &str, args: &[&str]| {
        let path = dir.path().join("loads.csv");
        std::fs::write(&path, text).expect("written");
        let weft = env!("CARGO_BIN_EXE_weft");
        let out = Command::new(weft).arg("eplb").arg(&path).args(args).output().expect("it runs");
        (out.status.success(), text_of(&out))
    };
    let loads = "# layer 3\n90,132,40,61,104,165,39,4,73,56,183,86\n";
    let args = ["--replicas", "16", "--groups", "4", "--nodes", "2", "--gpus", "8"];
    let (ok, said) = run(loads, &args);
    assert!(ok && said.contains("gpu 0: 5 6\n") && said.contains("gpu 7: 11 1\n"), "{said}");
    let json = run("[[3, 1], [1, 3]]", &["--gpus", "3", "--replicas", "3", "--json"]).1;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[0]["logical_count"], serde_json::json!([2, 1]));
    assert_eq!(json[1]["logical_to_physical"], serde_json::json!([[0], [1, 2]]));
    let refuse = |text: &str, want: &str| {
        let (ok, said) = run(text, &["--gpus", "2"]);
        assert!(!ok && said.contains(want), "{said}");
    };
    refuse("1 2\n3", "layer 0 has 2 experts, and layer 1 has 1");
    refuse("1 x", "line 1: expected a load, found x");
    refuse("", "no loads");
    refuse("[1, 2]", "expected a list of numbers for each layer");
    refuse("1 -2", "layer 0: the load of expert 1 is -2");
}

fn text_of(out: &Output) -> String {
    text(&out.stdout) + &text(&out.stderr)
}
