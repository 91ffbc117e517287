//! `weft train`: a model, or a graph compiled from one, on text.

use anyhow::Result;
use weft_runtime::ranks;
use weft_runtime::train::command::{self, RunArgs};

use crate::frontend::ModelArgs;
use crate::gpu::GpuArgs;
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
    gpu: GpuArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    show: ShowArgs,
}

pub fn run(args: Args) -> Result<()> {
    let path = &args.model.model;
    let graphs = if graphs::is_graph(path) {
        let options = [
            ("--train", args.block.is_some()),
            ("--watch", !args.watch.is_empty()),
            ("--mesh", args.mesh.is_given()),
        ];
        vec![graphs::open(&args.model, &[&options[..], &args.gpu.given()].concat())?]
    } else {
        let weights = args.run.weights.as_deref().map(Taken::Weights);
        let n_ranks = args.run.ranks.n_ranks()?;
        let target = args.gpu.target(args.run.device)?;
        let compiled = |rank: usize, way: &Way| {
            graphs::for_training(
                &args.model,
                args.block.as_deref(),
                weights,
                &args.watch,
                (&args.mesh, Some(n_ranks), rank),
                target,
                way,
            )
        };
        // A process of its own compiles its own program, threads share what is compiled here.
        let own = ranks::own_number();
        let mut all = vec![compiled(own.unwrap_or(0), &Way::from(&args.show))?];
        if own.is_none() {
            for rank in graphs::first_of_stages(&all[0])?.into_iter().skip(1) {
                all.push(compiled(rank, &Way::default())?);
            }
        }
        all
    };
    command::train(graphs, &args.run)?;
    Ok(())
}
