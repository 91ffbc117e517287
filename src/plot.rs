//! `weft plot`: the pictures of several runs in one, from their metrics.

use std::path::PathBuf;

use anyhow::Result;
use weft_runtime::train::run::plot_runs;

/// Draw the losses and the expert load of several runs side by side
#[derive(clap::Args)]
pub struct Args {
    /// Folders that `weft train` wrote
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Folder for the pictures
    #[arg(short, long, default_value = ".")]
    output: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    for picture in plot_runs(&args.runs, &args.output)? {
        println!("picture: {}", picture.display());
    }
    Ok(())
}
