//! Where the time of a session's runs went, step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use weft_graph::{Entry, Graph, Step};

/// One row per launch or copy of the entry, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub rows: Vec<ProfileRow>,
}

/// Sums over all times a step was carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileRow {
    pub label: String,
    pub kernel: String,
    pub count: u64,
    pub time: Duration,
    pub flops: f64,
    pub bytes: f64,
}

impl Profile {
    pub(super) fn new(graph: &Graph, entry: &Entry) -> Profile {
        let mut rows = Vec::new();
        collect_rows(graph, &entry.steps, &mut rows);
        Profile { rows }
    }

    pub(super) fn add(&mut self, row: usize, time: Duration, flops: i64, bytes: i64) {
        let row = &mut self.rows[row];
        row.count += 1;
        row.time += time;
        row.flops += flops as f64;
        row.bytes += bytes as f64;
    }

    pub fn time(&self) -> Duration {
        self.rows.iter().map(|row| row.time).sum()
    }

    /// The rows of each kernel as one, labelled with how many steps launch it.
    pub fn by_kernel(&self) -> Profile {
        let mut kernels: BTreeMap<&str, (usize, ProfileRow)> = BTreeMap::new();
        for row in &self.rows {
            let empty = || (0, ProfileRow::new(String::new(), row.kernel.clone()));
            let (steps, sum) = kernels.entry(&row.kernel).or_insert_with(empty);
            *steps += 1;
            sum.count += row.count;
            sum.time += row.time;
            sum.flops += row.flops;
            sum.bytes += row.bytes;
        }
        let label = |(steps, row): (usize, ProfileRow)| ProfileRow {
            label: format!("{steps} steps"),
            ..row
        };
        Profile { rows: kernels.into_values().map(label).collect() }
    }
}

impl ProfileRow {
    fn new(label: String, kernel: String) -> ProfileRow {
        ProfileRow { label, kernel, count: 0, time: Duration::ZERO, flops: 0.0, bytes: 0.0 }
    }
}

/// A table, the greatest share of time first.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.time().as_secs_f64().max(f64::MIN_POSITIVE);
        writeln!(f, " share   total ms     count    us each   GFLOP/s     GB/s  kernel  step")?;
        let mut rows: Vec<&ProfileRow> = self.rows.iter().filter(|row| row.count > 0).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.time));
        for row in rows {
            let seconds = row.time.as_secs_f64();
            let rate = |amount: f64| match amount > 0.0 && seconds > 0.0 {
                true => format!("{:.1}", amount / seconds / 1e9),
                false => "-".into(),
            };
            writeln!(
                f,
                "{:5.1}% {:10.3} {:9} {:10.2} {:>9} {:>8}  {}  {}",
                100.0 * seconds / total,
                1e3 * seconds,
                row.count,
                1e6 * seconds / row.count as f64,
                rate(row.flops),
                rate(row.bytes),
                row.kernel,
                row.label,
            )?;
        }
        writeln!(f, "total {:11.3} ms", 1e3 * self.time().as_secs_f64())
    }
}

/// In the order in which `flat` counts steps.
fn collect_rows(graph: &Graph, steps: &[Step], rows: &mut Vec<ProfileRow>) {
    for step in steps {
        match step {
            Step::Launch(launch) => {
                let kernel = graph.kernel(launch.kernel).name.clone();
                rows.push(ProfileRow::new(launch.label.clone(), kernel));
            }
            Step::Copy(copy) => rows.push(ProfileRow::new(copy.label.clone(), "copy".into())),
            Step::Collective(c) => {
                rows.push(ProfileRow::new(c.label.clone(), c.kind.name().into()))
            }
            Step::Message(m) => rows.push(ProfileRow::new(m.label.clone(), m.end.name().into())),
            Step::Loop(repeat) => collect_rows(graph, &repeat.body, rows),
        }
    }
}
