//! Training on ranks that have the experts between them, through the command line: the files of one
//! rank.

mod ranked;
mod tiny;

use ranked::{assert_same, done, refused, train};

/// Ranks and their mesh.
const MESHES: [Layout; 3] = [
    ("2", "data=2,experts=2", &[]),
    ("4", "data=4,experts=4", &[]),
    ("4", "data=4,experts=2", &["--zero", "1"]),
];

type Layout = (&'static str, &'static str, &'static [&'static str]);

fn writes_what_one_writes(meshes: &[Layout], precision: &[&str]) {
    let dir = tempfile::tempdir().expect("a folder");
    let one = dir.path().join("one");
    done(train(&one, 4, &[&["--ranks", "1"], precision].concat()));
    for (ranks, mesh, more) in meshes {
        let several = dir.path().join(mesh);
        let given = [&["--ranks", ranks, "--mesh", mesh], *more, precision].concat();
        done(train(&several, 4, &given));
        assert_same(&one, &several, "step-000004");
    }
}

#[test]
fn ranks_that_have_the_experts_between_them_write_what_one_writes() {
    writes_what_one_writes(&MESHES, &[]);
}

#[test]
fn so_they_do_in_bf16() {
    writes_what_one_writes(&MESHES[2..], &["--precision", "bf16"]);
}

#[test]
fn so_they_do_in_fp8() {
    writes_what_one_writes(&MESHES[1..2], &["--precision", "deepseek_fp8"]);
}

#[test]
fn a_run_goes_on_under_another_layout_of_the_experts() {
    let dir = tempfile::tempdir().expect("a folder");
    let (one, moved) = (dir.path().join("one"), dir.path().join("moved"));
    done(train(&one, 8, &["--ranks", "1"]));
    done(train(&moved, 2, &["--ranks", "4", "--mesh", "data=4,experts=2", "--zero", "1"]));
    done(train(&moved, 4, &["--resume", "--ranks", "2", "--mesh", "data=2,experts=2"]));
    done(train(&moved, 5, &["--resume"]));
    done(train(&moved, 6, &["--resume", "--ranks", "2", "--zero", "1"]));
    done(train(&moved, 8, &["--resume", "--ranks", "4", "--mesh", "data=4,experts=4"]));
    assert_same(&one, &moved, "step-000008");
}

#[test]
fn ranks_that_cannot_divide_the_experts_are_refused_with_the_nearest_that_can() {
    let dir = tempfile::tempdir().expect("a folder");
    let why = |more: &[&str]| refused(train(&dir.path().join("run"), 1, more));
    let among = why(&["--ranks", "4", "--mesh", "data=4,experts=3"]);
    assert!(among.contains("3 ranks along experts do not divide the 4 along data"), "{among}");
    assert!(among.contains("the nearest is experts = 2"), "{among}");
    let of = why(&["--ranks", "8", "--mesh", "data=8,experts=8"]);
    assert!(of.contains("8 ranks along experts do not divide the 4 experts of"), "{of}");
    assert!(of.contains("the nearest is experts = 4"), "{of}");
}

#[test]
fn a_rank_with_an_exchange_swapped_is_refused_before_the_first_step() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mesh = ["--ranks", "2", "--mesh", "data=2,experts=2", "--rank-timeout", "5"];
    let mut command = train(&out, 4, &mesh);
    command.env("WEFT_TEST_FAULT", "swap:1:5");
    let why = refused(command);
    assert!(
        why.contains("differs between ranks: rank 0 does exchange of rows.sent over experts"),
        "{why}"
    );
    assert!(!out.join("metrics.jsonl").exists(), "no step was begun");
}
