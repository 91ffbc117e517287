//! Training on several ranks, through the command line: the files of one rank, and an end to every
//! failure.

#[path = "ranked/losses.rs"]
mod losses;
mod ranked;
mod tiny;

use std::path::Path;
use std::time::{Duration, Instant};

use weft_runtime::checkpoint::reader::CheckpointReader;

use ranked::{assert_same, done, refused, train, train_with};

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

/// Dims of which two ranks have whole groups of 128 elements each.
const WIDE: &[&str] =
    &["hidden=128", "heads=4", "nope=64", "rope=64", "value=64", "inner=256", "expert_inner=256"];

/// The losses of a run, and all numbers of a file of its checkpoint.
fn outcome(run: &Path, step: &str, file: &str) -> (Vec<f64>, Vec<f32>) {
    let checkpoint = CheckpointReader::open(&run.join(step)).expect("a checkpoint");
    let mut all = vec![];
    match file {
        "optimizer" => {
            let file = checkpoint.optimizer().expect("moments");
            let first = file.tensors().filter(|t| t.name.ends_with(".m"));
            let read = |name: &str, shape: &[u64]| file.read_f32(name, shape).expect("a moment");
            first.for_each(|t| all.extend(read(&t.name, &t.shape)));
        }
        _ => {
            let read =
                |name: &str, shape: &[u64]| checkpoint.read_f32(name, shape).expect("a weight");
            checkpoint.tensors().for_each(|t| all.extend(read(&t.name, &t.shape)));
        }
    }
    (losses::of(run), all)
}

/// `‖a - b‖ / ‖b‖`.
fn distance<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |xs: &mut dyn Iterator<Item = f64>| xs.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut a.iter().zip(b).map(|(a, b)| (*a).into() - (*b).into()));
    off / norm(&mut b.iter().map(|b| (*b).into()))
}

#[test]
fn ranks_that_divide_products_follow_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |name: &str, steps: u64, more: &[&str]| {
        let out = dir.path().join(name);
        done(train(&out, steps, more));
        out
    };
    let two = ["--ranks", "2", "--mesh", "tensor=2"];
    let one = outcome(&run("one", 20, &[]), "step-000020", "model");
    let follows = |run: &Path| {
        let (losses, weights) = outcome(run, "step-000020", "model");
        let off = (distance(&losses, &one.0), distance(&weights, &one.1));
        assert!(off.0 < 1e-5 && off.1 < 1e-5, "{off:?} off in {}", run.display());
    };
    let by_tokens = ["--ranks", "2", "--mesh", "tensor=2,sequence=2"];
    follows(&run("two", 20, &two));
    follows(&run("by tokens", 20, &by_tokens));
    // With other axes: the bytes of two.
    let divided = run("two-3", 3, &two);
    let tokens = run("by-tokens-3", 3, &by_tokens);
    let all = "pipeline=2,data=2,experts=2,tensor=2,sequence=2";
    for (n, mesh, more, like) in [
        ("4", "data=2,tensor=2", &[][..], &divided),
        ("8", "data=4,experts=2,tensor=2", &["--zero", "1"], &divided),
        ("8", all, &["--zero", "1", "--schedule", "dualpipe"], &tokens),
    ] {
        let several = run(mesh, 3, &[&["--ranks", n, "--mesh", mesh], more].concat());
        assert_same(like, &several, "step-000003");
    }
    // Begun by one, gone on with by two, and the other way round.
    let moved = run("moved", 5, &[]);
    let by_two: Vec<&str> = two.into_iter().chain(["--resume"]).collect();
    done(train(&moved, 10, &by_two));
    done(train(&moved, 15, &["--resume"]));
    done(train(&moved, 20, &by_two));
    follows(&moved);
}

