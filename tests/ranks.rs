//! Training on several ranks, through the command line: the files of one rank, and an end to every
//! failure.

mod ranked;
mod tiny;

use std::time::{Duration, Instant};

use ranked::{assert_same, done, refused, train};

#[test]
fn ranks_that_share_the_batch_write_what_one_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let one = dir.path().join("one");
    done(train(&one, 20, &["--ranks", "1"]));
    for n in ["2", "8"] {
        let several = dir.path().join(n);
        done(train(&several, 20, &["--ranks", n]));
        assert_same(&one, &several, "step-000020");
        assert!(!several.join("ranks").exists(), "a run that finished leaves no last actions");
    }
    // Each keeps its part of the weights and moments.
    for n in ["2", "4"] {
        let divided = dir.path().join(format!("divided-{n}"));
        done(train(&divided, 20, &["--ranks", n, "--zero", "1"]));
        assert_same(&one, &divided, "step-000020");
    }
    // Begun by four, gone on with by one and by two.
    let moved = dir.path().join("moved");
    done(train(&moved, 5, &["--ranks", "4"]));
    done(train(&moved, 8, &["--resume", "--ranks", "2", "--zero", "1"]));
    done(train(&moved, 11, &["--resume"]));
    done(train(&moved, 20, &["--resume", "--ranks", "2", "--mesh", "data=2"]));
    assert_same(&one, &moved, "step-000020");
}

#[test]
fn a_rank_that_fails_ends_the_run_and_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let fails = |fault: &str| {
        let out = dir.path().join(fault.replace(':', "-"));
        let mut command = train(&out, 4, &["--ranks", "2", "--rank-timeout", "1"]);
        command.env("WEFT_TEST_FAULT", fault).env_remove("RUST_BACKTRACE");
        let start = Instant::now();
        let why = refused(command);
        assert!(start.elapsed() < Duration::from_secs(60), "{fault}: {:?}", start.elapsed());
        (why, out)
    };
    // Collective 20 is among the sums of the first step.
    let (why, out) = fails("hang:1:20");
    let waits = "rank 0, step 1: all_reduce grad.";
    assert!(
        why.contains(waits) && why.contains("rank 1, which has been silent for 1.0 s"),
        "{why}"
    );
    assert!(why.contains("rank 1 hangs"), "{why}");
    let again = train(&out, 1, &[]).output().expect("weft runs");
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(told.contains("broke off; what its ranks did last:"), "{told}");
    assert!(told.contains("rank 0, step 1: all_reduce grad."), "{told}");
    assert!(told.contains("of stage 0, waits for rank 1"), "{told}");

    let (why, _) = fails("panic:0:20");
    let lost = "with rank 0, which has ended: it panicked: asked for by WEFT_TEST_FAULT";
    assert!(why.contains("rank 1, step 1: all_reduce") && why.contains(lost), "{why}");
    let (why, _) = fails("lose:1:20");
    assert!(why.contains("with rank 1, which has ended: it has lost its transport"), "{why}");
    let (_, out) = fails("abort:1:20");
    let again = train(&out, 1, &[]).output().expect("weft runs");
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(told.contains("rank 1, step 1: all_reduce grad."), "{told}");
}

#[test]
fn a_rank_with_two_collectives_swapped_is_refused_before_the_first_step() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let mut command = train(&out, 4, &["--ranks", "2", "--rank-timeout", "5"]);
    command.env("WEFT_TEST_FAULT", "swap:1:3");
    let why = refused(command);
    assert!(why.contains("collective 3 differs between ranks: rank 0 does all_reduce of"), "{why}");
    assert!(why.contains("rank 1 does all_reduce of"), "{why}");
    assert!(!out.join("metrics.jsonl").exists(), "no step was begun");
}

#[test]
fn ranks_that_do_not_divide_the_batch_are_refused_with_the_nearest_that_do() {
    let dir = tempfile::tempdir().expect("a folder");
    let why = |more: &[&str]| refused(train(&dir.path().join("run"), 1, more));
    let three = why(&["--ranks", "3"]);
    assert!(three.contains("3 ranks along data cannot share 8 micro-batches"), "{three}");
    assert!(three.contains("the nearest is data = 2"), "{three}");
    let many = why(&["--ranks", "16"]);
    assert!(many.contains("the nearest is data = 8"), "{many}");
    let other = why(&["--ranks", "2", "--mesh", "data=4"]);
    assert!(other.contains("--mesh has 4 ranks, and --ranks is 2; give --ranks 4"), "{other}");
}
