//! `weft compare MODEL A B`: one model in two precisions on the same data: how far the losses are
//! apart, and the first values that are further apart than what they are made of explains.
//!
//! Losses come from compiled kernels. Values come from the interpreter, on a short run, under the
//! names that both have. A value may differ by `MARGIN √(Σ d² + Σ u²)`: d are the relative
//! differences (in the root of the sum of squares) of the named values it is made of, u the
//! largest relative error of one rounding, for each rounding on the way from them. What is beyond
//! that is not rounding handed on: a range that is too small, or a sum that cancels.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use indexmap::IndexMap;
use serde_json::json;
use weft_ir::formats::Format;
use weft_ir::interp::{Interp, Precision, Tensor};
use weft_ir::module::{Func, Module, ValueId};
use weft_ir::op::Trait;
use weft_ir::text;
use weft_ir::ty::DType;
use weft_lang::elaborate::Overrides;
use weft_lang::lower::{Purpose, Settings, Size};
use weft_passes::{PIPELINE, PassCx};
use weft_runtime::checkpoint::reader::CheckpointReader;
use weft_runtime::data::source::TextSource;
use weft_runtime::device::DeviceKind;
use weft_runtime::generate::command::checkpoint_folder;
use weft_runtime::generate::tokenizer;

use crate::eval;
use crate::frontend::{self, ModelArgs, Source};
use crate::pipeline::{self, Recorder, ShowArgs};
use crate::policy;

/// Compare two precisions of a model on the same data
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The precision that counts as right
    a: String,
    /// The precision held against it
    b: String,
    /// A Hugging Face folder, or the folder of a run, whose newest checkpoint is taken
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// A safetensors file with `tokens`, integers [batch, sequence]
    #[arg(long, required_unless_present = "data")]
    tokens: Option<PathBuf>,
    /// Files or folders of text
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "tokens")]
    data: Vec<PathBuf>,
    /// Sequences of text
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens in a sequence of text
    #[arg(long, default_value_t = 256)]
    sequence: usize,
    /// Tokens that the interpreter runs; 0 leaves it out
    #[arg(long, default_value_t = 32)]
    positions: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How much further apart values may be than roundings alone would make them in the mean.
const MARGIN: f64 = 4.0;

/// Values beyond their bound that are told.
const SHOWN_MAX: usize = 5;

pub fn run(args: Args) -> Result<()> {
    if args.model.precision.is_some() {
        bail!("--precision: the two precisions stand behind the model");
    }
    let folder = checkpoint_folder(&args.checkpoint)?;
    let checkpoint = CheckpointReader::open(&folder)?;
    let source = frontend::load(&args.model.model)?;
    let tokens = match &args.tokens {
        Some(path) => eval::read_tokens(path)?,
        None => text_tokens(&args, &folder)?,
    };
    let run = Run { source: &source, model: &args.model, checkpoint: &checkpoint };
    let (a, b) = (run.losses(&args.a, &tokens)?, run.losses(&args.b, &tokens)?);
    let strayed = match args.positions {
        0 => None,
        n => Some(run.strayed([&args.a, &args.b], &first_tokens(&tokens, n))?),
    };
    let report = Report { args: &args, tokens: &tokens.dims, losses: [a, b], strayed };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report.json())?),
        false => print!("{}", report.text()),
    }
    Ok(())
}

/// Rows of `--sequence` tokens, one text after the other.
fn text_tokens(args: &Args, folder: &std::path::Path) -> Result<Tensor> {
    let tokenizer = tokenizer(None, folder)?;
    let mut source = TextSource::open(&args.data, 1 << 16)?;
    let wanted = args.batch.saturating_mul(args.sequence);
    if args.batch == 0 || args.sequence < 2 {
        bail!("--batch {} --sequence {}: at least one of two tokens", args.batch, args.sequence);
    }
    let mut ids: Vec<i64> = vec![];
    for document in 0..source.n_documents() {
        if ids.len() >= wanted {
            break;
        }
        if let Some(text) = source.read(document)? {
            ids.extend(tokenizer.encode_document(&text)?.into_iter().map(i64::from));
        }
    }
    if ids.len() < wanted {
        bail!(
            "--data holds {} tokens, --batch {} of --sequence {} take {wanted}",
            ids.len(),
            args.batch,
            args.sequence
        );
    }
    ids.truncate(wanted);
    Ok(Tensor::i32(&[args.batch, args.sequence], ids))
}

/// The first `n` of the first row.
fn first_tokens(tokens: &Tensor, n: usize) -> Tensor {
    let n = n.min(tokens.dims[1]).max(2.min(tokens.dims[1]));
    let ids = tokens.numbers()[..n].iter().map(|t| *t as i64).collect();
    Tensor::i32(&[1, n], ids)
}

/// A model with weights.
struct Run<'a> {
    source: &'a Source,
    model: &'a ModelArgs,
    checkpoint: &'a CheckpointReader,
}

