//! The training loop.
//!
//! A run is a folder: `metrics.jsonl`, checkpoints `step-000100/`, and pictures at the end. What a
//! step computes follows from the settings, the seed and the step's number alone, and a checkpoint
//! holds all that was changed, so a run that is killed and resumed writes the files that an
//! undisturbed one writes. Times are therefore shown and not recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_graph::{Entry, Role};

use super::TrainError;
use super::metrics::{self, MetricsWriter, Record};
use super::pictures::draw_runs;
use super::plot;
use super::progress::Progress;
use super::settings::{CONFIG, DATA, Mesh, PIPELINE, TrainSettings, VOCAB};
use crate::checkpoint::reader::CheckpointReader;
use crate::checkpoint::run_folder;
use crate::checkpoint::writer::Contents;
use crate::data::loader::{Batch, Loader, LoaderOptions, LoaderState};
use crate::data::tokenizer::Tokenizer;
use crate::exec::{Program, Session, Store};
use crate::ranks::{Rank, collective};
use crate::weights::{self, Snapshot};

pub const STEP: &str = "train_step";
pub const LOSS: &str = "loss";
/// What the names of statistics begin with: `watch.SITE|ROLE.OPERAND|STATISTIC`.
pub const WATCH: &str = "watch.";
/// The step's dim that says how many micro-batches it takes, where that may change.
pub const MICRO_BATCHES: &str = "N";
/// In the run's folder.
pub const METRICS: &str = "metrics.jsonl";
/// What follows a router's path in the name of the side output that counts tokens per expert.
const LOAD: &str = ".load";

/// What a run is given besides the graph.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files or folders of text.
    pub data: Vec<PathBuf>,
    /// The run's folder.
    pub out: PathBuf,
    /// In place of the settings' own number.
    pub steps: Option<u64>,
    /// None is 0, or for a resumed run its own.
    pub seed: Option<u64>,
    /// Continue from the newest checkpoint in `out`.
    pub resume: bool,
    /// Weights to start from, in place of drawn ones.
    pub weights: Option<PathBuf>,
    /// A Hugging Face `tokenizer.json`; bytes without.
    pub tokenizer: Option<PathBuf>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub step: u64,
    pub tokens: u64,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
    pub pictures: Vec<PathBuf>,
    /// Training loss of the first step and of the last.
    pub losses: Option<(f64, f64)>,
    /// Ended by request, before the last step.
    pub interrupted: bool,
}

/// `state.json`: what resuming needs besides tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    tokens: u64,
    seed: u64,
    loader: LoaderState,
    settings: TrainSettings,
}

/// Trains until the last step, or until `stop` becomes true; then the step at hand is finished and
/// kept. Of several ranks each calls this with the same options; the first writes the run's files.
pub fn run(
    program: &Arc<Program>,
    options: &Options,
    stop: &AtomicBool,
    rank: Option<Arc<Rank>>,
) -> Result<Outcome, TrainError> {
    let mut run = Run::start(program, options, rank)?;
    let outcome = run.steps(stop);
    if let Some(progress) = &run.progress {
        progress.finish();
    }
    if let (Ok(_), Some(rank)) = (&outcome, &run.rank) {
        rank.finish();
    }
    outcome
}

struct Run {
    settings: TrainSettings,
    out: PathBuf,
    n_steps: u64,
    seed: u64,
    store: Arc<Store>,
    step_session: Session,
    held_out: Option<HeldOut>,
    loader: Loader,
    /// The run's `tokenizer.json`, to go into every checkpoint.
    tokenizer_file: Option<Vec<u8>>,
    config: Value,
    /// The first rank's alone.
    metrics: Option<MetricsWriter>,
    progress: Option<Progress>,
    rank: Option<Arc<Rank>>,
    /// Ranks that share the batch, and the place of this one among them.
    share: (usize, usize),
    /// Places along `pipeline`.
    n_places: usize,
    /// Steps and tokens done.
    step: u64,
    tokens: u64,
    saved: Option<(u64, PathBuf)>,
}

/// Measures on documents that are not trained on: always the same ones.
struct HeldOut {
    session: Session,
    loader: Loader,
}

