//! From a path on the command line to an elaborated and lowered model, diagnostics shown on the
//! way.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use weft_lang::ast::Program;
use weft_lang::diag::{self, Diag};
use weft_lang::elaborate::{self, Overrides, Tree};
use weft_lang::lower::{self, Lowered, Purpose, Settings};
use weft_lang::settings;
use weft_lang::source::{SourceMap, Span};

/// Which model, and what to change in it.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelArgs {
    /// The .model file
    pub model: PathBuf,
    /// Override a constant of the model; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub sets: Vec<String>,
    /// Store values and compute products as this precision block says; f32 throughout without one
    #[arg(long, value_name = "NAME")]
    pub precision: Option<String>,
}

/// A loaded program.
pub struct Source {
    pub program: Program,
    pub map: SourceMap,
}

impl ModelArgs {
    /// `--set` and, where a checkpoint is given, its `config.json`.
    pub fn overrides(&self, config: Option<serde_json::Value>) -> Result<Overrides> {
        let mut sets: Vec<(String, String)> = vec![];
        for set in &self.sets {
            let Some((name, value)) = set.split_once('=') else {
                bail!("--set {set}: expected NAME=VALUE");
            };
            let (name, value) = (name.trim(), value.trim());
            // The last of one name counts, as with any option.
            sets.retain(|(earlier, _)| earlier != name);
            sets.push((name.into(), value.into()));
        }
        Ok(Overrides { config, shrink: false, sets, precision: self.precision.clone() })
    }
}

/// Read and parse `path` and what it uses.
pub fn load(path: &Path) -> Result<Source> {
    let read = |p: &Path| std::fs::read_to_string(p);
    let (program, map, diags) = weft_lang::load(path, &read);
    let source = Source { program, map };
    show(&source.map, &diags)?;
    Ok(source)
}

impl Source {
    pub fn elaborate(&self, overrides: &Overrides) -> Result<Tree<'_>> {
        let mut diags = vec![];
        let tree = elaborate::elaborate(&self.program, &self.map, overrides, &mut diags);
        // What was placed is lowered all the same: its errors come in the same run.
        if let (Some(tree), true) = (&tree, diags.iter().any(Diag::is_error)) {
            let settings = Settings {
                batch: lower::Size::Bounded(64),
                seq: lower::Size::Bounded(4096),
                segments: false,
                cache: None,
            };
            let purpose = if tree.loss.is_some() { Purpose::Train } else { Purpose::Infer };
            lower::lower(&self.program, tree, &self.map, purpose, settings, &mut diags);
        }
        show(&self.map, &diags)?;
        match tree {
            Some(tree) => Ok(tree),
            None => bail!(""),
        }
    }

    /// Compute as the block that a train block names.
    pub fn choose_precision(&self, tree: &mut Tree, name: &str) -> Result<()> {
        if tree.precision.name == name {
            return Ok(());
        }
        let (mut diags, asked) = (vec![], (Span::default(), "precision"));
        settings::choose_precision(tree, name, asked, &mut diags);
        show(&self.map, &diags)
    }

    pub fn lower(&self, tree: &Tree, purpose: Purpose, settings: Settings) -> Result<Lowered> {
        let mut diags = vec![];
        let lowered = lower::lower(&self.program, tree, &self.map, purpose, settings, &mut diags);
        show(&self.map, &diags)?;
        match lowered {
            Some(lowered) => Ok(lowered),
            None => bail!(""),
        }
    }
}

/// Print diagnostics; an error among them ends the command.
pub fn show(map: &SourceMap, diags: &[Diag]) -> Result<()> {
    let mut diags = diags.to_vec();
    diag::sort(&mut diags);
    if !diags.is_empty() {
        eprint!("{}", diag::render_all(map, &diags, std::io::stderr().is_terminal()));
    }
    match diags.iter().filter(|d| d.is_error()).count() {
        0 => Ok(()),
        1 => bail!("1 error"),
        n => bail!("{n} errors"),
    }
}