#[test]
fn so_they_do_in_few_bits() {
    let dir = tempfile::tempdir().expect("a folder");
    for precision in ["bf16", "deepseek_fp8"] {
        // The first gradients, of which the first moment is a tenth, and the losses.
        let run = |name: &str, more: &[&str]| {
            let out = dir.path().join(format!("{precision}-{name}"));
            let more = [&["--precision", precision], more].concat();
            done(train_with(WIDE, &out, 1, &more));
            let gradients = outcome(&out, "step-000001", "optimizer").1;
            done(train_with(WIDE, &out, 6, &[&["--resume"], &more[..]].concat()));
            (gradients, outcome(&out, "step-000006", "model").0)
        };
        let one = run("one", &[]);
        for mesh in ["tensor=2", "tensor=2,sequence=2"] {
            let two = run(mesh, &["--ranks", "2", "--mesh", mesh]);
            let (gradients, losses) = (distance(&two.0, &one.0), distance(&two.1, &one.1));
            println!("{precision}, {mesh}: losses {losses:.1e} off, gradients {gradients:.1e}");
            assert!(losses < 1e-3, "{precision}, {mesh}: losses {losses:e} off");
        }
    }
}

/// A pipeline adds no difference to ranks along tensor, whatever its order, and its checkpoints are
/// as whole as theirs.
#[test]
fn ranks_that_divide_products_write_the_same_in_a_pipeline() {
    let dir = tempfile::tempdir().expect("a folder");
    let fp8 = ["--precision", "deepseek_fp8"];
    let go = |name: &str, steps: u64, more: &[&str]| {
        let out = dir.path().join(name);
        done(train_with(WIDE, &out, steps, &[&fp8, more].concat()));
        out
    };
    let two = go("two", 2, &["--ranks", "2", "--mesh", "tensor=2"]);
    go("moved", 1, &["--ranks", "4", "--mesh", "pipeline=2,tensor=2", "--schedule", "dualpipe"]);
    let all = ["--ranks", "8", "--mesh", "pipeline=2,data=2,experts=2,tensor=2", "--zero", "1"];
    let moved = go("moved", 2, &[&["--resume"], &all[..]].concat());
    assert_same(&two, &moved, "step-000002");
    go("moved", 3, &["--resume"]);
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
    // Sums along data, and what ranks with the same stages do along tensor.
    let pairs = ["--mesh", "tensor=2,pipeline=2", "--schedule", "dualpipe"];
    let sums = ["collective 3 differs between ranks: rank 0 does all_reduce of", "all_reduce of"];
    let along = ["differs between ranks: rank 0 does all_gather of", "over tensor (2, 1 apart)"];
    for (ranks, more, at, told) in [("2", &[][..], 3, sums), ("4", &pairs, 40, along)] {
        let out = dir.path().join(format!("run-{ranks}"));
        let all = [&["--ranks", ranks, "--rank-timeout", "5"], more].concat();
        let mut command = train(&out, 4, &all);
        command.env("WEFT_TEST_FAULT", format!("swap:1:{at}"));
        let why = refused(command);
        let (of_first, of_second) = why.split_once("rank 1 does").expect("both are named");
        assert!(of_first.contains(told[0]) && of_second.contains(told[1]), "{why}");
        assert!(!out.join("metrics.jsonl").exists(), "no step was begun");
    }
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
    let heads = why(&["--ranks", "4", "--mesh", "tensor=4"]);
    assert!(heads.contains("4 ranks along tensor do not divide the 2 parts that dim"), "{heads}");
    assert!(heads.contains("the nearest is tensor = 2"), "{heads}");
    let tokens = why(&["--ranks", "2", "--mesh", "tensor=2,sequence=4"]);
    assert!(tokens.contains("along tensor, which are 2; give sequence=2"), "{tokens}");
    let both = ["--ranks", "2", "--mesh", "tensor=2,sequence=2"];
    let tokens = refused(train_with(&["sequence=31"], &dir.path().join("run"), 1, &both));
    let neither = "2 ranks along sequence divide neither the 1 sequences of `tokens` nor their 31";
    assert!(tokens.contains(neither), "{tokens}");
    let other = why(&["--ranks", "2", "--mesh", "data=4"]);
    assert!(other.contains("--mesh has 4 ranks, and --ranks is 2; give --ranks 4"), "{other}");
}
