//! `weft plan`: what a parallel layout takes on a cluster: memory, time, and where the time goes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weft_ir::module::Module;
use weft_ir::op::Op;
use weft_lang::elaborate::Tree;
use weft_lang::lower::{Purpose, Settings, Size};
use weft_lang::settings::{self, Order, Parallel, Recompute, TrainSettings};
use weft_passes::{Mesh, PassCx};
use weft_plan::compiled_step;
use weft_plan::rounds::Rounds;
use weft_plan::search::{self, Space};
use weft_plan::serve::{self, Serving};
use weft_plan::{Cluster, Layout, Plan, Unit, WhatIf, show, unit};
use weft_schedule::{Table, UnitCosts, check, csv, generate, picture};

use crate::frontend::{self, ModelArgs, Source};
use crate::policy;
use crate::{eplb, exchange, graphs, placement};

/// Simulate a training step of a parallel block on a cluster
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The parallel block
    #[arg(long, value_name = "NAME")]
    parallel: String,
    /// The train block, if there are several
    #[arg(long, value_name = "NAME")]
    train: Option<String>,
    /// h800, h100, h200, or a description of another cluster
    #[arg(long, value_name = "NAME|FILE.json")]
    cluster: String,
    /// A training step, or a step of a unit that serves
    #[arg(long = "for", value_enum, default_value_t = For::Train)]
    purpose: For,
    /// Requests on each GPU, for prefill and decode
    #[arg(long, value_name = "N", default_value_t = 4)]
    requests: u64,
    /// Tokens of a prompt, or of the cache that a token is decoded with
    #[arg(long, value_name = "N", default_value_t = 4096)]
    context: u64,
    /// What experts were chosen for, as `weft eplb` reads it: how often exchanges of a block with
    /// `exchange_capacity` need further rounds, for prefill and decode [default: alike]
    #[arg(long, value_name = "FILE")]
    loads: Option<PathBuf>,
    /// Say how many GPU hours so many tokens take
    #[arg(long, value_name = "N")]
    tokens: Option<f64>,
    /// Change the hardware; may be repeated
    #[arg(long, value_name = "NAME")]
    what_if: Vec<String>,
    /// Find the fastest layouts of as many GPUs and as large a batch that fit
    #[arg(long, conflicts_with_all = ["what_ifs", "json", "svg", "trace", "any_memory"])]
    search: bool,
    /// What each change of the hardware would gain
    #[arg(long)]
    what_ifs: bool,
    /// Cut stages as if memory had no end; what is too much is still marked
    #[arg(long)]
    any_memory: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "what_ifs")]
    json: bool,
    /// Time the cells of a rank's program, too, and the step with them: the last file of `weft
    /// compile --dump DIR` for the same block. May be repeated: stages that none of the programs
    /// has take what the nearest takes
    #[arg(long, value_name = "FILE.ir", conflicts_with_all = ["json", "search"])]
    compiled: Vec<PathBuf>,
    /// Draw the pipeline
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Train,
    Prefill,
    Decode,
}

const CLUSTERS: &[(&str, &str)] = &[
    ("h800", include_str!("../clusters/h800.json")),
    ("h100", include_str!("../clusters/h100.json")),
    ("h200", include_str!("../clusters/h200.json")),
];

pub fn run(args: Args) -> Result<()> {
    let cluster = cluster(&args.cluster)?;
    let what_if = args.what_if.iter().map(|w| WhatIf::parse(w)).collect::<Result<Vec<_>, _>>()?;
    if args.purpose != For::Train {
        return serving(&args, &cluster);
    }
    if args.loads.is_some() {
        bail!("--loads is for a unit that serves; give --for prefill or --for decode");
    }
    if args.search {
        return search(&args, &cluster, &what_if);
    }
    let Planned { units, layout, .. } = planned(&args, None)?;
    let plan = weft_plan::plan(&units, &cluster, &layout, &what_if)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&show::json(&plan, &cluster, &layout))?);
    } else {
        print!("{}", show::text(&plan, &cluster, &layout));
        if let Some(tokens) = args.tokens {
            print!("{}", show::budget(&plan, &layout, tokens));
        }
    }
    if args.what_ifs {
        let one = |w: WhatIf| {
            let with = [what_if.clone(), vec![w]].concat();
            Ok((w, weft_plan::plan(&units, &cluster, &layout, &with)?))
        };
        let all = WhatIf::ALL.into_iter().map(one).collect::<Result<Vec<(WhatIf, Plan)>>>()?;
        print!("\n{}", show::what_ifs(&plan, &all));
    }
    if !args.compiled.is_empty() {
        compiled(&args.compiled, &cluster, &layout, &plan, &what_if)?;
    }
    if let Some(path) = &args.svg {
        let title = format!("{} on {}", args.parallel, cluster.name);
        write(path, &picture::svg(&layout.table, &plan.timeline, &title, "s"))?;
    }
    if let Some(path) = &args.trace {
        write(path, &serde_json::to_string(&show::trace(&plan, &layout.table))?)?;
    }
    Ok(())
}

