//! From a model to the executable graph that trains it or continues texts, compiled through the
//! cache on disk.
//!
//! What the runtime must know besides the steps goes into the entries' meta: the train block, the
//! model's dims as a
//! `config.json`, the size of the vocabulary, the length of the cache.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use weft_backend_cpu::compile::{self as cpu, Options};
use weft_backend_cuda::Cuda;
use weft_backend_cuda::compile as cuda;
use weft_graph::{CpuVariant, DimDecl, DimExpr, DimId, Entry, Graph, Role, Step};
use weft_ir::module::{Axis, FuncId, Module};
use weft_ir::ty::AxisId;
use weft_lang::diag::Diag;
use weft_lang::elaborate::{Overrides, Tree};
use weft_lang::lower::{Lowered, Purpose, Settings, Size};
use weft_lang::settings::{self, Recompute, TrainSettings};
use weft_lower::cache::Cache;
use weft_passes::keep_results::keep_results;
use weft_passes::watch::WATCH;
use weft_passes::{Mesh, Pages, PassCx, Pipeline, Save, Sums, Train};
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::device::DeviceKind;
use weft_runtime::generate::{self, CONTEXT, PAGE, POOL, RANKS};
use weft_runtime::train::run::{LOSS, MICRO_BATCHES, STEP};
use weft_runtime::train::settings::{CONFIG, MESH, MODEL, PIPELINE, TRAIN, VOCAB};

use crate::frontend::{self, ModelArgs, Source};
use crate::kernel_dump;
use crate::mesh::{self, MeshArgs};
use crate::pipeline::{self, Recorder, Way};
use crate::policy;
use crate::serve::Caches;
use crate::stages::Stages;
use crate::weights;

/// Which machines a graph is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This one.
    Here,
    /// Any with AVX2; better ones use what they have.
    Any,
    /// Hopper GPUs, or the interpreter of their kernels.
    Cuda(Cuda),
}

impl Target {
    /// The queries from which on attention has no kernel over pages that is worth it.
    fn keys_in_order_from(self) -> Option<u64> {
        match self {
            Target::Here | Target::Any => None,
            Target::Cuda(_) => u64::try_from(weft_backend_cuda::flash::plan::QUERIES_MIN).ok(),
        }
    }
}

impl From<DeviceKind> for Target {
    fn from(device: DeviceKind) -> Target {
        match device {
            DeviceKind::Cpu => Target::Here,
            DeviceKind::Ptx | DeviceKind::Cuda => Target::Cuda(Cuda::WHOLE),
        }
    }
}

/// What is taken of a checkpoint when a model is compiled to be trained.
#[derive(Clone, Copy)]
pub enum Taken<'a> {
    /// Its dims.
    Dims(&'a Path),
    /// Its dims now and its weights when the run starts.
    Weights(&'a Path),
}

/// Whether the user named a graph instead of a model.
pub fn is_graph(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "weft")
}

/// Reads a graph that the user named. What changes a model cannot be given with it.
pub fn open(model: &ModelArgs, options: &[(&str, bool)]) -> Result<Graph> {
    let path = &model.model;
    let mut given = options.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
    let set = (!model.sets.is_empty()).then_some("--set");
    let precision = model.precision.as_ref().map(|_| "--precision");
    if let Some(option) = set.or(precision).or_else(|| given.next()) {
        bail!("{option} changes what is compiled, and {} is compiled already", path.display());
    }
    Ok(Graph::open(path)?)
}

