//! How far the loss of one run is from another's: the difference of the smoothed losses, relative
//! to the first run's, step by step and in the mean of windows of steps.

use super::metrics::Record;
use super::plot::{Chart, Run, Series, smooth};

/// What is left of a step's loss in the smoothed loss of the next (EMA 0.9).
const KEPT: f64 = 0.9;

/// Mean signed relative difference over the steps `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    pub first: u64,
    pub last: u64,
    pub mean: f64,
}

/// (step, relative difference) for every step that both runs have.
pub fn relative(of: &[Record], beside: &[Record]) -> Vec<(f64, f64)> {
    let smoothed = |records: &[Record]| {
        let losses: Vec<(f64, f64)> =
            records.iter().filter_map(|r| Some((r.step as f64, r.number("loss")?))).collect();
        smooth(&losses, -1.0 / KEPT.ln())
    };
    let (of, beside) = (smoothed(of), smoothed(beside));
    let mut found = vec![];
    for (step, x) in of {
        if let Ok(i) = beside.binary_search_by(|(s, _)| s.total_cmp(&step)) {
            found.push((step, (x - beside[i].1) / beside[i].1));
        }
    }
    found
}

/// Windows of `steps`, the last perhaps shorter; and, last, all after the first tenth.
pub fn windows(differences: &[(f64, f64)], steps: u64) -> Vec<Window> {
    let Some(&(end, _)) = differences.last() else { return vec![] };
    let end = end as u64;
    let mean = |first: u64, last: u64| {
        let inside = differences.iter().filter(|(s, _)| (first..=last).contains(&(*s as u64)));
        let values: Vec<f64> = inside.map(|(_, d)| *d).collect();
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Window { first, last, mean }
    };
    let starts = (0..end.div_ceil(steps.max(1))).map(|n| n * steps.max(1) + 1);
    let mut all: Vec<Window> =
        starts.map(|first| mean(first, end.min(first + steps.max(1) - 1))).collect();
    all.push(mean(end / 10 + 1, end));
    all
}

/// The differences of all runs but the first from the first.
pub fn chart(runs: &[Run<'_>]) -> Option<Chart> {
    let (first, others) = runs.split_first()?;
    let series = others.iter().map(|run| {
        let points = relative(run.records, first.records);
        let points = points.into_iter().map(|(step, d)| (step, 100.0 * d)).collect();
        Series { name: run.name.to_owned(), points, is_faint: false }
    });
    let title = format!("Smoothed loss (EMA {KEPT}) beside {}", first.name);
    Some(Chart { title, y_label: "relative difference, %".to_owned(), series: series.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u64, loss: impl Fn(u64) -> f64) -> Vec<Record> {
        (1..=n).map(|step| Record::new(step).with("loss", loss(step))).collect()
    }

    #[test]
    fn a_loss_that_is_larger_by_a_percent_differs_by_a_percent() {
        let (a, b) = (run(50, |s| 5.0 / s as f64), run(40, |s| 5.05 / s as f64));
        let found = relative(&b, &a);
        assert_eq!(found.len(), 40);
        assert!(found.iter().all(|(_, d)| (d - 0.01).abs() < 1e-12));
        let all = windows(&found, 16);
        let spans: Vec<(u64, u64)> = all.iter().map(|w| (w.first, w.last)).collect();
        assert_eq!(spans, [(1, 16), (17, 32), (33, 40), (5, 40)]);
        assert!(all.iter().all(|w| (w.mean - 0.01).abs() < 1e-12));
    }

    #[test]
    fn signs_cancel_and_smoothing_is_by_a_tenth() {
        let a = run(3, |_| 1.0);
        let b = run(3, |s| if s == 1 { 2.0 } else { 1.0 });
        // Weights 0.9 and 1, then 0.81, 0.9 and 1.
        let expected = [1.0, 0.9 / 1.9, 0.81 / 2.71];
        for ((_, d), e) in relative(&b, &a).iter().zip(expected) {
            assert!((d - e).abs() < 1e-12, "{d} {e}");
        }
        let both = [(1.0, 0.25), (2.0, -0.25)];
        assert_eq!(windows(&both, 2)[0].mean, 0.0);
        assert_eq!(windows(&[], 2), []);
    }
}
