//! `train NAME { ... }`: the optimizer, the batch, the data and everything that changes over a run.

use indexmap::IndexMap;
use serde::Serialize;
use weft_ir::module::{Init, StoreKind};

use super::keys::Keys;
use super::schedule::{self, Schedule};
use super::{Sets, kind};
use crate::ast::{self, EntryValue, Expr, ExprKind};
use crate::diag::Diag;
use crate::elaborate::Tree;

/// The keys of a train block besides the model's schedules.
pub const KEYS: &[&str] = &[
    "optimizer",
    "clip",
    "init",
    "sequence",
    "batch",
    "micro_batch",
    "steps",
    "lr",
    "packing",
    "fim",
    "attend_across_documents",
    "held_out",
    "held_out_every",
    "held_out_batches",
    "checkpoint_every",
    "keep",
    "precision",
    "recompute",
];

/// Those of [`KEYS`] that take a word.
const WORDS: &[&str] = &["packing", "recompute"];

/// A train block as the compiler and the runtime use it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainSettings {
    pub name: String,
    /// The precision block to train in: the one that is chosen already, or the block's own.
    pub precision: String,
    pub optimizer: AdamW,
    /// The largest norm of all gradients together.
    pub clip: Option<f64>,
    /// Standard deviation of the weights that are drawn.
    pub init: f64,
    /// Tokens in a sequence.
    pub sequence: u64,
    /// Sequences in an optimizer step.
    pub batch: Schedule,
    /// Sequences computed at once; divides every value that `batch` starts or ends a phase with.
    pub micro_batch: u64,
    /// Optimizer steps of the run, unless the command line says.
    pub steps: Option<u64>,
    pub lr: Schedule,
    /// Every schedule of the model by its name; what the block does not name stays as the model
    /// says.
    pub schedules: IndexMap<String, Schedule>,
    /// Share of documents rearranged for fill-in-the-middle.
    pub fim: f64,
    /// Whether documents packed into one sequence see each other.
    pub attend_across_documents: bool,
    /// Share of documents kept from training to measure on.
    pub held_out: f64,
    /// Steps between two measurements on held-out documents.
    pub held_out_every: u64,
    /// Micro-batches that a measurement takes.
    pub held_out_batches: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints kept; 0 keeps all.
    pub keep: u64,
    pub recompute: Recompute,
}

/// What the backward pass computes again rather than finds saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Only what moving elements gives back.
    None,
    /// Pointwise ops and norms, too.
    #[default]
    Cheap,
    /// Products that widen what they read four times or more, too.
    UpProjections,
    /// Every repeated layer, from what it was handed.
    Layers,
}

