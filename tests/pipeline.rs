//! Training in a pipeline, through the command line: the files of one rank, whatever the order, and
//! an end to every failure that names op, stage and peer.

mod ranked;
mod tiny;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ranked::{assert_same, done, refused, train};

const FP8: [&str; 2] = ["--precision", "deepseek_fp8"];

/// As many layers as there are stages at most.
fn deep(out: &Path, steps: u64, more: &[&str]) -> Command {
    let mut command = train(out, steps, more);
    command.args(["--set", "depth=4"]);
    command
}

#[test]
fn ranks_in_a_pipeline_write_what_one_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let one = dir.path().join("one");
    let all = [&FP8[..], &["--set", "held_out=0.1", "--set", "held_out_every=1"]].concat();
    done(train(&one, 4, &all));
    // Begun by two directions of pipelines whose ranks have the experts between them, gone on with
    // by two ranks, by pipelines that share the batch and divide weights, by one.
    let moved = dir.path().join("moved");
    let go = |steps: u64, more: &[&str]| done(train(&moved, steps, &[&all[..], more].concat()));
    let mesh = ["--ranks", "4", "--mesh", "pipeline=2,data=2,experts=2"];
    go(1, &[&mesh[..], &["--schedule", "dualpipe"]].concat());
    go(2, &["--resume", "--ranks", "2"]);
    go(3, &["--resume", "--ranks", "4", "--mesh", "pipeline=2,data=2", "--zero", "1"]);
    go(4, &["--resume"]);
    assert_same(&one, &moved, "step-000004");
    assert!(!moved.join("ranks").exists(), "a run that finished leaves no last actions");
}

#[test]
fn tables_and_stages_of_the_users_write_what_one_writes() {
    let dir = tempfile::tempdir().expect("a folder");
    let one = dir.path().join("one");
    done(deep(&one, 2, &[]));
    let two = dir.path().join("two");
    let table = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["schedule", "zb-v", "--ranks", "2", "--micro-batches", "8", "--csv"])
        .output()
        .expect("weft runs");
    let file = dir.path().join("table.csv");
    fs::write(&file, table.stdout).expect("it is written");
    let file = file.to_str().expect("a name");
    let more = ["--ranks", "2", "--mesh", "pipeline=2", "--schedule", file];
    done(deep(&two, 2, &more));
    assert_same(&one, &two, "step-000002");
    // Cut for speed it would be two and two; the prediction module is with the last.
    let uneven = dir.path().join("uneven");
    let more = ["--ranks", "2", "--mesh", "pipeline=2", "--stage-layers", "3,2"];
    done(deep(&uneven, 2, &more));
    assert_same(&one, &uneven, "step-000002");
}

/// Micro-batches in order within two halves: of two ranks, or of the two directions of a pipeline.
#[test]
fn sums_in_order_are_those_of_as_many_halves() {
    let dir = tempfile::tempdir().expect("a folder");
    let (data, two) = (dir.path().join("data"), dir.path().join("two"));
    let in_order = ["--ranks", "2", "--gradient-sums", "in_order", "--mesh"];
    done(deep(&data, 2, &[&in_order[..], &["data=2"]].concat()));
    done(deep(&two, 2, &[&in_order[..], &["pipeline=2", "--schedule", "dualpipe"]].concat()));
    assert_same(&data, &two, "step-000002");
    let why = refused(deep(&dir.path().join("one"), 1, &["--gradient-sums", "in_order"]));
    assert!(why.contains("is for several ranks"), "{why}");
}

#[test]
fn a_rank_that_hangs_is_named_with_op_stage_and_peer() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("run");
    let more = ["--ranks", "2", "--mesh", "pipeline=2", "--rank-timeout", "1"];
    let mut command = deep(&out, 4, &more);
    // The first ends of messages of the first rank: it sends its activations and waits.
    command.env("WEFT_TEST_FAULT", "hang:0:12").env_remove("RUST_BACKTRACE");
    let why = refused(command);
    let waits = "of stage 1, with rank 0, which has been silent for 1.0 s";
    assert!(why.contains("rank 1, step 1: recv ") && why.contains(waits), "{why}");
    assert!(why.contains("rank 0 hangs"), "{why}");
}

