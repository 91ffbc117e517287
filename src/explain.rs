//! `weft explain`: what a model holds and costs, before anything runs.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use weft_ir::module::{Module, Store, StoreKind};
use weft_ir::{cost, dim};
use weft_lang::elaborate::Tree;
use weft_lang::lower::{Lowered, Purpose, Settings, Size};
use weft_lang::parameters::{self, Count, Part};
use weft_passes::save_codes::{self, Kept};
use weft_passes::{PIPELINE, PassCx, run_pass};
use weft_runtime::checkpoint::Dtype;
use weft_runtime::checkpoint::fp8::SCALE_SUFFIX;
use weft_runtime::train::run::LOSS;

use crate::cut_table;
use crate::frontend::{self, ModelArgs, Source};
use crate::mesh::AxesArgs;
use crate::policy;
use crate::precision_table::{Table, scale_shape};
use crate::published::Published;
use crate::weights;

/// Print parameters, flops and cache bytes of a model
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens in a sequence, for the cost of attention
    #[arg(long, default_value_t = 4096)]
    sequence: u64,
    /// List every published tensor with its type and shape
    #[arg(long)]
    weights: bool,
    /// As --mesh tensor=RANKS
    #[arg(long, value_name = "RANKS", conflicts_with_all = ["weights", "mesh", "parallel"],
          value_parser = clap::value_parser!(u64).range(2..=4096))]
    tensor: Option<u64>,
    /// With these, list what a rank has of each weight, of values and of rows, and why
    #[command(flatten)]
    axes: AxesArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// More tensors than this are not listed.
const TENSORS_MAX: u128 = 10_000_000;

pub fn run(args: Args) -> Result<()> {
    let source = frontend::load(&args.model.model)?;
    let tree = source.elaborate(&args.model.overrides(None)?)?;
    let precision = args.model.precision.as_deref();
    let text = match (args.weights, args.json) {
        (listed, json) if args.tensor.is_some() || args.axes.is_given() => {
            if listed {
                bail!("--weights lists what is stored, whoever has it; give it without --mesh");
            }
            let mut mesh = args.axes.explained(&source, &tree)?;
            mesh.tensor = args.tensor.unwrap_or(mesh.tensor);
            let lowered = source.lower(&tree, Purpose::Train, settings(args.sequence, None))?;
            let table = cut_table::Table::of(&lowered, mesh, args.sequence)?;
            if json { pretty(&table.json())? } else { table.text() }
        }
        (false, json) if precision.is_some() => {
            let purpose = if tree.loss.is_some() { Purpose::Train } else { Purpose::Infer };
            let lowered = source.lower(&tree, purpose, settings(args.sequence, None))?;
            let name = &tree.precision.name;
            let kept = kept(&lowered)?;
            let table = Table::of(&lowered, &kept, name, args.sequence, &source.map)?;
            if json { pretty(&table.json())? } else { table.text() }
        }
        (false, json) => {
            let facts = Facts::of(&source, &tree, args.sequence)?;
            if json { pretty(&facts.json())? } else { facts.table() }
        }
        (true, json) => {
            let lowered = source.lower(&tree, Purpose::Infer, settings(1, None))?;
            let published = match precision {
                Some(_) => Published::of(&tree, &lowered)?,
                None => Published::default(),
            };
            let tensors = tensors(&lowered.module, &published)?;
            if json { pretty(&tensors_json(&tensors))? } else { tensors_table(&tensors) }
        }
    };
    print!("{text}");
    Ok(())
}

