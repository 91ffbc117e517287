//! `parallel NAME { ... }`: how many ranks share a model, along which axes, and in which order a
//! pipeline goes.
//!
//! The ranks of a stage are `data x context x tensor`; `experts` divides them into groups, each of
//! which has all experts between them. A block is checked by itself when it is read and against the
//! model (`check_model`) once that is lowered. Whether its layout can be run is for who runs it to
//! say.

use serde::Serialize;
use weft_ir::module::Module;
use weft_ir::op::Op;
use weft_schedule::generate::{self, Name, Size};

use super::keys::Keys;
use super::named;
use crate::ast::{self, BlockKind, EntryValue, ExprKind};
use crate::diag::Diag;
use crate::elaborate::Tree;
use crate::elaborate::tree::Body;
use crate::source::Span;

const KEYS: &[&str] = &[
    "data",
    "pipeline",
    "tensor",
    "sequence",
    "context",
    "experts",
    "expert_gradients",
    "gradient_sums",
    "mesh",
    "node",
    "nodes_per_token",
    "zero",
    "schedule",
    "stages_per_rank",
    "stage_layers",
    "micro_batches",
    "micro_batch",
    "communication_sms",
    "redundant_experts",
    "placement",
    "exchange_capacity",
];

/// The axes that ranks are counted along, outermost first: neighbours along the last share a node.
const AXES: &[&str] = &["pipeline", "data", "context", "tensor"];

/// A layout, as plain data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parallel {
    pub name: String,
    /// Ranks with micro-batches of their own.
    pub data: u64,
    /// Ranks with stages of their own.
    pub pipeline: u64,
    /// Ranks that share each matmul.
    pub tensor: u64,
    /// Those along `tensor`, if they divide the tokens of what none has a part of; else 1.
    pub sequence: u64,
    /// Ranks that share each sequence.
    pub context: u64,
    /// Ranks that share the experts of a layer; they divide the ranks of a stage.
    pub experts: u64,
    /// Where gradients of these experts' weights are contracted.
    pub expert_gradients: ExpertGradients,
    pub gradient_sums: GradientSums,
    /// The axes, outermost first.
    pub mesh: Vec<String>,
    /// Ranks in a node.
    pub node: u64,
    /// Nodes that the experts of a token may be on, at most.
    pub nodes_per_token: Option<u64>,
    /// 1: optimizer states are divided among the ranks with the same weights.
    pub zero: u64,
    pub schedule: Option<Order>,
    pub stages_per_rank: u64,
    /// How many layers each stage has; where the block does not say, stages are cut for speed.
    pub stage_layers: Option<Vec<usize>>,
    /// Of one pipeline in a step; where the block does not say, the train block does.
    pub micro_batches: Option<u64>,
    /// Sequences in one of them; likewise.
    pub micro_batch: Option<u64>,
    /// Multiprocessors that communication may take from compute.
    pub communication_sms: u64,
    /// Copies of experts beyond one each, for serving.
    pub redundant_experts: u64,
    /// The file that says where copies are, as `weft eplb --json` writes it.
    pub placement: Option<String>,
    /// Rows that a rank takes in one round of an exchange, as a multiple of the even share; there
    /// is room for all where nothing is said.
    pub exchange_capacity: Option<f64>,
}

/// Where rows are contracted to gradients of experts' weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertGradients {
    /// Where the rows come from: the bits of one rank, for more memory and transfers.
    #[default]
    AtSource,
    /// With the experts.
    AtExperts,
}

impl ExpertGradients {
    pub const WORDS: [(&str, ExpertGradients); 2] =
        [("at_source", ExpertGradients::AtSource), ("at_experts", ExpertGradients::AtExperts)];
}

/// How each rank adds its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientSums {
    /// In halves of halves: the bits of one rank, and a sum in memory for each level.
    #[default]
    Tree,
    /// One after the other.
    InOrder,
}

impl GradientSums {
    pub const WORDS: [(&str, GradientSums); 2] =
        [("tree", GradientSums::Tree), ("in_order", GradientSums::InOrder)];
}

/// The order of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A published schedule.
    Named(String),
    /// A table as CSV.
    File(String),
}

impl Parallel {
    /// Ranks that have the same stages.
    pub fn stage_ranks(&self) -> u64 {
        self.data * self.context * self.tensor
    }

