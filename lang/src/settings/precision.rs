//! `precision NAME { .. }`: what values are stored as, and which products run in which formats.
//!
//! ```text
//! precision mixed {
//!   compute = bf16                      # what has a name, in every module
//!   module "**.gate" { compute = f32 }  # but these
//!   moments = bf16
//! }
//! ```
//!
//! Every instance of the model gets one compute type before anything is lowered.

use std::collections::BTreeSet;

use weft_ir::ty::DType;

use super::gemm;
use super::keys::Keys;
use super::selector::Selectors;
use crate::ast::{self, BlockKind, EntryValue};
use crate::diag::Diag;
use crate::elaborate::Tree;
use crate::elaborate::tree::ComputeTypes;
use crate::source::Span;

const KEYS: &[&str] = &["compute", "weights", "moments", "cache", "module", "gemm"];

/// A precision block, read.
#[derive(Clone, Debug)]
pub struct Precision {
    pub name: String,
    pub compute: DType,
    pub modules: Vec<ModuleRule>,
    /// Of the optimizer's moments.
    pub moments: DType,
    /// Of what a decode step keeps; its module's compute type if not said.
    pub cache: Option<DType>,
    pub gemms: Vec<gemm::Rule>,
}

/// `module "SELECTOR" { compute = .. }`.
#[derive(Clone, Debug)]
pub struct ModuleRule {
    pub selectors: Selectors,
    pub compute: DType,
}

impl Default for Precision {
    /// f32 throughout.
    fn default() -> Precision {
        Precision {
            name: "f32".into(),
            compute: DType::F32,
            modules: vec![],
            moments: DType::F32,
            cache: None,
            gemms: vec![],
        }
    }
}

/// Give every instance of the tree the compute type that block `name` says. `asked` is where it was
/// asked for and how.
pub fn choose(tree: &mut Tree, name: &str, asked: (Span, &str), diags: &mut Vec<Diag>) {
    let blocks = tree.blocks.iter().copied();
    let all: Vec<&ast::Block> = blocks.filter(|b| b.kind == BlockKind::Precision).collect();
    let Some(block) = all.iter().find(|b| b.name.text == name) else {
        let why = format!("{}: `{}` has no precision block of that name", asked.1, tree.name);
        let names: Vec<&str> = all.iter().map(|b| b.name.text.as_str()).collect();
        let mut diag = Diag::error(asked.0, why).did_you_mean(name, names.iter().copied());
        if diag.hint.is_none() {
            diag = diag.hint(match names.is_empty() {
                true => "`use \"lib/precision.model\"` brings f32, bf16 and deepseek_fp8".into(),
                false => format!("there are {}", names.join(", ")),
            });
        }
        diags.push(diag);
        return;
    };
    let precision = read(tree, block, diags);
    tree.compute = resolve(&precision, tree, diags);
    tree.precision = precision;
}

/// The compute type of every instance; rules that match nothing or contradict each other are told.
pub fn resolve(precision: &Precision, tree: &Tree, diags: &mut Vec<Diag>) -> ComputeTypes {
    let paths = tree.instances.iter().map(|i| i.path.as_str());
    for rule in &precision.modules {
        rule.selectors.check("module", paths.clone(), diags);
    }
    let mut of_instance = vec![];
    // Pairs of selectors that have been told.
    let mut ties = BTreeSet::new();
    for path in paths {
        let mut best: Option<(&ModuleRule, Span, usize)> = None;
        for rule in &precision.modules {
            let Some(selector) = rule.selectors.best(path) else { continue };
            let n_names = selector.n_names();
            match best {
                Some((_, first, n)) if n == n_names => {
                    if !ties.insert((first, selector.span)) {
                        continue;
                    }
                    let why = format!("two rules as specific say what `{path}` computes in");
                    let diag = Diag::error(selector.span, why).label(first, "and this one");
                    diags.push(diag.hint("give the path of one of them more names"));
                }
                Some((_, _, n)) if n > n_names => {}
                _ => best = Some((rule, selector.span, n_names)),
            }
        }
        of_instance.push(best.map_or(precision.compute, |(rule, ..)| rule.compute));
    }
    ComputeTypes { of_instance, cache: precision.cache }
}

/// What one block says; what is wrong with it is told and left out.
pub fn read(tree: &Tree, block: &ast::Block, diags: &mut Vec<Diag>) -> Precision {
    let mut keys = Keys { tree, diags };
    keys.twice(&block.entries.iter().collect::<Vec<_>>());
    let mut precision = Precision { name: block.name.text.clone(), ..Precision::default() };
    for entry in &block.entries {
        match entry.key.text.as_str() {
            "compute" => precision.compute = float(&mut keys, entry).unwrap_or(DType::F32),
            "moments" => precision.moments = float(&mut keys, entry).unwrap_or(DType::F32),
            "cache" => precision.cache = float(&mut keys, entry),
            "weights" => masters(&mut keys, entry),
            "module" => precision.modules.extend(module(&mut keys, entry)),
            "gemm" => precision.gemms.extend(gemm::rule(&mut keys, entry)),
            _ => keys.unknown(&entry.key, "precision", KEYS),
        }
    }
    precision
}

/// `f32` or `bf16`.
fn float(keys: &mut Keys, entry: &ast::Entry) -> Option<DType> {
    let word = keys.word(entry, &["f32", "bf16"])?;
    DType::from_name(&word)
}

/// The optimizer changes weights by less than their own rounding in bf16.
fn masters(keys: &mut Keys, entry: &ast::Entry) {
    let f32 = |e: &ast::Expr| matches!(&e.kind, ast::ExprKind::Path(p) if p.to_string() == "f32");
    if !keys.expr(entry, "f32").is_none_or(f32) {
        let diag = Diag::error(entry.span, "not available yet: master weights of another type");
        let hint = "`weights = f32` is what there is; `compute` says what they are converted to";
        keys.diags.push(diag.hint(hint));
    }
}

fn module(keys: &mut Keys, entry: &ast::Entry) -> Option<ModuleRule> {
    let expected = "a block: `module \"SELECTOR\" { compute = .. }`";
    let EntryValue::Nested { labels, entries } = &entry.value else {
        return keys.error(entry.span, format!("`module` takes {expected}"));
    };
    let selectors = Selectors::of(entry, labels, keys.diags);
    keys.twice(&entries.iter().collect::<Vec<_>>());
    let mut compute = None;
    for inner in entries {
        match inner.key.text.as_str() {
            "compute" => compute = float(keys, inner),
            _ => keys.unknown(&inner.key, "module", &["compute"]),
        }
    }
    if entries.is_empty() {
        return keys.error(entry.span, "a module rule says something: `compute = ..`");
    }
    Some(ModuleRule { selectors: selectors?, compute: compute? })
}
