//! `weft plot`: the pictures of several runs in one, from their metrics, and how far their losses
//! are from the first run's.

use std::path::PathBuf;

use anyhow::Result;
use weft_runtime::train::pictures::Runs;

/// Draw the losses and the expert load of several runs side by side
#[derive(clap::Args)]
pub struct Args {
    /// Folders that `weft train` wrote
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Steps in a row of the table of loss differences
    #[arg(long, default_value_t = 200, value_name = "STEPS")]
    window: u64,
    /// Folder for the pictures
    #[arg(short, long, default_value = ".")]
    output: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    let runs = Runs::read(&args.runs)?;
    print!("{}", runs.table(args.window));
    for picture in runs.draw(&args.output)? {
        println!("picture: {}", picture.display());
    }
    Ok(())
}