    pub fn n_ranks(&self) -> u64 {
        self.stage_ranks() * self.pipeline
    }

    /// Sequences of a step, where the block says.
    pub fn batch(&self) -> Option<u64> {
        Some(self.data * self.micro_batches? * self.micro_batch.unwrap_or(1))
    }

    /// The published schedule, of the size that this layout has; none if it is a file or there is
    /// one stage.
    pub fn generated(&self) -> Option<(Name, Size)> {
        let Some(Order::Named(name)) = &self.schedule else { return None };
        let size = Size {
            n_ranks: self.pipeline as usize,
            n_micro_batches: self.micro_batches.unwrap_or(1) as usize,
            stages_per_rank: self.stages_per_rank as usize,
        };
        Some((Name::parse(name).ok()?, size))
    }

    /// The axes that are longer than 1, with their lengths.
    pub fn axes(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("data", self.data),
            ("pipeline", self.pipeline),
            ("tensor", self.tensor),
            ("sequence", self.sequence),
            ("context", self.context),
            ("experts", self.experts),
        ];
        all.into_iter().filter(|(_, n)| *n > 1).collect()
    }
}

/// The parallel block called `name`.
pub fn parallel(tree: &Tree, name: &str, diags: &mut Vec<Diag>) -> Option<Parallel> {
    let block = named(tree, BlockKind::Parallel, name, diags)?;
    read(tree, block, diags)
}

/// One block; `None` if anything is wrong with it.
pub fn read(tree: &Tree, block: &ast::Block, diags: &mut Vec<Diag>) -> Option<Parallel> {
    let n_errors = diags.iter().filter(|d| d.is_error()).count();
    let mut keys = Keys { tree, diags };
    keys.twice(&block.entries.iter().collect::<Vec<_>>());
    let mut reader = Reader { keys, block };
    let layout = reader.entries();
    reader.whole(&layout);
    let found = diags.iter().filter(|d| d.is_error()).count();
    (found == n_errors).then_some(layout)
}

struct Reader<'a, 'd> {
    keys: Keys<'a, 'd>,
    block: &'a ast::Block,
}

impl Reader<'_, '_> {
    /// Each key by itself; one that is wrong has its default so that the others are checked too.
    fn entries(&mut self) -> Parallel {
        let mut p = Parallel {
            name: self.block.name.text.clone(),
            data: 1,
            pipeline: 1,
            tensor: 1,
            sequence: 1,
            context: 1,
            experts: 1,
            expert_gradients: ExpertGradients::default(),
            gradient_sums: GradientSums::default(),
            mesh: AXES.iter().map(|a| a.to_string()).collect(),
            node: 8,
            nodes_per_token: None,
            zero: 0,
            schedule: None,
            stages_per_rank: 0,
            stage_layers: None,
            micro_batches: None,
            micro_batch: None,
            communication_sms: 0,
            redundant_experts: 0,
            placement: None,
            exchange_capacity: None,
        };
        let keys = &mut self.keys;
        for entry in &self.block.entries {
            let slot = match entry.key.text.as_str() {
                "data" => &mut p.data,
                "pipeline" => &mut p.pipeline,
                "tensor" => &mut p.tensor,
                "sequence" => &mut p.sequence,
                "context" => &mut p.context,
                "experts" => &mut p.experts,
                "node" => &mut p.node,
                "stages_per_rank" => &mut p.stages_per_rank,
                "micro_batches" => {
                    p.micro_batches = whole(keys, entry, 1);
                    continue;
                }
                "micro_batch" => {
                    p.micro_batch = whole(keys, entry, 1);
                    continue;
                }
                "nodes_per_token" => {
                    p.nodes_per_token = whole(keys, entry, 1);
                    continue;
                }
                "zero" => {
                    p.zero = keys.within(entry, 0.0, 1.0).map_or(0, |n| n as u64);
                    continue;
                }
                "expert_gradients" => {
                    let words = &ExpertGradients::WORDS;
                    p.expert_gradients = one_of(keys, entry, words).unwrap_or_default();
                    continue;
                }
                "gradient_sums" => {
                    p.gradient_sums = one_of(keys, entry, &GradientSums::WORDS).unwrap_or_default();
                    continue;
                }
                "communication_sms" => {
                    p.communication_sms = whole(keys, entry, 0).unwrap_or(0);
                    continue;
                }
                "redundant_experts" => {
                    p.redundant_experts = whole(keys, entry, 0).unwrap_or(0);
                    continue;
                }
                "exchange_capacity" => {
                    p.exchange_capacity = keys.within(entry, 1.0, 1024.0);
                    continue;
                }
                "placement" => {
                    p.placement = file(keys, entry);
                    continue;
                }
                "stage_layers" => {
                    p.stage_layers = stage_layers(keys, entry);
                    continue;
                }
                "mesh" => {
                    p.mesh = mesh(keys, entry).unwrap_or(p.mesh);
                    continue;
                }
                "schedule" => {
                    p.schedule = order(keys, entry);
                    continue;
                }
                _ => {
                    keys.unknown(&entry.key, "parallel", KEYS);
                    continue;
                }
            };
            *slot = whole(keys, entry, 1).unwrap_or(*slot);
        }
        if p.stages_per_rank == 0 {
            let Some(Order::Named(name)) = &p.schedule else {
                p.stages_per_rank = 1;
                return p;
            };
            let name = Name::parse(name).ok();
            p.stages_per_rank = name.and_then(Name::stages_per_rank).unwrap_or(2) as u64;
        }
        p
    }

