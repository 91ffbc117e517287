//! `weft explain`: what a model holds and costs, before anything runs.
use anyhow::Result;
/// Print parameters, flops and bytes of a model
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::frontend::ModelArgs,
}
pub fn run(_args: Args) -> Result<()> { Ok(()) }
