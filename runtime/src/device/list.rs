//! The devices of this machine, for people and as JSON.

use std::io::{self, Write};

use serde_json::{Value, json};
use weft_graph::CpuVariant;

use super::Cpu;
use super::cuda::{self, Driver, NoCuda};

#[derive(clap::Args, Clone, Debug)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Print what could run a graph here, and why the rest could not.
pub fn devices(args: &DevicesArgs, out: &mut dyn Write) -> io::Result<()> {
    let (cpu, cuda) = (CpuVariant::best_here(), cuda::probe());
    if args.json {
        return writeln!(out, "{:#}", as_json(cpu, &cuda));
    }
    match cpu {
        Some(best) => writeln!(out, "cpu     {}, {} threads", best.name(), Cpu::threads_here())?,
        None => writeln!(out, "cpu     none: {}", without_variant())?,
    }
    writeln!(out, "ptx     kernels for GPUs, interpreted on one core")?;
    match cuda {
        Err(why) => writeln!(out, "cuda    none: {why}"),
        Ok(driver) => driver.gpus.iter().try_for_each(|gpu| {
            let gib = gpu.memory_bytes as f64 / f64::from(1 << 30);
            write!(
                out,
                "cuda:{}  {}, {gib:.1} GiB, {} multiprocessors, driver for CUDA {}",
                gpu.ordinal, gpu.name, gpu.multiprocessors, driver.version
            )?;
            match gpu.unfit() {
                Some(why) => writeln!(out, "; unfit: {why}"),
                None => writeln!(out),
            }
        }),
    }
}

fn without_variant() -> String {
    let missing = CpuVariant::Avx2.missing_feature().unwrap_or("avx2");
    format!("kernels need AVX2 and what comes with it, and this CPU has no {missing}")
}

fn as_json(cpu: Option<CpuVariant>, cuda: &Result<Driver, NoCuda>) -> Value {
    let cpu = match cpu {
        Some(best) => json!({"variant": best.name(), "threads": Cpu::threads_here()}),
        None => json!({"unfit": without_variant()}),
    };
    let cuda = match cuda {
        Err(why) => json!({"none": why.to_string()}),
        Ok(driver) => {
            let gpus = driver.gpus.iter().map(|gpu| {
                json!({
                    "ordinal": gpu.ordinal,
                    "name": gpu.name,
                    "capability": gpu.capability.to_string(),
                    "memory_bytes": gpu.memory_bytes,
                    "multiprocessors": gpu.multiprocessors,
                    "unfit": gpu.unfit(),
                })
            });
            json!({"version": driver.version.to_string(), "gpus": gpus.collect::<Vec<_>>()})
        }
    };
    json!({"cpu": cpu, "cuda": cuda})
}
