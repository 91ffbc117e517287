//! The table of `weft explain --mesh AXIS=N`: what a rank would have of each weight and of each
//! value with tokens, and why so. What the passes that divide decide is asked of them, each on the
//! module that it would be given.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use weft_ir::module::{Func, FuncId, Module, OpData, Span};
use weft_ir::op::Op;
use weft_ir::ty::DType;
use weft_lang::lower::Lowered;
use weft_passes::sequence::{self, Had};
use weft_passes::shard::{self, experts};
use weft_passes::tensor::{self, Line};
use weft_passes::{Mesh, PIPELINE, PassCx, Sums, Train, run_pass, zero};
use weft_runtime::train::run::LOSS;

use crate::policy;
use crate::weights;

/// A model as the ranks of a mesh would have it.
pub struct Table {
    module: Module,
    mesh: Mesh,
    /// Tokens of the sequence that the step is lowered for.
    tokens: u64,
    /// By axis: every weight.
    weights: Vec<(&'static str, Vec<Line>)>,
    values: Vec<sequence::Line>,
    rows: Vec<Travel>,
}

/// Rows that are sent between ranks along `experts`.
struct Travel {
    func: String,
    op: &'static str,
    why: &'static str,
    span: Option<Span>,
}

/// The loss of a micro-batch, which is what is differentiated, where it is not the whole loss.
const LOSS_OF_PART: &str = "loss.micro";
const SEQUENCE: &str = "sequence";
/// The axis of what ranks along `data` keep a part of.
const ZERO: &str = "zero";

impl Table {
    pub fn of(lowered: &Lowered, mesh: Mesh, tokens: u64) -> Result<Table> {
        let mut module = lowered.module.clone();
        if module.find(LOSS).is_none() {
            bail!("`{}` has no loss to train; only a training step is divided", module.name);
        }
        if mesh.zero && mesh.data == 1 {
            bail!("--zero 1: ranks along data keep the parts; give --mesh data=N");
        }
        let source = module.clone();
        let cx = PassCx {
            gradients: true,
            policy: policy::policy(lowered),
            // Stages are cut from what is divided, and divide nothing themselves.
            mesh: Some(Mesh { pipeline: 1, ..mesh }),
            train: mesh.zero.then(|| step_of(&mesh)),
            ..PassCx::default()
        };
        let (mut all, mut values) = (vec![], vec![]);
        let last = last_pass(&mesh);
        for (i, pass) in PIPELINE.iter().enumerate() {
            match pass.name {
                name if name == tensor::PASS.name && mesh.tensor > 1 => {
                    let lines = tensor::explain(&module, mesh.tensor, &cx.policy);
                    all.push((tensor::TENSOR, lines));
                }
                name if name == sequence::PASS.name && mesh.sequence => {
                    values = sequence::explain(&module, &cx.policy)?;
                    let step = module.find(LOSS_OF_PART).or(module.find(LOSS));
                    let called = step.map(|f| called(&module, f)).unwrap_or_default();
                    values.retain(|line| called.contains(line.func.as_str()));
                }
                name if name == shard::PASS.name && mesh.experts > 1 => {
                    all.push((experts::EXPERTS, experts::explain(&module, mesh.experts)));
                }
                name if name == zero::PASS.name => all.push((ZERO, zero::explain(&module))),
                _ => {}
            }
            if pass.name == last {
                break;
            }
            run_pass(i + 1, pass, &mut module, &cx)?;
        }
        let rows = if mesh.experts > 1 { travels(&source) } else { vec![] };
        Ok(Table { module: source, mesh, tokens, weights: all, values, rows })
    }

    /// What each axis divides, a line for each weight, op and journey of rows.
    pub fn text(&self) -> String {
        let mut out = format!("{}, {}", self.module.name, self.ranks());
        let mut rows: Vec<[String; 4]> = vec![];
        for (name, _) in &self.module.stores {
            for (axis, lines) in &self.weights {
                let Some(line) = lines.iter().find(|line| line.weight == *name) else { continue };
                // A weight is named once, in front of what the first axis does to it.
                let named = rows.iter().rev().find(|row| !row[0].is_empty());
                let again = named.is_some_and(|row| row[0] == *name);
                let shown = if again { String::new() } else { name.clone() };
                let why = line.why.clone() + &self.at(line.span);
                rows.push([shown, axis.to_string(), self.part(axis, line), why]);
            }
        }
        section(&mut out, "weights", &rows);
        let rows: Vec<[String; 4]> = self.groups().iter().map(|g| self.group(g)).collect();
        let n = self.mesh.tensor;
        let of = format!("values, by tokens: {n} ranks, a sequence of {}", self.tokens);
        section(&mut out, &of, &rows);
        let row = |t: &Travel| {
            let what = format!("@{} {}", t.func, t.op);
            [what, "exchanged".into(), "-".into(), t.why.to_string() + &self.at(t.span)]
        };
        let rows: Vec<[String; 4]> = self.rows.iter().map(row).collect();
        section(&mut out, "rows, between ranks along experts", &rows);
        out
    }