/// Whoever waits for a rank that has failed learns it at once, far within the limit, and says in
/// which op, of which stage, with which peer.
#[test]
fn a_rank_that_panics_or_is_killed_ends_the_pipeline_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let fails = |fault: &str| {
        let out = dir.path().join(fault.replace(':', "-"));
        let more = ["--ranks", "4", "--mesh", "pipeline=4", "--rank-timeout", "3600"];
        let mut command = deep(&out, 4, &more);
        command.env("WEFT_TEST_FAULT", fault).env_remove("RUST_BACKTRACE");
        let start = Instant::now();
        let why = refused(command);
        assert!(start.elapsed() < Duration::from_secs(120), "{fault}: {:?}", start.elapsed());
        (why, out)
    };
    // In the middle of the pipeline, while activations come and go.
    let (why, _) = fails("panic:1:14");
    let panicked = "with rank 1, which has ended: it panicked: asked for by WEFT_TEST_FAULT";
    let told = |rank: usize, lost: &str| {
        let waits = format!("rank {rank}, step 1: recv ");
        let lost = format!("of stage {rank}, {lost}");
        let line = why.lines().find(|line| line.contains(&waits) && line.contains(&lost));
        assert!(line.is_some(), "{waits}.. {lost}: {why}");
    };
    told(0, panicked);
    told(2, panicked);
    told(3, panicked);
    assert!(why.contains("rank 1 panicked: asked for by WEFT_TEST_FAULT"), "{why}");

    // What ends the process ends all ranks; the next command says where each was.
    let (_, out) = fails("abort:1:14");
    let again = deep(&out, 1, &[]).output().expect("weft runs");
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(told.contains("broke off; what its ranks did last:"), "{told}");
    for rank in 0..4 {
        let line = told.lines().find(|line| line.contains(&format!("rank {rank}, step 1: ")));
        assert!(line.is_some_and(|l| l.contains(&format!("of stage {rank}, "))), "{told}");
    }
}

#[test]
fn pipelines_that_cannot_be_are_refused_with_what_can() {
    let dir = tempfile::tempdir().expect("a folder");
    let why = |more: &[&str]| refused(deep(&dir.path().join("run"), 1, more));
    let deep = why(&["--ranks", "8", "--mesh", "pipeline=8"]);
    assert!(deep.contains("8 stages (8 ranks along pipeline) need a layer each"), "{deep}");
    assert!(deep.contains("the model has 4; the nearest is 4 stages"), "{deep}");
    let odd = why(&["--ranks", "3", "--mesh", "pipeline=3", "--schedule", "dualpipe"]);
    assert!(odd.contains("the nearest are 2 and 4"), "{odd}");
    let none = why(&["--ranks", "2", "--mesh", "pipeline=2", "--schedule", "2f1b"]);
    assert!(none.contains("there is no schedule 2f1b; there are: gpipe"), "{none}");
    let two = ["--ranks", "2", "--mesh", "pipeline=2", "--stage-layers"];
    let many = why(&[&two[..], &["3,3"]].concat());
    assert!(many.contains("2 stages share 4 units"), "{many}");
    assert!(many.contains("those given are [3, 2]: 2 stages with 5"), "{many}");
    let alone = why(&[&two[..], &["4,1"]].concat());
    assert!(alone.contains("a last stage of 1 layers"), "{alone}");
    assert!(alone.contains("give it 2 at least"), "{alone}");
    let alone = why(&["--schedule", "1f1b"]);
    assert!(alone.contains("--schedule is for ranks along pipeline"), "{alone}");
}