impl Run {
    fn start(
        program: &Arc<Program>,
        options: &Options,
        rank: Option<Arc<Rank>>,
    ) -> Result<Run, TrainError> {
        let (n_ranks, own) = rank.as_ref().map_or((1, 0), |r| (r.n_ranks(), r.rank()));
        let mesh = program.graph().entry(STEP).map(Mesh::of).transpose()?.unwrap_or_default();
        let store = Store::at(Arc::clone(program.device()), own);
        let mut step_session = Session::new(program, STEP, &store)?;
        let settings = TrainSettings::of(step_session.entry())?;
        let n_steps = options.steps.or(settings.steps).ok_or(TrainError::NoSteps)?;
        if mesh.n_ranks() != n_ranks {
            let (compiled, mesh) = (mesh.n_ranks(), mesh.to_string());
            return Err(TrainError::Ranks { compiled, mesh, given: n_ranks });
        }
        if let Some(rank) = &rank {
            check_programs(rank, step_session.entry())?;
            step_session.join(rank);
        }
        let share = mesh.place(DATA, own);
        check_batch(&settings, &step_session, share.0)?;

        let latest = run_folder::find_latest(&options.out)?;
        let latest = match (latest, options.resume) {
            (Some(_), false) => {
                return Err(TrainError::RunExists { out: options.out.clone() });
            }
            (None, true) => return Err(TrainError::NothingToResume { out: options.out.clone() }),
            (latest, _) => latest,
        };
        let saved: Option<State> = match &latest {
            Some(latest) => Some(CheckpointReader::open(&latest.folder)?.state()?),
            None => None,
        };
        if let Some(saved) = &saved {
            settings.check_same(&saved.settings)?;
        }
        let seed = match (&saved, options.seed) {
            (Some(saved), Some(now)) if saved.seed != now => {
                let (saved, now) = (saved.seed.to_string(), now.to_string());
                return Err(TrainError::OtherSettings { key: "seed".into(), saved, now });
            }
            (Some(saved), _) => saved.seed,
            (None, given) => given.unwrap_or(0),
        };

        let tokenizer = Arc::new(match &options.tokenizer {
            Some(path) => Tokenizer::from_file(path)?,
            None => Tokenizer::bytes(),
        });
        check_vocabulary(step_session.entry(), &tokenizer)?;
        let mut loader_options =
            LoaderOptions::new(options.data.clone(), settings.sequence as usize, seed);
        loader_options.fim_rate = settings.fim;
        loader_options.held_out = settings.held_out;
        let held_out = match settings.held_out > 0.0 {
            true => Some(HeldOut {
                session: joined(Session::new(program, LOSS, &store)?, rank.as_ref()),
                loader: Loader::open(loader_options.for_held_out(), Arc::clone(&tokenizer))?,
            }),
            false => None,
        };
        let mut loader = Loader::open(loader_options, Arc::clone(&tokenizer))?;

        match &latest {
            Some(latest) => {
                let checkpoint = CheckpointReader::open(&latest.folder)?;
                weights::load(&store, &checkpoint)?;
                weights::load_optimizer(&store, &checkpoint.optimizer()?)?;
            }
            None => {
                weights::initialise(&store, seed, settings.init)?;
                if let Some(folder) = &options.weights {
                    weights::load(&store, &CheckpointReader::open(folder)?)?;
                }
            }
        }
        if let Some(saved) = &saved {
            loader.restore(&saved.loader)?;
        }

        fs::create_dir_all(&options.out).map_err(TrainError::io("make", &options.out))?;
        let metrics_path = options.out.join(METRICS);
        let first = own == 0;
        let metrics = match &saved {
            _ if !first => None,
            Some(saved) => Some(MetricsWriter::resume(&metrics_path, saved.step)?),
            None => Some(MetricsWriter::create(&metrics_path)?),
        };
        let step = saved.as_ref().map_or(0, |s| s.step);
        let progress = first.then(|| Progress::new(step, n_steps));
        if let (Some(latest), Some(progress)) = (&latest, &progress) {
            progress.say(&format!("continuing from {}", latest.folder.display()));
        }
        Ok(Run {
            config: config_of(step_session.entry(), &tokenizer),
            tokenizer_file: tokenizer_file(options.tokenizer.as_deref())?,
            settings,
            out: options.out.clone(),
            n_steps,
            seed,
            store,
            step_session,
            held_out,
            loader,
            metrics,
            progress,
            rank,
            share,
            n_places: mesh.place(PIPELINE, own).0,
            step,
            tokens: saved.as_ref().map_or(0, |s| s.tokens),
            saved: latest.map(|l| (l.step, l.folder)),
        })
    }