    /// What several keys say together.
    fn whole(&mut self, p: &Parallel) {
        let n_ranks = p.data.checked_mul(p.context).and_then(|n| n.checked_mul(p.tensor));
        let total = n_ranks.and_then(|n| n.checked_mul(p.pipeline));
        if total.is_none_or(|n| n > RANKS_MAX) {
            let why = format!("`{}` has more than {RANKS_MAX} ranks", p.name);
            self.keys.error::<()>(self.block.name.span, why);
            return;
        }
        let stage_ranks = p.stage_ranks();
        if !stage_ranks.is_multiple_of(p.experts) {
            let why = format!(
                "experts = {} does not divide the {stage_ranks} ranks of a stage (data x context x \
                 tensor)",
                p.experts
            );
            let near =
                format!("the nearest is experts = {}", divisors_near(stage_ranks, p.experts));
            self.say("experts", why, near);
        }
        let of_experts = [
            ("expert_gradients", p.expert_gradients == ExpertGradients::AtExperts),
            ("exchange_capacity", p.exchange_capacity.is_some()),
        ];
        for (key, _) in of_experts.into_iter().filter(|(_, said)| *said && p.experts == 1) {
            let why = format!("`{key}`: no ranks have the experts between them, experts = 1");
            self.say(key, why, "give experts = 2, or leave it out".into());
        }
        if p.gradient_sums == GradientSums::InOrder && p.n_ranks() == 1 {
            let why = "`gradient_sums` is for several ranks, and there is one".to_string();
            self.say("gradient_sums", why, "give data = 2, or leave it out".into());
        }
        if p.sequence > 1 && p.sequence != p.tensor {
            let why = format!(
                "sequence = {}, and the ranks along tensor, which divide tokens, are {}",
                p.sequence, p.tensor
            );
            self.say("sequence", why, format!("give sequence = {}", p.tensor));
        }
        if p.n_ranks() > p.node && !p.n_ranks().is_multiple_of(p.node) {
            let why = format!("nodes of {} ranks do not divide {} ranks", p.node, p.n_ranks());
            let near = divisors_near(p.n_ranks(), p.node);
            self.say("node", why, format!("the nearest is node = {near}"));
        }
        let nodes = p.experts.div_ceil(p.node);
        if let Some(n) = p.nodes_per_token.filter(|n| *n > nodes) {
            let why = format!(
                "nodes_per_token = {n}, and {} ranks with experts lie on {nodes} nodes of {}",
                p.experts, p.node
            );
            self.say("nodes_per_token", why, format!("at most nodes_per_token = {nodes}"));
        }
        match (&p.schedule, p.pipeline) {
            (Some(_), 1) => {
                let why =
                    "`schedule` orders the stages of a pipeline, and pipeline = 1".to_string();
                self.say("schedule", why, "leave `schedule` out, or give pipeline = 2".into());
            }
            (Some(_), _) if p.micro_batches.is_none() => {
                let why = "`schedule` has no `micro_batches` to order".to_string();
                self.say("schedule", why, "give those of one pipeline in a step".into());
                return;
            }
            (None, n @ 2..) if !self.block.entries.iter().any(|e| e.key.text == "schedule") => {
                let why = format!("pipeline = {n} has no `schedule`");
                let names = Name::ALL.map(Name::as_str).join(", ");
                self.say("pipeline", why, format!("there are: {names}; or a CSV file's name"));
            }
            _ => {}
        }
        if let (Some((name, size)), 2..) = (p.generated(), p.pipeline)
            && let Err(e) = generate::check_size(name, size)
        {
            let span = self.span("schedule");
            self.keys.diags.push(Diag::error(span, e.to_string()));
        }
    }

