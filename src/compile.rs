//! `weft compile`: a model to IR and on to an executable graph.

use anyhow::Result;
use weft_ir::text;
use weft_lang::lower::{Purpose, Settings, Size};
use weft_passes::PassCx;

use crate::frontend::{self, ModelArgs};
use crate::pipeline::{self, Recorder, ShowArgs};

/// Compile a model; with --stop-after, print the IR there
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the graph is for
    #[arg(long = "for", value_enum, default_value = "train")]
    purpose: For,
    /// Sequences in a batch
    #[arg(long, default_value_t = 8)]
    batch: u64,
    /// Tokens in a sequence (of a cache: positions kept)
    #[arg(long, default_value_t = 256)]
    sequence: u64,
    /// Stop after this pass (`lower` is before the first) and print the IR
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum For {
    Train,
    Prefill,
    Decode,
}

pub fn run(args: Args) -> Result<()> {
    let source = frontend::load(&args.model.model)?;
    let tree = source.elaborate(&args.model.overrides(None)?)?;
    let batch = Size::Fixed(args.batch);
    let (purpose, settings) = match args.purpose {
        For::Train => {
            let seq = Size::Fixed(args.sequence);
            (Purpose::Train, Settings { batch, seq, segments: true, cache: None })
        }
        For::Prefill | For::Decode => {
            let seq = match args.purpose {
                For::Decode => Size::Fixed(1),
                _ => Size::Bounded(args.sequence),
            };
            let cache = Some(Size::Fixed(args.sequence));
            (Purpose::Infer, Settings { batch, seq, segments: false, cache })
        }
    };
    let mut module = source.lower(&tree, purpose, settings)?.module;
    let mut recorder = Recorder::new(&args.show)?;
    recorder.input("lower", &module)?;
    let cx = PassCx { gradients: purpose == Purpose::Train, ..PassCx::default() };
    pipeline::run(&mut module, &cx, args.stop_after.as_deref(), &mut recorder)?;
    if args.stop_after.is_some() && args.show.dump.is_none() {
        print!("{}", text::print(&module));
    }
    recorder.finish(&module)
}