    fn steps(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        while self.step < self.n_steps && !self.asked_to_stop(stop)? {
            let start = Instant::now();
            let (mut record, tokens) = self.one_step()?;
            let time = start.elapsed();
            if self.step.is_multiple_of(self.settings.held_out_every) || self.step == self.n_steps {
                record = self.measure(record)?;
            }
            if let Some(metrics) = &mut self.metrics {
                metrics.write(&record)?;
            }
            if let Some(progress) = &mut self.progress {
                progress.step(&record, tokens, time);
            }
            if self.step.is_multiple_of(self.settings.checkpoint_every) {
                self.save()?;
            }
        }
        let checkpoint = self.save()?;
        let interrupted = self.step < self.n_steps;
        if self.metrics.is_none() {
            let (step, tokens) = (self.step, self.tokens);
            let (pictures, losses) = (vec![], None);
            return Ok(Outcome { step, tokens, checkpoint, pictures, losses, interrupted });
        }
        let records = metrics::read(&self.out.join(METRICS))?;
        let pictures = draw_runs(&self.out, &[plot::Run { name: "", records: &records }])?;
        let loss = |r: Option<&Record>| r?.number("loss").or_else(|| r?.number("objective"));
        let losses = loss(records.first()).zip(loss(records.last()));
        let (step, tokens) = (self.step, self.tokens);
        Ok(Outcome { step, tokens, checkpoint, pictures, losses, interrupted })
    }

    /// Whether the first rank was asked to: all end after the same step.
    fn asked_to_stop(&self, stop: &AtomicBool) -> Result<bool, TrainError> {
        let mut asked = [u8::from(stop.load(Ordering::Relaxed))];
        if let Some(rank) = &self.rank {
            rank.set_step(self.step + 1);
            let meeting = rank.begin("broadcast", "whether to stop", everyone(rank));
            collective::broadcast(&meeting, &mut asked).map_err(Box::new)?;
        }
        Ok(asked[0] != 0)
    }