    fn span(&self, key: &str) -> Span {
        span(self.block, key)
    }

    fn say(&mut self, key: &str, why: String, hint: String) {
        let span = self.span(key);
        self.keys.diags.push(Diag::error(span, why).hint(hint));
    }
}

/// Ranks of a layout, at most: beyond it somebody mistyped a number.
const RANKS_MAX: u64 = 1 << 20;

fn span(block: &ast::Block, key: &str) -> Span {
    let entry = block.entries.iter().find(|e| e.key.text == key);
    entry.map_or(block.name.span, |e| e.span)
}

/// A whole number that is no typing error.
fn whole(keys: &mut Keys, entry: &ast::Entry, least: u64) -> Option<u64> {
    let n = keys.whole(entry, least)?;
    if n <= RANKS_MAX {
        return Some(n);
    }
    let why = format!("`{}` takes a whole number up to {RANKS_MAX}, found {n}", entry.key.text);
    keys.error(entry.span, why)
}

fn mesh(keys: &mut Keys, entry: &ast::Entry) -> Option<Vec<String>> {
    let expected = format!("the axes, outermost first: [{}]", AXES.join(", "));
    let e = keys.expr(entry, &expected)?;
    let words = match &e.kind {
        ExprKind::List(items) => items.iter().map(|i| match &i.kind {
            ExprKind::Path(p) => Some(p.to_string()),
            _ => None,
        }),
        _ => return keys.error(e.span, format!("`mesh` takes {expected}")),
    };
    let words: Vec<String> = words.flatten().collect();
    let mut sorted: Vec<&str> = words.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut axes = AXES.to_vec();
    axes.sort_unstable();
    if sorted != axes {
        let why = format!("`mesh` takes {expected}, found [{}]", words.join(", "));
        return keys.error(e.span, why);
    }
    Some(words)
}

fn one_of<T: Copy>(keys: &mut Keys, entry: &ast::Entry, words: &[(&str, T)]) -> Option<T> {
    let names: Vec<&str> = words.iter().map(|w| w.0).collect();
    let word = keys.word(entry, &names)?;
    words.iter().find(|w| w.0 == word).map(|w| w.1)
}

fn file(keys: &mut Keys, entry: &ast::Entry) -> Option<String> {
    if let EntryValue::Expr(e) = &entry.value
        && let ExprKind::Str(text) = &e.kind
        && text.ends_with(".json")
    {
        return Some(text.clone());
    }
    let why = "`placement` takes the name of a JSON file in quotes";
    let diag = Diag::error(entry.span, why).hint("`weft eplb LOADS --gpus N --json` writes one");
    keys.diags.push(diag);
    None
}

fn stage_layers(keys: &mut Keys, entry: &ast::Entry) -> Option<Vec<usize>> {
    let expected = "a whole number of layers, 1 or more, for each stage: [1, 2, 2, 1]";
    let e = keys.expr(entry, expected)?;
    let ExprKind::List(items) = &e.kind else {
        return keys.error(e.span, format!("`stage_layers` takes {expected}"));
    };
    let mut all = vec![];
    for item in items {
        let n = keys.number(item, "stage_layers", expected)?;
        if n < 1.0 || n.fract() != 0.0 || n > RANKS_MAX as f64 {
            return keys.error(item.span, format!("`stage_layers` takes {expected}, found {n}"));
        }
        all.push(n as usize);
    }
    Some(all)
}

