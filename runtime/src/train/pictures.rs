//! Pictures and tables of runs, from the metrics in their folders.

use std::fs;
use std::path::{Path, PathBuf};

use super::difference::{self, Window};
use super::metrics::{self, Record};
use super::run::METRICS;
use super::{TrainError, plot};
use crate::ranks::last_action;

/// Losses and MaxVio of runs side by side, as pictures in `out`; none of what no run measured. Of
/// several runs also how far the losses are from those of the first.
pub fn draw_runs(out: &Path, runs: &[plot::Run<'_>]) -> Result<Vec<PathBuf>, TrainError> {
    let n_records = runs.iter().map(|r| r.records.len()).max().unwrap_or(0);
    let smooth_steps = (n_records as f64 / 50.0).max(1.0);
    let mut drawn = vec![];
    let mut charts = vec![
        ("losses.svg", plot::losses(runs, smooth_steps)),
        ("max_vio.svg", plot::max_vio(runs, smooth_steps)),
    ];
    charts.extend(difference::chart(runs).map(|chart| ("loss_difference.svg", chart)));
    for (name, chart) in charts {
        if chart.series.iter().all(|s| s.points.is_empty()) {
            continue;
        }
        let path = out.join(name);
        plot::write_svg(&path, &chart)?;
        drawn.push(path);
    }
    Ok(drawn)
}

/// What several runs measured, each under its folder's name.
pub struct Runs(Vec<(String, Vec<Record>)>);

impl Runs {
    pub fn read(folders: &[PathBuf]) -> Result<Runs, TrainError> {
        let mut all = vec![];
        for folder in folders {
            last_action::warn(folder);
            let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
            all.push((name.into_owned(), metrics::read(&folder.join(METRICS))?));
        }
        Ok(Runs(all))
    }

    /// Their pictures in one each, written to `out`.
    pub fn draw(&self, out: &Path) -> Result<Vec<PathBuf>, TrainError> {
        fs::create_dir_all(out).map_err(TrainError::io("make", out))?;
        let runs: Vec<plot::Run<'_>> =
            self.0.iter().map(|(name, records)| plot::Run { name, records }).collect();
        draw_runs(out, &runs)
    }

    /// How far each run's loss is from the first's, in windows of `steps`; empty for one run.
    pub fn table(&self, steps: u64) -> String {
        let Some(((first, base), others)) = self.0.split_first().filter(|(_, o)| !o.is_empty())
        else {
            return String::new();
        };
        let mut columns: Vec<(&str, Vec<Window>)> = vec![];
        for (name, records) in others {
            let found = difference::relative(records, base);
            columns.push((name, difference::windows(&found, steps)));
        }
        let mut out = format!(
            "mean signed relative difference of the smoothed loss (EMA 0.9) from {first}, in %\n"
        );
        out += &format!("{:>14}", "steps");
        columns.iter().for_each(|(name, _)| out += &format!("  {name:>14}"));
        out += "\n";
        let n_rows = columns.iter().map(|(_, w)| w.len()).max().unwrap_or(0);
        for row in 0..n_rows.saturating_sub(1) {
            let windows = columns.iter().map(|(_, w)| w[..w.len().max(1) - 1].get(row));
            out += &line(&windows.collect::<Vec<_>>());
        }
        out += &line(&columns.iter().map(|(_, w)| w.last()).collect::<Vec<_>>());
        out
    }
}

/// A window of every run that has it.
fn line(windows: &[Option<&Window>]) -> String {
    let Some(span) = windows.iter().flatten().max_by_key(|w| w.last) else { return String::new() };
    let mut out = format!("{:>14}", format!("{}-{}", span.first, span.last));
    for window in windows {
        let mean = window.map_or_else(String::new, |w| format!("{:+.4}", 100.0 * w.mean));
        out += &format!("  {mean:>14}");
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stand_in_a_table_beside_the_first() {
        let run = |n: u64, loss: f64| (1..=n).map(|s| Record::new(s).with("loss", loss)).collect();
        let all = [("a", run(40, 2.0)), ("b", run(40, 2.02)), ("c", run(20, 1.0))];
        let runs = Runs(all.map(|(name, records)| (name.to_string(), records)).to_vec());
        let table = runs.table(20);
        let lines: Vec<Vec<&str>> =
            table.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["steps", "b", "c"]);
        assert_eq!(lines[1], ["1-20", "+1.0000", "-50.0000"]);
        assert_eq!(lines[2], ["21-40", "+1.0000"]);
        assert_eq!(lines[3], ["5-40", "+1.0000", "-50.0000"]);
        assert_eq!(Runs(runs.0[..1].to_vec()).table(20), "");
    }
}