    /// One optimizer step: what it measured, and its tokens.
    fn one_step(&mut self) -> Result<(Record, u64), TrainError> {
        if self.step_session.entry().find_dim(MICRO_BATCHES).is_some() {
            // Whole micro-batches only: a ramp rises in steps of one.
            let sequences = self.settings.batch.at(self.step, self.tokens);
            let n_micro = (sequences / self.settings.micro_batch as f64).floor().max(1.0);
            self.step_session.set_dim(MICRO_BATCHES, n_micro as i64)?;
        }
        let n_sequences = self.step_session.shape_of("tokens")?;
        let n_sequences: usize = n_sequences[..n_sequences.len() - 1].iter().product();
        let batch = self.loader.next_batch(n_sequences * self.share.0)?;
        write_batch(&mut self.step_session, &part(&batch, self.share))?;
        let scalars = self.scalars()?;
        for (name, value) in &scalars {
            self.step_session.write_input(name, &[*value as f32])?;
        }
        self.step_session.run()?;
        self.step += 1;
        let tokens = batch.n_tokens();
        self.tokens += tokens;
        let mut record = Record::new(self.step).with_count("tokens", self.tokens);
        if self.step_session.entry().find_dim(MICRO_BATCHES).is_some() {
            record = record.with_count("batch", n_sequences as u64);
        }
        for (name, value) in outputs(&self.step_session)? {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { name, value, step: self.step });
            }
            record = record.with(&name, f64::from(value));
        }
        if let Some(found) = watched(&self.step_session)? {
            record.values.insert("watch".into(), found);
        }
        let vio = max_vio(&self.step_session)?;
        if !vio.is_empty() {
            record = record.with_layers("max_vio", &vio);
        }
        for (name, value) in scalars.iter().filter(|(name, _)| name != "step") {
            record = record.with(name, *value);
        }
        Ok((record, tokens))
    }

    /// The step's scalar inputs: learning rate, number of the step from 1, and schedules.
    fn scalars(&self) -> Result<Vec<(String, f64)>, TrainError> {
        let mut all = vec![];
        for buffer in self.step_session.entry().buffers.iter().filter(|b| b.role == Role::Input) {
            let value = match buffer.name.as_str() {
                "tokens" | "segments" => continue,
                "step" => (self.step + 1) as f64,
                "lr" => self.settings.lr.at(self.step, self.tokens),
                name => match self.settings.schedules.get(name) {
                    Some(schedule) => schedule.at(self.step, self.tokens),
                    None => return Err(TrainError::UnknownInput { name: name.into() }),
                },
            };
            all.push((buffer.name.clone(), value));
        }
        Ok(all)
    }

    /// Adds the losses on held-out documents.
    fn measure(&mut self, mut record: Record) -> Result<Record, TrainError> {
        let Some(held_out) = &mut self.held_out else { return Ok(record) };
        held_out.loader.rewind()?;
        let names: Vec<String> = inputs(held_out.session.entry());
        for name in names {
            // Losses are compared over the run, so schedules have the value they end with.
            if let Some(schedule) = self.settings.schedules.get(&name) {
                let last = schedule.phases().last().map_or(0.0, |p| p.to);
                held_out.session.write_input(&name, &[last as f32])?;
            }
        }
        let shape = held_out.session.shape_of("tokens")?;
        let (mut sums, mut n_tokens) = (Vec::<(String, f64)>::new(), 0.0);
        for _ in 0..self.settings.held_out_batches {
            let batch = held_out.loader.next_batch(shape[0])?;
            write_batch(&mut held_out.session, &batch)?;
            held_out.session.run()?;
            // A mean over the tokens of all batches.
            let weight = batch.n_tokens() as f64;
            n_tokens += weight;
            for (name, value) in outputs(&held_out.session)? {
                match sums.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, sum)) => *sum += weight * f64::from(value),
                    None => sums.push((name, weight * f64::from(value))),
                }
            }
        }
        for (name, sum) in sums.iter().filter(|(name, _)| name.ends_with("loss")) {
            record = record.with(&format!("held_out_{name}"), sum / n_tokens);
        }
        Ok(record)
    }

    /// Writes the checkpoint of this step, unless it is there.
    fn save(&mut self) -> Result<PathBuf, TrainError> {
        if let Some((step, folder)) = &self.saved
            && *step == self.step
        {
            return Ok(folder.clone());
        }
        let snapshot = Snapshot::take(&self.store, self.rank.as_deref(), self.n_places)?;
        if self.metrics.is_none() {
            let folder = run_folder::step_folder(&self.out, self.step);
            self.saved = Some((self.step, folder.clone()));
            return Ok(folder);
        }
        let state = State {
            step: self.step,
            tokens: self.tokens,
            seed: self.seed,
            loader: self.loader.state(),
            settings: self.settings.clone(),
        };
        let state = serde_json::to_value(&state).map_err(|e| TrainError::Io {
            action: "write",
            path: self.out.clone(),
            error: e.into(),
        })?;
        let files = self.tokenizer_file.iter().map(|bytes| ("tokenizer.json", &bytes[..]));
        let contents = Contents {
            config: &self.config,
            weights: snapshot.weights(),
            optimizer: snapshot.optimizer(),
            state: &state,
            files: files.collect(),
        };
        let keep = self.settings.keep as usize;
        let folder = run_folder::save(&self.out, self.step, &contents, keep)?;
        self.saved = Some((self.step, folder.clone()));
        Ok(folder)
    }
}

/// Whether the graph does the batches that the settings ask for.
fn check_batch(
    settings: &TrainSettings,
    session: &Session,
    n_shares: usize,
) -> Result<(), TrainError> {
    let phases = settings.batch.phases();
    let (from, to) = (phases[0].from, phases[phases.len() - 1].to);
    if session.entry().find_dim(MICRO_BATCHES).is_some() {
        return Ok(());
    }
    if phases.iter().any(|p| p.from != from || p.to != from) {
        return Err(TrainError::BatchChanges { from, to });
    }
    let shape = session.shape_of("tokens")?;
    let compiled = shape[..shape.len() - 1].iter().product::<usize>() * n_shares;
    if compiled as f64 != from {
        return Err(TrainError::Batch { compiled, wanted: from });
    }
    Ok(())
}