fn order(keys: &mut Keys, entry: &ast::Entry) -> Option<Order> {
    let names = Name::ALL.map(Name::as_str);
    if let EntryValue::Expr(e) = &entry.value
        && let ExprKind::Str(text) = &e.kind
    {
        if names.contains(&text.as_str()) {
            return Some(Order::Named(text.clone()));
        }
        if text.ends_with(".csv") {
            return Some(Order::File(text.clone()));
        }
        let why = format!("`schedule` takes a schedule or a CSV file, found \"{text}\"");
        let diag = Diag::error(e.span, why).did_you_mean(text, names.iter().copied());
        let all = names.join("\", \"");
        keys.diags.push(match diag.hint {
            Some(_) => diag,
            None => diag.hint(format!("there are \"{all}\", and files \"NAME.csv\"")),
        });
        return None;
    }
    // A name without a dash or a digit in front is also a word.
    let words: Vec<&str> = names.into_iter().filter(|n| !n.contains(['-', '1'])).collect();
    let found = match &entry.value {
        EntryValue::Expr(e) => match &e.kind {
            ExprKind::Path(p) => p.to_string(),
            _ => String::new(),
        },
        _ => String::new(),
    };
    if words.contains(&found.as_str()) {
        return Some(Order::Named(found));
    }
    let all = names.join("\", \"");
    let why = "`schedule` takes a schedule's name or a CSV file's in quotes";
    let diag = Diag::error(entry.span, why).hint(format!("there are \"{all}\""));
    keys.diags.push(diag);
    None
}

/// What a layout must agree with.
struct Facts {
    /// Of each routed layer, every number once.
    experts: Vec<u64>,
    /// Of each choice of experts by groups: experts chosen, groups, groups kept.
    routers: Vec<[u64; 3]>,
    heads: Vec<u64>,
    layers: u64,
}

impl Facts {
    /// From every function of the model, and the repeats of its first.
    fn of(module: &Module, entry: &str) -> Facts {
        let mut facts = Facts { experts: vec![], routers: vec![], heads: vec![], layers: 0 };
        for func in &module.funcs {
            for (_, op) in func.body_ops() {
                match op.op {
                    Op::Route => {
                        let n = op.attrs.get_int("experts").and_then(|n| u64::try_from(n).ok());
                        facts.experts.extend(n);
                    }
                    Op::GroupedTopk => {
                        let sizes = ["k", "groups", "kept"].map(|a| op.attrs.get_int(a));
                        facts.routers.push(sizes.map(|n| n.unwrap_or(1).max(1) as u64));
                    }
                    Op::Attention => {
                        let q = func.ty(op.operands[0]);
                        facts.heads.extend(q.dims.get(2).and_then(|d| d.as_fixed()));
                    }
                    _ => {}
                }
            }
        }
        facts.experts.sort_unstable();
        facts.experts.dedup();
        facts.routers.sort_unstable();
        facts.routers.dedup();
        facts.heads.sort_unstable();
        facts.heads.dedup();
        let Some(entry) = module.find(entry) else { return facts };
        for (_, op) in module.func(entry).body_ops() {
            if op.op == Op::Repeat {
                let n = op.attrs.get_int("count").and_then(|n| u64::try_from(n).ok());
                facts.layers += n.unwrap_or(0);
            }
        }
        facts
    }
}

/// Check the parallel blocks of the model against it, or the one that is `chosen`; `entry` is the
/// function with the layers. Those of a larger model that it comes `from` are for that one, unless
/// chosen.
pub fn check_model(
    tree: &Tree,
    module: &Module,
    entry: &str,
    chosen: Option<&str>,
    diags: &mut Vec<Diag>,
) {
    let facts = Facts::of(module, entry);
    let here = match tree.root().body {
        Body::Model(m) => m.span,
        Body::Module(m) => m.span,
    };
    let own = |s: Span| s.file == here.file && (here.start..here.end).contains(&s.start);
    let meant = |b: &&&ast::Block| match chosen {
        Some(name) => b.name.text == name,
        None => own(b.span),
    };
    for block in tree.blocks.iter().filter(|b| b.kind == BlockKind::Parallel).filter(meant) {
        // What is wrong with the block itself has been told.
        let Some(layout) = read(tree, block, &mut vec![]) else { continue };
        agree(tree, block, &layout, &facts, diags);
    }
}