/// What a training step saves in its recipes' formats, where `recompute` is not said.
fn kept(lowered: &Lowered) -> Result<Vec<Kept>> {
    let cx = PassCx { gradients: true, policy: policy::policy(lowered), ..PassCx::default() };
    if cx.policy.is_empty() || lowered.module.find(LOSS).is_none() {
        return Ok(vec![]);
    }
    let mut module = lowered.module.clone();
    let before = PIPELINE.iter().take_while(|pass| pass.name != save_codes::PASS.name);
    for (i, pass) in before.enumerate() {
        run_pass(i + 1, pass, &mut module, &cx)?;
    }
    Ok(save_codes::kept(&module, &cx.policy))
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn settings(sequence: u64, cache: Option<u64>) -> Settings {
    Settings {
        batch: Size::Fixed(1),
        seq: Size::Fixed(sequence),
        segments: false,
        cache: cache.map(Size::Fixed),
    }
}

/// What the command says of a model.
struct Facts {
    model: Part,
    /// (total, active) of what inference needs, and of what only training does.
    inference: (u128, u128),
    training_only: (u128, u128),
    sequence: u64,
    /// Matmuls and attention, for each token of a sequence.
    forward_flops: u128,
    training_flops: u128,
    /// With the parts that only training needs; none if there are none.
    whole_training_flops: Option<u128>,
    /// Numbers a decode step keeps for each token.
    cached: u128,
}

impl Facts {
    fn of(source: &Source, tree: &Tree, sequence: u64) -> Result<Facts> {
        if sequence == 0 {
            bail!("--sequence 0: a sequence has at least one token");
        }
        let forward = source.lower(tree, Purpose::Infer, settings(sequence, None))?;
        let decode = source.lower(tree, Purpose::Infer, settings(1, Some(1)))?;
        let loss = match tree.loss {
            Some(_) => Some(source.lower(tree, Purpose::Train, settings(sequence, None))?),
            None => None,
        };
        let count = Count {
            tree,
            active: &loss.as_ref().unwrap_or(&forward).active,
            inferred: &parameters::inferred(&forward.module),
        };
        let [inference, training_only] = count.totals();
        let in_forward = flops(&forward, "forward")?;
        let whole = match loss.as_ref().filter(|_| training_only.0 > 0) {
            Some(loss) => Some(flops(loss, "loss")?.training_flops()),
            None => None,
        };
        let per_token = |n: u128| n / u128::from(sequence);
        Ok(Facts {
            model: count.model(),
            inference,
            training_only,
            sequence,
            forward_flops: per_token(in_forward.model_flops()),
            training_flops: per_token(in_forward.training_flops()),
            whole_training_flops: whole.map(per_token),
            cached: cached(&decode.module, tree)?,
        })
    }

    fn json(&self) -> Value {
        let pair = |p: (u128, u128)| json!({ "total": number(p.0), "active": number(p.1) });
        json!({
            "model": self.model.path,
            "parameters": {
                "inference": pair(self.inference),
                "training_only": pair(self.training_only),
                "parts": self.model.parts.iter().map(part_json).collect::<Vec<_>>(),
            },
            "flops_per_token": {
                "sequence": self.sequence,
                "forward": number(self.forward_flops),
                "training": number(self.training_flops),
                "training_with_training_only": self.whole_training_flops.map(number),
            },
            "cache_bytes_per_token": {
                "bf16": number(2 * self.cached),
                "f32": number(4 * self.cached),
            },
        })
    }

    fn table(&self) -> String {
        let mut rows = vec![["".into(), "parameters".into(), "active".into(), "".into()]];
        self.model.parts.iter().for_each(|p| part_rows(p, "", 0, &mut rows));
        let mut out = format!("{}\n\n{}\n", self.model.path, columns(&rows));
        let mut line = |name: &str, text: String| out += &format!("{name:<28} {text}\n");
        let (total, active) = self.inference;
        line("parameters", format!("{}  {} active", digits(total), short(active)));
        if self.training_only.0 > 0 {
            let more = digits(self.training_only.0);
            line("in training only", format!("{more}  {} active", short(self.training_only.1)));
        }
        let at = format!("at sequence {}", self.sequence);
        line("flops per token, forward", format!("{}FLOP {at}", short_flops(self.forward_flops)));
        line("flops per token, training", format!("{}FLOP {at}", short_flops(self.training_flops)));
        if let Some(whole) = self.whole_training_flops {
            line("  what only it needs in", format!("{}FLOP", short_flops(whole)));
        }
        let (bf16, f32) = (digits(2 * self.cached), digits(4 * self.cached));
        line("cache bytes per token", format!("{bf16} in bf16, {f32} in f32"));
        out
    }
}

/// What one run of `entry` on one sequence costs.
fn flops(lowered: &Lowered, entry: &str) -> Result<cost::Cost> {
    let id = lowered.module.find(entry).with_context(|| format!("there is no @{entry}"))?;
    cost::of_func(&lowered.module, id, &|_| None).with_context(|| format!("the cost of @{entry}"))
}

/// Numbers in the caches of one token: the stores of a lowering for one position that the text
/// does not declare.
fn cached(module: &Module, tree: &Tree) -> Result<u128> {
    let caches = module.stores.iter().filter(|(path, _)| !tree.stores.contains_key(*path));
    let mut sum = 0;
    for (path, store) in caches {
        let n = dim::product(&store.ty.dims).and_then(|n| module.eval_dim(n, &|_| Some(1)));
        sum += u128::from(n.with_context(|| format!("the cache `{path}` is too large to count"))?);
    }
    Ok(sum)
}

/// Exact in JSON up to 2^64; no count of a checked model is larger but a product of two.
pub fn number(n: u128) -> Value {
    u64::try_from(n).map_or_else(|_| json!(n as f64), |n| json!(n))
}

fn part_json(part: &Part) -> Value {
    json!({
        "path": part.path,
        "count": part.count,
        "total": number(part.total),
        "active": number(part.active),
        "training_only": part.training_only,
        "parts": part.parts.iter().map(part_json).collect::<Vec<_>>(),
    })
}

/// Members of members only on the way to a stack: what else a module is made of is in its text.
fn part_rows(part: &Part, above: &str, depth: usize, rows: &mut Vec<[String; 4]>) {
    let own = part.path.strip_prefix(above).unwrap_or(&part.path).trim_start_matches('.');
    let count = part.count.map_or(String::new(), |n| format!(" ({n}x)"));
    let note = if part.training_only && depth == 0 { "training only" } else { "" };
    let name = format!("{}{own}{count}", "  ".repeat(depth));
    rows.push([name, digits(part.total), digits(part.active), note.into()]);
    if part.count.is_some() && depth == 0 || part.parts.iter().any(holds_stack) {
        part.parts.iter().for_each(|p| part_rows(p, &part.path, depth + 1, rows));
    }
}

fn holds_stack(part: &Part) -> bool {
    part.count.is_some() || part.parts.iter().any(holds_stack)
}

/// A line a row: the first column to the left, numbers to the right.
fn columns(rows: &[[String; 4]]) -> String {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let (name, total, active) = (width(0), width(1), width(2));
    let line = |r: &[String; 4]| {
        let text = format!("{:<name$}  {:>total$}  {:>active$}  {}", r[0], r[1], r[2], r[3]);
        text.trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

/// `671,026,419,200`
pub fn digits(n: u128) -> String {
    let plain = n.to_string();
    let first = plain.len() % 3;
    let mut out = plain[..first].to_string();
    for group in plain.as_bytes()[first..].chunks(3) {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(group.iter().map(|b| char::from(*b)));
    }
    out
}

/// `37.55 B`
fn short(n: u128) -> String {
    let units = [(1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")];
    match units.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, letter)) => format!("{:.2}{letter}", n as f64 / unit),
        None => n.to_string(),
    }
}

/// `250.4 G`
fn short_flops(n: u128) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, letter)) => format!("{:.1} {letter}", n as f64 / unit),
        None => format!("{n} "),
    }
}