impl Run<'_> {
    /// `@loss` in a precision, for tokens of these dims, after the passes before `end`.
    fn module(&self, precision: &str, dims: &[usize], end: Option<&str>) -> Result<Module> {
        let config = Some(self.checkpoint.config().clone());
        let precision = Some(precision.to_string());
        let overrides = Overrides { precision, ..self.model.overrides(config)? };
        let tree = self.source.elaborate(&overrides)?;
        let [batch, seq] = [dims[0], dims[1]].map(|n| Size::Fixed(n as u64));
        let settings = Settings { batch, seq, segments: false, cache: None };
        let lowered = self.source.lower(&tree, Purpose::Train, settings)?;
        let cx = PassCx { policy: policy::policy(&lowered), ..PassCx::default() };
        let mut module = lowered.module;
        match end {
            None => {
                let mut recorder = Recorder::new(&ShowArgs::default())?;
                pipeline::run(&mut module, &cx, None, (None, &[]), &mut recorder)?;
            }
            Some(end) => {
                let passes = PIPELINE.iter().take_while(|p| p.name != end);
                for (i, pass) in passes.enumerate() {
                    weft_passes::run_pass(i + 1, pass, &mut module, &cx)?;
                }
            }
        }
        Ok(module)
    }

    /// Every scalar of the loss block.
    fn losses(&self, precision: &str, tokens: &Tensor) -> Result<IndexMap<String, f64>> {
        let module = self.module(precision, &tokens.dims, None)?;
        let results = eval::compute(DeviceKind::Cpu, &module, false, tokens, self.checkpoint)?;
        let metric = |(name, t): (String, Tensor)| {
            Some((name.strip_prefix("metric.")?.to_string(), t.numbers()[0]))
        };
        Ok(results.into_iter().filter_map(metric).collect())
    }

    fn seen(&self, precision: &str, tokens: &Tensor) -> Result<(Module, Seen)> {
        // Names are whole until bodies are put into their callers.
        let module = self.module(precision, &tokens.dims, Some("hoist"))?;
        let entry = module.find("loss").context("the module has no @loss")?;
        let (seen, moments): (RefCell<Seen>, Cell<usize>) = Default::default();
        let watch = |f: &Func, v: ValueId, t: &Tensor| {
            if let Some(name) = &f.value(v).name {
                let key = (f.name.clone(), name.clone());
                let mut seen = seen.borrow_mut();
                moments.set(moments.get() + 1);
                let moment = moments.get();
                seen.entry(key).or_default().push((moment, t.clone()));
            }
        };
        let args = eval::arguments(&module, entry, tokens, self.checkpoint)?;
        Interp::new(&module, Precision::Stated).watched(&watch).run(entry, args)?;
        let seen = seen.into_inner();
        Ok((module, seen))
    }

    /// The values that are beyond their bound, in the order of the run.
    fn strayed(&self, precisions: [&str; 2], tokens: &Tensor) -> Result<Strayed> {
        let (_, right) = self.seen(precisions[0], tokens)?;
        let (module, held) = self.seen(precisions[1], tokens)?;
        let mut all = Strayed { n_compared: 0, beyond: vec![] };
        for ((func, name), values) in &held {
            let Some(was) = right.get(&(func.clone(), name.clone())) else { continue };
            let Some(f) = module.funcs.iter().find(|f| f.name == *func) else { continue };
            let Some(v) = named(f, name) else { continue };
            // What a function returns has been compared inside of it.
            let handed = f.def_op(v).is_none_or(|id| f.op(id).op.has(Trait::Calls));
            if handed || was.len() != values.len() {
                continue;
            }
            for (i, ((moment, now), (_, was))) in values.iter().zip(was).enumerate() {
                let between = |source: &str| {
                    let key = (func.clone(), source.to_string());
                    let pair = (right.get(&key)?.get(i)?, held.get(&key)?.get(i)?);
                    Some(difference(&pair.1.1, &pair.0.1))
                };
                let found = difference(now, was);
                let bound = bound(f, v, was.dtype, &between);
                all.n_compared += 1;
                if found > bound {
                    let op = f.def_op(v).map(|id| text::print_op(&module, f, id));
                    let op = op.unwrap_or_default().trim().to_string();
                    let (name, func) = (name.clone(), func.clone());
                    let moment = *moment;
                    all.beyond.push(Beyond { moment, name, func, run: i, found, bound, op });
                }
            }
        }
        all.beyond.sort_by_key(|b| b.moment);
        Ok(all)
    }
}

/// Values by function and name, one for each run of the function, with its place in the whole run.
type Seen = IndexMap<(String, String), Vec<(usize, Tensor)>>;

fn named(f: &Func, name: &str) -> Option<ValueId> {
    let results = f.body_ops().flat_map(|(_, op)| op.results.iter().copied());
    f.params.iter().copied().chain(results).find(|v| f.value(*v).name.as_deref() == Some(name))
}