/// The step, and the loss for held-out text, as the train block says.
pub fn for_training(
    model: &ModelArgs,
    block: Option<&str>,
    checkpoint: Option<Taken>,
    watch: &[String],
    (mesh, ranks, rank): (&MeshArgs, Option<usize>, usize),
    target: Target,
    way: &Way,
) -> Result<Graph> {
    let source = frontend::load(&model.model)?;
    let config = match checkpoint {
        Some(Taken::Dims(folder) | Taken::Weights(folder)) => Some(read_config(folder)?),
        None => None,
    };
    let (overrides, sets) = split(&source, model.overrides(config)?);
    let mut tree = source.elaborate(&overrides)?;
    let (mut train, published) = checked(&source, &tree, block, &sets)?;
    match &overrides.precision {
        Some(name) => train.precision = name.clone(),
        None => source.choose_precision(&mut tree, &train.precision)?,
    }

    let layout = mesh;
    let (mesh, stages) = mesh.mesh(ranks, &source, &tree, &train)?.unzip();
    if let Some(mesh) = &mesh {
        mesh::check_batch(mesh, &train)?;
        if !watch.is_empty() {
            bail!("not available yet: --watch on several ranks; give --ranks 1");
        }
    }
    let settings = Settings {
        batch: Size::Fixed(train.micro_batch),
        seq: Size::Fixed(train.sequence),
        segments: !train.attend_across_documents,
        cache: None,
    };
    let lowered = source.lower(&tree, Purpose::Train, settings)?;
    layout.check_model(&source, &tree, &lowered.module, LOSS)?;
    let watch = watched_sites(watch, &lowered)?;
    let policy = policy::policy(&lowered);
    let mut module = lowered.module;
    if let Some(Taken::Weights(folder)) = checkpoint {
        weights::check_stored(&tree, &module, &CheckpointReader::open(folder)?)?;
    }
    let vocab = vocabulary(&module, LOSS);
    let mut recorder = Recorder::new(&way.show)?;
    recorder.input("lower", &module)?;
    let batch = train.batch.ends().fold(0.0, f64::max) as u64;
    let n_micro = (batch / train.micro_batch).max(1);
    let pipeline = match (&mesh, stages.flatten()) {
        (Some(mesh), Some(Stages { table, layers })) => {
            Some(Pipeline { place: place(mesh, rank)?, table, layers })
        }
        _ => None,
    };
    let sums = sums(&train, mesh.as_ref(), pipeline.as_ref());
    let cx = PassCx {
        apart: pipeline.as_ref().is_some_and(splits_backward),
        pipeline,
        train: Some(Train {
            micro_batches: n_micro,
            sums,
            beta1: train.optimizer.beta1,
            beta2: train.optimizer.beta2,
            eps: train.optimizer.eps,
            decay: train.optimizer.decay,
            clip: train.clip,
            moments: tree.precision.moments,
        }),
        save: saved(train.recompute),
        policy,
        watch,
        mesh,
        ..PassCx::default()
    };
    let in_pipeline = cx.pipeline.is_some();
    let from = (way.from.as_ref(), &[LOSS, STEP][..]);
    pipeline::run(&mut module, &cx, None, from, &mut recorder)?;
    let mut entries = vec![STEP];
    if train.held_out > 0.0 {
        // In a pipeline every rank has the same, and sends others what they read.
        if !in_pipeline {
            let loss = module.find(LOSS).context("the module has no @loss")?;
            keep_results(&mut module, loss, &|name| name.starts_with("metric."));
        }
        entries.push(LOSS);
    }
    let command = command(model, "train", block);
    let mut graph = compile(&module, &entries, model, command, target, way, &mut recorder)?;
    if let Some(dir) = &way.show.dump {
        kernel_dump::write(dir, &module, &entries, &graph, target)?;
    }
    recorder.finish(&module)?;
    if train.batch.as_constant().is_none() {
        let step = graph.entries.iter_mut().find(|e| e.name == STEP);
        vary_batch(step.context("the graph has no step")?, n_micro as i64);
        graph.verify()?;
    }
    let axes = module.axes.iter().enumerate();
    let axis = |(i, a): (usize, &Axis)| (a.name.clone(), a.size, module.stride(AxisId(i as u32)));
    let axes: Vec<(String, u64, u64)> = axes.map(axis).collect();
    for entry in &mut graph.entries {
        if !axes.is_empty() {
            entry.meta.insert(MESH.into(), serde_json::to_value(&axes)?);
        }
        entry.meta.insert(TRAIN.into(), serde_json::to_value(&train)?);
        entry.meta.insert(MODEL.into(), tree.name.as_str().into());
        entry.meta.insert(CONFIG.into(), published.clone().into());
        entry.meta.extend(vocab.map(|n| (VOCAB.to_string(), n.into())));
    }
    Ok(graph)
}

