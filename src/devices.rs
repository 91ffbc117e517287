//! `weft devices`: what could run a graph here, and why the rest could not.

use anyhow::Result;
use weft_runtime::device::list::{DevicesArgs, devices};

/// List what could run a graph on this machine, and why the rest could not
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    devices: DevicesArgs,
}

pub fn run(args: Args) -> Result<()> {
    Ok(devices(&args.devices, &mut std::io::stdout().lock())?)
}
