//! A process that writes checkpoints is killed (SIGKILL) at random moments; afterwards the newest
//! checkpoint is whole, and not older than the last one the process said was written.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::checkpoint::run_folder::{find_latest, save};
use weft_runtime::checkpoint::tensor_file::NewTensor;
use weft_runtime::checkpoint::writer::Contents;
use weft_runtime::train::philox::Stream;

/// Set in the child: the run folder it writes to.
const RUN: &str = "WEFT_TEST_RUN_FOLDER";
const THIS: &str = "a_killed_writer_leaves_a_whole_checkpoint";
const N_ELEMENTS: usize = 100_000;
const N_KILLS: u64 = 30;
const N_KEEP: usize = 3;

#[test]
fn a_killed_writer_leaves_a_whole_checkpoint() {
    if let Some(run) = env::var_os(RUN) {
        write_checkpoints(Path::new(&run));
    }
    let dir = tempfile::tempdir().unwrap();
    let delays = Stream::new(u64::from(std::process::id()), "kill");
    let (mut step, mut n_torn) = (0, 0);
    // Up to three checkpoints, as long as this machine takes for them.
    let micros_max = u64::try_from(3 * time_of_one().as_micros()).expect("less than an age");
    for kill in 0..N_KILLS {
        let delay = Duration::from_micros(delays.below(0, kill, micros_max));
        let announced = run_and_kill(dir.path(), delay).unwrap_or(step);
        let found = find_latest(dir.path()).unwrap();
        let found_step = found.as_ref().map_or(0, |latest| latest.step);
        assert!(found_step >= announced, "killed after {delay:?}: {found_step} < {announced}");
        if let Some(latest) = found {
            check_contents(&latest.folder, latest.step);
        }
        step = found_step;
        let entries = fs::read_dir(dir.path()).unwrap();
        n_torn += entries.filter(|e| e.as_ref().unwrap().path().extension().is_some()).count();
    }
    assert!(step > 0, "no checkpoint was written in {N_KILLS} runs");
    assert!(n_torn > 0, "no kill fell into the writing of a checkpoint");
}

/// The child: continues from the newest checkpoint, says each step it has written.
fn write_checkpoints(run: &Path) -> ! {
    let first = find_latest(run).unwrap().map_or(1, |latest| latest.step + 1);
    for step in first.. {
        let weights = numbers(step);
        let (config, state) = (json!({}), json!({ "step": step }));
        let contents = Contents {
            config: &config,
            weights: vec![NewTensor::f32("w", &[N_ELEMENTS as u64], &weights)],
            optimizer: vec![NewTensor::f32("m", &[N_ELEMENTS as u64], &weights)],
            state: &state,
            files: Vec::new(),
        };
        save(run, step, &contents, N_KEEP).unwrap();
        println!("wrote {step}");
        std::io::stdout().flush().unwrap();
    }
    unreachable!("steps do not end")
}

/// A child that writes checkpoints, and what it says once it is up.
fn writer(run: &Path) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args([THIS, "--exact", "--nocapture"])
        .env(RUN, run)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.find(|line| line.contains("running 1 test")).expect("the child starts");
    (child, lines)
}

/// How long a checkpoint takes.
fn time_of_one() -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, lines) = writer(dir.path());
    let start = Instant::now();
    lines.filter(|line| line.contains("wrote ")).nth(1).expect("it writes two");
    let two = start.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    two / 2
}

/// Returns the last step the child announced, if any.
fn run_and_kill(run: &Path, delay: Duration) -> Option<u64> {
    // The clock starts when the child is up, so that delays fall into its writing.
    let (mut child, lines) = writer(run);
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
    lines.filter_map(|line| line.split("wrote ").nth(1)?.parse().ok()).last()
}

fn check_contents(folder: &Path, step: u64) {
    let reader = CheckpointReader::open(folder).unwrap();
    assert_eq!(reader.state::<serde_json::Value>().unwrap()["step"], step);
    let expected = numbers(step);
    assert!(reader.read_f32("w", &[N_ELEMENTS as u64]).unwrap() == expected);
    let optimizer = reader.optimizer().unwrap();
    assert!(optimizer.read_f32("m", &[N_ELEMENTS as u64]).unwrap() == expected);
}

fn numbers(step: u64) -> Vec<f32> {
    let mut numbers = vec![0.0; N_ELEMENTS];
    Stream::new(0, "kill").fill_uniform(step, 0, -1.0, 1.0, &mut numbers);
    numbers
}
