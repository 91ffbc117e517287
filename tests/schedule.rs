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
