//! `weft check`: everything that can be said about a model without compiling it.

use std::time::Instant;

use anyhow::Result;
use weft_lang::lower::{Purpose, Settings, Size};

use crate::frontend::{self, ModelArgs};

/// Type a model and report every error in it
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let source = frontend::load(&args.model.model)?;
    let tree = source.elaborate(&args.model.overrides(None)?)?;
    let mut diags = vec![];
    weft_lang::settings::check(&tree, &mut diags);
    frontend::show(&source.map, &diags)?;
    let settings = Settings {
        batch: Size::Bounded(64),
        seq: Size::Bounded(4096),
        segments: true,
        cache: None,
    };
    let cached = Settings { cache: Some(Size::Bounded(4096)), segments: false, ..settings.clone() };
    let lowered = match tree.loss {
        Some(_) => source.lower(&tree, Purpose::Train, settings)?,
        None => source.lower(&tree, Purpose::Infer, settings)?,
    };
    source.lower(&tree, Purpose::Infer, cached)?;
    let mut diags = vec![];
    weft_lang::settings::check_products(&tree, &lowered.sites, &mut diags);
    let entry = if tree.loss.is_some() { "loss" } else { "forward" };
    weft_lang::settings::parallel::check_model(&tree, &lowered.module, entry, None, &mut diags);
    frontend::show(&source.map, &diags)?;
    let parameters: u64 = tree
        .stores
        .values()
        .filter(|s| s.kind == weft_ir::module::StoreKind::Weight)
        .map(|s| s.elements())
        .sum();
    println!(
        "{}: {} is well-typed: {} weights in {} functions, {:.1} ms",
        args.model.model.display(),
        tree.name,
        parameters,
        lowered.module.funcs.len(),
        start.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}
