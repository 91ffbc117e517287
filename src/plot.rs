//! `weft plot`: the pictures of several runs in one, from their metrics.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weft_runtime::train::metrics::{self, Record};
use weft_runtime::train::plot::{self, Run};

/// Draw losses and expert imbalance of several runs in one picture each
#[derive(clap::Args)]
pub struct Args {
    /// Folders that `weft train` wrote, or LABEL=FOLDER
    #[arg(required = true)]
    runs: Vec<String>,
    /// Where losses.svg and max_vio.svg go
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Steps over which curves are smoothed
    #[arg(long, default_value_t = 10.0)]
    smooth: f64,
}

pub fn run(args: Args) -> Result<()> {
    let mut all: Vec<(String, Vec<Record>)> = vec![];
    for run in &args.runs {
        let (label, folder) = match run.split_once('=') {
            Some((label, folder)) => (label, Path::new(folder)),
            None => (run.as_str(), Path::new(run)),
        };
        let path = folder.join("metrics.jsonl");
        let records =
            metrics::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if records.is_empty() {
            bail!("{} has no steps", path.display());
        }
        all.push((label.to_string(), records));
    }
    let runs: Vec<Run> = all.iter().map(|(name, records)| Run { name, records }).collect();
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let charts = [
        ("losses.svg", plot::losses(&runs, args.smooth)),
        ("max_vio.svg", plot::max_vio(&runs, args.smooth)),
    ];
    for (name, chart) in charts {
        let path = args.out.join(name);
        plot::write_svg(&path, &chart)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
