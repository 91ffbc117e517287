//! `weft opt`: run passes on IR text, as dumps are written.

use std::path::PathBuf;

use anyhow::{Result, bail};
use weft_ir::{text, verify};
use weft_passes::PassCx;

use crate::pipeline::{self, Recorder, ShowArgs};

/// Run passes on an .ir file and print the result
#[derive(clap::Args)]
pub struct Args {
    /// IR text, for instance a file of --dump
    file: PathBuf,
    /// Passes to run, in order
    #[arg(long, value_delimiter = ',')]
    passes: Vec<String>,
    /// Differentiate for --passes autodiff
    #[arg(long)]
    gradients: bool,
    #[command(flatten)]
    show: ShowArgs,
}

pub fn run(args: Args) -> Result<()> {
    let mut module = pipeline::read_ir(&args.file)?;
    if let Err(errors) = verify::verify(&module) {
        let all: Vec<String> = errors.iter().map(|e| e.to_string()).collect();
        bail!("{}: {}", args.file.display(), all.join("\n"));
    }
    let cx = PassCx { gradients: args.gradients, ..PassCx::default() };
    let mut recorder = Recorder::new(&args.show)?;
    pipeline::run_named(&mut module, &cx, &args.passes, &mut recorder)?;
    print!("{}", text::print(&module));
    recorder.finish(&module)
}
