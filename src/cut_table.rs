//! The table of `weft explain --tensor N`: which weights ranks along `tensor` would have parts of,
//! and why the others are whole.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use weft_ir::module::{Module, Span};
use weft_lang::lower::Lowered;
use weft_passes::tensor::{self, Line};
use weft_passes::{PIPELINE, PassCx, run_pass};
use weft_runtime::train::run::LOSS;

use crate::policy;
use crate::weights;

/// Every weight of a model as `n_ranks` would keep it.
pub struct Table {
    module: Module,
    n_ranks: u64,
    lines: Vec<Line>,
}

impl Table {
    pub fn of(lowered: &Lowered, n_ranks: u64) -> Result<Table> {
        let mut module = lowered.module.clone();
        if module.find(LOSS).is_none() {
            bail!(
                "--tensor: `{}` has no loss to train; only a training step is divided",
                module.name
            );
        }
        let cx = PassCx { gradients: true, policy: policy::policy(lowered), ..PassCx::default() };
        let before = PIPELINE.iter().take_while(|pass| pass.name != tensor::PASS.name);
        for (i, pass) in before.enumerate() {
            run_pass(i + 1, pass, &mut module, &cx)?;
        }
        let lines = tensor::explain(&module, n_ranks, &cx.policy);
        Ok(Table { module, n_ranks, lines })
    }

    /// A line a weight: its part, and why it is one or none.
    pub fn text(&self) -> String {
        let rows: Vec<[String; 3]> = self.lines.iter().map(|line| self.row(line)).collect();
        let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let (name, part) = (width(0), width(1));
        let mut out = format!("{}, {} ranks along tensor\n\n", self.module.name, self.n_ranks);
        for [weight, own, why] in &rows {
            out += &format!("{weight:<name$}  {own:<part$}  {why}\n");
        }
        out
    }

    pub fn json(&self) -> Value {
        let one = |line: &Line| {
            json!({
                "weight": line.weight,
                "shape": self.shape(&line.weight),
                "dim": self.dim(line),
                "why": line.why,
                "place": line.span.map(|span| self.place(span)),
            })
        };
        json!({
            "model": self.module.name,
            "tensor": self.n_ranks,
            "weights": self.lines.iter().map(one).collect::<Vec<_>>(),
        })
    }

    fn row(&self, line: &Line) -> [String; 3] {
        let cut = self.dim(line);
        let sizes = self.shape(&line.weight).into_iter().enumerate();
        let size = |(d, n): (usize, u64)| match cut == Some(d) {
            true => format!("{}{{{}}}", n / self.n_ranks, tensor::TENSOR),
            false => n.to_string(),
        };
        let dims: Vec<String> = sizes.map(size).collect();
        let place = line.span.map_or(String::new(), |span| format!(" ({})", self.place(span)));
        [line.weight.clone(), format!("[{}]", dims.join(", ")), line.why.clone() + &place]
    }

    /// Of the stored tensors.
    fn shape(&self, weight: &str) -> Vec<u64> {
        self.module.stores.get(weight).map(weights::slice_dims).unwrap_or_default()
    }

    fn dim(&self, line: &Line) -> Option<usize> {
        let stacked = self.module.stores.get(&line.weight).map_or(0, |s| s.starts.len());
        Some(line.dim? - stacked)
    }

    fn place(&self, span: Span) -> String {
        let path = self.module.files.get(span.file as usize).map_or("?", String::as_str);
        let name = Path::new(path).file_name().map_or("?".into(), |n| n.to_string_lossy());
        format!("{name}:{}", span.line)
    }
}
