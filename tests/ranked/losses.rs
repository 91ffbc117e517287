//! What a run wrote of its losses.

use std::fs;
use std::path::Path;

/// The loss of each step of a run.
pub fn of(run: &Path) -> Vec<f64> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).expect("the run's metrics");
    let loss = |line: &str| {
        let rest = line.split_once("\"loss\":").expect("a loss").1;
        rest[..rest.find(',').expect("more follows")].parse().expect("a number")
    };
    metrics.lines().map(loss).collect()
}