/// A tensor of a checkpoint.
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
}

/// Every tensor a checkpoint holds, stored copies after their original.
fn tensors(module: &Module, published: &Published) -> Result<Vec<Tensor>> {
    let stored = module.stores.iter().filter(|(_, s)| s.kind != StoreKind::Schedule);
    let stored: Vec<(&String, &Store)> = stored.collect();
    let n: u128 = stored.iter().map(|(_, s)| n_slices(s) * s.templates.len() as u128).sum();
    if n > TENSORS_MAX {
        bail!("{} tensors are too many to list", digits(n));
    }
    let mut all = vec![];
    for (path, store) in stored {
        let shape = weights::slice_dims(store);
        let format = published.format(path);
        for name in (0..store.templates.len()).flat_map(|which| weights::names(store, which)) {
            let scales = format.map(|f| Tensor {
                name: format!("{name}{SCALE_SUFFIX}"),
                dtype: Dtype::F32.to_string(),
                shape: scale_shape(&f, &shape),
            });
            let dtype = published.dtype(path, store).to_string();
            all.push(Tensor { name, dtype, shape: shape.clone() });
            all.extend(scales);
        }
    }
    Ok(all)
}

fn n_slices(store: &Store) -> u128 {
    let stacked = &store.ty.dims[..store.starts.len()];
    stacked.iter().map(|d| u128::from(d.as_fixed().unwrap_or(1))).product()
}

fn tensors_json(tensors: &[Tensor]) -> Value {
    let one = |t: &Tensor| json!({ "name": t.name, "dtype": t.dtype, "shape": t.shape });
    tensors.iter().map(one).collect()
}

fn tensors_table(tensors: &[Tensor]) -> String {
    let width = tensors.iter().map(|t| t.name.len()).max().unwrap_or(0);
    let line = |t: &Tensor| format!("{:<width$}  {}{:?}\n", t.name, t.dtype, t.shape);
    tensors.iter().map(line).collect()
}
