//! `weft generate`: continue a text with the weights of a checkpoint.

use anyhow::Result;
use weft_runtime::generate::command::{self, TextArgs};

use crate::frontend::ModelArgs;
use crate::gpu::GpuArgs;
use crate::graphs;
use crate::mesh::MeshArgs;
use crate::pipeline::{ShowArgs, Way};

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
        let options = [("--context", args.context.is_some()), ("--mesh", args.mesh.is_given())];
        graphs::open(&args.model, &[&options[..], &args.gpu.given()].concat())?
    } else {
        let folder = command::checkpoint_folder(&args.text.checkpoint)?;
        let context = match args.context {
            Some(n) => n.max(1),
            None => {
                let prompts = args.text.prompt_ids(&folder)?;
                let n_prompt = prompts.iter().map(Vec::len).max().unwrap_or(0) as u64;
                let n = n_prompt.saturating_add(args.text.max_new as u64);
                n.max(1).next_multiple_of(CONTEXT_STEP)
            }
        };
        graphs::for_generation(
            &args.model,
            Some(&folder),
            context,
            (&args.mesh, Some(args.text.ranks.n_ranks()?)),
            args.gpu.target(args.text.device)?,
            &Way::from(&args.show),
        )?
    };
    command::generate(graph, &args.text)?;
    Ok(())
}