/// ‖now − was‖ / ‖was‖; of integers the share that is another.
fn difference(now: &Tensor, was: &Tensor) -> f64 {
    let (a, b) = (now.numbers(), was.numbers());
    if a.len() != b.len() || a.is_empty() {
        return if a.len() == b.len() { 0.0 } else { f64::INFINITY };
    }
    if !was.dtype.is_float() {
        return a.iter().zip(&b).filter(|(x, y)| x != y).count() as f64 / a.len() as f64;
    }
    let finite = |x: f64| if x.is_finite() { x } else { 0.0 };
    if a.iter().zip(&b).any(|(x, y)| x.is_finite() != y.is_finite()) {
        return f64::INFINITY;
    }
    let moved: f64 = a.iter().zip(&b).map(|(x, y)| finite(x - y).powi(2)).sum();
    let norm: f64 = b.iter().map(|y| finite(*y).powi(2)).sum();
    if norm == 0.0 { moved.sqrt() } else { (moved / norm).sqrt() }
}

/// The largest relative error of one rounding to a type.
fn unit(dtype: DType) -> f64 {
    let bits = match Format::of(dtype) {
        Some(format) => format.mantissa_bits,
        None if dtype == DType::F32 => 23,
        None => return 0.0,
    };
    2f64.powi(-(bits as i32) - 1)
}

/// How far a value may be from the same in another precision, which rounds it to `other`.
fn bound(f: &Func, v: ValueId, other: DType, between: &dyn Fn(&str) -> Option<f64>) -> f64 {
    let mut sum = unit(other).powi(2);
    let (mut todo, mut met) = (vec![v], vec![v]);
    while let Some(at) = todo.pop() {
        let known = f.value(at).name.as_deref().filter(|_| at != v).and_then(between);
        if let Some(d) = known {
            sum += d.powi(2);
            continue;
        }
        let Some(id) = f.def_op(at) else { continue };
        sum += unit(f.ty(at).dtype).powi(2);
        for x in &f.op(id).operands {
            if !met.contains(x) {
                met.push(*x);
                todo.push(*x);
            }
        }
    }
    MARGIN * sum.sqrt()
}

struct Strayed {
    n_compared: usize,
    beyond: Vec<Beyond>,
}

/// A value further from its like than it may be.
struct Beyond {
    moment: usize,
    name: String,
    func: String,
    run: usize,
    found: f64,
    bound: f64,
    op: String,
}

struct Report<'a> {
    args: &'a Args,
    tokens: &'a [usize],
    losses: [IndexMap<String, f64>; 2],
    strayed: Option<Strayed>,
}

impl Report<'_> {
    /// (name, A, B, (B - A) / A).
    fn rows(&self) -> Vec<(&str, f64, f64, f64)> {
        let [a, b] = &self.losses;
        let both = a.iter().filter_map(|(name, x)| Some((name.as_str(), *x, *b.get(name)?)));
        both.map(|(name, x, y)| (name, x, y, (y - x) / x.abs())).collect()
    }

    fn text(&self) -> String {
        let Args { a, b, positions, .. } = self.args;
        let mut out = format!(
            "{b} beside {a}, {} sequences of {} tokens\n\n{:<12} {a:>14} {b:>14}  relative\n",
            self.tokens[0], self.tokens[1], ""
        );
        for (name, x, y, relative) in self.rows() {
            out += &format!("{name:<12} {x:>14.6} {y:>14.6}  {:+.4} %\n", 100.0 * relative);
        }
        let Some(strayed) = &self.strayed else { return out };
        out += &format!(
            "\n{} values of a run of {} tokens compared, {} beyond their bound\n",
            strayed.n_compared,
            positions.min(&self.tokens[1]),
            strayed.beyond.len()
        );
        for (i, b) in strayed.beyond.iter().take(SHOWN_MAX).enumerate() {
            let first = if i == 0 { "first" } else { "then" };
            out += &format!(
                "{first} %{} of @{}, run {}: differs by {:.1e}, bound {:.1e}\n  {}\n",
                b.name, b.func, b.run, b.found, b.bound, b.op
            );
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let loss = |(name, a, b, relative): (&str, f64, f64, f64)| -> serde_json::Value {
            let rows = [("name", name.into()), ("a", a.into()), ("b", b.into())];
            let rows = rows.into_iter().chain([("relative", relative.into())]);
            rows.map(|(key, v): (&str, serde_json::Value)| (key.to_string(), v)).collect()
        };
        let beyond = |b: &Beyond| {
            json!({
                "value": b.name, "function": b.func, "run": b.run,
                "difference": b.found, "bound": b.bound, "op": b.op,
            })
        };
        let strayed = self.strayed.as_ref();
        let all_beyond: Option<Vec<_>> = strayed.map(|s| s.beyond.iter().map(beyond).collect());
        json!({
            "a": self.args.a, "b": self.args.b,
            "tokens": self.tokens,
            "losses": self.rows().into_iter().map(loss).collect::<Vec<_>>(),
            "compared": strayed.map(|s| s.n_compared),
            "beyond": all_beyond,
        })
    }
}