fn agree(tree: &Tree, block: &ast::Block, p: &Parallel, facts: &Facts, diags: &mut Vec<Diag>) {
    let mut say = |key: &str, why: String, hint: String| {
        diags.push(Diag::error(span(block, key), why).hint(hint));
    };
    for n in &facts.experts {
        let all = n + p.redundant_experts;
        if !all.is_multiple_of(p.experts) {
            let copies = match p.redundant_experts {
                0 => format!("{n} experts"),
                more => format!("{n} experts and {more} copies"),
            };
            say(
                "experts",
                format!("experts = {} does not divide the model's {copies}", p.experts),
                format!("the nearest is experts = {}", divisors_near(all, p.experts)),
            );
        }
    }
    if facts.experts.is_empty() && p.experts > 1 {
        let why = format!("experts = {}, and the model has no experts", p.experts);
        say("experts", why, "leave `experts` out".into());
    }
    let nodes = p.experts.div_ceil(p.node);
    for [chosen, groups, kept] in &facts.routers {
        // A group lies on one node, or on several in a row.
        let reached = (kept * nodes.div_ceil(*groups)).min(*chosen).min(nodes);
        if let Some(n) = p.nodes_per_token.filter(|n| *n < reached) {
            let why = format!(
                "nodes_per_token = {n}, and a token that keeps {kept} of {groups} groups of \
                 experts reaches {reached} of {nodes} nodes"
            );
            say("nodes_per_token", why, format!("give nodes_per_token = {reached}"));
        }
    }
    for n in facts.heads.iter().filter(|n| !n.is_multiple_of(p.tensor)) {
        say(
            "tensor",
            format!("tensor = {} does not divide {n} heads", p.tensor),
            format!("the nearest is tensor = {}", divisors_near(*n, p.tensor)),
        );
    }
    let stages = match p.generated() {
        Some((name, size)) => name.n_stages(size) as u64,
        None => p.pipeline * p.stages_per_rank,
    };
    if p.pipeline > 1 && stages > facts.layers {
        say(
            "pipeline",
            format!("pipeline = {} has {stages} stages for {} layers", p.pipeline, facts.layers),
            format!("at most {} stages", facts.layers),
        );
    }
    if let Some(given) = &p.stage_layers
        && (given.len() as u64 != stages || given.iter().sum::<usize>() as u64 != facts.layers)
    {
        say(
            "stage_layers",
            format!(
                "stage_layers has {} stages with {} layers, and {stages} stages share {} layers",
                given.len(),
                given.iter().sum::<usize>(),
                facts.layers
            ),
            "give each stage its number, in order; or leave `stage_layers` out".into(),
        );
    }
    let trains = tree.blocks.iter().filter(|b| b.kind == BlockKind::Train);
    for train in trains.filter_map(|b| super::train::of_block(tree, b, &[], &mut vec![])) {
        if let Some(batch) = p.batch()
            && !train.batch.ends().any(|n| n == batch as f64)
        {
            let last = train.batch.ends().last().unwrap_or(0.0);
            say(
                "micro_batches",
                format!(
                    "{batch} sequences in a step (data x micro_batches x micro_batch), and train \
                     block `{}` has batch = {last}",
                    train.name
                ),
                match last / batch as f64 * p.micro_batches.unwrap_or(1) as f64 {
                    n if n.fract() == 0.0 => format!("micro_batches = {n} is that many"),
                    _ => {
                        format!("data x micro_batch divides {last}, and the rest is micro_batches")
                    }
                },
            );
        }
        let whole = |n: u64| n.is_multiple_of(p.sequence);
        if !whole(train.sequence) && !whole(train.micro_batch) {
            say(
                "sequence",
                format!(
                    "sequence = {} divides neither the {} sequences of a micro-batch nor their {} \
                     tokens (train block `{}`)",
                    p.sequence, train.micro_batch, train.sequence, train.name
                ),
                format!("the nearest is sequence = {}", divisors_near(train.sequence, p.sequence)),
            );
        }
        if !train.sequence.is_multiple_of(p.context) {
            say(
                "context",
                format!(
                    "context = {} does not divide the sequence of {} (train block `{}`)",
                    p.context, train.sequence, train.name
                ),
                format!("the nearest is context = {}", divisors_near(train.sequence, p.context)),
            );
        }
    }
}

/// The divisor of `n` that is nearest to `to`, or the two that are.
fn divisors_near(n: u64, to: u64) -> String {
    let divides = |d: &u64| n.is_multiple_of(*d);
    let below = (1..=to.min(n)).rev().find(divides);
    let above = (to..=n).find(divides);
    match (below, above) {
        (Some(b), Some(a)) if to - b == a - to && a != b => format!("{b} or {a}"),
        (Some(b), Some(a)) => (if to - b < a - to { b } else { a }).to_string(),
        (found, other) => found.or(other).unwrap_or(1).to_string(),
    }
}
