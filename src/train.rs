//! `weft train`: a model, or a graph compiled from one, on text.

use anyhow::Result;
use weft_runtime::train::command::{self, RunArgs};

use crate::frontend::ModelArgs;
use crate::graphs::{self, Taken};
use crate::mesh::MeshArgs;
use crate::pipeline::{ShowArgs, Way};

/// Train a model on files of text
#[derive(clap::Args)]
pub struct Args {
    /// The model; a .weft file is run as it is. --set changes constants of the model and keys of
    /// its train block
    #[command(flatten)]
    model: ModelArgs,
    /// The train block to use, if the model has several
    #[arg(long = "train", value_name = "NAME")]
    block: Option<String>,
    /// Measure the operands of these products, by site ("**.o_proj"): amax, what became zero or
    /// was cut off, the error of rounding; may be repeated
    #[arg(long, value_name = "PATTERN")]
    watch: Vec<String>,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    show: ShowArgs,
}

pub fn run(args: Args) -> Result<()> {
    let path = &args.model.model;
    let graph = if graphs::is_graph(path) {
        let options = [
            ("--train", args.block.is_some()),
            ("--watch", !args.watch.is_empty()),
            ("--mesh", args.mesh.is_given()),
        ];
        graphs::open(&args.model, &options)?
    } else {
        let weights = args.run.weights.as_deref().map(Taken::Weights);
        graphs::for_training(
            &args.model,
            args.block.as_deref(),
            weights,
            &args.watch,
            (&args.mesh, Some(args.run.n_ranks()?)),
            args.run.device.into(),
            &Way::from(&args.show),
        )?
    };
    command::train(graph, &args.run)?;
    Ok(())
}
