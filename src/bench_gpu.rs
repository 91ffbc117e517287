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
use weft_backend_cuda::Cuda;
use weft_backend_cuda::gemm::select::Budget;
use weft_runtime::device::DeviceKind;

use cases::Case;
use run::{Bench, Timed, Timing, check, time};

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
    check_all(&all, &on)?;
    if args.check || args.device == DeviceKind::Ptx {
        return Ok(());
    }
    let how = Timing { runs: args.runs.max(1), flushes: !args.small };
    let table = timed_table(&all, &on, how)?;
    print!("{table}");
    if let Some(file) = &args.output {
        let text = format!("# Kernels on {}\n\n{table}", on.device.describe());
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Every case at its small sizes; a wrong one does not hide the others.
fn check_all(all: &[Case], on: &Bench) -> Result<()> {
    let mut wrong = vec![];
    for case in all {
        match check(case, on) {
            Ok(off) if off <= case.tolerance => println!("{}: off by {off:.1e}", case.name),
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
        0 => Ok(()),
        n => bail!("{n} of {} cases are wrong:\n{}", all.len(), wrong.join("\n")),
    }
}

fn timed_table(all: &[Case], on: &Bench, how: Timing) -> Result<String> {
    let copy = cases::copy();
    let mut bandwidth = 0f64;
    for problem in copy.problems(how.flushes) {
        for row in time(&copy, problem, on, how)? {
            bandwidth = bandwidth.max(row.bytes / seconds(row.median()));
        }
    }
    let rates = rates(on, how)?;
    let mut out = format!("A copy takes {:.0} GB/s; ", bandwidth / 1e9);
    let said =
        rates.iter().map(|(of, rate)| format!("{}s {:.1}", of.trim_end_matches('_'), rate / 1e12));
    let said: Vec<String> = said.collect();
    let _ = write!(out, "large products reach, in TFLOP/s, of {}. ", said.join(", of "));
    let _ = writeln!(out, "Median of {} runs, and where a tenth of them lies beyond.\n", how.runs);
    out += "| case | kernel | µs | 10 % | 90 % | GB/s | of copy | TFLOP/s | of rate |\n";
    out += "|---|---|---|---|---|---|---|---|---|\n";
    for case in all {
        for problem in case.problems(how.flushes) {
            for row in time(case, problem, on, how)? {
                let _ = writeln!(out, "{}", line(case, &problem.sizes, &row, bandwidth, &rates));
            }
        }
    }
    Ok(out)
}

/// Flops a second of large products on tensor cores, each with what names of their kernels hold.
fn rates(on: &Bench, how: Timing) -> Result<Vec<(&'static str, f64)>> {
    let mut all = vec![];
    for (of, case) in cases::rates() {
        let mut rate = 0f64;
        for problem in case.problems(how.flushes) {
            for row in time(&case, problem, on, how)? {
                if row.kernel.contains(of) && row.kernel.starts_with(TENSOR_CORES) {
                    rate = rate.max(row.flops / seconds(row.median()));
                }
            }
        }
        all.push((of, rate));
    }
    Ok(all)
}

/// Names of kernels of tensor cores begin so.
const TENSOR_CORES: &str = "sm90a_";

fn line(
    case: &Case,
    sizes: &str,
    row: &Timed,
    bandwidth: f64,
    rates: &[(&'static str, f64)],
) -> String {
    let [median, low, high] = [row.median(), row.tenth(1), row.tenth(9)];
    let micro = |t: Duration| seconds(t) * 1e6;
    let (bytes, flops) = (row.bytes / seconds(median), row.flops / seconds(median));
    let on = |of: &str| row.kernel.starts_with(TENSOR_CORES) && row.kernel.contains(of);
    let rate = rates.iter().find(|(of, rate)| on(of) && *rate > 0.0);
    let share = rate.map_or(String::new(), |(_, rate)| format!("{:.0} %", 100.0 * flops / rate));
    format!(
        "| {} {sizes} | `{}` | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} % | {:.1} | {share} |",
        case.name,
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