/// Prints what cells of programs take, and the step with them.
fn compiled(
    paths: &[PathBuf],
    cluster: &Cluster,
    layout: &Layout,
    plan: &Plan,
    what_if: &[WhatIf],
) -> Result<()> {
    let at = layout.place(cluster, what_if, true);
    let entry = weft_runtime::train::run::STEP;
    let mut programs = vec![];
    for path in paths {
        let cells = weft_plan::compiled::cells(&program(path)?, entry, cluster, &at)
            .with_context(|| path.display().to_string())?;
        print!("\n{}", show::cells(&cells));
        programs.push(cells);
    }
    let step = |sums| compiled_step::step(&programs, layout, plan, cluster, sums);
    match (step(true)?, step(false)?) {
        (Some(with_sums), Some(without)) => {
            print!("\n{}", show::compiled_steps(&with_sums, &without, plan));
        }
        _ => println!("\nno cells of stages, so no step: the programs are of one stage"),
    }
    Ok(())
}

/// A program as a pass left it.
fn program(path: &Path) -> Result<weft_ir::module::Module> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    weft_ir::text::parse(&text).map_err(|errors| {
        let first = errors.first().map(ToString::to_string).unwrap_or_default();
        anyhow::anyhow!("{}: {first}", path.display())
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A shipped description by its name, or a file.
fn cluster(name: &str) -> Result<Cluster> {
    let text = match CLUSTERS.iter().find(|(n, _)| *n == name) {
        Some((_, text)) => text.to_string(),
        None if name.ends_with(".json") => {
            std::fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?
        }
        None => {
            let names: Vec<&str> = CLUSTERS.iter().map(|(n, _)| *n).collect();
            bail!("there is no cluster {name}; there are: {}, and FILE.json", names.join(", "));
        }
    };
    Cluster::parse(&text).with_context(|| name.to_string())
}

/// A unit of the parallel block's ranks that serves.
fn serving(args: &Args, cluster: &Cluster) -> Result<()> {
    let training = [
        ("--search", args.search),
        ("--what-if", !args.what_if.is_empty() || args.what_ifs),
        ("--svg", args.svg.is_some()),
        ("--compiled", !args.compiled.is_empty()),
        ("--trace", args.trace.is_some()),
        ("--tokens", args.tokens.is_some()),
    ];
    if let Some((option, _)) = training.into_iter().find(|(_, given)| *given) {
        bail!("not available yet: {option} for {:?}", args.purpose);
    }
    if args.requests < 2 || !args.requests.is_multiple_of(2) {
        let near = args.requests + args.requests % 2;
        bail!(
            "--requests {}: they go in two equal micro-batches; the nearest is {}",
            args.requests,
            near.max(2)
        );
    }
    if !(1..=1 << 24).contains(&args.context) || args.requests > 1 << 20 {
        bail!("--context is from 1 to {}, --requests at most {}", 1 << 24, 1 << 20);
    }
    let source = frontend::load(&args.model.model)?;
    let (overrides, _) = graphs::split(&source, args.model.overrides(None)?);
    let tree = source.elaborate(&overrides)?;
    let mut diags = vec![];
    let parallel = settings::parallel(&tree, &args.parallel, &mut diags);
    frontend::show(&source.map, &diags)?;
    let Some(parallel) = parallel else { bail!("the parallel block cannot be used") };
    if let Some((axis, n)) =
        parallel.axes().into_iter().find(|(axis, _)| !["data", "experts"].contains(axis))
    {
        bail!("not available yet: serving with ranks along {axis} ({axis} = {n})");
    }
    if parallel.experts != parallel.data && parallel.experts > 1 {
        let (data, experts) = (parallel.data, parallel.experts);
        bail!(
            "a unit that serves shares its experts among all ranks, and has data = {data}, experts \
             = {experts}"
        );
    }
    let decode = args.purpose == For::Decode;
    let tokens_per_request = if decode { 1 } else { args.context };
    let settings = Settings {
        batch: Size::Fixed(args.requests / 2),
        seq: Size::Fixed(tokens_per_request),
        segments: false,
        cache: Some(Size::Fixed(args.context)),
    };
    let lowered = source.lower(&tree, Purpose::Infer, settings)?;
    let cx = PassCx { policy: policy::policy(&lowered), ..PassCx::default() };
    let mut module = lowered.module;
    weft_passes::run_pipeline(&mut module, &cx, &mut |_, _| {})?;
    let of = Serving {
        n_gpus: parallel.n_ranks(),
        node: parallel.node,
        redundant_experts: parallel.redundant_experts,
        nodes_per_token: parallel.nodes_per_token,
        communication_sms: parallel.communication_sms,
        decode,
        requests: args.requests,
        tokens_per_request,
    };
    let forward = serve::forward(&module)?;
    let rounds = rounds(args, &parallel, &module, forward.layers_with_experts())?;
    let served = serve::serve(&forward, cluster, &of, rounds.as_ref());
    if args.json {
        let json = show::served_json(&served, rounds.as_ref(), &of, cluster);
        println!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        print!("{}", show::served(&served, &of, cluster));
        print!("{}", rounds.map(|r| show::rounds(&r, &served)).unwrap_or_default());
    }
    Ok(())
}

/// How often exchanges need further rounds, where the block says what there is room for.
fn rounds(
    args: &Args,
    parallel: &Parallel,
    module: &Module,
    n_layers: usize,
) -> Result<Option<Rounds>> {
    let Some(capacity) = parallel.exchange_capacity else {
        if args.loads.is_some() {
            bail!("--loads: `{}` has no exchange_capacity to hold them against", parallel.name);
        }
        return Ok(None);
    };
    let ops = module.funcs.iter().flat_map(|f| f.body_ops().map(|(_, op)| op));
    let route =
        ops.into_iter().find(|op| op.op == Op::Route).context("the model has no experts")?;
    let n_experts = route.attrs.get_int("experts").unwrap_or(0) as u64;
    let rows = route.attrs.get_dim("rows").and_then(|d| module.eval_dim(d, &|_| None));
    let rows = rows.context("the rows of an exchange cannot be counted")?;
    let loads = match &args.loads {
        Some(path) => eplb::read(path)?,
        None => vec![vec![1.0; n_experts as usize]],
    };
    if loads.len() != 1 && loads.len() != n_layers {
        let n = loads.len();
        bail!(
            "--loads: loads of {n} layers, and the model has {n_layers} with experts; give a line \
             for each, or one for all"
        );
    }
    let placed =
        parallel.placement.as_deref().map(|p| placement::read(Path::new(p))).transpose()?;
    let in_order: Vec<u64> =
        (0..n_experts + parallel.redundant_experts).map(|p| p % n_experts.max(1)).collect();
    let layers = loads.into_iter().enumerate().map(|(layer, loads)| {
        let own = placed.as_ref().and_then(|all| all.get(layer)).unwrap_or(&in_order);
        (own.clone(), loads)
    });
    let layers: Vec<_> = layers.collect();
    Ok(Some(weft_plan::rounds::rounds(rows, parallel.experts, capacity, &layers)?))
}

/// Layouts shown of a search.
const SHOWN: usize = 12;

fn search(args: &Args, cluster: &Cluster, what_if: &[WhatIf]) -> Result<()> {
    let all = Recompute::WORDS.map(|(_, r)| planned(args, Some(r)));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    let names = Recompute::WORDS.map(|(word, _)| word.to_string());
    let like = all[0].layout.clone();
    let space = Space {
        n_gpus: like.n_gpus(),
        micro_batches: like.data * like.table.n_micro_batches() as u64,
        heads: all[0].heads.clone(),
        experts: all[0].experts.clone(),
    };
    let variants: Vec<Vec<Unit>> = all.into_iter().map(|p| p.units).collect();
    let (found, n_run, n_all) = search::search(&variants, cluster, &like, &space, what_if)?;
    print!("{}", show::found(&found, &names, SHOWN));
    println!(
        "{n_run} of {n_all} layouts cut into stages, {} of them fit and could be near the best",
        found.len()
    );
    if found.is_empty() {
        bail!("no layout of {} {}s fits", space.n_gpus, cluster.name);
    }
    Ok(())
}

/// A model compiled for one rank, and the layout of the parallel block.
struct Planned {
    units: Vec<Unit>,
    layout: Layout,
    heads: BTreeSet<u64>,
    experts: BTreeSet<u64>,
}

/// `recompute` in place of the train block's.
fn planned(args: &Args, recompute: Option<Recompute>) -> Result<Planned> {
    let source = frontend::load(&args.model.model)?;
    let (overrides, sets) = graphs::split(&source, args.model.overrides(None)?);
    let mut tree = source.elaborate(&overrides)?;
    let (train, _) = graphs::checked(&source, &tree, args.train.as_deref(), &sets)?;
    if overrides.precision.is_none() {
        source.choose_precision(&mut tree, &train.precision)?;
    }
    let mut diags = vec![];
    let parallel = settings::parallel(&tree, &args.parallel, &mut diags);
    frontend::show(&source.map, &diags)?;
    let Some(parallel) = parallel else { bail!("the parallel block cannot be used") };
    if parallel.context > 1 {
        bail!("not available yet: a plan with ranks along context ({})", parallel.context);
    }

    let micro_batch = parallel.micro_batch.unwrap_or(1);
    let settings = Settings {
        batch: Size::Fixed(micro_batch),
        seq: Size::Fixed(train.sequence),
        segments: !train.attend_across_documents,
        cache: None,
    };
    let lowered = source.lower(&tree, Purpose::Train, settings)?;
    agrees(&source, &tree, &lowered.module, &parallel)?;
    // One rank's module, which saves what a rank among those of the experts saves.
    let mesh = Mesh {
        experts: parallel.experts,
        expert_gradients: exchange::contracted(parallel.expert_gradients),
        ..Mesh::ONE
    };
    let cx = PassCx {
        gradients: true,
        apart: true,
        mesh: Some(mesh),
        save: graphs::saved(recompute.unwrap_or(train.recompute)),
        policy: policy::policy(&lowered),
        ..PassCx::default()
    };
    let mut module = lowered.module;
    weft_passes::run_pipeline(&mut module, &cx, &mut |_, _| {})?;
    let units = weft_plan::units(&module)?;
    let layout = Layout {
        data: parallel.data,
        tensor: parallel.tensor,
        experts: parallel.experts,
        node: parallel.node,
        nodes_per_token: parallel.nodes_per_token,
        zero: parallel.zero > 0,
        communication_sms: parallel.communication_sms,
        table: table(&parallel, &train)?,
        tokens: micro_batch * train.sequence,
        message_bytes: unit::message_bytes(&module)?,
        within_memory: !args.any_memory,
        stage_layers: parallel.stage_layers.clone(),
        moment_bytes: tree.precision.moments.bits() as f64 / 8.0,
    };
    let (heads, experts) = unit::heads_and_experts(&module);
    Ok(Planned { units, layout, heads, experts })
}

fn agrees(
    source: &Source,
    tree: &Tree,
    module: &weft_ir::module::Module,
    parallel: &Parallel,
) -> Result<()> {
    let mut diags = vec![];
    settings::parallel::check_model(tree, module, "loss", Some(&parallel.name), &mut diags);
    frontend::show(&source.map, &diags)
}

/// The order of the pipeline, proved.
pub fn table(parallel: &Parallel, train: &TrainSettings) -> Result<Table> {
    let table = match (&parallel.schedule, parallel.generated()) {
        (Some(Order::File(path)), _) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            let table = csv::read(&text).with_context(|| path.clone())?;
            if table.n_ranks() as u64 != parallel.pipeline {
                bail!("{path} has {} ranks, and pipeline = {}", table.n_ranks(), parallel.pipeline);
            }
            table
        }
        (_, Some((name, size))) => generate(name, size)?,
        // One stage: micro-batches one after another.
        _ => {
            let per_step = train.batch.ends().fold(0.0, f64::max) as u64;
            let each = parallel.data * parallel.micro_batch.unwrap_or(1);
            let n = parallel.micro_batches.unwrap_or((per_step / each).max(1));
            let n_micro_batches = usize::try_from(n)?;
            let size = weft_schedule::Size { n_ranks: 1, n_micro_batches, stages_per_rank: 1 };
            generate(weft_schedule::Name::OneFOneB, size)?
        }
    };
    check(&table, &UnitCosts::default())?;
    Ok(table)
}