fn everyone(rank: &Rank) -> Vec<usize> {
    (0..rank.n_ranks()).collect()
}

fn joined(mut session: Session, rank: Option<&Arc<Rank>>) -> Session {
    if let Some(rank) = rank {
        session.join(rank);
    }
    session
}

/// Refuses ranks whose programs do not do the same things together in the same order.
fn check_programs(rank: &Rank, entry: &Entry) -> Result<(), TrainError> {
    let own = weft_graph::collective::sequence(entry, rank.rank()).join("\n");
    let meeting = rank.begin("exchange", "the sequence of collectives", everyone(rank));
    let all = collective::gather_uneven(&meeting, own.as_bytes()).map_err(Box::new)?;
    let lines = |bytes: &Vec<u8>| -> Vec<String> {
        String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
    };
    let sequences: Vec<Vec<String>> = all.iter().map(lines).collect();
    weft_graph::collective::agree(&sequences).map_err(TrainError::OtherProgram)
}

/// The sequences of a batch that belong to place `place` of `n`.
fn part(batch: &Batch, (n, place): (usize, usize)) -> Batch {
    let rows = batch.batch / n;
    let range = place * rows * batch.sequence..(place + 1) * rows * batch.sequence;
    Batch {
        batch: rows,
        sequence: batch.sequence,
        tokens: batch.tokens[range.clone()].to_vec(),
        segments: batch.segments[range].to_vec(),
    }
}

/// Whether the model has a row for every id, as far as the graph says.
fn check_vocabulary(entry: &Entry, tokenizer: &Tokenizer) -> Result<(), TrainError> {
    match entry.meta.get(VOCAB).and_then(Value::as_u64) {
        Some(vocab) if vocab < u64::from(tokenizer.n_ids()) => Err(TrainError::Vocabulary {
            tokenizer: tokenizer.name().to_owned(),
            n_ids: tokenizer.n_ids(),
            vocab,
        }),
        _ => Ok(()),
    }
}

fn inputs(entry: &Entry) -> Vec<String> {
    entry.buffers.iter().filter(|b| b.role == Role::Input).map(|b| b.name.clone()).collect()
}

fn write_batch(session: &mut Session, batch: &Batch) -> Result<(), TrainError> {
    let has_segments = session.entry().find_buffer("segments").is_some();
    let (tokens, segments) = without_padding(batch, has_segments);
    session.write_input("tokens", &tokens)?;
    if has_segments {
        session.write_input("segments", &segments)?;
    }
    Ok(())
}

/// Tokens and segments of a batch with something in every place. Where documents are kept apart, a
/// padded place is a document of one token: it sees itself and predicts nothing. Where they are
/// not, a row goes on with its beginning.
///
/// A place without a token would be zero in every layer, where the derivative of a norm is
/// 1/sqrt(eps): what a balance loss sends back through it grows by about 1000 with each norm, past
/// what f32 holds.
fn without_padding(batch: &Batch, has_segments: bool) -> (Vec<i32>, Vec<i32>) {
    let (mut tokens, mut segments) = (batch.tokens.clone(), batch.segments.clone());
    let rows = tokens.chunks_mut(batch.sequence).zip(segments.chunks_mut(batch.sequence));
    for (tokens, segments) in rows {
        let n_tokens = tokens.iter().take_while(|t| **t >= 0).count().max(1);
        tokens[0] = tokens[0].max(0);
        for i in n_tokens..tokens.len() {
            tokens[i] = tokens[if has_segments { 0 } else { i % n_tokens }];
            segments[i] = -1 - i as i32;
        }
    }
    (tokens, segments)
}