/// The place along `pipeline` of a rank.
fn place(mesh: &Mesh, rank: usize) -> Result<usize> {
    let n = usize::try_from(mesh.n_ranks())?;
    if rank >= n {
        bail!("--rank {rank}: there are {n} ranks, from 0 on");
    }
    Ok(rank / (n / usize::try_from(mesh.pipeline)?))
}

/// Whether somewhere the halves of a backward stand apart.
fn splits_backward(pipeline: &Pipeline) -> bool {
    let mut actions = pipeline.table.rows.iter().flatten().flat_map(|cell| cell.actions());
    actions.any(|a| a.op == weft_schedule::Op::BackwardInput)
}

/// The ranks whose programs differ: the first of each place along `pipeline`.
pub fn first_of_stages(graph: &Graph) -> Result<Vec<usize>> {
    let step = graph.entry(STEP).context("the graph has no step")?;
    let (n_ranks, n_places) = {
        let mesh = weft_runtime::train::settings::Mesh::of(step)?;
        (mesh.n_ranks(), mesh.place(PIPELINE, 0).0)
    };
    Ok((0..n_ranks).step_by(n_ranks / n_places).collect())
}

/// Reading a prompt and continuing it, over caches that `caches` chooses for a model and a number
/// of ranks.
pub fn for_generation(
    model: &ModelArgs,
    checkpoint: Option<&Path>,
    caches: impl FnOnce(&Source, &Tree, u64) -> Result<Caches>,
    (ranks, n_ranks): (&MeshArgs, Option<usize>),
    target: Target,
    way: &Way,
) -> Result<Graph> {
    let source = frontend::load(&model.model)?;
    let config = checkpoint.map(read_config).transpose()?;
    let (overrides, _) = split(&source, model.overrides(config)?);
    let tree = source.elaborate(&overrides)?;
    let mut diags = vec![];
    settings::check(&tree, &mut diags);
    frontend::show(&source.map, &diags)?;
    let serving = ranks.serving(n_ranks, &source, &tree)?.unwrap_or_default();
    let n_ranks = serving.mesh.n_ranks();
    let Caches { context, batch, pages } = caches(&source, &tree, n_ranks)?;
    let batch = if batch > 1 { Size::Bounded(batch) } else { Size::Fixed(1) };
    let mut recorder = Recorder::new(&way.show)?;
    let (mut whole, mut last): (Option<Graph>, Option<Module>) = (None, None);
    // Prompts are read one by one.
    for (name, batch, seq) in [
        (generate::PREFILL, Size::Fixed(1), Size::Bounded(context)),
        (generate::DECODE, batch, Size::Fixed(1)),
    ] {
        let settings = Settings { batch, seq, segments: false, cache: Some(Size::Fixed(context)) };
        let lowered = source.lower(&tree, Purpose::Infer, settings)?;
        ranks.check_model(&source, &tree, &lowered.module, "forward")?;
        let policy = policy::policy(&lowered);
        let pages =
            pages.map(|pages| Pages { in_order_from: target.keys_in_order_from(), ..pages });
        let cx = PassCx { policy, pages, ..serving.cx(name == generate::DECODE) };
        let mut module = lowered.module;
        let entry = module.find("forward").context("the module has no @forward")?;
        let caches = self::caches(&module, entry);
        if caches.is_empty() {
            bail!(
                "{} marks nothing with `cache`, so a text cannot be continued token by token",
                model.model.display()
            );
        }
        // What a prompt's tokens but the last leave is in the caches: the last is decoded.
        let is_kept = |result: &str| match name {
            generate::PREFILL => caches.iter().any(|c| c == result),
            _ => result == "logits",
        };
        keep_results(&mut module, entry, &is_kept);
        module.func_mut(entry).name = name.into();
        recorder.input(name, &module)?;
        pipeline::run(&mut module, &cx, None, (way.from.as_ref(), &[name]), &mut recorder)?;
        forget_caches(&mut module, name);
        let mut command = command(model, "decode", None) + &format!(" --sequence {context}");
        if let Some(Pages { size, count, .. }) = pages {
            let requests = format!(" --page {size} --pages {count} --batch {}", most(batch));
            command += &requests;
        }
        let mut graph = compile(&module, &[name], model, command, target, way, &mut recorder)?;
        if let Some(dir) = &way.show.dump {
            kernel_dump::write(dir, &module, &[name], &graph, target)?;
        }
        for entry in &mut graph.entries {
            entry.meta.insert(MODEL.into(), tree.name.as_str().into());
            entry.meta.insert(CONTEXT.into(), context.into());
            if let Some(Pages { size, count, .. }) = pages {
                entry.meta.insert(PAGE.into(), size.into());
                entry.meta.insert(POOL.into(), count.into());
            }
            if let Some(mesh) = &cx.mesh {
                entry.meta.insert(RANKS.into(), mesh.n_ranks().into());
            }
            // A model whose dims have no published form is not checked against a checkpoint's; nor
            // is what the user set.
            let dims = settings::published_dims(&tree, &overrides.sets, &mut vec![]);
            entry.meta.insert(CONFIG.into(), dims.into());
        }
        match &mut whole {
            None => whole = Some(graph),
            Some(first) => first.append(graph),
        }
        last = Some(module);
    }
    if let Some(module) = &last {
        recorder.finish(module)?;
    }
    whole.context("a graph has entries")
}

