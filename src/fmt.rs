//! `weft fmt`: one layout for every `.model` file.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use weft_lang::source::SourceMap;

use crate::frontend;

/// Format .model files in place
#[derive(clap::Args)]
pub struct Args {
    /// The files to format
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Change nothing; fail if a file would change
    #[arg(long)]
    check: bool,
}

pub fn run(args: Args) -> Result<()> {
    let mut unformatted = vec![];
    for path in &args.files {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut map = SourceMap::new();
        let (file, diags) = weft_lang::parse_file(&mut map, path, &text);
        frontend::show(&map, &diags)?;
        let formatted = weft_lang::fmt::format(&map, file.id, &file);
        if formatted == text {
            continue;
        }
        unformatted.push(path.display().to_string());
        if !args.check {
            std::fs::write(path, formatted)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if args.check && !unformatted.is_empty() {
        bail!("not formatted: {}", unformatted.join(", "));
    }
    Ok(())
}