/// The entry's scalar results, by the names that metrics have: `loss`, `total`, `grad_norm`.
fn outputs(session: &Session) -> Result<Vec<(String, f32)>, TrainError> {
    let mut all = vec![];
    for buffer in &session.entry().buffers {
        let scalar = buffer.dims.is_empty() && !buffer.name.starts_with(WATCH);
        if buffer.role != Role::Output || buffer.alias.is_some() || !scalar {
            continue;
        }
        let value = session.read_output::<f32>(&buffer.name)?[0];
        let name = buffer.name.strip_prefix("metric.").unwrap_or(&buffer.name);
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

/// What the step measured of chosen products: by site, by role and operand, by statistic, a number
/// for each layer. Over micro-batches amax is the largest, the others are means.
fn watched(session: &Session) -> Result<Option<Value>, TrainError> {
    let n_micro = session.shape_of("tokens")?[0];
    let apart = n_micro > 1 || session.entry().find_dim(MICRO_BATCHES).is_some();
    let mut sites = Map::new();
    for buffer in &session.entry().buffers {
        let Some(name) = buffer.name.strip_prefix(WATCH) else { continue };
        let [site, operand, statistic] = name.split('|').collect::<Vec<_>>()[..] else { continue };
        let values = session.read_output::<f32>(&buffer.name)?;
        let n_layers = if apart { values.len() / n_micro } else { values.len() };
        let mut layers = vec![0f64; n_layers];
        for (i, x) in values.iter().enumerate() {
            let (layer, x) = (&mut layers[i % n_layers], f64::from(*x));
            match statistic.starts_with("amax") {
                true => *layer = layer.max(x),
                false => *layer += x * n_layers as f64 / values.len() as f64,
            }
        }
        let entry = |map: &mut Map<String, Value>, key: &str| {
            map.entry(key).or_insert_with(|| Map::new().into());
        };
        entry(&mut sites, site);
        let Some(of_site) = sites[site].as_object_mut() else { continue };
        entry(of_site, operand);
        of_site[operand][statistic] = layers.into();
    }
    Ok((!sites.is_empty()).then_some(sites.into()))
}

/// MaxVio of every layer that counts its experts' tokens: how far the fullest expert is above the
/// mean, relative to it (arXiv 2408.15664).
fn max_vio(session: &Session) -> Result<Vec<f64>, TrainError> {
    let mut all = vec![];
    for buffer in &session.entry().buffers {
        if buffer.role != Role::Output || !buffer.name.ends_with(LOAD) || buffer.dims.is_empty() {
            continue;
        }
        let loads = session.read_output::<f32>(&buffer.name)?;
        let n_experts = session.shape_of(&buffer.name)?.last().copied().unwrap_or(1).max(1);
        for layer in loads.chunks(n_experts) {
            let mean = layer.iter().map(|x| f64::from(*x)).sum::<f64>() / n_experts as f64;
            let max = layer.iter().copied().fold(0.0, f32::max);
            all.push(if mean > 0.0 { f64::from(max) / mean - 1.0 } else { 0.0 });
        }
    }
    Ok(all)
}

/// What a checkpoint's `config.json` says: the model's dims, and the ids that begin and end a text.
fn config_of(entry: &Entry, tokenizer: &Tokenizer) -> Value {
    let mut config: Map<String, Value> =
        entry.meta.get(CONFIG).and_then(Value::as_object).cloned().unwrap_or_default();
    let special = tokenizer.special();
    for (key, id) in [("bos_token_id", special.bos), ("eos_token_id", special.eos)] {
        if let (Some(id), false) = (id, config.contains_key(key)) {
            config.insert(key.into(), id.into());
        }
    }
    Value::Object(config)
}

fn tokenizer_file(path: Option<&Path>) -> Result<Option<Vec<u8>>, TrainError> {
    let Some(path) = path else { return Ok(None) };
    let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    fs::read(&path).map(Some).map_err(TrainError::io("read", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_documents_of_one_token_or_the_row_again() {
        let (tokens, segments) =
            (vec![7, 8, -1, -1, -1, 5, 6, 9, 4, 3], vec![0, 0, -1, -1, -1, 0, 0, 1, 1, 1]);
        let batch = Batch { batch: 2, sequence: 5, tokens, segments };
        let (tokens, segments) = without_padding(&batch, true);
        assert_eq!(tokens, [7, 8, 7, 7, 7, 5, 6, 9, 4, 3]);
        assert_eq!(segments, [0, 0, -3, -4, -5, 0, 0, 1, 1, 1]);
        assert_eq!(without_padding(&batch, false).0, [7, 8, 7, 8, 7, 5, 6, 9, 4, 3]);
    }
}
