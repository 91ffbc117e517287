//! `weft generate`: continue a text with the weights of a checkpoint.

use anyhow::Result;
use weft_runtime::generate::command::{self, TextArgs};

use crate::frontend::ModelArgs;
use crate::gpu::GpuArgs;
use crate::graphs;
use crate::mesh::MeshArgs;
use crate::pipeline::{ShowArgs, Way};
use crate::serve::ServeArgs;

/// Cache lengths are multiples of this, so that prompts of similar length share a compiled graph.
const CONTEXT_STEP: u64 = 512;

/// Continue a text with a checkpoint's weights. Several ranks have the experts between them, and
/// each two texts at a time
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Positions that prompt and continuation may have together [default: what they need]
    #[arg(long)]
    context: Option<u64>,
    #[command(flatten)]
    serve: ServeArgs,
    /// Texts continued at once, over caches in pages [default: all, up to 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    show: ShowArgs,
}

pub fn run(args: Args) -> Result<()> {
    let path = &args.model.model;
    let graph = if graphs::is_graph(path) {
        let options = [
            ("--context", args.context.is_some()),
            ("--mesh", args.mesh.is_given()),
            ("--batch", args.batch.is_some()),
        ];
        let given = [&options[..], &args.serve.given(), &args.gpu.given()].concat();
        graphs::open(&args.model, &given)?
    } else {
        let folder = command::checkpoint_folder(&args.text.checkpoint)?;
        let max_new = args.text.max_new as u64;
        let prompts = args.text.prompt_ids(&folder)?;
        let lengths = || prompts.iter().map(|p| p.len() as u64);
        let context = match args.context {
            Some(n) => n.max(1),
            None => {
                let n = lengths().max().unwrap_or(0).saturating_add(max_new);
                n.max(1).next_multiple_of(CONTEXT_STEP)
            }
        };
        // What is made last is not read any more.
        let positions = |n: u64| n.saturating_add(max_new.max(1)) - 1;
        let needs: Vec<u64> = lengths().map(positions).collect();
        graphs::for_generation(
            &args.model,
            Some(&folder),
            |source, tree, n_ranks| {
                let of = (source, tree);
                args.serve.caches(of, n_ranks, context, args.batch, Some(&needs))
            },
            (&args.mesh, Some(args.text.ranks.n_ranks()?)),
            args.gpu.target(args.text.device)?,
            &Way::from(&args.show),
        )?
    };
    command::generate(graph, &args.text)?;
    Ok(())
}