fn most(size: Size) -> u64 {
    match size {
        Size::Fixed(n) | Size::Bounded(n) => n,
    }
}

/// How micro-batches are added. Ranks that add theirs in order have the halves that ranks and
/// directions of a pipeline are.
fn sums(train: &TrainSettings, mesh: Option<&Mesh>, pipeline: Option<&Pipeline>) -> Sums {
    let in_order = mesh.filter(|m| m.sums_in_order);
    match (train.batch.as_constant(), in_order) {
        (None, _) => Sums::InOrder { halvings: 0 },
        (_, None) => Sums::Tree,
        (_, Some(mesh)) => {
            let directions = pipeline.map_or(1, |p| p.table.placement.len());
            Sums::InOrder { halvings: mesh.data.ilog2() + directions.ilog2() }
        }
    }
}

/// What the backward pass finds saved, if it computes this again.
pub fn saved(recompute: Recompute) -> Save {
    match recompute {
        Recompute::None => Save::Everything,
        Recompute::Cheap => Save::NoCheap,
        Recompute::UpProjections => Save::NoWide,
        Recompute::Layers => Save::Handed,
    }
}

/// The sites that `--watch` asks for.
fn watched_sites(patterns: &[String], lowered: &Lowered) -> Result<Vec<String>> {
    let paths: Vec<&str> = lowered.sites.iter().map(|s| s.path.as_str()).collect();
    let mut all: Vec<String> = vec![];
    for pattern in patterns {
        match settings::Selector::select(pattern, &paths) {
            Ok(found) => all.extend(found.into_iter().map(str::to_string)),
            Err(why) => bail!("--watch: {why}"),
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// `--set` for the model's constants apart from those for the train block.
pub fn split(source: &Source, overrides: Overrides) -> (Overrides, settings::Sets) {
    let (constants, block) = settings::split_sets(&source.program, overrides.sets);
    (Overrides { sets: constants, ..overrides }, block)
}

fn read_config(folder: &Path) -> Result<Value> {
    Ok(CheckpointReader::open(folder)?.config().clone())
}

/// The train block and the published dims; errors of every block are shown.
pub fn checked(
    source: &Source,
    tree: &Tree,
    block: Option<&str>,
    sets: &settings::Sets,
) -> Result<(TrainSettings, Map<String, Value>)> {
    let mut diags: Vec<Diag> = vec![];
    settings::check(tree, &mut diags);
    let known = diags.len();
    let train = settings::train(tree, block, sets, &mut diags);
    // The block has been checked with the others; only what --set changes is new.
    let (old, new) = diags.split_at(known);
    let new: Vec<Diag> = new.iter().filter(|d| !old.contains(d)).cloned().collect();
    diags.truncate(known);
    diags.extend(new);
    let published = settings::published_config(tree, &mut diags);
    frontend::show(&source.map, &diags)?;
    match train {
        Some(train) => Ok((train, published)),
        None => bail!("the train block cannot be used"),
    }
}

/// The last dim of the entry's logits.
fn vocabulary(module: &Module, entry: &str) -> Option<u64> {
    let func = module.func(module.find(entry)?);
    let place = func.result_names.iter().position(|n| n == "logits")?;
    func.ty(func.results[place]).dims.last()?.as_fixed()
}

/// Makes the number of micro-batches a dim of the step. It is only how often two loops turn and how
/// long the data is: what a step computes is a sum over micro-batches.
fn vary_batch(step: &mut Entry, n_micro_max: i64) {
    let n = DimExpr::dim(DimId(step.dims.len() as u32));
    step.dims.push(DimDecl { name: MICRO_BATCHES.into(), max: n_micro_max });
    for s in &mut step.steps {
        if let Step::Loop(l) = s
            && ["train_step.counts", "train_step.micro"].contains(&l.label.as_str())
        {
            l.count = n.clone();
        }
    }
    let data = step.buffers.iter_mut().filter(|b| b.role == Role::Input && b.dims.len() > 2);
    for buffer in data {
        buffer.dims[0] = n.clone();
    }
    let measured = step.buffers.iter_mut().filter(|b| b.name.starts_with(WATCH));
    for buffer in measured.filter(|b| n_micro_max > 1 && !b.dims.is_empty()) {
        buffer.dims[0] = n.clone();
    }
}

/// The names of the results that an entry gives back where it was given them.
fn caches(module: &Module, entry: FuncId) -> Vec<String> {
    let func = module.func(entry);
    func.donated.iter().map(|(_, r)| func.result_names[*r as usize].clone()).collect()
}

/// What an entry gives back as it was given is a cache: it lasts for one text, and no checkpoint
/// has it.
fn forget_caches(module: &mut Module, entry: &str) {
    let Some(id) = module.find(entry) else { return };
    for name in caches(module, id) {
        if let Some(store) = module.stores.get_mut(&name) {
            store.templates.clear();
        }
    }
}

fn compile(
    module: &Module,
    entries: &[&str],
    model: &ModelArgs,
    command: String,
    target: Target,
    way: &Way,
    recorder: &mut Recorder,
) -> Result<Graph> {
    let source = model.model.display().to_string();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let observe = &mut |stage| recorder.stage(&stage);
    // What has to be timed has to be done.
    let cache = if way.show.wants_stages() { None } else { Cache::of_user() };
    let graph = match target {
        Target::Cuda(machine) => {
            let options = cuda::Options { threads, machine, source, command };
            cuda::compile_cached(cache.as_ref(), module, entries, &options, observe)?
        }
        Target::Here | Target::Any => {
            let native = Options { source, command, ..Options::native(threads) };
            let options = match target {
                Target::Any => Options { variants: CpuVariant::ALL.to_vec(), ..native },
                _ => native,
            };
            cpu::compile_cached_in(cache.as_ref(), module, entries, &options, observe)?
        }
    };
    Ok(graph.graph)
}

/// Entries of a module that is no file of the user's.
pub fn compiled(module: &Module, entries: &[&str], target: Target) -> Result<Graph> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(match target {
        Target::Cuda(machine) => {
            let (source, command) = (String::new(), String::new());
            let options = cuda::Options { threads, machine, source, command };
            cuda::compile(module, entries, &options, &mut |_| {})?
        }
        Target::Here | Target::Any => cpu::compile(module, entries, &Options::native(threads))?,
    })
}

/// The command that compiles the graph again.
fn command(model: &ModelArgs, purpose: &str, block: Option<&str>) -> String {
    let mut command = format!("weft compile {} --for {purpose} -o X.weft", model.model.display());
    for set in &model.sets {
        command += &format!(" --set {set}");
    }
    if let Some(precision) = &model.precision {
        command += &format!(" --precision {precision}");
    }
    if let Some(block) = block {
        command += &format!(" --train {block}");
    }
    command
}