    /// Ops of one place that are done alike for one reason, in the order of the program. What is
    /// made token by token is so whatever it is made of.
    fn groups(&self) -> Vec<Vec<&sequence::Line>> {
        let key = |line: &sequence::Line| {
            let why = (line.had != Had::ByTokens).then(|| line.why.clone());
            (line.func.clone(), line.span, line.had, line.tokens, why)
        };
        let mut all: Vec<Vec<&sequence::Line>> = vec![];
        for line in &self.values {
            let own = key(line);
            match all.iter_mut().rev().find(|group| key(group[0]) == own) {
                Some(group) => group.push(line),
                None => all.push(vec![line]),
            }
        }
        all
    }

    fn group(&self, lines: &[&sequence::Line]) -> [String; 4] {
        let first = lines[0];
        let mut ops: Vec<&str> = vec![];
        for line in lines {
            if !ops.contains(&line.op) {
                ops.push(line.op);
            }
        }
        let place = first.span.map_or(String::new(), |span| format!(" {}", self.place(span)));
        let tokens = first.tokens.map_or("-".into(), |(all, own)| format!("{own} of {all}"));
        [
            format!("@{}{place}", first.func),
            first.had.name().into(),
            tokens,
            format!("{}: {}", ops.join(", "), first.why),
        ]
    }

