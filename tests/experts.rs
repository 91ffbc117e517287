//! Training on ranks that have the experts between them, through the command line: the files of one
//! rank.

#[path = "ranked/losses.rs"]
mod losses;
mod ranked;
mod tiny;

use ranked::{assert_same, done, refused, train};

/// Ranks and their mesh.
const MESHES: [Layout; 3] = [
    ("2", "data=2,experts=2", &[]),
    ("4", "data=4,experts=4", &["--exchange-capacity", "3"]),
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

/// Other sums than one rank's: losses are near it, and the run goes on as one rank.
#[test]
fn gradients_may_be_summed_where_the_experts_are() {
    for (precision, most) in [("f32", 1e-6), ("deepseek_fp8", 1e-3)] {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, several) = (dir.path().join("one"), dir.path().join("several"));
        let of = ["--precision", precision];
        let given: &[&str] = if precision == "f32" { &[] } else { &of };
        let mesh = ["--ranks", "4", "--mesh", "data=4,experts=2", "--zero", "1"];
        let at = ["--expert-gradients", "at_experts"];
        done(train(&one, 4, &[&["--ranks", "1"], given].concat()));
        done(train(&several, 4, &[&mesh, &at[..], given].concat()));
        for (a, b) in losses::of(&one).into_iter().zip(losses::of(&several)) {
            assert!((a - b).abs() <= most * a, "{precision}: {a} on one rank, {b} on four");
        }
        done(train(&several, 5, &[&["--resume", "--ranks", "1"], given].concat()));
    }
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
    let full = why(&["--ranks", "4", "--mesh", "data=4,experts=4", "--exchange-capacity", "1"]);
    assert!(full.contains(" rows come to the experts of rank "), "{full}");
    assert!(full.contains("give a larger exchange capacity"), "{full}");
    let none = why(&["--ranks", "2", "--expert-gradients", "at_experts"]);
    assert!(none.contains("no ranks have the experts between them"), "{none}");
    assert!(none.contains("give --mesh data=N,experts=N"), "{none}");
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
