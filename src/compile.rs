//! `weft compile`: a model to IR and on to an executable graph.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use weft_ir::text;
use weft_lang::elaborate::{Overrides, Tree};
use weft_lang::lower::{Purpose, Settings, Size};
use weft_passes::{Copies, Mesh, Pages, PassCx};

use crate::frontend::{self, ModelArgs, Source};
use crate::gpu::GpuArgs;
use crate::graphs::{self, Taken, Target};
use crate::mesh::MeshArgs;
use crate::pipeline::{self, Recorder, ShowArgs, Start, Way};
use crate::policy;
use crate::serve::{BATCH, Caches, ServeArgs};
use crate::verify_passes;

/// Compile a model; with --stop-after, print the IR there
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the graph is for
    #[arg(long = "for", value_enum, default_value = "train")]
    purpose: For,
    /// Sequences in a batch; of a graph that continues texts (-o) those at once [default: 8, or 1
    /// where caches are in one piece]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    batch: Option<u64>,
    /// Tokens in a sequence (of a cache: positions kept) [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    sequence: Option<u64>,
    /// Stop after this pass (`lower` is before the first) and print the IR
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    /// Interpret a shrunken model around every pass and name the first that moves a value
    #[arg(long)]
    verify_passes: bool,
    /// Write the executable graph: for train the step that the train block describes, for prefill
    /// and decode both entries, over a cache of --sequence positions
    #[arg(short, long, value_name = "X.weft", conflicts_with = "stop_after")]
    output: Option<PathBuf>,
    /// What runs the graph
    #[arg(long, value_enum, default_value = "cpu")]
    device: Machine,
    #[command(flatten)]
    gpu: GpuArgs,
    /// The train block to use with -o, if the model has several
    #[arg(long = "train", value_name = "NAME")]
    block: Option<String>,
    /// Take the dims from the config.json of this folder
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Go on from IR that --dump wrote, edited or not, in place of what the passes before give
    #[arg(long, value_name = "DUMP.ir", conflicts_with = "verify_passes")]
    from: Option<PathBuf>,
    /// The last pass that has run on the IR of --from, where no manifest.json beside it says so
    #[arg(long, value_name = "PASS", requires = "from")]
    after: Option<String>,
    #[command(flatten)]
    serve: ServeArgs,
    #[command(flatten)]
    mesh: MeshArgs,
    /// The rank whose program it is, where they differ: those along pipeline
    #[arg(long, value_name = "K", default_value_t = 0)]
    rank: usize,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Machine {
    /// Any x86-64 with AVX2
    Cpu,
    /// Hopper GPUs (compute capability 9.0)
    Cuda,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum For {
    Train,
    Prefill,
    Decode,
}

impl Args {
    fn sequence(&self) -> u64 {
        self.sequence.unwrap_or(256)
    }

    fn start(&self) -> Result<Option<Start>> {
        let from = self.from.as_deref();
        from.map(|path| Start::read(path, self.after.as_deref())).transpose()
    }
}

pub fn run(args: Args) -> Result<()> {
    let serves = !matches!(args.purpose, For::Train);
    if let Some((option, _)) = args.serve.given().iter().find(|(_, given)| *given && !serves) {
        bail!("{option} is for what continues texts: give --for decode");
    }
    if let Some(path) = &args.output {
        return write_graph(&args, path);
    }
    if args.mesh.is_given() && !serves {
        bail!("ranks share the training step of a graph: give --for train -o FILE");
    }
    let source = frontend::load(&args.model.model)?;
    let tree = source.elaborate(&args.model.overrides(None)?)?;
    let serving = match serves {
        true => args.mesh.serving(None, &source, &tree)?,
        false => None,
    };
    let cx = serving.unwrap_or_default().cx(matches!(args.purpose, For::Decode));
    let mesh = cx.mesh;
    let n_ranks = mesh.map_or(1, |mesh| mesh.n_ranks());
    let sequence = args.sequence();
    let Caches { context, batch: n, pages } = match serves {
        true => args.serve.printed((&source, &tree), n_ranks, sequence, args.batch)?,
        false => Caches { context: sequence, batch: args.batch.unwrap_or(BATCH), pages: None },
    };
    // Ranks take their batch in two halves.
    let batch = match mesh {
        Some(_) if n % 2 == 1 => bail!(
            "--batch {n}: ranks take a batch in two halves, so it is even; the nearest is {}",
            n + 1
        ),
        Some(_) => Size::Fixed(n / 2),
        None => Size::Fixed(n),
    };
    let (purpose, settings) = match args.purpose {
        For::Train => {
            let seq = Size::Fixed(sequence);
            (Purpose::Train, Settings { batch, seq, segments: true, cache: None })
        }
        For::Prefill | For::Decode => {
            let seq = match args.purpose {
                For::Decode => Size::Fixed(1),
                _ => Size::Bounded(context),
            };
            let cache = Some(Size::Fixed(context));
            (Purpose::Infer, Settings { batch, seq, segments: false, cache })
        }
    };
    let gradients = purpose == Purpose::Train;
    let cx = PassCx { gradients, pages, ..cx };
    if args.verify_passes {
        verify(&source, &args.model, purpose, &settings, &cx)?;
    }
    let lowered = source.lower(&tree, purpose, settings)?;
    args.mesh.check_model(&source, &tree, &lowered.module, "forward")?;
    let cx = PassCx { policy: policy::policy(&lowered), ..cx.clone() };
    let mut module = lowered.module;
    let from = args.start()?;
    let mut recorder = Recorder::new(&args.show)?;
    recorder.input("lower", &module)?;
    let stop_after = args.stop_after.as_deref();
    let entries: &[&str] = if purpose == Purpose::Train { &["loss"] } else { &["forward"] };
    pipeline::run(&mut module, &cx, stop_after, (from.as_ref(), entries), &mut recorder)?;
    if let Some(start) = &from {
        start.check_used()?;
    }
    if args.stop_after.is_some() && args.show.dump.is_none() {
        print!("{}", text::print(&module));
    }
    recorder.finish(&module)
}

/// `-o`: the graph that `weft train` or `weft generate` would run here, for any machine.
fn write_graph(args: &Args, path: &Path) -> Result<()> {
    let given = [("batch", args.batch), ("sequence", args.sequence)];
    let given = given.into_iter().find_map(|(key, n)| Some((key, n?)));
    if let (For::Train, Some((key, n))) = (args.purpose, given) {
        bail!("--{key} {n}: the train block says what a step takes; give --set {key}={n}");
    }
    let checkpoint = args.checkpoint.as_deref();
    let target = match args.device {
        Machine::Cpu if args.gpu.given().iter().any(|(_, given)| *given) => {
            bail!("--sm-budget and --streams are for GPUs: give --device cuda too")
        }
        Machine::Cpu => Target::Any,
        Machine::Cuda => args.gpu.anywhere(),
    };
    let way = Way { show: args.show.clone(), from: args.start()? };
    let graph = match args.purpose {
        For::Train => graphs::for_training(
            &args.model,
            args.block.as_deref(),
            checkpoint.map(Taken::Dims),
            &[],
            (&args.mesh, None, args.rank),
            target,
            &way,
        )?,
        For::Prefill | For::Decode => {
            let ranks = (&args.mesh, None);
            let caches = |source: &Source, tree: &Tree, n_ranks| {
                args.serve.caches((source, tree), n_ranks, args.sequence(), args.batch, None)
            };
            graphs::for_generation(&args.model, checkpoint, caches, ranks, target, &way)?
        }
    };
    if let Some(start) = &way.from {
        start.check_used()?;
    }
    graph.save(path)?;
    let entries: Vec<&str> = graph.entries.iter().map(|e| e.name.as_str()).collect();
    let arena_bytes = graph.entries.iter().map(|e| e.arena_bytes).max().unwrap_or(0);
    let (path, entries) = (path.display(), entries.join(", "));
    let n_kernels = graph.kernels.len();
    let mib = arena_bytes as f64 / (1 << 20) as f64;
    println!("{path}: {entries} in {n_kernels} kernels, {mib:.1} MiB for values of a run");
    Ok(())
}

/// The passes on a shrunken model, interpreted before and after each; of ranks that serve there
/// are two, and two copies of experts if there are any.
fn verify(
    source: &Source,
    model: &ModelArgs,
    purpose: Purpose,
    settings: &Settings,
    cx: &PassCx,
) -> Result<()> {
    let overrides = Overrides { shrink: true, ..model.overrides(None)? };
    let tree = source.elaborate(&overrides)?;
    let settings = Settings {
        batch: Size::Fixed(2),
        seq: Size::Fixed(if settings.seq == Size::Fixed(1) { 1 } else { 5 }),
        cache: settings.cache.map(|_| Size::Fixed(8)),
        ..settings.clone()
    };
    let lowered = source.lower(&tree, purpose, settings)?;
    let two = |mesh: Mesh| Mesh { data: 2, experts: 2, ..mesh };
    let cx = PassCx {
        policy: policy::policy(&lowered),
        mesh: cx.mesh.map(two),
        copies: cx.copies.as_ref().map(|_| Copies { redundant: 2, lines: vec![] }),
        pages: cx.pages.map(|pages| Pages { size: 4, count: 5, ..pages }),
        ..cx.clone()
    };
    let mut module = lowered.module;
    let compared = verify_passes::run(&mut module, &cx, weft_passes::PIPELINE)?;
    eprintln!("verify-passes: {compared} values compared, none moved");
    Ok(())
}