    pub fn json(&self) -> Value {
        let weight = |axis: &'static str, line: &Line| {
            let dim = line.dim.map(|d| (d, self.stacked(&line.weight)));
            json!({
                "weight": line.weight,
                "shape": self.shape(&line.weight),
                "axis": axis,
                "along": dim.map(|_| self.along(axis, &line.weight).0),
                "dim": dim.and_then(|(d, stacked)| d.checked_sub(stacked)),
                "stack": dim.and_then(|(d, stacked)| (d < stacked).then_some(d)),
                "why": line.why,
                "place": line.span.map(|span| self.place(span)),
            })
        };
        let of = |(axis, lines): &(&'static str, Vec<Line>)| -> Vec<Value> {
            lines.iter().map(|line| weight(axis, line)).collect()
        };
        let value = |line: &sequence::Line| {
            json!({
                "func": line.func,
                "op": line.op,
                "value": line.value,
                "tokens": line.tokens.map(|(all, _)| all),
                "own": line.tokens.map(|(_, own)| own),
                "had": line.had.name(),
                "why": line.why,
                "place": line.span.map(|span| self.place(span)),
            })
        };
        let row = |t: &Travel| {
            json!({
                "func": t.func,
                "op": t.op,
                "why": t.why,
                "place": t.span.map(|span| self.place(span)),
            })
        };
        let axes = self.axes().into_iter().map(|(axis, n)| (axis.to_string(), n.into()));
        json!({
            "model": self.module.name,
            "axes": axes.collect::<serde_json::Map<String, Value>>(),
            "sequence": self.tokens,
            "weights": self.weights.iter().flat_map(of).collect::<Vec<_>>(),
            "values": self.values.iter().map(value).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    fn axes(&self) -> Vec<(&'static str, u64)> {
        let mesh = &self.mesh;
        let all = [
            ("pipeline", mesh.pipeline),
            (shard::DATA, mesh.data),
            (experts::EXPERTS, mesh.experts),
            (tensor::TENSOR, mesh.tensor),
            (SEQUENCE, if mesh.sequence { mesh.tensor } else { 1 }),
        ];
        all.into_iter().filter(|(_, n)| *n > 1).collect()
    }

    /// `8 ranks: data = 4, experts = 4, tensor = 2, zero = 1`, and what of it needs no table.
    fn ranks(&self) -> String {
        let axes: Vec<String> = self.axes().iter().map(|(a, n)| format!("{a} = {n}")).collect();
        let zero = if self.mesh.zero { ", zero = 1" } else { "" };
        let mut out = format!("{} ranks: {}{zero}\n", self.mesh.n_ranks(), axes.join(", "));
        if self.mesh.pipeline > 1 {
            let by = "as many as take equally long; `weft plan` says which";
            out += &format!("pipeline: a rank has whole layers of what follows, {by}\n");
        }
        if self.mesh.data > 1 {
            let kept = match self.mesh.zero {
                true => "has parts of what the optimizer keeps, as below",
                false => "keeps all that the optimizer does; --zero 1 divides it",
            };
            out += &format!("data: a rank has micro-batches of its own, and {kept}\n");
        }
        out
    }

    /// `[2048{tensor}, 7168]`; of what is stacked `64{experts} of 256`.
    fn part(&self, axis: &'static str, line: &Line) -> String {
        let stacked = self.stacked(&line.weight);
        let shape = self.shape(&line.weight);
        let (axis, n) = self.along(axis, &line.weight);
        if let Some(d) = line.dim.filter(|d| *d < stacked) {
            let all = self.module.stores[&line.weight].ty.dims[d].as_fixed().unwrap_or(0);
            return format!("{}{{{axis}}} of {all}", all / n);
        }
        let cut = line.dim.map(|d| d - stacked);
        let size = |(d, size): (usize, u64)| match cut == Some(d) {
            true => format!("{}{{{axis}}}", size / n),
            false => size.to_string(),
        };
        let dims: Vec<String> = shape.into_iter().enumerate().map(size).collect();
        format!("[{}]", dims.join(", "))
    }

    /// The axis of the module that a weight is divided along, and its ranks. Gradients of experts
    /// are summed over the ranks along `data` that have the same ones.
    fn along(&self, axis: &'static str, weight: &str) -> (&'static str, u64) {
        let by_expert = self.weights.iter().find(|(axis, _)| *axis == experts::EXPERTS);
        let mut lines = by_expert.into_iter().flat_map(|(_, lines)| lines);
        let by_expert = lines.any(|line| line.weight == weight && line.dim.is_some());
        match axis {
            tensor::TENSOR => (axis, self.mesh.tensor),
            experts::EXPERTS => (axis, self.mesh.experts),
            _ if by_expert => (experts::REPLICAS, self.mesh.data / self.mesh.experts),
            _ => (shard::DATA, self.mesh.data),
        }
    }

    /// Of the stored tensors.
    fn shape(&self, weight: &str) -> Vec<u64> {
        self.module.stores.get(weight).map(weights::slice_dims).unwrap_or_default()
    }

    fn stacked(&self, weight: &str) -> usize {
        self.module.stores.get(weight).map_or(0, |s| s.starts.len())
    }

    fn at(&self, span: Option<Span>) -> String {
        span.map_or(String::new(), |span| format!(" ({})", self.place(span)))
    }

    fn place(&self, span: Span) -> String {
        let path = self.module.files.get(span.file as usize).map_or("?", String::as_str);
        let name = Path::new(path).file_name().map_or("?".into(), |n| n.to_string_lossy());
        format!("{name}:{}", span.line)
    }
}

/// The pass that nothing of a mesh is asked behind.
fn last_pass(mesh: &Mesh) -> &'static str {
    match mesh {
        Mesh { zero: true, .. } => zero::PASS.name,
        Mesh { experts: 2.., .. } => shard::PASS.name,
        Mesh { sequence: true, .. } => sequence::PASS.name,
        _ => tensor::PASS.name,
    }
}

/// A function and all that it calls, by name.
fn called(module: &Module, from: FuncId) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![from];
    while let Some(f) = left.pop() {
        let func = module.func(f);
        if found.insert(func.name.clone()) {
            left.extend(func.body_ops().filter_map(|(_, op)| op.attrs.get_func("func")));
        }
    }
    found
}

/// A step with a micro-batch for each rank; what is divided does not depend on the rest of it.
fn step_of(mesh: &Mesh) -> Train {
    Train {
        micro_batches: mesh.data,
        sums: Sums::Tree,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        decay: 0.0,
        clip: None,
        moments: DType::F32,
    }
}

/// Where rows leave for the ranks of their experts, and come back.
fn travels(module: &Module) -> Vec<Travel> {
    let of = |op: Op| match op {
        Op::Dispatch => Some("a row goes to the rank that has its expert, once for each"),
        Op::Combine => Some("a row comes back to the rank of its token, to be added there"),
        _ => None,
    };
    let ops = module.funcs.iter().flat_map(|f| f.body_ops().map(move |(_, op)| (f, op)));
    let travel = |(f, op): (&Func, &OpData)| {
        let (func, span) = (f.name.clone(), op.spans.first().copied());
        Some(Travel { func, op: op.op.name(), why: of(op.op)?, span })
    };
    ops.filter_map(travel).collect()
}

/// A heading and its rows, in columns; nothing where there are none.
fn section(out: &mut String, heading: &str, rows: &[[String; 4]]) {
    if rows.is_empty() {
        return;
    }
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let (a, b, c) = (width(0), width(1), width(2));
    *out += &format!("\n{heading}\n");
    for [what, how, part, why] in rows {
        *out += &format!("  {what:<a$}  {how:<b$}  {part:<c$}  {why}\n");
    }
}
