//! `weft bench-gpu`: kernels on a GPU, first against the reference interpreter at small sizes, then
//! timed at DeepSeek-V3's.
//!
//! It needs nothing but the driver. Times are those of the device's own clock for each launch, with
//! the second-level cache flushed before; a table gives their median and spread, beside the rate of
//! a plain copy and of large products in the same run. On `ptx`, the interpreter of PTX, numbers
//! are checked and nothing is timed.

mod cases;
mod run;

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_backend_cuda::Cuda;
use weft_backend_cuda::gemm::select::Budget;
use weft_runtime::device::DeviceKind;

use cases::Case;
use run::{Bench, Measured, Timed, Times, Timing, check, time};

/// Check kernels on a GPU against the reference interpreter, and time them
#[derive(clap::Args)]
pub struct Args {
    /// Where they run: cuda, or ptx to check them without a GPU
    #[arg(long, default_value = "cuda")]
    device: DeviceKind,
    /// Only cases whose name has this in it
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Check numbers, and time nothing
    #[arg(long)]
    check: bool,
    /// Time the small sizes: they say nothing of the kernels, but run anywhere
    #[arg(long)]
    small: bool,
    /// Multiprocessors that kernels which stay until all is done may take [default: all that the
    /// device has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sm_budget: Option<u32>,
    /// Timed runs of each case
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Also write the table here
    #[arg(short, long, value_name = "FILE.md")]
    output: Option<PathBuf>,
    /// Also write all numbers here: checks, and times of each launch and of all of a case
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<()> {
    if args.device == DeviceKind::Cpu {
        bail!(
            "bench-gpu is for kernels of GPUs; pass --device cuda, or --device ptx to check them"
        );
    }
    let device = args
        .device
        .open(1)
        .context("nothing was checked or timed; --device ptx checks without a GPU")?;
    println!("{}", device.describe());
    let sms = args.sm_budget.or(device.multiprocessors()).unwrap_or(Budget::WHOLE.sms);
    let machine = Cuda { budget: Budget { sms }, ..Cuda::WHOLE };
    let on = Bench { device, machine };
    let wanted = |case: &Case| args.only.as_ref().is_none_or(|text| case.name.contains(text));
    let all: Vec<Case> = cases::all().into_iter().filter(wanted).collect();
    if all.is_empty() {
        let names: Vec<&str> = cases::all().iter().map(|case| case.name).collect();
        bail!("no case has that in its name; there are {}", names.join(", "));
    }
    let checks = check_all(&all, &on)?;
    let timed = match args.check || args.device == DeviceKind::Ptx {
        true => None,
        false => {
            let how = Timing { runs: args.runs.max(1), flushes: !args.small };
            Some(Table::of(&all, &on, how)?)
        }
    };
    if let Some(table) = &timed {
        let table = table.text();
        print!("{table}");
        if let Some(file) = &args.output {
            let text = format!("# Kernels on {}\n\n{table}", on.device.describe());
            std::fs::write(file, text).with_context(|| file.display().to_string())?;
        }
    }
    if let Some(file) = &args.json {
        let numbers = json!({
            "device": on.device.describe(),
            "checks": checks,
            "timed": timed.map(|table| table.json()),
        });
        let text = serde_json::to_string_pretty(&numbers)? + "\n";
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Every case at its small sizes; a wrong one does not hide the others.
fn check_all(all: &[Case], on: &Bench) -> Result<Vec<Value>> {
    let (mut wrong, mut checks) = (vec![], vec![]);
    for case in all {
        match check(case, on) {
            Ok(off) if off <= case.tolerance => {
                println!("{}: off by {off:.1e}", case.name);
                checks.push(json!({ "case": case.name, "off": off, "tolerance": case.tolerance }));
            }
            Ok(off) => {
                wrong.push(format!(
                    "{}: off by {off:.1e}, more than {:.1e}",
                    case.name, case.tolerance
                ));
            }
            Err(e) => wrong.push(format!("{}: {e:#}", case.name)),
        }
    }
    match wrong.len() {
        0 => Ok(checks),
        n => bail!("{n} of {} cases are wrong:\n{}", all.len(), wrong.join("\n")),
    }
}

/// What all problems took.
struct Table {
    how: Timing,
    /// Bytes a second of a plain copy.
    bandwidth: f64,
    rates: Vec<(&'static str, f64)>,
    /// The case, the sizes of its problem, and its times.
    rows: Vec<(&'static str, String, Measured)>,
}

impl Table {
    fn of(all: &[Case], on: &Bench, how: Timing) -> Result<Table> {
        let copy = cases::copy();
        let mut bandwidth = 0f64;
        for problem in copy.problems(how.flushes) {
            for row in time(&copy, problem, on, how)?.launches {
                bandwidth = bandwidth.max(row.bytes / seconds(row.times.median()));
            }
        }
        let rates = rates(on, how)?;
        let mut rows = vec![];
        for case in all {
            for problem in case.problems(how.flushes) {
                rows.push((case.name, problem.sizes.clone(), time(case, problem, on, how)?));
            }
        }
        Ok(Table { how, bandwidth, rates, rows })
    }

    fn text(&self) -> String {
        let mut out = format!("A copy takes {:.0} GB/s; ", self.bandwidth / 1e9);
        let said = self.rates.iter();
        let said = said.map(|(of, rate)| format!("{}s {:.1}", stem(of), rate / 1e12));
        let said: Vec<String> = said.collect();
        let _ = write!(out, "large products reach, in TFLOP/s, of {}. ", said.join(", of "));
        let runs = self.how.runs;
        let _ = writeln!(out, "Median of {runs} runs, and where a tenth of them lies beyond.\n");
        out += "| case | kernel | µs | 10 % | 90 % | GB/s | of copy | TFLOP/s | of rate |\n";
        out += "|---|---|---|---|---|---|---|---|---|\n";
        for (case, sizes, measured) in &self.rows {
            for row in &measured.launches {
                let line = line(&format!("{case} {sizes}"), row, self.bandwidth, &self.rates);
                let _ = writeln!(out, "{line}");
            }
        }
        out
    }

    fn json(&self) -> Value {
        let launch = |row: &Timed| {
            let mut value = times(&row.times);
            value["kernel"] = row.kernel.as_str().into();
            value["flops"] = row.flops.into();
            value["bytes"] = row.bytes.into();
            value
        };
        let row = |(case, sizes, measured): &(&str, String, Measured)| {
            let launches: Vec<Value> = measured.launches.iter().map(launch).collect();
            let total = times(&measured.total);
            json!({ "case": case, "sizes": sizes, "launches": launches, "total": total })
        };
        let rates = self.rates.iter().map(|(of, rate)| (stem(of).to_string(), (*rate).into()));
        json!({
            "runs": self.how.runs,
            "small": !self.how.flushes,
            "copy_bytes_per_s": self.bandwidth,
            "flops_per_s": rates.collect::<serde_json::Map<String, Value>>(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// What kernels of products are of: `bf16` of `bf16_`.
fn stem(of: &str) -> &str {
    of.trim_end_matches('_')
}

fn times(times: &Times) -> Value {
    json!({
        "median_us": micro(times.median()),
        "tenth_us": micro(times.tenth(1)),
        "ninetieth_us": micro(times.tenth(9)),
    })
}

fn micro(t: Duration) -> f64 {
    seconds(t) * 1e6
}

/// Flops a second of large products on tensor cores, each with what names of their kernels hold.
fn rates(on: &Bench, how: Timing) -> Result<Vec<(&'static str, f64)>> {
    let mut all = vec![];
    for (of, case) in cases::rates() {
        let mut rate = 0f64;
        for problem in case.problems(how.flushes) {
            for row in time(&case, problem, on, how)?.launches {
                if row.kernel.contains(of) && row.kernel.starts_with(TENSOR_CORES) {
                    rate = rate.max(row.flops / seconds(row.times.median()));
                }
            }
        }
        all.push((of, rate));
    }
    Ok(all)
}

/// Names of kernels of tensor cores begin so.
const TENSOR_CORES: &str = "sm90a_";

fn line(case: &str, row: &Timed, bandwidth: f64, rates: &[(&'static str, f64)]) -> String {
    let [median, low, high] = [row.times.median(), row.times.tenth(1), row.times.tenth(9)];
    let (bytes, flops) = (row.bytes / seconds(median), row.flops / seconds(median));
    let on = |of: &str| row.kernel.starts_with(TENSOR_CORES) && row.kernel.contains(of);
    let rate = rates.iter().find(|(of, rate)| on(of) && *rate > 0.0);
    let share = rate.map_or(String::new(), |(_, rate)| format!("{:.0} %", 100.0 * flops / rate));
    format!(
        "| {case} | `{}` | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} % | {:.1} | {share} |",
        row.kernel,
        micro(median),
        micro(low),
        micro(high),
        bytes / 1e9,
        100.0 * bytes / bandwidth,
        flops / 1e12
    )
}

/// Never zero.
fn seconds(t: Duration) -> f64 {
    t.as_secs_f64().max(1e-9)
}