impl Recompute {
    /// All, from what saves most to what saves least.
    pub const WORDS: [(&str, Recompute); 4] = [
        ("none", Recompute::None),
        ("cheap", Recompute::Cheap),
        ("up_projections", Recompute::UpProjections),
        ("layers", Recompute::Layers),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub decay: f64,
}

/// The train block called `name`, or the only one, with `sets` in place of its own values.
pub fn train(
    tree: &Tree,
    name: Option<&str>,
    sets: &Sets,
    diags: &mut Vec<Diag>,
) -> Option<TrainSettings> {
    let all: Vec<&ast::Block> =
        tree.blocks.iter().copied().filter(|b| b.kind == ast::BlockKind::Train).collect();
    let names: Vec<&str> = all.iter().map(|b| b.name.text.as_str()).collect();
    let here = match tree.root().body {
        crate::elaborate::tree::Body::Model(m) => m.name.span,
        crate::elaborate::tree::Body::Module(m) => m.name.span,
    };
    let block = match (name, &all[..]) {
        (Some(name), _) => match all.iter().find(|b| b.name.text == name) {
            Some(block) => *block,
            None => {
                let why =
                    format!("--train {name}: `{}` has no train block of that name", tree.name);
                let diag = Diag::error(here, why).did_you_mean(name, names.iter().copied());
                diags.push(diag);
                return None;
            }
        },
        (None, [one]) => one,
        (None, []) => {
            let why = format!("`{}` has no train block", tree.name);
            diags.push(Diag::error(here, why).hint("add `train NAME { ... }` to train it"));
            return None;
        }
        (None, _) => {
            let why = format!("`{}` has several train blocks", tree.name);
            let hint = format!("choose one with --train: {}", names.join(", "));
            diags.push(Diag::error(here, why).hint(hint));
            return None;
        }
    };
    of_block(tree, block, sets, diags)
}

/// The settings of one block; `None` if anything is wrong with it.
pub fn of_block(
    tree: &Tree,
    block: &ast::Block,
    sets: &[(String, String)],
    diags: &mut Vec<Diag>,
) -> Option<TrainSettings> {
    let n_errors = diags.iter().filter(|d| d.is_error()).count();
    let given: Vec<ast::Entry> = sets.iter().filter_map(|s| from_set(block, s, diags)).collect();
    let mut keys = Keys { tree, diags };
    keys.twice(&block.entries.iter().collect::<Vec<_>>());
    let kept = block.entries.iter().filter(|e| !given.iter().any(|g| g.key.text == e.key.text));
    let entries: Vec<&ast::Entry> = kept.chain(&given).collect();
    let settings = Reader { keys, block, entries }.read();
    // A key that was left out has its default so that the others are checked too.
    let found = diags.iter().filter(|d| d.is_error()).count();
    settings.filter(|_| found == n_errors)
}

/// `--set steps=20` as an entry of the block.
fn from_set(
    block: &ast::Block,
    (name, text): &(String, String),
    diags: &mut Vec<Diag>,
) -> Option<ast::Entry> {
    let span = block.name.span;
    let kind = match text.as_str() {
        "true" => ExprKind::Bool(true),
        "false" => ExprKind::Bool(false),
        "none" => ExprKind::None,
        number => match suffixed(number) {
            Some(n) => ExprKind::Number(n),
            None if WORDS.contains(&name.as_str()) => {
                let names = vec![ast::Name { text: text.clone(), span }];
                ExprKind::Path(ast::Path { names, span })
            }
            None => {
                let why = format!("--set {name}={text}: not a number or a boolean");
                let diag = Diag::error(span, why);
                diags.push(match name.as_str() {
                    "precision" => diag.hint(format!("`--precision {text}` chooses a block")),
                    _ => diag,
                });
                return None;
            }
        },
    };
    let key = ast::Key { text: name.clone(), quoted: false, span };
    Some(ast::Entry { key, value: EntryValue::Expr(Expr { kind, span }), span })
}

/// `2k`, `1e-3`.
fn suffixed(text: &str) -> Option<f64> {
    let scale = match text.chars().last()? {
        'k' => 1e3,
        'M' => 1e6,
        'G' => 1e9,
        'T' => 1e12,
        _ => return text.parse().ok().filter(|n: &f64| n.is_finite()),
    };
    let n: f64 = text[..text.len() - 1].parse().ok()?;
    n.is_finite().then_some(n * scale)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

struct Reader<'a, 'd> {
    keys: Keys<'a, 'd>,
    block: &'a ast::Block,
    entries: Vec<&'a ast::Entry>,
}

impl<'a> Reader<'a, '_> {
    fn read(mut self) -> Option<TrainSettings> {
        let mut schedules = self.defaults();
        self.check_names(&schedules);
        let optimizer = self.required("optimizer", Self::optimizer);
        let init = self.required("init", Self::init);
        let sequence = self.required("sequence", |r, e| r.keys.whole(e, 2));
        let batch = self.required("batch", Self::batch);
        let lr = self.required("lr", |r, e| schedule::of_entry(&mut r.keys, e));
        for (name, value) in &mut schedules {
            let given = self.optional(name, |r, e| schedule::of_entry(&mut r.keys, e));
            *value = given.unwrap_or_else(|| value.clone());
        }
        let clip = self.optional("clip", Self::clip).flatten();
        let micro_batch = self.micro_batch(batch.as_ref());
        self.optional("packing", |r, e| r.keys.word(e, &["best_fit"]));
        let steps = self.optional("steps", |r, e| r.keys.whole(e, 1));
        let share = |r: &mut Self, e: &ast::Entry| r.keys.within(e, 0.0, 1.0);
        let fim = self.optional("fim", share).unwrap_or(0.0);
        let held_out = self.optional("held_out", share).unwrap_or(0.0);
        let mut count = |key, least, otherwise: u64| {
            self.optional(key, |r, e| r.keys.whole(e, least)).unwrap_or(otherwise)
        };
        let held_out_every = count("held_out_every", 1, 50);
        let held_out_batches = count("held_out_batches", 1, 4);
        let checkpoint_every = count("checkpoint_every", 1, 100);
        let keep = count("keep", 0, 2);
        let chosen = &self.keys.tree.precision.name.clone();
        let precision = self.optional("precision", |r, e| r.precision(e));
        let recompute = self.optional("recompute", Self::recompute).unwrap_or_default();
        let across = self.optional("attend_across_documents", |r, e| r.keys.boolean(e));
        Some(TrainSettings {
            name: self.block.name.text.clone(),
            optimizer: optimizer?,
            clip,
            init: init?,
            sequence: sequence?,
            batch: batch?,
            micro_batch: micro_batch?,
            steps,
            lr: lr?,
            schedules,
            fim,
            attend_across_documents: across.unwrap_or(false),
            held_out,
            held_out_every,
            held_out_batches,
            checkpoint_every,
            keep,
            precision: precision.unwrap_or_else(|| chosen.clone()),
            recompute,
        })
    }

    fn entry(&self, key: &str) -> Option<&'a ast::Entry> {
        self.entries.iter().copied().find(|e| e.key.text == key)
    }

    fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Self, &'a ast::Entry) -> Option<T>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        read(self, entry)
    }

    fn required<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Self, &'a ast::Entry) -> Option<T>,
    ) -> Option<T> {
        match self.entry(key) {
            Some(entry) => read(self, entry),
            None => {
                let why = format!("train block `{}` has no `{key}`", self.block.name.text);
                self.keys.error(self.block.name.span, why)
            }
        }
    }

    /// The model's schedules with the values that the model gives them.
    fn defaults(&self) -> IndexMap<String, Schedule> {
        let stores = self.keys.tree.stores.iter();
        stores
            .filter(|(_, s)| s.kind == StoreKind::Schedule)
            .map(|(name, s)| {
                let value = match s.init {
                    Init::Constant(x) => x,
                    Init::Drawn => 0.0,
                };
                (name.clone(), Schedule::constant(value))
            })
            .collect()
    }

    /// A schedule of a module that is not placed is known and sets nothing.
    fn check_names(&mut self, schedules: &IndexMap<String, Schedule>) {
        let known: Vec<&str> =
            KEYS.iter().copied().chain(schedules.keys().map(String::as_str)).collect();
        for entry in &self.entries {
            let name = entry.key.text.as_str();
            if !known.contains(&name) && !self.keys.tree.schedules.contains(&name) {
                self.keys.unknown(&entry.key, kind(self.block), &known);
            }
        }
    }

    fn optimizer(&mut self, entry: &ast::Entry) -> Option<AdamW> {
        let expected = "adamw(beta1, beta2, eps, decay)";
        let e = self.keys.expr(entry, expected)?;
        let ExprKind::Call(call) = &e.kind else {
            return self.keys.error(e.span, format!("`optimizer` takes {expected}"));
        };
        let name = call.callee.to_string();
        if name != "adamw" {
            let diag = Diag::error(e.span, format!("not available yet: optimizer `{name}`"));
            self.keys.diags.push(diag.hint(format!("there is {expected}")));
            return None;
        }
        let given = self.keys.arguments(call, &["beta1", "beta2", "eps", "decay"])?;
        let [beta1, beta2, eps, decay] = given[..] else { return None };
        let (beta1, beta2) = (beta1.unwrap_or(0.9), beta2.unwrap_or(0.999));
        for (name, value) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&value) {
                let why = format!("`{name}` is at least 0 and below 1, found {value}");
                return self.keys.error(e.span, why);
            }
        }
        let (eps, decay) = (eps.unwrap_or(1e-8), decay.unwrap_or(0.0));
        if eps < 0.0 || decay < 0.0 {
            return self.keys.error(e.span, "`eps` and `decay` are at least 0");
        }
        Some(AdamW { beta1, beta2, eps, decay })
    }

    fn init(&mut self, entry: &ast::Entry) -> Option<f64> {
        let expected = "normal(deviation)";
        let e = self.keys.expr(entry, expected)?;
        match &e.kind {
            ExprKind::Call(call) if call.callee.to_string() == "normal" => {
                let given = self.keys.arguments(call, &["deviation"])?;
                match given[..] {
                    [Some(std)] if std >= 0.0 => Some(std),
                    _ => self.keys.error(e.span, "`normal` takes a deviation from 0"),
                }
            }
            _ => self.keys.error(e.span, format!("`init` takes {expected}")),
        }
    }

    fn clip(&mut self, entry: &ast::Entry) -> Option<Option<f64>> {
        if let EntryValue::Expr(Expr { kind: ExprKind::None, .. }) = entry.value {
            return Some(None);
        }
        let clip = self.keys.within(entry, 0.0, f64::INFINITY)?;
        if clip == 0.0 {
            return self.keys.error(entry.span, "`clip` is above 0, or none");
        }
        Some(Some(clip))
    }

    fn recompute(&mut self, entry: &ast::Entry) -> Option<Recompute> {
        let words: Vec<&str> = Recompute::WORDS.iter().map(|w| w.0).collect();
        let word = match self.keys.expr(entry, &words.join(" or "))?.kind {
            ExprKind::None => "none".to_string(),
            _ => self.keys.word(entry, &words)?,
        };
        Recompute::WORDS.iter().find(|w| w.0 == word).map(|w| w.1)
    }

    /// The name of a precision block.
    fn precision(&mut self, entry: &ast::Entry) -> Option<String> {
        let blocks = self.keys.tree.blocks.iter();
        let blocks = blocks.filter(|b| b.kind == ast::BlockKind::Precision);
        let names: Vec<&str> = blocks.map(|b| b.name.text.as_str()).collect();
        if names.is_empty() {
            let diag = Diag::error(entry.span, "the model has no precision blocks");
            self.keys.diags.push(diag.hint("`use \"lib/precision.model\"` brings some"));
            return None;
        }
        self.keys.word(entry, &names)
    }

    /// Sequences in a step.
    fn batch(&mut self, entry: &ast::Entry) -> Option<Schedule> {
        let schedule = schedule::of_entry(&mut self.keys, entry)?;
        if let Some(bad) = schedule.ends().find(|n| n.fract() != 0.0 || *n < 1.0 || *n > 1e9) {
            let why = format!("`batch` is a whole number of sequences, found {bad}");
            return self.keys.error(entry.span, why);
        }
        Some(schedule)
    }

    /// Sequences computed at once: what the block says, else the most that divides every batch.
    fn micro_batch(&mut self, batch: Option<&Schedule>) -> Option<u64> {
        let given = self.optional("micro_batch", |r, e| r.keys.whole(e, 1));
        let batch = batch?;
        let Some(micro) = given else {
            return batch.ends().map(|n| n as u64).reduce(gcd);
        };
        if let Some(n) = batch.ends().find(|n| !(*n as u64).is_multiple_of(micro)) {
            let at = self.entry("micro_batch").map_or(self.block.name.span, |e| e.span);
            return self
                .keys
                .error(at, format!("micro_batch = {micro} does not divide batch = {n}"));
        }
        Some(micro)
    }
}
